"""A model on disk: `config.json` and `model.safetensors`, nothing that could be executed."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from lmlab.model.config import DecoderConfig
from lmlab.model.errors import CheckpointError, ConfigError
from lmlab.retry import atomic_write

if TYPE_CHECKING:
    from lmlab.model.decoder import Decoder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MODEL_TYPE = "lmlab"
_OF_WEIGHTS, _OF_CONFIG = "lmlab.weights_sha256", "lmlab.config_sha256"  # in the header of the weights


def save_decoder(model: Decoder, path: Path) -> None:
    """Write the two files, each replaced in one step. The weights carry a fingerprint of both."""
    path.mkdir(parents=True, exist_ok=True)
    config = {"model_type": MODEL_TYPE, **model.config.to_dict()}
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    tensors = dict(model.state_dict())
    write_tensors(path / WEIGHTS, tensors, {_OF_WEIGHTS: _sha256(tensors), _OF_CONFIG: _text_sha256(text)})
    with atomic_write(path / CONFIG, "w", encoding="utf-8") as file:
        file.write(text)


def load_decoder(
    build: Callable[[DecoderConfig], Any], path: Path, *, device: torch.device, dtype: torch.dtype | None
) -> Any:
    """`build(config)` with the weights of the directory `path`."""
    if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
        raise CheckpointError(_not_safetensors(path))
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} has no {CONFIG}; expected a directory that Decoder.save wrote")
    model = build(read_config(path / CONFIG))
    if not (path / WEIGHTS).is_file():
        others = [
            file for file in sorted(path.iterdir()) if file.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
        ]
        if others:
            raise CheckpointError(_not_safetensors(others[0]))
        raise CheckpointError(f"{path} has no {WEIGHTS}")
    tensors = read_tensors(path / WEIGHTS)
    _check_fingerprints(path, tensors)
    load_tensors(model, tensors, str(path / WEIGHTS))
    if dtype is None:
        floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        dtype = next(iter(floating)) if len(floating) == 1 else None
    return model.to(device=device, dtype=dtype)


def _check_fingerprints(path: Path, tensors: dict[str, Tensor]) -> None:
    """CheckpointError for weights that aren't those that were saved; a warning for another configuration, which
    may have been changed on purpose. A file of another maker has no fingerprint."""
    with safe_open(path / WEIGHTS, framework="pt") as file:
        told = file.metadata() or {}
    if _OF_WEIGHTS in told and told[_OF_WEIGHTS] != _sha256(tensors):
        raise CheckpointError(f"{path / WEIGHTS} is damaged: its tensors don't have the sha256 in its header")
    text = (path / CONFIG).read_text(encoding="utf-8")
    if told.get(_OF_CONFIG, _text_sha256(text)) != _text_sha256(text):
        warnings.warn(f"{path / CONFIG} isn't the one that the weights were saved with", stacklevel=4)


def read_config(path: Path) -> DecoderConfig:
    """The configuration in a `config.json`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(values).__name__}")
    found = values.pop("model_type", MODEL_TYPE)
    if found != MODEL_TYPE:
        raise CheckpointError(
            f"{path}: model_type must be {MODEL_TYPE!r}, found {found!r}; lmlab.hf.convert(source, target, "
            'to="lmlab") converts a Llama'
        )
    if MODEL_TYPE in values:
        raise CheckpointError(
            f'{path} is of a model in transformers\' form; lmlab.hf.convert(source, target, to="lmlab") first'
        )
    try:
        return DecoderConfig.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy `tensors` into the module's parameters and buffers, all of them and nothing else."""
    expected = dict(module.state_dict())
    for name in expected:
        if name not in tensors:
            raise CheckpointError(f"{source}: tensor '{name}' {list(expected[name].shape)} is missing")
    for name, tensor in tensors.items():
        if name not in expected:
            raise CheckpointError(
                f"{source}: tensor '{name}' {list(tensor.shape)} has no place in this model"
            )
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{source}: tensor '{name}' must be {list(expected[name].shape)}, found {list(tensor.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: tensor '{name}' holds NaN or infinite values")
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtype=next(iter(dtypes)))
    module.load_state_dict(tensors)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, replaced in one step; the same tensors and metadata are the same bytes."""
    data = to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    head = 8 + int.from_bytes(data[:8], "little")
    if metadata is not None:  # safetensors itself would write it in an order of its own each time
        told = {"__metadata__": {"format": "pt", **metadata}, **json.loads(data[8:head])}
        text = json.dumps(told, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        data = len(text).to_bytes(8, "little") + text + data[head:]
    with atomic_write(path) as file:
        file.write(data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    if path.suffix != ".safetensors":
        raise CheckpointError(_not_safetensors(path))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as safetensors: {error}") from None


def weights_sha256(model_or_path: nn.Module | str | Path) -> str:
    """A fingerprint of a model's tensors, sorted by name: sha256 over name, dtype, shape and little-endian bytes.

    Takes a module, a safetensors file or a directory with `model.safetensors`.
    """
    if isinstance(model_or_path, nn.Module):
        return _sha256(model_or_path.state_dict())
    path = Path(model_or_path)
    return _sha256(read_tensors(path / WEIGHTS if path.is_dir() else path))


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0".encode())
        digest.update(_little_endian(tensor))
    return digest.hexdigest()


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _little_endian(tensor: Tensor) -> bytes:
    raw = tensor.detach().cpu().contiguous().view(-1)
    size = raw.element_size()
    words = (
        raw.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
        if size <= 8
        else None
    )
    array: Any = (torch.view_as_real(raw).view(torch.int64) if words is None else words).numpy()
    return bytes(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes())


def _not_safetensors(path: Path) -> str:
    return (
        f"{path}: only safetensors is read, because the others can run code when they are opened. "
        "Convert it where you trust it: "
        "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
    )
