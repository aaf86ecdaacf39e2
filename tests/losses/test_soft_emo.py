"""The bound for soft labels, dense and top-k, against its formula and against linear programming."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmlab.losses import Cost, emo_loss, linear_soft_emo_loss, reference, soft_emo_loss

pytestmark = pytest.mark.filterwarnings("ignore:budget")


def _case(n: int = 9, v: int = 37, d: int = 5) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in ((n, d), (v, d), (v,))
    )
    tau = torch.rand(n, v, generator=g, dtype=torch.float64) ** 4
    return hidden, weight, bias, tau / tau.sum(1, keepdim=True)


def _costs(embedding: Tensor) -> dict[str, tuple[Cost, Tensor]]:
    """Each kind beside its table c[j, t]; word 3 is a padding word, a row of zeros."""
    embedding = embedding.detach().clone()
    embedding[3] = 0
    c = torch.rand(len(embedding), len(embedding), dtype=torch.float64).fill_diagonal_(0)
    half = embedding.bfloat16()
    ALIVE.extend([embedding, half])
    return {
        "frozen": (Cost.frozen(embedding), reference.cosine_cost(embedding)),
        "centred": (Cost.frozen(embedding, center=True), reference.cosine_cost(embedding, center=True)),
        "live": (Cost.live(embedding), reference.cosine_cost(embedding)),
        "live, centred": (
            Cost.live(embedding, center=True),
            reference.cosine_cost(embedding, center=True),
        ),
        "live, half": (Cost.live(half), reference.cosine_cost(half.double())),
        "matrix": (Cost.matrix(c), c),
        "zero_one": (Cost.zero_one(len(embedding)), 1 - torch.eye(len(embedding), dtype=torch.float64)),
    }


ALIVE: list[Tensor] = []  # a live cost keeps no tensor alive
KINDS = ("frozen", "centred", "live", "live, centred", "live, half", "matrix", "zero_one")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", [None, 4])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_linear_form_equals_the_formula(kind: str, top: int | None, softcap: float | None) -> None:
    hidden, weight, bias, tau = _case()
    cost, c = _costs(weight)[kind]
    u = F.linear(hidden, weight, bias)
    z = u if softcap is None else softcap * torch.tanh(u / softcap)
    tolerance = 1e-6 if kind == "live, half" else 1e-12
    probs, ids = (tau, None) if top is None else tau.topk(top)
    dense = tau if ids is None else torch.zeros_like(tau).scatter_add(1, ids, probs)
    mask = torch.arange(9) != 2
    for ce, emo in ((0.0, 1.0), (0.3, 0.7), (1.0, 0.0)):
        for reduction, budget in (("mean", 2**26), ("sum", 0), ("none", 3000)):
            ours = linear_soft_emo_loss(
                hidden,
                weight,
                probs,
                cost,
                ids=ids,
                bias=bias,
                softcap=softcap,
                ce=ce,
                emo=emo,
                reduction=reduction,
                mask=mask,
                budget=budget,
            )
            rows = reference.soft_emo(z, dense, c, ce=ce, emo=emo) * mask
            theirs = {"mean": rows.sum() / 8, "sum": rows.sum(), "none": rows}[reduction]
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
            upstream = torch.rand_like(theirs)
            leaves = (hidden, weight, bias)
            for a, b in zip(
                torch.autograd.grad(ours, leaves, upstream, retain_graph=True),
                torch.autograd.grad(theirs, leaves, upstream, retain_graph=True),
                strict=True,
            ):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("top", [None, 4])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_logits_form_equals_the_formula(top: int | None, reduction: str) -> None:
    hidden, weight, _, tau = _case()
    cost, c = _costs(weight)["frozen"]
    logits = F.linear(hidden, weight).detach().requires_grad_()
    probs, ids = (tau, None) if top is None else tau.topk(top)
    dense = tau if ids is None else torch.zeros_like(tau).scatter_add(1, ids, probs)
    ours = soft_emo_loss(logits, probs, cost, ids=ids, ce=0.5, reduction=reduction, budget=5000)
    rows = reference.soft_emo(logits, dense, c, ce=0.5)
    theirs = rows.mean() if reduction == "mean" else rows
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.rand_like(theirs)
    a, b = (torch.autograd.grad(x, logits, upstream)[0] for x in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    shaped = soft_emo_loss(
        logits.view(3, 3, 37),
        probs.view(3, 3, -1),
        cost,
        ids=None if ids is None else ids.view(3, 3, -1),
        ce=0.5,
        reduction="none",
    )
    torch.testing.assert_close(shaped.flatten(), rows, rtol=1e-12, atol=1e-12)


def test_one_hot_labels_are_hard_ones() -> None:
    hidden, weight, _, _ = _case()
    cost, _ = _costs(weight)["frozen"]
    logits = F.linear(hidden, weight)
    target = torch.tensor([0, 3, 36, 5, 5, 7, 8, 9, 1])
    hard = emo_loss(logits, target, cost, return_stats=True)[1].emo
    dense = soft_emo_loss(logits, F.one_hot(target, 37).double(), cost, reduction="none")
    ids = torch.stack([target, (target + 1) % 37], 1)
    top = soft_emo_loss(
        logits, torch.tensor([[1.0, 0.0]]).double().expand(9, 2), cost, ids=ids, reduction="none"
    )
    torch.testing.assert_close(dense, hard, rtol=0, atol=1e-12)
    torch.testing.assert_close(top, hard, rtol=0, atol=1e-12)


def test_the_bound_is_one() -> None:
    g = torch.Generator().manual_seed(5)
    embedding = torch.randn(5, 3, generator=g, dtype=torch.float64)
    logits, tau = torch.randn(2, 4, 5, generator=g, dtype=torch.float64)
    tau = tau.softmax(1)
    bound = soft_emo_loss(logits, tau, Cost.frozen(embedding), reduction="none")
    c = reference.cosine_cost(embedding)
    for row in range(4):
        assert reference.transport(logits[row].softmax(0), tau[row], c) <= float(bound[row]) + 1e-9


def test_a_word_may_be_listed_twice_and_mass_may_lack() -> None:
    hidden, weight, _, _ = _case(n=1)
    cost, c = _costs(weight)["frozen"]
    logits = F.linear(hidden, weight).detach().requires_grad_()
    ids, probs = torch.tensor([[4, 9, 4]]), torch.tensor([[0.2, 0.1, 0.3]], dtype=torch.float64)
    dense = torch.zeros(1, 37, dtype=torch.float64).scatter_add(1, ids, probs)
    ours = soft_emo_loss(logits, probs, cost, ids=ids, ce=1.0)
    theirs = reference.soft_emo(logits, dense, c, ce=1.0).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, logits)[0] for x in (ours, theirs)), rtol=1e-12, atol=1e-15
    )


def test_masked_words_without_mass_and_nothing_kept() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    tau = torch.tensor([[0.5, 0.5, 0.0]])
    value = soft_emo_loss(logits, tau, Cost.zero_one(3), ce=1.0)
    assert value.isfinite() and torch.autograd.grad(value, logits)[0].isfinite().all()
    nothing = soft_emo_loss(logits, tau, Cost.zero_one(3), mask=torch.tensor([False]))
    assert nothing == 0 and (torch.autograd.grad(nothing, logits)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types(dtype: torch.dtype) -> None:
    hidden, weight, _, tau = _case(40, 90, 16)
    cost = Cost.frozen(weight)
    narrow = [t.detach().to(dtype).requires_grad_() for t in (hidden / 4, weight / 4)]
    wide = [t.detach().double().requires_grad_() for t in narrow]
    ours = linear_soft_emo_loss(*narrow, tau.float(), cost, ce=0.5)
    theirs = linear_soft_emo_loss(*wide, tau, cost, ce=0.5)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5 if dtype == torch.float32 else 1e-2)
    for a, b in zip(torch.autograd.grad(ours, narrow), torch.autograd.grad(theirs, wide), strict=True):
        assert a.dtype == dtype and F.cosine_similarity(a.double().flatten(), b.flatten(), dim=0) > 0.999
    logits = F.linear(*narrow).detach().T.contiguous().T.requires_grad_()
    value = soft_emo_loss(logits, tau.float(), cost, ce=0.5)
    assert value.item() == pytest.approx(theirs.item(), rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert torch.autograd.grad(value, logits)[0].dtype == dtype


@pytest.mark.bad_input
def test_bad_soft_labels_say_what_is_wrong() -> None:
    logits, tau, cost = torch.randn(3, 5), torch.full((3, 5), 0.2), Cost.zero_one(5)
    ids = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"probs must be \[… v\] = \(3, 5\), or \[… k\] with the words' ids="
    ):
        soft_emo_loss(logits, tau[:, :2], cost)
    with pytest.raises(ValueError, match=r"probs and ids must both be \[… k\].*ids \(3, 2\)"):
        soft_emo_loss(logits, tau, cost, ids=ids)
    with pytest.raises(TypeError, match=r"ids must be an int64 tensor of word ids; got torch.int32"):
        soft_emo_loss(logits, tau[:, :2], cost, ids=ids.int())
    with pytest.raises(IndexError, match=r"ids\[1, 0\] = 5 is outside \[0, 5\)$"):
        soft_emo_loss(logits, tau[:, :2], cost, ids=torch.tensor([[0, 1], [5, 0], [0, 0]]))
    with pytest.raises(TypeError, match=r"probs must be a floating-point tensor; got torch.int64"):
        soft_emo_loss(logits, tau.long(), cost)
    with pytest.raises(TypeError, match=r"mask must be a bool tensor"):
        soft_emo_loss(logits, tau, cost, mask=torch.ones(3))
    with pytest.raises(ValueError, match=r"mask must have the shape \(3,\)"):
        soft_emo_loss(logits, tau, cost, mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(
        TypeError, match=r"cost must be a Cost, such as cost=Cost.frozen\(weight\); got NoneType"
    ):
        soft_emo_loss(logits, tau, None)
    with pytest.raises(ValueError, match=r"emo=nan must be finite"):
        soft_emo_loss(logits, tau, cost, emo=float("nan"))
    with pytest.raises(ValueError, match=r"softcap=-1.0 must be > 0"):
        linear_soft_emo_loss(torch.randn(3, 2), torch.randn(5, 2), tau, cost, softcap=-1.0)
