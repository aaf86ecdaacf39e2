"""The tokenizer: a vocabulary of byte strings with scores, and the law that it puts on segmentations.

Spoken of below: n bytes of text, t tokens, v entries of the vocabulary, S(y) the sum of the scores of a
segmentation y, and q(y) = exp(alpha S(y)) / Z. Sources: T. Kudo, Subword Regularization, arXiv 1804.10959;
"From Viterbi decoding to Viterbi sampling", kexue.fm/archives/9768.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from lmlab._native import tokenize as native
from lmlab.tokenize import files
from lmlab.tokenize.checks import (
    check_draw,
    check_ids,
    check_text,
    check_texts,
    check_threads,
    normalized,
    refuse_surrogate,
)
from lmlab.tokenize.decoder import Decoder
from lmlab.tokenize.encoded import Encoded
from lmlab.tokenize.train import learn

if TYPE_CHECKING:
    pass

Ids = Sequence[int] | npt.NDArray[np.integer]
Method = Literal["exact", "viterbi-sampling"]
Pruning = Literal["compression", "likelihood"]

LONGEST_PIECE = 255
UNLISTED_BYTE = 10.0  # a byte that was not given costs this much more than the worst piece


class Tokenizer:
    """A byte-level unigram tokenizer: immutable, hashable, picklable, safe to share between threads.

    pieces: distinct byte strings of 1 to 255 bytes; their ids are their positions. scores: finite, one a piece,
    any sign. Single bytes that are missing are appended in byte order with the score min(scores) - 10, and
    `special_tokens` come last; they never match inside a text. normalize: "nfc" puts str (never bytes) into
    Unicode NFC before encoding.
    """

    pieces: tuple[bytes, ...]
    scores: npt.NDArray[np.float64]
    special_tokens: Mapping[str, int]
    normalize: str | None
    training: Mapping[str, Any]

    def __init__(
        self,
        pieces: Sequence[bytes],
        scores: Sequence[float] | npt.NDArray[np.floating],
        *,
        special_tokens: Sequence[str] = (),
        normalize: Literal["nfc"] | None = None,
    ) -> None:
        names = _check_special(special_tokens)
        if isinstance(pieces, str | bytes):
            raise TypeError("pieces must be a sequence of bytes, not one text")
        self._set(list(pieces), [float(score) for score in scores], names, {}, normalize, {})

    @classmethod
    def _make(cls, contents: files.Contents) -> Self:
        """From entries that hold special tokens at any id."""
        made = cls.__new__(cls)
        special = contents.special_tokens
        _check_special(tuple(special))
        made._set(contents.pieces, contents.scores, (), special, contents.normalize, contents.training)
        return made

    def _set(
        self,
        pieces: list[bytes],
        scores: list[float],
        last: Sequence[str],
        special: Mapping[str, int],
        normalize: str | None,
        training: Mapping[str, Any],
    ) -> None:
        """Checks and completes the vocabulary: `special` are among `pieces`, `last` are to be appended."""
        if normalize not in (None, "nfc"):
            raise ValueError(f"normalize must be 'nfc' or None, not {normalize!r}")
        if len(pieces) != len(scores):
            raise ValueError(f"pieces and scores must be of one length, not {len(pieces)} and {len(scores)}")
        taken = _check_special_ids(special, pieces)
        seen: set[bytes] = set()
        for i, (piece, score) in enumerate(zip(pieces, scores, strict=True)):
            if i in taken:
                continue
            if not isinstance(piece, bytes):
                raise TypeError(f"pieces[{i}] must be bytes, not {type(piece).__name__} ({piece!r:.60})")
            if not 1 <= len(piece) <= LONGEST_PIECE:
                raise ValueError(
                    f"pieces[{i}] must have 1 to {LONGEST_PIECE} bytes, not {len(piece)} ({piece!r:.60})"
                )
            if piece in seen:
                raise ValueError(f"pieces[{i}] = {piece!r:.60} occurs twice: pieces must be distinct")
            if not math.isfinite(score):
                raise ValueError(f"scores[{i}] = {score} of the piece {piece!r:.60}: scores must be finite")
            seen.add(piece)
        least = min((s for i, s in enumerate(scores) if i not in taken), default=0.0)
        missing = [byte for byte in map(_byte, range(256)) if byte not in seen]
        pieces = [*pieces, *missing, *(name.encode() for name in last)]
        scores = [*scores, *[least - UNLISTED_BYTE] * len(missing), *[-math.inf] * len(last)]
        first = len(pieces) - len(last)
        special = {**special, **{name: first + k for k, name in enumerate(last)}}
        for i in taken:
            scores[i] = -math.inf
        self.pieces = tuple(pieces)
        self.scores = np.array(scores, dtype=np.float64)
        self.scores.flags.writeable = False
        self.special_tokens = MappingProxyType(special)
        self.normalize = normalize
        self.training = MappingProxyType(dict(training))
        lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._core = native.Core(b"".join(pieces), ends, self.scores)
        self._frozen = True

    def __setattr__(self, name: str, value: object) -> None:
        if "_frozen" in self.__dict__:
            raise AttributeError(f"a Tokenizer is immutable: {name} can't be set")
        super().__setattr__(name, value)

    # ------------------------------------------------------------------ training

    @classmethod
    def train(
        cls,
        source: str | os.PathLike[str] | Sequence[os.PathLike[str]] | Iterable[str | bytes],
        vocab_size: int = 8192,
        *,
        max_piece_bytes: int = 18,
        min_count: int = 2,
        pruning: Pruning = "compression",
        characters_whole: bool = True,
        boundaries: bytes = b"\n",
        split_digits: bool = False,
        normalize: Literal["nfc"] | None = None,
        special_tokens: Sequence[str] = (),
        field: str = "text",
        workers: int | None = None,
        memory_limit: int | str = "1GiB",
        seed: int = 0,
        progress: bool = False,
    ) -> Self:
        """Learns `vocab_size` entries (special tokens among them) from text.

        source: a path (a text file of lines, a `.jsonl` whose objects have `field`, or a directory of both and
        of `.md`), a sequence of PathLike, or an iterable of str or bytes; a lone str is always a path.
        pruning: what a piece is worth, "compression" (tokens that the text would grow by) or "likelihood".
        characters_whole: learned pieces are whole UTF-8 characters. boundaries: bytes in no longer piece;
        split_digits: nor ASCII digits. These three bind training alone: encoding never splits beforehand.
        The same seed gives the same vocabulary whatever `workers`. What doesn't fit `memory_limit` is sampled.
        `training` of the result says what was measured. Warns (UserWarning) if the text holds too few pieces.
        """
        names = _check_special(special_tokens)
        if normalize not in (None, "nfc"):
            raise ValueError(f"normalize must be 'nfc' or None, not {normalize!r}")
        pieces, scores, training = learn(
            source,
            vocab_size,
            max_piece_bytes=max_piece_bytes,
            min_count=min_count,
            pruning=pruning,
            characters_whole=characters_whole,
            boundaries=boundaries,
            split_digits=split_digits,
            normalize=normalize,
            special_tokens=names,
            field=field,
            workers=workers,
            memory_limit=memory_limit,
            seed=seed,
            progress=progress,
        )
        made = cls.__new__(cls)
        made._set(pieces, scores.tolist(), names, {}, normalize, training)
        return made

    # ------------------------------------------------------------------ identity

    @property
    def vocab_size(self) -> int:
        """v: the number of ids, special tokens included."""
        return len(self.pieces)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of ids, pieces, scores, special tokens and normalisation: the key for caches."""
        digest = hashlib.sha256(f"lmlab.tokenize 1 {self.normalize} {self.vocab_size}\n".encode())
        for piece in self.pieces:
            digest.update(len(piece).to_bytes(8, "little") + piece)
        digest.update(self.scores.astype("<f8").tobytes())
        for name, i in sorted(self.special_tokens.items()):
            digest.update(f"{i} {name}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_tokens.values())
        return {piece: i for i, piece in enumerate(self.pieces) if i not in special}

    def piece_to_id(self, piece: bytes | str) -> int:
        """The id of a piece (bytes or its text), or of a special token by its name; KeyError if there is none."""
        check_text(piece, "piece")
        if isinstance(piece, str) and piece in self.special_tokens:
            return self.special_tokens[piece]
        try:
            return self._ids[piece.encode() if isinstance(piece, str) else piece]
        except KeyError:
            raise KeyError(f"no piece {piece!r} in this vocabulary") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"<Tokenizer of {self.vocab_size} pieces, {self.fingerprint[:12]}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._make, (self._contents(),)

    def _contents(self) -> files.Contents:
        return files.Contents(
            list(self.pieces),
            self.scores.tolist(),
            dict(self.special_tokens),
            self.normalize,
            dict(self.training),
        )

    # ------------------------------------------------------------------ text -> ids

    def encode(
        self,
        text: str | bytes,
        *,
        alpha: float | None = None,
        seed: int | None = None,
        stream: int = 0,
        method: Method = "exact",
    ) -> list[int]:
        """The ids of a text: the best segmentation, or with `alpha` a draw from q.

        alpha: None or finite and >= 0 (1: the model's own posterior, 0: uniform). seed, stream: in [0, 2^64); None
        takes fresh entropy. method "viterbi-sampling" is the article's first rule, which follows another law.
        """
        text = normalized(text, self.normalize)
        try:
            if alpha is None and seed is None and method == "exact":
                return cast(list[int], self._core.encode(text))
            return cast(list[int], self._core.draw(text, *check_draw(alpha, seed, stream, method)))
        except UnicodeEncodeError:
            refuse_surrogate([text], "text")
        except TypeError:
            check_text(text)
            raise

    def encode_batch(
        self,
        texts: Sequence[str | bytes],
        *,
        alpha: float | None = None,
        seed: int | None = None,
        stream: int = 0,
        method: Method = "exact",
        threads: int | None = None,
    ) -> Encoded:
        """The ids of many texts; text i draws from stream `stream + i`, whatever the number of threads.

        threads None: all CPUs of the process; batches under 64 KiB take one.
        """
        found = check_texts(texts)
        if self.normalize:
            found = tuple(normalized(text, self.normalize) for text in found)
        cpus = check_threads(threads)
        try:
            if alpha is None and seed is None and method == "exact":
                return Encoded(*self._core.encode_batch(found, cpus))
            return Encoded(*self._core.draw_batch(found, *check_draw(alpha, seed, stream, method), cpus))
        except UnicodeEncodeError:
            refuse_surrogate(found, "texts")

    # ------------------------------------------------------------------ ids -> text

    def decode_bytes(self, ids: Ids, *, skip_special_tokens: bool = True) -> bytes:
        """The bytes of the pieces, joined; special tokens are left out or shown by name."""
        return cast(bytes, self._core.decode(check_ids(ids, self.vocab_size), skip_special_tokens))

    def decode(self, ids: Ids, *, errors: str = "replace", skip_special_tokens: bool = True) -> str:
        """The text of the ids; `errors` is that of bytes.decode, for bytes that are not UTF-8."""
        return self.decode_bytes(ids, skip_special_tokens=skip_special_tokens).decode(errors=errors)

    def decode_batch(
        self, ids: Encoded | Sequence[Ids], *, errors: str = "replace", skip_special_tokens: bool = True
    ) -> list[str]:
        """`decode` of each member."""
        return [self.decode(one, errors=errors, skip_special_tokens=skip_special_tokens) for one in ids]

    def decoder(self, *, errors: str = "replace", skip_special_tokens: bool = True) -> Decoder:
        """A decoder for ids that come one after another."""
        return Decoder(lambda ids: self.decode_bytes(ids, skip_special_tokens=skip_special_tokens), errors)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one JSON file, whole or not at all."""
        files.save(path, self._contents())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote; ValueError if the file is anything else."""
        contents = files.load(path)
        try:
            return cls._make(contents)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} is a damaged {files.FORMAT} file: {error}") from None


def _byte(value: int) -> bytes:
    return bytes([value])


def _check_special(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str | bytes):
        raise TypeError(f"special_tokens must be a sequence of str, not one text: write [{names!r}]")
    found = tuple(names)
    for i, name in enumerate(found):
        if not isinstance(name, str) or not name:
            raise TypeError(f"special_tokens[{i}] must be a non-empty str, not {name!r:.60}")
        if name in found[:i]:
            raise ValueError(f"special_tokens[{i}] = {name!r} occurs twice")
    return found


def _check_special_ids(special: Mapping[str, int], pieces: Sequence[bytes]) -> set[int]:
    for name, i in special.items():
        if not 0 <= i < len(pieces) or pieces[i] != name.encode():
            raise ValueError(f"the special token {name!r} has the id {i}, which is not its entry")
    return set(special.values())
