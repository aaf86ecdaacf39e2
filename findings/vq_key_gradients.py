"""Straight-through gradients of every quantised key in linear time: that they are exact, and what they cost.

    python findings/vq_key_gradients.py [--quick]

prints every number of docs/findings/vq-key-gradients.md. Times are processor seconds of one thread, d = e = 64.
"""

import argparse

import torch
from torch import Tensor

from lmlab.attention import assign_codes, vq_attention
from lmlab.lab.bench import compare


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def of_autograd(q: Tensor, k: Tensor, v: Tensor, codebook: Tensor, grad: Tensor) -> Tensor:
    """The T x T softmax, every quantised key a leaf of its own."""
    heads = torch.arange(len(codebook))[:, None]
    leaf = codebook[heads, assign_codes(k, codebook)].requires_grad_()
    t = q.shape[2]
    hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
    logits = q @ leaf.mT * q.shape[-1] ** -0.5
    out = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    (found,) = torch.autograd.grad((out * grad).sum(), leaf)
    return found


def of_ours(q: Tensor, k: Tensor, v: Tensor, codebook: Tensor, grad: Tensor, mode: str) -> Tensor:
    key = k.clone().requires_grad_()
    out = vq_attention(q, key, v, codebook, key_grad=mode)  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    (found,) = torch.autograd.grad((out * grad).sum(), key)
    return found


def exact() -> None:
    worst = 0.0
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        t, s, d, e = (
            int(torch.randint(low, high, (), generator=draw))
            for low, high in ((1, 500), (1, 9), (1, 9), (1, 9))
        )
        tensors = (
            normal(2, 2, t, d, seed=seed), normal(2, 2, t, d, seed=seed + 1), normal(2, 2, t, e, seed=seed + 2),
            normal(2, s, d, seed=seed + 3), normal(2, 2, t, e, seed=seed + 4),
        )  # fmt: skip
        worst = max(worst, float((of_ours(*tensors, "all") - of_autograd(*tensors)).abs().max()))
    print(f"60 shapes, t 1 to 499, float64: largest difference from autograd {worst:.1e}")


def what_is_lost(quick: bool) -> None:
    print("t, codes | norm of the truncated gradient over that of the exact one | cosine")
    for t, s in ((512, 64), (2048, 64), (2048, 256)) if not quick else ((512, 64),):
        tensors = (
            *(normal(1, 1, t, 64, seed=i) for i in range(3)),
            normal(1, s, 64, seed=9),
            normal(1, 1, t, 64, seed=4),
        )
        every, local = of_ours(*tensors, "all"), of_ours(*tensors, "local")
        cosine = float((every * local).sum() / (every.norm() * local.norm()))
        print(f"{t}, {s} | {float(local.norm() / every.norm()):.3f} | {cosine:.3f}")


def cost(quick: bool) -> None:
    torch.set_num_threads(1)
    print(
        "t | milliseconds forward and backward: none | local | all | all, quadratic (torch softmax attention)"
    )
    for t in (2048, 4096) if quick else (4096, 8192, 16384, 32768):
        q, k, v, grad = (normal(1, 1, t, 64, seed=i, dtype=torch.float32) for i in range(4))
        codebook = normal(1, 256, 64, seed=9, dtype=torch.float32)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]

        def run(
            mode: str, leaves: list[Tensor] = leaves, book: Tensor = codebook, grad: Tensor = grad
        ) -> None:
            out = vq_attention(*leaves, book, key_grad=mode)  # type: ignore[arg-type, misc]
            assert isinstance(out, Tensor)
            torch.autograd.grad((out * grad).sum(), leaves, allow_unused=True)

        def plain(leaves: list[Tensor] = leaves, grad: Tensor = grad) -> None:
            out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
            torch.autograd.grad((out * grad).sum(), leaves)

        calls = {mode: lambda mode=mode, run=run: run(mode) for mode in ("none", "local", "all")} | {
            "sdpa": plain
        }
        timing = compare(calls, repeats=1 if quick else 3, clock="cpu")
        print(t, *(f"{1e3 * timing[name].median:.1f}" for name in calls), sep=" | ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    exact()
    what_is_lost(quick)
    cost(quick)
