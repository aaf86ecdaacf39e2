"""How much gradient a softmax row lets through, as a function of the factor on its logits.

With n logits of unit variance multiplied by alpha, p = softmax(alpha s), the measure of a row is half the L1
norm of its Jacobian, a = alpha (1 - sum p_i^2). The article (kexue.fm/archives/9812) maximises an
approximation of its mean. Here are the exact mean, its limit for alpha -> infinity, and the approximation:
for independent normal logits, and for cosines of independent directions in `head_dim` dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from math import erfc, sqrt, tau
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]
Logits = Literal["normal", "cosine"]

LARGEST_ALPHA = 64.0
LARGEST_N = 1e9
# Below this the first term, alpha (1 - 1/n), is right to 1e-9, and a lattice would have a million points.
_SMALL_ALPHA = 1e-3


# -- normal logits ---------------------------------------------------------------------------------------


def exact_normal(alpha: float, n: float) -> float:
    """E a = E sum p_i s_i for n independent N(0, 1) logits, real n >= 1; absolute error below 1e-8.

    By the Gumbel-max trick i = argmax(alpha s_i + G_i) has the law p, so the mean is an integral over the
    winning value y. All integrals are trapezoid sums on one lattice y = alpha s + u, which makes the two
    inner ones convolutions.
    """
    if alpha < _SMALL_ALPHA:
        return alpha * (1 - 1 / n)
    step = 0.2 * min(1.0, alpha)
    half = int(np.ceil(9.5 * alpha / step))
    s = np.arange(-half, half + 1) * (step / alpha)
    density = np.exp(-0.5 * s * s) * (step / alpha / sqrt(tau))
    # u runs from -6, where Gumbel's distribution is 0 to double precision, to 45, where it is 1
    u = np.arange(round(-6 / step), round(45 / step) + 1) * step
    wins = np.convolve(s * density, np.exp(-u - np.exp(-u)))
    # the same lattice of y; below u = -6 a value always loses
    loses = np.convolve(density, np.concatenate([np.ones(2 * half), -np.expm1(-np.exp(-u))]))[2 * half :]
    log_below = np.log1p(-np.minimum(loses[: len(wins)], 1 - 1e-16))
    # `wins` sums to E s = 0: with expm1 instead of exp the value is right for n near 1 too
    return float(n * step * np.sum(wins * np.expm1((n - 1) * log_below)))


def limit_normal(n: float) -> float:
    """E max of n independent N(0, 1), real n >= 1: n times the integral of x phi(x) Phi(x)^(n-1)."""
    x, density, log_below = _normal_table()
    return float(n * np.sum(x * density * np.expm1((n - 1) * log_below)))


@lru_cache(maxsize=1)
def _normal_table() -> tuple[Array, Array, Array]:
    step = 1 / 32
    x = np.arange(-10, 14 + step, step)
    above = np.array([0.5 * erfc(v / sqrt(2)) for v in x])
    return x, np.exp(-0.5 * x * x) * (step / sqrt(tau)), np.log1p(-np.minimum(above, 1 - 1e-16))


# -- cosines of independent directions -------------------------------------------------------------------


@lru_cache(maxsize=16)
def _cosine_nodes(head_dim: int) -> tuple[Array, Array]:
    """Nodes s and weights of the density (1 - s^2)^((d-3)/2) on [-1, 1], by Gauss-Legendre in the angle."""
    x, w = np.polynomial.legendre.leggauss(256)
    angle = (x + 1) * (np.pi / 2)
    weight = w * np.sin(angle) ** (head_dim - 2)
    return np.cos(angle), weight / weight.sum()


def exact_cosine(alpha: float, n: float, head_dim: int) -> float:
    """E a = alpha (1 - E sum p_i^2) for n cosines of random directions, by the trick of `exact_normal`."""
    s, weight = _cosine_nodes(head_dim)
    step = 0.05
    y = np.arange(-alpha - 7, alpha + 25, step)  # outside, the first factor below is 0
    e = np.exp(np.minimum(alpha * s[None, :] - y[:, None], 7.0))
    log_below = np.log(np.maximum(np.exp(-e) @ weight, 1e-300))
    collisions = n * step * np.sum(((e * e * np.exp(-e)) @ weight) * np.exp((n - 1) * log_below))
    return float(alpha * (1 - collisions))


def limit_cosine(n: float, head_dim: int) -> float:
    """The limit of `exact_cosine`: E (d-3) m / (1 - m^2) for m the largest of n cosines."""
    x, w = np.polynomial.legendre.leggauss(64)
    edges = np.linspace(0, np.pi, 65)
    width = np.diff(edges)[:, None] / 2
    angle = edges[:-1, None] + width * (x + 1)
    density = np.sin(angle) ** (head_dim - 2)
    # P(s <= cos a) = the mass of angles above a: whole panels after this one, and the rest of its own
    panel = (density * w * width).sum(1)
    total = panel.sum()
    after = np.concatenate([np.cumsum(panel[::-1])[::-1][1:], [0.0]])
    inner = angle[:, :, None] + (edges[1:, None] - angle)[:, :, None] * (x + 1) / 2
    rest = (np.sin(inner) ** (head_dim - 2) * w).sum(2) * (edges[1:, None] - angle) / 2
    below = (after[:, None] + rest) / total
    slope = (head_dim - 3) * np.cos(angle) * np.sin(angle) ** (head_dim - 4) * w * width / total
    return float(n * np.sum(slope * (below ** (n - 1) - 1)))


def log_moment(alpha: float, head_dim: int) -> tuple[float, float]:
    """log E e^(alpha s) of a cosine s, and its derivative in alpha, the mean of s under the tilted law."""
    s, weight = _cosine_nodes(head_dim)
    mass = np.exp(alpha * (s - 1)) * weight
    total = float(mass.sum())
    return math.log(total) + alpha, float((mass * s).sum()) / total


def annealed_log_n(alpha: float, head_dim: int) -> float:
    """log of the n for which `alpha` maximises the annealed form for cosines; rises with alpha."""
    log_two, mean_two = log_moment(2 * alpha, head_dim)
    log_one, mean_one = log_moment(alpha, head_dim)
    return log_two - 2 * log_one + math.log1p(alpha * 2 * (mean_two - mean_one))


# -- public ----------------------------------------------------------------------------------------------


@overload
def gradient_norm(
    alpha: float,
    n: float,
    *,
    form: Literal["exact", "annealed"] = ...,
    logits: Logits = ...,
    head_dim: int | None = ...,
) -> float: ...
@overload
def gradient_norm(
    alpha: float | Tensor,
    n: float | Tensor,
    *,
    form: Literal["exact", "annealed"] = ...,
    logits: Logits = ...,
    head_dim: int | None = ...,
) -> float | Tensor: ...
def gradient_norm(
    alpha: float | Tensor,
    n: float | Tensor,
    *,
    form: Literal["exact", "annealed"] = "exact",
    logits: Logits = "normal",
    head_dim: int | None = None,
) -> float | Tensor:
    """Mean of alpha (1 - sum p_i^2) over rows of n logits, p = softmax(alpha s).

    alpha and n broadcast; numbers give a float, a tensor gives a float64 tensor. form "exact" is the mean
    itself, which rises with alpha to `gradient_limit`: it has no maximum. form "annealed" is the article's
    approximation, for normal logits alpha (1 - e^(alpha^2) / n), which has one: `attention_scale`.
    logits "cosine" needs head_dim > 3.

    Raises ValueError for alpha < 0, n < 1, and in the exact form for alpha > 64 or n > 1e9.
    """
    check_logits(logits, head_dim)
    if form not in ("exact", "annealed"):
        raise ValueError(f'form must be "exact" or "annealed", got {form!r}')

    def value(a: float, m: float) -> float:
        if not a >= 0:
            raise ValueError(f"alpha must be >= 0, got {a}")
        check_n(m)
        if form == "annealed":
            if head_dim is None or logits == "normal":
                return a * (1 - math.exp(a * a) / m)
            two, one = (log_moment(x, head_dim)[0] for x in (2 * a, a))
            return a * (1 - math.exp(two - 2 * one) / m)
        if a > LARGEST_ALPHA or m > LARGEST_N:
            raise ValueError(f"the exact form is computed for alpha <= 64 and n <= 1e9, got alpha={a}, n={m}")
        return exact_normal(a, m) if head_dim is None or logits == "normal" else exact_cosine(a, m, head_dim)

    return _map(value, alpha, n)


def gradient_limit(
    n: float | Tensor, *, logits: Logits = "normal", head_dim: int | None = None
) -> float | Tensor:
    """What `gradient_norm` rises to as alpha grows; for normal logits the mean of the largest of n.

    A float for a number, a float64 tensor of n's shape for a tensor. ValueError for n < 1.
    """
    check_logits(logits, head_dim)

    def value(_: float, m: float) -> float:
        check_n(m)
        return limit_normal(m) if head_dim is None or logits == "normal" else limit_cosine(m, head_dim)

    return _map(value, 0.0, n)


def check_n(n: float) -> None:
    if not n >= 1:
        raise ValueError(f"n is a number of keys and must be >= 1, got {n}")


def check_logits(logits: str, head_dim: int | None) -> None:
    if logits not in ("normal", "cosine"):
        raise ValueError(f'logits must be "normal" or "cosine", got {logits!r}')
    if head_dim is not None and head_dim < 1:
        raise ValueError(f"head_dim must be >= 1, got {head_dim}")
    if logits == "cosine" and (head_dim is None or head_dim <= 3):
        raise ValueError(f'logits="cosine" needs head_dim > 3, got {head_dim}')


def _map(value: Callable[[float, float], float], alpha: float | Tensor, n: float | Tensor) -> float | Tensor:
    """`value` over the broadcast of both; equal pairs are computed once."""
    if isinstance(alpha, (int, float)) and isinstance(n, (int, float)):
        return value(float(alpha), float(n))
    import torch

    pairs = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in (alpha, n)))
    flat = torch.stack([p.reshape(-1) for p in pairs], 1)
    unique, place = flat.unique(dim=0, return_inverse=True)
    values = torch.tensor([value(a, m) for a, m in unique.tolist()], dtype=torch.float64, device=flat.device)
    return values[place].reshape(pairs[0].shape)
