"""How many synthetic rows a Gaussian may be fed: the closed form against the crossing that is drawn.

A Gaussian is fitted anew at each generation to n_r fresh real rows and n_s rows of the model before, drawn with
bias λ. Below n_s* the synthetic rows help, above they harm (docs/findings/admissible-synthetic.md derives it).
Here n_e/n_r of the plateau is drawn on both sides of n_s* and the crossing through 1 is read off, for five biases,
d = 1 and d = 100, and three ratios n_r/n_s*. Prints a Markdown table and writes the CSV beside the page.

    python findings/admissible_synthetic.py [--quick]
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from lmlab.autophagy import laws, theory

BIASES = (0.5, 0.6, 0.7, 0.8, 0.9)
TIMES = (2, 10, 40)  # n_r in n_s*
POINTS = (0.7, 0.9, 1.1, 1.3)  # n_s in n_s*
SEEDS = 100
TRIALS = {1: 60_000, 100: 8}  # a seed and point
OUT = Path(__file__).parents[1] / "docs" / "findings" / "admissible-synthetic.csv"


def crossing(n_s: np.ndarray, excess: np.ndarray) -> float:
    """Where the straight line through (n_s, excess/n_s) is 0: excess = n_s (α − β n_s) to leading orders."""
    slope, start = np.polyfit(n_s, excess / n_s, 1)
    return float(-start / slope)


def measure(bias: float, d: int, times: int, trials: int, seeds: int) -> tuple[float, int, float, float]:
    """n_s*, n_r, the crossing and its standard error, by leaving out one seed at a time."""
    limit = theory.admissible_n_synth(bias, d)
    n_r = round(times * limit)
    n_s = [round(limit * point) for point in POINTS]
    # Against the same fit without synthetic rows: n_e's formula for d > 1 holds to first order only.
    ratios = np.array(
        [
            laws.phase_map([n_r], [0, *n_s], bias=bias, d=d, trials=trials, seed=seed)[0]
            for seed in range(seeds)
        ]
    )

    def of(kept: np.ndarray) -> float:
        mean = (1.0 / kept).mean(axis=0)  # W₂² up to a factor; n_e is 1/W₂², for d = 1 nearly so
        return crossing(np.array(n_s, float), mean[0] / mean[1:] - 1.0)

    left_out = np.array([of(np.delete(ratios, i, axis=0)) for i in range(seeds)])
    error = np.sqrt((seeds - 1) / seeds * ((left_out - left_out.mean()) ** 2).sum())
    return limit, n_r, of(ratios), float(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the seeds")
    quick = parser.parse_args().quick
    rows = []
    print("| d | λ | n_s* | n_r | n_r / n_s* | crossing | n_s* off by |")
    print("|---|---|---|---|---|---|---|")
    for d, trials in TRIALS.items():
        for bias in BIASES:
            for times in TIMES:
                limit, n_r, found, error = measure(bias, d, times, trials, SEEDS // 10 if quick else SEEDS)
                off = limit / found - 1
                rows.append([d, bias, limit, n_r, times, found, error, off])
                print(
                    f"| {d} | {bias} | {limit:.1f} | {n_r} | {times} | {found:.1f} ± {error:.1f} | {off:+.1%} |"
                )
                sys.stdout.flush()
    if not quick:
        with OUT.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["d", "bias", "n_s_star", "n_r", "times", "crossing", "stderr", "off"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
