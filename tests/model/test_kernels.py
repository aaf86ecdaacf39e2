"""The native kernels against torch: values and gradients, odd sizes, any number of threads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmlab.model import kernels
from lmlab.model.ops import rms_norm, rotate_half_split
from lmlab.model.positions import RotaryTable

BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _threads_put_back() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def compare(ours: Callable[..., Any], theirs: Callable[..., Any], inputs: list[Tensor], bound: float) -> None:
    """Outputs and gradients of all inputs, theirs in float64, relative to the largest entry."""
    mine = [x.clone().requires_grad_() for x in inputs]
    wide = [x.clone().double().requires_grad_() for x in inputs]
    got, expected = ours(*mine), theirs(*wide)
    got, expected = ((y,) if isinstance(y, Tensor) else y for y in (got, expected))
    upstream = [draw(*y.shape, seed=9 + k) for k, y in enumerate(got)]
    sum((y.double() * u).sum() for y, u in zip(got, upstream, strict=True)).backward()
    sum((y * u).sum() for y, u in zip(expected, upstream, strict=True)).backward()
    pairs = list(zip(got, expected, strict=True))
    pairs += [(x.grad, w.grad) for x, w in zip(mine, wide, strict=True)]  # type: ignore[misc]
    for a, b in [(a.detach(), b.detach()) for a, b in pairs]:
        assert a.shape == b.shape
        assert (a.double() - b).abs().max() <= bound * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (65, 16), (130, 33), (257, 192)])
def test_residual_sum_and_norm(dtype: torch.dtype, n: int, d: int) -> None:
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    x, gain = draw(n, d, dtype=wide), draw(d, dtype=wide, seed=1)
    delta = draw(n, d, dtype=dtype, seed=2)

    def expected(x: Tensor, delta: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        return x + delta, rms_norm(x + delta, gain, 1e-5)

    compare(
        lambda x, delta, gain: kernels.add_norm(x, delta, gain, 1e-5, dtype),
        expected,
        [x, delta, gain],
        BOUNDS[dtype],
    )
    compare(
        lambda x, gain: kernels.add_norm(x, None, gain, 1e-5, dtype)[1],
        lambda x, gain: rms_norm(x, gain, 1e-5),
        [x, gain],
        BOUNDS[dtype],
    )


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("n", "f"), [(1, 1), (3, 17), (129, 64)])
def test_swiglu(dtype: torch.dtype, n: int, f: int) -> None:
    def expected(x: Tensor) -> Tensor:
        return F.silu(x[..., :f]) * x[..., f:]

    compare(kernels.swiglu, expected, [3 * draw(n, 2 * f, dtype=dtype)], BOUNDS[dtype])
    ends = torch.tensor([[-1e4, -90.0, 0.0, 90.0, 1e4] + 5 * [1.0]], dtype=dtype)
    assert torch.equal(
        kernels.swiglu(ends)[0, [0, 2, 4]].double(), torch.tensor([0, 0, 1e4]).to(dtype).double()
    )


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("b", "t", "h", "g", "e", "m"),
    [
        (1, 1, 1, 1, 2, 1),
        (2, 15, 2, 1, 6, 2),
        (1, 16, 4, 4, 16, 8),
        (1, 17, 6, 2, 10, 5),
        (2, 33, 2, 2, 32, 16),
        (1, 100, 2, 1, 48, 0),
        (1, 129, 1, 1, 64, 32),
    ],
)
def test_attention(dtype: torch.dtype, b: int, t: int, h: int, g: int, e: int, m: int) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = (
        RotaryTable(2 * m, 100.0)(t, wide, torch.device("cpu")) if m else 2 * (torch.empty(t, 0, dtype=wide),)
    )

    def expected(qkv: Tensor) -> Tensor:
        q, k, v = qkv.split((h, g, g), dim=2)
        q, k = (rotate_half_split(x, cos.double(), sin.double()) for x in (q, k))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.37, enable_gqa=True)
        return mixed.transpose(1, 2)

    compare(
        lambda qkv: kernels.causal_attention(qkv, cos, sin, kv_heads=g, scale=0.37),
        expected,
        [draw(b, t, h + 2 * g, e, dtype=dtype)],
        BOUNDS[dtype],
    )


def test_large_logits_are_finite() -> None:
    qkv = 1e3 * draw(1, 40, 6, 8, dtype=torch.float32)
    qkv.requires_grad_()
    none = torch.empty(40, 0)
    out = kernels.causal_attention(qkv, none, none, kv_heads=2, scale=1.0)
    out.sum().backward()
    assert qkv.grad is not None and bool(torch.isfinite(out).all() and torch.isfinite(qkv.grad).all())


def test_the_number_of_threads_changes_no_bit() -> None:
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        x, gain = draw(700, 24, dtype=torch.float32).requires_grad_(), torch.ones(24, requires_grad=True)
        total, y = kernels.add_norm(x, x.detach() / 3, gain, 1e-5, torch.float32)
        qkv = y.view(7, 100, 6, 4)
        cos, sin = RotaryTable(4, 100.0)(100, torch.float32, torch.device("cpu"))
        out = kernels.causal_attention(qkv, cos, sin, kv_heads=2, scale=0.5).reshape(700, 8)
        (kernels.swiglu(out).sum() + total.sum()).backward()
        results.append([out.detach(), x.grad, gain.grad])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_views_and_expanded_gradients_are_taken() -> None:
    x = draw(6, 8, 2)[:, :, 0].t().requires_grad_()
    y = x.detach().clone().requires_grad_()
    kernels.swiglu(x).sum().backward()
    (F.silu(y[..., :3]) * y[..., 3:]).sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-12)  # type: ignore[arg-type]


def test_a_decoder_without_native_kernels_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmlab.model import Decoder, DecoderConfig

    model = Decoder(DecoderConfig(11, d_model=12, n_layers=2, n_heads=2, d_ff=20, n_kv_heads=1)).double()
    ids = torch.arange(18).remainder(11).view(2, 9)
    with_kernels = model(ids)
    with_kernels.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    model.zero_grad()
    monkeypatch.setattr(kernels, "native", lambda: None)
    monkeypatch.setattr("lmlab.model.attention.available", lambda x: False)
    without = model(ids)
    without.square().sum().backward()
    assert torch.allclose(with_kernels, without, rtol=1e-12, atol=1e-14)
    for one, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.allclose(one, parameter.grad, rtol=1e-10, atol=1e-13)  # type: ignore[arg-type]
