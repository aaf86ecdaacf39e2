"""What synthetic rows are worth beside fresh real ones: the plateau of `Fresh` over n_real and n_synth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lmlab.autophagy import theory
from lmlab.autophagy.blocks import in_blocks
from lmlab.autophagy.checks import check_bias, whole
from lmlab.autophagy.generators.gaussian import root
from lmlab.autophagy.job import limited
from lmlab.autophagy.random import rng_for
from lmlab.autophagy.wishart import bartlett

_BLOCK_BYTES, _BLOCK_TRIALS = 64 << 20, 1 << 15  # passes over arrays of more trials would leave the cache
_SETTLED = 0.05  # of what the start's fluctuation differs from the plateau's


def phase_map(
    n_real: Sequence[int],
    n_synth: Sequence[int],
    *,
    bias: float,
    d: int = 1,
    trials: int = 4096,
    seed: int = 0,
) -> Float[np.ndarray, "r s"]:
    """n_e / n_r of Fresh(n_r, n_s) for t → ∞: above 1 synthetic rows help, below 1 they harm.

    E W₂² = d(a + v + 1) − 2 E tr Σ^½, where a = E m² and v = E Σ are known exactly (`theory.plateau`). Only
    E tr Σ^½ is drawn, from `trials` runs that start beside the plateau, and tr Σ, whose mean is known,
    takes most of the noise out of it. Large d needs few trials: a trace averages over directions.
    """
    lam = check_bias(bias)
    reals, synths = [whole("n_real", n, 2) for n in n_real], [whole("n_synth", n, 0) for n in n_synth]
    whole("d", d, 1)
    whole("trials", trials, 1)
    found = np.empty((len(reals), len(synths)))

    def cell(index: int, _: slice) -> None:
        i, j = divmod(index, len(synths))
        rng = rng_for(seed, 0, "phase", index)
        w2 = _plateau_w2(reals[i], synths[j], lam, d, trials, rng)
        found[i, j] = theory.effective_n(w2, d) / reals[i]

    with limited(1):
        in_blocks(cell, found.size, 1, None)
    return found


def _plateau_w2(n_r: int, n_s: int, lam: float, d: int, trials: int, rng: np.random.Generator) -> float:
    a, v = theory.plateau(n_r, n_s, bias=lam)
    if n_s == 0 and d == 1:
        return theory.base_w2(n_r)
    rounds, size = _settling(n_r, n_s, lam, v), min(_BLOCK_TRIALS, max(1, _BLOCK_BYTES // (3 * d * d * 8)))
    roots, traces = np.empty(trials), np.empty(trials)
    draw = _line if d == 1 else _matrices
    for begin in range(0, trials, size):
        part = slice(begin, min(begin + size, trials))
        roots[part], traces[part] = draw(n_r, n_s, lam, a, v, d, rounds, part.stop - begin, rng)
    # Control variate: the same trials' tr Σ, whose expectation is d·v. Around v·I, tr Σ^½ moves by its
    # 1/(2√v): known, so that few trials need not tell it.
    mean_root = roots.mean() - (traces.mean() - d * v) / (2.0 * math.sqrt(v))
    return float(d * (a + v + 1.0) - 2.0 * mean_root)


def _settling(n_r: int, n_s: int, lam: float, v: float) -> tuple[int, float]:
    """Generations until the fluctuation of Σ has settled, and its dof at the start.

    Around v·I the fluctuation E of Σ follows E′ = (n_r/N) R + (n_s/N) λ (E + v Q), R and Q of variances
    c/n_r and c/n_s: its stationary variance, relative to v², is that of dof 1/x rows.
    """
    n, kept = n_r + n_s, n_s * lam / (n_r + n_s)
    stationary = (n_r / n**2 + kept * kept * v * v / max(n_s, 1)) / (1.0 - kept * kept)
    rounds = math.ceil(math.log(_SETTLED) / (2.0 * math.log(kept))) if kept > 0 else 1
    return max(2, rounds), max(2.0, v * v / stationary)


def _line(
    n_r: int,
    n_s: int,
    lam: float,
    a: float,
    v: float,
    d: int,
    rounds: tuple[int, float],
    trials: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """(√Σ, Σ) of each trial for d = 1."""
    n = n_r + n_s
    mean = rng.standard_normal(trials) * math.sqrt(a)
    var = rng.chisquare(rounds[1], trials) * (v / rounds[1])
    for _ in range(rounds[0]):
        real = rng.standard_normal(trials) / math.sqrt(n_r)
        made = mean + np.sqrt(var * (lam / n_s)) * rng.standard_normal(trials)
        scatter = rng.chisquare(n_r - 1, trials)
        if n_s > 1:
            scatter += lam * var * rng.chisquare(n_s - 1, trials)
        delta = made - real
        mean = real + delta * (n_s / n)
        var = (scatter + delta * delta * (n_r * n_s / n)) / (n - 1)
    return np.sqrt(var), var


def _matrices(
    n_r: int,
    n_s: int,
    lam: float,
    a: float,
    v: float,
    d: int,
    rounds: tuple[int, float],
    trials: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """(tr Σ^½, tr Σ) of each trial for d > 1."""
    n = n_r + n_s
    mean = rng.standard_normal((trials, d)) * math.sqrt(a)
    start = max(1, round(rounds[1]))
    factor = bartlett(rng, trials, d, start) * math.sqrt(v / start)
    for _ in range(rounds[0]):
        real = rng.standard_normal((trials, d)) / math.sqrt(n_r)
        drawn = bartlett(rng, trials, d, n_r - 1)
        cov = drawn @ drawn.transpose(0, 2, 1)
        if n_s > 0:
            width = factor.shape[2]
            z = rng.standard_normal((trials, width, 1)) * math.sqrt(lam / n_s)
            made = mean + (factor @ z)[..., 0]
            if n_s > 1:
                drawn = factor @ bartlett(rng, trials, width, n_s - 1)
                cov += lam * (drawn @ drawn.transpose(0, 2, 1))
            delta = made - real
            mean = real + delta * (n_s / n)
            cov += (n_r * n_s / n) * delta[:, :, None] * delta[:, None, :]
        cov /= n - 1
        factor = root(cov)
    values = np.maximum(np.linalg.eigvalsh(cov), 0.0)
    return np.sqrt(values).sum(axis=1), values.sum(axis=1)
