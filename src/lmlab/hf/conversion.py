"""Checkpoints on disk from one form to another: lmlab's own, transformers' "lmlab", and Llama."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

from lmlab.hf.configuration import LMLabConfig
from lmlab.hf.llama import from_llama, to_llama
from lmlab.hf.modeling import LMLabForCausalLM
from lmlab.hf.tokenizer import OWN_FILE, save_tokenizer
from lmlab.model import CheckpointError, ConfigError, Decoder
from lmlab.model.checkpoint import MODEL_TYPE
from lmlab.tokenize import Tokenizer

Form = Literal["hf", "llama", "lmlab"]
FORMS = get_args(Form)
TOKENIZER = "tokenizer.json"
# Files of a foreign tokenizer, which lmlab can't read: kept in this folder for the way back.
FOREIGN = "huggingface"
CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# Keys of a Llama's configuration that a Decoder knows nothing of.
KEPT_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "max_position_embeddings")


def convert(source: str | Path, target: str | Path, *, to: Form) -> None:
    """Write the model in the directory `source` to the new directory `target` in another form.

    lmlab: config.json, model.safetensors, tokenizer.json, as a run leaves them in models/NAME. hf: what
    `from_pretrained` of the Auto classes reads once `lmlab.hf` is imported. llama: what it reads without
    lmlab. The tokenizer comes along; that of a Llama, which lmlab can't use, is kept for the way back. Weights
    are copied bit for bit (see `to_llama` for what it folds).

    Raises FileExistsError if target is there, CheckpointError or ConfigError for a source that can't be used.
    """
    source, target = Path(source), Path(target)
    if to not in FORMS:
        raise ConfigError("to", f"must be one of {', '.join(FORMS)}, got {to!r}")
    if target.exists():
        raise FileExistsError(f"{target} exists: give a new directory")
    form = form_of(source)
    model = _load(source, form)
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _WRITERS[to](model, source, temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def form_of(source: Path) -> Form:
    """Which of the forms a directory holds."""
    path = source / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{source} has no config.json; expected a directory with a model")
    config = _json(path)
    kind = config.get("model_type")
    if kind == "llama":
        return "llama"
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{path}: model_type must be {MODEL_TYPE!r} or 'llama', found {kind!r}")
    return "hf" if "lmlab" in config else "lmlab"


def _load(source: Path, form: Form) -> Decoder:
    if form == "lmlab":
        return Decoder.load(source)
    if form == "llama":
        return from_llama(source)
    model = LMLabForCausalLM.from_pretrained(
        source, dtype="auto", use_safetensors=True, local_files_only=True
    )
    decoder: Decoder = model.model.decoder
    return decoder


def _write_lmlab(model: Decoder, source: Path, target: Path) -> None:
    model.save(target)
    tokenizer = _tokenizer(source)
    if tokenizer is not None:
        tokenizer.save(target / TOKENIZER)
    _carry(source, target / FOREIGN)


def _write_hf(model: Decoder, source: Path, target: Path) -> None:
    hf = LMLabForCausalLM(LMLabConfig(model.config, dtype=model.head.dtype)).to(model.head.dtype)
    hf.model.decoder.load_state_dict(model.state_dict())
    _finish(hf, source, target)


def _write_llama(model: Decoder, source: Path, target: Path) -> None:
    llama = to_llama(model)
    before = _foreign_folder(source) / "config.json"
    if before.is_file() and _json(before).get("model_type") == "llama":
        known = _json(before)
        for key in KEPT_KEYS:
            if key in known:
                setattr(llama.config, key, known[key])
    _finish(llama, source, target)


_WRITERS = {"lmlab": _write_lmlab, "hf": _write_hf, "llama": _write_llama}


def _finish(model: Any, source: Path, target: Path) -> None:
    """Weights, configuration, the end token for `generate`, and the tokenizer."""
    tokenizer = _tokenizer(source)
    if tokenizer is not None:
        save_tokenizer(tokenizer, target)
        end = tokenizer.special_tokens.get("<eos>")
        for holder in (model.config, model.generation_config):
            holder.bos_token_id = holder.eos_token_id = holder.pad_token_id = end
    model.save_pretrained(target)
    if tokenizer is None:
        _carry(source, target, but=("config.json",))


def _tokenizer(source: Path) -> Tokenizer | None:
    """lmlab's own tokenizer of a model in any form."""
    for name in (OWN_FILE, TOKENIZER):
        path = source / name
        if path.is_file() and _json(path).get("format") == "lmlab.tokenize":
            return Tokenizer.load(path)
    return None


def _foreign_folder(source: Path) -> Path:
    return source / FOREIGN if (source / FOREIGN).is_dir() else source


def _carry(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    """Copy the files that only transformers reads."""
    folder = _foreign_folder(source)
    if folder == source and form_of(source) == "lmlab":
        return
    target.mkdir(exist_ok=True)
    for name in CARRIED:
        if name not in but and (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values
