"""What `vq_attention` accepts: every refusal names the argument, what was given, and what fits."""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.attention.scale import check_rule
from lmlab.attention.vq.state import VQState


def check_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
    codes: Tensor | None,
    causal: bool,
    *,
    finite: bool = True,
) -> None:
    """`finite`: look at the codebook's numbers too; a decode step after the first needn't."""
    if q.ndim != 4:
        raise ValueError(f"q must have the shape [b h t d], got {tuple(q.shape)}")
    b, h, t, d = q.shape
    if k.ndim != 4 or k.shape[0] != b or k.shape[2] != t or k.shape[3] != d:
        raise ValueError(f"k must have the shape [b g t d] = [{b} g {t} {d}] to fit q, got {tuple(k.shape)}")
    g = k.shape[1]
    if g == 0 or h % g:
        raise ValueError(f"q has {h} heads and k has {g}: the heads of q must be a multiple of those of k")
    if v.ndim != 4 or v.shape[:3] != (b, g, t):
        raise ValueError(f"v must have the shape [b g t e] = [{b} {g} {t} e] to fit k, got {tuple(v.shape)}")
    if codebook.ndim != 3 or codebook.shape[0] != g or codebook.shape[2] != d or codebook.shape[1] == 0:
        raise ValueError(
            f"codebook must have the shape [g s d] = [{g} s {d}], s >= 1, got {tuple(codebook.shape)}"
        )
    if finite and not bool(torch.isfinite(codebook).all()):
        raise ValueError("codebook holds NaN or infinity")
    if bias is not None:
        if bias.ndim != 2 or bias.shape[0] != h or bias.shape[1] == 0:
            raise ValueError(f"bias must have the shape [h w] = [{h} w], w >= 1, got {tuple(bias.shape)}")
        if not causal and bias.shape[1] % 2 == 0:
            raise ValueError(
                f"with causal=False bias must be 2w - 1 wide (index w - 1 + i - j): odd, got {bias.shape[1]}"
            )
    if key_mask is not None and key_mask.shape != (b, t):
        raise ValueError(f"key_mask must have the shape [b t] = [{b} {t}], got {tuple(key_mask.shape)}")
    if codes is not None:
        if codes.shape != (b, g, t):
            raise ValueError(f"codes must have the shape [b g t] = [{b} {g} {t}], got {tuple(codes.shape)}")
        s = codebook.shape[1]
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < s:
            raise ValueError(f"codes must lie in [0, {s}), got {int(codes.min())} to {int(codes.max())}")


def check_options(
    scale: object,
    bias: Tensor | None,
    rotary: object,
    window: int | None,
    causal: bool,
    state: VQState | None,
    key_grad: str,
    block: int | None,
) -> None:
    if rotary is not None and window is None:
        raise ValueError("rotary needs window, the distance from which keys merge: rotary=…, window=128")
    if window is not None and rotary is None:
        raise ValueError(
            "window belongs to rotary; a bias brings its own width: give rotary=… or leave window out"
        )
    if window is not None and window < 1:
        raise ValueError(f"window must be >= 1, got {window}")
    if bias is not None and window is not None and bias.shape[1] > window:
        raise ValueError(
            f"bias is {bias.shape[1]} wide, more than window = {window}: far keys have no distance"
        )
    if not causal and rotary is not None:
        raise ValueError("rotary is for causal attention; with causal=False use a bias")
    if not causal and state is not None:
        raise ValueError("state is for causal attention: an encoder sees all keys in one call")
    if key_grad not in ("all", "local", "none"):
        raise ValueError(f'key_grad must be "all", "local" or "none", got {key_grad!r}')
    if block is not None and block < 1:
        raise ValueError(f"block must be >= 1 or None, got {block}")
    if scale is not None and not isinstance(scale, (int, float, Tensor)):
        check_rule(scale, "scale")


def check_state(state: VQState, q: Tensor, v: Tensor, codebook: Tensor, window: int) -> None:
    b, g, e, s = q.shape[0], v.shape[1], v.shape[-1], codebook.shape[1]
    if state.mean.shape != (b, g, s, e):
        raise ValueError(
            f"state is for [b g s e] = {list(state.mean.shape)}, the call has [{b} {g} {s} {e}]: "
            f"VQState.empty({b}, {g}, {s}, {e}, window={window})"
        )
    if state.mean.device != q.device:
        raise ValueError(f"state is on {state.mean.device}, q on {q.device}")
    if state.recent_codes.shape[-1] < window - 1:
        raise ValueError(
            f"state keeps {state.recent_codes.shape[-1]} recent keys, this call needs {window - 1}: "
            f"VQState.empty(…, window={window})"
        )
