"""The precision of a run, chosen once: "auto" measures, and the choice is stored with the checkpoint."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor

from lmlab.train.config import TrainConfig
from lmlab.train.objective import Objective, autocast

PROBE_STEPS = 3


def choose_precision(objective: Objective, config: TrainConfig, ids: Tensor, targets: Tensor) -> str:
    """The configured precision. For "auto": "bfloat16" on CUDA; on a CPU with bfloat16 instructions "bfloat16"
    or "float32", whichever is faster over three steps on a copy of the model; else "float32"."""
    if config.precision != "auto":
        return config.precision
    device = objective.model.head.device
    if objective.model.head.dtype != torch.float32:
        return "float32"
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    if device.type != "cpu" or not cpu_has_bfloat16():
        return "float32"
    twin = Objective(copy.deepcopy(objective.model), objective.criterion, objective.aux_weight)
    seconds = {
        name: _probe(twin, ids, targets, dtype)
        for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16))
    }
    return min(seconds, key=lambda name: seconds[name])


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AVX-512 BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def _probe(objective: Objective, ids: Tensor, targets: Tensor, precision: torch.dtype | None) -> float:
    best = float("inf")
    for _ in range(PROBE_STEPS + 1):  # the first warms up
        start = time.process_time()
        with autocast(ids.device, precision):
            loss, _ = objective(ids, targets)
        loss.backward()
        objective.zero_grad(set_to_none=True)
        best = min(best, time.process_time() - start)
    return best
