"""Checkpoints of a run: directories that appear whole or not at all, and the newest sound one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from lmlab import __version__
from lmlab.losses import LinearLoss
from lmlab.model import CheckpointError, Decoder
from lmlab.model.checkpoint import CONFIG, WEIGHTS, load_tensors, read_tensors, weights_sha256, write_tensors
from lmlab.retry import atomic_write

__all__ = ["Checkpoint", "latest", "save_checkpoint", "start_over", "weights_sha256"]

OPTIMIZER = "optimizer.safetensors"
CRITERION = "criterion.safetensors"
STATE = "state.json"
PREFIX = "step-"


def save_checkpoint(
    out: Path,
    step: int,
    model: Decoder,
    optimizer: Optimizer,
    criterion: LinearLoss,
    settings: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Write `out/step-XXXXXXXX` and remove all but the newest `keep`. The directory is built under a
    temporary name, fsynced and renamed: a kill at any moment leaves whole checkpoints only."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"tmp-{step:08d}-{os.getpid()}"
    temporary.mkdir()
    try:
        model.save(temporary)
        write_tensors(temporary / OPTIMIZER, _optimizer_tensors(optimizer))
        if criterion.state_dict():
            write_tensors(temporary / CRITERION, dict(criterion.state_dict()))
        state = {
            "step": step,
            "files": {file.name: _file_sha256(file) for file in sorted(temporary.iterdir())},
            "weights_sha256": weights_sha256(model),
            "random": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
            "versions": {"lmlab": __version__, "torch": str(torch.__version__), "numpy": str(np.__version__)},
            **settings,
        }
        with atomic_write(temporary / STATE, "w", encoding="utf-8") as file:
            json.dump(state, file, indent=1, allow_nan=False)
        _sync(temporary)
        target = out / f"{PREFIX}{step:08d}"
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _directories(out)[keep:]:
        shutil.rmtree(old)
    for stale in out.glob("tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    return target


@dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint directory and what its `state.json` says."""

    path: Path
    state: dict[str, Any]

    def restore(self, model: Decoder, optimizer: Optimizer, criterion: LinearLoss) -> None:
        """Put weights, optimiser, buffers of the loss and torch's random state back."""
        load_tensors(model, read_tensors(self.path / WEIGHTS), str(self.path / WEIGHTS))
        _restore_optimizer(optimizer, read_tensors(self.path / OPTIMIZER), str(self.path / OPTIMIZER))
        if (self.path / CRITERION).exists():
            load_tensors(criterion, read_tensors(self.path / CRITERION), str(self.path / CRITERION))
        raw = np.frombuffer(base64.b64decode(self.state["random"]), dtype=np.uint8).copy()
        torch.set_rng_state(torch.from_numpy(raw))


def latest(out: Path) -> Checkpoint | None:
    """The newest sound checkpoint in `out`, found by listing; None where there is none.

    A damaged one is reported by a warning and the one before is taken; CheckpointError when all are damaged.
    """
    directories = _directories(out)
    problems = []
    for path in directories:
        try:
            checkpoint = Checkpoint(path, _sound_state(path))
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"damaged checkpoint: {problem}; going on from {path.name}", stacklevel=2)
        return checkpoint
    if problems:
        raise CheckpointError(
            f"every checkpoint in {out} is damaged: {'; '.join(problems)}. Remove "
            "them, or train(..., resume=False)"
        )
    return None


def start_over(out: Path) -> None:
    """Remove all checkpoints of `out`."""
    for path in [*_directories(out), *out.glob("tmp-*")]:
        shutil.rmtree(path)


def _directories(out: Path) -> list[Path]:
    """Checkpoint directories, newest first."""
    return sorted(
        (path for path in out.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit()), reverse=True
    )


def _sound_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        files = dict(state["files"])
        needed = {CONFIG, WEIGHTS, OPTIMIZER} - set(files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / STATE} can't be read ({error})") from None
    if needed:
        raise CheckpointError(f"{path / STATE} doesn't list {', '.join(sorted(needed))}")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if _file_sha256(file) != expected:
            raise CheckpointError(f"{file} doesn't have the sha256 in {STATE}")
    return state


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Flat names, `group.parameter.key`."""
    return {
        f"{group['name']}.{name}.{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state[parameter].items()
    }


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], source: str) -> None:
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            start = f"{group['name']}.{name}."
            state = {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
            # The step count stays on the CPU, where the optimiser keeps it; the moments live with the parameter.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
            for key, value in state.items():
                if key != "step" and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"{source}: '{start}{key}' must be {list(parameter.shape)}, found {list(value.shape)}"
                    )
    if hasattr(optimizer, "restore"):
        optimizer.restore()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    """Make the directory's entries durable (POSIX; elsewhere a directory can't be opened)."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        error.filename = str(directory)  # the system names no file
        raise
    finally:
        os.close(handle)
