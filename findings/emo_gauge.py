"""The gauge of EMO's cost: shift the head and the loss moves, centre it and it stays.

    python findings/emo_gauge.py [--quick]

prints every number of docs/findings/emo-gauge.md. A factored bigram model (hidden states are a table, one row a
word) is trained by cross-entropy on the English sample text; then its head W [v d] becomes W + 1 xᵀ, which changes
no probability, and every loss is asked again. One thread, some seconds.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.lab.sources import embedded_sources
from lmlab.losses import EMO, Cost, linear_cross_entropy, linear_emo_loss, named_loss
from lmlab.tokenize import Tokenizer

DTYPE = torch.float64


@dataclass(frozen=True)
class Bigrams:
    """Words and the words after them, and a model of them: logits = hidden[word] · weightᵀ."""

    words: Tensor
    after: Tensor
    hidden: Tensor
    weight: Tensor

    def batch(self, seed: int, n: int) -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(self.words), (n,), generator=torch.Generator().manual_seed(seed))
        return self.words[pick], self.after[pick]


def text(v: int) -> Tensor:
    (source,) = embedded_sources("sample-kjv")
    with source.open() as file:
        sample = file.read().decode()[: 400 * v]
    return torch.tensor(Tokenizer.train([sample], vocab_size=v).encode(sample))


def trained(ids: Tensor, v: int, d: int, steps: int, optimiser: str) -> tuple[Bigrams, float]:
    """The model after `steps` steps from one start; and how far the head's mean row went, in mean row lengths."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(v, d, generator=g, dtype=DTYPE).requires_grad_()
    weight = (torch.randn(v, d, generator=g, dtype=DTYPE) * d**-0.5).requires_grad_()
    start = weight.detach().mean(0)
    bigrams = Bigrams(ids[:-1], ids[1:], hidden, weight)
    make = {"Adam": lambda p: torch.optim.Adam(p, lr=0.02), "SGD": lambda p: torch.optim.SGD(p, lr=5.0)}
    steer = make[optimiser]([hidden, weight])
    for step in range(steps):
        words, after = bigrams.batch(step, 1024)
        steer.zero_grad()
        linear_cross_entropy(hidden[words], weight, after).backward()
        steer.step()
    went = (weight.detach().mean(0) - start).norm() / weight.detach().norm(dim=1).mean()
    return Bigrams(ids[:-1], ids[1:], hidden.detach(), weight.detach()), float(went)


def shifts(weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """x of W + 1 xᵀ: none, one that takes the mean row away, and one direction, in mean lengths of a row."""
    yield "0", torch.zeros_like(weight[0])
    yield "minus the mean row", -weight.mean(0)
    direction = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    direction *= weight.norm(dim=1).mean() / direction.norm()
    for times in (1, 4, 16):
        yield f"{times} row lengths", times * direction


def measure(model: Bigrams, weight: Tensor, center: bool) -> dict[str, float | Tensor]:
    """CE, EMO, the gradient that each name gives to the head: on one batch."""
    words, after = model.batch(10**6, 2048)
    hidden, weight = model.hidden[words], weight.clone().requires_grad_()
    cost = Cost.frozen(weight, center=center)
    _, stats = linear_emo_loss(hidden, weight, after, cost, return_stats=True)
    assert stats.emo is not None
    found: dict[str, float | Tensor] = {"ce": float(stats.ce.mean()), "emo": float(stats.emo.mean())}
    found["share"] = float((stats.emo / -torch.expm1(-stats.ce)).mean())
    for name, loss in {"emo": EMO("none", ce=0.0), "paper": named_loss("emo-paper")}.items():
        value = linear_emo_loss(hidden, weight, after, cost, loss)
        found[f"d {name}"] = torch.autograd.grad(value, weight)[0].flatten()
    return found


def tuned(model: Bigrams, weight: Tensor, center: bool, steps: int) -> float:
    """CE on other text after some steps of CE + EMO by plain gradient descent, from W + 1 xᵀ."""
    hidden, weight = model.hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    cost = Cost.frozen(weight, center=center)
    for step in range(steps):
        words, after = model.batch(2 * 10**6 + step, 1024)
        value = linear_emo_loss(hidden[words], weight, after, cost, named_loss("emo"))
        for leaf, grad in zip((hidden, weight), torch.autograd.grad(value, (hidden, weight)), strict=True):
            leaf.data -= 5.0 * grad
    words, after = model.batch(3 * 10**6, 8192)
    with torch.no_grad():
        return float(linear_cross_entropy(hidden[words], weight, after))


def main(quick: bool = False) -> None:
    torch.set_num_threads(1)
    v, d, steps = (300, 8, 20) if quick else (1024, 64, 400)
    ids = text(v)
    model, went = trained(ids, v, d, steps, "Adam")
    _, still = trained(ids, v, d, steps, "SGD")
    print(f"v = {v}, d = {d}, {steps} steps; the head's mean row went {went:.3f} (Adam), {still:.1e} (SGD)")
    unit = torch.nn.functional.normalize(model.weight, dim=1)
    centred = torch.nn.functional.normalize(model.weight - model.weight.mean(0), dim=1)
    apart = ~torch.eye(v, dtype=torch.bool)
    print("mean cosine between rows:", *(f"{float((u @ u.T)[apart].mean()):.3f}" for u in (unit, centred)))
    fine = 10 if quick else 100
    for center in (False, True):
        print(
            f"\ncentre = {center}\nshift x | CE | EMO | EMO / (1 − p_t) | cos dEMO | cos d emo-paper | CE tuned"
        )
        base = measure(model, model.weight, center)
        for name, x in shifts(model.weight):
            weight = model.weight + x
            now = measure(model, weight, center)
            angles = [
                float(torch.nn.functional.cosine_similarity(now[key], base[key], dim=0))
                for key in ("d emo", "d paper")
            ]
            after = tuned(model, weight, center, fine)
            print(
                f"{name} | {now['ce']:.6f} | {now['emo']:.6f} | {now['share']:.6f} | "
                f"{angles[0]:.4f} | {angles[1]:.4f} | {after:.6f}"
            )
        spread = max(
            abs(measure(model, model.weight + x, center)["emo"] - base["emo"])
            for _, x in shifts(model.weight)
        )
        print(f"EMO moves by at most {spread:.1e}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--quick", action="store_true", help="small sizes, for a test that it runs")
    main(**vars(arguments.parse_args()))
