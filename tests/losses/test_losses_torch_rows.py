"""Without the native module the same comes out; and the modules in the forms they share."""

import subprocess
import sys

import pytest
import torch

from lmlab.losses import Cost, LinearLoss, LogitsLoss, linear_loss, logits_loss, soft_emo_loss, visit

NAMES = ("ce", "tvd", "dft", "focal", "tailr", "mixce", "emo", "emo-paper-adaptive", "emo2")


def _without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "native_module", lambda: None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["frozen", "zero_one", "matrix"])
def test_rows_by_torch_are_the_native_rows(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in ((11, 6), (33, 6))
    )
    target = torch.randint(0, 33, (11,), generator=g)
    target[3] = -100
    cost = {
        "frozen": Cost.frozen(weight),
        "zero_one": Cost.zero_one(33),
        "matrix": Cost.matrix(torch.rand(33, 33, generator=g, dtype=torch.float64).fill_diagonal_(0)),
    }[kind]
    options = {"cost": cost, "softcap": 4.0, "z_loss": 1e-3, "reduction": "none"}
    if name != "tvd":
        options["label_smoothing"] = 0.1
    logits = (hidden @ weight.T).detach().requires_grad_()
    upstream = torch.rand(11, generator=g, dtype=torch.float64)

    def run() -> list[torch.Tensor]:
        value, stats = linear_loss(hidden, weight, target, name, return_stats=True, **options)
        found = [value, stats.ce, stats.emo, stats.lse, stats.correct]
        found += torch.autograd.grad(value, (hidden, weight), upstream)
        value = logits_loss(logits, target, name, **options)
        found += [value, *torch.autograd.grad(value, logits, upstream)]
        tau = logits.detach().roll(1, 0).softmax(1)
        value = soft_emo_loss(logits, tau, cost, ce=0.5, reduction="none")
        return [*found, value, *torch.autograd.grad(value, logits, upstream)]

    native = run()
    _without(monkeypatch)
    for a, b in zip(run(), native, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_missing_module_is_named_once() -> None:
    program = """
import sys, warnings
sys.modules["lmlab._native"] = None
import torch
from lmlab.losses import linear_loss
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        linear_loss(torch.randn(2, 3), torch.randn(5, 3), torch.tensor([0, 4]))
print([str(w.message) for w in seen])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.count("lmlab.losses runs without its native kernels") == 1


def test_the_modules_are_their_functions() -> None:
    hidden, weight, bias = torch.randn(5, 3), torch.randn(7, 3), torch.randn(7)
    target = torch.tensor([0, 1, 6, -100, 2])
    options = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 2.0}
    cost = Cost.frozen(weight)
    linear = LinearLoss("emo", cost, **options)
    assert linear.last_stats is None
    assert torch.equal(
        linear(hidden, weight, target, bias=bias, num_items=9),
        linear_loss(hidden, weight, target, "emo", cost=cost, bias=bias, num_items=9, **options),
    )
    logits = hidden @ weight.T
    module = LogitsLoss("emo", cost, **options)
    assert torch.equal(
        module(logits, target, num_items=9),
        logits_loss(logits, target, "emo", cost=cost, num_items=9, **options),
    )
    assert module.last_stats is not None and module.last_stats.count == 4
    assert not module.last_stats.ce.requires_grad
