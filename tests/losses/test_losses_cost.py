"""The transport cost: its four kinds, its invariances, what is saved and what isn't."""

import gc

import pytest
import torch
from torch import Tensor, nn

from lmlab.losses import Cost, LinearLoss, linear_emo_loss, reference


def _embedding(v: int = 19, k: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(v, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _whole(cost: Cost) -> Tensor:
    """c[t, j]: rows are the targets."""
    return cost.rows(torch.arange(cost.vocabulary))


@pytest.mark.parametrize("center", [False, True])
def test_cosines(center: bool) -> None:
    embedding = _embedding()
    truth = reference.cosine_cost(embedding, center=center).T
    for make in (Cost.frozen, Cost.live):
        cost = make(embedding, center=center)
        torch.testing.assert_close(_whole(cost), truth, rtol=1e-13, atol=1e-14)
        assert (_whole(cost).diagonal() == 0).all() and (_whole(cost) >= 0).all()
    assert Cost.frozen(embedding).kind == "frozen" and Cost.live(embedding).kind == "live"


def test_rows_keep_the_order_asked_for_and_repeat() -> None:
    cost = Cost.frozen(_embedding())
    ids = torch.tensor([4, 0, 4])
    torch.testing.assert_close(cost.rows(ids), _whole(cost)[ids], rtol=0, atol=1e-15)
    assert cost.rows(ids[:0]).shape == (0, 19)


def test_a_matrix_is_read_from_j_to_t() -> None:
    c = torch.rand(5, 5, dtype=torch.float64).fill_diagonal_(0)
    cost = Cost.matrix(c)
    assert torch.equal(cost.rows(torch.tensor([3])), c[:, 3][None]) and cost.kind == "matrix"


def test_zero_one_stores_nothing() -> None:
    cost = Cost.zero_one(4)
    assert not cost.state_dict() and cost.vocabulary == 4 and cost.kind == "zero_one"
    assert torch.equal(_whole(cost), 1 - torch.eye(4))


@pytest.mark.parametrize(
    "dtype, expected", [(torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)]
)
def test_types(dtype: torch.dtype, expected: torch.dtype) -> None:
    embedding = _embedding().to(dtype)
    for cost in (Cost.frozen(embedding), Cost.live(embedding), Cost.live(embedding, center=True)):
        assert cost.rows(torch.tensor([0, 2])).dtype == expected
    truth = reference.cosine_cost(embedding.double()).T
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-6}[dtype]
    torch.testing.assert_close(_whole(Cost.live(embedding)).double(), truth, rtol=tolerance, atol=tolerance)


def test_only_a_centred_cost_is_blind_to_a_common_shift() -> None:
    embedding = _embedding()
    shifted = embedding + 3 * torch.randn(6, dtype=torch.float64)
    centred = [_whole(Cost.frozen(e, center=True)) for e in (embedding, shifted)]
    torch.testing.assert_close(*centred, rtol=0, atol=1e-12)
    raw = [_whole(Cost.frozen(e)) for e in (embedding, shifted)]
    assert (raw[0] - raw[1]).abs().max() > 0.1


def test_row_lengths_and_rotations_change_nothing() -> None:
    embedding = _embedding()
    lengths = torch.rand(19, 1, dtype=torch.float64) + 0.1
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    truth = _whole(Cost.frozen(embedding))
    torch.testing.assert_close(_whole(Cost.frozen(lengths * embedding)), truth, rtol=0, atol=1e-12)
    torch.testing.assert_close(_whole(Cost.frozen(embedding @ rotation)), truth, rtol=0, atol=1e-12)


def test_rank() -> None:
    embedding = _embedding(30, 8)
    full = Cost.frozen(embedding, rank=8)
    torch.testing.assert_close(_whole(full), _whole(Cost.frozen(embedding)), rtol=0, atol=1e-12)
    low = Cost.frozen(embedding, rank=2)
    assert low.get_buffer("embedding").shape == (30, 2)
    unit = torch.nn.functional.normalize(embedding, dim=1)
    best = torch.linalg.svd(unit, full_matrices=False).Vh[:2]
    torch.testing.assert_close(_whole(low), reference.cosine_cost(unit @ best.T).T, rtol=0, atol=1e-12)


def test_rows_of_zeros_cost_one_to_all_others() -> None:
    embedding = _embedding()
    embedding[7] = 0
    for cost in (Cost.frozen(embedding), Cost.live(embedding)):
        c = _whole(cost)
        expected = torch.ones(19, dtype=torch.float64)
        expected[7] = 0
        assert torch.equal(c[7], expected) and torch.equal(c[:, 7], expected)


def test_frozen_means_now() -> None:
    head = nn.Linear(4, 9, bias=False)
    cost = Cost.frozen(head.weight)
    before = _whole(cost)
    with torch.no_grad():
        head.weight.normal_()
    assert torch.equal(_whole(cost), before)
    criterion = LinearLoss("emo", cost)
    assert list(criterion.state_dict()) == ["cost.embedding"] and not list(criterion.parameters())
    other = LinearLoss("emo", Cost.frozen(head.weight))
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(_whole(other.cost), before)


def test_live_means_at_each_call() -> None:
    head = nn.Linear(4, 9, bias=False)
    cost = Cost.live(head.weight)
    criterion = LinearLoss("emo", cost)
    assert not criterion.state_dict() and not list(criterion.parameters())
    hidden, target = torch.randn(3, 4), torch.tensor([0, 1, 8])
    with torch.no_grad():
        head.weight.normal_()
    live = criterion(hidden, head.weight, target)
    frozen = linear_emo_loss(hidden, head.weight, target, Cost.frozen(head.weight))
    torch.testing.assert_close(live, frozen)
    live.backward()
    ours = head.weight.grad
    head.weight.grad = None
    linear_emo_loss(hidden, head.weight, target, Cost.frozen(head.weight)).backward()
    torch.testing.assert_close(ours, head.weight.grad)


@pytest.mark.bad_input
def test_a_live_cost_whose_tensor_is_gone_says_so() -> None:
    head = nn.Linear(4, 9, bias=False)
    cost = Cost.live(head.weight)
    head.weight.data = torch.randn(10, 4)
    with pytest.raises(ValueError, match=r"had shape \(9, 4\) and now has \(10, 4\).*Cost.live\(weight\)"):
        cost.rows(torch.tensor([0]))
    del head
    gc.collect()
    with pytest.raises(ValueError, match=r"was freed.*Cost.frozen\(weight\)"):
        linear_emo_loss(torch.randn(1, 4), torch.randn(9, 4), torch.tensor([0]), cost)


def test_a_cost_may_have_another_type_than_hidden() -> None:
    embedding = _embedding(19, 5)
    hidden, weight = torch.randn(7, 5), torch.randn(19, 5)
    target = torch.randint(0, 19, (7,))
    wide = linear_emo_loss(hidden, weight, target, Cost.frozen(embedding))
    narrow = linear_emo_loss(hidden, weight, target, Cost.frozen(embedding.float()))
    rounded = embedding.bfloat16()
    half = linear_emo_loss(hidden, weight, target, Cost.live(rounded))
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, narrow)
    torch.testing.assert_close(wide, half, rtol=1e-2, atol=1e-2)
    truth = linear_emo_loss(hidden.double(), weight.double(), target, Cost.frozen(embedding.float()))
    assert truth.dtype == torch.float64


@pytest.mark.bad_input
def test_bad_costs_say_what_is_wrong() -> None:
    embedding = _embedding()
    with pytest.raises(ValueError, match=r"rank=7 must be between 1 and the embedding's width 6"):
        Cost.frozen(embedding, rank=7)
    with pytest.raises(
        TypeError, match=r"embedding must be a floating-point tensor \[v k\]; got torch.int64"
    ):
        Cost.frozen(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"embedding must have shape \[v k\]; got \(19,\)"):
        Cost.live(embedding[:, 0])
    with pytest.raises(ValueError, match=r"square table \[v v\]; got shape \(19, 6\)"):
        Cost.matrix(embedding)
    with pytest.raises(ValueError, match=r"c must be finite and >= 0, with c\[t, t\] = 0"):
        Cost.matrix(torch.ones(3, 3))
    with pytest.raises(ValueError, match="c must be finite and >= 0"):
        Cost.matrix(torch.eye(3) - 1)
    with pytest.raises(ValueError, match="v=0"):
        Cost.zero_one(0)
    with pytest.raises(ValueError, match=r"kind='frosen': call Cost.frozen"):
        Cost("frosen", 3)
