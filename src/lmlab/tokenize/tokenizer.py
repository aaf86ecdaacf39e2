"""The tokenizer: a vocabulary of byte strings with scores, and the law that it puts on segmentations.

Spoken of below: n bytes of text, t tokens, v entries of the vocabulary, S(y) the sum of the scores of a
segmentation y, and q(y) = exp(alpha S(y)) / Z. Sources: T. Kudo, Subword Regularization, arXiv 1804.10959;
"From Viterbi decoding to Viterbi sampling", kexue.fm/archives/9768.
"""

from __future__ import annotations

import hashlib
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
    check_alpha,
    check_draw,
    check_ids,
    check_integer,
    check_seed,
    check_text,
    check_texts,
    check_threads,
    normalized,
    refuse_surrogate,
)
from lmlab.tokenize.decoder import Decoder
from lmlab.tokenize.encoded import Encoded, Lattice
from lmlab.tokenize.files import Contents
from lmlab.tokenize.spans import spans
from lmlab.tokenize.train import learn
from lmlab.tokenize.vocabulary import check_special, complete

if TYPE_CHECKING:
    import tokenizers

Ids = Sequence[int] | npt.NDArray[np.integer]
Method = Literal["exact", "viterbi-sampling"]
Pruning = Literal["compression", "likelihood"]


class Tokenizer:
    """A byte-level unigram tokenizer: immutable, hashable, picklable, safe to share between threads.

    pieces: distinct byte strings of 1 to 255 bytes; their ids are their positions. scores: finite, one a
    piece, any sign. Single bytes that are missing are appended in byte order with the score min(scores) - 10,
    and `special_tokens` come last; they never match inside a text. normalize: "nfc" puts str (never bytes)
    into Unicode NFC before encoding.
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
        if isinstance(pieces, str | bytes):
            raise TypeError("pieces must be a sequence of bytes, not one text")
        given = Contents(list(pieces), [float(score) for score in scores], {}, normalize, {})
        self._set(complete(given, special_tokens))

    @classmethod
    def _make(cls, contents: Contents, special_tokens: Sequence[str] = ()) -> Self:
        """From entries that may hold special tokens at any id; `special_tokens` are appended."""
        made = cls.__new__(cls)
        made._set(complete(contents, special_tokens))
        return made

    def _set(self, contents: Contents) -> None:
        self.pieces = tuple(contents.pieces)
        self.scores = np.array(contents.scores, dtype=np.float64)
        self.scores.flags.writeable = False
        self.special_tokens = MappingProxyType(contents.special_tokens)
        self.normalize = contents.normalize
        self.training = MappingProxyType(contents.training)
        lengths = np.fromiter(map(len, self.pieces), dtype=np.int64, count=len(self.pieces))
        ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._core = native.Core(b"".join(self.pieces), ends, self.scores)
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
        state: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Learns `vocab_size` entries (special tokens among them) from text.

        source: a path (a text file of lines, a `.jsonl` whose objects have `field`, or a directory of `.txt`,
        `.md` and `.jsonl`), a sequence of PathLike, or an iterable of str or bytes; a lone str is a path.
        pruning: what a piece is worth, "compression" (tokens that the text would grow by) or "likelihood".
        characters_whole: learned pieces are whole UTF-8 characters. boundaries: bytes in no longer piece;
        split_digits: nor ASCII digits. These three bind training alone: encoding never splits beforehand.
        The same seed gives the same vocabulary whatever `workers`. What is beyond `memory_limit` is sampled.
        state: a directory in which a killed training leaves where it was: the same call goes on from there and
        ends with the same vocabulary (a source that is no path must give the same texts); then it is removed.
        `training` of the result says what was measured. Warns (UserWarning) if the text holds too few pieces.
        """
        names = check_special(special_tokens)
        contents = learn(
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
            state=state,
        )
        return cls._make(contents, names)

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
        """The id of a piece (bytes or its text), or of a special token by its name; else KeyError."""
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

    def _contents(self) -> Contents:
        return Contents(
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

        alpha: None or finite and >= 0 (1: the model's own posterior, 0: uniform). seed, stream: in [0, 2^64);
        seed None takes fresh entropy. method "viterbi-sampling" is the article's first rule: another law.
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
                ids, offsets = self._core.encode_batch(found, cpus)
            else:
                ids, offsets = self._core.draw_batch(found, *check_draw(alpha, seed, stream, method), cpus)
            return Encoded(ids, offsets, self._core)
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

    def offsets(
        self, text: str | bytes, ids: Ids, *, unit: Literal["char", "byte"] = "char"
    ) -> npt.NDArray[np.int64]:
        """Where each token lies in the text: int64 [t 2], half-open.

        unit "char": the characters that a token touches, so that tokens inside one character all get its
        span; with NFC they count in the normalised text. Special tokens get (p, p).
        """
        check_text(text)
        if unit not in ("char", "byte"):
            raise ValueError(f"unit must be 'char' or 'byte', not {unit!r}")
        return spans(self, self._bytes(text), check_ids(ids, self.vocab_size), unit)

    # ------------------------------------------------------------------ the law

    def log_partition(self, text: str | bytes, *, alpha: float = 1.0) -> float:
        """log Z: the logarithm of the sum of exp(alpha S(y)) over all segmentations y of the text."""
        return cast(float, self._core.log_partition(self._bytes(text), check_alpha(alpha)))

    def logprob(self, ids: Ids, *, alpha: float = 1.0) -> float:
        """log q(ids) among the segmentations of the bytes that they spell."""
        found = check_ids(ids, self.vocab_size)
        special = ~np.isfinite(self.scores[found])
        if special.any():
            name = self.pieces[found[special.argmax()]].decode()
            raise ValueError(f"ids holds the special token {name!r}, which is in no segmentation of a text")
        alpha = check_alpha(alpha)
        text = self._core.decode(found, False)
        return alpha * self._score(found) - cast(float, self._core.log_partition(text, alpha))

    def entropy(self, text: str | bytes, *, alpha: float = 1.0) -> float:
        """The entropy of q in nats."""
        alpha = check_alpha(alpha)
        counts, log_z = self._core.marginals(self._bytes(text), alpha)
        used = counts > 0
        return max(0.0, float(log_z - alpha * (counts[used] @ self.scores[used])))

    def marginals(self, text: str | bytes, *, alpha: float = 1.0) -> npt.NDArray[np.float64]:
        """float64 [v]: how often each piece is expected in a draw; the sum is the expected number of tokens."""
        counts, _ = self._core.marginals(self._bytes(text), check_alpha(alpha))
        return cast("npt.NDArray[np.float64]", counts)

    def lattice(self, text: str | bytes, *, alpha: float = 1.0) -> Lattice:
        """Every piece at every place where it fits, with its posterior probability."""
        return Lattice(*self._core.lattice(self._bytes(text), check_alpha(alpha)))

    def nbest(self, text: str | bytes, n: int) -> list[tuple[list[int], float]]:
        """The n segmentations with the greatest S, as (ids, S), falling; fewer if there are fewer."""
        paths = self._core.nbest(self._bytes(text), check_integer(n, "n", 1, 2**63 - 1))
        scored = [(ids, self._score(ids)) for ids in paths]
        return sorted(scored, key=lambda pair: -pair[1])

    def sample_without_replacement(
        self, text: str | bytes, n: int, *, alpha: float = 1.0, seed: int | None = None
    ) -> list[tuple[list[int], float]]:
        """n different segmentations, as (ids, log q): each drawn from q without those before it."""
        found, alpha = self._bytes(text), check_alpha(alpha)
        n, seed = check_integer(n, "n", 1, 2**63 - 1), check_seed(seed)
        log_z = cast(float, self._core.log_partition(found, alpha))
        paths = self._core.sample_without_replacement(found, n, alpha, seed)
        return [(ids, alpha * self._score(ids) - log_z) for ids in paths]

    def _score(self, ids: Ids) -> float:
        """S, summed from left to right."""
        return float(self.scores[np.asarray(ids, dtype=np.int64)].cumsum()[-1]) if len(ids) else 0.0

    def _bytes(self, text: str | bytes) -> bytes:
        """The bytes that are segmented."""
        check_text(text)
        try:
            return text if isinstance(text, bytes) else normalized(text, self.normalize).encode()
        except UnicodeEncodeError:
            refuse_surrogate([text], "text")

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

    # ------------------------------------------------------------------ neighbours

    @classmethod
    def from_bytepiece(cls, path: str | os.PathLike[str]) -> Self:
        """A model of bytepiece; its three reserved ids become `<pad>`, `<bos>`, `<eos>`."""
        from lmlab.tokenize.bytepiece import read

        return cls._make(read(path))

    @classmethod
    def from_sentencepiece(
        cls, path: str | os.PathLike[str], *, normalizer: Literal["strict", "drop"] = "strict"
    ) -> Self:
        """A unigram model of sentencepiece, ids kept.

        normalizer "strict": ValueError names what such a model does to a text beyond segmenting it; "drop"
        takes pieces and scores all the same and warns.
        """
        from lmlab.tokenize.sentencepiece import read

        return cls._make(read(path, normalizer))

    def to_sentencepiece(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.model` that sentencepiece loads, ids kept; `<unk>` and 128 byte pieces are appended."""
        from lmlab.tokenize.sentencepiece import write

        write(path, self._contents())

    def to_huggingface(self) -> tokenizers.Tokenizer:
        """The same vocabulary as a `tokenizers.Tokenizer`: equal ids up to ties. Never give it alpha."""
        from lmlab.tokenize.huggingface import convert

        return convert(self._contents())
