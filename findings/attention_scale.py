"""Gradient of attention against the scale of its logits: the published optimum and the true curve.

    python findings/attention_scale.py

prints every number of docs/findings/attention-scale.md, in some seconds of one core. Logits are alpha times
independent standard normals; n keys.
"""

import math

import torch
from torch import Tensor

from lmlab.attention import GradientScale, attention_scale, gradient_limit, gradient_norm, row_gradient

COUNTS = (64, 512, 4096, 16384)
ALPHAS = (1.0, 2.0, 3.0, 4.0, 6.0)


def rows(count: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curves() -> None:
    print("mean gradient of a row: exact | Monte Carlo, 1,000 rows, with its standard error | annealed")
    worst = 0.0
    for n in COUNTS:
        logits = rows(1000, n)
        print(f"n = {n}, limit {gradient_limit(n):.3f}")
        for alpha in ALPHAS:
            exact = float(gradient_norm(alpha, n))
            drawn = row_gradient(logits, alpha)
            mean, error = float(drawn.mean()), float(drawn.std()) / math.sqrt(len(drawn))
            worst = max(worst, abs(mean - exact) / error)
            annealed = float(gradient_norm(alpha, n, form="annealed"))
            digits = 3 if annealed > -100 else 0
            print(f"  alpha {alpha:.0f}   {exact:.3f} | {mean:.3f} ± {error:.3f} | {annealed:,.{digits}f}")
    print(f"largest distance of Monte Carlo from the exact curve: {worst:.1f} standard errors")


def rises() -> None:
    grid = torch.linspace(0, 24, 481, dtype=torch.float64)
    for n in COUNTS:
        f = gradient_norm(grid, float(n))
        assert isinstance(f, Tensor)
        share = float(f[-1]) / float(gradient_limit(n))
        print(
            f"n = {n}: least step of the curve on [0, 24] {float(f.diff().min()):.1e}, share at 24 {share:.3f}"
        )


def rules() -> None:
    print("n | annealed | fit | share of the limit at annealed | at alpha = 1 | alpha of share 0.9 | typical")
    for n in (64, 512, 1024, 4096, 16384, 131072):
        annealed = float(attention_scale(n))
        limit = float(gradient_limit(n))
        at, at_one = (float(gradient_norm(x, n)) / limit for x in (annealed, 1.0))
        fit, share, typical = (
            float(attention_scale(n, rule=GradientScale(form))) for form in ("fit", "share", "typical")
        )
        print(f"{n} | {annealed:.3f} | {fit:.3f} | {at:.3f} | {at_one:.3f} | {share:.3f} | {typical:.3f}")


def typical() -> None:
    """The maximiser of E ln a by Monte Carlo, on eight sets of rows for the error."""
    for n, count in ((64, 4000), (512, 1600), (4096, 400)):
        grid = torch.arange(0.7, 1.35, 0.03, dtype=torch.float64) * 1.03 * math.sqrt(2 * math.log(n))
        found = []
        for seed in range(8):
            logits = rows(count // 8, n, seed=seed)
            mean = torch.stack([row_gradient(logits, float(alpha)).log().mean() for alpha in grid])
            # a parabola through the grid's middle: the mean's noise is smooth in alpha, the grid is not
            x = grid - grid.mean()
            design = torch.stack([torch.ones_like(x), x, x**2, x**3], 1)
            _, b, c, d = torch.linalg.lstsq(design, mean[:, None]).solution[:, 0].tolist()
            root = (-2 * c - math.sqrt(4 * c * c - 12 * d * b)) / (6 * d)
            found.append(root + float(grid.mean()))
        each = torch.tensor(found, dtype=torch.float64)
        formula = float(attention_scale(n, rule=GradientScale("typical")))
        error = float(each.std()) / math.sqrt(len(found))
        print(
            f"n = {n}: geometric mean greatest at {float(each.mean()):.2f} ± {error:.2f}; formula {formula:.3f}"
        )


def few_rows_saturate() -> None:
    n, alpha = 4096, float(attention_scale(4096, rule=GradientScale("share")))
    for factor in (1.0, 2.0, 4.0):
        drawn = row_gradient(rows(1000, n), factor * alpha)
        low, middle = drawn.quantile(0.1), drawn.median()
        print(
            f"alpha {factor * alpha:.2f}: mean {float(drawn.mean()):.3f}, "
            f"median {float(middle):.3f}, 10 % {float(low):.3f}"
        )


PARTS = (curves, rises, rules, typical, few_rows_saturate)

if __name__ == "__main__":
    for part in PARTS:
        print(f"\n== {part.__name__.replace('_', ' ')}")
        part()
