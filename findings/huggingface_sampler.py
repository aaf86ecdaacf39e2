"""Which law does Hugging Face's Unigram(alpha=...) draw segmentations from? It needs `tokenizers` alone.

    python findings/huggingface_sampler.py [--quick]

prints every number of docs/findings/huggingface-sampler.md: draws of the installed version beside the law that subword
regularisation asks for, p(y)^alpha / Z, by writing out every segmentation of a short text; and beside the law
that follows from its recursion. With lmlab installed, lmlab's and sentencepiece's draws go through the same test.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import tokenizers

VOCABULARY = {
    "a": -2.0,
    "b": -2.4,
    "ab": -2.1,
    "ba": -2.9,
    "aba": -3.3,
    "bab": -3.6,
    "abab": -3.9,
    "baba": -4.6,
}
TEXT = "abababab"
ALPHAS = (0.1, 0.2, 0.5, 0.9, 1.0)

Ids = tuple[int, ...]
Law = dict[Ids, float]


def segmentations(text: str) -> Iterator[list[str]]:
    if not text:
        yield []
    for end in range(1, len(text) + 1):
        if text[:end] in VOCABULARY:
            for rest in segmentations(text[end:]):
                yield [text[:end], *rest]


def ids_of(y: Sequence[str]) -> Ids:
    names = list(VOCABULARY)
    return tuple(names.index(piece) for piece in y)


def right_law(alpha: float) -> Law:
    """p(y)^alpha / Z, with every segmentation written out."""
    weight = {ids_of(y): math.exp(alpha * sum(VOCABULARY[p] for p in y)) for y in segmentations(TEXT)}
    total = math.fsum(weight.values())
    return {y: w / total for y, w in weight.items()}


def implied_law(alpha: float) -> Law:
    """What the recursion F[b] = log sum exp(alpha (s + F[a])) and steps with odds exp(alpha s + F[a]) lead to."""
    forward = [0.0] * (len(TEXT) + 1)
    odds = [0.0] * (len(TEXT) + 1)
    for end in range(1, len(TEXT) + 1):
        found = [(start, VOCABULARY.get(TEXT[start:end])) for start in range(end)]
        known = [(start, s) for start, s in found if s is not None]
        forward[end] = math.log(math.fsum(math.exp(alpha * (s + forward[start])) for start, s in known))
        odds[end] = math.fsum(math.exp(alpha * s + forward[start]) for start, s in known)
    law = {}
    for y in segmentations(TEXT):
        end, q = len(TEXT), 1.0
        for piece in reversed(y):
            start = end - len(piece)
            q *= math.exp(alpha * VOCABULARY[piece] + forward[start]) / odds[end]
            end = start
        law[ids_of(y)] = q
    return law


def huggingface(alpha: float, count: int) -> list[Ids]:
    vocabulary = [*VOCABULARY.items(), ("<unk>", -100.0)]  # the sampler asks for an unknown token
    model = tokenizers.models.Unigram(vocabulary, len(vocabulary) - 1, False, alpha=alpha)
    sampler = tokenizers.Tokenizer(model)
    return [tuple(sampler.encode(TEXT).ids) for _ in range(count)]


def total_variation(a: Mapping[Ids, float], b: Mapping[Ids, float]) -> float:
    return 0.5 * math.fsum(abs(a.get(y, 0.0) - b.get(y, 0.0)) for y in {*a, *b})


def deviation(draws: Sequence[Ids], law: Law) -> float:
    """(X^2 - k) / sqrt(2 k) of the chi-square statistic with k degrees of freedom: within about 4 for the law."""
    counts, n = Counter(draws), len(draws)
    if not counts.keys() <= law.keys():
        return math.inf
    cells = [(counts[y], q * n) for y, q in law.items() if q * n >= 5]
    rest = (n - sum(c for c, _ in cells), n - math.fsum(e for _, e in cells))
    if rest[1] >= 5:
        cells.append(rest)
    statistic = math.fsum((c - e) ** 2 / e for c, e in cells)
    return (statistic - (len(cells) - 1)) / math.sqrt(2 * (len(cells) - 1))


def table(name: str, draw: Callable[[float, int], list[Ids]], count: int, alphas: Sequence[float]) -> None:
    print(f"\n{name}, {count} draws of {sum(1 for _ in segmentations(TEXT))} segmentations of {TEXT!r}")
    print("alpha   distance to p^alpha/Z   deviation   distance to the implied law   deviation")
    for alpha in alphas:
        draws = draw(alpha, count)
        shares = {y: c / count for y, c in Counter(draws).items()}
        right, implied = right_law(alpha), implied_law(alpha)
        print(
            f"{alpha:5}   {total_variation(shares, right):21.4f}   {deviation(draws, right):9.1f}"
            f"   {total_variation(shares, implied):27.4f}   {deviation(draws, implied):9.1f}"
        )


def laws() -> None:
    print("\nThe two laws themselves, exactly")
    print("alpha   distance   expected tokens: p^alpha/Z, implied   entropy (nats): p^alpha/Z, implied")
    for alpha in ALPHAS:
        right, implied = right_law(alpha), implied_law(alpha)
        tokens = [math.fsum(q * len(y) for y, q in law.items()) for law in (right, implied)]
        entropy = [-math.fsum(q * math.log(q) for q in law.values() if q > 0) for law in (right, implied)]
        print(
            f"{alpha:5}   {total_variation(right, implied):8.4f}   {tokens[0]:26.3f}, {tokens[1]:7.3f}"
            f"   {entropy[0]:25.3f}, {entropy[1]:7.3f}"
        )


def neighbours(count: int) -> None:
    """lmlab's exact sampler and sentencepiece's (nbest_size=-1), where they are installed."""
    try:
        from lmlab.tokenize import Tokenizer
    except ImportError:
        print("\nlmlab is not installed: nothing beside")
        return
    tok = Tokenizer([piece.encode() for piece in VOCABULARY], list(VOCABULARY.values()))

    def ours(alpha: float, count: int) -> list[Ids]:
        drawn = tok.encode_batch([TEXT] * count, alpha=alpha, seed=1).tolist()
        return [tuple(ids) for ids in drawn]

    table("lmlab, exact sampling", ours, count, ALPHAS)

    def first_rule(alpha: float, count: int) -> list[Ids]:
        drawn = tok.encode_batch([TEXT] * count, alpha=alpha, seed=1, method="viterbi-sampling").tolist()
        return [tuple(ids) for ids in drawn]

    table("lmlab, the first rule of kexue.fm/archives/9768 (viterbi-sampling)", first_rule, count, ALPHAS)
    try:
        import sentencepiece
    except ImportError:
        return
    with tempfile.TemporaryDirectory() as folder:
        tok.to_sentencepiece(Path(folder) / "m.model")
        sampler = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder) / "m.model"))

    def theirs(alpha: float, count: int) -> list[Ids]:
        drawn = sampler.encode(
            [TEXT] * count, enable_sampling=True, nbest_size=-1, alpha=alpha, num_threads=1
        )
        return [tuple(ids) for ids in drawn]

    table(f"sentencepiece {sentencepiece.__version__}, nbest_size=-1", theirs, count, ALPHAS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    count = 2000 if parser.parse_args().quick else 20_000
    laws()
    table(f"tokenizers {tokenizers.__version__}, Unigram(alpha=...)", huggingface, count, ALPHAS)
    neighbours(count)


if __name__ == "__main__":
    main()
