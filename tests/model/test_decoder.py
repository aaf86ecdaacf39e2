"""The decoder against its float64 oracle, its causality, and its steps against its forward pass."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from lmlab.attention import VQOptions
from lmlab.model import AttentionOptions, Decoder, DecoderConfig, DecoderState, PositionOptions
from lmlab.model.reference import decoder_logits
from lmlab.recurrent import RecurrentOptions

SMALL = DecoderConfig(vocab_size=23, d_model=16, n_layers=2, n_heads=4, d_ff=24, max_length=32)


def small(**changes: Any) -> DecoderConfig:
    return dataclasses.replace(SMALL, **changes)


def decoder(config: DecoderConfig, seed: int = 0) -> Decoder:
    """In float64, with weights large enough that every part counts."""
    model = Decoder(config, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return model


def random_ids(b: int, t: int, seed: int = 1) -> Tensor:
    return torch.randint(SMALL.vocab_size, (b, t), generator=torch.Generator().manual_seed(seed))


ORACLE_CASES = {
    "plain": SMALL,
    "one kv head": small(n_kv_heads=1),
    "two kv heads": small(n_kv_heads=2),
    "untied": small(tie_embeddings=False),
    "qk norm": small(attention=AttentionOptions(qk_norm=True)),
    "head width of its own": small(d_head=6, n_kv_heads=2),
    "partly rotated": small(d_head=8, position=PositionOptions(dim=4)),
    "nope": small(position=PositionOptions(kind="nope")),
    "mup": small(init="mup"),
    "window": small(attention=AttentionOptions(window=3)),
    "hwfa": small(n_layers=3, hybrid="hwfa", max_length=16),
    "hwfa2": small(n_layers=3, hybrid="hwfa2", max_length=12),
    "eps 0, large base": small(norm_eps=0.0, position=PositionOptions(base=1e6)),
}


@pytest.mark.parametrize("case", ORACLE_CASES)
@pytest.mark.parametrize(("b", "t"), [(1, 1), (2, 7)])
def test_logits_and_gradients_are_those_of_the_formula(case: str, b: int, t: int) -> None:
    model, ids = decoder(ORACLE_CASES[case]), random_ids(b, t)
    upstream = torch.randn(b, t, SMALL.vocab_size, dtype=torch.float64)
    logits = model(ids)
    (logits * upstream).sum().backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected = decoder_logits(weights, model.config, ids)
    (expected * upstream).sum().backward()
    size = float(expected.detach().abs().max())
    assert (logits - expected).abs().max() <= 1e-12 * max(1.0, size)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        other = weights[name].grad
        error = (parameter.grad - other).abs().max()
        assert error <= 1e-10 * max(1.0, float(other.abs().max())), name


@pytest.mark.parametrize(("b", "t"), [(1, 64), (17, 2), (2, 17)])
def test_longer_sequences_and_larger_batches_are_those_of_the_formula(b: int, t: int) -> None:
    model, ids = decoder(small(n_kv_heads=2)), random_ids(b, t)
    with torch.no_grad():
        expected = decoder_logits(dict(model.named_parameters()), model.config, ids)
        assert (model(ids) - expected).abs().max() <= 1e-12 * float(expected.abs().max())


def vq(**options: Any) -> DecoderConfig:
    return small(mixer="vq", vq=VQOptions(codes=8, window=3, **options), n_kv_heads=2)


CELLS = ("gru", "lstm", "rnn", "diagonal-gru", "diagonal-lstm", "diagonal-rnn", "mingru", "lru")
SOLVED = {
    f"{cell} by newton": RecurrentOptions(cell, 6, "newton", 5) for cell in ("gru", "diagonal-lstm", "lru")
}
CONSTANT_CASES = {
    **{name: small(mixer="recurrent", recurrent=options) for name, options in SOLVED.items()},
    **{cell: small(mixer="recurrent", recurrent=RecurrentOptions(cell=cell, state=12)) for cell in CELLS},
    "vq": vq(),
    "vq, rotary and gate": vq(position="rotary", gate=True),
}
STEP_CASES = {
    **ORACLE_CASES,
    **CONSTANT_CASES,
    "vq and attention": small(mixer=("vq", "attention"), vq=VQOptions(codes=8, window=3)),
    "alibi": small(position=PositionOptions(kind="alibi")),
    "key norm": small(position=PositionOptions(key_norm=True)),
    "cosa": small(position=PositionOptions(cosa=True)),
    "entropy-invariant scale": small(attention=AttentionOptions(scale="log-n")),
    "learned scale": small(attention=AttentionOptions(scale="ssmax"), n_kv_heads=2),
    "ReRoPE": small(position=PositionOptions(extension={"method": "rerope", "window": 4})),
    "ReRoPE and log n": small(
        max_length=8,
        position=PositionOptions(extension=[{"method": "rerope", "window": 3}, {"method": "logn"}]),
    ),
}


@pytest.mark.parametrize("case", STEP_CASES)
@pytest.mark.parametrize("splits", [(1,) * 9, (4, 1, 1, 3)])
def test_steps_in_any_split_are_the_forward_pass(case: str, splits: tuple[int, ...]) -> None:
    model, ids = decoder(STEP_CASES[case]), random_ids(3, 9)
    with torch.no_grad():
        expected = model(ids)
        state = model.init_state(3, 9)
        start = 0
        for t in splits:
            logits = model.step(ids[:, start : start + t], state)
            start += t
            assert state.position == start
            assert (logits - expected[:, start - 1]).abs().max() <= 1e-10


def test_a_state_grows_when_no_length_was_given() -> None:
    model, ids = decoder(small(max_length=4)), random_ids(2, 11)
    with torch.no_grad():
        state = model.init_state(2)
        for t in range(11):
            logits = model.step(ids[:, t : t + 1], state)
        assert (logits - model(ids)[:, -1]).abs().max() <= 1e-10


@pytest.mark.parametrize("case", ["plain", "two kv heads", "hwfa2", "alibi", "ReRoPE", "vq", "gru", "lru"])
def test_an_id_changes_no_logit_before_it_by_a_bit(case: str) -> None:
    model, ids = decoder(STEP_CASES[case]).float(), random_ids(2, 12)
    with torch.no_grad():
        before = model(ids)
        for j in range(12):
            changed = ids.clone()
            changed[:, j] = (ids[:, j] + 1) % SMALL.vocab_size
            after = model(changed)
            assert torch.equal(before[:, :j], after[:, :j])
            assert not torch.equal(before[:, j], after[:, j])


def test_hidden_times_head_is_the_logits() -> None:
    for config in (SMALL, small(tie_embeddings=False), small(init="mup")):
        model, ids = decoder(config), random_ids(2, 9)
        hidden = model.hidden(ids)
        assert hidden.state is None and float(hidden.aux) == 0
        assert torch.equal(hidden.h @ model.head.T, model(ids))


def test_rows_of_a_state_can_be_chosen_and_copied() -> None:
    model, ids = decoder(small(n_kv_heads=2)), random_ids(3, 9)
    with torch.no_grad():
        state = model.init_state(3, 9)
        model.step(ids[:, :4], state)
        copy, chosen = state.clone(), state.select(torch.tensor([2, 0]))
        whole = model.step(ids[:, 4:], state)
        assert copy.position == 4 and state.position == 9
        assert torch.equal(model.step(ids[:, 4:], copy), whole)
        assert (model.step(ids[[2, 0], 4:], chosen) - whole[[2, 0]]).abs().max() <= 1e-12


def test_rows_at_different_positions_go_on_together() -> None:
    for config in (small(n_kv_heads=2), STEP_CASES["ReRoPE"], STEP_CASES["hwfa2"]):
        model, ids = decoder(config), random_ids(2, 12)
        lengths = (4, 7)
        with torch.no_grad():
            states = []
            for row, length in enumerate(lengths):
                states.append(model.init_state(1, 12))
                model.step(ids[row : row + 1, :length], states[-1])
            joined = DecoderState.join(states)
            for step in range(3):
                new = torch.stack([ids[row, length + step] for row, length in enumerate(lengths)])[:, None]
                logits = model.step(new, joined)
                for row, length in enumerate(lengths):
                    alone = model(ids[row : row + 1, : length + step + 1])[0, -1]
                    assert (logits[row] - alone).abs().max() <= 1e-10


def test_the_state_of_attention_is_allocated_once() -> None:
    model = decoder(small(n_kv_heads=2))
    state = model.init_state(2, 10)
    nbytes = state.nbytes
    assert nbytes == 2 * SMALL.n_layers * 2 * 2 * 10 * 4 * 8
    with torch.no_grad():
        model.step(random_ids(2, 10), state)
    assert state.nbytes == nbytes


@pytest.mark.parametrize("case", CONSTANT_CASES)
def test_other_states_do_not_grow(case: str) -> None:
    model, ids = decoder(CONSTANT_CASES[case]), random_ids(2, 90)
    state = model.init_state(2)
    nbytes = state.nbytes
    assert nbytes > 0
    with torch.no_grad():
        for start in range(0, 90, 30):
            model.step(ids[:, start : start + 30], state)
            assert state.nbytes == nbytes
    assert state.select(torch.tensor([1])).nbytes == nbytes // 2


def test_the_extension_of_a_call_replaces_the_configured_one() -> None:
    plain, extended = decoder(small(max_length=8)), decoder(STEP_CASES["ReRoPE"])
    extended.load_state_dict(plain.state_dict())
    ids = random_ids(1, 20)
    with torch.no_grad():
        method = {"method": "rerope", "window": 4}
        assert torch.equal(plain(ids, extension=method), extended(ids))
        assert torch.equal(extended(ids, extension=None), plain(ids))
        assert not torch.equal(plain(ids), extended(ids))


def test_a_seed_decides_the_weights_and_torchs_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    a, b, c = Decoder(SMALL), Decoder(SMALL, seed=0), Decoder(SMALL, seed=1)
    assert torch.equal(torch.rand(1), expected)
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(a.head, c.head)


def test_first_weights_have_the_documented_spread() -> None:
    config = DecoderConfig(vocab_size=500, d_model=192, n_layers=2, n_heads=6)
    model = Decoder(config)
    sigma = 0.04
    spread = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim == 2}
    for name, value in spread.items():
        expected = sigma / 2 if name.endswith(("out.weight", "down.weight")) else sigma
        assert value == pytest.approx(expected, rel=0.03), name
    mup = Decoder(dataclasses.replace(config, init="mup", tie_embeddings=False))
    assert float(mup.embedding.weight.detach().std()) == pytest.approx(1.0, rel=0.03)
    assert float(mup.blocks[0].mlp.down.weight.detach().std()) == pytest.approx(512**-0.5, rel=0.03)
    assert mup.config.output_scale == 256 / 192


def test_parameters_and_operations_are_counted() -> None:
    config = DecoderConfig(vocab_size=4096)
    model = Decoder(config)
    d, f, v = 192, 512, 4096
    layer = 4 * d * d + 3 * d * f + 2 * d
    assert model.num_parameters() == v * d + 6 * layer + d
    assert model.num_parameters(embeddings=False) == 6 * layer + d
    matrices = 6 * (4 * d * d + 3 * d * f)
    assert model.flops_per_token(256) == 2 * (matrices + v * d) + 6 * 2 * 256 * d
    assert 21e6 < 3 * model.flops_per_token(256) < 23e6


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        (torch.tensor([1, 2]), ValueError, r"\[batch, time\].*got shape \[2\]; one row: ids\[None\]"),
        (torch.zeros(2, 0, dtype=torch.int64), ValueError, r"time >= 1, got shape \[2, 0\]"),
        (torch.zeros(1, 3), ValueError, r"integers \(int64\), got torch.float32"),
        (torch.tensor([[0, 23]]), IndexError, r"\[0, 23\), got values from 0 to 23"),
        (torch.tensor([[-1, 3]]), IndexError, r"\[0, 23\), got values from -1 to 3"),
    ],
)
def test_ids_that_are_refused(ids: Tensor, error: type[Exception], text: str) -> None:
    model = Decoder(SMALL)
    for call in (model, model.hidden, lambda ids: model.step(ids, model.init_state(1))):
        with pytest.raises(error, match=text):
            call(ids)
