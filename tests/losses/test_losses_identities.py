"""Identities that hold between the losses, and with what torch and scipy compute."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmlab.losses import (
    CE,
    DFT,
    EMO,
    TVD,
    Cost,
    Focal,
    Loss,
    MixCE,
    TaiLr,
    emo_loss,
    linear_cross_entropy,
    linear_emo_loss,
    linear_loss,
    logits_loss,
    named_loss,
    reference,
)

pytestmark = pytest.mark.filterwarnings("ignore:budget")

NAMES = ("ce", "tvd", "dft", "focal", "tailr", "mixce", "emo", "emo-paper", "emo2", "emo2-adaptive")


def _leaves(n: int, v: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64).requires_grad_()
    weight = (torch.randn(v, d, generator=g, dtype=torch.float64) / d**0.5).requires_grad_()
    return hidden, weight, torch.randint(0, v, (n,), generator=g)


def _gradients(loss: Loss, hidden: Tensor, weight: Tensor, target: Tensor, **options: object) -> list[Tensor]:
    value = linear_loss(hidden, weight, target, loss, cost=Cost.frozen(weight), **options)
    return [value.detach(), *torch.autograd.grad(value, (hidden, weight))]


def _close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ce_is_torchs(smoothing: float, reduction: str) -> None:
    hidden, weight, target = _leaves(19, 53, 8)
    target[3] = -100
    options = {"label_smoothing": smoothing, "reduction": reduction}
    ours = linear_cross_entropy(hidden, weight, target, **options)
    theirs = F.cross_entropy(F.linear(hidden, weight), target, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    upstream = torch.rand_like(theirs)
    ours, theirs = (list(torch.autograd.grad(x, (hidden, weight), upstream)) for x in (ours, theirs))
    _close(ours, theirs, 1e-13)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch without linear_cross_entropy")
def test_ce_is_torchs_fused_function() -> None:
    hidden, weight, target = _leaves(19, 53, 8)
    ours = linear_cross_entropy(hidden, weight, target)
    theirs = F.linear_cross_entropy(hidden, weight, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_linear_form_is_the_logits_form(name: str, reduction: str) -> None:
    hidden, weight, target = _leaves(23, 41, 6)
    target[5] = -100
    options = {"cost": Cost.frozen(weight), "softcap": 6.0, "z_loss": 1e-3, "reduction": reduction}
    if name != "tvd":
        options["label_smoothing"] = 0.1
    a, stats_a = linear_loss(hidden, weight, target, name, return_stats=True, **options)
    b, stats_b = logits_loss(hidden @ weight.T, target, name, return_stats=True, **options)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    upstream = torch.rand_like(a)
    _close(*(list(torch.autograd.grad(x, (hidden, weight), upstream)) for x in (a, b)), 1e-12)
    for field in ("ce", "emo", "lse"):
        torch.testing.assert_close(getattr(stats_a, field), getattr(stats_b, field), rtol=1e-12, atol=1e-13)
    assert torch.equal(stats_a.correct, stats_b.correct) and stats_a.count == stats_b.count == 22


def test_the_short_forms_are_the_long_ones() -> None:
    hidden, weight, target = _leaves(9, 17, 4)
    cost = Cost.frozen(weight)
    assert torch.equal(
        linear_emo_loss(hidden, weight, target, cost),
        linear_loss(hidden, weight, target, "emo", cost=cost),
    )
    logits = hidden @ weight.T
    assert torch.equal(emo_loss(logits, target, cost, "emo2"), logits_loss(logits, target, "emo2", cost=cost))
    value, stats = emo_loss(logits, target, cost, return_stats=True)
    assert stats.emo is not None and value.ndim == 0
    assert linear_emo_loss(hidden, weight, target, cost, return_stats=True)[1].emo is not None
    assert linear_cross_entropy(hidden, weight, target, return_stats=True)[1].emo is None


def test_with_a_cost_of_zero_and_one_emo_is_tvd() -> None:
    hidden, weight, target = _leaves(21, 33, 7)
    zero_one = Cost.zero_one(33)
    emo = linear_loss(hidden, weight, target, EMO("none", ce=0.0, emo=1.0), cost=zero_one)
    tvd = linear_loss(hidden, weight, target, TVD())
    p = F.linear(hidden, weight).softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(tvd, (1 - p).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(emo, tvd, rtol=1e-14, atol=0)
    _close(*(list(torch.autograd.grad(x, (hidden, weight))) for x in (emo, tvd)), 1e-14)


def test_dft_has_the_gradient_of_tvd() -> None:
    hidden, weight, target = _leaves(21, 33, 7)
    _close(
        _gradients(DFT(), hidden, weight, target)[1:], _gradients(TVD(), hidden, weight, target)[1:], 1e-14
    )


@pytest.mark.parametrize("loss", [Focal(0.0), MixCE(1.0), TaiLr(0.0), EMO("none", ce=1.0, emo=0.0)], ids=str)
def test_limits_of_the_family_are_ce(loss: Loss) -> None:
    hidden, weight, target = _leaves(21, 33, 7)
    options = {"label_smoothing": 0.1, "z_loss": 1e-3}
    _close(
        _gradients(loss, hidden, weight, target, **options),
        _gradients(CE(), hidden, weight, target, **options),
        1e-14,
    )


def test_the_papers_value_hides_what_its_gradient_does() -> None:
    hidden, weight, target = _leaves(21, 33, 7)
    cost = Cost.frozen(weight)
    value, stats = linear_emo_loss(
        hidden, weight, target, cost, named_loss("emo-paper"), reduction="none", return_stats=True
    )
    ce, emo = stats.ce, stats.emo
    torch.testing.assert_close(value, ce / 2 + 0.5 * ce * emo / (emo + 1e-10), rtol=1e-13, atol=0)
    torch.testing.assert_close(value, ce, rtol=1e-6, atol=0)
    ours = _gradients(named_loss("emo-paper"), hidden, weight, target)[1]
    assert (ours - _gradients(CE(), hidden, weight, target)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_rows_gradient_sums_to_nothing(name: str) -> None:
    hidden, weight, target = _leaves(21, 33, 7)
    bias = torch.zeros(33, dtype=torch.float64, requires_grad=True)
    value = linear_loss(hidden, weight, target, name, cost=Cost.frozen(weight), bias=bias)
    assert abs(float(torch.autograd.grad(value, bias)[0].sum())) < 1e-15


@pytest.mark.parametrize("loss", [CE(), TVD(), Focal(), EMO("none", ce=0.5, emo=2.0)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_finite_differences(loss: Loss, reduction: str) -> None:
    """Only of losses without a constant part: those with one are checked against an oracle that detaches."""
    hidden, weight, target = _leaves(5, 7, 3)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    cost = Cost.frozen(weight)

    def f(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options = {"bias": bias, "softcap": 3.0, "z_loss": 1e-2, "reduction": reduction}
        return linear_loss(hidden, weight, target, loss, cost=cost, **options)

    assert torch.autograd.gradcheck(f, (hidden, weight, bias))
    logits = (hidden @ weight.T).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: logits_loss(x, target, loss, cost=cost, reduction=reduction), (logits,)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_retained_graph_gives_the_same_again(reduction: str) -> None:
    hidden, weight, target = _leaves(21, 33, 7)
    cost = Cost.frozen(weight)
    for value in (
        linear_loss(hidden, weight, target, "emo", cost=cost, reduction=reduction),
        logits_loss(hidden @ weight.T, target, "emo", cost=cost, reduction=reduction),
    ):
        upstream = torch.rand_like(value)
        first = torch.autograd.grad(value, (hidden, weight), upstream, retain_graph=True)
        again = torch.autograd.grad(value, (hidden, weight), upstream, retain_graph=True)
        twice = torch.autograd.grad(value, (hidden, weight), 2 * upstream)
        for a, b, c in zip(first, again, twice, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(c, 2 * a, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["ce", "emo", "focal"])
def test_parts_of_a_batch_add_up(name: str) -> None:
    hidden, weight, target = _leaves(30, 33, 7)
    target[4] = target[17] = -100
    cost = Cost.frozen(weight)
    whole = linear_loss(hidden, weight, target, name, cost=cost)
    parts = [
        linear_loss(hidden[part], weight, target[part], name, cost=cost, num_items=28)
        for part in (slice(0, 7), slice(7, 8), slice(8, 30))
    ]
    total = torch.stack(parts).sum()
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-13)
    _close(*(list(torch.autograd.grad(x, (hidden, weight))) for x in (total, whole)), 1e-12)


@pytest.mark.parametrize("name", ["ce", "emo", "tailr"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_token_of_the_logits_form_knows_no_batch(name: str, dtype: torch.dtype) -> None:
    """Bit for bit, whatever the chunk, the order, the number of threads and the other tokens are."""
    g = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(40, 301, generator=g)).to(dtype).requires_grad_()
    target = torch.randint(0, 301, (40,), generator=g)
    # A table: the cosines of an embedding come from a matmul, whose rounding knows its chunk.
    cost = Cost.matrix(torch.rand(301, 301, generator=g).fill_diagonal_(0))
    upstream = torch.rand(40, generator=g, dtype=torch.promote_types(dtype, torch.float32))

    def run(logits: Tensor, target: Tensor, upstream: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        value = logits_loss(logits, target, name, cost=cost, reduction="none", z_loss=1e-4, **options)
        return value.detach(), torch.autograd.grad(value, logits, upstream)[0]

    value, gradient = run(logits, target, upstream)
    threads = torch.get_num_threads()
    try:
        for budget, count in itertools.product((0, 10_000, 2**26), (1, 3)):
            torch.set_num_threads(count)
            assert all(map(torch.equal, run(logits, target, upstream, budget=budget), (value, gradient)))
    finally:
        torch.set_num_threads(threads)
    order = torch.randperm(40, generator=g)
    shuffled = run(logits[order].detach().requires_grad_(), target[order], upstream[order])
    assert torch.equal(shuffled[0], value[order]) and torch.equal(shuffled[1], gradient[order])


@pytest.mark.parametrize("name", ["ce", "emo", "tailr"])
def test_the_linear_form_hardly_knows_its_batch(name: str) -> None:
    hidden, weight, target = _leaves(40, 61, 9)
    cost = Cost.frozen(weight)
    upstream = torch.rand(40, dtype=torch.float64)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    truth = None
    for budget, shuffled in itertools.product((0, 3000, 2**26), (False, True)):
        pick = order if shuffled else torch.arange(40)
        value = linear_loss(
            hidden[pick], weight, target[pick], name, cost=cost, reduction="none", budget=budget
        )
        inverse = torch.empty_like(pick).scatter_(0, pick, torch.arange(40))
        found = [value[inverse].detach(), *torch.autograd.grad(value, (hidden, weight), upstream[pick])]
        truth = truth or found
        _close(found, truth, 1e-13)


def test_emo_is_the_cost_of_the_only_plan() -> None:
    g = torch.Generator().manual_seed(0)
    embedding = torch.randn(6, 3, generator=g, dtype=torch.float64)
    logits = torch.randn(4, 6, generator=g, dtype=torch.float64)
    target = torch.tensor([0, 5, 2, 2])
    c = reference.cosine_cost(embedding)
    stats = emo_loss(logits, target, Cost.frozen(embedding), return_stats=True)[1]
    for row in range(4):
        tau = F.one_hot(target[row], 6).double()
        assert float(stats.emo[row]) == pytest.approx(
            reference.transport(logits[row].softmax(0), tau, c), abs=1e-9
        )
