"""`VQAttention`, the mixer "vq": projections around `vq_attention` and a codebook that follows the keys."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lmlab._linear import Linear
from lmlab.attention.options import VQOptions
from lmlab.attention.scale import InverseSqrt, ScaleRule, check_rule
from lmlab.attention.vq.codebook import Codebook, CodebookStats
from lmlab.attention.vq.function import vq_attention
from lmlab.attention.vq.state import VQState
from lmlab.rope import Rotary

NORM_EPS = 1e-6


class VQAttention(nn.Module):
    """x [b t m] -> y [b t m] by causal attention over quantised keys, in time linear in t.

    q, k, v (and the gate) come from one projection; with `normalise` q and k are RMS-normalised over their
    width, without gain; values pass through SiLU; `gate`: y = W_o (o * silu(W_g x)). The gated attention unit
    of Transformer-VQ is n_heads=1, head_dim=128, value_dim=2 d_model, gate=True.

    n_kv_heads: None, n_heads. head_dim: None, d_model / n_heads. value_dim, a head: None, head_dim.
    scale: a number, a rule, or None for 1/sqrt(head_dim). The first training batch fits the codes by k-means;
    call `step_codebooks(model)` after each optimiser step.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        options: VQOptions = VQOptions(),
        scale: ScaleRule | float | None = None,
    ) -> None:
        super().__init__()
        kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if n_heads < 1 or kv_heads < 1 or n_heads % kv_heads:
            raise ValueError(f"n_heads must be a multiple of n_kv_heads, got {n_heads} and {kv_heads}")
        if head_dim is None and d_model % n_heads:
            raise ValueError(f"d_model = {d_model} is no multiple of n_heads = {n_heads}: give head_dim")
        if scale is not None and not isinstance(scale, (int, float)):
            check_rule(scale, "scale")
        self.options, self.heads, self.kv_heads = options, n_heads, kv_heads
        self.head_dim = d_model // n_heads if head_dim is None else head_dim
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.widths = [n_heads * self.head_dim, kv_heads * self.head_dim, kv_heads * self.value_dim]
        if options.gate:
            self.widths.append(n_heads * self.value_dim)
        self.qkv = Linear(d_model, sum(self.widths), bias=False)
        self.out = Linear(n_heads * self.value_dim, d_model, bias=False)
        self.codebook = Codebook(
            kv_heads, options.codes, self.head_dim, decay=options.decay, revive=options.revive
        )
        self.scale: ScaleRule | float = InverseSqrt() if scale is None else scale
        self.bias: nn.Parameter | None = None
        self.rotary: Rotary | None = None
        if options.position == "bias":
            self.bias = nn.Parameter(torch.zeros(n_heads, options.window))
        elif options.position == "rotary":
            self.rotary = Rotary(self.head_dim, base=options.rope_base)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        state: VQState | None = None,
        *,
        key_mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t m"], VQState | None, Tensor | None]:
        """(y, state, aux): a given state moves by t positions; aux is the weighted commitment in training."""
        b, t, _ = x.shape
        parts = self.qkv(x).split(self.widths, -1)
        q, k, v = (
            part.view(b, t, -1, width).transpose(1, 2)
            for part, width in zip(parts, (self.head_dim, self.head_dim, self.value_dim), strict=False)
        )
        if self.options.normalise:
            q, k = _unit_rms(q), _unit_rms(k)
        codes, aux = None, None
        if self.training and state is None:
            _, codes, commitment = self.codebook(k, key_mask)
            aux = commitment * self.options.commitment
        o = vq_attention(
            q,
            k,
            nn.functional.silu(v),
            self.codebook.embedding,
            scale=self.scale,
            bias=self.bias,
            rotary=self.rotary,
            window=None if self.rotary is None else self.options.window,
            key_mask=key_mask,
            codes=codes,
            state=state,
            key_grad=self.options.key_grad,
            block=self.options.block,
        )
        assert isinstance(o, Tensor)
        o = o.transpose(1, 2).reshape(b, t, -1)
        if self.options.gate:
            o = o * nn.functional.silu(parts[3])
        y: Tensor = self.out(o)
        return y, state, aux

    def init_state(self, batch_size: int, max_length: int | None = None) -> VQState:
        """The state before the first token; it doesn't grow, so max_length isn't used."""
        window = 0 if self.options.position == "none" else self.options.window
        return VQState.empty(
            batch_size,
            self.kv_heads,
            self.options.codes,
            self.value_dim,
            window=window,
            device=self.out.weight.device,
            dtype=torch.promote_types(self.out.weight.dtype, torch.float32),
        )

    def flops_per_token(self, length: int) -> int:
        """Forward: projections, assignment, and attention to s codes and the keys of the window."""
        single = 0 if self.options.position == "none" else self.options.window
        pairs = self.heads * 2 * (self.head_dim + self.value_dim) * (self.options.codes + single)
        assign = self.kv_heads * 2 * self.head_dim * self.options.codes
        return 2 * (self.qkv.weight.numel() + self.out.weight.numel()) + assign + pairs


def _unit_rms(x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h t d"]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


def step_codebooks(model: nn.Module) -> dict[str, CodebookStats]:
    """`Codebook.step` for every codebook of the model, by name; call it after `optimizer.step()`."""
    return {name: module.step() for name, module in model.named_modules() if isinstance(module, Codebook)}
