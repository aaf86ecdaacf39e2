"""`lmlab bench tokenize`, first half: speed and memory beside other tokenizers, one thread, the same vocabulary.

The vocabulary is trained here on Chinese, English and code, and exported to each rival that can read it. tiktoken
knows BPE alone, so it gets merges of the same number of entries from the same text. bytepiece takes part where it
is installed (its dependency pyahocorasick must be built with AHOCORASICK_BYTES=1).
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tiktoken
import tokenizers
from lmlab.benchmarks import tokenize_corpora as corpora

from lmlab.lab.bench import Row, benchmark, compare
from lmlab.tokenize import Tokenizer

GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# A training alone in a process, over a stream that is made as it is read: every line differs from every other.
TRAINING = """
import sys
from lmlab.tokenize import Tokenizer
path, size, limit, vocab_size = sys.argv[1], *map(int, sys.argv[2:])
with open(path, encoding="utf-8") as file:
    lines = file.read().splitlines()
def stream():
    left, i = size, 0
    while left > 0:
        block = "".join(f"{line} {i + k:x}\\n" for k, line in enumerate(lines[i % len(lines):][:5000]))
        i += 5000
        left -= len(block.encode())
        yield block
tok = Tokenizer.train(stream(), vocab_size, memory_limit=limit)
print(tok.training["peak_bytes"], tok.training["bytes_read"], tok.training["bytes_used"])
"""


@benchmark("tokenize")
def rows(quick: bool) -> Iterator[Row]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    size = 60_000 if quick else 3_000_000
    kept, held = corpora.split(corpora.mixed(size))
    tok = Tokenizer.train(kept, 1500 if quick else 8192)
    text = "\n".join(held)
    repeats = 1 if quick else 9
    shapes = {"documents (3 kB)": corpora.documents(text), "lines": held}
    with tempfile.TemporaryDirectory() as folder:
        rivals = _Rivals(tok, kept, Path(folder))
        for shape, texts in shapes.items():
            yield from _encoding(tok, rivals, shape, texts, repeats)
        for shape, texts in shapes.items():
            yield from _sampling(tok, rivals, shape, texts, repeats)
        for name, part in _languages(held).items():
            yield from _sampling(tok, rivals, f"lines, {name} alone", part, repeats)
    yield _threads(tok, shapes["documents (3 kB)"] * (1 if quick else 8), repeats)
    yield _long_line(tok, shapes["documents (3 kB)"], repeats, 40_000 if quick else 400_000)
    yield from _training(kept, tok.vocab_size, repeats=1 if quick else 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.txt"
        path.write_text("\n".join(kept), encoding="utf-8")
        yield from _memory(path, quick)


class _Rivals:
    def __init__(self, tok: Tokenizer, lines: Sequence[str], folder: Path) -> None:
        tok.to_sentencepiece(folder / "m.model")
        self.sentencepiece = sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))
        self.tokenizers = tok.to_huggingface()
        self.tiktoken = _tiktoken(lines, tok.vocab_size)
        self.bytepiece: Any = None
        if find_spec("bytepiece") is not None:
            import bytepiece

            shares = np.exp(tok.scores - tok.scores.max()) * 1e9
            told = {
                base64.b64encode(piece).decode(): [i + 3, piece.decode(errors="replace"), int(share) + 1]
                for i, (piece, share) in enumerate(zip(tok.pieces, shares, strict=True))
            }
            (folder / "bytepiece.json").write_text(json.dumps(told))
            self.bytepiece = bytepiece.Tokenizer(str(folder / "bytepiece.json"))


def _tiktoken(lines: Sequence[str], vocab_size: int) -> tiktoken.Encoding:
    """BPE of as many entries, trained by tokenizers on the same lines."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(lines, trainer)
    letters = _byte_letters()
    ranks = {bytes([byte]): byte for byte in range(256)}
    for left, right in json.loads(bpe.to_str())["model"]["merges"]:
        ranks.setdefault(bytes(letters[c] for c in left + right), len(ranks))
    return tiktoken.Encoding("bench", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})


def _byte_letters() -> dict[str, int]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _against(
    what: str, cases: dict[str, Callable[[], object]], size: int, repeats: int, targets: dict[str, str]
) -> Iterator[Row]:
    """One row a rival; figures are MB of text a second of processor time."""
    times = compare(cases, repeats=repeats, clock="cpu")
    ours = times.pop("ours").median
    for rival, took in times.items():
        speed = (size / ours / 1e6, size / took.median / 1e6)
        ratio, target = took.median / ours, targets.get(rival, "")
        yield Row(what, rival, *speed, unit="MB/s", ratio=ratio, target=target)


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _encoding(tok: Tokenizer, rivals: _Rivals, shape: str, texts: list[str], repeats: int) -> Iterator[Row]:
    document = shape != "lines"
    cases: dict[str, Callable[[], object]] = {
        "ours": lambda: tok.encode_batch(texts, threads=1).tolist(),
        "sentencepiece": lambda: rivals.sentencepiece.encode(texts, num_threads=1),
        "tokenizers": lambda: [found.ids for found in rivals.tokenizers.encode_batch_fast(texts)],
        "tiktoken (BPE)": lambda: [rivals.tiktoken.encode_ordinary(text) for text in texts],
    }
    targets = {"sentencepiece": ">= 2.5" if document else ">= 2.2"}
    yield from _against(f"encode, lists, {shape}", cases, _size(texts), repeats, targets)
    cases = {
        "ours": lambda: [tok.encode(text) for text in texts],
        "sentencepiece": lambda: [rivals.sentencepiece.encode(text) for text in texts],
    }
    yield from _against(f"encode, one call a text, {shape}", cases, _size(texts), repeats, {})
    if rivals.bytepiece is None:
        yield Row(f"encode, numpy, {shape}", "bytepiece", note="bytepiece is not installed")
        return
    cases = {
        "ours": lambda: tok.encode_batch(texts, threads=1).ids,
        "bytepiece": lambda: [rivals.bytepiece.encode(text) for text in texts],
    }
    yield from _against(f"encode, numpy, {shape}", cases, _size(texts), repeats, {"bytepiece": ">= 30"})


def _sampling(tok: Tokenizer, rivals: _Rivals, shape: str, texts: list[str], repeats: int) -> Iterator[Row]:
    sampled = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.5}
    cases: dict[str, Callable[[], object]] = {
        "ours": lambda: tok.encode_batch(texts, alpha=0.5, seed=1, threads=1).tolist(),
        "sentencepiece": lambda: rivals.sentencepiece.encode(texts, num_threads=1, **sampled),
    }
    if rivals.bytepiece is not None:
        cases["bytepiece (its own law)"] = lambda: [
            rivals.bytepiece.encode(text, alpha=0.5) for text in texts
        ]
    target = {"documents (3 kB)": ">= 12", "lines": ">= 9"}.get(shape, "")
    yield from _against(
        f"exact sampling, lists, {shape}", cases, _size(texts), repeats, {"sentencepiece": target}
    )


def _languages(held: list[str]) -> dict[str, list[str]]:
    """The lines of the mixed text by what they hold: Chinese has the fewest segmentations, code the most."""
    found: dict[str, list[str]] = {"Chinese": [], "English and code": []}
    for line in held:
        found["Chinese" if len(line.encode()) > 1.5 * len(line) else "English and code"].append(line)
    return found


def _threads(tok: Tokenizer, documents: list[str], repeats: int) -> Row:
    times = compare(
        {str(n): partial(tok.encode_batch, documents, threads=n) for n in (1, 2)},
        repeats=repeats,
        clock="wall",
    )
    one, two = times["1"].median, times["2"].median
    return Row(
        "encode, 2 threads, documents", "own, 1 thread", two, one, ratio=one / two, target=">= 1.8",
        note="elapsed time: both CPUs must be free",
    )  # fmt: skip


def _long_line(tok: Tokenizer, documents: list[str], repeats: int, size: int) -> Row:
    text = " ".join(documents).replace("\n", " ")
    text = (text * (size // len(text.encode()) + 1)).encode()[:size].decode(errors="ignore")
    parts = corpora.documents("\n".join(documents * (size // _size(documents) + 1)))
    parts = parts[: max(1, size // 3000)]
    times = compare(
        {
            "line": partial(tok.encode_batch, [text], threads=1),
            "documents": partial(tok.encode_batch, parts, threads=1),
        },
        repeats=repeats,
    )
    line, rest = times["line"].median / len(text.encode()), times["documents"].median / _size(parts)
    return Row(
        f"encode, one line of {size // 1000} kB, a byte",
        "own, documents",
        line,
        rest,
        ratio=line / rest,
        target="<= 1.2",
    )


def _training(lines: list[str], vocab_size: int, repeats: int) -> Iterator[Row]:
    def rival(model: str) -> object:
        return sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=io.BytesIO(),
            vocab_size=vocab_size,
            model_type=model,
            character_coverage=0.98,
            byte_fallback=True,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )

    times = compare(
        {
            "ours": lambda: Tokenizer.train(lines, vocab_size, workers=1),
            "sentencepiece BPE": lambda: rival("bpe"),
            "sentencepiece unigram": lambda: rival("unigram"),
        },
        repeats=repeats,
    )
    megabytes = _size(lines) / 1e6
    ours = times.pop("ours").median / megabytes
    yield Row(f"training at v = {vocab_size}, a MB", "", ours, ratio=ours, target="<= 2")
    for name, took in times.items():
        theirs = took.median / megabytes
        yield Row(f"training at v = {vocab_size}, a MB", name, ours, theirs, ratio=theirs / ours)


def _memory(path: Path, quick: bool) -> Iterator[Row]:
    cases = (
        [(1 << 20, 64 << 20)]
        if quick
        else [(20 << 20, 64 << 20), (400 << 20, 64 << 20), (400 << 20, 256 << 20)]
    )
    for size, limit in cases:
        ran = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                TRAINING,
                str(path),
                str(size),
                str(limit),
                "512" if quick else "8192",
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peak, read, used = map(int, ran.stdout.split())
        yield Row(
            f"training peak, stream of {read >> 20} MiB",
            f"memory_limit {limit >> 20} MiB",
            peak / 2**20,
            limit / 2**20,
            unit="MiB",
            ratio=peak / limit,
            target="<= 1.1",
            note=f"{used / 2**20:.1f} MiB sampled",
        )
