"""Fused loops beside torch.nn, scans beside their logarithmic form, and the parallel solvers, on one thread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import lmlab.recurrent as recurrent
from lmlab import _native
from lmlab.lab.bench import Row, benchmark, compare
from lmlab.recurrent import fused, linear_scan, solve
from lmlab.recurrent.logdepth import log_depth_scan

FORWARD = {"GRU": {(1, 16): 50.0, (1, 64): 20.0, (16, 64): 2.5}}
BOTH = {
    "GRU": {(1, 16): 90.0, (1, 64): 35.0, (16, 64): 3.5},
    "RNN": {(1, 16): 50.0, (1, 64): 28.0, (16, 64): 3.0},
    "LSTM": {(1, 16): 1.5, (1, 64): 1.2, (16, 64): 1.0},
}


@benchmark("recurrent")
def rows(quick: bool) -> Iterator[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _modules(quick)
        yield from _diagonal(quick)
        yield from _scans(quick)
        yield from _solvers(quick)
    finally:
        torch.set_num_threads(threads)
    yield from _two_threads(quick)


def _against(
    what: str,
    rival: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    target: str,
    repeats: int,
    steps: int = 1,
    note: str = "",
) -> Row:
    least = 0.03 if repeats > 1 else 0.0
    t = compare({"ours": ours, "theirs": theirs}, repeats=repeats, clock="cpu", least=least)
    mine, other = t["ours"].median / steps, t["theirs"].median / steps
    unit = "s/step" if steps > 1 else "s"
    return Row(what, rival, ours=mine, theirs=other, unit=unit, ratio=other / mine, target=target, note=note)


def _forward(module: Any, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            module(x)

    return call


def _both(module: Any, x: Tensor) -> Callable[[], None]:
    g = torch.ones(*x.shape[:2], module.hidden_size)

    def call() -> None:
        torch.autograd.grad(module(x)[0], tuple(module.parameters()), g)

    return call


def _modules(quick: bool) -> Iterator[Row]:
    t, repeats = (32, 1) if quick else (1024, 5)
    for name, targets in BOTH.items():
        for (b, n), target in targets.items():
            torch.manual_seed(0)
            theirs: Any = getattr(nn, name)(n, n, batch_first=True)
            ours = getattr(recurrent, name).from_torch(copy.deepcopy(theirs))
            x, size = torch.randn(b, t, n), f"batch {b}, width {n}"
            if name in FORWARD:
                least = f">= {FORWARD[name][b, n]}"
                yield _against(
                    f"{name} forward, {size}",
                    "torch.nn",
                    _forward(ours, x),
                    _forward(theirs, x),
                    least,
                    repeats,
                    t,
                )
            yield _against(
                f"{name} forward + backward, {size}",
                "torch.nn",
                _both(ours, x),
                _both(theirs, x),
                f">= {target}",
                repeats,
                t,
            )


def _diagonal(quick: bool) -> Iterator[Row]:
    t = 64 if quick else 2048
    torch.manual_seed(0)
    theirs, ours = nn.GRU(32, 32, batch_first=True), recurrent.DiagonalGRU(32, 32, batch_first=True)
    x = torch.randn(1, t, 32)
    yield _against(
        "DiagonalGRU forward + backward, batch 1, width 32",
        "torch.nn.GRU",
        _both(ours, x),
        _both(theirs, x),
        ">= 80",
        1 if quick else 5,
        t,
    )
    t = 512 if quick else 65536
    u, w, y, starts = torch.randn(t, 1), torch.tensor([0.9]), torch.empty(t, 1), torch.arange(t)

    def run(newton: bool) -> Callable[[], object]:
        kind = fused.KINDS["RNN_TANH"]
        return lambda: _native.recurrent.float32.forward_by_channel(
            kind, newton, False, starts, 1, None, u, w, None, torch.zeros(1, 1), y, None, None, 1
        )

    sweeps, _, _ = run(True)()  # type: ignore[misc]
    yield _against(
        f"one-channel diagonal tanh, {t} steps, Newton", "the compiled loop step by step", run(True), run(False),
        ">= 3", 1 if quick else 9, t,
        note=f"{sweeps} sweeps at most",
    )  # fmt: skip


def _scans(quick: bool) -> Iterator[Row]:
    shapes = [(2, 64, 8), (1, 128, 4)] if quick else [(8, 8192, 64), (1, 65536, 16)]
    for b, t, n in shapes:
        a, u = torch.rand(b, t, n), torch.randn(b, t, n)
        size = f"({b}, {t}, {n})"
        yield _against(
            f"linear_scan forward {size}", "log-depth scan in torch", lambda a=a, u=u: linear_scan(a, u),
            lambda a=a, u=u: log_depth_scan(a, u), ">= 5", 1 if quick else 5,
        )  # fmt: skip
        a.requires_grad_(), u.requires_grad_()

        def both(scan: Any, a: Tensor = a, u: Tensor = u) -> Callable[[], None]:
            g = torch.ones_like(u)
            return lambda: torch.autograd.grad(scan(a, u), (a, u), g)

        yield _against(
            f"linear_scan forward + backward {size}", "log-depth scan, autograd", both(linear_scan),
            both(log_depth_scan), ">= 8", 1 if quick else 5,
        )  # fmt: skip
    t = 64 if quick else 4096
    a, u = torch.randn(1, t, 8, 8) / 8, torch.randn(1, t, 8)
    yield _against(
        f"dense scan, width 8, {t} steps", "log-depth scan, matmul", lambda: linear_scan(a, u),
        lambda: log_depth_scan(a, u), ">= 10", 1 if quick else 5,
    )  # fmt: skip


def _solvers(quick: bool) -> Iterator[Row]:
    t = 1024 if quick else 65536
    for name, target in (("RNN", 25.0), ("GRU", 8.0)):
        torch.manual_seed(0)
        module = getattr(nn, name)(16, 16, batch_first=True)
        x = torch.randn(1, t, 16)

        def shoot(module: Any = module, x: Tensor = x) -> None:
            with torch.no_grad():
                assert solve(module, x, method="shooting").converged

        yield _against(
            f"shooting on torch.nn.{name}, width 16, {t} steps, forward", "that module", shoot, _forward(module, x),
            f">= {target}", 1 if quick else 3, t,
        )  # fmt: skip
    t = 2100 if quick else 4096
    a, u = 3 * torch.randn(16, 16) / 4, 0.1 * torch.randn(1, t, 16)

    def chaotic(h: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(h @ a.T + u)

    def auto() -> None:
        with torch.no_grad():
            solve(chaotic, u)

    def by_steps() -> None:
        with torch.no_grad():
            solve(chaotic, u, method="sequential")

    timing = compare({"ours": auto, "theirs": by_steps}, repeats=1 if quick else 5, clock="cpu")
    mine, other = timing["ours"].median, timing["theirs"].median
    yield Row(
        f"chaotic cell under auto, {t} steps", "sequential", mine, other, ratio=mine / other, target="<= 1.1",
        note="no parallel gain exists: the price of finding that out",
    )  # fmt: skip
    t = 128 if quick else 2048
    torch.manual_seed(0)
    gru = nn.GRU(16, 16, batch_first=True).double()
    x = torch.randn(1, t, 16, dtype=torch.float64)
    with torch.no_grad():
        found = solve(gru, x, method="newton", window=t, tol=1e-13)
        error = float((found.states - gru(x)[0]).abs().max())
    yield Row(
        f"Newton sweeps, default GRU, {t} steps, float64", "", ours=float(found.iterations), unit="sweeps",
        ratio=float(found.iterations), target="<= 6", note=f"error {error:.1e}",
    )  # fmt: skip


def _two_threads(quick: bool) -> Iterator[Row]:
    """Elapsed time on two threads over that on one: must not be above 1."""
    t = 32 if quick else 512
    cases = [(name, b, n) for name in BOTH for b, n in ((1, 64), (16, 64))]
    before = torch.get_num_threads()
    for name, b, n in cases:
        module = getattr(recurrent, name)(n, n, batch_first=True)
        call = _both(module, torch.randn(b, t, n))

        def on(threads: int, call: Callable[[], None] = call) -> Callable[[], None]:
            def run() -> None:
                torch.set_num_threads(threads)
                call()

            return run

        timing = compare({"one": on(1), "two": on(2)}, repeats=1 if quick else 9, clock="wall")
        torch.set_num_threads(before)
        one, two = timing["one"].median / t, timing["two"].median / t
        yield Row(
            f"{name} forward + backward, batch {b}, width {n}, two threads", "one thread", two, one, unit="s/step",
            ratio=two / one, target="<= 1.0", note="elapsed time",
        )  # fmt: skip
