"""Training: sample the source, find seeds, count and prune until the vocabulary has its size."""

from __future__ import annotations

import math
import re
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmlab._native import tokenize as native
from lmlab.tokenize.checks import LARGEST_SEED, check_integer, check_text, check_threads
from lmlab.tokenize.files import Contents
from lmlab.tokenize.source import Source
from lmlab.tokenize.vocabulary import check_normalize

LEAST_MEMORY = 64 << 20
BYTES_PER_SAMPLED_BYTE = 24  # of memory, all arrays of the training together
BYTES_PER_SEED = 640
SHRINK = 0.75  # of the vocabulary left by a round
NEAR = 1.3  # sizes below NEAR * target count as near the end
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def read_memory_limit(memory_limit: object) -> int:
    """Bytes of an int or of a text such as "512MiB" or "2GB"."""
    size = None
    if isinstance(memory_limit, int) and not isinstance(memory_limit, bool):
        size = memory_limit
    elif isinstance(memory_limit, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B)?\s*", memory_limit.upper())
        if match:
            size = int(float(match[1]) * UNITS[match[2] or ""])
    if size is None or size < LEAST_MEMORY:
        raise ValueError(
            f"memory_limit must be at least 64 MiB, as bytes (int) or as a text like '512MiB' or '2GB', not "
            f"{memory_limit!r}"
        )
    return size


def learn(
    source: Any,
    vocab_size: int,
    *,
    max_piece_bytes: int,
    min_count: int,
    pruning: str,
    characters_whole: bool,
    boundaries: bytes,
    split_digits: bool,
    normalize: str | None,
    special_tokens: tuple[str, ...],
    field: str,
    workers: int | None,
    memory_limit: int | str,
    seed: int,
    progress: bool,
) -> Contents:
    """Pieces and scores (special tokens left out), and what was measured on the way."""
    check_normalize(normalize)
    least = 256 + len(special_tokens) + 1
    vocab_size = check_integer(vocab_size, "vocab_size", 0)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size must be at least {least} (256 bytes, {len(special_tokens)} special tokens and one "
            f"piece), not {vocab_size}; for bytes alone write Tokenizer([], [])"
        )
    max_piece_bytes = check_integer(max_piece_bytes, "max_piece_bytes", 2, 255)
    min_count = check_integer(min_count, "min_count", 1)
    if pruning not in ("compression", "likelihood"):
        raise ValueError(f"pruning must be 'compression' or 'likelihood', not {pruning!r}")
    if not isinstance(boundaries, bytes):
        raise TypeError(f"boundaries must be bytes, for example b'\\n', not {boundaries!r:.60}")
    check_text(field, "field")
    seed = check_integer(seed, "seed", 0, LARGEST_SEED)
    limit = read_memory_limit(memory_limit)
    threads = check_threads(workers, "workers")
    arguments = {
        "vocab_size": vocab_size,
        "max_piece_bytes": max_piece_bytes,
        "min_count": min_count,
        "pruning": pruning,
        "characters_whole": characters_whole,
        "boundaries": boundaries.decode("latin-1"),
        "split_digits": split_digits,
        "normalize": normalize,
        "special_tokens": list(special_tokens),
        "field": field,
        "workers": threads,
        "memory_limit": limit,
        "seed": seed,
    }
    began, memory_before = time.perf_counter(), _peak_memory()
    text = Source(source, field=field, normalize=normalize)
    learner = native.Learner(
        boundaries, characters_whole, split_digits, max_piece_bytes, limit // BYTES_PER_SAMPLED_BYTE, seed
    )
    target = vocab_size - len(special_tokens)
    rounds: list[dict[str, Any]] = []
    with _progress(progress) as show:
        show("reading", None)
        for block, texts in text.blocks():
            learner.add(block, texts)
        text.warn()
        if learner.bytes_read == 0:
            raise ValueError("source holds no text: nothing to learn from")
        show("finding seeds", None)
        seeds = min(max(50 * vocab_size, 200_000), limit // BYTES_PER_SEED)
        learner.seed(min_count, seeds, threads)
        tokens = _rounds(learner, target, min_count, pruning, threads, rounds, show)
        if text.again and not learner.whole:
            for count in (1, 2):
                show(f"counting all of the source ({count} of 2)", None)
                learner.start_counts()
                for block, _ in text.blocks():
                    learner.count(block, threads)
                tokens = learner.finish_counts()
    pieces, counts, scores = learner.result()
    if len(pieces) < target:
        warnings.warn(
            f"the source holds too few pieces that occur {min_count} times: the vocabulary has "
            f"{len(pieces) + len(special_tokens)} entries, {target - len(pieces)} fewer than "
            f"vocab_size={vocab_size}",
            UserWarning,
            stacklevel=3,
        )
    order = [*range(256), *sorted(range(256, len(pieces)), key=lambda i: (-counts[i], pieces[i]))]
    counted = learner.bytes_used if learner.whole or not text.again else learner.bytes_read
    training = {
        "bytes_read": learner.bytes_read,
        "bytes_used": learner.bytes_used,
        "texts": learner.texts,
        "skipped": text.skipped,
        "rounds": rounds,
        "tokens": round(tokens),
        "bytes_per_token": counted / tokens,
        "seconds": time.perf_counter() - began,
        "peak_bytes": max(0, _peak_memory() - memory_before),
        **arguments,
    }
    return Contents([pieces[i] for i in order], scores[order].tolist(), {}, normalize, training)


def _rounds(
    learner: Any,
    target: int,
    min_count: int,
    pruning: str,
    threads: int,
    rounds: list[dict[str, Any]],
    show: Any,
) -> float:
    """Counts and prunes until `target` pieces are left; returns the tokens of the last count."""
    expected = max(1, math.ceil(math.log(max(learner.size / target, 1.0)) / -math.log(SHRINK)))

    def count() -> float:
        soft = pruning == "likelihood" and learner.size < NEAR * target
        tokens: float = learner.step(soft, threads)
        rounds.append({"size": learner.size, "bytes_per_token": learner.bytes_used / tokens})
        return tokens

    done = 0
    while True:
        show(f"round {done + 1}: {learner.size} pieces", min(1.0, done / expected))
        learner.step(pruning == "likelihood" and learner.size < NEAR * target, threads)
        learner.drop_rare(1 if done == 0 else min_count)
        tokens = count()
        learner.drop_rare(1 if done == 0 else min_count)
        if learner.size <= target:
            break
        learner.prune(max(target, int(SHRINK * learner.size)), pruning == "likelihood", threads)
        done += 1
    if learner.size < target:
        learner.refill(target)
        learner.step(False, threads)
        tokens = count()
    return tokens


@contextmanager
def _progress(wanted: bool) -> Iterator[Any]:
    """A function (what, share done or None) that shows where training is."""
    if not wanted:
        yield lambda what, share: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("training the tokenizer", total=None)

        def show(what: str, share: float | None) -> None:
            bar.update(task, description=what, total=None if share is None else 1.0, completed=share or 0.0)

        yield show


def _peak_memory() -> int:
    """The greatest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
