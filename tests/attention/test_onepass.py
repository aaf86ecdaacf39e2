"""The one-pass kernel against the rows of the formula: every band, odd sizes, both widths of registers."""

import pytest
import torch
from torch import Tensor

from lmlab.attention import attend, rows
from lmlab.attention.band import Band
from lmlab.attention.onepass import attend_one_pass
from lmlab.attention.rows import attend_rows
from lmlab.rope import ReRoPE, Rotary, frequencies, rotate

BANDS = [
    Band(),
    *(Band("window", window=w, sinks=s) for w, s in ((1, 0), (7, 3), (97, 200))),
    *(Band("split", window=w) for w in (1, 33, 96)),
    *(Band("chunks", step=c) for c in (1, 9, 96, 250)),
]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("band", BANDS, ids=repr)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 2e-13), (torch.float32, 3e-6)])
def test_outputs_and_gradients(wide: bool, band: Band, dtype: torch.dtype, bound: float) -> None:
    sizes = [(1, 1, 5), (6, 6, 8), (95, 95, 16), (97, 97, 17), (30, 211, 64), (193, 290, 40)]
    for seed, (t, keys, d) in enumerate(sizes):
        q = [draw(10 * seed + p, 2, 4, t, d, dtype=dtype).requires_grad_() for p in range(band.parts)]
        k = [draw(10 * seed + 3 + p, 2, 2, keys, d, dtype=dtype).requires_grad_() for p in range(band.parts)]
        v = draw(10 * seed + 6, 2, 2, keys, d, dtype=dtype).requires_grad_()
        slopes = None if seed % 2 else torch.tensor([0.5, 0.1, 0.0, 0.3], dtype=torch.float64)
        start = torch.tensor([keys - t, (keys - t) // 2])
        got = attend_one_pass(q, k, v, band=band, start=start, slopes=slopes, scale=d**-0.5, wide=wide)
        positions = start[:, None] + torch.arange(t)
        exact = [x.detach().double().requires_grad_() for x in (*q, *k, v)]
        want = attend_rows(
            exact[: band.parts],
            exact[band.parts : -1],
            exact[-1],
            band=band,
            positions=positions,
            starts=[0] * band.parts,
            slopes=slopes,
            scale=d**-0.5,
        )
        torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)
        weight = draw(seed, *got.shape)
        ours = torch.autograd.grad(got, [*q, *k, v], weight.to(dtype))
        theirs = torch.autograd.grad(want, exact, weight, allow_unused=True)
        for mine, other in zip(ours, theirs, strict=True):
            other = torch.zeros_like(mine, dtype=torch.float64) if other is None else other
            torch.testing.assert_close(mine.double(), other, rtol=0, atol=10 * bound)


def test_the_number_of_threads_changes_no_bit() -> None:
    q, k, v = draw(1, 2, 4, 300, 32), draw(2, 2, 2, 300, 32), draw(3, 2, 2, 300, 32)
    call = {"rotary": Rotary(32, train_length=64), "extension": ReRoPE(40)}
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            out = attend(*inputs, **call)
            results.append([out, *torch.autograd.grad(out.sum(), inputs)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("t", [1, 5, 40])
def test_rotating_before_gives_the_same_bits(dtype: torch.dtype, t: int) -> None:
    rotary = Rotary(8)
    q, k, v = (draw(seed, 2, h, t, 12, dtype=torch.float64).to(dtype) for seed, h in ((1, 4), (2, 2), (3, 2)))
    theta, _ = frequencies(rotary)
    turned = [rotate(x, torch.arange(t), theta) for x in (q, k)]
    assert torch.equal(attend(q, k, v, rotary=rotary), attend(*turned, v))


def test_large_logits_stay_finite() -> None:
    q, k, v = draw(1, 1, 1, 200, 16), draw(2, 1, 1, 200, 16), draw(3, 1, 1, 200, 16)
    for dtype in (torch.float32, torch.float64):
        inputs = [x.to(dtype).requires_grad_() for x in (200 * q, 200 * k, v)]
        out = attend(*inputs, rotary=Rotary(16, train_length=64), extension=ReRoPE(20))
        grads = torch.autograd.grad(out.sum(), inputs)
        assert out.isfinite().all()
        assert all(x.isfinite().all() for x in grads)


def test_strided_inputs_are_read_as_they_are() -> None:
    q, k, v = (draw(seed, 2, 30, 3, 8).transpose(1, 2) for seed in range(3))
    call = {"rotary": Rotary(8), "extension": ReRoPE(7)}
    assert torch.equal(attend(q, k, v, **call), attend(*(x.contiguous() for x in (q, k, v)), **call))


def test_rows_in_tiles_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other devices form the logits of some rows at a time, and again in the backward pass."""
    for band in BANDS:
        q = [draw(p, 2, 4, 90, 8).requires_grad_() for p in range(band.parts)]
        k = [draw(3 + p, 2, 2, 100, 8).requires_grad_() for p in range(band.parts)]
        v = draw(6, 2, 2, 100, 8).requires_grad_()
        call = {"band": band, "positions": torch.arange(10, 100), "starts": [0] * band.parts}
        results = []
        for elements in (1 << 24, 1):
            monkeypatch.setattr(rows, "_TILE_ELEMENTS", elements)
            out = rows.attend_rows(q, k, v, **call)
            results.append([out, *torch.autograd.grad(out.square().sum(), [*q, *k, v], allow_unused=True)])
        for one, other in zip(*results, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
