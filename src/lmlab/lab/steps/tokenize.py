"""Stage 2: a tokenizer, trained on the train split or loaded, and both splits as ids."""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lmlab.lab.corpus import read_documents
from lmlab.lab.recipe import END, Recipe
from lmlab.lab.sources import CorpusError
from lmlab.lab.stages import file_sha256
from lmlab.lab.steps.job import Job
from lmlab.model.errors import ConfigError
from lmlab.model.fields import to_plain

if TYPE_CHECKING:
    from lmlab.tokenize import Tokenizer

VERSION = 2
INPUTS = ("corpus",)
_BATCH = 256  # documents encoded at once
LATTICE_BYTES = 48  # of the text whose lattice is drawn
ALPHA_BYTES = 20_000  # that tokens and entropy are told of


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    options = to_plain(recipe.tokenize)
    del options["load"], options["memory_limit"]
    sampled = {} if recipe.tokenize.alpha is None else {"tokens_read": _tokens_read(recipe)}
    path = _loaded(recipe)
    return options | {"seed": _seed(recipe)} | sampled, [] if path is None else [file_sha256(path)]


def work(job: Job) -> dict[str, Any]:
    from lmlab.train import TokenFile

    corpus, options = job.inputs["corpus"], job.recipe.tokenize
    train, held_out = corpus / "train.jsonl", corpus / "held_out.jsonl"
    _check_bytes(job.recipe, corpus)
    with job.display.work(job.label) as advance:
        advance(0, "the tokenizer")
        with job.warnings_to_log():
            tokenizer = make_tokenizer(job.recipe, train)
        tokenizer.save(job.out / "tokenizer.json")
        end = tokenizer.special_tokens[END]

        def write(name: str, documents: Iterable[np.ndarray]) -> int:
            return len(
                TokenFile.write(
                    job.out / name,
                    cast("Iterable[Sequence[int]]", documents),  # an array of ids is taken too
                    vocab_size=tokenizer.vocab_size,
                    end_id=end,
                )
            )

        advance(0, "the held-out text")
        held_counts = np.zeros(tokenizer.vocab_size, np.int64)
        write("held_out.tok", _encoded(tokenizer, held_out, held_counts))
        advance(0, "the training text")
        counts = np.zeros(tokenizer.vocab_size, np.int64)
        tokens = write("train.tok", _encoded(tokenizer, train, counts)) if options.alpha is None else 0
        if options.alpha is not None:
            copies = _copies(job.recipe, train, tokenizer)
            tokens = write(
                "train.tok", _sampled(tokenizer, train, counts, options.alpha, _seed(job.recipe), copies)
            )
    return {
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "train_tokens": tokens,
        "training": {k: v for k, v in tokenizer.training.items() if k != "rounds"},
        "bytes_per_token": {
            "train": _ratio(tokenizer, counts),
            "held_out": _ratio(tokenizer, held_counts),
        },
        "by_script": bytes_per_token_by_script(tokenizer, held_counts),
        "longest": _longest(tokenizer, counts),
        "segmentations": _segmentations(tokenizer, held_out),
        "lattice": _lattice(tokenizer, held_out),
        "alphas": _alphas(tokenizer, held_out),
        "rounds": tokenizer.training.get("rounds", []),
    }


def _check_bytes(recipe: Recipe, corpus: Path) -> None:
    """A token has at least one byte: a text with fewer bytes than two windows is refused at once."""
    told = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    found = told["train_bytes"] + told["documents"]["train"]  # each document has an end token, too
    needed = 2 * (recipe.train.length + 1)
    if found < needed:
        raise CorpusError(
            f"the corpus is too small: training needs two windows of {recipe.train.length} tokens, at least "
            f"{needed} bytes in the train split, and found {told['train_bytes']} bytes. Give more text, or a "
            "smaller train.length"
        )


def make_tokenizer(recipe: Recipe, train: Path) -> Tokenizer:
    """The tokenizer of a recipe; it always has the end token."""
    from lmlab.tokenize import Tokenizer

    options = recipe.tokenize
    specials = tuple(dict.fromkeys((*options.special_tokens, END)))
    path = _loaded(recipe)
    if path is not None:
        return _with_end(Tokenizer.load(path))
    if options.vocab_size <= 256 + len(specials):
        return Tokenizer([bytes([b]) for b in range(256)], [-math.log(256)] * 256, special_tokens=specials)
    return Tokenizer.train(
        train,
        options.vocab_size,
        max_piece_bytes=options.max_piece_bytes,
        min_count=options.min_count,
        pruning=options.pruning,
        characters_whole=options.characters_whole,
        boundaries=options.boundaries.encode(),
        split_digits=options.split_digits,
        normalize="nfc" if options.normalize == "nfc" else None,
        special_tokens=specials,
        memory_limit=options.memory_limit,
        seed=_seed(recipe),
    )


def _with_end(tokenizer: Tokenizer) -> Tokenizer:
    """A loaded tokenizer with the end token on top, if it lacks it."""
    from lmlab.tokenize import Tokenizer

    if END in tokenizer.special_tokens:
        return tokenizer
    special = set(tokenizer.special_tokens.values())
    ids = [i for i in range(tokenizer.vocab_size) if i not in special]
    return Tokenizer(
        [tokenizer.pieces[i] for i in ids],
        [float(tokenizer.scores[i]) for i in ids],
        special_tokens=(*tokenizer.special_tokens, END),
        normalize="nfc" if tokenizer.normalize == "nfc" else None,
    )


def _loaded(recipe: Recipe) -> Path | None:
    if recipe.tokenize.load is None:
        return None
    path = recipe.folder / Path(recipe.tokenize.load).expanduser()
    if not path.is_file():
        raise ConfigError("tokenize.load", f"names no file: {path}")
    return path


def _seed(recipe: Recipe) -> int:
    return recipe.seed if recipe.tokenize.seed is None else recipe.tokenize.seed


def _tokens_read(recipe: Recipe) -> int:
    return recipe.train.steps * recipe.train.batch_size * recipe.train.length


def _copies(recipe: Recipe, train: Path, tokenizer: Tokenizer) -> int:
    """How often the text is sampled: as often as training reads it. Viterbi's count is the least there is."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    once = sum(len(ids) + 1 for ids in _encoded(tokenizer, train, counts))
    return max(1, math.ceil(_tokens_read(recipe) / max(1, once)))


def _batches(path: Path) -> Iterator[list[str]]:
    documents = read_documents(path)
    while batch := list(itertools.islice(documents, _BATCH)):
        yield batch


def _encoded(tokenizer: Tokenizer, path: Path, counts: np.ndarray) -> Iterator[np.ndarray]:
    """The ids of each document; `counts` gathers how often each id occurs."""
    for batch in _batches(path):
        encoded = tokenizer.encode_batch(batch)
        counts += np.bincount(encoded.ids, minlength=len(counts))
        yield from encoded


def _sampled(
    tokenizer: Tokenizer, path: Path, counts: np.ndarray, alpha: float, seed: int, copies: int
) -> Iterator[np.ndarray]:
    """`copies` draws of the segmentation of each document, one stream for each document and copy."""
    stream = 0
    for _ in range(copies):
        for batch in _batches(path):
            encoded = tokenizer.encode_batch(batch, alpha=alpha, seed=seed, stream=stream)
            stream += len(batch)
            counts += np.bincount(encoded.ids, minlength=len(counts))
            yield from encoded


# --- what the report tells about the tokenizer -------------------------------------------------------------


def _lengths(tokenizer: Tokenizer) -> np.ndarray:
    special = set(tokenizer.special_tokens.values())
    return np.array([0 if i in special else len(p) for i, p in enumerate(tokenizer.pieces)], np.int64)


def _ratio(tokenizer: Tokenizer, counts: np.ndarray) -> float:
    return float(counts @ _lengths(tokenizer) / max(1, counts.sum()))


def script_of(piece: bytes) -> str | None:
    """The script of most of the letters in a piece; None if it has none (blanks, digits, half characters)."""
    found: dict[str, int] = {}
    for character in piece.decode("utf-8", "ignore"):
        if character.isalpha():
            word = unicodedata.name(character, "OTHER").split()[0]
            script = {"CJK": "Han"}.get(word, word.capitalize())
            found[script] = found.get(script, 0) + 1
    return max(found, key=lambda s: found[s]) if found else None


def bytes_per_token_by_script(
    tokenizer: Tokenizer, counts: np.ndarray, least: float = 0.001
) -> dict[str, float]:
    """Bytes per token of the pieces of each script that makes up at least `least` of the tokens."""
    lengths = _lengths(tokenizer)
    tokens: dict[str, int] = {}
    size: dict[str, int] = {}
    for i, piece in enumerate(tokenizer.pieces):
        script = script_of(piece) if lengths[i] and counts[i] else None
        if script is not None:
            tokens[script] = tokens.get(script, 0) + int(counts[i])
            size[script] = size.get(script, 0) + int(counts[i] * lengths[i])
    total = max(1, int(counts.sum()))
    kept = [s for s in tokens if tokens[s] / total >= least]
    return {s: size[s] / tokens[s] for s in sorted(kept, key=lambda s: -tokens[s])}


def _longest(tokenizer: Tokenizer, counts: np.ndarray, n: int = 24) -> list[dict[str, Any]]:
    """The longest pieces that the training text uses."""
    lengths = _lengths(tokenizer)
    used = [i for i in np.argsort(-lengths, kind="stable") if counts[i] > 0][:n]
    return [
        {
            "piece": tokenizer.pieces[i].decode("utf-8", "replace"),
            "bytes": int(lengths[i]),
            "score": float(tokenizer.scores[i]),
        }
        for i in used
    ]


def _segmentations(tokenizer: Tokenizer, held_out: Path) -> list[dict[str, Any]]:
    """A sentence of each of the first scripts of the held-out text, cut by Viterbi and by draws."""
    rows = []
    for text in _sentences(held_out)[:2]:
        for alpha in (None, 1.0, 0.5, 0.2, 0.0):
            ids = tokenizer.encode(text) if alpha is None else tokenizer.encode(text, alpha=alpha, seed=0)
            pieces = [tokenizer.pieces[i].decode("utf-8", "replace") for i in ids]
            rows.append({"text": text, "alpha": alpha, "pieces": pieces})
    return rows


def _sentences(held_out: Path) -> list[str]:
    """One line of each script of the held-out text, in the order of their first appearance."""
    found: dict[str | None, str] = {}
    for text in itertools.islice(read_documents(held_out), 200):
        line = max(text.splitlines()[:8], key=len)[:72]
        found.setdefault(script_of(line.encode()), line)
    return list(found.values())


def _lattice(tokenizer: Tokenizer, held_out: Path, alpha: float = 0.3) -> dict[str, Any]:
    """The pieces that fit at each byte of a line, with their posterior, and the best path."""
    text = _sentences(held_out)[0].encode()[:LATTICE_BYTES].decode("utf-8", "ignore")
    best = tokenizer.offsets(text.encode(), tokenizer.encode(text.encode()), unit="byte")
    rows = zip(*(column.tolist() for column in tokenizer.lattice(text.encode(), alpha=alpha)), strict=True)
    return {
        "text": text,
        "alpha": alpha,
        "edges": [[a, b, tokenizer.pieces[i].decode("utf-8", "replace"), p] for a, b, i, p in rows],
        "best": best.tolist(),
    }


def _alphas(tokenizer: Tokenizer, held_out: Path) -> list[dict[str, float]]:
    """Expected bytes a token and bits of entropy a byte, of the first lines of the held-out text."""
    text = "\n".join(itertools.islice(read_documents(held_out), 200)).encode()[:ALPHA_BYTES]
    rows = []
    for alpha in (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0):
        tokens = float(tokenizer.marginals(text, alpha=alpha).sum())
        entropy = tokenizer.entropy(text, alpha=alpha) / math.log(2)
        rows.append(
            {"alpha": alpha, "bytes_per_token": len(text) / tokens, "entropy_per_byte": entropy / len(text)}
        )
    return rows
