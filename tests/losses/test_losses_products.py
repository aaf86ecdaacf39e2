"""The matrix products of a chunk, by each library; and gradients that are handed on without a copy."""

import pytest
import torch
from torch import Tensor, nn

from lmlab import _linear
from lmlab.losses import Cost, linear_cross_entropy, linear_loss, products


@pytest.mark.parametrize("there", [True, False], ids=["onednn", "plain"])
@pytest.mark.parametrize("v", [1500, 2048])
def test_products(there: bool, v: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if there and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("a torch without oneDNN")
    monkeypatch.setattr(_linear, "_is_there", lambda: there)
    g = torch.Generator().manual_seed(0)
    h, weight, bias = (torch.randn(*size, generator=g) for size in ((65, 32), (v, 32), (v,)))
    z = products.apart(65, v, h)
    assert z.shape == (65, v) and z.stride(1) == 1 and z.stride(0) % 128
    products.multiply(h, weight, z, bias)
    torch.testing.assert_close(
        z.double(), h.double() @ weight.double().T + bias.double(), rtol=1e-5, atol=1e-5
    )
    products.multiply(h, weight, z)
    torch.testing.assert_close(z.double(), h.double() @ weight.double().T, rtol=1e-5, atol=1e-5)
    back = z.double() @ weight.double()
    torch.testing.assert_close(products.multiply_back(z, weight).double(), back, rtol=1e-4, atol=1e-2)
    total = torch.full((v, 32), torch.nan)
    outer = z.double().T @ h.double()
    for times in (1, 2):
        products.add_outer(total, z, h, first=times == 1)
        torch.testing.assert_close(total.double(), times * outer, rtol=1e-4, atol=1e-3)


def test_large_float32_losses_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(150, 32, generator=g), torch.randn(1300, 32, generator=g) / 4
    target = torch.randint(0, 1300, (150,), generator=g)

    def run(dtype: torch.dtype) -> list[Tensor]:
        leaves = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        value = linear_loss(*leaves, target, "emo", cost=Cost.frozen(weight.double()))
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    for a, b in zip(run(torch.float32), run(torch.float64), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_gradient_is_handed_on_and_belongs_to_its_parameter(factor: float) -> None:
    head = nn.Linear(4, 9, bias=False)
    hidden, target = torch.randn(6, 4, requires_grad=True), torch.randint(0, 9, (6,))
    value = factor * linear_cross_entropy(hidden, head.weight, target)
    value.backward(retain_graph=True)
    kept = [hidden.grad.clone(), head.weight.grad.clone()]
    value.backward()  # is added to what is there, from a saved gradient that is still whole
    torch.testing.assert_close([hidden.grad, head.weight.grad], [2 * g for g in kept])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()
    hidden.grad = head.weight.grad = None
    (factor * linear_cross_entropy(hidden, head.weight, target)).backward()
    torch.testing.assert_close([hidden.grad, head.weight.grad], kept)


def test_a_head_used_twice_gets_both_gradients() -> None:
    head = nn.Linear(4, 9, bias=False)
    hidden, target = torch.randn(6, 4), torch.randint(0, 9, (6,))
    one = linear_cross_entropy(hidden, head.weight, target)
    (one + 2 * linear_cross_entropy(hidden, head.weight, target) + one).backward()
    found = head.weight.grad
    head.weight.grad = None
    linear_cross_entropy(hidden, head.weight, target).backward()
    torch.testing.assert_close(found, 4 * head.weight.grad)
