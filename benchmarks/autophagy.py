"""`lmlab bench autophagy`: exact laws against loops over rows, the harness against bare calls, neighbours.

A rival of the laws is one trial after another in numpy, each row drawn: what a script for one paper does.
Its time is taken over few trials and counted for one.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np

from lmlab.autophagy import Accumulate, Fresh, Gaussian, Loop, Synthetic, laws, metrics, run
from lmlab.autophagy.job import limited
from lmlab.lab.bench import Row, benchmark, compare


@benchmark("autophagy")
def rows(quick: bool) -> Iterator[Row]:
    with limited(1):
        yield from _laws(quick)
        yield _million(quick)
        yield _map(quick)
        yield from _harness(quick)
        yield from _neighbours(quick)
    yield _workers(quick)


# ---------------------------------------------------------------- laws
def _synthetic_rows(n: int, generations: int, rng: np.random.Generator) -> float:
    mean, var = 0.0, 1.0
    for _ in range(generations):
        x = rng.normal(mean, var**0.5, n)
        mean, var = x.mean(), x.var(ddof=1)
    return float(var)


def _fresh_rows(n_real: int, n_synth: int, generations: int, rng: np.random.Generator) -> float:
    x = rng.normal(0.0, 1.0, n_real)
    for _ in range(generations - 1):
        mean, var = x.mean(), x.var(ddof=1)
        x = np.concatenate([rng.normal(0.0, 1.0, n_real), rng.normal(mean, var**0.5, n_synth)])
    return float(x.var(ddof=1))


def _accumulated_rows(n: int, generations: int, rng: np.random.Generator) -> float:
    x = rng.normal(0.0, 1.0, n)
    for _ in range(generations - 1):
        x = np.concatenate([x, rng.normal(x.mean(), x.var(ddof=1) ** 0.5, n)])
    return float(x.var(ddof=1))


def _laws(quick: bool) -> Iterator[Row]:
    trials, repeats = (2000, 1) if quick else (1 << 18, 7)
    rng = np.random.default_rng(0)
    cases: list[tuple[Loop, int, Callable[[], float], int, str]] = [
        (Synthetic(n), 50, lambda n=n: _synthetic_rows(n, 50, rng), few, target)  # type: ignore[misc]
        for n, few, target in ((100, 60, ">= 1000"), (3000, 20, ">= 3800"), (10_000, 8, ">= 11000"))
    ]
    cases.append((Fresh(500, 500), 40, lambda: _fresh_rows(500, 500, 40, rng), 30, ">= 950"))
    cases.append((Accumulate(100), 120, lambda: _accumulated_rows(100, 120, rng), 10, ">= 1400"))
    for loop, generations, one, few, target in cases:
        few = 1 if quick else few

        def ours(loop: Loop = loop, generations: int = generations) -> object:
            return laws.gaussian(
                loop, generations=generations, trials=trials, record=[generations], threads=1
            )

        def passes(loop: Loop = loop, generations: int = generations) -> object:
            return laws.gaussian(
                loop,
                generations=generations,
                trials=trials // 8,
                record=[generations],
                threads=1,
                engine="numpy",
            )

        def theirs(one: Callable[[], float] = one, few: int = few) -> object:
            return [one() for _ in range(few)]

        t = compare({"ours": ours, "passes": passes, "theirs": theirs}, repeats=repeats)
        mine, numpys = t["ours"].median / trials, t["passes"].median / (trials // 8)
        row = t["theirs"].median / few
        yield Row(
            f"laws.gaussian {loop!r}, {generations} generations, one trial",
            rival="rows in numpy", ours=mine, theirs=row, ratio=row / mine, target=target,
            note=f"{mine / generations * 1e9:.1f} ns a generation; engine numpy: {row / numpys:.0f}x",
        )  # fmt: skip


def _million(quick: bool) -> Row:
    trials = 1000 if quick else 1_000_000

    def ours() -> object:
        return laws.gaussian(Synthetic(100), generations=50, trials=trials, record=[50], threads=1)

    seconds = compare({"ours": ours}, repeats=1 if quick else 5)["ours"].median
    return Row(f"{trials:,} trials x 50 generations, one core", ours=seconds, ratio=seconds, target="<= 0.9")


def _map(quick: bool) -> Row:
    cells, biases, d = (2, [0.9], 10) if quick else (20, [0.5, 0.7, 0.9], 100)
    n_real = np.geomspace(100, 4000, cells).astype(int).tolist()
    n_synth = np.geomspace(10, 4000, cells).astype(int).tolist()
    begin = time.process_time()
    for bias in biases:
        laws.phase_map(n_real, n_synth, bias=bias, d=d, trials=4)
    seconds = (time.process_time() - begin) / 2
    return Row(
        f"phase_map d {d}, {cells}x{cells} cells, {len(biases)} biases, 4 trials, two cores",
        ours=seconds, ratio=seconds, target="<= 120", note="processor time, halved",
    )  # fmt: skip


# ---------------------------------------------------------------- harness
def _harness(quick: bool) -> Iterator[Row]:
    seeds, generations = (2, 3) if quick else (30, 12)
    law, loop = Gaussian(mean=[0.0], cov=[[1.0]]), Fresh(50, 50)

    def bare() -> None:
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            model = Gaussian().fit(law.sample(50, 1.0, rng), None, rng)
            for _ in range(generations - 1):
                data = np.concatenate([law.sample(50, 1.0, rng), model.sample(50, 1.0, rng)])
                model = Gaussian().fit(data, None, rng)

    def ours() -> None:
        run(loop, Gaussian(), law, generations=generations, seeds=seeds)

    t = compare({"ours": ours, "bare": bare}, repeats=1 if quick else 15)
    yield Row(
        "run without out, Fresh(50, 50), Gaussian, one generation", rival="bare fit and sample",
        ours=t["ours"].median / seeds / generations, theirs=t["bare"].median / seeds / generations,
        ratio=t["ours"].median / t["bare"].median, target="<= 4",
    )  # fmt: skip

    def stored() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run(loop, Gaussian(), law, generations=generations, seeds=seeds, out=folder)

    milliseconds = (
        compare({"ours": stored}, repeats=1 if quick else 5)["ours"].median / seeds / generations * 1e3
    )
    yield Row("run with out, one generation", ours=milliseconds, unit="ms", ratio=milliseconds, target="<= 3")


class _Slow(Gaussian):
    """A Gaussian whose fit costs a second of plain work."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds

    def fit(self, data: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator) -> Gaussian:
        total = 0
        for i in range(self.rounds):
            total += i & 7
        return super().fit(data, weights, rng)


def _workers(quick: bool) -> Row:
    """Wall time: it means something on an idle machine only."""
    workers = min(8, os.cpu_count() or 1)
    rounds, each = (1000, 1) if quick else (20_000_000, 3)
    law = Gaussian(mean=[0.0], cov=[[1.0]])

    def jobs(workers: int, seeds: int, rounds: int) -> float:
        begin = time.perf_counter()
        run(Synthetic(10), _Slow(rounds), law, generations=1, seeds=seeds, workers=workers)
        return time.perf_counter() - begin

    jobs(workers, workers, 1)  # starts the workers, which import what the generator needs
    alone = jobs(1, each, rounds)
    efficiency = alone / jobs(workers, each * workers, rounds)
    return Row(
        f"run, {workers} workers, {each} jobs of a second for each", rival="one worker with its share",
        unit="", ratio=efficiency, target=">= 0.9", note="wall time, so only on an idle machine",
    )  # fmt: skip


# ---------------------------------------------------------------- neighbours
def _neighbours(quick: bool) -> Iterator[Row]:
    n, d = (100, 8) if quick else (10_000, 64)
    rng = np.random.default_rng(1)
    real, fake = rng.standard_normal((n, d)), rng.standard_normal((n, d)) * 0.9 + 0.1

    def ours() -> object:
        return metrics.precision_recall(real, fake)

    def both() -> object:
        return metrics.precision_recall(real, fake), metrics.density_coverage(real, fake)

    cases: dict[str, Callable[[], object]] = {"ours": ours, "both": both}
    try:
        from prdc import compute_prdc
    except ImportError:
        compute_prdc = None

    def silent() -> object:  # it prints at each call
        with contextlib.redirect_stdout(io.StringIO()):
            return compute_prdc(real, fake, nearest_k=5)

    if compute_prdc is not None:
        cases["theirs"] = silent
    t = compare(cases, repeats=1 if quick else 3)
    theirs = t["theirs"].median if "theirs" in t else None
    yield Row(
        f"precision_recall {n:,} x {n:,}, d {d}", rival="prdc", ours=t["ours"].median, theirs=theirs,
        ratio=theirs / t["ours"].median if theirs else None, target=">= 2",
        note=f"with density and coverage: {t['both'].median:.2f} s" if theirs else "pip install prdc to compare",
    )  # fmt: skip
    tracemalloc.start()
    ours()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    yield Row("memory of it", ours=peak, unit="MB", ratio=peak, target="<= 200")
