"""Run a loop with any model that can fit and sample: seeds side by side, resumable, measured."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmlab.autophagy import store
from lmlab.autophagy.checks import check_bias, whole
from lmlab.autophagy.filters import Filter
from lmlab.autophagy.generators.protocol import Generator
from lmlab.autophagy.history import History, assemble
from lmlab.autophagy.job import Arm, Failure, SetName, job, limited
from lmlab.autophagy.loops import Loop, Plan, schedule
from lmlab.autophagy.metrics.named import Sample, check_rows, resolve
from lmlab.autophagy.progress import Bars

Backend = Literal["loky", "threading", "ray"]
Metrics = Sequence[str] | Mapping[str, Callable[[Sample], float]]


class DataExhausted(ValueError):
    """The pool of real rows is smaller than the loop needs."""


def run(
    loop: Loop,
    generator: Generator,
    data: np.ndarray | Generator,
    *,
    generations: int,
    metrics: Metrics = (),
    seeds: int | Sequence[int] = 1,
    bias: float = 1.0,
    filters: Sequence[Filter] = (),
    held_out: np.ndarray | None = None,
    n_eval: int | None = None,
    out: str | Path | None = None,
    workers: int = 1,
    backend: Backend = "loky",
    threads: int = 1,
    progress: bool = False,
) -> History:
    """Train `generator` from scratch at each of `generations` generations, on what `loop` says.

    data: a pool of real rows, taken without replacement in an order that only the seed decides; or a fitted
    Generator, the real law itself. metrics: names, or functions of a `Sample`; they compare `n_eval` rows of
    G_t (None: as many as D_t has) with `held_out`. seeds: how many (0, 1, …), or which. bias: λ of all
    sampling from models. filters: applied to each synthetic set when it is made.

    out: a directory that keeps every finished generation; the same call goes on where it stopped, or longer.
    workers, backend: jobs (one a seed) side by side, through joblib. threads: of BLAS and torch in a job.

    Raises ValueError (arguments, wrong rows of a generator), TypeError (a metric needs log_prob),
    DataExhausted, RunMismatch; an error inside one seed is raised after the others have ended and are stored.
    """
    arm = _arm(loop, generator, data, generations, metrics, bias, filters, held_out, n_eval, out, threads)
    return _run([arm], _seeds(seeds), workers, backend, progress, [type(loop).__name__])[0]


def sweep(
    loops: Mapping[str, Loop],
    generator: Generator,
    data: np.ndarray | Generator,
    *,
    biases: Sequence[float] = (1.0,),
    generations: int,
    metrics: Metrics = (),
    seeds: int | Sequence[int] = 1,
    filters: Sequence[Filter] = (),
    held_out: np.ndarray | None = None,
    n_eval: int | None = None,
    out: str | Path | None = None,
    workers: int = 1,
    backend: Backend = "loky",
    threads: int = 1,
    progress: bool = False,
) -> dict[tuple[str, float], History]:
    """`run` for every loop and bias; all jobs (loop, bias, seed) share the workers.

    With `out` each arm has the directory `out/NAME-BIAS`, and `out/fits` (safe to delete) keeps models that
    were long in training: arms that train on the same rows at the same place of one seed train once.
    """
    names = [(name, float(bias)) for name in loops for bias in biases]
    arms = [
        _arm(
            loops[name], generator, data, generations, metrics, bias, filters, held_out, n_eval,
            None if out is None else Path(out) / f"{name}-{bias:g}", threads,
            None if out is None else Path(out) / "fits",
        )
        for name, bias in names
    ]  # fmt: skip
    labels = [f"{name} λ={bias:g}" for name, bias in names]
    histories = _run(arms, _seeds(seeds), workers, backend, progress, labels)
    return dict(zip(names, histories, strict=True))


# ---------------------------------------------------------------- the door
def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, Sequence | np.ndarray):
        given = tuple(operator.index(seed) for seed in seeds)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"seeds must be different numbers, at least one, got {seeds!r}")
        return given
    return tuple(range(whole("seeds", seeds, 1)))


def _arm(
    loop: Loop,
    generator: Generator,
    data: np.ndarray | Generator,
    generations: int,
    metrics: Metrics,
    bias: float,
    filters: Sequence[Filter],
    held_out: np.ndarray | None,
    n_eval: int | None,
    out: str | Path | None,
    threads: int,
    fits: Path | None = None,
) -> Arm:
    bias = check_bias(bias)
    plans = tuple(schedule(loop, whole("generations", generations, 1)))
    if resolve(metrics, generator) and held_out is None:
        raise ValueError("metrics need held_out=, real rows that no generation is trained on")
    if held_out is not None:
        held_out = np.asarray(held_out)
        check_rows(metrics, held_out)
    last_use = {(p.born, p.model): t for t, plan in enumerate(plans, start=1) for p in plan.parts}
    pool: dict[SetName, slice] = {}
    if isinstance(data, np.ndarray):
        pool = _pool(data, plans)
        if held_out is not None and _overlap(data, held_out):
            raise ValueError(
                "held_out shares memory with data: held-out rows would be trained on; give a copy"
            )
    elif not isinstance(data, Generator):
        raise ValueError(f"data must be an array of rows or a fitted Generator, got {type(data).__name__}")
    return Arm(
        loop, plans, generator, data, pool, last_use, metrics, bias, tuple(filters),
        held_out,
        None if n_eval is None else whole("n_eval", n_eval, 1),
        None if out is None else Path(out), whole("threads", threads, 1), fits,
    )  # fmt: skip


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    return np.shares_memory(a, b)


def _pool(data: np.ndarray, plans: Sequence[Plan]) -> dict[SetName, slice]:
    """Which rows of the shuffled pool each real set gets, in the order in which the plans name them."""
    slices: dict[SetName, slice] = {}
    needs: list[int] = []
    begin = 0
    for plan in plans:
        for part in plan.parts:
            if part.model == 0 and (part.born, 0) not in slices:
                slices[part.born, 0] = slice(begin, begin + part.n)
                begin += part.n
        needs.append(begin)
    if begin > data.shape[0]:
        short = next(t for t, need in enumerate(needs, start=1) if need > data.shape[0])
        shown = ", ".join(f"t={t}: {need}" for t, need in enumerate(needs[:12], start=1))
        more = ", …" if len(needs) > 12 else ""
        raise DataExhausted(
            f"data: the loop needs {begin} real rows over {len(plans)} generations ({shown}{more}), "
            f"got {data.shape[0]}; they end at generation {short}"
        )
    return slices


def _settings(arm: Arm) -> dict[str, Any]:
    data = arm.data
    if not isinstance(data, np.ndarray):
        data = {"type": type(data).__name__, "state": data.state()}  # type: ignore[assignment]
    settings: dict[str, Any] = store.plain(
        {
            "loop": arm.loop, "generator": arm.generator, "bias": arm.bias, "filters": arm.filters,
            "metrics": list(arm.metrics), "data": data, "held_out": arm.held_out, "n_eval": arm.n_eval,
            "threads": arm.threads,
        }
    )  # fmt: skip
    return settings


# ---------------------------------------------------------------- the jobs
def _run(
    arms: Sequence[Arm],
    seeds: tuple[int, ...],
    workers: int,
    backend: Backend,
    progress: bool,
    labels: Sequence[str],
) -> list[History]:
    workers = whole("workers", workers, 1)
    if backend not in ("loky", "threading", "ray"):
        raise ValueError(f"backend must be 'loky', 'threading' or 'ray', got {backend!r}")
    with ExitStack() as stack:
        settings: list[str] = []
        for arm in arms:
            if arm.out is None:
                settings.append(store.digest_of(_settings(arm)))
            else:
                stack.enter_context(store.locked(arm.out))
                settings.append(store.claim(arm.out, _settings(arm)))
        done = {
            (a, seed): [] if arm.out is None else store.read_prefix(arm.out, seed, len(arm.plans))
            for a, arm in enumerate(arms)
            for seed in seeds
        }
        todo = [key for key in done if len(done[key]) < len(arms[key[0]].plans)]
        titles = [labels[a] if len(seeds) == 1 else f"{labels[a]}, seed {seed}" for a, seed in todo]
        sizes = [(len(done[key]), len(arms[key[0]].plans)) for key in todo]
        bars = stack.enter_context(Bars(titles, sizes, shown=progress))
        calls = [
            (arms[a], seed, len(done[a, seed]), bars.tick(i, across=workers > 1))
            for i, (a, seed) in enumerate(todo)
        ]
        failures: list[Failure] = []
        for key, (records, failure) in zip(todo, _jobs(calls, workers, backend), strict=True):
            done[key] = done[key] + records
            if failure is not None:
                failures.append(failure)
    if failures:
        first = failures[0]
        first.error.add_note(f"autophagy: seed {first.seed}, generation {first.generation}")
        if workers > 1:
            first.error.add_note(first.trace)
        raise first.error
    return [
        assemble(
            tuple(arm.metrics), seeds, settings[a], [done[a, seed] for seed in seeds],
            out=arm.out, template=arm.generator,
        )
        for a, arm in enumerate(arms)
    ]  # fmt: skip


Call = tuple[Arm, int, int, Callable[[], None] | None]
Result = tuple[list[store.Record], Failure | None]


def _jobs(calls: Sequence[Call], workers: int, backend: Backend) -> Iterator[Result]:
    if not calls:
        return
    if workers == 1:
        with limited(calls[0][0].threads):
            yield from [job(*call) for call in calls]
        return
    from joblib import Parallel, delayed, parallel_config

    if backend == "threading":
        with limited(calls[0][0].threads), parallel_config("threading", n_jobs=workers):
            yield from Parallel()(delayed(job)(*call) for call in calls)
        return
    if backend == "ray":
        _register_ray()
        config = parallel_config("ray", n_jobs=workers)
    else:
        config = parallel_config("loky", n_jobs=workers, inner_max_num_threads=calls[0][0].threads)
    with config:
        yield from Parallel(batch_size=1)(delayed(_limited_job)(*call) for call in calls)


def _limited_job(arm: Arm, seed: int, done: int, tick: Callable[[], None] | None) -> Result:
    """A job in a process of its own, which must set its own number of threads."""
    with limited(arm.threads):
        return job(arm, seed, done, tick)


def _register_ray() -> None:
    try:
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise ImportError("backend='ray' needs the extra: pip install 'lmlab[ray]'") from error
    register_ray()
