"""The length measures, on toy models whose right answers are known."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lmlab.evaluate.length import (
    length_table,
    loss_by_context,
    loss_by_position,
)
from lmlab.evaluate.recall import passkey, repeated_copy
from lmlab.rope import LengthWarning, ReRoPE, Window

VOCAB = 12


def copier(reach: int, period: int) -> Callable[..., Tensor]:
    """Knows that text repeats every `period`, if that is within its reach; else it says 0."""

    def model(ids: Tensor) -> Tensor:
        guess = torch.zeros_like(ids)
        if period <= reach:
            guess[:, period - 1 :] = ids[:, : ids.shape[1] - period + 1]
        return torch.nn.functional.one_hot(guess, VOCAB).float() * 20

    return model


def seer(ids: Tensor, extension: Any = None) -> Tensor:
    """Certain of the next id (id + 1) once it has seen 16 ids (8 under a window of 8), before: uniform."""
    sure = torch.arange(ids.shape[1]) >= 15
    if extension is not None and extension.find(Window):
        sure = torch.zeros_like(sure)
    logits = torch.nn.functional.one_hot((ids + 1) % VOCAB, VOCAB).float() * 50
    return torch.where(sure[:, None], logits, torch.zeros(()))


def counting(n: int, t: int) -> Tensor:
    return (torch.arange(t) + torch.arange(n)[:, None]) % VOCAB


def test_copy_accuracy_is_one_within_reach_and_chance_beyond() -> None:
    assert repeated_copy(copier(20, 15), length=64, period=15, vocab=VOCAB) == 1
    assert repeated_copy(copier(10, 15), length=64, period=15, vocab=VOCAB, n=64) < 0.25
    assert repeated_copy(copier(10, 15), length=64, period=15, vocab=[0]) == 1  # only zeros are drawn


def test_copy_draws_the_same_from_the_same_seed() -> None:
    seen: list[Tensor] = []

    def model(ids: Tensor) -> SimpleNamespace:
        seen.append(ids)
        return SimpleNamespace(logits=torch.zeros(*ids.shape, VOCAB))

    for seed in (1, 1, 2):
        repeated_copy(model, length=20, period=7, vocab=VOCAB, n=4, seed=seed)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0][:, 7:], seen[0][:, :-7])


def test_loss_by_context_scores_the_same_targets_at_every_context() -> None:
    seen: list[Tensor] = []

    def model(ids: Tensor) -> Tensor:
        seen.append(ids)
        return seer(ids)

    ids = counting(3, 41)
    losses = loss_by_context(model, ids, contexts=[8, 20, 40], last=4, batch=2)
    assert [x.context for x in losses] == [8, 20, 40]
    assert [x.targets for x in losses] == [12, 12, 12]
    assert losses[0].loss == pytest.approx(math.log(VOCAB), abs=1e-6)  # 8 ids are too few for the seer
    assert losses[1].loss == pytest.approx(0, abs=1e-6)
    assert losses[1].stderr == pytest.approx(0, abs=1e-6)
    assert torch.equal(torch.cat(seen[:2]), ids[:, -9:-1])


def test_standard_error_is_over_documents() -> None:
    def model(ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, VOCAB)
        logits[:, :, 1] = ids[:, :1].float()
        return logits

    ids = torch.tensor([[0] + [1] * 8, [1] + [1] * 8, [3] + [1] * 8])
    found = loss_by_context(model, ids, contexts=[8], last=4)[0]
    each = torch.tensor([math.log(VOCAB - 1 + math.exp(x)) - x for x in (0, 1, 3)], dtype=torch.float64)
    assert found.loss == pytest.approx(float(each.mean()), abs=1e-6)
    assert found.stderr == pytest.approx(float(each.std()) / math.sqrt(3), abs=1e-6)
    assert math.isnan(loss_by_context(model, ids[:1], contexts=[8], last=4)[0].stderr)


def test_loss_by_position() -> None:
    found = loss_by_position(seer, counting(3, 33), edges=[0, 15, 32], batch=2)
    assert [(x.start, x.stop) for x in found] == [(0, 15), (15, 32)]
    assert found[0].loss == pytest.approx(math.log(VOCAB), abs=1e-6)
    assert found[1].loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 11), (1.0, 22)])
def test_passkey_puts_the_key_where_it_says(depth: float, place: int) -> None:
    seen: list[Tensor] = []

    def model(ids: Tensor) -> Tensor:
        seen.append(ids)
        return torch.zeros(*ids.shape, VOCAB)

    passkey(model, lengths=[30], depths=[depth], vocab=VOCAB, marker=5, key=3)
    ids = seen[0]  # all but the last id
    assert ids.shape == (8, 29)
    assert ((ids == 5).sum(dim=1) == 2).all() and (ids[:, [place, 26]] == 5).all()
    assert torch.equal(ids[:, place + 1 : place + 3], ids[:, 27:29])


@pytest.mark.parametrize(("reach", "accuracy"), [(100, 1.0), (5, 0.0)])
def test_passkey_of_a_model_that_looks_back(reach: int, accuracy: float) -> None:
    def model(ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, VOCAB)
        for row in range(len(ids)):
            first, last = (ids[row] == 11).nonzero().flatten().tolist()
            for step in range(4):
                at = last + step
                if last - first <= reach and at < ids.shape[1]:
                    logits[row, at, ids[row, first + step + 1]] = 9
        return logits

    cells = passkey(model, lengths=[40, 64], depths=[0.1, 0.6], vocab=11, marker=11, key=4, filler=[10])
    assert [(x.length, x.depth) for x in cells] == [(40, 0.1), (40, 0.6), (64, 0.1), (64, 0.6)]
    assert [x.accuracy for x in cells] == [accuracy] * 4


def test_length_table_measures_tax_gain_and_the_window() -> None:
    rows = length_table(
        seer, counting(3, 41), {"same": ReRoPE(4)}, train_length=12, contexts=[8, 12, 40], last=4
    )
    none, window, same = rows
    assert [x.method for x in rows] == ["none", "window", "same"]
    assert window.extension.methods == (Window(12),) and none.extension.methods == ()
    assert [x.identical for x in rows] == [True, True, True]
    assert none.tax == same.tax == 0
    assert same.gain == pytest.approx(math.log(VOCAB), abs=1e-6)
    assert same.over_window == pytest.approx(-math.log(VOCAB), abs=1e-6)
    assert window.gain == pytest.approx(0, abs=1e-6) and window.over_window == 0
    assert [x.context for x in same.losses] == [8, 12, 40]


def test_length_table_sees_a_change_of_the_last_bit() -> None:
    def model(ids: Tensor, extension: Any = None) -> Tensor:
        return seer(ids) * (1 if not extension.methods or extension.find(Window) else 1 + 1e-6) + 1

    rows = length_table(model, counting(2, 41), {"x": ReRoPE(4)}, train_length=32, contexts=[32, 40], last=4)
    assert [x.identical for x in rows] == [True, True, False]


def test_length_table_warns_of_a_window_as_wide_as_the_train_length() -> None:
    with pytest.warns(LengthWarning, match="collapse; 3 to 6 works"):
        length_table(seer, counting(1, 41), {"x": ReRoPE(12)}, train_length=12, contexts=[12, 40], last=4)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda ids: loss_by_context(seer, ids, contexts=[41], last=4),
            r"contexts must be between last 4 and 40 \(the tokens of ids − 1\), got 41",
        ),
        (lambda ids: loss_by_context(seer, ids, contexts=[3], last=4), "between last 4 and 40.*got 3"),
        (lambda ids: loss_by_context(seer, ids, contexts=[], last=4), "contexts must hold one"),
        (lambda ids: loss_by_position(seer, ids, edges=[0, 50]), "increasing numbers, 0 to 40"),
        (
            lambda ids: repeated_copy(seer, length=8, period=8, vocab=3),
            "period must be at least 1 and below length 8, got 8",
        ),
        (
            lambda ids: passkey(seer, lengths=[9], depths=[0], vocab=3, marker=2, key=4),
            r"lengths must be at least 2·key \+ 2 = 10, got 9",
        ),
        (
            lambda ids: passkey(seer, lengths=[30], depths=[1.5], vocab=3, marker=2),
            "depths must be between 0 and 1, got 1.5",
        ),
        (
            lambda ids: length_table(seer, ids, {}, train_length=8, contexts=[16, 40], last=4),
            r"contexts must hold one that is at most train_length 8, got \[16, 40\]",
        ),
        (
            lambda ids: length_table(seer, ids, {"none": None}, train_length=8, contexts=[8], last=4),
            "extensions must not name 'none'",
        ),
        (
            lambda ids: loss_by_context(lambda x: torch.zeros(1, 2, 3), ids, contexts=[8], last=4),
            r"model must return logits \[2, 8, vocab\], got \(1, 2, 3\)",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(counting(2, 41))
