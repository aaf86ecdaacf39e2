"""Autocast: what this room computes runs in the type of its parameters; stand-ins follow torch.nn's rule."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import lmlab.recurrent as recurrent
from lmlab.model import Decoder, DecoderConfig
from lmlab.recurrent import RecurrentOptions, convergence, linear_scan, lyapunov, solve
from lmlab.train import TokenFile, TrainConfig, train

OURS = ("DiagonalRNN", "DiagonalGRU", "DiagonalLSTM", "MinGRU", "LRU")
TORCHS = ("RNN", "GRU", "LSTM")
CELLS = ("gru", "lstm", "rnn", "diagonal-gru", "diagonal-lstm", "diagonal-rnn", "mingru", "lru")
HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def parts(state: Any) -> tuple[Tensor, ...]:
    return tuple(state) if isinstance(state, tuple) else (state,)


def gradients(module: nn.Module, outputs: list[Tensor], inside: bool) -> list[Tensor]:
    """Of the sum of squares; `inside`: backward, too, is called under autocast."""
    loss = sum((y.abs().float() ** 2).sum() for y in outputs)
    assert isinstance(loss, Tensor)
    with torch.autocast("cpu", HALF, enabled=inside):
        loss.backward()
    found = [parameter.grad for parameter in module.parameters()]
    module.zero_grad(set_to_none=True)
    assert all(g is not None for g in found)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("given", [torch.float32, HALF])
@pytest.mark.parametrize("width", [3, 600])  # Newton by channels; products that torch multiplies
@pytest.mark.parametrize("inside", [False, True])
def test_our_layers_compute_in_the_type_of_their_parameters(
    name: str, given: torch.dtype, width: int, inside: bool
) -> None:
    module = getattr(recurrent, name)(4, width, batch_first=True)
    x = torch.randn(2, 70, 4).to(given)
    y, state = module(x.float())
    exact = gradients(module, [y, *parts(state)], False)
    first = tuple(
        torch.zeros_like(part).to(part.dtype if part.is_complex() else given) for part in parts(state)
    )
    with torch.autocast("cpu", HALF):
        z, after = module(x, first if len(first) == 2 else first[0])
    assert z.dtype == torch.float32 and torch.equal(y, z)
    for a, b in zip(parts(state), parts(after), strict=True):
        assert torch.equal(a, b)
    torchs = inside and name in ("MinGRU", "LRU")  # the projections are torch's products, rounded in there
    for a, b in zip(exact, gradients(module, [z, *parts(after)], inside), strict=True):
        assert a.dtype == b.dtype and (a - b).abs().max() <= (0.02 if torchs else 1e-5) * a.abs().max()


@pytest.mark.parametrize("name", OURS)
def test_resets_lengths_and_packed_sequences(name: str) -> None:
    module = getattr(recurrent, name)(4, 5)
    x, reset = torch.randn(9, 2, 4), torch.rand(9, 2) < 0.3
    packed = pack_sequence([x[:, 0].to(HALF), x[:5, 1].to(HALF)])
    expected = [module(x, reset=reset)[0], module(x, lengths=torch.tensor([4, 9]))[0]]
    with torch.autocast("cpu", HALF):
        found = [module(x, reset=reset)[0], module(x, lengths=torch.tensor([4, 9]))[0]]
        assert module(packed)[0].data.dtype == torch.float32
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.parametrize("given", [torch.float32, HALF])
def test_stand_ins_do_as_torch_does(name: str, given: torch.dtype) -> None:
    theirs = getattr(nn, name)(4, 8, 2, batch_first=True)
    ours = getattr(recurrent, name).from_torch(theirs)
    x = torch.randn(2, 7, 4).to(given)
    found = []
    for module in (theirs, ours):
        with torch.autocast("cpu", HALF):
            y, state = module(x)
        found.append([y.detach(), *parts(state), *gradients(module, [y, *parts(state)], False)])
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.parametrize("inside", [False, True])
def test_stand_ins_with_resets_or_lengths_compute_in_the_type_of_their_parameters(
    name: str, inside: bool
) -> None:
    module = getattr(recurrent, name)(4, 8, 2, batch_first=True, bidirectional=True)
    x, reset, lengths = torch.randn(2, 7, 4), torch.rand(2, 7) < 0.3, torch.tensor([7, 3])
    y, state = module(x, reset=reset, lengths=lengths)
    exact = gradients(module, [y, *parts(state)], False)
    with torch.autocast("cpu", HALF):
        z, after = module(x, reset=reset, lengths=lengths)
        with torch.no_grad():
            assert module(x.to(HALF), reset=reset)[0].dtype == torch.float32
    assert torch.equal(y, z)
    for a, b in zip(exact, gradients(module, [z, *parts(after)], inside), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dense", [False, True])
def test_the_scan_brings_its_arguments_to_one_type(dense: bool) -> None:
    a, b, h0 = torch.rand(2, 9, 5, *(5,) * dense) / 3, torch.randn(2, 9, 5), torch.randn(2, 5)
    with torch.autocast("cpu", HALF):
        mixed = linear_scan(a.to(HALF).requires_grad_(), b, h0.to(HALF))
        half = linear_scan(a.to(HALF), b.to(HALF), h0.to(HALF))
    assert mixed.dtype == torch.float32 and half.dtype == HALF
    assert torch.equal(mixed, linear_scan(a.to(HALF).float(), b, h0.to(HALF).float()))
    with pytest.raises(TypeError, match=r"a is torch.bfloat16, b is torch.float32"):
        linear_scan(a.to(HALF), b)


@pytest.mark.parametrize("inside", [False, True])
def test_a_scan_is_differentiated_twice_under_autocast(inside: bool) -> None:
    a, b = (0.3 * torch.randn(1, 6, 3, 3)).requires_grad_(), torch.randn(1, 6, 3).requires_grad_()

    def second(on: bool) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", HALF, enabled=on):
            first = torch.autograd.grad(linear_scan(a, b).square().sum(), (a, b), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (a, b))

    for x, y in zip(second(False), second(inside), strict=True):
        assert (x - y).abs().max() <= 1e-5 * x.abs().max()


@pytest.mark.parametrize("method", ["auto", "sequential", "jacobi", "quasi", "newton", "elk", "shooting"])
@pytest.mark.parametrize("given", [torch.float32, HALF])
def test_solvers_reach_their_tolerance(method: str, given: torch.dtype) -> None:
    a = (0.3 * torch.randn(6, 6)).requires_grad_()
    u = torch.randn(2, 40, 6).to(given)

    def cell(h: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(h @ a.T + u)

    expected = solve(cell, u.float(), method=method)
    (exact,) = torch.autograd.grad(expected.states.square().sum(), a)
    with torch.autocast("cpu", HALF):
        found = solve(cell, u, method=method, guess=None if method != "newton" else torch.zeros_like(u))
        (gradient,) = torch.autograd.grad(found.states.square().sum(), a)
    assert found.converged and found.states.dtype == torch.float32
    assert (found.states - expected.states).abs().max() <= 1e-4
    assert (gradient - exact).abs().max() <= 0.02 * exact.abs().max()  # torch's products inside autocast


def test_diagnoses_are_those_of_float32() -> None:
    module, u = nn.GRU(4, 5, batch_first=True), torch.randn(2, 30, 4).to(HALF)
    expected, rows = lyapunov(module, u.float()), convergence(module, u.float(), max_iter=4)
    with torch.autocast("cpu", HALF):
        found, seen = lyapunov(module, u), convergence(module, u, max_iter=4)
    assert torch.equal(found.exponent, expected.exponent) and seen == rows


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    documents = [[1 + (start + 3 * i) % 16 for i in range(30)] for start in range(20)]
    return TokenFile.write(tmp_path_factory.mktemp("autocast") / "tokens", documents, vocab_size=17, end_id=0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("method", "window"), [("auto", None), ("newton", 5)])
def test_a_decoder_trains_in_bfloat16(cell: str, method: str, window: int | None, tokens: TokenFile) -> None:
    config = DecoderConfig(
        vocab_size=17, d_model=16, n_layers=2, n_heads=2, d_ff=16, max_length=8, mixer="recurrent",
        recurrent=RecurrentOptions(cell, 12, method, window),
    )  # fmt: skip
    model = Decoder(config)
    options = TrainConfig(steps=8, batch_size=4, length=8, precision="bfloat16", lr=1e-2)
    result = train(model, tokens, options)
    assert result.precision == "bfloat16" and model.head.dtype == torch.float32
    assert result.history[-1].loss < result.history[0].loss
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_a_decoder_s_recurrence_is_not_rounded_by_autocast(cell: str) -> None:
    from lmlab.model.mixers import RecurrentMixer

    config = DecoderConfig(17, d_model=16, n_layers=1, n_heads=2, recurrent=RecurrentOptions(cell, 12))
    mixer, x = RecurrentMixer(config), torch.randn(2, 9, 16)
    seen: list[Tensor] = []
    mixer.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain, _, _ = mixer(x)
    with torch.autocast("cpu", HALF):
        rounded, state, _ = mixer(x.to(HALF).float(), mixer.init_state(2, 9))
    assert rounded.dtype == HALF and seen[1].dtype == torch.float32
    assert (seen[0] - seen[1]).abs().max() <= 0.1 and (plain - rounded).abs().max() <= 0.1
    assert state is not None and all(part.dtype != HALF for part in parts(state.hidden))
