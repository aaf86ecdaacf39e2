"""What is measured inside a model, beside the same thing written out."""

import math

import pytest
import torch

from lmlab.attention import VQOptions
from lmlab.lab.steps.inside import attention_weights, inside, local_only, mixers
from lmlab.model import AttentionOptions, Decoder, DecoderConfig
from lmlab.recurrent import RecurrentOptions

SIZE = {"vocab_size": 40, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_length": 24}


def model(**options: object) -> Decoder:
    return Decoder(DecoderConfig(**{**SIZE, **options}), seed=3).eval()  # type: ignore[arg-type]


def ids(n: int = 5, t: int = 24) -> torch.Tensor:
    return torch.randint(0, 40, (n, t), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [None, "learned", "log-n"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_weights_are_those_of_the_layer(scale: str | None, kv_heads: int) -> None:
    one = model(n_kv_heads=kv_heads, attention=AttentionOptions(qk_norm=True, scale=scale))
    mixer = mixers(one)[0]
    x = torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(1))
    weights = attention_weights(mixer, x)
    assert weights.shape == (3, 4, 16, 24)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 16, dtype=torch.float64))
    v = mixer.qkv(x).view(3, 24, -1, 8)[:, :, -kv_heads:].transpose(1, 2).repeat_interleave(4 // kv_heads, 1)
    mixed = (weights @ v.double()).transpose(1, 2).reshape(3, 16, 32).float()
    torch.testing.assert_close(mixer.out(mixed), mixer(x)[0][:, -16:], rtol=1e-4, atol=1e-5)


def test_measures_of_heads_that_see_all_alike() -> None:
    one = model()
    with torch.no_grad():
        for mixer in mixers(one):
            mixer.qkv.weight[:64] = 0  # no query, no key: every logit is 0
    found = inside(one, ids(), 24)
    assert [(h["layer"], h["head"]) for h in found["heads"]] == [(i, j) for i in (0, 1) for j in range(4)]
    for head in found["heads"]:
        assert head["alpha"] == pytest.approx(0, abs=1e-9)
        assert head["entropy"] == pytest.approx(1)
    assert found["codes"] is None
    sizes = {row["length"]: row["bytes"] for row in found["state"]}
    assert sizes[96] == 4 * sizes[24] and sizes[384] == 16 * sizes[24]


@pytest.mark.parametrize("position", ["bias", "rotary"])
@pytest.mark.parametrize("gate", [False, True])
def test_with_a_window_over_the_whole_text_nothing_is_far(position: str, gate: bool) -> None:
    options = VQOptions(codes=6, position=position, window=24, gate=gate)  # type: ignore[arg-type]
    one = model(mixer="vq", vq=options, n_kv_heads=2)
    mixer = mixers(one)[0]
    if mixer.bias is not None:
        torch.nn.init.normal_(mixer.bias)
    x = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(local_only(mixer)(x)[0], mixer(x)[0], rtol=1e-4, atol=1e-5)


def test_codes_are_measured_and_the_model_is_left_as_it_was() -> None:
    one = model(mixer="vq", vq=VQOptions(codes=6, window=4))
    before = {k: v.clone() for k, v in one.state_dict().items()}
    found = inside(one, ids(), 24)["codes"]
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    assert all(0 < row["alive"] <= 1 and 1 <= row["perplexity"] <= 6 for row in found["layers"])
    assert found["loss"] == pytest.approx(math.log(40), rel=0.1)
    assert found["local_loss"] != found["loss"]
    assert found["loss"] == inside(one, ids(), 24)["codes"]["loss"]
    assert not one.training
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    none = model(mixer="vq", vq=VQOptions(codes=6, position="none"))
    assert inside(none, ids(), 24)["codes"]["local_loss"] is None


def test_a_recurrent_cell_is_solved_sweep_by_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmlab.lab.steps.solving.LONGEST", 256)
    one = model(mixer=("recurrent", "attention"))
    (found,) = inside(one, ids(), 24)["recurrent"]
    assert (found["layer"], found["steps"], found["verdict"]) == (0, 24, "contractive") and found[
        "exponent"
    ] < 0
    last = {row["method"]: row for row in found["sweeps"]}
    assert last["newton"]["iteration"] < last["jacobi"]["iteration"] and last["newton"]["exact_prefix"] == 24
    assert inside(model(), ids(), 24)["recurrent"] == []


def test_a_recurrent_cell_by_the_gain_of_its_weights_and_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmlab.lab.steps.solving.LONGEST", 1024)
    monkeypatch.setattr("lmlab.lab.steps.solving.PATIENCE", 60.0)
    one = model(mixer="recurrent", recurrent=RecurrentOptions(cell="rnn", state=12))
    before = {k: v.clone() for k, v in one.state_dict().items()}
    first, second = inside(one, ids(), 24)["recurrent"]
    assert "by_gain" in first and "by_gain" not in second  # of the first recurrent layer
    rows = {row["gain"]: row for row in first["by_gain"]}
    assert rows[1.0]["exponent"] == pytest.approx(first["exponent"], abs=1e-4)
    exponents = [row["exponent"] for row in first["by_gain"]]
    assert exponents[0] < exponents[1] < exponents[2]
    assert rows[0.5]["sweeps"] <= rows[2.0]["sweeps"]
    for row in first["by_gain"]:
        assert row["gradient"]["true"] < 1e-4 < row["gradient"]["diagonal"]
    seconds = {(row["method"], row["length"]): row["seconds"] for row in first["by_length"]}
    ways = ("this cell", "torch.nn.RNN", "shooting", "newton")
    assert set(seconds) == {(m, t) for m in ways for t in (256, 1024)} and min(seconds.values()) > 0
    for name, value in one.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "cell", ["gru", "lstm", "diagonal-rnn", "diagonal-gru", "diagonal-lstm", "mingru", "lru"]
)
def test_every_cell_is_looked_into(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmlab.lab.steps.solving.LONGEST", 256)
    monkeypatch.setattr("lmlab.lab.steps.solving.GAINS", (1.0, 2.0))
    one = model(mixer=("recurrent", "attention"), recurrent=RecurrentOptions(cell=cell, state=6))
    (found,) = inside(one, ids(), 24)["recurrent"]
    linear = cell in ("mingru", "lru")
    assert [row["gain"] for row in found["by_gain"]] == ([] if linear else [1.0, 2.0])
    assert len(found["by_length"]) == (1 if linear else 4)
    if cell in ("diagonal-rnn", "diagonal-gru"):
        assert all(row["gradient"]["diagonal"] < 1e-5 for row in found["by_gain"])
