"""The linear layer by oneDNN and by torch: the same numbers, gradients, and bits whatever the threads."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lmlab import _linear

SIZES = [(7, 3, 5), (130, 65, 257), (2048, 64, 192), (300, 515, 129)]


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor is said to gain by oneDNN; products are never too small for it."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(_linear, "_is_there", lambda: request.param)
    monkeypatch.setattr(_linear, "_WORTH", 0)
    return bool(request.param)


def made(m: int, d: int, n: int, *, bias: bool, shape: tuple[int, ...] = ()) -> tuple[_linear.Linear, Tensor]:
    torch.manual_seed(m)
    layer = _linear.Linear(d, n, bias=bias)
    return layer, torch.randn(*(shape or (m,)), d, requires_grad=True)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("m", "d", "n"), SIZES)
def test_values_and_gradients_are_those_of_float64(m: int, d: int, n: int, bias: bool) -> None:
    layer, x = made(m, d, n, bias=bias)
    exact = nn.Linear(d, n, bias=bias, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    wide = x.detach().double().requires_grad_()
    d_y = torch.randn(n, m).T  # not contiguous
    y, wanted = layer(x), exact(wide)
    y.backward(d_y)
    wanted.backward(d_y.double())
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=2e-6 * d**0.5)
    pairs = zip((x, *layer.parameters()), (wide, *exact.parameters()), strict=True)
    for got, want in pairs:
        assert got.grad is not None and want.grad is not None
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=0, atol=2e-6 * max(m, n))


@pytest.mark.usefixtures("there")
def test_leading_axes_and_strides_are_kept() -> None:
    layer, x = made(1, 6, 10, bias=False, shape=(4, 3, 5))
    assert layer(x).shape == (4, 3, 5, 10)
    turned = x.transpose(0, 2)
    torch.testing.assert_close(layer(turned), layer(x).transpose(0, 2))
    assert layer(x[:0]).shape == (0, 3, 5, 10)


@pytest.mark.usefixtures("there")
def test_only_what_is_asked_for_gets_a_gradient() -> None:
    layer, x = made(9, 6, 10, bias=True)
    layer.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None and layer.bias.grad is None
    layer.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.usefixtures("there")
def test_autocast_and_other_types_are_torchs() -> None:
    layer, x = made(9, 6, 10, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="dtype"):
        layer(x)


@pytest.mark.usefixtures("there")
def test_tensors_of_another_class_are_torchs() -> None:
    with FakeTensorMode():
        layer = _linear.Linear(6, 10)
        y = layer(torch.randn(4, 6))
    assert isinstance(y, FakeTensor) and y.shape == (4, 10)


@pytest.mark.usefixtures("there")
def test_it_compiles_to_torchs() -> None:
    layer, x = made(9, 6, 10, bias=True)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(("m", "d", "n"), [*SIZES, (8192, 64, 64)])
def test_bits_do_not_depend_on_the_threads(m: int, d: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under oneDNN; MKL's do."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(_linear, "_is_there", lambda: True)
    monkeypatch.setattr(_linear, "_WORTH", 0)
    layer, x = made(m, d, n, bias=True)
    before = torch.get_num_threads()
    told = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            for tensor in (x, *layer.parameters()):
                tensor.grad = None
            y = layer(x)
            y.square().sum().backward()
            told.append([y.detach().clone(), x.grad, layer.weight.grad])
    finally:
        torch.set_num_threads(before)
    for one in told[1:]:
        assert all(map(torch.equal, one, told[0]))
