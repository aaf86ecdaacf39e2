"""What a study of one's own could not see, and how much more of it would be needed.

    lmlab run mixers && lmlab run scale && lmlab run tokenizers && lmlab run losses
    python findings/what_did_not_reproduce.py [RUNS]

reads the finished runs below RUNS (default: runs) and prints every number of
docs/findings/what-did-not-reproduce.md: the difference of each variant to the first, seed by seed, its interval,
and the seeds that would show a difference of 0.01 bits per byte four times in five; and what training at the size
of the literature would cost at the rate that the run had.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from math import inf, sqrt
from pathlib import Path
from statistics import stdev

from lmlab.lab.intervals import Difference, paired, t_quantile

RESOLVE = 0.01  # bits per byte
POWER = 0.8
MOST = 1_000  # seeds
STUDIES = ("mixers", "scale", "tokenizers", "losses")
SIZES = {"a model of 10 M parameters": 10e6, "GPT-2 small, 124 M": 124e6, "7 B": 7e9}
TOKENS = 20  # a parameter: the usual compromise of a training from nothing


def seeds_to_see(difference: float, deviation: float) -> float:
    """The least number of seeds at which a paired t-test at 95 % sees `difference` with probability 0.8."""
    if not _sees(MOST, difference, deviation):
        return inf
    few, enough = 1, MOST
    while enough - few > 1:
        n = (few + enough) // 2
        few, enough = (few, n) if _sees(n, difference, deviation) else (n, enough)
    return enough


def _sees(n: int, difference: float, deviation: float) -> bool:
    error = deviation / sqrt(n)
    return (t_quantile(0.975, n - 1) + t_quantile(POWER, n - 1)) * error <= difference


def by_seed(run: Path) -> dict[str, list[float]]:
    """Bits per byte of each variant (of each loss in a comparison of losses), a number a seed."""
    compared = sorted(run.glob("stages/compare*/stage.json"))
    if compared:
        rows = json.loads(compared[-1].read_text(encoding="utf-8"))["result"]["losses"]
        return {row["label"]: [one["metrics"]["bits_per_byte"] for one in row["runs"]] for row in rows}
    variants = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["variants"]
    return {
        name: [one["bits_per_byte"] for one in variant.get("seeds", {"0": variant}).values()]
        for name, variant in variants.items()
    }


def rate(run: Path) -> float:
    """Training's floating-point operations a second, six a parameter and token, of the fastest variant."""
    variants: Mapping[str, Mapping[str, float]] = json.loads((run / "metrics.json").read_text())["variants"]
    return max(6 * v["parameters"] * v["tokens_per_second"] for v in variants.values())


def study(name: str, values: Mapping[str, Sequence[float]]) -> None:
    first = next(iter(values))
    seeds = len(values[first])
    print(f"\n{name}: bits per byte, {seeds} seeds; {first} {sum(values[first]) / seeds:.3f}")
    print(f"{'':28} {'difference':>10}  {'interval (Holm)':>18}  {'seen':4}  seeds that would show {RESOLVE}")
    for variant, told in paired(values, first).items():
        gaps = [a - b for a, b in zip(values[variant], values[first], strict=True)]
        print(f"{variant:28} {_told(told)}  {seeds_to_see(RESOLVE, stdev(gaps)):6.0f}")


def _told(d: Difference) -> str:
    return f"{d.mean:+10.4f}  [{d.low:+8.4f}, {d.high:+8.4f}]  {'yes' if d.seen else 'no':4}"


def cost(flops: float) -> None:
    print(
        f"\ntraining here: {flops:.2g} floating-point operations a second; {TOKENS} tokens a parameter, one seed:"
    )
    for name, parameters in SIZES.items():
        total = 6 * TOKENS * parameters**2
        print(f"{name:28} {total:.1e} operations: {total / flops / 86_400:,.0f} days here")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Differences, intervals, and what would be needed to see them."
    )
    parser.add_argument("runs", nargs="?", default="runs", type=Path, help="where the finished runs lie")
    runs = parser.parse_args().runs
    there = [name for name in STUDIES if (runs / name / "metrics.json").exists()]
    if not there:
        sys.exit(f"no finished run of {', '.join(STUDIES)} below {runs}: try `lmlab run scale` first")
    for name in there:
        study(name, by_seed(runs / name))
    cost(max(rate(runs / name) for name in there))


if __name__ == "__main__":
    main()
