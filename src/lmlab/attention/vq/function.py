"""`vq_attention`: the door, the choice of positions, and a gradient of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from lmlab._native import attention as native
from lmlab.attention.scale import ScaleRule, as_number
from lmlab.attention.vq import kernel, keys, sweep
from lmlab.attention.vq.assign import assign_codes, own_precision
from lmlab.attention.vq.checks import check_options, check_shapes, check_state
from lmlab.attention.vq.state import VQState
from lmlab.rope import Rotary, frequencies, rotate

KeyGradient = Literal["all", "local", "none"]
# Blocks of keys in which "local" gradients are counted, where the caller names no block.
LOCAL_BLOCK = 128


def vq_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b g t d"],
    v: Float[Tensor, "b g t e"],
    codebook: Float[Tensor, "g s d"],
    *,
    scale: float | Tensor | ScaleRule | None = None,
    bias: Float[Tensor, "h w"] | None = None,
    rotary: Rotary | None = None,
    window: int | None = None,
    causal: bool = True,
    key_mask: Bool[Tensor, "b t"] | None = None,
    codes: Int[Tensor, "b g t"] | None = None,
    state: VQState | None = None,
    return_state: bool = False,
    key_grad: KeyGradient = "all",
    block: int | None = None,
) -> Float[Tensor, "b h t e"] | tuple[Float[Tensor, "b h t e"], VQState]:
    """softmax_j(m_i q_i . k-hat_j + B[i - j]) v_j, each key replaced by its nearest code k-hat_j; linear in t.

    Query head x uses key head floor(x g / h). The result doesn't depend on `block`, the rows of one step.

    scale: m; None is d^-1/2; a number, a tensor that broadcasts to [b h t], or a rule of the number of keys seen.
    bias: B for distances below w; with causal=False it is 2w - 1 wide, index w - 1 + (i - j).
    rotary, window: keys are quantised un-rotated and turned by min(i - j, window), the rule of `ReRoPE(window)`.
    key_mask: keys with False are not seen and not counted. A row that sees no key gives 0.
    codes: the keys' codes, where they are known; k then only carries its gradient.
    state: what came before this call; moved in place, and returned with return_state.
    key_grad: the gradient of k (straight through, every k-hat_j free): "all" queries, "local" those of the same
    and the next `block` (128) positions, or "none". Those of q, v, bias and codebook are exact in any case.

    Output in q's dtype; the arithmetic is float32, or float64 for float64 input. Raises ValueError and TypeError
    that name the argument. Source: Transformer-VQ (2309.16354), kexue.fm/archives/9844; the gradient of merged
    keys in linear time is our own.
    """
    if q.ndim == 4:
        scale = as_number(scale, q.shape[-1])
    if state is not None and codes is None and _one_native_token(q, v, bias, state, rotary):
        row = _step(q, k, v, codebook, scale, bias, key_mask, state, window, causal, block, key_grad)
        return _answer(row, state, return_state)
    check_shapes(q, k, v, codebook, bias, key_mask, codes, causal)
    check_options(scale, bias, rotary, window, causal, state, key_grad, block)
    b, h, t, d = q.shape
    g, s, e = k.shape[1], codebook.shape[1], v.shape[-1]
    near = window or (1 if bias is None else bias.shape[1] if causal else (bias.shape[1] + 1) // 2)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if state is not None:
        check_state(state, q, v, codebook, near)
    elif return_state:
        state = VQState.empty(b, g, s, e, window=near, dtype=dtype, device=q.device)
    if t == 0:
        return _answer(q.new_zeros(b, h, 0, e), state, return_state)

    codes = assign_codes(k, codebook) if codes is None else codes
    codes = codes if key_mask is None else codes.masked_fill(~key_mask[:, None], -1)
    first = 0 if state is None else state.position
    multiplier = _multiplier(scale, codes, state, causal, d, dtype)
    number = multiplier if isinstance(multiplier, float) and rotary is None else None
    q_scaled = q.to(dtype) if number is not None else q.to(dtype) * multiplier
    q_near, turn = None, None
    if rotary is not None and window is not None:
        turn = _Turn(rotary, first)
        q_near = turn.rotate(q_scaled * turn.factor**2)
        q_scaled = turn.rotate(q_scaled * turn.factor**2, at=window)
    if bias is not None and bias.shape[1] < near:
        bias = torch.nn.functional.pad(bias, (0, near - bias.shape[1]))
    call = _Call(
        block=block or (64 if s <= 64 else 128 if s <= 256 else 256),
        reach=block or LOCAL_BLOCK,
        window=near,
        recent=near - 1 if state is None else state.recent_codes.shape[-1],
        causal=causal,
        key_grad=key_grad,
        first=first,
        turn=turn,
        scale=1.0 if number is None else number,
    )
    rows = (b, g, h // g, t, d)
    out: Tensor = _Attention.apply(
        q_scaled.reshape(rows),
        None if q_near is None else q_near.reshape(rows),
        k,
        v.to(dtype),
        codebook.to(dtype),
        None if bias is None else bias.to(dtype).reshape(g, h // g, -1),
        codes,
        state,
        call,
    )
    return _answer(out.reshape(b, h, t, e).to(q.dtype), state, return_state)


def _one_native_token(
    q: Tensor, v: Tensor, bias: Tensor | None, state: VQState, rotary: Rotary | None
) -> bool:
    """Whether a call is the decode of one token that the native step can take: no gradient, on a CPU."""
    return (
        q.ndim == 4
        and q.shape[2] == 1
        and rotary is None
        and q.device.type == "cpu"
        and q.dtype == v.dtype == state.mean.dtype
        and q.dtype in (torch.float32, torch.float64)
        and not (torch.is_grad_enabled() and (q.requires_grad or v.requires_grad))
        and not (torch.is_grad_enabled() and bias is not None and bias.requires_grad)
    )


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    codebook: Tensor,
    scale: float | Tensor | ScaleRule | None,
    bias: Tensor | None,
    key_mask: Tensor | None,
    state: VQState,
    window: int | None,
    causal: bool,
    block: int | None,
    key_grad: KeyGradient,
) -> Tensor:
    """One token by one native call: assign, attend, merge what leaves the ring, write the ring."""
    check_shapes(q, k, v, codebook, bias, key_mask, None, causal, finite=state.position == 0)
    check_options(scale, bias, None, window, causal, state, key_grad, block)
    near = 1 if bias is None else bias.shape[1]
    check_state(state, q, v, codebook, near)
    if scale is None or isinstance(scale, (int, float)):
        m: Tensor | float = _number(scale, q.shape[-1])
    else:
        codes = state.seen.new_zeros(len(q), 1, 1) if key_mask is None else key_mask.long()[:, None] - 1
        m = _multiplier(scale, codes, state, causal, q.shape[-1], q.dtype)
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    native.step(
        q=_array(q if isinstance(m, float) else q * m),
        key=_array(k.to(q.dtype)),
        value=_array(v),
        codebook=_array(codebook.to(q.dtype)),
        bias=None if bias is None else _array(bias.to(q.dtype)),
        mask=None if key_mask is None else _array(key_mask),
        count=_array(state.count),
        mean=_array(state.mean),
        recent_codes=_array(state.recent_codes),
        recent_values=_array(state.recent_values),
        seen=_array(state.seen),
        out=_array(out),
        scale=m if isinstance(m, float) else 1.0,
        position=state.position,
        window=near,
    )
    state.position += 1
    return out


def _array(x: Tensor) -> object:
    """A tensor for the native side; this way takes a tenth of the time of handing over the tensor itself."""
    return to_dlpack(x if x.is_contiguous() else x.contiguous())


def _answer(out: Tensor, state: VQState | None, return_state: bool) -> Tensor | tuple[Tensor, VQState]:
    return (out, state) if return_state and state is not None else out


@dataclass(frozen=True)
class _Turn:
    """Rotation by absolute position, the first token standing at `first`."""

    rotary: Rotary
    first: int

    @property
    def factor(self) -> float:
        return frequencies(self.rotary)[1]

    def rotate(self, x: Tensor, *, at: int | None = None, before: int = 0, back: bool = False) -> Tensor:
        """x [b h n d] turned by its positions, which begin `before` tokens before the first, or all `at` one."""
        n = x.shape[2]
        position = torch.arange(n, device=x.device) + (self.first - before)
        if at is not None:
            position = torch.full_like(position, at)
        angles, _ = frequencies(self.rotary)
        return rotate(x, -position if back else position, angles, interleaved=self.rotary.interleaved)


@dataclass(frozen=True)
class _Call:
    """What is fixed for one call, beside its tensors."""

    block: int
    reach: int
    window: int
    recent: int
    causal: bool
    key_grad: KeyGradient
    first: int
    turn: _Turn | None
    scale: float


def _multiplier(
    scale: float | Tensor | ScaleRule | None,
    codes: Tensor,
    state: VQState | None,
    causal: bool,
    head_dim: int,
    dtype: torch.dtype,
) -> Tensor | float:
    """m, as a number or as something that broadcasts to [b h t 1]."""
    if scale is None or isinstance(scale, (int, float)):
        return _number(scale, head_dim)
    if isinstance(scale, Tensor):
        return scale[..., None].to(dtype)
    seen = (codes[:, 0] >= 0).cumsum(-1)
    if not causal:
        seen = seen[:, -1:].expand_as(seen)
    if state is not None:
        seen = seen + state.seen[:, None]
    m = scale(seen.clamp(min=1).double(), head_dim=head_dim)
    by_head = m.movedim(0, 1) if m.ndim == 3 else m[:, None]
    return by_head[..., None].to(dtype)


def _number(scale: float | None, head_dim: int) -> float:
    return float(head_dim**-0.5 if scale is None else scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        q_near: Tensor | None,
        k: Tensor,
        v: Tensor,
        codebook: Tensor,
        bias: Tensor | None,
        codes: Tensor,
        state: VQState | None,
        call: _Call,
    ) -> Tensor:
        ctx.past = None if state is None or call.recent == 0 else state.last(call.recent)
        start = None if state is None else sweep.Far(state.count.to(v.dtype), state.mean.to(v.dtype)).clone()
        run = kernel.forward if q.device.type == "cpu" else sweep.forward
        merged: tuple[Tensor, Tensor] | None = None
        for plan, inputs, flipped in _runs(call, q, q_near, v, codebook, bias, codes, ctx.past):
            far = sweep.Far.empty(inputs) if start is None else start.clone()
            with own_precision(q.device):
                out, lse = run(plan, inputs, far)
            part = (out.flip(3), lse.flip(3)) if flipped else (out, lse)
            merged = part if merged is None else _merge(*merged, *part)
        assert merged is not None
        out, lse = merged
        if state is not None:
            state.count.copy_(far.count)
            state.mean.copy_(far.mean)
            state.push(codes, v)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, q_near, v, codebook, bias, codes, out, lse)
            ctx.call, ctx.start, ctx.k_dtype = call, start, k.dtype
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with own_precision(grad.device):
            return _backward(ctx, grad)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, q_near, v, codebook, bias, codes, out, lse = ctx.saved_tensors
    call: _Call = ctx.call
    wanted = ctx.needs_input_grad[2] and call.key_grad != "none"
    dot = torch.linalg.vecdot(out, grad)
    total: list[Tensor | None] = [None] * 6
    runs = _runs(call, q, q_near, v, codebook, bias, codes, ctx.past)
    for plan, inputs, flipped in runs:
        far = sweep.Far.empty(inputs) if ctx.start is None else ctx.start
        rows = tuple(x.flip(3) if flipped else x for x in (lse, grad, dot))
        parts = _run_backward(call, plan, inputs, far, rows, wanted, ctx.needs_input_grad[4], flipped)
        if flipped:
            parts = [
                None if x is None else x.flip(axis) for x, axis in zip(parts, (3, 3, 2, 2), strict=False)
            ] + [
                parts[4],
                parts[5],
            ]
        if parts[5] is not None and not call.causal:
            w = call.window - 1
            parts[5] = torch.nn.functional.pad(
                parts[5].flip(-1) if flipped else parts[5], (0, w) if flipped else (w, 0)
            )
        total = [
            new if old is None else old if new is None else old + new
            for old, new in zip(total, parts, strict=True)
        ]
    d_k = None if total[2] is None else total[2].to(ctx.k_dtype)
    return (total[0], total[1], d_k, total[3], total[4], total[5], None, None, None)


def _run_backward(
    call: _Call,
    plan: sweep.Plan,
    inputs: sweep.Inputs,
    far: sweep.Far,
    rows: tuple[Tensor, ...],
    wanted: bool,
    codebook: bool,
    flipped: bool,
) -> list[Tensor | None]:
    """Gradients of q, q_near, k, v, codebook and bias from one sweep, in its own order of time.

    wanted: the keys' gradient is."""
    pairs = wanted and (call.key_grad == "local" or _pairs_cost_less(inputs))
    # seen backwards, position p stands at -1 - p
    first = -(call.first + inputs.length) if flipped else call.first
    if inputs.q.device.type == "cpu" and inputs.q_near is None:
        hears = None
        if wanted and call.key_grad == "local":
            hears = (first, call.reach, call.reach)
        elif wanted:
            hears = (0, inputs.length, 0) if pairs else (0, plan.block, plan.recent)
        grads = kernel.backward(plan, inputs, far, *rows, hears=hears, codebook=codebook)
        if grads.k is not None and not pairs:
            keys.far_part(grads.k, plan, inputs, *rows)
        return [grads.q, None, grads.k, grads.v, grads.codebook, grads.bias]
    grads = sweep.backward(plan, inputs, far, *rows, keys=wanted and not pairs, codebook=codebook)
    d_k, d_near = grads.k, grads.k_near
    if d_near is not None and call.turn is not None:
        d_near = call.turn.rotate(d_near, before=plan.recent, back=True)
        if grads.codebook is not None:
            sweep.add_by_code(grads.codebook, inputs.codes, d_near)
        d_k = None if d_k is None else d_k + d_near
    if d_k is not None:
        d_k = d_k[:, :, plan.recent :]
    if pairs:
        blocks = 2 if call.key_grad == "local" else None
        d_k, d_near = keys.by_pairs(plan, inputs, *rows, first=first, reach=call.reach, blocks=blocks)
        if d_near is not None and call.turn is not None:
            d_k = d_k + call.turn.rotate(d_near, back=True)
    return [grads.q, grads.q_near, d_k, grads.v[:, :, plan.recent :], grads.codebook, grads.bias]


def _pairs_cost_less(inputs: sweep.Inputs) -> bool:
    """Whether all pairs of a short sequence cost less than the sums over codes, which are d x e each."""
    s, d = inputs.codebook.shape[1:]
    e, t, heads = inputs.v.shape[-1], inputs.length, inputs.q.shape[2]
    return heads * t * (2 * d + e) < 2 * heads * s * d * e


def _runs(
    call: _Call,
    q: Tensor,
    q_near: Tensor | None,
    v: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    past: tuple[Tensor, Tensor] | None,
) -> Iterator[tuple[sweep.Plan, sweep.Inputs, bool]]:
    """The sweeps of a call: one for a decoder; for an encoder one each way, the second without the diagonal."""
    single, values = _with_past(call.recent, codes, v, past)
    k_near = None
    if call.turn is not None:
        keys = sweep.look_up(codebook, single)
        k_near = call.turn.rotate(keys, before=call.recent)
    ahead = bias if call.causal or bias is None else bias[..., call.window - 1 :]
    yield (
        sweep.Plan(call.block, call.window, call.recent),
        sweep.Inputs(q, q_near, k_near, values, single, codebook, ahead, call.scale),
        False,
    )
    if not call.causal:
        single, values = _with_past(call.recent, codes.flip(2), v.flip(2), None)
        behind = None if bias is None else bias[..., : call.window].flip(-1)
        yield (
            sweep.Plan(call.block, call.window, call.recent, strict=True),
            sweep.Inputs(q.flip(3), None, None, values, single, codebook, behind, call.scale),
            True,
        )


def _with_past(
    recent: int, codes: Tensor, v: Tensor, past: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Codes and values with the `recent` keys before them; -1 and 0 where there were none."""
    if recent == 0:
        return codes, v
    b, g, _, e = v.shape
    before = (codes.new_full((b, g, recent), -1), v.new_zeros(b, g, recent, e)) if past is None else past
    return torch.cat([before[0], codes], 2), torch.cat([before[1].to(v.dtype), v], 2)


def _merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts of one softmax, brought together by their log-sum-exp."""
    both = torch.logaddexp(lse, other_lse)
    level = both.clamp(min=torch.finfo(both.dtype).min)
    return out * (lse - level).exp()[..., None] + other * (other_lse - level).exp()[..., None], both
