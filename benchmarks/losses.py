"""`lmlab bench losses`: the fused losses beside torch's cross-entropy and the public code of EMO.

One thread, float32, forward and backward. Where the targets are made up they follow Zipf's law, so that about a
fifth of them are distinct, as in text; the long rows take real text. Memory is the peak of a child process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmlab.lab.bench import Row, benchmark, compare
from lmlab.lab.sources import embedded_sources
from lmlab.losses import Cost, linear_cross_entropy, linear_emo_loss, linear_loss
from lmlab.tokenize import Tokenizer


@benchmark("losses")
def rows(quick: bool) -> Iterator[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _against_torch(quick)
        yield from _against_our_ce(quick)
        yield from _long(quick)
        yield from _memory(quick)
    finally:
        torch.set_num_threads(threads)


def _inputs(n: int, v: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=g).requires_grad_()
    weight = (torch.randn(v, d, generator=g) / d**0.5).requires_grad_()
    # Zipf's law by its inverse: as many words as make a fifth of the targets distinct.
    likely = max(2, n // 3)
    target = (likely ** torch.rand(n, generator=g)).long().clamp(max=v) - 1
    return hidden, weight, torch.randperm(v, generator=g)[target]


def step(loss: Callable[..., Tensor], hidden: Tensor, weight: Tensor, *rest: Any, **options: Any) -> None:
    """Forward and backward, with new gradients."""
    hidden.grad = weight.grad = None
    loss(hidden, weight, *rest, **options).sum().backward()


def plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), target)


def usual(hidden: Tensor, weight: Tensor, target: Tensor, unit: Tensor) -> Tensor:
    """EMO as short as torch allows: one softmax, and the expected unit embedding against the label's."""
    logp = F.linear(hidden, weight).log_softmax(-1)
    ce = F.nll_loss(logp, target, reduction="none")
    emo = 1 - ((logp.exp() @ unit) * unit[target]).sum(-1)
    return (0.5 * (ce + (ce / (emo + 1e-10)).detach().clamp(max=3.0) * emo)).mean()


def published(hidden: Tensor, weight: Tensor, target: Tensor, embedding: Tensor) -> Tensor:
    """The passes of the paper's own code (DRSY/EMO): cross-entropy and softmax apart, a dense one-hot label that
    is normalised, rows of the embedding brought to unit length at each call."""
    logits = F.linear(hidden, weight)
    ce = F.cross_entropy(logits, target, reduction="none")
    label = F.one_hot(target, len(weight)).to(logits.dtype) + 1e-15
    label = label / label.norm(p=1, dim=-1, keepdim=True)
    unit = embedding / embedding.norm(dim=1, keepdim=True)
    p = logits.log_softmax(-1).exp()
    emo = 1 - ((label @ unit) * (p @ unit)).sum(-1)
    return (0.5 * (ce + (ce / (emo + 1e-10)).detach() * emo)).mean()


def _row(what: str, rival: str, ours: float, theirs: float, target: str, note: str = "") -> Row:
    """Ratio ours / theirs for a target "<=", theirs / ours for ">="."""
    ratio = theirs / ours if target.startswith(">") else ours / theirs
    return Row(what, rival=rival, ours=ours, theirs=theirs, ratio=ratio, target=target, note=note)


def _against_torch(quick: bool) -> Iterator[Row]:
    n, v, d = (64, 1000, 32) if quick else (512, 32_000, 256)
    hidden, weight, target = _inputs(n, v, d)
    distinct = len(target.unique()) / n
    cost = Cost.frozen(weight)
    unit = F.normalize(weight.detach(), dim=1)
    cases = {
        "ce": partial(step, linear_cross_entropy, hidden, weight, target),
        "emo": partial(step, linear_emo_loss, hidden, weight, target, cost),
        "plain": partial(step, plain, hidden, weight, target),
        "usual": partial(step, usual, hidden, weight, target, unit),
        "published": partial(step, published, hidden, weight, target, weight.detach()),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # torch >= 2.13
        chunked = torch.nn.LinearCrossEntropyOptions()
        cases["fused"] = partial(step, F.linear_cross_entropy, hidden, weight, target, options=chunked)
    t = {name: timing.median for name, timing in compare(cases, repeats=3 if quick else 9).items()}
    size = f"n = {n}, v = {v:,}, d = k = {d}, distinct targets {distinct:.2f}"
    yield _row("CE", "F.linear, F.cross_entropy", t["ce"], t["plain"], "<= 0.75", size)
    yield _row("CE + EMO", "our CE", t["emo"], t["ce"], "<= 1.12")
    yield _row("CE + EMO", "F.linear, F.cross_entropy", t["emo"], t["plain"], "<= 0.90")
    yield _row("CE + EMO", "EMO, gathered labels", t["emo"], t["usual"], ">= 2.0")
    yield _row("CE + EMO", "EMO as in its repository, one-hot labels", t["emo"], t["published"], ">= 2.5")
    if "fused" in t:
        yield _row("CE + EMO", "F.linear_cross_entropy with options (CE)", t["emo"], t["fused"], "<= 1.15")


def _against_our_ce(quick: bool) -> Iterator[Row]:
    n, v, d = (64, 1000, 32) if quick else (512, 32_000, 256)
    hidden, weight, target = _inputs(n, v, d)
    low = Cost.frozen(weight, rank=d // 4)
    cases = {
        "CE": partial(step, linear_cross_entropy, hidden, weight, target),
        "low": partial(step, linear_emo_loss, hidden, weight, target, low),
        "focal": partial(step, linear_loss, hidden, weight, target, "focal"),
        "DFT": partial(step, linear_loss, hidden, weight, target, "dft"),
        "TaiLr": partial(step, linear_loss, hidden, weight, target, "tailr"),
        "z-loss": partial(step, linear_cross_entropy, hidden, weight, target, z_loss=1e-4),
        "smoothing": partial(step, linear_cross_entropy, hidden, weight, target, label_smoothing=0.1),
        'reduction="none"': partial(step, linear_cross_entropy, hidden, weight, target, reduction="none"),
        "frozen head": partial(step, linear_cross_entropy, hidden, weight.detach(), target),
    }
    t = {name: timing.median for name, timing in compare(cases, repeats=3 if quick else 9).items()}
    yield _row(f"CE + EMO, rank d/4 = {d // 4}", "our CE", t["low"], t["CE"], "<= 1.04")
    for name in ("focal", "DFT", "TaiLr", "z-loss", "smoothing"):
        yield _row(name, "our CE", t[name], t["CE"], "<= 1.03")
    yield _row('reduction="none"', "our CE, mean", t['reduction="none"'], t["CE"], "<= 1.40")
    yield _row("frozen head", "our CE", t["frozen head"], t["CE"], "<= 0.75")


def _text(n: int, v: int) -> Tensor:
    """n tokens of the English sample text, by a tokenizer of v words that was trained on it."""
    (source,) = embedded_sources("sample-kjv")
    with source.open() as file:
        text = file.read().decode()
    tokenizer = Tokenizer.train([text[: 300 * v]], vocab_size=v)
    return torch.tensor(tokenizer.encode(text[: 8 * n])[:n])


def _long(quick: bool) -> Iterator[Row]:
    n, v, d = (128, 1000, 32) if quick else (8192, 4096, 256)
    hidden, weight, _ = _inputs(n, v, d)
    target = _text(n, v)
    cases = {
        "CE": partial(step, linear_cross_entropy, hidden, weight, target),
        "EMO": partial(step, linear_emo_loss, hidden, weight, target, Cost.frozen(weight)),
        "low": partial(step, linear_emo_loss, hidden, weight, target, Cost.frozen(weight, rank=d // 4)),
    }
    t = {name: timing.median for name, timing in compare(cases, repeats=3 if quick else 11).items()}
    note = f"v = {v:,}, distinct targets {len(target.unique()) / n:.2f}"
    what = f"CE + EMO, {n:,} tokens of text"
    yield _row(what, "our CE", t["EMO"], t["CE"], "<= 1.08", note)
    yield _row(f"{what}, rank {d // 4}", "our CE", t["low"], t["CE"], "<= 1.04")


def _memory(quick: bool) -> Iterator[Row]:
    d = 64
    # A process's peak survives exec, so the child is started by a parent that has loaded nothing.
    parent = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"
    sizes = [(512, 2048)] if quick else [(16_384, 65_536), (4096, 131_072), (16_384, 131_072)]
    for n, v in sizes:
        child = [sys.executable, "-S", "-c", parent, "-c", _CHILD, str(n), str(v), str(d)]
        ran = subprocess.run(child, capture_output=True, text=True, check=True)
        extra = float(ran.stdout) / 2**20
        yield Row(
            f"CE + EMO, extra peak memory at (n, v) = ({n:,}, {v:,})",
            rival="EMO with logits: at least 6 · n · v floats",
            ours=extra,
            theirs=6 * 4 * n * v / 2**20,
            unit="MiB",
            ratio=extra,
            target=f"<= {64 * 1.05:g}",
            note="beyond inputs and gradients; the budget is 64 MiB",
        )


_CHILD = """
import resource, sys
import torch
from lmlab.losses import Cost, linear_emo_loss
torch.set_num_threads(1)
n, v, d = map(int, sys.argv[1:])
warm = torch.randn(8, 64, requires_grad=True), torch.randn(80, 64, requires_grad=True)
linear_emo_loss(*warm, torch.zeros(8, dtype=torch.int64), Cost.frozen(warm[1])).backward()
hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
cost, target = Cost.frozen(weight), torch.randint(0, v, (n,)) // 8
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
linear_emo_loss(hidden, weight, target, cost).backward()
print(peak() - before - 4 * (n + v) * d)
"""
