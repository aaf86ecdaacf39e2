"""Stage 4: bits per byte beside its floors, and what happens on texts longer than those of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.lab.corpus import read_documents
from lmlab.lab.options import LengthOptions, PasskeyOptions
from lmlab.lab.progress import Advance
from lmlab.lab.recipe import Recipe
from lmlab.lab.sources import CorpusError
from lmlab.lab.steps.job import Job
from lmlab.lab.steps.recall import english
from lmlab.lab.steps.typos import with_typos
from lmlab.model.fields import to_plain

if TYPE_CHECKING:
    import torch

    from lmlab.evaluate import BitsPerByte
    from lmlab.model import Decoder
    from lmlab.rope import Extension

VERSION = 5
INPUTS = ("corpus", "tokenize", "train")
BASELINE_BYTES = 16 << 20  # of the training text that lzma sees: its time grows with it
LENGTH_ROWS = 24  # documents of the length test
INSIDE_ROWS = 16  # of the trained length, for what is measured inside the model
COPIES = 8  # passages of each length of the recall test

Count = Callable[[int], None]


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    return {"evaluate": to_plain(recipe.evaluate), "seed": recipe.seed}, []


def work(job: Job) -> dict[str, Any]:
    from lmlab.evaluate import bits_per_byte, byte_baselines
    from lmlab.lab.steps.inside import inside
    from lmlab.model import Decoder
    from lmlab.tokenize import Tokenizer

    options, corpus = job.recipe.evaluate, job.inputs["corpus"]
    model = Decoder.load(job.inputs["train"] / "model")
    tokenizer = Tokenizer.load(job.inputs["tokenize"] / "tokenizer.json")
    documents = list(first_documents(corpus / "held_out.jsonl", options.max_bytes))
    tests = None if options.length is None else LengthTests.of(job, model, options.length)
    wrong = [] if options.typos is None else list(with_typos(documents, options.typos))
    size = sum(len(text.encode()) for text in [*documents, *wrong])
    with job.display.work(job.label, size + (0 if tests is None else tests.tokens)) as advance:
        done = _Counter(advance)

        def code(texts: Sequence[str]) -> BitsPerByte:
            return bits_per_byte(
                model,
                tokenizer,
                done.counting(texts),
                length=job.recipe.train.length,
                stride=options.stride,
                batch_size=options.batch_size,
            )

        bits = code(documents)
        typos = None
        if wrong:
            done.note = "with typing errors"
            typos = {"share": options.typos, "bits_per_byte": code(wrong).value}
        done.note = "compressors"
        train = "".join(read_documents(corpus / "train.jsonl")).encode()
        baselines = byte_baselines(train[-BASELINE_BYTES:], "".join(documents).encode())
        length = passkeys = None
        if tests is not None:
            done.note = "loss against length"
            with job.warnings_to_log():
                length = tests.length(done.add)
                passkeys = tests.passkeys(done.add)
        done.note = "inside"
        rows = trained_rows(job.inputs["tokenize"], job.recipe.train.length)
        measured = None if rows is None else inside(model, rows, job.recipe.train.length)
    return {
        "bits_per_byte": bits.value,
        "bytes_per_token": bits.bytes_per_token,
        "tokens": bits.tokens,
        "bytes": bits.bytes,
        "documents": bits.documents,
        "baselines": baselines,
        "typos": typos,
        "length": length,
        "passkey": passkeys,
        "inside": measured,
    }


class _Counter:
    """How far the stage is: bytes of the text and tokens of the length tests, added up."""

    def __init__(self, advance: Advance) -> None:
        self.done = 0
        self.note = "bits per byte"
        self._advance = advance

    def add(self, amount: int) -> None:
        self.done += amount
        self._advance(self.done, self.note)

    def counting(self, documents: Iterable[str]) -> Iterator[str]:
        for text in documents:
            yield text
            self.add(len(text.encode()))


def first_documents(path: Path, max_bytes: int) -> Iterator[str]:
    """The first documents that together have at most `max_bytes`; the first one always, cut if it must be."""
    total = 0
    for text in read_documents(path):
        size = len(text.encode())
        if total + size > max_bytes:
            if total == 0:
                yield text.encode()[:max_bytes].decode("utf-8", "ignore")
            return
        total += size
        yield text


def usable(position: str, tables: Iterable[Any]) -> dict[str, Extension]:
    """Name -> extension, of the tables of a recipe. Without rotary positions frequencies and bands mean
    nothing, so those are left out."""
    from lmlab.rope import extension_from_table

    found: dict[str, Extension] = {}
    for table in tables:
        extension = extension_from_table(table)
        if position == "rope" or not {method.kind for method in extension.methods} & {"frequency", "band"}:
            found[_label(table)] = extension
    return found


def _label(table: Any) -> str:
    if isinstance(table, Mapping):
        values = [f"{k}={v}" for k, v in table.items() if k != "method"]
        return f"{table['method']}({', '.join(values)})" if values else str(table["method"])
    return " + ".join(_label(t) for t in table)


@dataclass(frozen=True)
class LengthTests:
    """A model on texts longer than it was trained on, plain, under every extension, and with a window."""

    model: Decoder
    ids: torch.Tensor  # [n, longest context + 1]
    extensions: Mapping[str, Extension]
    trained: int
    contexts: list[int]
    last: int
    passkey: PasskeyOptions | None = None
    symbols: Sequence[int] = ()  # the ids that passages and keys are made of
    note: Mapping[str, Any] | None = None  # the passkey test's vocab, marker and filler; None: of `symbols`
    seed: int = 0
    recall: bool = False  # a text of passages that come again: how much of a repeat is right is asked, too

    @classmethod
    def of(cls, job: Job, model: Decoder, options: LengthOptions) -> LengthTests:
        recipe = job.recipe
        trained = recipe.train.length
        contexts = list(options.contexts) or [trained * k for k in (1, 2, 4)]
        tokens = job.inputs["tokenize"]
        recall = recipe.corpus.path is None and recipe.corpus.name == "recall"
        if recall:
            ids = recall_rows(tokens, max(contexts), recipe.seed)
        else:
            ids = held_out_rows(tokens, max(contexts) + 1)
        asked = PasskeyOptions() if options.passkey is True else options.passkey or None
        return cls(
            model,
            ids,
            usable(recipe.position.kind, options.extensions),
            trained,
            contexts,
            options.last,
            asked,
            recall_symbols(tokens) if recall else sorted(set(ids.flatten().tolist())),
            recall_note(tokens) if recall else None,
            recipe.seed,
            recall,
        )

    @property
    def tokens(self) -> int:
        """What the model reads in all tests together."""
        methods = len(self.extensions) + 2
        found = methods * len(self.ids) * (sum(self.contexts) + max(self.contexts))
        if self.recall:
            found += methods * COPIES * sum(self.contexts)
        if self.passkey is not None:
            cells = len(self.passkey.depths) * sum(self.passkey.lengths or self.contexts)
            found += methods * self.passkey.trials * cells
        return found

    def length(self, count: Count) -> dict[str, Any]:
        """Loss on the same last targets for each context, and loss by position in the longest one."""
        from lmlab.evaluate import loss_by_position
        from lmlab.rope import Extension, Window

        by_position = []
        edges = _edges(self.trained, max(self.contexts))
        methods = {"none": Extension(), "window": Extension((Window(self.trained),)), **self.extensions}
        rows = self.table(count)
        copy = self._copy(methods, count) if self.recall else None
        for name, extension in methods.items():
            losses = loss_by_position(self._under(extension, count), self.ids, edges=edges, batch=4)
            by_position.append({"method": name, "rows": [asdict(loss) for loss in losses]})
        return {
            "train_length": self.trained,
            "contexts": self.contexts,
            "last": self.last,
            "rows": rows,
            "by_position": by_position,
            "copy": copy,
        }

    def _copy(self, methods: Mapping[str, Extension], count: Count) -> list[dict[str, Any]]:
        """How many symbols of the repeats of a passage of nearly half the length are right, by method."""
        from lmlab.evaluate import repeated_copy

        rows = []
        for name, extension in methods.items():
            for length in self.contexts:
                period = max(1, length // 2 - 4)
                accuracy = repeated_copy(
                    self._under(extension, count),
                    length=length,
                    period=period,
                    vocab=self.symbols,
                    n=COPIES,
                    seed=self.seed,
                )
                rows.append({"method": name, "length": length, "period": period, "accuracy": accuracy})
        return rows

    def table(self, count: Count = lambda amount: None) -> list[dict[str, Any]]:
        """`length_table` as plain values, one row a method."""
        from lmlab.evaluate import length_table

        def model(ids: torch.Tensor, *, extension: Extension) -> torch.Tensor:
            return self._under(extension, count)(ids)

        rows = length_table(
            model,
            self.ids,
            self.extensions,
            train_length=self.trained,
            contexts=self.contexts,
            last=self.last,
            batch=4,
        )
        return [
            {
                "method": row.method,
                "extension": str(row.extension) if row.extension.methods else None,
                "losses": [asdict(loss) for loss in row.losses],
                "tax": row.tax,
                "gain": row.gain,
                "over_window": row.over_window,
                "identical": row.identical,
            }
            for row in rows
        ]

    def passkeys(self, count: Count = lambda amount: None) -> list[dict[str, Any]] | None:
        """How often a key is found again, by method, length and depth."""
        from lmlab.evaluate import passkey
        from lmlab.rope import Extension, Window

        if self.passkey is None:
            return None
        marker, *symbols = self.symbols
        text = self.note or {"marker": marker, "vocab": symbols}
        methods = {"none": Extension(), "window": Extension((Window(self.trained),)), **self.extensions}
        rows = []
        for name, extension in methods.items():
            cells = passkey(
                self._under(extension, count),
                lengths=list(self.passkey.lengths or self.contexts),
                depths=list(self.passkey.depths),
                key=self.passkey.key,
                trials=self.passkey.trials,
                seed=self.seed,
                **text,
            )
            rows += [{"method": name, **asdict(cell)} for cell in cells]
        return rows

    def _under(self, extension: Extension, count: Count) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model with an extension, as a function of ids; `count` hears how many it reads."""
        import torch

        def logits(ids: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                found: torch.Tensor = self.model(ids, extension=extension)
            count(ids.numel())
            return found

        return logits


def held_out_rows(tokens: Path, width: int) -> torch.Tensor:
    """The held-out tokens as rows of `width`: documents one after another, as the model was trained."""
    import torch

    from lmlab.train import TokenFile

    data = TokenFile.open(tokens / "held_out.tok")
    if len(data) < 2 * width:
        raise CorpusError(
            f"the length test needs {2 * width} held-out tokens and found {len(data)}; give more text, "
            "a larger corpus.held_out, or smaller evaluate.length.contexts"
        )
    return torch.cat([ids for ids, _ in data.in_order(width, 8, LENGTH_ROWS)])


def trained_rows(tokens: Path, length: int) -> torch.Tensor | None:
    """Some held-out rows of the trained length; None where the held-out text has none."""
    import torch

    from lmlab.train import TokenFile

    data = TokenFile.open(tokens / "held_out.tok")
    if len(data) <= length:
        return None
    return torch.cat([ids for ids, _ in data.in_order(length, 8, INSIDE_ROWS)])[:INSIDE_ROWS]


def recall_rows(tokens: Path, length: int, seed: int) -> torch.Tensor:
    """Passages and pairs as long as the longest context: what comes again lies further back than any that
    the model was trained on."""
    import torch

    from lmlab.evaluate import recall_documents
    from lmlab.tokenize import Tokenizer

    tokenizer = Tokenizer.load(tokens / "tokenizer.json")
    text = english(at_least=length + 1)
    texts = recall_documents(LENGTH_ROWS, train_length=length, seed=seed + 1, text=text)
    rows = [tokenizer.encode(text)[: length + 1] for text in texts]
    if min(map(len, rows)) <= length:
        raise CorpusError(
            "the length test of the recall corpus needs one token a symbol: set tokenize.vocab_size = 256"
        )
    return torch.tensor(rows)


def recall_symbols(tokens: Path) -> list[int]:
    """The ids that the passages of the recall corpus are made of."""
    from lmlab.evaluate.recall import ALPHABET
    from lmlab.tokenize import Tokenizer

    return sorted(map(int, Tokenizer.load(tokens / "tokenizer.json").encode(ALPHABET)))


def recall_note(tokens: Path) -> dict[str, Any]:
    """The passkey of the recall corpus: digits after a sign, in a text of letters, as its notes are."""
    from lmlab.evaluate.recall import DIGITS, LETTERS, SIGNS
    from lmlab.tokenize import Tokenizer

    tokenizer = Tokenizer.load(tokens / "tokenizer.json")
    letters, digits, signs = (tokenizer.encode(x) for x in (LETTERS, DIGITS, SIGNS))
    return {"marker": int(signs[0]), "vocab": [*map(int, digits)], "filler": [*map(int, letters)]}


def _edges(trained: int, longest: int) -> list[int]:
    """Eight parts a trained length, to the longest context."""
    step = max(1, trained // 8)
    return [*range(0, longest, step), longest]
