"""RNN, GRU and LSTM against torch.nn's: outputs, gradients, checkpoints, resets, lengths."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import lmlab.recurrent as recurrent
from lmlab.recurrent import fused

NAMES = ("RNN", "GRU", "LSTM")


def pair(name: str, *sizes: Any, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """torch's module and ours with copies of its parameters."""
    torch.manual_seed(seed)
    theirs = getattr(nn, name)(*sizes, dtype=torch.float64, **options)
    ours = getattr(recurrent, name)(*sizes, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, nn.utils.rnn.PackedSequence):
        return [result.data]
    return [x for part in result for x in flat(part)]


def agree(
    theirs: Any, ours: Any, inputs: list[Tensor], call: Any, outputs: float = 1e-12, grads: float = 1e-10
) -> None:
    """Outputs and the gradients of inputs and parameters, under a fixed random upstream."""
    results, gradients = [], []
    for module in (theirs, ours):
        found = flat(call(module, *inputs))
        torch.manual_seed(5)
        loss = sum((y * torch.randn(y.shape, dtype=y.dtype)).sum() for y in found)
        wanted = [x for x in inputs if x.requires_grad] + list(module.parameters())
        results.append(found)
        gradients.append(torch.autograd.grad(loss, wanted, materialize_grads=True))
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= outputs
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= grads * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 7, 16, 17, 31, 64, 65])
@pytest.mark.parametrize("b", [1, 3, 8, 17])
def test_odd_sizes(name: str, n: int, b: int) -> None:
    x = torch.randn(5, b, 3, dtype=torch.float64, requires_grad=True)
    agree(*pair(name, 3, n), [x], lambda m, x: m(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_layers_layouts_directions(
    name: str, layers: int, bidirectional: bool, batch_first: bool, bias: bool, state: bool
) -> None:
    modules = pair(name, 3, 7, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional)
    x = torch.randn(4, 6, 3, dtype=torch.float64).requires_grad_()
    number, batch = layers * (1 + bidirectional), 4 if batch_first else 6
    hs = [torch.randn(number, batch, 7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    hs = hs[: (2 if name == "LSTM" else 1) * state]
    agree(*modules, [x, *hs], lambda m, x, *h: m(x, (h if len(h) == 2 else h[0]) if h else None))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_without_a_batch(name: str, batch_first: bool) -> None:
    theirs, ours = pair(name, 3, 7, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(4, 7, dtype=torch.float64)
    agree(theirs, ours, [x], lambda m, x: m(x))
    agree(theirs, ours, [x], lambda m, x: m(x, (h, h) if name == "LSTM" else h))


def test_relu_and_a_transposed_input() -> None:
    theirs, ours = pair("RNN", 3, 7, nonlinearity="relu")
    x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    agree(theirs, ours, [x], lambda m, x: m(x.transpose(0, 1)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_packed_sequences(name: str, bidirectional: bool, ordered: bool) -> None:
    theirs, ours = pair(name, 3, 7, 2, bidirectional=bidirectional)
    lengths = [5, 4, 4, 1] if ordered else [4, 1, 5, 4]
    rows = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in lengths]
    number = 4 if bidirectional else 2
    h = torch.randn(number, 4, 7, dtype=torch.float64, requires_grad=True)
    hx = (h, h) if name == "LSTM" else h
    agree(theirs, ours, [*rows, h], lambda m, *r: m(pack_sequence(list(r[:-1]), enforce_sorted=ordered), hx))
    agree(theirs, ours, rows, lambda m, *r: m(pack_sequence(list(r), enforce_sorted=ordered)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_are_a_packed_sequence(name: str, batch_first: bool) -> None:
    theirs, ours = pair(name, 3, 7, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(4, 4, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([3, 4, 1, 2])

    def call(module: Any, x: Tensor) -> Any:
        if isinstance(module, type(ours)):
            return module(x, lengths=lengths)
        y, h = module(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False))
        return pad_packed_sequence(y, batch_first)[0], h

    agree(theirs, ours, [x], call)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_drops_the_same_numbers(name: str, batch_first: bool) -> None:
    theirs, ours = pair(name, 3, 7, 3, dropout=0.4, bidirectional=True, batch_first=batch_first)
    x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)

    def call(module: Any, x: Tensor) -> Any:
        torch.manual_seed(11)
        return module(x)

    agree(theirs, ours, [x], call)
    agree(theirs.eval(), ours.eval(), [x], call)


def segments(reset: Tensor) -> list[tuple[int, int]]:
    starts = [0, *(t for t in range(1, len(reset)) if reset[t])]
    return list(zip(starts, [*starts[1:], len(reset)], strict=True))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(
    reset=st.lists(st.booleans(), min_size=9, max_size=9),
    bidirectional=st.booleans(),
    seed=st.integers(0, 99),
)
def test_resets_are_separate_sequences(name: str, reset: list[bool], bidirectional: bool, seed: int) -> None:
    theirs, ours = pair(name, 3, 5, 1, bidirectional=bidirectional, seed=seed)
    torch.manual_seed(seed)
    x = torch.randn(9, 1, 3, dtype=torch.float64, requires_grad=True)
    parts = 2 if name == "LSTM" else 1
    h = [torch.randn(1 + bidirectional, 1, 5, dtype=torch.float64, requires_grad=True) for _ in range(parts)]
    cuts = torch.tensor(reset)

    def wrap(parts: list[Tensor]) -> Any:
        return (parts[0], parts[1]) if name == "LSTM" else parts[0]

    def call(module: Any, x: Tensor, *h: Tensor) -> Any:
        if module is ours:
            return module(x, wrap(list(h)), reset=cuts[:, None])
        pieces = segments(cuts)
        outputs, last = [], [torch.zeros_like(part) for part in h]
        for first, end in pieces:
            state = [torch.zeros_like(part) for part in h]
            for part, given_state in zip(state, h, strict=True):
                if first == 0 and not cuts[0]:
                    part[0] = given_state[0]
                if bidirectional and end == len(cuts):
                    part[1] = given_state[1]
            y, after = module(x[first:end], wrap(state))
            outputs.append(y)
            for final, part in zip(last, flat(after), strict=True):
                if end == len(cuts):
                    final[0] = part[0]
                if bidirectional and first == 0:
                    final[1] = part[1]
        return torch.cat(outputs), wrap(last)

    agree(theirs, ours, [x, *h], call, outputs=1e-12, grads=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_all_resets_and_none(name: str) -> None:
    _, ours = pair(name, 3, 5, 2, batch_first=True)
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    none = torch.zeros(2, 6, dtype=torch.bool)
    assert torch.equal(ours(x, reset=none)[0], ours(x)[0])
    alone = ours(x.reshape(12, 1, 3))[0].view(2, 6, 5)
    assert (ours(x, reset=~none)[0] - alone).abs().max() <= 1e-13


def test_resets_and_lengths_together_backward_in_time() -> None:
    """The end of a short row is no cut: the given state enters there, whatever reset says past it."""
    _, ours = pair("GRU", 3, 5, 1, batch_first=True, bidirectional=True)
    x, h = torch.randn(2, 6, 3, dtype=torch.float64), torch.randn(2, 2, 5, dtype=torch.float64)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[0, [2, 4]] = True
    y, last = ours(x, h, reset=reset, lengths=torch.tensor([4, 6]))
    short, short_last = ours(x[:1, :4], h[:, :1].contiguous(), reset=reset[:1, :4])
    assert (y[0, :4] - short[0]).abs().max() <= 1e-13
    assert not y[0, 4:].any()
    assert (last[:, :1] - short_last).abs().max() <= 1e-13


@pytest.mark.parametrize("name", NAMES)
def test_float32_errs_at_most_twice_as_much_as_torch(name: str) -> None:
    exact, _ = pair(name, 16, 33)
    theirs, ours = copy.deepcopy(exact).float(), getattr(recurrent, name)(16, 33)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(300, 5, 16)
    truth, a, b = exact(x.double())[0], theirs(x)[0], ours(x)[0]
    assert (b - truth).abs().max() <= 2 * (a - truth).abs().max() + 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [19, 48, 64, 96])  # from 48 on some matrices are gone through forth and back
def test_a_row_does_not_depend_on_its_batch_mates(name: str, dtype: torch.dtype, n: int) -> None:
    """Bit for bit in the loop: the projection is the identity's, which rounds nothing."""
    torch.manual_seed(0)
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[name]
    kind = {"RNN": "RNN_TANH"}.get(name, name)
    x = torch.randn(11, 8, gates * n, dtype=dtype)
    matrix, bias = torch.randn(gates * n, n, dtype=dtype) / 4, torch.randn(gates * n, dtype=dtype)
    weights = (torch.eye(gates * n, dtype=dtype), matrix, None, bias)

    def run(x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        rows = fused.Rows(b, torch.arange(t), t)
        zero = torch.zeros(b, n, dtype=dtype)
        state = (zero, zero) if name == "LSTM" else (zero,)
        y, _ = fused.fused(kind, False, rows, x.reshape(b * t, -1), state, weights)
        return y.view(b, t, n)

    together = run(x)
    for row in range(11):
        assert torch.equal(run(x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["plain", "bidirectional", "lengths", "packed", "reset"])
def test_gates_computed_again_give_the_same_gradients(
    name: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = pair(name, 3, 5, 2, bidirectional=case == "bidirectional", batch_first=case != "packed")
    x = torch.randn(3, 50, 3, dtype=torch.float64, requires_grad=True)
    lengths, reset = torch.tensor([50, 7, 31]), torch.rand(3, 50) < 0.1
    options = {"lengths": {"lengths": lengths}, "reset": {"reset": reset, "lengths": lengths}}.get(case, {})

    def call(module: Any, x: Tensor) -> Any:
        if case == "packed":
            return module(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return module(x, **options)

    def gradients() -> list[Tensor]:
        loss = sum(y.square().sum() + y.sum() for y in flat(call(ours, x)))
        return list(torch.autograd.grad(loss, [x, *ours.parameters()]))

    whole = gradients()
    monkeypatch.setattr(fused, "BUDGET", 100)
    monkeypatch.setattr(fused, "LEAST_CHUNK", 8)
    for a, b in zip(whole, gradients(), strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_torchs(name: str) -> None:
    theirs, ours = pair(name, 2, 3, bidirectional=True)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (theirs, ours):
        y, _ = module(x)
        wanted = [x, *module.parameters()]
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_from_torch_shares_and_is_an_instance(name: str) -> None:
    theirs, _ = pair(name, 3, 5, 2)
    ours = getattr(recurrent, name).from_torch(theirs)
    assert isinstance(ours, getattr(nn, name)) and type(ours) is getattr(recurrent, name)
    assert all(a is b for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    with torch.no_grad():
        theirs.weight_hh_l1.mul_(0.5)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert (theirs(x)[0] - ours(x)[0]).abs().max() <= 1e-12


def test_parameters_are_read_by_name_at_every_call() -> None:
    theirs, ours = pair("GRU", 3, 5)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for change in (lambda m: m, copy.deepcopy, lambda m: m.float(), lambda m: m.to(torch.float64)):
        theirs, ours = change(theirs), change(ours)
        y = x.to(next(ours.parameters()).dtype)
        assert (theirs(y)[0] - ours(y)[0]).abs().max() <= 1e-6
    ours.weight_hh_l0 = nn.Parameter(torch.zeros_like(ours.weight_hh_l0))
    theirs.load_state_dict(ours.state_dict())
    assert (theirs(x)[0] - ours(x)[0]).abs().max() <= 1e-12
    nn.utils.parametrizations.weight_norm(ours, "weight_ih_l0")
    assert (theirs(x)[0] - ours(x)[0]).abs().max() <= 1e-12


def test_weights_changed_between_forward_and_backward() -> None:
    _, ours = pair("GRU", 3, 5)
    y, _ = ours(torch.randn(4, 2, 3, dtype=torch.float64))
    with torch.no_grad():
        ours.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_nan_spreads_from_its_step_in_its_sequence_only(name: str) -> None:
    theirs, ours = pair(name, 3, 17)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    x[2, 1, 0] = torch.nan
    bad = torch.isnan(ours(x)[0])
    assert torch.equal(bad, torch.isnan(theirs(x)[0]))
    assert not bad[:2].any() and not bad[:, [0, 2, 3, 4]].any()


def test_where_torch_takes_over() -> None:
    theirs, ours = pair("LSTM", 3, 5, proj_size=2)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert torch.equal(theirs(x)[0], ours(x)[0])
    theirs, ours = pair("GRU", 3, 5)
    weights = dict(ours.named_parameters())
    mapped = torch.func.vmap(lambda x: torch.func.functional_call(ours, weights, (x,))[0])(x[:, :, None])
    assert (mapped[:, :, 0] - torch.stack([theirs(row)[0] for row in x])).abs().max() <= 1e-12
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours.float()(x.float())[0].shape == (4, 2, 5)
    reset = torch.zeros(4, 2, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x.float(), reset=reset)[0].shape == (4, 2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_torch_operations_know_resets_and_lengths_too(name: str) -> None:
    """What runs on an accelerator: the same numbers as the compiled loop."""
    from lmlab.recurrent.modules import _plain

    theirs, ours = pair(name, 3, 5, 2, bidirectional=True, batch_first=True)
    x = torch.randn(3, 7, 3, dtype=torch.float64)
    reset, lengths = torch.rand(3, 7) < 0.3, torch.tensor([7, 2, 5])
    expected = flat(ours(x, reset=reset, lengths=lengths))
    batch = recurrent.modules.read_batch(x, reset, lengths, True)
    state = ours._initial_state(batch, None, False)
    y, after = recurrent.modules.run_layers(
        _plain(ours.mode), batch, state, ours._layer_weights(), directions=2, dropout=0.0
    )
    for a, b in zip(expected, [batch.give_back(y), *after], strict=True):
        assert (a - b).abs().max() <= 1e-12


@pytest.mark.bad_input
def test_refusals_are_torchs_and_ours() -> None:
    theirs, ours = pair("GRU", 3, 5, batch_first=True)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    for bad in (x[..., :2], x[None], x.float(), x[:, :0]):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            theirs(bad)
        with pytest.raises(type(expected.value)):
            ours(bad)
    for bad_state in (torch.zeros(1, 3, 5).double(), torch.zeros(2, 5).double()):
        with pytest.raises(RuntimeError):
            ours(x, bad_state)
    with pytest.raises(ValueError, match=r"lengths must be \[b\] = \(2,\), got \(3,\)"):
        ours(x, lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"lengths must lie in 1 … 4.*lengths\[1\] is 5"):
        ours(x, lengths=torch.tensor([1, 5]))
    with pytest.raises(ValueError, match=r"lengths\[0\] is 0"):
        ours(x, lengths=torch.tensor([0, 2]))
    with pytest.raises(TypeError, match=r"lengths must be integers, got torch\.float32"):
        ours(x, lengths=torch.ones(2))
    with pytest.raises(ValueError, match=r"reset must be \(2, 4\).*got \(4, 2\)"):
        ours(x, reset=torch.zeros(4, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match="reset must be bool"):
        ours(x, reset=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="a PackedSequence brings its own lengths"):
        ours(pack_sequence([x[0]]), lengths=torch.tensor([4]))
    with pytest.raises(TypeError, match=r"GRU.from_torch takes a torch.nn.GRU, got LSTM"):
        recurrent.GRU.from_torch(nn.LSTM(3, 5))
