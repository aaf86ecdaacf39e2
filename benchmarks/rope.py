"""`lmlab bench rope`: attention under length extensions, against rotation and torch's causal kernel.

The rival rotates q and k from ready tables, as Llama does, and calls scaled_dot_product_attention. Ours
rotates too, each part of the band by itself.
"""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmlab.attention import attend
from lmlab.lab.bench import Row, benchmark, compare
from lmlab.rope import DCA, LogN, ReRoPE, Rotary, SelfExtend, Window
from lmlab.rope.reference import attend_reference

ROTARY = Rotary(64, train_length=2048)


@benchmark("rope")
def rows(quick: bool) -> Iterator[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _speed(quick)
        yield from _decoding(quick)
        yield _memory(quick)
        yield _error(quick)
    finally:
        torch.set_num_threads(threads)


def _speed(quick: bool) -> Iterator[Row]:
    length, long = (256, 512) if quick else (4096, 8192)
    repeats = 3 if quick else 7
    full = length // 8, length // 4
    for window in full:
        yield _forward(length, ReRoPE(window), "<= 1.25", repeats)
    yield _forward(long, ReRoPE(full[1]), "<= 1.12", repeats)
    for method in (Window(full[0], 4), SelfExtend(full[0], 8), DCA(full[1], full[0] // 4), LogN(), None):
        yield _forward(length, method, "", repeats)
    yield _backward(length, ReRoPE(full[0]), "<= 1.20", repeats)

    q, k, v = _inputs(length)
    ours = partial(attend, q, k, v, rotary=ROTARY, extension=ReRoPE(full[0]))
    t = compare({"ours": ours, "square": partial(published, q, k, v, full[0])}, repeats=3)
    ratio = t["square"].median / t["ours"].median
    yield Row(
        f"ReRoPE({full[0]}) forward, T = {length}",
        rival="two T x T logit matrices, torch.where",
        ours=t["ours"].median,
        theirs=t["square"].median,
        ratio=ratio,
        target=">= 8",
    )


def _forward(length: int, method: Any, target: str, repeats: int) -> Row:
    q, k, v = _inputs(length)
    cos, sin = rival_tables(length)
    t = compare(
        {
            "ours": partial(attend, q, k, v, rotary=ROTARY, extension=method),
            "torch": partial(rotated_sdpa, q, k, v, cos, sin),
        },
        repeats=repeats,
    )
    return Row(
        f"{method or 'no extension'} forward, T = {length}",
        rival="rotation + SDPA causal",
        ours=t["ours"].median,
        theirs=t["torch"].median,
        ratio=t["ours"].median / t["torch"].median,
        target=target,
        note="2 heads of 64, float32",
    )


def _backward(length: int, method: Any, target: str, repeats: int) -> Row:
    leaves = [x.requires_grad_() for x in _inputs(length)]
    grad = torch.randn_like(leaves[0])
    cos, sin = rival_tables(length)

    def both(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), leaves, grad)

    t = compare(
        {
            "ours": both(partial(attend, *leaves, rotary=ROTARY, extension=method)),
            "torch": both(partial(rotated_sdpa, *leaves, cos, sin)),
        },
        repeats=repeats,
    )
    return Row(
        f"{method} forward + backward, T = {length}",
        rival="rotation + SDPA causal",
        ours=t["ours"].median,
        theirs=t["torch"].median,
        ratio=t["ours"].median / t["torch"].median,
        target=target,
        note="2 heads of 64, float32",
    )


def _decoding(quick: bool) -> Iterator[Row]:
    length = 256 if quick else 4096
    q, k, v = _inputs(length, heads=8)
    q = q[:, :, -1:]
    cos, sin = rival_tables(length)
    turned = rotate_half(k, cos, sin)

    def rival() -> Tensor:
        last = rotate_half(q, cos[-1:], sin[-1:])
        return torch.nn.functional.scaled_dot_product_attention(last, turned, v)

    ours = partial(attend, q, k, v, rotary=ROTARY, extension=ReRoPE(length // 8), offset=length - 1)
    t = compare({"ours": ours, "torch": rival}, repeats=9, least=0.01)
    yield Row(
        f"ReRoPE({length // 8}) decode step, {length} cached keys",
        rival="SDPA over rotated keys",
        ours=t["ours"].median,
        theirs=t["torch"].median,
        ratio=t["ours"].median / t["torch"].median,
        note="8 heads of 64; the cache of ours is un-rotated: the window's keys are turned at every step",
    )


def _memory(quick: bool) -> Row:
    length = 512 if quick else 16000
    program = f"from lmlab.benchmarks.rope import peak; peak({length})"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    mebibytes = float(ran.stdout)
    return Row(
        f"ReRoPE extra memory, T = {length}, one head of 16",
        ours=mebibytes,
        unit="MiB",
        ratio=mebibytes,
        target="<= 64",
    )


def peak(length: int) -> None:
    """Prints the MiB by which a forward raises the peak of this process."""
    torch.set_num_threads(1)
    rotary = Rotary(16, train_length=2048)
    attend(*_inputs(64, heads=1, dim=16), rotary=rotary, extension=ReRoPE(16))  # what is loaded once
    q, k, v = _inputs(length, heads=1, dim=16)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak so far is forgotten
    before = _peak_kibibytes()
    attend(q, k, v, rotary=rotary, extension=ReRoPE(1024))
    print((_peak_kibibytes() - before) / 1024)


def _peak_kibibytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def _error(quick: bool) -> Row:
    length = 100 if quick else 700
    q, k, v = _inputs(length, dtype=torch.float64)
    call: dict[str, Any] = {"rotary": ROTARY, "extension": ReRoPE(length // 5) | LogN()}
    error = float((attend(q, k, v, **call) - attend_reference(q, k, v, **call)).abs().max())
    return Row(
        f"ReRoPE + LogN, float64, T = {length}",
        rival="T x T formula",
        ours=error,
        unit="",
        ratio=error,
        target="<= 1e-13",
        note="largest difference",
    )


def _inputs(
    length: int, *, heads: int = 2, dim: int = 64, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, dim, generator=draw, dtype=dtype) for _ in range(3))
    return q, k, v


def rival_tables(length: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(length).double()[:, None] * torch.tensor(ROTARY.angles(), dtype=torch.float64)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().float(), both.sin().float()


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def rotated_sdpa(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q, k = rotate_half(q, cos, sin), rotate_half(k, cos, sin)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def published(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """ReRoPE as it was published: both logit matrices whole."""
    length, d = q.shape[2:]
    cos, sin = rival_tables(length)
    near = rotate_half(q, cos, sin) @ rotate_half(k, cos, sin).transpose(-1, -2)
    far = rotate_half(q, cos[window], sin[window]) @ k.transpose(-1, -2)
    i = torch.arange(length)
    r = i[:, None] - i
    logits = torch.where(r < window, near, far) * d**-0.5
    return logits.masked_fill(r < 0, float("-inf")).softmax(dim=-1) @ v
