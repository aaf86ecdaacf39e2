"""Loops whose models can be drawn exactly without drawing a single row.

A Gaussian fit sees its rows only through their mean and scatter, and these have known laws: a normal and a
Wishart. So one generation costs one normal and one χ² for each set (d = 1), whatever the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from lmlab._native import autophagy as _native
from lmlab.autophagy.blocks import in_blocks
from lmlab.autophagy.categorical import categorical, kept_generations
from lmlab.autophagy.checks import check_bias, whole
from lmlab.autophagy.generators.gaussian import root
from lmlab.autophagy.loops import Loop, schedule
from lmlab.autophagy.phase import phase_map
from lmlab.autophagy.program import KEPT, REAL, Program, compile_plans
from lmlab.autophagy.random import rng_for
from lmlab.autophagy.wishart import bartlett

__all__ = ["Trajectory", "categorical", "gaussian", "phase_map"]

Engine = Literal["native", "numpy"]

_BLOCK = 65_536
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Fitted models of `r` independent runs at the generations kept.

    engine: "native" or "numpy", which kernel ran.
    """

    engine: str
    generations: Int[np.ndarray, " g"]
    mean: Float[np.ndarray, "g r d"]
    cov: Float[np.ndarray, "g r d d"]
    _log_det: Float[np.ndarray, "g r"] | None = None

    @cached_property
    def log_det(self) -> Float[np.ndarray, "g r"]:
        """log det Σ, taken from the factors where the loop allows, so that it stays exact when they narrow."""
        if self._log_det is not None:
            return self._log_det
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.cov[..., 0, 0]))

    def w2(self) -> Float[np.ndarray, "g r"]:
        """Squared W₂ distance of each model to the real law N(0, I): |m|² + tr(Σ^½ − I)²."""
        shift = (self.mean**2).sum(axis=-1)
        if self.mean.shape[-1] == 1:
            return np.asarray(shift + (np.sqrt(self.cov[..., 0, 0]) - 1.0) ** 2)
        deviations = np.sqrt(np.maximum(np.linalg.eigvalsh(self.cov), 0.0))
        return np.asarray(shift + ((deviations - 1.0) ** 2).sum(axis=-1))


def gaussian(
    loop: Loop,
    *,
    generations: int,
    trials: int,
    d: int = 1,
    bias: float = 1.0,
    ddof: int = 1,
    seed: int = 0,
    record: Sequence[int] | None = None,
    threads: int | None = None,
    engine: Engine = "native",
) -> Trajectory:
    """The loop with a Gaussian that is fitted to rows of N(0, I_d), `trials` times over, drawn exactly.

    record: the generations to keep, None: all. threads (None: the processors that this process may use)
    doesn't change the result. engine: for d = 1 the compiled kernel, or passes of numpy; both have the same
    law, but not the same numbers; d > 1 is always numpy's. Raises ValueError for bad arguments, and for a
    subsample: it has no exact law.
    """
    bias = check_bias(bias)
    generations, trials, d = (
        whole("generations", generations, 1),
        whole("trials", trials, 1),
        whole("d", d, 1),
    )
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof!r}")
    if engine not in ("native", "numpy"):
        raise ValueError(f"engine must be 'native' or 'numpy', got {engine!r}")
    kept = kept_generations(record, generations)
    plans = schedule(loop, int(kept[-1]))
    if any(plan.budget is not None for plan in plans):
        raise ValueError(f"laws.gaussian: {loop!r} takes a subsample, which has no exact law; use run(…)")
    program = compile_plans(plans, ddof)
    if d == 1:
        return _one_dimension(program, kept, trials, bias, seed, threads, engine)
    return _many_dimensions(program, kept, trials, d, bias, seed, threads)


# ---------------------------------------------------------------- d = 1
def _one_dimension(
    program: Program,
    kept: np.ndarray,
    trials: int,
    bias: float,
    seed: int,
    threads: int | None,
    engine: Engine,
) -> Trajectory:
    mean = np.empty((kept.size, trials))
    var = np.empty((kept.size, trials))
    steps = _steps(program, kept) if engine == "native" else None

    def work(block: int, part: slice) -> None:
        rng = rng_for(seed, 0, "law", block)
        if steps is None:
            _numpy_passes(program, kept, bias, rng, mean[:, part], var[:, part])
        else:
            words = rng.bit_generator.random_raw(_native.SEED_WORDS)
            _native.run_block(steps, bias, words, mean[:, part], var[:, part])

    in_blocks(work, trials, _BLOCK, threads)
    return Trajectory(engine, kept, mean[:, :, None], var[:, :, None, None])


def _steps(program: Program, kept: np.ndarray) -> _native.Program:
    """The program for the compiled kernel; a generation names its steps, and the row of its results."""
    steps = [step for generation in program.generations for step in generation.steps]
    ends = np.cumsum([len(generation.steps) for generation in program.generations]).tolist()
    rows = {int(t): row for row, t in enumerate(kept)}
    return _native.program(
        np.array([(s.n, s.source, s.slot) for s in steps], dtype=np.int64),
        np.array([(s.weight, s.share, s.cross) for s in steps]),
        np.array(
            [
                (g.onto, g.slot, end - len(g.steps), end, rows.get(t, -1))
                for t, (g, end) in enumerate(zip(program.generations, ends, strict=True), start=1)
            ],
            dtype=np.int64,
        ),
        np.array([g.denominator for g in program.generations]),
        program.set_slots,
        program.model_slots,
    )


def _numpy_passes(
    program: Program,
    kept: np.ndarray,
    bias: float,
    rng: np.random.Generator,
    mean: np.ndarray,
    var: np.ndarray,
) -> None:
    """One block of trials; fills mean, var [kept trials]. m, s: mean and scatter of what is merged."""
    trials = mean.shape[1]
    sets = np.empty((program.set_slots, 2, trials))
    models = np.empty((program.model_slots, 2, trials))
    m, s, set_mean, set_scatter = np.zeros((4, trials))
    row = 0
    for t, generation in enumerate(program.generations, start=1):
        for i, step in enumerate(generation.steps):
            first = i == 0 and not generation.onto
            if step.source == KEPT:
                a, q = sets[step.slot]
            else:
                a, q = (set_mean, set_scatter) if step.slot < 0 else sets[step.slot]
                rng.standard_normal(out=a)
                a *= 1.0 / math.sqrt(step.n)
                q[:] = rng.chisquare(step.n - 1, trials) if step.n > 1 else 0.0
                if step.source != REAL:
                    source_mean, source_var = models[step.source]
                    scale = bias * source_var
                    q *= scale
                    a *= np.sqrt(scale)
                    a += source_mean
            if first:
                m[:] = a
                np.multiply(q, step.weight, out=s)
                continue
            delta = a - m
            m += step.share * delta
            s += step.weight * q
            delta *= delta
            delta *= step.cross
            s += delta
        fitted = s / generation.denominator
        if generation.slot >= 0:
            models[generation.slot, 0] = m
            models[generation.slot, 1] = fitted
        if row < kept.size and kept[row] == t:
            mean[row] = m
            var[row] = fitted
            row += 1


# ---------------------------------------------------------------- d > 1
def _many_dimensions(
    program: Program, kept: np.ndarray, trials: int, d: int, bias: float, seed: int, threads: int | None
) -> Trajectory:
    mean = np.empty((kept.size, trials, d))
    cov = np.empty((kept.size, trials, d, d))
    log_det = np.empty((kept.size, trials))

    def work(block: int, part: slice) -> None:
        rng = rng_for(seed, 0, "law", block)
        _matrix_passes(program, kept, bias, rng, mean[:, part], cov[:, part], log_det[:, part])

    in_blocks(work, trials, max(1, min(_BLOCK, _BLOCK_BYTES // (3 * d * d * 8))), threads)
    return Trajectory("numpy", kept, mean, cov, log_det)


def _matrix_passes(
    program: Program,
    kept: np.ndarray,
    bias: float,
    rng: np.random.Generator,
    mean: np.ndarray,
    cov: np.ndarray,
    log_det: np.ndarray,
) -> None:
    """One block of trials in d dimensions. A model is (mean, factor F) with F Fᵀ its covariance.

    A generation of one new set keeps its factor, F·A, as it is: no product, no Cholesky, and no loss where
    the covariance becomes ill-conditioned. Others are merged as scatter matrices and factored again.
    """
    trials, d = mean.shape[1:]
    sets: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    models: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    m, s = np.zeros((trials, d)), np.zeros((trials, d, d))
    row = 0
    for t, generation in enumerate(program.generations, start=1):
        followed = t < len(program.generations) and program.generations[t].onto
        alone = len(generation.steps) == 1 and generation.steps[0].source != KEPT
        alone = alone and not generation.onto and not followed
        wanted = row < kept.size and kept[row] == t
        factor: np.ndarray | None = None
        for i, step in enumerate(generation.steps):
            if step.source == KEPT:
                a, q = sets[step.slot]
            else:
                z = rng.standard_normal((trials, d)) / math.sqrt(step.n)
                if step.source == REAL:
                    a, drawn = z, bartlett(rng, trials, d, step.n - 1)
                else:
                    source_mean, source = models[step.source]
                    width = source.shape[2]
                    a = source_mean + math.sqrt(bias) * (source @ z[:, :width, None])[..., 0]
                    drawn = source @ bartlett(rng, trials, width, step.n - 1)
                    drawn *= math.sqrt(bias)
                if alone:
                    factor = drawn * math.sqrt(step.weight / generation.denominator)
                if alone and step.slot < 0:
                    m = a
                    continue
                q = drawn @ drawn.transpose(0, 2, 1)
                if step.slot >= 0:
                    sets[step.slot] = (a, q)
            if i == 0 and not generation.onto:
                m, s = a.copy(), step.weight * q
                continue
            delta = a - m
            m = m + step.share * delta
            s += step.weight * q
            s += step.cross * delta[:, :, None] * delta[:, None, :]
        if factor is None and (wanted or generation.slot >= 0):
            factor = root(s / generation.denominator)
        if generation.slot >= 0 and factor is not None:
            models[generation.slot] = (m, factor)
        if wanted and factor is not None:
            mean[row] = m
            cov[row] = factor @ factor.transpose(0, 2, 1) if alone else s / generation.denominator
            log_det[row] = _log_det(factor)
            row += 1


def _log_det(factor: np.ndarray) -> np.ndarray:
    """log det F Fᵀ; −∞ for a factor with fewer columns than rows."""
    d, width = factor.shape[1:]
    if width < d:
        return np.full(factor.shape[0], -np.inf)
    with np.errstate(divide="ignore"):
        if not np.triu(factor[:1], 1).any():
            return np.asarray(2.0 * np.log(np.abs(np.einsum("rii->ri", factor))).sum(axis=1))
        return np.asarray(2.0 * np.linalg.slogdet(factor)[1])
