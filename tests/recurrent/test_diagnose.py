"""Lyapunov exponents against what is known, and the error sweep by sweep."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmlab.recurrent as recurrent
from lmlab.recurrent import convergence, lyapunov, reference
from lmlab.recurrent.cells import as_cell
from lmlab.recurrent.diagnose import _verdict, diagnose, is_contractive, iterates
from lmlab.recurrent.problem import Problem, read_problem, sequential
from lmlab.recurrent.sweeps import Window, evaluate, residual

DOUBLE = torch.float64


def radius(a: Tensor) -> float:
    return math.log(float(torch.linalg.eigvals(a).abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_a_constant_linear_cell_has_the_spectral_radius(seed: int) -> None:
    torch.manual_seed(seed)
    a = torch.randn(5, 5, dtype=DOUBLE) / 5**0.5
    found = lyapunov(lambda h, u: h @ a.T + u, torch.zeros(1, 4000, 5, dtype=DOUBLE))
    assert abs(float(found.exponent) - radius(a)) <= 0.02 * abs(radius(a)) + 1e-3
    near_zero = lyapunov(lambda h, u: torch.tanh(h @ a.T + u), torch.zeros(1, 4000, 5, dtype=DOUBLE))
    assert abs(float(near_zero.exponent) - radius(a)) <= 0.02 * abs(radius(a)) + 1e-3


def test_the_exponent_is_that_of_qr() -> None:
    torch.manual_seed(0)
    a = torch.randn(4, 4, dtype=DOUBLE)
    u = torch.randn(1, 800, 4, dtype=DOUBLE)
    cell = lambda h, u: torch.tanh(h @ a.T + u)  # noqa: E731
    expected = reference.lyapunov(cell, u[0], torch.zeros(4, dtype=DOUBLE))[0]
    assert abs(float(lyapunov(cell, u).exponent) - float(expected)) <= 0.02


def test_a_default_gru_is_contractive() -> None:
    torch.manual_seed(0)
    found = lyapunov(nn.GRU(16, 16, batch_first=True).double(), torch.randn(4, 1000, 16, dtype=DOUBLE))
    assert found.verdict == "contractive"
    assert ((found.exponent + 0.5).abs() <= 0.1).all()


def test_resets_start_the_tangent_anew() -> None:
    a = torch.full((1, 1), 2.0, dtype=DOUBLE)
    u = torch.zeros(1, 60, 1, dtype=DOUBLE)
    reset = torch.zeros(1, 60, dtype=torch.bool)
    reset[0, ::10] = True
    found = lyapunov(lambda h, u: h @ a + u, u, reset=reset)
    assert float(found.exponent) == pytest.approx(math.log(2))
    assert float(found.growth) == pytest.approx(9 * math.log(2))
    assert found.verdict == "chaotic"
    dead = lyapunov(lambda h, u: 0 * h + u, u)
    assert dead.verdict == "contractive"


class Draws:
    """A tanh cell with a matrix of its own for each sequence."""

    structure = "dense"

    def __init__(self, a: Tensor) -> None:
        self.a, self.state_size = a, a.shape[-1]

    def step(self, h: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("b...j,bij->b...i", h, self.a) + u)

    def linearize(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        new = self.step(h, u)
        return new, (1 - new * new)[..., None] * self.a[:, None]


def test_the_verdict_contractive_predicts_newton() -> None:
    """Over 200 draws, at least 95 % of those called contractive converge within 40 undamped sweeps."""
    generator = torch.Generator().manual_seed(0)
    n, t, draws = 16, 400, 200
    gain = 0.3 + 2.2 * torch.rand(draws, 1, 1, generator=generator, dtype=DOUBLE)
    a = gain * torch.randn(draws, n, n, generator=generator, dtype=DOUBLE) / n**0.5
    u = torch.randn(draws, t, n, generator=generator, dtype=DOUBLE)
    zero = torch.zeros(draws, n, dtype=DOUBLE)
    with torch.no_grad():
        cell = Draws(a)
        found = diagnose(Problem(cell, u, zero, None), reference.sequential(cell.step, u, zero))
        right = called = 0
        for i in range(draws):
            one = slice(i, i + 1)
            if _verdict(found.exponent[one], found.at_guess[one], found.growth[one]) != "contractive":
                continue
            called += 1
            alone = Problem(Draws(a[one]), u[one], zero[one], None)
            states = iterates(alone, "newton", 40)[-1]
            f, _ = evaluate("jacobi", Window(alone.cell, u[one], zero[one], None), states)
            right += float(residual(states, f).max()) <= 1e-10
    assert called >= 50
    assert right >= 0.95 * called


def test_convergence_tells_every_sweep() -> None:
    torch.manual_seed(0)
    a = torch.randn(8, 8, dtype=DOUBLE) / 8**0.5
    u = torch.randn(2, 60, 8, dtype=DOUBLE)
    rows = convergence(lambda h, u: torch.tanh(0.5 * h @ a.T + u), u)
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    assert list(by_method) == ["jacobi", "quasi", "newton", "elk"]
    for method, found in by_method.items():
        assert [row["iteration"] for row in found] == list(range(len(found)))
        assert found[-1]["error"] <= 1e-12
        assert found[-1]["exact_prefix"] == 60
        assert method == "elk" or all(row["exact_prefix"] >= row["iteration"] for row in found)
    assert len(by_method["newton"]) < len(by_method["jacobi"])
    assert as_cell(lambda h, u: h, 3).state_size == 3


@pytest.mark.bad_input
def test_refusals() -> None:
    u = torch.randn(1, 4, 2, dtype=DOUBLE)
    with pytest.raises(ValueError, match="methods must be among jacobi, quasi, newton, elk; got 'shooting'"):
        convergence(lambda h, u: h + u, u, methods=("shooting",))
    with pytest.raises(ValueError, match=r"inputs must have steps and sequences, got \(1, 0, 2\)"):
        lyapunov(lambda h, u: h + u, u[:, :0])


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "DiagonalGRU", "DiagonalLSTM"])
def test_a_gradient_needs_the_true_jacobian(name: str) -> None:
    from lmlab.recurrent.diagnose import gradient_errors

    torch.manual_seed(0)
    module = getattr(recurrent, name)(4, 6, batch_first=True).double()
    found = gradient_errors(module, torch.randn(2, 20, 4, dtype=torch.float64))
    assert found["true"] <= 1e-14
    assert found["diagonal"] <= 1e-14 if name == "DiagonalGRU" else found["diagonal"] > 0.01


def test_the_gradient_that_is_compared_is_that_of_the_loop() -> None:
    """By autograd through the loop, in what is added to each state, for a cell whose f is linear."""
    from lmlab.recurrent.diagnose import gradient_errors

    torch.manual_seed(0)
    a = torch.randn(5, 5, dtype=torch.float64) / 4
    u = torch.randn(1, 12, 5, dtype=torch.float64, requires_grad=True)
    g = torch.randn(u.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradient(m: Tensor) -> Tensor:
        states = reference.sequential(lambda h, x: h @ m.T + x, u, torch.zeros(1, 5, dtype=DOUBLE))
        return torch.autograd.grad((states * g).sum(), u)[0]

    exact, quasi = gradient(a), gradient(torch.diag(a.diag()))
    found = gradient_errors(lambda h, x: h @ a.T + x, u.detach())
    assert found["diagonal"] == pytest.approx(float((quasi - exact).norm() / exact.norm()), rel=1e-9)


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("cuts", [False, True])
def test_the_early_look_changes_no_verdict(gain: float, cuts: bool) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        a = gain * torch.randn(8, 8, dtype=DOUBLE) / 8**0.5
        reset = torch.rand(2, 300) < 0.02 if cuts else None
        problem = read_problem(
            lambda h, u, a=a: torch.tanh(h @ a.T + u), torch.randn(2, 300, 8).double(), None, reset=reset
        )
        states = sequential(problem.cell, problem.u, problem.h0, reset)
        assert is_contractive(problem, states) == (diagnose(problem, states).verdict == "contractive")
