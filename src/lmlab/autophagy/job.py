"""One job: one loop with one bias and one seed, generation after generation."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.autophagy import store
from lmlab.autophagy.filters import Filter
from lmlab.autophagy.generators.protocol import Generator, describe
from lmlab.autophagy.loops import Loop, Part, Plan
from lmlab.autophagy.metrics.named import Sample, resolve
from lmlab.autophagy.random import rng_for

SetName = tuple[int, int]  # (born, model)
_WORTH_KEEPING = 0.1  # seconds of training; the file of a model costs some milliseconds


@dataclass(frozen=True)
class Arm:
    """All that a loop with one bias needs, the same for every seed."""

    loop: Loop
    plans: tuple[Plan, ...]
    generator: Generator
    data: np.ndarray | Generator
    pool: Mapping[SetName, slice]  # which rows of the pool each real set gets; empty when data is a Generator
    last_use: Mapping[SetName, int]
    metrics: Sequence[str] | Mapping[str, Callable[[Sample], float]]
    bias: float
    filters: tuple[Filter, ...]
    held_out: np.ndarray | None
    n_eval: int | None
    out: Path | None
    threads: int
    fits: Path | None = None  # where the arms of a sweep keep models for each other


@dataclass(frozen=True)
class Failure:
    """What stopped a job, and where."""

    seed: int
    generation: int
    error: Exception
    trace: str


@lru_cache(maxsize=1)
def _pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """BLAS and torch use `threads` threads inside: their results depend on the number."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    with _pools().limit(limits=threads):
        if torch:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def job(
    arm: Arm, seed: int, done: int, tick: Callable[[], None] | None = None
) -> tuple[list[store.Record], Failure | None]:
    """Generations done + 1 … G. Those before are in the files of `arm.out`."""
    work = _Job(arm, seed)
    records: list[store.Record] = []
    for t in range(done + 1, len(arm.plans) + 1):
        try:
            records.append(work.generation(t))
        except Exception as error:
            return records, Failure(seed, t, error, traceback.format_exc())
        if tick is not None:
            tick()
    return records, None


class _Job:
    """The rows and models that later generations of a job still need."""

    def __init__(self, arm: Arm, seed: int) -> None:
        self.arm = arm
        self.seed = seed
        self.metrics = resolve(arm.metrics, arm.generator)
        self.sets: dict[SetName, np.ndarray] = {}
        self.models: dict[int, Generator] = {}
        self.like: np.ndarray | None = arm.data[:1] if isinstance(arm.data, np.ndarray) else None
        self.order: np.ndarray | None = None
        self.cache_pays: bool | None = None

    def generation(self, t: int) -> store.Record:
        arm, plan = self.arm, self.arm.plans[t - 1]
        rows, weights, origin = self.assemble(t, plan)
        model = self.fit(t, rows, weights)
        values = []
        if self.metrics:
            assert arm.held_out is not None
            n_eval = rows.shape[0] if arm.n_eval is None else arm.n_eval
            sample = Sample(t, arm.held_out, model, rows, lambda: self.evaluation(model, t, n_eval))
            values = [float(metric(sample)) for metric in self.metrics.values()]
        arrays = store.pack(model.state(), values, origin)
        if arm.out is not None:
            store.write_arrays(store.generation_path(arm.out, self.seed, t), arrays)
        self.models[t] = model
        self.forget(t)
        return store.record(arrays)

    def fit(self, t: int, rows: np.ndarray, weights: np.ndarray | None) -> Generator:
        """The model of D_t; that of another arm where it was trained on the same rows with the same draws.

        All arms of a seed agree at t = 1, and controls at every bias: they differ in what is sampled only.
        """
        generator, rng = self.arm.generator, rng_for(self.seed, t, "fit")
        if self.arm.fits is None:
            return generator.fit(rows, weights, rng)
        path = store.fit_path(self.arm.fits, generator, rows, weights, self.seed, t)
        state = store.read_arrays(path)
        if state is not None:
            return generator.load(state)
        begin = time.perf_counter()
        model = generator.fit(rows, weights, rng)
        if time.perf_counter() - begin > _WORTH_KEEPING:
            store.write_arrays(path, model.state())
        return model

    def forget(self, t: int) -> None:
        """Drop sets that no later generation names, and models that make no later set."""
        last = self.arm.last_use
        self.sets = {name: rows for name, rows in self.sets.items() if last[name] > t}
        makers = {model for (born, model) in last if last[born, model] > t and (born, model) not in self.sets}
        self.models = {model: kept for model, kept in self.models.items() if model in makers}

    def assemble(self, t: int, plan: Plan) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """D_t, its row weights (None: all 1), and its rows counted by maker."""
        rows = [self.rows_of(part) for part in plan.parts]
        data = rows[0] if len(rows) == 1 else np.concatenate(rows)
        sizes = [part.n for part in plan.parts]
        makers = [part.model for part in plan.parts]
        weights = None
        if any(part.weight != 1.0 for part in plan.parts):
            weights = np.repeat([part.weight for part in plan.parts], sizes)
        origin = np.zeros(t, dtype=np.int64)
        if plan.budget is not None:
            rng = rng_for(self.seed, t, "subsample")
            chosen = rng.choice(data.shape[0], plan.budget, replace=False, shuffle=False)
            data = data[chosen]
            weights = None if weights is None else weights[chosen]
            np.add.at(origin, np.repeat(makers, sizes)[chosen], 1)
        else:
            for maker, size in zip(makers, sizes, strict=True):
                origin[maker] += size
        return data, weights, origin

    def rows_of(self, part: Part) -> np.ndarray:
        name = (part.born, part.model)
        if name not in self.sets:
            self.sets[name] = self.real(part) if part.model == 0 else self.synthetic(part)
        return self.sets[name]

    def real(self, part: Part) -> np.ndarray:
        data = self.arm.data
        if isinstance(data, np.ndarray):
            if self.order is None:
                self.order = rng_for(self.seed, 0, "pool").permutation(data.shape[0])
            return np.asarray(data[self.order[self.arm.pool[part.born, 0]]])
        rows = data.sample(part.n, 1.0, rng_for(self.seed, part.born, "real"))
        return self.checked(rows, part.n, data, part.born)

    def synthetic(self, part: Part) -> np.ndarray:
        """The set, drawn by its model; from the cache of files where that is there."""
        arm = self.arm
        kept = arm.out is not None and arm.last_use[part.born, part.model] > part.born
        path = store.set_path(arm.out, self.seed, part.born, part.model) if kept and arm.out else None
        if path is not None and path.exists():
            arrays = store.read_arrays(path)
            if arrays is not None:
                return arrays["rows"]
        begin = time.perf_counter()
        rows = self.draw(part)
        if path is not None and self.cache_pays is not False:
            self.keep(path, rows, time.perf_counter() - begin)
        return rows

    def keep(self, path: Path, rows: np.ndarray, drawing: float) -> None:
        """Keep a set's file only where drawing cost more than reading, which is measured once a job."""
        store.write_arrays(path, {"rows": rows})
        if self.cache_pays is None:
            begin = time.perf_counter()
            store.read_arrays(path)
            self.cache_pays = drawing > time.perf_counter() - begin
            if not self.cache_pays:
                path.unlink()

    def draw(self, part: Part) -> np.ndarray:
        arm = self.arm
        model = self.models.get(part.model)
        if model is None:
            assert arm.out is not None
            model = arm.generator.load(store.read_state(arm.out, self.seed, part.model))
            self.models[part.model] = model
        rng = rng_for(self.seed, part.born, "synthetic", part.model)

        def sample(n: int) -> np.ndarray:
            return self.checked(model.sample(n, arm.bias, rng), n, model, part.born)

        draw: Callable[[int], np.ndarray] = sample
        for one in arm.filters:
            draw = self.through(one, draw, rng, part.born)
        return draw(part.n)

    def through(
        self, one: Filter, draw: Callable[[int], np.ndarray], rng: np.random.Generator, generation: int
    ) -> Callable[[int], np.ndarray]:
        return lambda n: self.checked(one(draw, n, rng), n, one, generation)

    def evaluation(self, model: Generator, t: int, n: int) -> np.ndarray:
        rows = model.sample(n, self.arm.bias, rng_for(self.seed, t, "evaluate"))
        return self.checked(rows, n, model, t)

    def checked(self, rows: Any, n: int, maker: Any, generation: int) -> np.ndarray:
        """`rows`, if there are n of them and they look like the real ones."""
        if self.like is None:
            self.like = np.asarray(rows)[:1]
        like = self.like
        wrong = None
        if not isinstance(rows, np.ndarray) or rows.ndim == 0:
            wrong = f"gave {type(rows).__name__} for an array of rows"
        elif rows.shape[0] != n:
            wrong = f"gave {rows.shape[0]} rows for {n}"
        elif rows.dtype != like.dtype or rows.shape[1:] != like.shape[1:]:
            wrong = (
                f"gave rows of {rows.dtype} {list(rows.shape[1:])}, "
                f"the real rows are {like.dtype} {list(like.shape[1:])}"
            )
        elif rows.dtype.kind == "f" and not np.isfinite(rows.sum()) and np.isnan(rows).any():
            wrong = "gave rows with NaN"
        if wrong is not None:
            raise ValueError(f"{describe(maker)} {wrong}, at generation {generation}, seed {self.seed}")
        return np.asarray(rows)
