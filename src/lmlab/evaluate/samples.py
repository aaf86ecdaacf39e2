"""Generated text as text: how varied it is, how much it repeats itself, how much it copies from training.

None of these numbers is a quality by itself: noise is diverse, too. They belong beside bits per byte.
"""

import math
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Texts = str | bytes | Sequence[str | bytes]

TRAIN_AT_ONCE = 1 << 22  # bytes of the training text that are hashed together
FILTER_BITS = 20
BASE = 0x9E3779B97F4A7C15  # any odd number does: equal hashes are compared byte by byte


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Distinct n-grams / all n-grams, pooled over the texts (no n-gram spans two); nan if there are none.

    It falls with the length of the texts: compare equal amounts only. Li et al., arXiv:1510.03055.
    """
    _at_least_one(n)
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(ids: Sequence[Hashable], n: int = 4) -> float:
    """1 − distinct n-grams / all n-grams within one text; nan if it is shorter than n."""
    return 1 - distinct_n([ids], n)


def copied_fraction(text: bytes, train: bytes, n: int = 32) -> float:
    """The share of the bytes of `text` that lie in an n-byte string which occurs in `train`; 0 for b""."""
    return _share(copied_spans([text], train, n)[0], len(text))


def copied_spans(texts: Sequence[bytes], train: bytes, n: int = 32) -> list[list[tuple[int, int]]]:
    """For each text the byte spans [start, stop) covered by n-byte strings that occur in `train`.

    Spans are in order and don't touch each other. One pass over `train` for all the texts: rolling hashes
    find the candidates, and a comparison of bytes decides, so the answer is exact.
    """
    _at_least_one(n)
    found = [np.zeros(max(0, len(text) - n + 1), dtype=bool) for text in texts]
    whole = [i for i, text in enumerate(texts) if len(text) >= n]
    if not whole or len(train) < n:
        return [[] for _ in texts]
    windows = np.concatenate([sliding_window_view(_bytes(texts[i]), n) for i in whole])
    hashes = np.concatenate([_hashes(_bytes(texts[i]), n) for i in whole])
    seen = _occur(windows, hashes, train, n)
    first = 0
    for i in whole:
        found[i] = seen[first : first + len(found[i])]
        first += len(found[i])
    return [_spans(starts, n) for starts in found]


def ngram_divergence(a: bytes, b: bytes, n: int = 3) -> float:
    """The Jensen–Shannon divergence between the n-gram laws of two texts, in bits: 0 equal, 1 disjoint.

    nan where a text has no n-gram. Short texts are far from everything: compare equal amounts only.
    """
    _at_least_one(n)
    if min(len(a), len(b)) < n:
        return math.nan
    codes = _ranks(_bytes(a + b), n)
    size = int(codes.max()) + 1
    p = np.bincount(codes[: len(a) - n + 1], minlength=size) / (len(a) - n + 1)
    q = np.bincount(codes[len(a) :], minlength=size) / (len(b) - n + 1)
    middle = (p + q) / 2
    return min(1.0, max(0.0, (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2))


def sample_quality(samples: Sequence[str | bytes], reference: Texts, train: Texts) -> dict[str, float]:
    """The numbers of this file for a set of samples, and the same for real text of the same lengths.

    "distinct_1", "distinct_2", "distinct_4": over characters, pooled. "repetition": of 4 characters, mean
    over the samples. "copied": the share of all bytes that lie in a 32-byte string of `train`. "divergence":
    of 3-byte strings between the samples and `reference`. Each has a twin "reference_…", measured on passages
    of `reference` with the samples' lengths, spread evenly over it: the distance from the twin means
    something, the number alone does not. nan where a number can't be had (no n-gram, a reference that is too
    short).

    reference: held-out text; train: the training text; each one text or a sequence of texts.
    """
    texts = [_encode(sample) for sample in samples]
    held_out = _join(reference)
    passages = list(_passages(held_out, [len(text) for text in texts]))
    known = _join(train)
    ours, real = _measure(texts, held_out, known), _measure(passages, held_out, known)
    return ours | {f"reference_{name}": value for name, value in real.items()}


def _measure(texts: list[bytes], held_out: bytes, train: bytes) -> dict[str, float]:
    characters = [text.decode("utf-8", errors="replace") for text in texts]
    repeats = [r for r in (repetition(text, 4) for text in characters) if not math.isnan(r)]
    spans = copied_spans(texts, train)
    total = sum(map(len, texts))
    return {
        **{f"distinct_{n}": distinct_n(characters, n) for n in (1, 2, 4)},
        "repetition": math.fsum(repeats) / len(repeats) if repeats else math.nan,
        "copied": _share([span for some in spans for span in some], total) if total else math.nan,
        "divergence": ngram_divergence(b"\n".join(texts), held_out),
    }


def _passages(text: bytes, lengths: list[int]) -> Iterator[bytes]:
    room = len(text) - sum(lengths)
    if room < 0:
        return
    start = 0.0
    for length in lengths:
        yield text[int(start) : int(start) + length]
        start += length + room / len(lengths)


def _grams(text: Sequence[Hashable], n: int) -> Iterator[Hashable]:
    if isinstance(text, str | bytes):
        return (text[i : i + n] for i in range(len(text) - n + 1))
    return (tuple(text[i : i + n]) for i in range(len(text) - n + 1))


def _at_least_one(n: int) -> None:
    if n < 1:
        raise ValueError(f"n = {n}; an n-gram has at least one element: n >= 1")


def _encode(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _join(texts: Texts) -> bytes:
    return _encode(texts) if isinstance(texts, str | bytes) else b"\n".join(map(_encode, texts))


def _bytes(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text, dtype=np.uint8)


def _hashes(text: NDArray[np.uint8], n: int) -> NDArray[np.uint64]:
    """Σ_j (byte_{i+j} + 1)·BASE^(n−1−j) mod 2⁶⁴ for every i, by doubling: log₂ n passes over the text."""
    hashes = text.astype(np.uint64) + np.uint64(1)
    single, width = hashes, 1
    for bit in bin(n)[3:]:
        hashes = hashes[: len(hashes) - width] * _power(width) + hashes[width:]
        width *= 2
        if bit == "1":
            hashes = hashes[:-1] * _power(1) + single[width:]
            width += 1
    return hashes


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(BASE, exponent, 1 << 64))


def _occur(windows: NDArray[np.uint8], hashes: NDArray[np.uint64], train: bytes, n: int) -> NDArray[np.bool_]:
    """Which rows of `windows` [m n] are in `train`."""
    wanted, row_of = np.unique(hashes, return_inverse=True)
    mask = np.uint64((1 << FILTER_BITS) - 1)
    likely = np.zeros(1 << FILTER_BITS, dtype=bool)
    likely[wanted & mask] = True
    seen = np.zeros(len(windows), dtype=bool)
    for first in range(0, len(train) - n + 1, TRAIN_AT_ONCE):
        block = _bytes(train)[first : first + TRAIN_AT_ONCE + n - 1]
        block_hashes = _hashes(block, n)
        places = np.flatnonzero(likely[block_hashes & mask])
        index = np.minimum(np.searchsorted(wanted, block_hashes[places]), len(wanted) - 1)
        equal = wanted[index] == block_hashes[places]
        place_of = np.full(len(wanted), -1)
        place_of[index[equal]] = places[equal]
        rows = np.flatnonzero(~seen & (place_of[row_of] >= 0))
        same = (sliding_window_view(block, n)[place_of[row_of[rows]]] == windows[rows]).all(axis=1)
        seen[rows[same]] = True
        for row in rows[~same]:  # two strings of one hash: the one that is wanted may stand elsewhere
            seen[row] = windows[row].tobytes() in block.tobytes()
    return seen


def _spans(starts: NDArray[np.bool_], n: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for start in np.flatnonzero(starts).tolist():
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], start + n)
        else:
            spans.append((start, start + n))
    return spans


def _share(spans: list[tuple[int, int]], size: int) -> float:
    return sum(stop - start for start, stop in spans) / size if size else 0.0


def _ranks(text: NDArray[np.uint8], n: int) -> NDArray[np.intp]:
    """A number for each n-byte string of the text, equal where the strings are equal."""
    codes, width = text.astype(np.intp), 1
    while width < n:
        # Two overlapping strings of the width so far fix a longer one; renumbering keeps the pairs small.
        step = min(width, n - width)
        pairs = codes[: len(codes) - step] * (int(codes.max()) + 1) + codes[step:]
        codes = np.unique(pairs, return_inverse=True)[1]
        width += step
    return codes


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / q[some])).sum())
