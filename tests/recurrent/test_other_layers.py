"""The diagonal and the linear layers against torch.nn with diagonal matrices and against loops."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import lmlab.recurrent as recurrent
from lmlab.recurrent import LRU, DiagonalGRU, MinGRU, reference


def diagonal_pair(name: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module whose hidden blocks are diagonal, and the diagonal module with the same numbers."""
    torch.manual_seed(0)
    ours = getattr(recurrent, f"Diagonal{name}")(*sizes, **options).double()
    theirs = getattr(nn, name)(*sizes, **options).double()
    state = ours.state_dict()
    for key, value in state.items():
        if key.startswith("weight_hh"):
            blocks = value.view(-1, ours.hidden_size)
            state[key] = torch.cat([torch.diag(block) for block in blocks])
    theirs.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("n", [1, 2, 16, 33])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_diagonal_layers_are_torchs_with_diagonal_matrices(name: str, n: int, bidirectional: bool) -> None:
    theirs, ours = diagonal_pair(name, 3, n, 2, bidirectional=bidirectional)
    x = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    a, b = theirs(x)[0], ours(x)[0]
    assert (a - b).abs().max() <= 1e-12
    upstream = torch.randn_like(a)
    first = torch.autograd.grad((a * upstream).sum(), [x, *theirs.parameters()])
    second = torch.autograd.grad((b * upstream).sum(), [x, *ours.parameters()])
    for (key, _), p, q in zip([("x", x), *ours.named_parameters()], first, second, strict=True):
        if key.startswith("weight_hh"):
            p = torch.cat([block.diag() for block in p.split(n)])
        assert (p - q).abs().max() <= 1e-10 * max(1.0, float(p.abs().max()))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_diagonal_layers_take_what_torchs_take(name: str) -> None:
    theirs, ours = diagonal_pair(name, 3, 5, 2, batch_first=True)
    rows = [torch.randn(t, 3, dtype=torch.float64) for t in (2, 6, 3)]
    packed = pack_sequence(rows, enforce_sorted=False)
    (a, ha), (b, hb) = theirs(packed), ours(packed)
    assert (a.data - b.data).abs().max() <= 1e-12
    for p, q in zip(ha, hb, strict=True):
        assert (p - q).abs().max() <= 1e-12
    assert (theirs(rows[1])[0] - ours(rows[1])[0]).abs().max() <= 1e-12
    assert ours(rows[1][:0])[0].shape == (0, 5)
    y, _ = ours(torch.stack([rows[1], rows[1]]), reset=torch.tensor([[False] * 3 + [True] + [False] * 2] * 2))
    assert (y[0, 3:] - theirs(rows[1][3:])[0]).abs().max() <= 1e-12


def test_relu_and_dropout() -> None:
    theirs, ours = diagonal_pair("RNN", 3, 5, 2, nonlinearity="relu", dropout=0.5)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    found = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        found.append(module(x)[0])
    assert (found[0] - found[1]).abs().max() <= 1e-12


def mingru_loop(module: MinGRU, x: Tensor, h: Tensor, reset: Tensor | None = None) -> Tensor:
    return reference.sequential(
        lambda h, u: reference.mingru_step(h, u, module.weight_ih_l0, module.bias_ih_l0), x, h, reset
    )


def test_mingru_is_the_loop() -> None:
    torch.manual_seed(0)
    module = MinGRU(3, 5, batch_first=True).double()
    x, h = torch.randn(2, 9, 3, dtype=torch.float64), torch.randn(1, 2, 5, dtype=torch.float64)
    reset = torch.rand(2, 9) < 0.3
    for cut in (None, reset):
        y, last = module(x, h, reset=cut)
        expected = mingru_loop(module, x, h[0], cut)
        assert (y - expected).abs().max() <= 1e-12
        assert (last[0] - expected[:, -1]).abs().max() <= 1e-12
    y, last = module(x, lengths=torch.tensor([4, 9]))
    assert not y[0, 4:].any() and torch.equal(last[0, 0], y[0, 3])
    packed = pack_sequence([x[0, :4], x[1]], enforce_sorted=False)
    out, end = module(packed)
    assert torch.equal(out.batch_sizes, packed.batch_sizes)
    assert (end - last).abs().max() <= 1e-13


def test_lru_is_the_loop() -> None:
    torch.manual_seed(0)
    module = LRU(3, 3, 6).double()
    x = torch.randn(9, 2, 3, dtype=torch.float64)
    y, last = module(x)
    b, c = torch.view_as_complex(module.B), torch.view_as_complex(module.C)
    expected = reference.lru(x.transpose(0, 1), module.nu, module.theta, b, c, module.D)
    assert (y - expected.transpose(0, 1)).abs().max() <= 1e-12
    assert last.shape == (1, 2, 6) and last.is_complex()
    first, middle = module(x[:4])
    second, _ = module(x[4:], middle)
    assert (torch.cat([first, second]) - y).abs().max() <= 1e-12
    size = torch.exp(-module.nu.exp())
    assert ((size > 0.9) & (size < 0.999)).all()
    assert LRU(3, 4)(x.float())[0].shape == (9, 2, 4)


@pytest.mark.bad_input
def test_refusals() -> None:
    module = DiagonalGRU(3, 5, batch_first=True)
    x = torch.randn(2, 4, 3)
    for call, error, text in [
        (lambda: module(x[..., :2]), ValueError, r"input must be 3 wide, the input_size; got \(2, 4, 2\)"),
        (lambda: module(x.double()), TypeError, "input is torch.float64, weight_ih_l0 is torch.float32"),
        (lambda: module(x[0, 0]), ValueError, r"input must be \[b t m\]"),
        (lambda: module(x, torch.zeros(1, 3, 5)), ValueError, r"hx must be \(1, 2, 5\), got \(1, 3, 5\)"),
        (lambda: DiagonalGRU(3, 0), ValueError, "hidden_size must be >= 1, got 0"),
        (lambda: recurrent.DiagonalRNN(3, 5, nonlinearity="sin"), ValueError, "'tanh' or 'relu', got 'sin'"),
        (lambda: recurrent.DiagonalLSTM(3, 5)(x[0], x[0]), ValueError, r"hx must be the pair \(h, c\)"),
        (lambda: MinGRU(3, 5)(x, reset=torch.zeros(2, 4)), TypeError, "reset must be bool"),
    ]:
        with pytest.raises(error, match=text):
            call()


@pytest.mark.parametrize("name", ["RNN", "GRU"])
@pytest.mark.parametrize("t", [64, 255, 256, 257, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_channels_are_solved_by_newton(name: str, t: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for bidirectional, options in ((False, {}), (True, {"nonlinearity": "relu"} if name == "RNN" else {})):
        theirs, ours = diagonal_pair(name, 3, 3, bidirectional=bidirectional, **options)
        theirs, ours = theirs.to(dtype), ours.to(dtype)
        x = torch.randn(t, 2, 3, dtype=dtype, requires_grad=True)
        (a, ha), (b, hb) = theirs(x), ours(x)
        level = 1e-12 if dtype == torch.float64 else 1e-5
        assert (a - b).abs().max() <= level and (ha - hb).abs().max() <= level
        assert ours.last_solution["method"] == "newton" and ours.last_solution["converged"]
        assert ours.last_solution["residual"] <= level
        upstream = torch.randn(a.shape, dtype=dtype)
        first = torch.autograd.grad((a * upstream).sum(), [x, theirs.weight_ih_l0])
        second = torch.autograd.grad((b * upstream).sum(), [x, ours.weight_ih_l0])
        for p, q in zip(first, second, strict=True):
            assert (p - q).abs().max() <= 100 * level * max(1.0, float(p.abs().max()))


def test_a_channel_that_newton_does_not_solve_goes_on_step_by_step() -> None:
    torch.manual_seed(0)
    ours = recurrent.DiagonalRNN(1, 2).double()
    with torch.no_grad():
        ours.weight_hh_l0.copy_(torch.tensor([-3.0, 0.1]))
        ours.bias_ih_l0.fill_(1)
    theirs = nn.RNN(1, 2).double()
    theirs.load_state_dict({**ours.state_dict(), "weight_hh_l0": torch.diag(ours.weight_hh_l0)})
    x = torch.randn(1000, 1, 1, dtype=torch.float64)
    y = ours(x)[0]
    assert ours.last_solution is not None and ours.last_solution["method"] == "newton+sequential"
    assert (y - theirs(x)[0]).abs()[..., 1].max() <= 1e-12
    before = torch.cat([torch.zeros(1, 1, 2).double(), y[:-1]])
    one_step = theirs(x.reshape(1, 1000, 1), before.reshape(1, 1000, 2))[0]
    assert (y.reshape(1000, 2) - one_step[0]).abs().max() <= 1e-13
