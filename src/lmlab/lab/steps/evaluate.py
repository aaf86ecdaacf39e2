"""Stage 4: bits per byte beside its floors, and what happens on texts longer than those of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.lab.corpus import read_documents
from lmlab.lab.recipe import LengthOptions, PasskeyOptions, Recipe
from lmlab.lab.sources import CorpusError
from lmlab.lab.steps.job import Job
from lmlab.model.fields import to_plain

if TYPE_CHECKING:
    import torch

    from lmlab.model import Decoder
    from lmlab.rope import Extension

VERSION = 1
INPUTS = ("corpus", "tokenize", "train")
BASELINE_BYTES = 16 << 20  # of the training text that lzma sees: its time grows with it
LENGTH_ROWS = 48  # documents of the length test


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    return {"evaluate": to_plain(recipe.evaluate), "seed": recipe.seed}, []


def work(job: Job) -> dict[str, Any]:
    from lmlab.evaluate import bits_per_byte, byte_baselines
    from lmlab.model import Decoder
    from lmlab.tokenize import Tokenizer

    options, corpus = job.recipe.evaluate, job.inputs["corpus"]
    model = Decoder.load(job.inputs["train"] / "model")
    tokenizer = Tokenizer.load(job.inputs["tokenize"] / "tokenizer.json")
    documents = list(first_documents(corpus / "held_out.jsonl", options.max_bytes))
    with job.display.work(job.label) as advance:
        advance(0, "bits per byte")
        bits = bits_per_byte(
            model,
            tokenizer,
            documents,
            length=job.recipe.train.length,
            stride=options.stride,
            batch_size=options.batch_size,
        )
        advance(0, "compressors")
        train = "".join(read_documents(corpus / "train.jsonl")).encode()
        baselines = byte_baselines(train[-BASELINE_BYTES:], "".join(documents).encode())
        length = passkeys = None
        if options.length is not None:
            advance(0, "loss against length")
            with job.warnings_to_log():
                length = length_test(job.recipe, options.length, model, job.inputs["tokenize"])
                passkeys = passkey_test(job.recipe, options.length, model)
    return {
        "bits_per_byte": bits.value,
        "bytes_per_token": bits.bytes_per_token,
        "tokens": bits.tokens,
        "bytes": bits.bytes,
        "documents": bits.documents,
        "baselines": baselines,
        "length": length,
        "passkey": passkeys,
    }


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


def contexts_of(recipe: Recipe, options: LengthOptions) -> list[int]:
    """The contexts of the length test: those given, else 1, 2 and 4 times the length trained on."""
    return list(options.contexts) or [recipe.train.length * k for k in (1, 2, 4)]


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


def length_test(recipe: Recipe, options: LengthOptions, model: Decoder, tokens: Path) -> dict[str, Any]:
    """Loss on the same last targets for each context, and loss by position in the longest one."""
    import torch

    from lmlab.evaluate import loss_by_position
    from lmlab.rope import Extension, Window

    contexts, trained = contexts_of(recipe, options), recipe.train.length
    ids = _rows(tokens / "held_out.tok", max(contexts) + 1)
    extensions = usable(recipe.position.kind, options.extensions)
    rows = table_of(model, ids, extensions, trained, contexts, options.last)
    edges = _edges(trained, max(contexts))
    by_position = []
    with torch.inference_mode():
        for name, extension in {
            "none": Extension(),
            "window": Extension((Window(trained),)),
            **extensions,
        }.items():
            losses = loss_by_position(under(model, extension), ids, edges=edges, batch=4)
            by_position.append({"method": name, "rows": [asdict(loss) for loss in losses]})
    return {
        "train_length": trained,
        "contexts": contexts,
        "last": options.last,
        "rows": rows,
        "by_position": by_position,
    }


def table_of(
    model: Decoder,
    ids: torch.Tensor,
    extensions: Mapping[str, Extension],
    trained: int,
    contexts: list[int],
    last: int,
) -> list[dict[str, Any]]:
    """`length_table` as plain values, one row a method."""
    import torch

    from lmlab.evaluate import length_table

    with torch.inference_mode():
        rows = length_table(
            model, ids, extensions, train_length=trained, contexts=contexts, last=last, batch=4
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


def under(model: Decoder, extension: Extension) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model with an extension, as a function of ids."""
    return lambda ids: model(ids, extension=extension)


def _rows(path: Path, width: int) -> torch.Tensor:
    """The held-out tokens as rows of `width`: documents one after another, as the model was trained."""
    import torch

    from lmlab.train import TokenFile

    data = TokenFile.open(path)
    if len(data) < 2 * width:
        raise CorpusError(
            f"the length test needs {2 * width} held-out tokens and found {len(data)}; give more text, "
            "a larger corpus.held_out, or smaller evaluate.length.contexts"
        )
    return torch.cat([ids for ids, _ in data.in_order(width, 8, LENGTH_ROWS)])


def _edges(trained: int, longest: int) -> list[int]:
    """Eight parts a trained length, to the longest context."""
    step = max(1, trained // 8)
    return [*range(0, longest, step), longest]


def passkey_test(recipe: Recipe, options: LengthOptions, model: Decoder) -> list[dict[str, Any]] | None:
    from lmlab.evaluate import passkey
    from lmlab.rope import Extension

    if options.passkey is False:
        return None
    ask = PasskeyOptions() if options.passkey is True else options.passkey
    lengths = list(ask.lengths) or contexts_of(recipe, options)
    rows = []
    for name, extension in ({"none": Extension()} | usable(recipe.position.kind, options.extensions)).items():
        for cell in passkey(
            under(model, extension),
            lengths=lengths,
            depths=list(ask.depths),
            vocab=model.config.vocab_size,
            marker=model.config.vocab_size - 2,
            key=ask.key,
            trials=ask.trials,
            seed=recipe.seed,
        ):
            rows.append({"method": name, **asdict(cell)})
    return rows
