"""The precision of a run, chosen once: "auto" measures, and the choice is stored with the checkpoint."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor

from lmlab.train.config import TrainConfig
from lmlab.train.objective import Objective, autocast

PROBE_STEPS = 3
CLEARLY = 1.25
"""How much faster float32 must be to be taken: a close race would be decided anew by every run."""


def choose_precision(objective: Objective, config: TrainConfig, ids: Tensor, targets: Tensor) -> str:
    """The configured precision. For "auto": "bfloat16" on CUDA; on a CPU with bfloat16 instructions "bfloat16",
    unless float32 is clearly faster over three steps on a copy of the model; else "float32"."""
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
    float32, bfloat16 = _probe(twin, ids, targets)
    return "float32" if float32 * CLEARLY < bfloat16 else "bfloat16"


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AVX-512 BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def _probe(objective: Objective, ids: Tensor, targets: Tensor) -> tuple[float, float]:
    """Processor seconds of a step in float32 and in bfloat16, the best of three that take turns. One thread:
    the time of several holds their waiting for each other, which a busy machine makes any number."""
    best = {None: float("inf"), torch.bfloat16: float("inf")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(PROBE_STEPS + 1):  # the first warms up
            for precision in best:
                start = time.process_time()
                with autocast(ids.device, precision):
                    loss, _ = objective(ids, targets)
                loss.backward()
                objective.zero_grad(set_to_none=True)
                best[precision] = min(best[precision], time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return best[None], best[torch.bfloat16]
