"""What happens at the edges: nothing kept, one word, masked words, saturated tokens, half types."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.losses import CE, EMO, Cost, LinearLoss, Loss, linear_loss, logits_loss, named_loss, reference

NAMES = [
    *("ce", "tvd", "dft", "focal", "tailr", "mixce"),
    *("emo", "emo-paper", "emo-paper-adaptive", "emo-continual", "emo2", "emo2-adaptive"),
]
INF = float("inf")


def _matrix(v: int) -> Cost:
    g = torch.Generator().manual_seed(9)
    return Cost.matrix(torch.rand(v, v, generator=g, dtype=torch.float64).fill_diagonal_(0))


@pytest.mark.parametrize("name", ["ce", "emo"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 3])
def test_nothing_kept_is_zero_with_zero_gradients(name: str, reduction: str, n: int) -> None:
    hidden, weight = torch.randn(n, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    target = torch.full((n,), -100)
    cost = Cost.frozen(weight)
    for value in (
        linear_loss(hidden, weight, target, name, cost=cost, reduction=reduction),
        logits_loss(F.linear(hidden, weight), target, name, cost=cost, reduction=reduction),
    ):
        assert (value == 0).all() and value.shape == (target.shape if reduction == "none" else ())
        for gradient in torch.autograd.grad(value.sum(), (hidden, weight)):
            assert (gradient == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_word_costs_nothing(name: str) -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    target = torch.zeros(3, dtype=torch.int64)
    value, stats = linear_loss(hidden, weight, target, name, cost=Cost.frozen(weight), return_stats=True)
    loss = named_loss(name)
    shifted = isinstance(loss, EMO) and loss.shift  # then e is emo + p_t = 1
    assert (
        (shifted or value == 0) and (stats.ce == 0).all() and (stats.emo == 0).all() and stats.correct.all()
    )
    assert all((g == 0).all() for g in torch.autograd.grad(value, (hidden, weight)))


def test_an_ignored_word_may_lie_inside_the_vocabulary() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 2, 2, 4, 1, 0])
    ours = logits_loss(logits, target, ignore_index=2)
    theirs = F.cross_entropy(logits, target, ignore_index=2)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    a, b = torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0]
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_strided_inputs_and_expanded_gradients(reduction: str) -> None:
    base = torch.randn(5, 3, 14, dtype=torch.float64)
    hidden = base.transpose(0, 1)[..., ::2].requires_grad_()
    weight = torch.randn(7, 23, dtype=torch.float64).T.requires_grad_()
    target = torch.randint(0, 23, (5, 3)).T
    cost = Cost.frozen(weight)
    truth = None
    for h, w, t in (
        (hidden, weight, target),
        (
            hidden.detach().contiguous().requires_grad_(),
            weight.detach().contiguous().requires_grad_(),
            target.clone(),
        ),
    ):
        value = linear_loss(h, w, t, "emo", cost=cost, reduction=reduction)
        upstream = torch.ones((), dtype=torch.float64).expand(value.shape)
        found = [value, *torch.autograd.grad(value, (h, w), upstream)]
        truth = truth or found
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    logits = torch.randn(23, 6, dtype=torch.float64).T.requires_grad_()
    target = torch.randint(0, 23, (6,))
    value = logits_loss(logits, target, reduction=reduction).sum()
    dense = F.cross_entropy(logits, target, reduction=reduction).sum()
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (value, dense)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_masked_words_have_no_probability_and_no_gradient(name: str, dtype: torch.dtype) -> None:
    logits = torch.randn(4, 40, dtype=dtype)
    logits[:, 30:] = -INF
    logits.requires_grad_()
    target = torch.tensor([0, 7, 29, 3])
    value = logits_loss(logits, target, name, cost=_matrix(40))
    short = logits_loss(
        logits[:, :30], target, name, cost=Cost.matrix(_matrix(40).get_buffer("table").T[:30, :30])
    )
    torch.testing.assert_close(value, short, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)
    gradient = torch.autograd.grad(value, logits)[0]
    assert (gradient[:, 30:] == 0).all() and gradient.isfinite().all() and (gradient[:, :30] != 0).any()


def test_masked_words_under_label_smoothing_are_infinite_as_in_torch() -> None:
    logits = torch.tensor([[0.0, 1.0, -INF]])
    target = torch.tensor([0])
    assert logits_loss(logits, target, label_smoothing=0.1) == INF
    assert F.cross_entropy(logits, target, label_smoothing=0.1) == INF


def test_a_masked_target_is_infinite_with_finite_gradients() -> None:
    logits = torch.tensor([[0.0, 1.0, -INF]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2])
    value = logits_loss(logits, target)
    assert value == INF
    gradient = torch.autograd.grad(value, logits)[0]
    p = logits.detach().softmax(1)
    p[0, 2] -= 1
    torch.testing.assert_close(gradient, p, rtol=1e-14, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), INF])
@pytest.mark.parametrize("column", [0, 2, 39])
@pytest.mark.parametrize("name", ["ce", "emo", "focal"])
def test_a_bad_row_stays_alone(bad: float, column: int, name: str) -> None:
    logits = torch.randn(3, 40)
    clean = logits.clone().requires_grad_()
    logits[1, column] = bad
    logits.requires_grad_()
    target = torch.tensor([2, 2, 39])
    options = {"cost": _matrix(40), "reduction": "none"}
    value, truth = (logits_loss(x, target, name, **options) for x in (logits, clean))
    assert value[1].isnan() and torch.equal(value[[0, 2]], truth[[0, 2]])
    ours = torch.autograd.grad(value.sum(), logits)[0]
    theirs = torch.autograd.grad(truth.sum(), clean)[0]
    assert ours[1].isnan().any() and torch.equal(ours[[0, 2]], theirs[[0, 2]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_saturated_tokens_stay_finite(name: str, dtype: torch.dtype, scale: float) -> None:
    """p_t is 1 or 0 to the last bit, and logits reach 1e4."""
    logits = torch.eye(6, 70) * scale - torch.eye(6, 70).flip(0) * scale
    logits = logits.to(dtype).requires_grad_()
    target = torch.tensor([0, 1, 2, 5, 69, 0])
    for options in ({}, {"z_loss": 1e-4}, {"softcap": 30.0}):
        value, stats = logits_loss(
            logits, target, name, cost=_matrix(70), reduction="none", return_stats=True, **options
        )
        gradient = torch.autograd.grad(value.sum(), logits)[0]
        assert value.dtype == torch.float32 and gradient.dtype == dtype
        for tensor in (value, stats.ce, stats.emo, stats.lse, gradient):
            assert tensor.isfinite().all()
        assert (stats.ce >= 0).all() and (stats.emo >= 0).all()


@pytest.mark.parametrize("gap", [0.0, 5.0, 16.0, 40.0])
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_right_in_relative_terms_as_p_goes_to_one(name: str, gap: float) -> None:
    """At p_t = 1 - 1e-7 and nearer: ce and emo relative to themselves, where differences would be noise."""
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(8, 91, generator=g)
    target = torch.randint(0, 91, (8,), generator=g)
    logits[torch.arange(8), target] += gap
    cost = _matrix(91)
    ours = logits.clone().requires_grad_()
    theirs = logits.double().requires_grad_()
    value, stats = logits_loss(
        ours,
        target,
        name,
        cost=Cost.matrix(cost.get_buffer("table").T.float()),
        reduction="none",
        return_stats=True,
    )
    c = cost.get_buffer("table").T.float().double()
    loss = named_loss(name)
    # The oracle's own log_softmax cancels here too, so p_t's complement is summed without the target.
    others = (theirs - theirs.gather(1, target[:, None])).scatter(1, target[:, None], -INF).exp()
    ce = torch.log1p(others.sum(1))
    emo = (others * c.T[target]).sum(1) / (1 + others.sum(1))
    torch.testing.assert_close(stats.ce.double(), ce, rtol=1e-5, atol=0)
    torch.testing.assert_close(stats.emo.double(), emo, rtol=1e-5, atol=0)
    if gap <= 5:
        truth = reference.row_losses(theirs, target, loss, c=c)[0]
        torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=0)
        upstream = torch.rand(8, generator=g)
        a = torch.autograd.grad(value, ours, upstream)[0]
        b = torch.autograd.grad(truth, theirs, upstream.double())[0]
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(name: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(4)
    hidden = torch.randn(64, 32, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(211, 32, generator=g) / 4).to(dtype).requires_grad_()
    target = torch.randint(0, 211, (64,), generator=g)
    cost = Cost.frozen(weight.double())
    value = linear_loss(hidden, weight, target, name, cost=cost)
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    truth = linear_loss(*wide, target, name, cost=cost)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(truth.item(), rel=1e-2)
    for a, b in zip(
        torch.autograd.grad(value, (hidden, weight)), torch.autograd.grad(truth, wide), strict=True
    ):
        assert a.dtype == dtype
        assert F.cosine_similarity(a.double().flatten(), b.flatten(), dim=0) > 0.999


def test_a_half_types_head_gradient_is_summed_wide() -> None:
    """Over 2,048 equal tokens a bfloat16 sum would stop growing at 256 of them."""
    hidden = torch.ones(2048, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    value = linear_loss(hidden, weight, torch.zeros(2048, dtype=torch.int64), reduction="sum", budget=512)
    gradient = torch.autograd.grad(value, weight)[0]
    assert gradient.flatten().tolist() == [-1024.0, 1024.0]


def test_under_autocast_all_go_to_its_type() -> None:
    hidden = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = torch.randn(11, 8, requires_grad=True), torch.randn(11, requires_grad=True)
    target = torch.randint(0, 11, (5,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_loss(hidden, weight, target, bias=bias)
        theirs = F.cross_entropy(F.linear(hidden, weight, bias).float(), target)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    assert ours.dtype == torch.float32
    assert [g.dtype for g in torch.autograd.grad(ours, (hidden, weight, bias))] == [
        torch.bfloat16,
        torch.float32,
        torch.float32,
    ]


def test_a_tied_and_a_frozen_head() -> None:
    embedding = nn.Embedding(13, 6, dtype=torch.float64)
    ids, target = torch.randint(0, 13, (7,)), torch.randint(0, 13, (7,))
    ours = linear_loss(embedding(ids), embedding.weight, target)
    theirs = F.cross_entropy(F.linear(embedding(ids), embedding.weight), target)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, embedding.weight)[0] for x in (ours, theirs)), rtol=1e-12, atol=1e-15
    )
    hidden = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    linear_loss(hidden, embedding.weight.detach(), target).backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_loss(hidden, embedding.weight, target).requires_grad


def test_a_vector_loss_notices_a_head_changed_in_place() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4)
    value = linear_loss(hidden, weight, torch.tensor([0, 1, 2]), reduction="none")
    weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_derivatives_of_derivatives_are_refused() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    target = torch.tensor([0, 1, 2])
    for reduction in ("mean", "none"):
        value = linear_loss(hidden, weight, target, reduction=reduction).sum()
        gradient = torch.autograd.grad(value, hidden, create_graph=True)[0]
        assert gradient.isfinite().all()
        with pytest.raises(RuntimeError, match="losses of lmlab can be differentiated once"):
            gradient.square().sum().backward()
    value = logits_loss(F.linear(hidden, weight), target)
    with pytest.raises(RuntimeError, match="losses of lmlab can be differentiated once"):
        torch.autograd.grad(value, hidden, create_graph=True)[0].sum().backward()
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda w: linear_loss(hidden, w, target))(weight)


def test_too_small_a_budget_is_named_with_the_right_one() -> None:
    hidden, weight = torch.randn(70, 4), torch.randn(100, 4)
    target = torch.randint(0, 100, (70,))
    with pytest.warns(UserWarning, match=r"budget=1000 bytes holds 2 rows.*64 rows need budget=25600"):
        small = linear_loss(hidden, weight, target, budget=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(small, linear_loss(hidden, weight, target, budget=25600))


@pytest.mark.parametrize("loss", [CE(), EMO()], ids=str)
def test_num_items_as_a_tensor_of_any_type(loss: Loss) -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4)
    target = torch.tensor([0, 1, 2])
    criterion = LinearLoss(loss, Cost.frozen(weight))
    truth = criterion(hidden, weight, target, num_items=6)
    for items in (torch.tensor(6), torch.tensor(6.0)):
        assert torch.equal(criterion(hidden, weight, target, num_items=items), truth)


def test_growing_input_needs_no_growing_memory() -> None:
    """Peak memory beyond inputs and gradients, of a child that starts from a small parent."""
    grow = subprocess.run(
        [sys.executable, "-S", "-c", _PARENT, *map(str, sys.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert grow.returncode == 0, grow.stderr
    small, large = (float(line) for line in grow.stdout.split())
    # dW and dH grow by 4 · 16000 · 64 + 4 · 8192 · 64 floats; logits by 12 · 8192 · 16000 of them would be 6 GB.
    gradients = (16_000 + 8_192) * 64 * 4 * (1 - 1 / 4)
    assert large - small < gradients + 64 * 2**20 + 64 * 2**20


# getrusage's maximum survives exec, so the children are started from a process that has loaded nothing.
_PARENT = """
import subprocess, sys
child = '''
import resource, sys
sys.path[:0] = sys.argv[3:]
import torch
from lmlab.losses import Cost, EMO, linear_loss
torch.set_num_threads(1)
n, v = int(sys.argv[1]), int(sys.argv[2])
warm = torch.randn(8, 64, requires_grad=True), torch.randn(80, 64, requires_grad=True)
linear_loss(*warm, torch.zeros(8, dtype=torch.int64), EMO(), cost=Cost.frozen(warm[1])).backward()
hidden, weight = torch.randn(n, 64, requires_grad=True), torch.randn(v, 64, requires_grad=True)
cost, target = Cost.frozen(weight), torch.randint(0, v, (n,))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
before = peak()
linear_loss(hidden, weight, target, EMO(), cost=cost).backward()
print(peak() - before)
'''
for n, v in ((2048, 4000), (8192, 16000)):
    sys.stdout.write(subprocess.run([sys.executable, '-c', child, str(n), str(v), *sys.argv[1:]],
                                    capture_output=True, text=True, check=True).stdout)
"""


def test_kinds_know_no_torch() -> None:
    program = (
        "import sys; from lmlab.losses import CE, EMO, named_loss; "
        "assert named_loss('emo2') == EMO('ce', clamp=None); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_any_shape_of_tokens() -> None:
    weight = torch.randn(9, 4)
    single: Tensor = linear_loss(torch.randn(4), weight, torch.tensor(3), reduction="none")
    assert single.shape == ()
    deep = linear_loss(
        torch.randn(2, 1, 3, 4), weight, torch.zeros(2, 1, 3, dtype=torch.int64), reduction="none"
    )
    assert deep.shape == (2, 1, 3)
