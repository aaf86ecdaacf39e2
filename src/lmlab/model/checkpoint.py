"""A model on disk: `config.json` and `model.safetensors`, nothing that could be executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
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


def save_decoder(model: Decoder, path: Path) -> None:
    """Write the two files, each replaced in one step."""
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, dict(model.state_dict()))
    config = {"model_type": MODEL_TYPE, **model.config.to_dict()}
    with atomic_write(path / CONFIG, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, allow_nan=False)
        file.write("\n")


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
    load_tensors(model, tensors, str(path / WEIGHTS))
    if dtype is None:
        floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        dtype = next(iter(floating)) if len(floating) == 1 else None
    return model.to(device=device, dtype=dtype)


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


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, replaced in one step."""
    data = to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
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
        tensors: Iterable[tuple[str, Tensor]] = model_or_path.state_dict().items()
    else:
        path = Path(model_or_path)
        tensors = read_tensors(path / WEIGHTS if path.is_dir() else path).items()
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0".encode())
        digest.update(_little_endian(tensor))
    return digest.hexdigest()


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
