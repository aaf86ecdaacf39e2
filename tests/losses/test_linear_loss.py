"""linear_loss against the dense float64 reference: every loss, every option, odd sizes, gradients too."""

import itertools

import pytest
import torch
from torch import Tensor

from lmlab.losses import (
    CE,
    EMO,
    TVD,
    Cost,
    Focal,
    LinearLoss,
    Loss,
    MixCE,
    TaiLr,
    linear_loss,
    named_loss,
    reference,
)

pytestmark = pytest.mark.filterwarnings("ignore:budget")

NAMES = [
    *("ce", "tvd", "dft", "focal", "tailr", "mixce"),
    *("emo", "emo-paper", "emo-paper-adaptive", "emo-continual", "emo2", "emo2-adaptive"),
]
MIXED = EMO("none", ce=0.7, emo=0.3)


def _case(n: int, v: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias, target; with an ignored token, equal targets, and targets 0 and v - 1."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, d), (v, d), (v,)))
    target = torch.randint(0, v, (n,), generator=g)
    if n > 6:
        target[0], target[1], target[2], target[4] = 0, v - 1, -100, target[5]
    return hidden / d**0.25, weight / d**0.25, bias, target


def _agree(
    loss: Loss, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, **options: object
) -> None:
    budget = options.pop("budget", 2**26)
    leaves = [t for t in (hidden, weight, bias) if t is not None]
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    theirs = [leaf.clone().requires_grad_() for leaf in leaves]
    c = reference.cosine_cost(weight)
    value = linear_loss(
        ours[0],
        ours[1],
        target,
        loss,
        cost=Cost.frozen(weight),
        bias=ours[2] if bias is not None else None,
        budget=budget,
        **options,
    )
    truth = reference.linear_loss(
        theirs[0], theirs[1], target, loss, c=c, bias=theirs[2] if bias is not None else None, **options
    )
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
    upstream = torch.randn(value.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad(value, ours, upstream), torch.autograd.grad(truth, theirs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("budget", [0, 3 * 2 * 97 * 8, 2**26], ids=["one row", "three rows", "all rows"])
@pytest.mark.parametrize("name", [*NAMES, "mixed"])
def test_every_loss_with_every_option_equals_the_reference(name: str, budget: int) -> None:
    loss = MIXED if name == "mixed" else named_loss(name)
    hidden, weight, bias, target = _case(13, 97, 7)
    for smoothing, z_loss, softcap, reduction, biased in itertools.product(
        (0.0, 0.1), (0.0, 1e-3), (None, 5.0), ("mean", "sum", "none"), (False, True)
    ):
        if isinstance(loss, TVD) and smoothing:
            continue
        _agree(
            loss,
            hidden,
            weight,
            bias if biased else None,
            target,
            label_smoothing=smoothing,
            z_loss=z_loss,
            softcap=softcap,
            reduction=reduction,
            budget=budget,
        )


@pytest.mark.parametrize("loss", [CE(), EMO(), Focal(), MIXED], ids=str)
@pytest.mark.parametrize("v", [1, 2, 7, 17, 33, 97, 1000])
@pytest.mark.parametrize("n, d", [(1, 1), (2, 7), (7, 2), (33, 17)])
def test_odd_sizes(loss: Loss, n: int, v: int, d: int) -> None:
    _agree(loss, *_case(n, v, d, seed=v), label_smoothing=0.1, softcap=4.0, z_loss=1e-3)
    _agree(loss, *_case(n, v, d, seed=v))


@pytest.mark.parametrize("name", [*NAMES, "mixed"])
def test_a_tied_head_gets_the_gradient_of_both_ends(name: str) -> None:
    """hidden is made of the head's own rows; the cost is of the same rows, and a constant."""
    loss = MIXED if name == "mixed" else named_loss(name)
    _, weight, bias, target = _case(13, 97, 7)
    ids = torch.randint(0, 97, (13,), generator=torch.Generator().manual_seed(2))
    c = reference.cosine_cost(weight)
    for smoothing, z_loss, softcap, reduction in itertools.product(
        (0.0, 0.1), (0.0, 1e-3), (None, 5.0), ("mean", "sum", "none")
    ):
        if isinstance(loss, TVD) and smoothing:
            continue
        options = {
            "label_smoothing": smoothing, "z_loss": z_loss, "softcap": softcap, "reduction": reduction,
            "bias": bias,
        }  # fmt: skip
        ours, theirs = (weight.clone().requires_grad_() for _ in range(2))
        cost = Cost.live(ours) if softcap else Cost.frozen(ours)
        value = linear_loss(torch.tanh(ours[ids]), ours, target, loss, cost=cost, **options)
        truth = reference.linear_loss(torch.tanh(theirs[ids]), theirs, target, loss, c=c, **options)
        torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
        upstream = torch.rand_like(truth)
        a, b = (torch.autograd.grad(x, w, upstream)[0] for x, w in ((value, ours), (truth, theirs)))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_leading_axes_and_num_items() -> None:
    hidden, weight, bias, target = _case(12, 17, 5)
    shaped = linear_loss(hidden.view(3, 4, 5), weight, target.view(3, 4), reduction="none")
    flat = linear_loss(hidden, weight, target, reduction="none")
    assert torch.equal(shaped, flat.view(3, 4))
    _agree(CE(), hidden, weight, bias, target, num_items=40)
    as_tensor = linear_loss(hidden, weight, target, num_items=torch.tensor(40))
    assert torch.equal(as_tensor, linear_loss(hidden, weight, target, num_items=40))


def test_module_keeps_the_statistics_of_its_last_call() -> None:
    hidden, weight, _, target = _case(12, 17, 5)
    criterion = LinearLoss(MixCE(0.3), Cost.frozen(weight), softcap=3.0)
    value = criterion(hidden, weight, target, softcap=5.0)
    assert torch.equal(value, linear_loss(hidden, weight, target, MixCE(0.3), softcap=5.0))
    stats = criterion.last_stats
    assert stats is not None and stats.emo is not None and stats.count == 11
    keep = target != -100
    _, ce, emo, lse = reference.row_losses(
        hidden[keep] @ weight.T, target[keep], TaiLr(), c=reference.cosine_cost(weight), softcap=5.0
    )
    torch.testing.assert_close(stats.ce[keep], ce)
    torch.testing.assert_close(stats.emo[keep], emo)
    torch.testing.assert_close(stats.lse[keep], lse)
    assert torch.equal(stats.correct[keep], (hidden[keep] @ weight.T).argmax(1) == target[keep])
    assert not stats.correct[~keep].any() and (stats.ce[~keep] == 0).all()
    assert not stats.ce.requires_grad
