"""linear_scan against the loop: values, gradients of both orders, layouts, splits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from lmlab.recurrent import linear_scan, reference
from lmlab.recurrent.logdepth import log_depth_scan

DOUBLE, COMPLEX = torch.float64, torch.complex128


def draw(*shape: int, dtype: torch.dtype = DOUBLE, seed: int = 0, size: float = 1.0) -> Tensor:
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return x / x.abs().clamp(min=1) * size  # |a| <= 1


@pytest.mark.parametrize("dtype", [DOUBLE, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("b", "t", "n"),
    [(1, 1, 1), (2, 3, 1), (1, 4096, 3), (3, 17, 16), (2, 65, 31), (2, 33, 65), (1, 9, 200), (5, 2, 7)],
)
def test_diagonal_is_the_loop(b: int, t: int, n: int, reverse: bool, dtype: torch.dtype) -> None:
    a, u, h0 = draw(b, t, n, dtype=dtype), draw(b, t, n, dtype=dtype, seed=1), draw(b, n, dtype=dtype, seed=2)
    expected = reference.scan(a, u, h0, reverse=reverse)
    h = linear_scan(a, u, h0, reverse=reverse)
    assert (h - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("dtype", [DOUBLE, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("b", "t", "n"), [(1, 1, 1), (2, 300, 8), (3, 7, 9), (1, 5, 17)])
def test_dense_is_the_loop(b: int, t: int, n: int, reverse: bool, dtype: torch.dtype) -> None:
    a = draw(b, t, n, n, dtype=dtype) / n
    u, h0 = draw(b, t, n, dtype=dtype, seed=1), draw(b, n, dtype=dtype, seed=2)
    expected = reference.scan(a, u, h0, reverse=reverse)
    assert (linear_scan(a, u, h0, reverse=reverse) - expected).abs().max() <= 1e-12 * expected.abs().max()


CASES: dict[str, Any] = {
    "diagonal": (2, 3, 2),
    "broadcast over b and t": (1, 1, 2),
    "broadcast over n": (2, 3, 1),
    "dense": (2, 3, 2, 2),
    "dense, broadcast over t": (2, 1, 2, 2),
}


@pytest.mark.parametrize("dtype", [DOUBLE, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_both_orders(case: str, reverse: bool, dtype: torch.dtype) -> None:
    a = draw(*CASES[case], dtype=dtype).requires_grad_()
    u, h0 = draw(2, 3, 2, dtype=dtype, seed=1), draw(2, 2, dtype=dtype, seed=2)
    inputs = (a, u.requires_grad_(), h0.requires_grad_())

    def run(*x: Tensor) -> Tensor:
        return linear_scan(*x, reverse=reverse)

    assert gradcheck(run, inputs, nondet_tol=1e-12)
    assert gradgradcheck(run, inputs, nondet_tol=1e-12)
    assert gradcheck(
        lambda *x: linear_scan(*x, reverse=reverse), inputs[:2], fast_mode=True, nondet_tol=1e-12
    )


@pytest.mark.parametrize("dense", [False, True])
def test_gradients_are_those_of_the_loop_over_wide_states(dense: bool) -> None:
    shape = (2, 40, 70, 70) if dense else (2, 40, 70)
    a = (draw(*shape) / (70 if dense else 1)).requires_grad_()
    u, h0 = draw(2, 40, 70, seed=1).requires_grad_(), draw(2, 70, seed=2).requires_grad_()
    upstream = draw(2, 40, 70, seed=3)
    ours = torch.autograd.grad((linear_scan(a, u, h0) * upstream).sum(), (a, u, h0))
    loop = torch.autograd.grad((reference.scan(a, u, h0) * upstream).sum(), (a, u, h0))
    for mine, theirs in zip(ours, loop, strict=True):
        assert (mine - theirs).abs().max() <= 1e-12 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("shape", [(2, 12, 5), (2, 12, 5, 5)])
def test_reverse_is_the_flipped_scan_bit_for_bit(shape: tuple[int, ...]) -> None:
    a, u, h0 = draw(*shape), draw(2, 12, 5, seed=1), draw(2, 5, seed=2)
    flipped = linear_scan(a.flip(1), u.flip(1), h0).flip(1)
    assert torch.equal(linear_scan(a, u, h0, reverse=True), flipped)


@pytest.mark.parametrize("shape", [(2, 12, 5), (2, 12, 5, 5)])
def test_a_split_with_the_state_carried_over_changes_nothing(shape: tuple[int, ...]) -> None:
    a, u, h0 = draw(*shape), draw(2, 12, 5, seed=1), draw(2, 5, seed=2)
    whole = linear_scan(a, u, h0)
    for s in (1, 5, 11):
        first = linear_scan(a[:, :s], u[:, :s], h0)
        second = linear_scan(a[:, s:], u[:, s:], first[:, -1])
        assert (torch.cat([first, second], 1) - whole).abs().max() <= 1e-13


def test_linear_in_b_and_h0() -> None:
    a, u, v = draw(2, 9, 4), draw(2, 9, 4, seed=1), draw(2, 9, 4, seed=2)
    h, g = draw(2, 4, seed=3), draw(2, 4, seed=4)
    mixed = linear_scan(a, 2 * u - 3 * v, 2 * h - 3 * g)
    assert (mixed - (2 * linear_scan(a, u, h) - 3 * linear_scan(a, v, g))).abs().max() <= 1e-13


def test_strided_transposed_and_expanded_inputs() -> None:
    a = draw(9, 2, 8).transpose(0, 1)[..., ::2]
    u = draw(2, 4, 9, seed=1).transpose(1, 2)
    h0 = draw(4, seed=2).expand(2, 4)
    expected = reference.scan(a.contiguous(), u.contiguous(), h0.contiguous())
    assert (linear_scan(a, u, h0) - expected).abs().max() <= 1e-14
    x = draw(2, 9, 4, dtype=COMPLEX)
    assert (linear_scan(x.conj(), x) - reference.scan(x.conj(), x)).abs().max() <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    a, u = torch.full((1, 500, 2), 1.0, dtype=dtype), torch.full((1, 500, 2), 0.25, dtype=dtype)
    h = linear_scan(a, u)
    assert h.dtype == dtype
    assert torch.equal(h, linear_scan(a.float(), u.float()).to(dtype))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_empty_axes_give_empty_results_and_zero_gradients(shape: tuple[int, ...]) -> None:
    a, u = torch.ones(shape, requires_grad=True), torch.ones(shape, requires_grad=True)
    h0 = torch.ones(shape[0], shape[2], requires_grad=True)
    h = linear_scan(a, u, h0)
    assert h.shape == shape
    h.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in (a, u, h0))


@pytest.mark.parametrize("t", [1, 2, 3, 17, 64, 65])
@pytest.mark.parametrize("shape", [(3,), (3, 3)])
def test_the_form_of_logarithmic_depth_is_the_same(t: int, shape: tuple[int, ...]) -> None:
    a, u = draw(2, t, *shape) / 3, draw(2, t, 3, seed=1)
    assert (log_depth_scan(a, u) - linear_scan(a, u)).abs().max() <= 1e-13


def test_threads_change_no_bit() -> None:
    a, u = draw(3, 700, 200), draw(3, 700, 200, seed=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = linear_scan(a, u)
    torch.set_num_threads(2)
    two = linear_scan(a, u)
    torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("a", "b", "h0", "error", "text"),
    [
        (torch.ones(2, 3), torch.ones(2, 3, 4), None, ValueError, r"a must be \[b t n\].*got \(2, 3\)"),
        (torch.ones(2, 3, 4), torch.ones(3, 4), None, ValueError, r"b must be \[b t n\], got the shape \(3, 4\)"),
        (torch.ones(2, 3, 5), torch.ones(2, 3, 4), None, ValueError, r"a must be \(2, 3, 4\).*got \(2, 3, 5\)"),
        (torch.ones(2, 3, 4, 2), torch.ones(2, 3, 4), None, ValueError, r"a must be \(2, 3, 4, 4\)"),
        (torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(4), ValueError, r"h0 must be \[b n\] = \(2, 4\)"),
        (torch.ones(2, 3, 4).double(), torch.ones(2, 3, 4), None, TypeError, "a is torch.float64, b is torch.float32"),
        (torch.ones(2, 3, 4).long(), torch.ones(2, 3, 4).long(), None, TypeError, "got torch.int64"),
        (torch.ones(2, 3, 4).to("meta"), torch.ones(2, 3, 4), None, TypeError, "a is on meta, b on cpu"),
    ],
)  # fmt: skip
def test_refusals(a: Tensor, b: Tensor, h0: Tensor | None, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        linear_scan(a, b, h0)
