"""`lmlab tokenize train | encode | decode | inspect`: the tokenizer alone, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:  # numpy is loaded when a verb is called: its help is quick
    from lmlab.tokenize.tokenizer import Tokenizer

LINES = 4096  # read, encoded and written at a time


def train(
    source: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path,
    vocab_size: int = 8192,
    max_piece_bytes: int = 18,
    min_count: int = 2,
    pruning: Literal["compression", "likelihood"] = "compression",
    cut_characters: bool = False,
    boundaries: str = "\n",
    split_digits: bool = False,
    normalize: Literal["nfc"] | None = None,
    special_token: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME")] = (),
    field: str = "text",
    workers: int | None = None,
    memory_limit: str = "1GiB",
    seed: int = 0,
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """Learn a vocabulary from text files, JSONL or directories, and save it.

    Args:
        source: files and directories of .txt, .md and .jsonl
        out: the tokenizer's file
        vocab_size: ids, special tokens included
        max_piece_bytes: the longest piece
        min_count: how often a piece must occur
        pruning: what a piece is worth: the tokens that it saves, or likelihood
        cut_characters: pieces may begin or end inside a UTF-8 character
        boundaries: characters below U+0080 that no longer piece holds
        split_digits: no longer piece holds a digit
        normalize: put text into NFC first; lossless if not given
        special_token: a special token; again for another one
        field: of the objects of JSONL
        workers: threads; all CPUs if not given
        memory_limit: like 512MiB; what doesn't fit is sampled
        seed: of that sample
        resume: leave the state in OUT.partial if this is killed, and go on from there if it is there
        quiet: show no progress
    """
    from lmlab.tokenize.tokenizer import Tokenizer

    if not source:
        raise ValueError("give a source: lmlab tokenize train FILE_OR_DIRECTORY… --out tok.json")
    tok = Tokenizer.train(
        source[0] if len(source) == 1 else source,
        vocab_size,
        max_piece_bytes=max_piece_bytes,
        min_count=min_count,
        pruning=pruning,
        characters_whole=not cut_characters,
        boundaries=boundaries.encode(),
        split_digits=split_digits,
        normalize=normalize,
        special_tokens=special_token,
        field=field,
        workers=workers,
        memory_limit=memory_limit,
        seed=seed,
        progress=not quiet and sys.stderr.isatty(),
        state=out.with_name(f"{out.name}.partial") if resume else None,
    )
    tok.save(out)
    told = tok.training
    print(
        f"{out}: {tok.vocab_size} entries, {told['bytes_per_token']:.3f} bytes a token on {told['bytes_read']} "
        f"bytes of {told['texts']} texts, {told['seconds']:.1f} s, {told['peak_bytes'] / 2**20:.0f} MiB"
    )


def encode(
    tokenizer: Positional[Path],
    file: Positional[Path | None] = None,
    /,
    *,
    alpha: float | None = None,
    seed: int | None = None,
    method: Literal["exact", "viterbi-sampling"] = "exact",
) -> None:
    """Print the ids of each line of a file, one line of ids a line.

    Args:
        tokenizer: a file that `lmlab tokenize train` wrote
        file: lines of UTF-8, or of any bytes; standard input if not given
        alpha: draw segmentations from p^alpha / Z instead of taking the best
        seed: of the draws; line k draws from stream k
        method: viterbi-sampling is the biased rule, kept for comparison
    """
    tok = _load(tokenizer)
    stream = 0
    for lines in _blocks(file):
        texts = [_text(line.removesuffix(b"\n")) for line in lines]
        for ids in tok.encode_batch(texts, alpha=alpha, seed=seed, stream=stream, method=method).tolist():
            print(*ids)
        stream += len(lines)


def decode(
    tokenizer: Positional[Path], file: Positional[Path | None] = None, /, *, special_tokens: bool = False
) -> None:
    """Print the text of each line of ids.

    Args:
        tokenizer: a file that `lmlab tokenize train` wrote
        file: ids with blanks between; standard input if not given
        special_tokens: show special tokens by name
    """
    tok = _load(tokenizer)
    out = sys.stdout.buffer
    for lines in _blocks(file):
        for line in lines:
            out.write(tok.decode_bytes(_ids(line), skip_special_tokens=not special_tokens) + b"\n")
    out.flush()


def inspect(
    tokenizer: Positional[Path],
    text: Positional[tuple[str, ...]],
    /,
    *,
    alpha: float = 1.0,
    against: Path | None = None,
    n: int = 3,
    out: Path | None = None,
) -> None:
    """Show how texts are cut: the best segmentation, the next best, tokens and entropy; the lattice as SVG.

    Args:
        tokenizer: a file that `lmlab tokenize train` wrote
        text: texts, one an argument
        alpha: of the law p^alpha / Z
        against: another tokenizer's file, to compare with
        n: how many segmentations are listed
        out: write the lattice of the first text here
    """
    from lmlab.retry import atomic_write
    from lmlab.tokenize.inspect import lattice_svg

    if not text:
        raise ValueError("give a text: lmlab tokenize inspect TOK TEXT…")
    tok = _load(tokenizer)
    other = None if against is None else _load(against)
    for one in text:
        expected = float(tok.marginals(one, alpha=alpha).sum())
        entropy = tok.entropy(one, alpha=alpha)
        print(f"{len(one.encode())} bytes, expected tokens {expected:.2f}, entropy {entropy:.3f} nats")
        for ids, _ in tok.nbest(one, n):
            print(f"  {tok.logprob(ids, alpha=alpha):9.4f}  {_shown(tok, ids)}")
        if other is not None:
            print(f"  {'against':>9}  {_shown(other, other.encode(one))}")
    if out is not None:
        with atomic_write(out) as file:
            file.write(lattice_svg(tok, text[0], alpha=alpha, against=other).encode())


def _load(path: Path) -> Tokenizer:
    from lmlab.tokenize.tokenizer import Tokenizer

    return Tokenizer.load(path)


def _shown(tok: Tokenizer, ids: Sequence[int]) -> str:
    from lmlab.tokenize.inspect import printable

    return "|".join(printable(tok.pieces[i]) for i in ids) + f"  ({len(ids)})"


def _blocks(file: Path | None) -> Iterator[list[bytes]]:
    """The lines of a file or of standard input, some at a time."""
    if file is None:
        yield from _parts(sys.stdin.buffer)
        return
    with file.open("rb") as stream:
        yield from _parts(stream)


def _parts(stream: BinaryIO) -> Iterator[list[bytes]]:
    while lines := list(islice(stream, LINES)):
        yield lines


def _text(line: bytes) -> str | bytes:
    """str, which is normalised where the tokenizer asks for it, if it is UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line


def _ids(line: bytes) -> list[int]:
    try:
        return [int(word) for word in line.split()]
    except ValueError:
        raise ValueError(f"lines to decode must be ids with blanks between, not {line!r:.60}") from None
