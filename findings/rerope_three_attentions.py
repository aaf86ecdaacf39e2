"""ReRoPE as three plain causal attentions: that it is exact, forward and backward, and what it costs.

    python findings/rerope_three_attentions.py [--quick]

prints every number of docs/findings/rerope-three-attentions.md. Times are processor seconds of one thread,
medians of interleaved repeats, rotation included.
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lmlab.benchmarks.rope import published, rival_tables, rotate_half, rotated_sdpa
from torch import Tensor

from lmlab.attention import attend
from lmlab.lab.bench import compare
from lmlab.rope import LeakyReRoPE, ReRoPE, Rotary, SelfExtend, frequencies, rotate
from lmlab.rope.band import SplitMethod
from lmlab.rope.reference import attend_reference

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Three(torch.autograd.Function):
    """softmax over j <= i of (q1·k1 where i − j < w, else q2·k2)/√d, times v; all [b h t d], equal heads."""

    @staticmethod
    def forward(ctx: Any, q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, w: int) -> Tensor:
        t = v.shape[2]
        out, lse = _plain(diagonal(q1, w), diagonal(k1, w), diagonal(v, w))
        out, lse = blocks_of(out, v, w), blocks_of(lse, v, w)
        if t > w > 1:
            some = _plain(after_queries(q1, w), after_keys(k1, w), after_keys(v, w))
            _merge(out[:, :, 1:, :-1], lse[:, :, 1:, :-1], *(back_after(x, v) for x in some))
        out, lse = whole(out, t), whole(lse, t)
        if t > w:
            _merge(out[:, :, w:], lse[:, :, w:], *_plain(q2[:, :, w:], k2[:, :, :-w], v[:, :, :-w]))
        ctx.save_for_backward(q1, k1, q2, k2, v, out, lse)
        ctx.w = w
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Each piece's own backward kernel; out and log-sum-exp are those of the merged row."""
        q1, k1, q2, k2, v, out, lse = ctx.saved_tensors
        w, t, grad = ctx.w, v.shape[2], grads[0].contiguous()
        parts = _plain_backward(
            *(diagonal(x, w) for x in (grad, q1, k1, v, out)), diagonal(lse[..., None], w)[..., 0]
        )
        d_q1, d_k1, d_v = (blocks_of(x, v, w).clone() for x in parts)
        if t > w > 1:
            queries = [after_queries(x, w) for x in (grad, q1, out, lse[..., None])]
            parts = _plain_backward(
                *queries[:2], after_keys(k1, w), after_keys(v, w), queries[2], queries[3][..., 0]
            )
            more_q, more_k, more_v = (back_after(x, v) for x in parts)
            d_q1[:, :, 1:, :-1] += more_q
            d_k1[:, :, :-1, 1:] += more_k
            d_v[:, :, :-1, 1:] += more_v
        d_q1, d_k1, d_v = (whole(x, t) for x in (d_q1, d_k1, d_v))
        d_q2, d_k2 = torch.zeros_like(q2), torch.zeros_like(k2)
        if t > w:
            d_q2[:, :, w:], d_k2[:, :, :-w], more_v = _plain_backward(
                grad[:, :, w:], q2[:, :, w:], k2[:, :, :-w], v[:, :, :-w], out[:, :, w:], lse[:, :, w:]
            )
            d_v[:, :, :-w] += more_v
        return d_q1, d_k1, d_q2, d_k2, d_v, None


def blocks(x: Tensor, w: int) -> Tensor:
    """[b h t d] -> [b h n w d], zeros on the right: causality makes them harmless."""
    b, h, t, d = x.shape
    return torch.nn.functional.pad(x, (0, 0, 0, -t % w)).reshape(b, h, -1, w, d)


def diagonal(x: Tensor, w: int) -> Tensor:
    """Every block by itself, as a batch of heads."""
    return blocks(x, w).flatten(1, 2)


def after_queries(x: Tensor, w: int) -> Tensor:
    """Row c of a block needs the keys a > c of the block before: against causality, so both run backwards
    in time, and one step apart: then key a' of w − 1 is seen by query c' of w − 1 where a' <= c'."""
    return blocks(x, w)[:, :, 1:].flip(3)[:, :, :, 1:].flatten(1, 2)


def after_keys(x: Tensor, w: int) -> Tensor:
    return blocks(x, w)[:, :, :-1].flip(3)[:, :, :, :-1].flatten(1, 2)


def back_after(x: Tensor, like: Tensor) -> Tensor:
    return x.unflatten(1, (like.shape[1], -1)).flip(3)


def blocks_of(x: Tensor, like: Tensor, w: int) -> Tensor:
    return x.unflatten(1, (like.shape[1], -1))


def whole(x: Tensor, t: int) -> Tensor:
    return x.flatten(2, 3)[:, :, :t].contiguous()


def _plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = _forward(q, k, v, is_causal=True)[:2]
    return out, lse


def _plain_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> list[Tensor]:
    return list(_backward(*(x.contiguous() for x in (grad, q, k, v, out, lse)), 0.0, True))


def _merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    merged = torch.logaddexp(lse, more_lse)
    out.mul_((lse - merged).exp_()[..., None]).add_(more * (more_lse - merged).exp_()[..., None])
    lse.copy_(merged)


def three(q: Tensor, k: Tensor, v: Tensor, method: SplitMethod, rotary: Rotary) -> Tensor:
    """`attend` under ReRoPE, Leaky ReRoPE or Self-Extend, by three stock calls."""
    theta = frequencies(rotary)[0]
    i = torch.arange(q.shape[2])
    far = method.far_query(i.double()), method.far_key(i.double())
    near = rotate(q, i, theta), rotate(k, i, theta)
    return Three.apply(*near, rotate(q, far[0], theta), rotate(k, far[1], theta), v, method.window)


def three_rerope(q: Tensor, k: Tensor, v: Tensor, w: int, cos: Tensor, sin: Tensor) -> Tensor:
    """ReRoPE with ready tables: far queries stand at w, far keys are not rotated."""
    near = rotate_half(q, cos, sin), rotate_half(k, cos, sin)
    return Three.apply(*near, rotate_half(q, cos[w], sin[w]), k, v, w)


def exactness(quick: bool) -> None:
    rotary = Rotary(16, train_length=32)
    lengths = (37,) if quick else (1, 2, 37, 64, 131)
    worst = {"forward": 0.0, "backward": 0.0}
    cases = 0
    for t, make in itertools.product(
        lengths, (ReRoPE, partial(LeakyReRoPE, k=3.7), partial(SelfExtend, group=3))
    ):
        for w in sorted({1, 2, 5, 32, max(1, t - 1), t, t + 1}):
            cases += 1
            method = make(w)
            draw = torch.Generator().manual_seed(t)
            inputs = [
                torch.randn(2, 3, t, 16, generator=draw, dtype=torch.float64).requires_grad_()
                for _ in range(3)
            ]
            weight = torch.randn(2, 3, t, 16, generator=draw, dtype=torch.float64)
            ours = three(*inputs, method, rotary)
            formula = attend_reference(*inputs, rotary=rotary, extension=method)
            worst["forward"] = max(worst["forward"], float((ours - formula).detach().abs().max()))
            got, want = (torch.autograd.grad((x * weight).sum(), inputs) for x in (ours, formula))
            for a, b in zip(got, want, strict=True):
                worst["backward"] = max(
                    worst["backward"], float((a - b).abs().max() / b.abs().max().clamp(min=1))
                )
    print(
        f"{cases} cases of (method, length, window) against the T x T formula, float64, largest difference:"
    )
    print(f"  forward {worst['forward']:.1e}, gradients of q, k, v (relative) {worst['backward']:.1e}")


def pairs(t: int, w: int) -> tuple[int, int]:
    """(i, j) pairs that the three calls compute, with padding; and those of plain causal attention."""
    n = -(-t // w)

    def triangle(side: int) -> int:
        return side * (side + 1) // 2

    return n * triangle(w) + (n - 1) * triangle(w - 1) + triangle(max(0, t - w)), triangle(t)


def cost(quick: bool) -> None:
    sizes = [(256, 32)] if quick else [(4096, 512), (4096, 1024), (8192, 1024)]
    print(
        "\n| T | w | pairs | three calls | one pass | T x T | three, forward + backward | one pass, f + b |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for t, w in sizes:
        draw = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, 2, t, 64, generator=draw) for _ in range(3))
        cos, sin = rival_tables(t)
        rotary = Rotary(64, train_length=2048)
        ways: dict[str, Callable[..., Tensor]] = {
            "plain": partial(rotated_sdpa, cos=cos, sin=sin),
            "three": partial(three_rerope, w=w, cos=cos, sin=sin),
            "one": partial(attend, rotary=rotary, extension=ReRoPE(w)),
        }
        if t <= 4096:
            ways["square"] = partial(published, window=w)
        forward = compare(
            {name: partial(way, q, k, v) for name, way in ways.items()}, repeats=3 if quick else 7
        )
        ratio = {name: taken.median / forward["plain"].median for name, taken in forward.items()}
        leaves = [x.requires_grad_() for x in (q, k, v)]
        grad = torch.randn_like(q)
        both = compare(
            {name: partial(_both, ways[name], leaves, grad) for name in ("plain", "three", "one")},
            repeats=2 if quick else 5,
        )
        double = {name: taken.median / both["plain"].median for name, taken in both.items()}
        computed, plain = pairs(t, w)
        square = f"{ratio['square']:.1f}" if "square" in ratio else "–"
        print(
            f"| {t} | {w} | {computed / plain:.3f} | {ratio['three']:.2f} | {ratio['one']:.2f} | {square} "
            f"| {double['three']:.2f} | {double['one']:.2f} |"
        )
    print("\nRatios to rotation + scaled_dot_product_attention (causal), 2 heads of 64, float32.")


def _both(way: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor) -> object:
    return torch.autograd.grad(way(*leaves), leaves, grad)


def main(quick: bool = False) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exactness(quick)
        cost(quick)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    main(**vars(parser.parse_args()))
