"""How many threads a call takes, and that they change no bit."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lmlab.recurrent as recurrent
from lmlab import _native
from lmlab.recurrent import linear_scan

native = _native.recurrent
GRAIN = 4e5  # nanoseconds that pay for a thread


@given(st.floats(0, 1e12), st.integers(1, 256))
def test_no_thread_without_its_share_of_work(nanoseconds: float, threads: int) -> None:
    found = native.useful_threads(nanoseconds, threads)
    assert 1 <= found <= threads
    assert found == 1 or nanoseconds / found >= GRAIN
    assert found == threads or nanoseconds / (found + 1) < GRAIN
    assert native.useful_threads(2 * nanoseconds, threads) >= found


def test_short_calls_stay_on_one_thread_and_long_ones_do_not() -> None:
    def of(nanoseconds: float) -> int:
        return int(native.useful_threads(nanoseconds, 2))

    assert of(native.cell_time(1, 512, 3, 16, False)) == 1
    assert of(native.cell_time(4, 32, 3, 64, False)) == 1
    assert of(native.cell_time(16, 512, 3, 64, False)) == 2
    assert of(native.product_time(512, 64, 192)) == 1  # the projection of batch 1, width 64
    assert of(native.product_time(16 * 512, 64, 192)) == 2
    assert of(native.scan_time(2, 256, 64, False)) == 1
    assert of(native.scan_time(8, 8192, 64, False)) == 2
    assert of(native.scan_time(1, 4096, 8, True)) == 1


@pytest.mark.parametrize("name", ["GRU", "LSTM", "DiagonalGRU", "DiagonalRNN"])
def test_threads_change_no_bit_of_a_layer(name: str) -> None:
    torch.manual_seed(0)
    width = 3 if name == "DiagonalRNN" else 64  # 3: channel by channel
    module = getattr(recurrent, name)(16, width, batch_first=True)
    x = torch.randn(17, 300, 16)
    found: list[list[torch.Tensor]] = []
    for threads in (1, 2, 3):
        found.append(_with(threads, lambda: [y := module(x)[0], *_gradients(module, y)]))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dense", [False, True])
def test_threads_change_no_bit_of_a_scan(dense: bool) -> None:
    torch.manual_seed(0)
    shape = (9, 700, 24) if dense else (9, 2000, 130)
    a = (torch.rand(*shape, *(24,) * dense) / (24 if dense else 1)).requires_grad_()
    b = torch.randn(shape, requires_grad=True)

    def run() -> list[torch.Tensor]:
        h = linear_scan(a, b)
        return [h, *torch.autograd.grad(h.sum(), (a, b))]

    one, three = _with(1, run), _with(3, run)
    assert all(torch.equal(x, y) for x, y in zip(one, three, strict=True))


def _gradients(module: Any, y: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(y.square().sum(), tuple(module.parameters())))


def _with(threads: int, run: Any) -> list[torch.Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found: list[torch.Tensor] = run()
        return found
    finally:
        torch.set_num_threads(before)
