"""VQ attention against torch's fused causal attention, and the cost of the scale rules.

One thread, float32, d = e = 64, random data, the assignment of codes included.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.dlpack import to_dlpack

from lmlab.attention import VQState, attention_scale, gradient_norm, vq_attention
from lmlab.lab.bench import Row, benchmark, compare

WIDTH = 64
SDPA = "torch SDPA, causal"


def inputs(t: int, heads: int = 1, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    q, k, v = (torch.randn(1, heads, t, WIDTH, generator=generator).requires_grad_(grad) for _ in range(3))
    return q, k, v


def codes(count: int, heads: int = 1) -> Tensor:
    return torch.randn(heads, count, WIDTH, generator=torch.Generator().manual_seed(count))


def both_ways(call: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> Callable[[], object]:
    """Forward and backward of `call`."""
    weight = torch.randn(leaves[2].shape, generator=torch.Generator().manual_seed(1))
    return lambda: torch.autograd.grad(call(), leaves, weight)


def forward_times(t: int, counts: tuple[int, ...], repeats: int) -> tuple[dict[int, float], float]:
    """Seconds of our forward pass by the number of codes, and of torch's, taken in turn."""
    q, k, v = inputs(t)
    cases: dict[str, Callable[[], object]] = {
        str(s): lambda book=codes(s): vq_attention(q, k, v, book) for s in counts
    }
    cases["sdpa"] = lambda: scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.no_grad():
        timing = compare(cases, repeats=repeats, least=0.05)
    return {s: timing[str(s)].median for s in counts}, timing["sdpa"].median


@benchmark("attention")
def forward(quick: bool) -> Iterator[Row]:
    torch.set_num_threads(1)
    for t, targets in [(4096, {256: None}), (16384, {256: 10, 64: 18}), (65536, {256: 40, 64: 60})]:
        if quick and t > 4096:
            continue
        ours, theirs = forward_times(t, tuple(targets), 3 if t > 20_000 else 5)
        for s, target in targets.items():
            yield Row(
                f"forward, {t} tokens, {s} codes",
                SDPA,
                ours[s],
                theirs,
                ratio=theirs / ours[s],
                target=f">= {target}" if target else "",
            )


@benchmark("attention")
def growth(quick: bool) -> Iterator[Row]:
    """Lengths take turns, for else the machine's other work would pass for growth."""
    torch.set_num_threads(1)
    book = codes(256)
    data = {t: inputs(t) for t in ((256, 1024) if quick else (4096, 16384, 32768, 65536))}
    with torch.no_grad():
        timing = compare(
            {str(t): lambda x=x: vq_attention(*x, book) for t, x in data.items()},
            repeats=9,
            least=0.0 if quick else 0.1,
        )
    for first, last in ((256, 1024),) if quick else ((4096, 32768), (16384, 65536)):
        exponent = math.log(timing[str(last)].median / timing[str(first)].median) / math.log(last / first)
        yield Row(
            f"growth exponent of the time, {first} to {last} tokens, 256 codes",
            ratio=exponent,
            target="" if quick else "<= 1.05",
        )


@benchmark("attention")
def break_even(quick: bool) -> Iterator[Row]:
    """The length from which ours is faster; between two measured ones the ratio's logarithm is taken as linear."""
    torch.set_num_threads(1)
    lengths = (300, 600) if quick else (150, 300, 450, 600, 900, 1200, 1800)
    ratios = []
    for t in lengths:
        ours, theirs = forward_times(t, (256,), 7)
        ratios.append(theirs / ours[256])
        yield Row(f"forward, {t} tokens, 256 codes", SDPA, ours[256], theirs, ratio=ratios[-1])
    slower = max((i for i, ratio in enumerate(ratios) if ratio < 1), default=None)
    if slower is None:
        even = float(lengths[0])
    elif slower == len(lengths) - 1:
        even = math.inf
    else:
        low, high = (math.log(ratio) for ratio in ratios[slower : slower + 2])
        even = lengths[slower] * (lengths[slower + 1] / lengths[slower]) ** (-low / (high - low))
    yield Row("break-even with SDPA, 256 codes", ratio=even, target="" if quick else "<= 1200",
              note="the ratio is in tokens")  # fmt: skip


@benchmark("attention")
def a_million(quick: bool) -> Iterator[Row]:
    torch.set_num_threads(1)
    t = 20_000 if quick else 1_000_000
    q, k, v = inputs(t)
    book = codes(256)
    with torch.no_grad():
        took = compare({"ours": lambda: vq_attention(q, k, v, book)}, repeats=3)["ours"].median
    yield Row(f"forward, {t} tokens, one head, 256 codes", ours=took, ratio=took, target="<= 5",
              note="the ratio is in seconds")  # fmt: skip


@benchmark("attention")
def forward_and_backward(quick: bool) -> Iterator[Row]:
    torch.set_num_threads(1)
    t = 1024 if quick else 16384
    leaves = inputs(t, grad=True)
    q, k, v = leaves
    book = codes(256)
    rival = both_ways(lambda: scaled_dot_product_attention(q, k, v, is_causal=True), leaves)
    for mode, target in (("local", ">= 10"), ("all", ">= 2")):
        ours = both_ways(lambda mode=mode: vq_attention(q, k, v, book, key_grad=mode), leaves)
        timing = compare({"ours": ours, "sdpa": rival}, repeats=3)
        mine, theirs = timing["ours"].median, timing["sdpa"].median
        what = f'forward and backward, {t} tokens, 256 codes, key_grad="{mode}"'
        yield Row(what, SDPA, mine, theirs, ratio=theirs / mine, target="" if quick else target)


MEMORY = """
import torch
from pathlib import Path
def peak():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
from lmlab.benchmarks.attention import inputs, codes, both_ways
from lmlab.attention import vq_attention
from torch.nn.functional import scaled_dot_product_attention
torch.set_num_threads(1)
leaves = inputs({t}, grad=True)
q, k, v = leaves
book = codes(256)
calls = {{"ours": lambda: vq_attention(q, k, v, book, key_grad="local"),
          "sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=True)}}
small = [x[:, :, :64].detach().requires_grad_() for x in leaves]
both_ways(lambda: vq_attention(*small, book), small)()
both_ways(lambda: scaled_dot_product_attention(*small, is_causal=True), small)()
Path("/proc/self/clear_refs").write_text("5")
before = peak()
both_ways(calls["{which}"], leaves)()
print(peak() - before)
"""


@benchmark("attention")
def peak_memory(quick: bool) -> Iterator[Row]:
    t = 2048 if quick else 16384
    peaks = {}
    for which in ("ours", "sdpa"):
        program = MEMORY.format(t=t, which=which)
        ran = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
        )
        peaks[which] = int(ran.stdout) / 1024
    ratio = peaks["ours"] / max(peaks["sdpa"], 1e-9)
    what = f"extra peak memory, forward and backward, {t} tokens"
    yield Row(what, SDPA, peaks["ours"], peaks["sdpa"], "MiB", ratio, "" if quick else "<= 1")


@benchmark("attention")
def decode(quick: bool) -> Iterator[Row]:
    """One token of 8 heads: the call from Python, and the native step alone."""
    from lmlab._native import attention as native

    torch.set_num_threads(1)
    heads, s, w = 8, 256, 128
    book, bias = codes(s, heads), torch.randn(heads, w, generator=torch.Generator().manual_seed(3))
    q, k, v = inputs(1, heads)
    medians = {}
    for context in (1000, 100_000) if quick else (1000, 1_000_000):
        state = VQState.empty(1, heads, s, WIDTH, window=w)
        generator = torch.Generator().manual_seed(context)
        state.count = torch.randint(1, 2 * context // s, (1, heads, s), generator=generator).float()
        state.mean = torch.randn(1, heads, s, WIDTH, generator=generator)
        state.recent_codes = torch.randint(s, (1, heads, w - 1), generator=generator)
        state.recent_values = torch.randn(1, heads, w - 1, WIDTH, generator=generator)
        state.position = context
        out = torch.empty(1, heads, 1, WIDTH)

        def alone(state: VQState = state, out: Tensor = out) -> None:
            native.step(
                q=to_dlpack(q), key=to_dlpack(k), value=to_dlpack(v), codebook=to_dlpack(book), bias=to_dlpack(bias),
                mask=None, count=to_dlpack(state.count), mean=to_dlpack(state.mean),
                recent_codes=to_dlpack(state.recent_codes), recent_values=to_dlpack(state.recent_values),
                seen=to_dlpack(state.seen), out=to_dlpack(out), scale=WIDTH**-0.5, position=state.position, window=w,
            )  # fmt: skip
            state.position += 1

        def call(state: VQState = state) -> None:
            with torch.no_grad():
                vq_attention(q, k, v, book, bias=bias, state=state, return_state=True)

        cache = [torch.randn(1, heads, 16384, WIDTH, generator=generator) for _ in range(2)]
        timing = compare(
            {
                "native": alone,
                "call": call,
                "sdpa": lambda cache=cache: scaled_dot_product_attention(q, *cache),
            },
            repeats=7,
            least=0.05,
        )
        medians[context] = timing["native"].median
        what = f"decode of one token after {context}, 8 heads: "
        yield Row(what + "native step", ours=timing["native"].median, ratio=timing["native"].median * 1e6,
                  target="<= 40",
                  note="the ratio is in microseconds")  # fmt: skip
        ratio = timing["sdpa"].median / timing["call"].median
        yield Row(what + "call from Python", "SDPA over a cache of 16k", timing["call"].median, timing["sdpa"].median,
                  ratio=ratio, target=">= 100")  # fmt: skip
    first, last = medians.values()
    yield Row("decode: the longest context against 1k", ratio=last / first, target="<= 1.05")


@benchmark("attention")
def scales(quick: bool) -> Iterator[Row]:
    torch.set_num_threads(1)
    n = torch.arange(1, 4097, dtype=torch.float64)
    timing = compare(
        {"scale": lambda: attention_scale(n), "norm": lambda: gradient_norm(2.4, 4096.0)}, least=0.05
    )
    taken = {name: time.median for name, time in timing.items()}
    yield Row("attention_scale of 4096 values, annealed", ours=taken["scale"], ratio=taken["scale"] * 1e3,
              target="<= 0.2", note="the ratio is in milliseconds")  # fmt: skip
    yield Row("gradient_norm exact, one value", ours=taken["norm"], ratio=taken["norm"] * 1e3, target="<= 2",
              note="the ratio is in milliseconds")  # fmt: skip
