"""The first weights of a decoder: one table, one seed. Constructors draw nothing that counts."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from lmlab.model.config import DecoderConfig


def standard_deviation(name: str, parameter: Tensor, config: DecoderConfig) -> float | None:
    """The σ of N(0, σ²) that a parameter starts from, by its name; None: it keeps what its module gave it.

    | parameter                          | "scaled"            | "mup"             |
    |------------------------------------|---------------------|-------------------|
    | embedding.weight                   | σ                   | 1                 |
    | output.weight (untied head)        | σ                   | 1/sqrt(fan_in)    |
    | out, down                          | σ / sqrt(2L)        | 1/sqrt(fan_in)    |
    | every other hidden matrix          | σ                   | 1/sqrt(fan_in)    |
    | norms, gains, a room's own (cells, codebooks, biases) | unchanged | unchanged |

    σ = 0.02 · sqrt(768/d), at most 0.04, for d < 768, else 0.02.
    """
    module = name.split(".")[-2] if "." in name else ""
    if not name.endswith(".weight") or parameter.ndim != 2 or ".cell." in name:
        return None
    if config.init == "mup":
        return 1.0 if name == "embedding.weight" else 1 / math.sqrt(parameter.shape[1])
    sigma = 0.02 * min(2.0, max(1.0, math.sqrt(768 / config.d_model)))
    return sigma / math.sqrt(2 * config.n_layers) if module in ("out", "down") else sigma


@torch.no_grad()
def initialise(model: nn.Module, config: DecoderConfig, seed: int) -> None:
    """Draw every matrix of the table; a parameter's numbers depend on seed, name and shape only."""
    for name, parameter in model.named_parameters():
        sigma = standard_deviation(name, parameter, config)
        if sigma is not None:
            generator = torch.Generator().manual_seed(stream(seed, name))
            values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0, sigma, generator=generator)
            parameter.copy_(values)


def stream(seed: int, name: str) -> int:
    """A 63-bit seed of its own for each name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
