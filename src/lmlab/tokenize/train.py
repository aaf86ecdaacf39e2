"""Training: sample the source, find seeds, count and prune until the vocabulary has its size."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmlab._native import tokenize as native
from lmlab.tokenize.checks import LARGEST_SEED, check_integer, check_text, check_threads
from lmlab.tokenize.files import Contents
from lmlab.tokenize.partial import VERSION, Partial, Place
from lmlab.tokenize.source import Source
from lmlab.tokenize.vocabulary import check_normalize

LEAST_MEMORY = 64 << 20
BYTES_PER_SAMPLED_BYTE = 24  # of memory, all arrays of the training together
BYTES_PER_SEED = 640
BYTES_PER_WORKER_SEED = 48  # each worker has lists of its own: of candidates, and of counts
BLOCKS_PER_SAVE = 256  # of about a mebibyte
SHRINK = 0.75  # of the vocabulary left by a round
NEAR = 1.3  # sizes below NEAR * target count as near the end
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}

Show = Callable[[str, float | None], None]  # what is done now, and the share that is done


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
    state: str | os.PathLike[str] | None,
) -> Contents:
    """Pieces and scores (special tokens left out), and what was measured on the way.

    The same arguments give the same result, whatever `workers`, and however often it was killed and went on.
    """
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
        "memory_limit": limit,
        "seed": seed,
    }
    clock = Clock()
    text = Source(source, field=field, normalize=normalize, longest_line=limit // 16)
    learner = native.Learner(
        boundaries, characters_whole, split_digits, max_piece_bytes, limit // BYTES_PER_SAMPLED_BYTE, seed
    )
    target = vocab_size - len(special_tokens)
    seeds = min(max(50 * vocab_size, 200_000), limit // BYTES_PER_SEED)
    threads = min(threads, max(1, limit // 4 // (BYTES_PER_WORKER_SEED * seeds)))
    partial = Partial(state, _key(text, arguments))
    with _progress(progress) as show:
        place = partial.load(learner)
        if place is None:
            place = Place()
            total = text.size()
            for texts, count in text.blocks():
                learner.add(texts, count)
                show("reading", text.bytes_read / total if total else None)
            text.warn()
            if learner.bytes_read == 0:
                raise ValueError("source holds no text: nothing to learn from")
            place.skipped = text.skipped
            show("finding seeds", None)
            learner.seed(min_count, seeds, threads)
            clock.tell(place)
            partial.begin(learner, place)

        def save() -> None:
            clock.tell(place)
            partial.save(learner, place)

        _shrink(learner, target, min_count, pruning, threads, place, save, show)
        if text.again and not learner.whole:
            _count_all(learner, text, threads, place, save, show)
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
    clock.tell(place)
    training = {
        "bytes_read": learner.bytes_read,
        "bytes_used": learner.bytes_used,
        "texts": learner.texts,
        "skipped": place.skipped,
        "rounds": place.rounds,
        "tokens": round(place.tokens),
        "bytes_per_token": counted / place.tokens,
        "seconds": place.seconds,
        "peak_bytes": place.peak_bytes,
        **arguments,
        "workers": threads,
    }
    partial.remove()
    return Contents([pieces[i] for i in order], scores[order].tolist(), {}, normalize, training)


def _key(text: Source, arguments: dict[str, Any]) -> str:
    told = json.dumps([VERSION, text.identity(), arguments], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _shrink(
    learner: Any,
    target: int,
    min_count: int,
    pruning: str,
    threads: int,
    place: Place,
    save: Callable[[], None],
    show: Show,
) -> None:
    """Counts and prunes until `target` pieces are left."""
    expected = max(1, math.ceil(math.log(max(learner.size / target, 1.0)) / -math.log(SHRINK))) + place.round

    def step() -> float:
        soft = pruning == "likelihood" and learner.size < NEAR * target
        tokens: float = learner.step(soft, threads)
        return tokens

    while not place.shrunk:
        show(f"round {place.round + 1}: {learner.size} pieces", min(1.0, place.round / expected))
        if pruning == "likelihood":
            least = 1 if place.round == 0 else min_count
            step()
            learner.drop_rare(least)
            place.tokens = step()
            learner.drop_rare(least)
        else:  # a piece that the corpus doesn't use may be the part of another that texts to come will lack
            place.tokens = step()
        place.rounds.append({"size": learner.size, "bytes_per_token": learner.bytes_used / place.tokens})
        if learner.size > target:
            learner.prune(max(target, int(SHRINK * learner.size)), pruning == "likelihood", threads)
            place.round += 1
        else:
            place.shrunk = True
            if learner.size < target:
                learner.refill(target)
                step()
            place.tokens = step()
        save()


def _count_all(
    learner: Any, text: Source, threads: int, place: Place, save: Callable[[], None], show: Show
) -> None:
    """The last two counts, over all of the source instead of the sample."""
    total = text.size()
    while place.passes < 2:
        if place.blocks == 0:
            learner.start_counts()
        for number, (texts, _) in enumerate(text.blocks()):
            if number < place.blocks:
                continue
            learner.count(texts, threads)
            show(
                f"counting all of the source ({place.passes + 1} of 2)",
                text.bytes_read / total if total else None,
            )
            if (number + 1) % BLOCKS_PER_SAVE == 0:
                place.blocks = number + 1
                save()
        place.tokens = learner.finish_counts()
        place.passes += 1
        place.blocks = 0
        save()


class Clock:
    """Time and memory since the beginning; a training that was killed keeps its earlier ones in the place."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._peak = _peak_memory()
        self._memory = _memory()

    def tell(self, place: Place) -> None:
        now = time.perf_counter()
        place.seconds += now - self._last
        self._last = now
        peak = _peak_memory()
        reached = peak if peak > self._peak else _memory()  # a peak from before the training tells nothing
        place.peak_bytes = max(place.peak_bytes, reached - self._memory)


@contextmanager
def _progress(wanted: bool) -> Iterator[Show]:
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


def _memory() -> int:
    """The resident size now, in bytes; where the system doesn't tell, the greatest so far."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return _peak_memory()
    return int(pages) * resource.getpagesize()
