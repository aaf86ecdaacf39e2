"""How tokens are cut into chunks: every chunk finds its costs, and few shapes occur."""

import pytest
import torch

from lmlab.losses import Cost
from lmlab.losses.cost import CostView
from lmlab.losses.plan import make_plan

pytestmark = pytest.mark.filterwarnings("ignore:budget")


@pytest.mark.parametrize("budget", [0, 100, 3000, 20_000, 2**26])
@pytest.mark.parametrize("spread", [1, 5, 200])
def test_chunks(budget: int, spread: int) -> None:
    g = torch.Generator().manual_seed(spread)
    target = torch.randint(0, spread, (300,), generator=g)
    kept = (torch.rand(300, generator=g) < 0.9).nonzero()[:, 0]
    plan = make_plan(target, kept, 80, CostView(Cost.frozen(torch.randn(200, 2))), 80, budget)
    assert torch.equal(plan.order.sort().values, kept)
    there, covered, lengths = None, 0, set()
    for chunk in plan.chunks():
        assert chunk.start == covered and chunk.index is not None
        covered = chunk.stop
        there = chunk.words if chunk.words is not None else there
        assert there is not None and len(there) <= plan.cost_rows
        assert torch.equal(there[chunk.index], plan.target[chunk.start : chunk.stop])
        lengths.add(chunk.stop - chunk.start)
    assert covered == len(kept) and max(lengths) <= plan.rows
    assert max(lengths) - min(lengths) <= 1


def test_costs_are_made_once_where_they_fit() -> None:
    target = torch.arange(300) % 40
    plan = make_plan(target, torch.arange(300), 80, CostView(Cost.frozen(torch.randn(40, 2))), 80, 20_000)
    made = [chunk.words for chunk in plan.chunks() if chunk.words is not None]
    assert len(made) == 1 and len(list(plan.chunks())) > 2
