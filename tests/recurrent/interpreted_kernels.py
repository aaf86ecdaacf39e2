"""Triton's kernels, interpreted, against the compiled loops; a program of its own, run by test_triton_kernels."""

import torch

from lmlab.recurrent import DiagonalGRU, DiagonalRNN, linear_scan
from lmlab.recurrent.triton_scan import GRU, RELU, TANH, triton_newton, triton_scan


def check_scan(t: int, n: int, reverse: bool) -> None:
    a, b, h0 = torch.rand(2, t, n), torch.randn(2, t, n), torch.randn(2, n)
    expected = linear_scan(a, b, h0, reverse=reverse)
    assert (triton_scan(a, b, h0, reverse=reverse) - expected).abs().max() <= 1e-5, (t, n, reverse)


def check_newton(kind: int, t: int) -> None:
    options = {"nonlinearity": "relu"} if kind == RELU else {}
    module = (DiagonalGRU if kind == GRU else DiagonalRNN)(3, 10, batch_first=True, **options)
    x, reset, h0 = torch.randn(2, t, 3), torch.rand(2, t) < 0.1, torch.randn(2, 10)
    u = torch.nn.functional.linear(x, module.weight_ih_l0, module.bias_ih_l0)
    states, sweeps, residual = triton_newton(kind, u, module.weight_hh_l0, module.bias_hh_l0, h0, reset)
    expected, _ = module(x, h0[None], reset=reset)
    assert residual <= 1e-6 and 0 <= sweeps <= 10, (kind, t, residual, sweeps)
    assert (states - expected).abs().max() <= 1e-5, (kind, t)


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        for t in (1, 64, 131):
            for n in (1, 33):
                check_scan(t, n, False)
                check_scan(t, n, True)
        for kind in (TANH, RELU, GRU):
            for t in (1, 45):
                check_newton(kind, t)
    print("all agree")
