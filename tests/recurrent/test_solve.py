"""solve against the loop: values, gradients, causality, failures, resets, user cells."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmlab.recurrent as recurrent
from lmlab.recurrent import ConvergenceError, ConvergenceWarning, reference, shooting, solve
from lmlab.recurrent.cells import TorchCell, as_cell, linearize
from lmlab.recurrent.elk import damped_sweep
from lmlab.recurrent.sweeps import Window, evaluate, largest_residual, sweep

PARALLEL = ("jacobi", "quasi", "newton", "elk", "shooting")
DOUBLE = torch.float64


def tanh_cell(n: int, gain: float, seed: int = 0) -> tuple[Any, Tensor]:
    """The article's cell and the matrix that it closes over."""
    generator = torch.Generator().manual_seed(seed)
    a = (torch.randn(n, n, dtype=DOUBLE, generator=generator) * gain / n**0.5).requires_grad_()
    return lambda h, u: torch.tanh(h @ a.T + u), a


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class ScaledTanh:
    """A user's cell in each structure, without a Jacobian of its own."""

    def __init__(self, structure: str, n: int) -> None:
        self.structure, self.state_size = structure, n
        self.w = nn.Parameter(torch.linspace(-0.6, 0.6, n, dtype=DOUBLE))

    def step(self, h: Tensor, u: Tensor) -> Tensor:
        if self.structure == "diagonal":
            return torch.tanh(self.w * h + u)
        x, y = h.chunk(2, -1)  # a block cell: two coordinates a channel
        w, v = self.w.chunk(2)
        return torch.tanh(torch.cat([w * y, v * x + 0.3 * y], -1) + u)


def test_the_sweeps_are_the_formulas() -> None:
    cell, _ = tanh_cell(3, 1.2)
    u, h0, old = noise(1, 7, 3), noise(1, 3, seed=2), noise(1, 7, 3, seed=3)
    window = Window(as_cell(cell, 3), u, h0, None)
    with torch.no_grad():
        for method in ("jacobi", "quasi", "newton"):
            f, j = evaluate(method, window, old)
            ours = sweep(method, window, old, f, j)[0]
            assert (ours - reference.sweep(method, cell, u[0], h0[0], old[0])).abs().max() <= 1e-12
        f, j = evaluate("newton", window, old)
        assert j is not None
        c = f - (j @ window.before(old)[..., None])[..., 0]
        for mu in (1e-3, 0.7, 100.0):
            ours = damped_sweep("dense", j, c, h0, old, torch.tensor([mu], dtype=DOUBLE))[0]
            assert (ours - reference.elk_sweep(cell, u[0], h0[0], old[0], mu)).abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "DiagonalRNN", "DiagonalGRU", "DiagonalLSTM"])
def test_jacobians_are_those_of_autograd(name: str) -> None:
    torch.manual_seed(0)
    home: Any = recurrent if name.startswith("Diagonal") else nn
    for options in [{}, {"nonlinearity": "relu"}] if name.endswith("RNN") else [{}, {"bias": False}]:
        cell = as_cell(getattr(home, name)(3, 4, **options).double())
        n = cell.state_size
        h, u = noise(2, 3, n), cell.prepare(noise(2, 3, 3, seed=2))  # type: ignore[attr-defined]
        new, j = linearize(cell, h, u)
        pairs = zip(h.view(-1, n), u.view(6, -1), strict=True)
        full = torch.stack([reference.jacobian(cell.step, x, v) for x, v in pairs])
        assert (new - cell.step(h, u)).abs().max() <= 1e-14
        if cell.structure == "diagonal":
            j = torch.diag_embed(j)
        if cell.structure == "block":
            blocks = torch.zeros(2, 3, 2, 4, 2, 4, dtype=DOUBLE)
            for channel in range(4):
                blocks[..., :, channel, :, channel] = j[..., channel, :, :]
            j = blocks.reshape(2, 3, n, n)
        assert (j.view(6, n, n) - full).abs().max() <= 1e-12


@pytest.mark.parametrize("structure", ["diagonal", "block"])
def test_a_users_jacobian_is_found_by_structure(structure: str) -> None:
    cell = ScaledTanh(structure, 6)
    h, u = noise(2, 4, 6), noise(2, 4, 6, seed=2)
    new, j = linearize(cell, h, u)
    full = reference.jacobian(cell.step, h[1, 2], u[1, 2])
    assert torch.equal(new, cell.step(h, u))
    if structure == "diagonal":
        assert (torch.diag(j[1, 2]) - full).abs().max() <= 1e-14
        return
    for channel in range(3):
        coordinates = torch.tensor([channel, 3 + channel])
        assert (j[1, 2, channel] - full[coordinates][:, coordinates]).abs().max() <= 1e-14


def long_enough(method: str) -> int:
    return 600 if method == "shooting" else 60


@pytest.mark.parametrize("method", ["sequential", *PARALLEL])
@pytest.mark.parametrize("window", [None, 17, 10**6])
@pytest.mark.parametrize("with_reset", [False, True])
def test_every_method_is_the_loop_on_a_contractive_cell(
    method: str, window: int | None, with_reset: bool
) -> None:
    if method == "shooting" and window == 17:
        window = 300
    t = long_enough(method)
    cell, a = tanh_cell(4, 0.5)
    u, h0 = noise(3, t, 4).requires_grad_(), noise(3, 4, seed=2).requires_grad_()
    reset = torch.rand(3, t, generator=torch.Generator().manual_seed(3)) < 0.1 if with_reset else None
    expected = reference.sequential(cell, u, h0, reset)
    s = solve(cell, u, h0, method=method, window=window, reset=reset, tol=1e-12)
    assert s.converged and s.residual <= 1e-12 and s.method == method
    assert (s.states - expected).abs().max() <= 1e-11
    upstream = noise(3, t, 4, seed=4)
    ours = torch.autograd.grad((s.states * upstream).sum(), (a, u, h0))
    loop = torch.autograd.grad((expected * upstream).sum(), (a, u, h0))
    for mine, theirs in zip(ours, loop, strict=True):
        assert (mine - theirs).abs().max() <= 1e-8 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("method", ["sequential", "quasi", "newton", "elk", "shooting"])
@pytest.mark.parametrize("structure", ["diagonal", "block"])
def test_cells_of_every_structure(method: str, structure: str) -> None:
    t = long_enough(method)
    cell = ScaledTanh(structure, 6)
    u = noise(2, t, 6).requires_grad_()
    expected = reference.sequential(cell.step, u, torch.zeros(2, 6, dtype=DOUBLE))
    s = solve(cell, u, method=method, tol=1e-12)
    assert s.converged and (s.states - expected).abs().max() <= 1e-11
    upstream = noise(2, t, 6, seed=4)
    ours = torch.autograd.grad((s.states * upstream).sum(), (cell.w, u))
    loop = torch.autograd.grad((expected * upstream).sum(), (cell.w, u))
    for mine, theirs in zip(ours, loop, strict=True):
        assert (mine - theirs).abs().max() <= 1e-8 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("method", ["auto", "newton", "shooting"])
def test_modules_of_torch_are_cells(name: str, method: str) -> None:
    torch.manual_seed(0)
    module = getattr(nn, name)(3, 5, batch_first=True).double()
    cell = getattr(nn, f"{name}Cell")(3, 5).double()
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in module.state_dict().items()})
    t = long_enough(method)
    x = noise(2, t, 3)
    expected, _ = module(x)
    upstream = noise(2, t, 5, seed=3)
    loop = torch.autograd.grad((expected * upstream).sum(), module.parameters())
    for source in (module, cell):
        s = solve(source, x, method=method, tol=1e-12)
        assert s.converged and s.method == {"auto": "sequential"}.get(method, method)
        assert (s.states[..., :5] - expected).abs().max() <= 1e-11
        ours = torch.autograd.grad((s.states[..., :5] * upstream).sum(), source.parameters())
        for mine, theirs in zip(ours, loop, strict=True):
            assert (mine - theirs).abs().max() <= 1e-8 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["DiagonalRNN", "DiagonalGRU", "DiagonalLSTM", "MinGRU", "LRU"])
def test_our_other_layers_are_cells(name: str) -> None:
    torch.manual_seed(0)
    module = getattr(recurrent, name)(3, 3, batch_first=True).double()
    x = noise(2, 40, 3)
    s = solve(module, x, tol=1e-12)
    expected, last = module(x)
    end = last[0] if isinstance(last, tuple) else last
    assert s.converged and (s.states[:, -1, :3] - end[0]).abs().max() <= 1e-11
    if name in ("MinGRU", "LRU"):
        assert (s.method, s.iterations) == ("newton", 1)


def test_linear_cells_take_one_sweep() -> None:
    a = noise(4, 4) / 4
    u = noise(2, 50, 4)
    assert solve(lambda h, u: h @ a.T + u, u, method="newton", window=50).iterations == 1
    assert solve(lambda h, u: torch.tanh(u), u, method="jacobi", window=50).iterations <= 1
    assert (
        solve(lambda h, u: torch.tanh(u) + 0 * h, u, method="jacobi", guess=noise(2, 50, 4)).iterations == 1
    )


@pytest.mark.parametrize("method", ["jacobi", "quasi", "newton"])
def test_after_k_sweeps_the_first_k_states_are_exact(method: str) -> None:
    cell, _ = tanh_cell(4, 3.0)
    u = noise(1, 12, 4)
    window = Window(as_cell(cell, 4), u, torch.zeros(1, 4, dtype=DOUBLE), None)
    with torch.no_grad():
        truth = reference.sequential(cell, u, window.carry)
        states = noise(1, 12, 4, seed=5)
        for k in range(1, 13):
            f, j = evaluate(method, window, states)
            states = sweep(method, window, states, f, j)
            assert (states[:, :k] - truth[:, :k]).abs().max() <= 1e-12


@pytest.mark.parametrize("method", ["jacobi", "newton", "elk", "shooting"])
def test_a_chaotic_cell_is_flagged_or_repaired(method: str) -> None:
    cell, _ = tanh_cell(16, 3.0)
    t = 1300 if method == "shooting" else 200
    u = 0.1 * noise(2, t, 16)
    truth = reference.sequential(cell, u, torch.zeros(2, 16, dtype=DOUBLE))
    options: dict[str, Any] = {"method": method, "window": t, "max_iter": 3 if method == "shooting" else 20}
    s = solve(cell, u, **options)
    assert s.converged and s.method == f"{method}+sequential"
    assert (s.states[:, :20] - truth[:, :20]).abs().max() <= 1e-8
    if method in ("newton", "shooting"):
        with pytest.warns(ConvergenceWarning, match=f"{method} left a residual of"):
            s = solve(cell, u, on_fail="return", **options)
        assert not s.converged and s.residual > 1e-10
        with pytest.raises(ConvergenceError, match=r"tol is 1e-10") as caught:
            solve(cell, u, on_fail="raise", **options)
        assert not caught.value.solution.converged


def test_only_the_sequences_that_fail_are_repaired_from_their_first_bad_step() -> None:
    calls: list[int] = []

    class Gained:
        """The last input is the gain: sequences of one batch, contractive and not."""

        state_size, structure = 2, "dense"

        def step(self, h: Tensor, u: Tensor) -> Tensor:
            calls.append(h.shape[0])
            return torch.tanh(u[..., 2:] * h.flip(-1) + u[..., :2])

    u = noise(3, 40, 3)
    u[..., 2] = torch.tensor([[0.1], [0.1], [1.0]])
    u[..., :2] *= 0.01
    u[2, :, 2] = 1.5
    s = solve(Gained(), u, noise(3, 2), method="jacobi", window=40, max_iter=12)
    assert s.converged and s.method == "jacobi+sequential"
    assert (s.states - reference.sequential(Gained().step, u, noise(3, 2))).abs().max() <= 1e-9
    assert calls.count(1) >= 20  # the third sequence alone, from its first bad step


@pytest.mark.parametrize("method", ["newton", "shooting", "jacobi", "sequential"])
def test_resets_are_separate_sequences(method: str) -> None:
    cell, a = tanh_cell(3, 0.6)
    u = noise(1, 600, 3).requires_grad_()
    reset = torch.zeros(1, 600, dtype=torch.bool)
    cuts = [0, 1, 2, 100, 257, 599]
    reset[0, cuts] = True
    s = solve(cell, u, noise(1, 3), method=method, reset=reset, tol=1e-13)
    zero = torch.zeros(1, 3, dtype=DOUBLE)
    parts = [reference.sequential(cell, u[:, i:j], zero) for i, j in zip(cuts, [*cuts[1:], 600], strict=True)]
    expected = torch.cat(parts, 1)
    assert (s.states - expected).abs().max() <= 1e-12
    ours = torch.autograd.grad(s.states.square().sum(), (a, u))
    loop = torch.autograd.grad(expected.square().sum(), (a, u))
    for mine, theirs in zip(ours, loop, strict=True):
        assert (mine - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.abs().max()))


def test_a_guess_from_the_last_epoch_saves_sweeps() -> None:
    cell, _ = tanh_cell(4, 0.9)
    u = noise(2, 80, 4)
    cold = solve(cell, u, method="newton", window=80)
    warm = solve(cell, u, method="newton", guess=cold.states)
    assert warm.iterations == 0 < cold.iterations and warm.converged


class Opaque:
    """torch.func can't trace it: the numbers leave torch."""

    state_size, structure = 3, "dense"

    def step(self, h: Tensor, u: Tensor) -> Tensor:
        gain = 0.5 if float(h.detach().sum()) > 1e9 else 0.4
        return torch.tanh(gain * h.flip(-1) + u)


def test_a_cell_that_cannot_be_traced() -> None:
    u = noise(2, 600, 3).requires_grad_()
    for method in ("newton", "quasi", "elk"):
        with pytest.raises(TypeError, match=r'torch\.func can.t trace its step .*method="shooting"'):
            solve(Opaque(), u, method=method)
    expected = reference.sequential(Opaque().step, u, torch.zeros(2, 3, dtype=DOUBLE))
    for method in ("shooting", "auto", "sequential"):
        s = solve(Opaque(), u, method=method)
        assert s.converged and (s.states - expected).abs().max() <= 1e-9
    (ours,) = torch.autograd.grad(s.states.square().sum(), u)
    (loop,) = torch.autograd.grad(expected.square().sum(), u)
    assert (ours - loop).abs().max() <= 1e-10


def test_auto_judges_long_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shooting, "promises", lambda window, seconds: True)
    calm, _ = tanh_cell(4, 0.5)
    u = noise(1, 2100, 4)
    assert solve(calm, u).method == "shooting"
    wild, _ = tanh_cell(4, 8.0)
    s = solve(wild, u)
    assert (s.method, s.converged) == ("sequential", True)
    monkeypatch.setattr(shooting, "promises", lambda window, seconds: False)
    assert solve(calm, u).method == "sequential"


def test_whether_shooting_promises_more_is_measured() -> None:
    cell, _ = tanh_cell(4, 0.5)
    window = Window(as_cell(cell, 4), noise(1, 4096, 4), torch.zeros(1, 4, dtype=DOUBLE), None)
    with torch.no_grad():
        assert shooting.promises(window, 1.0)
        assert not shooting.promises(window, 1e-12)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)])
def test_empty_inputs(shape: tuple[int, int, int]) -> None:
    u = torch.zeros(shape, requires_grad=True)
    h0 = torch.zeros(shape[0], 3, requires_grad=True)
    s = solve(nn.GRU(3, 3, batch_first=True), u, h0)
    assert s.states.shape == shape and s.converged
    s.states.sum().backward()
    assert u.grad is not None and not u.grad.any()


@pytest.mark.parametrize("t", [1, 2])
@pytest.mark.parametrize("method", ["sequential", *PARALLEL])
def test_shortest_sequences_and_one_channel(t: int, method: str) -> None:
    cell, _ = tanh_cell(1, 0.9)
    u = noise(1, t, 1)
    s = solve(cell, u, method=method)
    assert (s.states - reference.sequential(cell, u, torch.zeros(1, 1, dtype=DOUBLE))).abs().max() <= 1e-9


def test_memory_of_the_jacobians_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmlab.recurrent import solver

    cell, _ = tanh_cell(4, 0.5)
    u = noise(1, 50, 4)
    monkeypatch.setattr(solver, "MEMORY", 16 * 8 * 10)
    assert solve(cell, u, method="newton").converged
    with pytest.raises(
        ValueError, match=r"window=50 needs 6400 bytes for Jacobians, more than 1280: window=10 fits"
    ):
        solve(cell, u, method="newton", window=50)


def test_gradients_in_stretches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmlab.recurrent import implicit

    cell, a = tanh_cell(4, 0.9)
    u = noise(2, 50, 4)
    s = solve(cell, u, method="newton")
    (whole,) = torch.autograd.grad(s.states.square().sum(), a, retain_graph=True)
    monkeypatch.setattr(implicit, "MEMORY", 2 * 16 * 8 * 7)
    (parts,) = torch.autograd.grad(s.states.square().sum(), a)
    assert (whole - parts).abs().max() <= 1e-12 * whole.abs().max()


@pytest.mark.bad_input
def test_refusals() -> None:
    cell, a = tanh_cell(3, 0.5)
    u = noise(2, 5, 3)
    broken = u.clone()
    broken[1, 3, 0] = torch.nan
    gru = nn.GRU(3, 4, batch_first=True).double()
    counter = iter(range(100))
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: solve(cell, u[0]), ValueError, r"inputs must be \[b t m\], got \(5, 3\)"),
        (lambda: solve(cell, u.half()), TypeError, "inputs must be float32 or float64, got torch.float16"),
        (lambda: solve(cell, broken), ValueError, "NaN or infinity, first in sequence 1 at step 3"),
        (lambda: solve(gru, u, torch.zeros(2, 3).double()), ValueError, r"h0 must be \[b n\] = \(2, 4\)"),
        (lambda: solve(gru, u, torch.zeros(2, 4)), TypeError, "h0 is torch.float32 on cpu, inputs torch.float64"),
        (lambda: solve(cell, u, method="deer"), ValueError, "method must be one of auto, .*got 'deer'"),
        (lambda: solve(cell, u, tol=0.0), ValueError, "tol must be > 0, got 0.0"),
        (lambda: solve(cell, u, max_iter=0), ValueError, "max_iter must be >= 1, got 0"),
        (lambda: solve(cell, u, window=0), ValueError, "window must be >= 1 steps"),
        (lambda: solve(cell, u, guess=u[:, :4]), ValueError, r"guess must be \[b t n\] = \(2, 5, 3\)"),
        (lambda: solve(cell, u, reset=torch.ones(2, 4) > 0), ValueError, r"reset must be \[b t\] = \(2, 5\)"),
        (lambda: solve(cell, u, reset=torch.zeros(2, 5)), TypeError, "reset must be bool"),
        (lambda: solve(lambda h, u: h[..., :2], u), ValueError, r"next state, \(2, 3\) for h; it returned \(2, 2\)"),
        (lambda: solve(lambda h, u: h + u + next(counter), u), ValueError, "the cell must be pure"),
        (lambda: solve(lambda h, u: h + u @ torch.ones(3, 7).double(), u), ValueError, "give h0"),
        (lambda: solve(nn.GRU(3, 4, 2).double(), u), ValueError, "one layer in one direction"),
        (lambda: solve(nn.Linear(3, 3).double(), u), TypeError, "cell must be a torch.nn RNN.*got Linear"),
        (lambda: solve(cell, u, on_fail="ignore"), ValueError, "on_fail must be 'sequential'"),
        (lambda: as_cell(cell), ValueError, "a plain function needs a state size"),
    ]  # fmt: skip
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
    s = solve(cell, u)
    with pytest.raises(RuntimeError, match="solve has no second derivatives"):
        torch.autograd.grad(s.states.square().sum(), a, create_graph=True)


def test_the_structures_of_torchs_cells() -> None:
    weights = (torch.zeros(4, 1), torch.zeros(4), None, None)
    assert TorchCell("LSTM", weights, diagonal=True).structure == "block"
    assert TorchCell("RNN_TANH", (torch.zeros(4, 1), torch.zeros(4, 4), None, None)).structure == "dense"


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(("b", "t"), [(1, 1024), (1, 1111), (3, 1024), (2, 777)])
@pytest.mark.parametrize("cuts", [False, True])
def test_shooting_by_the_compiled_loop_is_the_loop(name: str, b: int, t: int, cuts: bool) -> None:
    torch.manual_seed(0)
    module = getattr(nn, name)(3, 5, batch_first=True).double()
    x = torch.randn(b, t, 3, dtype=torch.float64)
    reset = torch.rand(b, t) < 0.01 if cuts else None
    with torch.no_grad():
        expected = solve(module, x, method="sequential", reset=reset)
        found = solve(module, x, method="shooting", reset=reset)
    assert found.converged and found.method == "shooting" and found.residual <= 1e-10
    assert (found.states - expected.states).abs().max() <= 1e-9
    graph = solve(module, x, method="shooting", reset=reset)  # its residual is that of torch's operations
    assert abs(graph.residual - found.residual) <= 1e-14


def test_a_residual_that_is_not_a_number_is_not_converged() -> None:
    def cell(h: Tensor, u: Tensor) -> Tensor:
        return h / u

    window = Window(as_cell(cell, 2), torch.zeros(1, 4, 2), torch.zeros(1, 2), None)
    assert largest_residual(window, torch.zeros(1, 4, 2)) == float("inf")
