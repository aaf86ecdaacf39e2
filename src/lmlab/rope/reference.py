"""The oracle: attention from the T × T matrix of distances, as the formula reads.

logit(i,j) = λ_i · scale · [ Σ_m Re( q_m k̄_m e^{i·Δ(i,j)·θ'_m} ) + un-rotated part ] + bias
out_i = softmax over the kept j ≤ i of logit(i, ·), times v
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lmlab.rope.band import DCA, InvLeakyReRoPE, LeakyReRoPE, ReRoPE, SelfExtend, Window
from lmlab.rope.compose import as_extension
from lmlab.rope.frequency import PI
from lmlab.rope.logit import ALiBi, CosA, KeyNorm, LogN, Temperature
from lmlab.rope.rotary import Rotary, frequencies


def distances(extension: Any, t: int, *, train_length: int = 2048) -> Float[Tensor, "t t"]:
    """Δ(i, j) for queries and keys 0 … t−1, NaN where j is not attended: for figures.

    Under PI, which is the same as shorter distances, it is Δ/s; `train_length` serves its factor=None."""
    extension = as_extension(extension)
    i, j = torch.arange(t, dtype=torch.float64)[:, None], torch.arange(t, dtype=torch.float64)[None, :]
    delta, keep = band_distance(extension, i, j)
    pi = extension.find(PI)
    if pi is not None:
        delta = delta / (max(1.0, t / train_length) if pi.factor is None else pi.factor)
    return delta.masked_fill(~keep, math.nan)


def band_distance(extension: Any, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Δ(i, j) and which pairs are kept, for columns i and rows j of float64 positions."""
    r = i - j
    causal = r >= 0
    for method in as_extension(extension).methods:
        match method:
            case Window(window=w, sinks=sinks):
                near = r < w
                sink_distance = i.clamp(max=w + sinks - 1) - j
                return torch.where(near, r, sink_distance), causal & (near | (j < sinks))
            case ReRoPE(window=w):
                return torch.where(r < w, r, torch.full_like(r, w)), causal
            case LeakyReRoPE(window=w, k=k):
                return torch.where(r < w, r, w + (r - w) / k), causal
            case InvLeakyReRoPE(window=w, b=b):
                return torch.where(r < w, r, w + 2 * b * (r - w)), causal
            case SelfExtend(window=w, group=g):
                return torch.where(r < w, r, i // g + w - w // g - j // g), causal
            case DCA(chunk=chunk):
                c = method.step
                apart = i // c - j // c
                following = (i % c + c).clamp(max=chunk) - j % c
                far = chunk - j % c
                return torch.where(apart == 0, r, torch.where(apart == 1, following, far)), causal
    return r, causal


def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotary: Rotary | None = None,
    extension: Any = None,
    scale: float | Tensor | None = None,
    length: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """`lmlab.attention.attend` by the formula: q [b h t d] stands at the end of k [b hk T d].

    dtype: of every sum and product but the angles, which are float64. Memory is O(t · T · D): for tests."""
    extension = as_extension(extension)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    h, t, d = q.shape[1:]
    n_keys = k.shape[2]
    k, v = (x.repeat_interleave(h // k.shape[1], dim=1) for x in (k, v))
    i = torch.arange(n_keys - t, n_keys, dtype=torch.float64)
    j = torch.arange(n_keys, dtype=torch.float64)

    factor = torch.ones(t, dtype=torch.float64)
    norm = False
    for method in extension.methods:
        match method:
            case LogN(train_length=given, clip=clip):
                base = given if given is not None else rotary.train_length if rotary else math.nan
                log_n = (i + 1).log() / math.log(base)
                factor = factor * (log_n.clamp(min=1) if clip else log_n)
            case Temperature(factor=temperature):
                factor = factor * temperature
            case KeyNorm():
                k, norm = k / k.norm(dim=-1, keepdim=True), True
            case CosA(n=n):
                k, norm = k / k.norm(dim=-1, keepdim=True), True
                q = q / q.norm(dim=-1, keepdim=True)
                if n == "position":
                    factor = factor * 4 * (i + 1).log()
                else:
                    half = rotary.train_length / 2 if rotary else math.nan
                    factor = factor * 4 * math.log(half if n is None else n)

    delta, keep = band_distance(extension, i[:, None], j[None, :])
    if rotary is None:
        logits = torch.einsum("bhid,bhjd->bhij", q, k)
    else:
        theta, a = frequencies(rotary, extension, length=length or n_keys)
        trained = rotary.attention_factor  # belongs to the rotated part; the extension's factor to the whole
        phase = torch.polar(torch.ones(()).double(), delta[..., None] * theta).to(dtype.to_complex())
        q_pairs, q_rest = _complex(q, rotary)
        k_pairs, k_rest = _complex(k, rotary)
        turned = torch.einsum("bhim,bhjm,ijm->bhij", q_pairs, k_pairs.conj(), phase).real
        rest = torch.einsum("bhid,bhjd->bhij", q_rest, k_rest)
        logits = (turned * trained**2 + rest) * (a / trained) ** 2

    if scale is None:
        scale = 1.0 if norm else d**-0.5
    if isinstance(scale, Tensor):
        scale = scale.to(dtype).expand(q.shape[:3])[..., None]
    logits = logits * scale * factor.to(dtype)[:, None]
    alibi = extension.find(ALiBi)
    if alibi is not None:
        slopes = torch.tensor(alibi.for_heads(h), dtype=torch.float64)
        logits = logits - (slopes[:, None, None] * (i[:, None] - j)).to(dtype)
    return logits.masked_fill(~keep, -math.inf).softmax(dim=-1) @ v


def _complex(x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """The rotary pairs of x as complex numbers, and its un-rotated dims."""
    pairs, rest = x[..., : rotary.dim], x[..., rotary.dim :]
    half = rotary.dim // 2
    if rotary.interleaved:
        return torch.complex(pairs[..., 0::2], pairs[..., 1::2]), rest
    return torch.complex(pairs[..., :half], pairs[..., half:]), rest
