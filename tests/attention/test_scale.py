"""Scale rules and the gradient measure, against independent integrals, sampling and closed forms."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar

from lmlab.attention.gradient import gradient_limit, gradient_norm
from lmlab.attention.learned import LearnedScale
from lmlab.attention.reference import (
    annealed_normal,
    exact_by_collisions,
    log_moment_cosine,
    row_measure,
    sampled_rows,
    typical_by_sampling,
)
from lmlab.attention.row_measure import row_gradient
from lmlab.attention.scale import (
    EntropyInvariant,
    GradientScale,
    InverseSqrt,
    MuP,
    ScaleRule,
    attention_scale,
    attention_scale_of,
)


@pytest.mark.parametrize(("alpha", "n"), [(1.0, 2.0), (0.3, 7.0), (2.4055, 64.0), (0.05, 3.5)])
def test_exact_mean_equals_the_second_integral(alpha: float, n: float) -> None:
    assert gradient_norm(alpha, n) == pytest.approx(exact_by_collisions(alpha, n), abs=1e-8)


@pytest.mark.parametrize("head_dim", [None, 4, 7, 64])
@pytest.mark.parametrize(("alpha", "n"), [(1.5, 3), (6.0, 40)])
def test_exact_mean_equals_sampling(alpha: float, n: int, head_dim: int | None) -> None:
    exact = gradient_norm(alpha, n, logits="normal" if head_dim is None else "cosine", head_dim=head_dim)
    z = math.inf
    for seed in (0, 1):  # one failure has a chance of 6e-5; it is tried once more
        a = row_measure(sampled_rows(n, 20_000, head_dim=head_dim, seed=seed), alpha)
        z = min(z, abs(a.mean() - exact) / (a.std() / math.sqrt(len(a))))
    assert z < 4


def test_exact_mean_rises_to_its_limit() -> None:
    for n in (2, 64, 4096):
        values = [gradient_norm(a, n) for a in (0.01, 0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)]
        assert values == sorted(values)
        assert 0.9 < values[-1] / gradient_limit(n) < 1
    for n in (2, 64):
        values = [gradient_norm(a, n, logits="cosine", head_dim=16) for a in (1.0, 8.0, 32.0, 64.0)]
        assert values == sorted(values)
        assert values[-1] < gradient_limit(n, logits="cosine", head_dim=16)


def test_limit_is_the_mean_of_the_largest() -> None:
    assert gradient_limit(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-12)
    assert gradient_limit(3) == pytest.approx(1.5 / math.sqrt(math.pi), abs=1e-12)
    assert gradient_limit(1) == 0
    largest = sampled_rows(64, 40_000, head_dim=9, seed=3).max(-1)
    sampled = 6 * largest / (1 - largest**2)
    assert abs(sampled.mean() - gradient_limit(64, logits="cosine", head_dim=9)) < 4 * sampled.std() / 200


def test_annealed_optimum_solves_its_equation_and_maximises_its_form() -> None:
    n = torch.logspace(0, 12, 200, dtype=torch.float64)
    alpha = attention_scale(n)
    assert ((1 + 2 * alpha**2) * (alpha**2).exp() / n - 1).abs().max() < 1e-10
    assert attention_scale(1) == 0
    for m in (7.0, 300.0, 1e5):
        best = minimize_scalar(lambda a, m=m: -annealed_normal(a, m), bounds=(0, 6), options={"xatol": 1e-12})
        assert attention_scale(m) == pytest.approx(best.x, abs=1e-6)
        assert gradient_norm(1.3, m, form="annealed") == pytest.approx(annealed_normal(1.3, m))


@pytest.mark.parametrize(("n", "head_dim"), [(4096, 32), (4096, 128), (37, 64)])
def test_annealed_optimum_for_cosines(n: float, head_dim: int) -> None:
    def loss(a: float) -> float:
        return -a * (
            1 - math.exp(log_moment_cosine(2 * a, head_dim) - 2 * log_moment_cosine(a, head_dim)) / n
        )

    best = minimize_scalar(loss, bounds=(0.1, 60), options={"xatol": 1e-12})
    rule = GradientScale(logits="cosine")
    assert attention_scale(n, head_dim=head_dim, rule=rule) == pytest.approx(best.x, abs=2e-6)


def test_the_values_that_the_documentation_quotes() -> None:
    assert attention_scale(4096) == pytest.approx(2.4055, abs=5e-5)
    assert attention_scale(4096, head_dim=64) == pytest.approx(0.3007, abs=5e-5)
    assert gradient_norm(2.4055, 4096) / gradient_limit(4096) == pytest.approx(0.645, abs=5e-4)
    for n, alpha in {64: 3.5034, 1024: 4.0679, 4096: 4.3185, 16384: 4.5542, 131072: 4.8855}.items():
        assert attention_scale(n, rule=GradientScale("share")) == pytest.approx(alpha, abs=5e-5)


def test_share_is_the_share() -> None:
    for r in (0.2, 0.9, 0.99):
        alpha = attention_scale(500, rule=GradientScale("share", share=r))
        assert gradient_norm(alpha, 500) / gradient_limit(500) == pytest.approx(r, abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "head_dim"),
    [
        (GradientScale("share"), None),
        (GradientScale("share", share=0.2), None),
        (GradientScale(logits="cosine"), 5),
        (GradientScale(logits="cosine"), 64),
    ],
)
def test_rows_are_interpolated_exactly(rule: GradientScale, head_dim: int | None) -> None:
    rows = attention_scale(torch.arange(1, 1001).view(10, 100), rule=rule, head_dim=head_dim)
    for n in (1, 2, 3, 7, 8, 17, 999):
        one = attention_scale(n, rule=rule, head_dim=head_dim)
        assert float(rows.view(-1)[n - 1]) == pytest.approx(one, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("n", [4, 64, 1024])
def test_typical_maximises_the_geometric_mean(n: int) -> None:
    formula = attention_scale(n, rule=GradientScale("typical"))
    sampled = typical_by_sampling(n, 4000, seed=5, low=0.5, high=8.0)
    assert formula == pytest.approx(sampled, rel=0.025)


def test_row_measure_of_real_logits() -> None:
    logits = torch.tensor(sampled_rows(50, 30, head_dim=None, seed=1))
    assert torch.allclose(
        row_gradient(logits, 2.0), torch.tensor(row_measure(logits.numpy(), 2.0)), atol=1e-14
    )
    masked = torch.cat([logits, torch.full((30, 9), float("-inf"), dtype=torch.float64)], -1)
    assert torch.allclose(row_gradient(masked, 2.0), row_gradient(logits, 2.0), atol=1e-15)
    # one key has all the weight: 1 - sum p^2 is 2 e^-40, which 1 - p^2 would round to 0
    assert float(row_gradient(torch.tensor([0.0, -40.0]))) == pytest.approx(2 * math.exp(-40), rel=1e-6)
    alpha = torch.linspace(0.5, 2, 30, dtype=torch.float64)
    by_hand = torch.stack([row_gradient(row, float(a)) for row, a in zip(logits, alpha, strict=True)])
    assert torch.allclose(row_gradient(logits, alpha), by_hand)


def test_rules_give_multipliers() -> None:
    n = torch.tensor([1.0, 128.0, 5000.0], dtype=torch.float64)
    assert torch.equal(InverseSqrt()(n, head_dim=64), torch.full_like(n, 0.125))
    assert MuP()(n, head_dim=64)[0] == 1 / 64 and MuP(64)(n, head_dim=64)[0] == 0.125
    assert EntropyInvariant(128, floor=1.0)(n, head_dim=64)[0] == 0.125
    assert EntropyInvariant(128)(n, head_dim=64)[1] == 0.125
    fixed = GradientScale(n=1024)(n, head_dim=64)
    assert fixed.shape == n.shape and len(set(fixed.tolist())) == 1
    learned = LearnedScale(3, EntropyInvariant(128))
    assert learned(n, head_dim=64).shape == (3, 3)
    assert torch.allclose(learned(n, head_dim=64)[1], EntropyInvariant(128)(n, head_dim=64))
    learned(n, head_dim=64).sum().backward()
    assert learned.log_gain.grad is not None and bool((learned.log_gain.grad != 0).all())
    for rule in (InverseSqrt(), GradientScale(), learned):
        assert isinstance(rule, ScaleRule)


def test_a_recipe_names_rules() -> None:
    def of(option: object) -> object:
        return attention_scale_of(option, train_length=256, heads=4)

    assert of(None) is None and of(0.5) == 0.5
    assert of("log-n") == EntropyInvariant(256)
    assert of({"rule": "gradient", "form": "share", "n": 1024}) == GradientScale("share", n=1024)
    ssmax = of("ssmax")
    assert isinstance(ssmax, LearnedScale) and ssmax.initial == EntropyInvariant(256)
    with pytest.raises(ValueError, match="no field 'shape'; its fields: form, share"):
        of({"rule": "gradient", "shape": 1})
    with pytest.raises(ValueError, match="inv-sqrt, mup"):
        of("sqrt")


def bad(rule: Any, **options: Any) -> Callable[[], object]:
    return lambda: attention_scale(8, rule=rule, **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: attention_scale(0.5), ValueError, "n is a number of keys"),
        (lambda: attention_scale(8, head_dim=0), ValueError, "head_dim"),
        (bad("annealed"), TypeError, "InverseSqrt()"),
        (bad(InverseSqrt), TypeError, "InverseSqrt()"),
        (bad(MuP()), ValueError, "head_dim"),
        (bad(GradientScale(logits="cosine"), head_dim=3), ValueError, "head_dim > 3"),
        (bad(GradientScale("fit", logits="cosine"), head_dim=64), ValueError, "128"),
        (lambda: GradientScale("best"), ValueError, "annealed"),  # type: ignore[arg-type]
        (lambda: GradientScale("share", share=1.0), ValueError, "share"),
        (lambda: GradientScale("typical", logits="cosine"), ValueError, "typical"),
        (lambda: GradientScale(floor=-1), ValueError, "floor"),
        (lambda: EntropyInvariant(1), ValueError, "train_length"),
        (lambda: gradient_norm(-1.0, 8), ValueError, "alpha"),
        (lambda: gradient_norm(65.0, 8), ValueError, "alpha <= 64"),
        (lambda: gradient_norm(1.0, 2e9), ValueError, "n <= 1e9"),
        (lambda: gradient_norm(1.0, 8, form="best"), ValueError, "form"),  # type: ignore[call-overload]
        (lambda: gradient_limit(0), ValueError, "n is a number of keys"),
        (lambda: LearnedScale(0), ValueError, "heads"),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        call()


def test_arguments_broadcast() -> None:
    alpha = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    n = torch.tensor([2.0, 3.0, 3.0], dtype=torch.float64)
    value = gradient_norm(alpha, n)
    assert isinstance(value, torch.Tensor)
    assert value.shape == (2, 3) and float(value[1, 0]) == gradient_norm(1.0, 2)
    assert float(gradient_limit(n)[1]) == gradient_limit(3)  # type: ignore[index]
