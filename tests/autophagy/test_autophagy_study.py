"""What the laboratory is handed: arms, collapse and the numbers behind the other figures."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from lmlab.autophagy import AutophagyOptions, Fresh, Synthetic, figures, theory
from lmlab.autophagy.study import arms, byte_decoder, check, kinds, material, study, token_rows
from lmlab.model import DecoderConfig
from lmlab.train import TrainConfig

TEXT = ["the quick brown fox jumps over the lazy dog and runs away from it. " * 40]
HELD_OUT = ["a lazy dog jumps over the brown fox, and that is the end of it all. " * 8]


def plain(value):
    """Only what JSON has, every number finite."""
    json.dumps(value, allow_nan=False)
    return value


def test_a_study_of_text(tmp_path):
    options = AutophagyOptions(
        generator="ngram", loops=("synthetic", "fresh"), generations=2, seeds=2, bias=(1.0, 0.8), n_real=20,
        n_synth=15, row_length=16, best_of=2, metrics=("bits_per_byte", "distinct_4", "tail_coverage", "mauve"),
    )  # fmt: skip
    found = plain(study(options, TEXT, HELD_OUT, seed=3, out=tmp_path))
    assert {(a["loop"], a["bias"], a["control"]) for a in found["arms"]} == {
        (loop, bias, control)
        for loop in ("synthetic", "fresh")
        for bias in (1.0, 0.8)
        for control in (False, True)
    }
    assert all(len(a["metrics"]["distinct_4"]["mean"]) == 2 for a in found["arms"])
    assert found == study(options, TEXT, HELD_OUT, seed=3)
    theory_sd = found["collapse"]["log_det"]["theory_sd"]
    assert theory_sd[0] == pytest.approx(math.sqrt(theory.log_variance(50, 1, d=2)[1]))
    assert len(found["collapse"]["ellipses"]) == 4


@pytest.mark.parametrize("generator", ["gaussian", "kde", "mixture", "decoder", "diffusion"])
def test_every_generator_can_be_studied(generator, monkeypatch):
    metrics = ("bits_per_byte", "entropy_1") if generator == "decoder" else ("frechet", "recall")
    options = AutophagyOptions(
        generator=generator, loops=("augmentation",), control=False, generations=2, seeds=1, bias=(0.9,), n_real=60,
        n_synth=20, row_length=8, metrics=metrics, weight=0.6, memory=2,
    )  # fmt: skip
    decoder = byte_decoder(
        options,
        DecoderConfig(vocab_size=5, d_model=16, n_layers=1, n_heads=2, max_length=4),
        TrainConfig(steps=2, batch_size=30, length=99),
    )
    assert decoder.config.max_length == 9 and decoder.train.length == 9 and decoder.epochs == 1.0
    if generator == "diffusion":
        monkeypatch.setattr("lmlab.autophagy.generators.diffusion._BATCH", 8)
        monkeypatch.setattr("lmlab.autophagy.study.Diffusion", lambda d, classes: _brief(d, classes))
    if generator == "mixture":
        monkeypatch.setattr("lmlab.autophagy.figures.GRID", 2)
    given = decoder if generator == "decoder" else None
    template, data, real = material(options, TEXT, HELD_OUT, decoder=given)
    found = plain(arms(options, template, data, real))
    assert len(found) == 1 and None not in found[0]["metrics"][metrics[0]]["mean"]


def _brief(d, classes):
    from lmlab.autophagy import Diffusion

    return Diffusion(d, classes=classes, timesteps=4, hidden=8, steps=2)


def test_a_memory_of_more_models_is_worth_more():
    found = plain(figures.memory((1, 2, 4), n_real=50, n_synth=50, generations=40, trials=20_000))
    assert found["ratio"][0] < found["ratio"][1] < found["ratio"][2]


def test_the_map_says_where_synthetic_rows_help():
    found = plain(figures.phase([50, 100], [0, 10, 1000], bias=0.9, trials=20_000))
    assert found["ratio"][0][0] == pytest.approx(1.0) and found["ratio"][0][2] < 1 < found["ratio"][1][1]
    assert found["admissible"] == pytest.approx(648)
    assert figures.phase([50], [10], bias=1.0, trials=100)["admissible"] is None


def test_modes_die_without_fresh_data():
    lost = plain(figures.modes(Synthetic(60), generations=4, n=200, shown=(1, 4)))
    assert lost["modes"][-1] < lost["modes"][0] <= 25
    assert [p["generation"] for p in lost["points"]] == [1, 4] and len(lost["points"][0]["rows"]) == 200
    kept = figures.modes(Fresh(300, 60), generations=2, n=200)
    assert kept["modes"][-1] > lost["modes"][-1]


def test_rows_of_text_and_their_kinds():
    rows = token_rows(["abc", b"defgh"], 3)
    assert rows.tolist() == [[97, 98, 99], [100, 101, 102]]
    assert kinds(np.array([[1, 1, 2], [3, 3, 3]])).tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match="the text has 2 ids, fewer than one row of row_length 3"):
        token_rows(["ab"], 3)


@pytest.mark.bad_input
def test_metrics_that_do_not_fit_the_generator_are_refused_before_any_work():
    check(AutophagyOptions())
    for generator, metrics, error, text in (
        ("diffusion", ("bits_per_byte",), TypeError, "needs log_prob, which Diffusion does not have"),
        ("kde", ("self_bleu",), ValueError, "'self_bleu' needs rows of integer ids"),
        ("ngram", ("bleu",), ValueError, "unknown metric 'bleu'; nearest: self_bleu"),
    ):
        with pytest.raises(error, match=re.escape(text)):
            check(AutophagyOptions(generator=generator, metrics=metrics))


def test_arms_say_each_seed_and_show_what_their_models_make():
    options = AutophagyOptions(
        generator="ngram", loops=("synthetic",), control=False, generations=3, seeds=2, bias=(0.7,), n_real=20,
        n_synth=10, row_length=16, metrics=("distinct_4",),
    )  # fmt: skip
    found = plain(study(options, TEXT, HELD_OUT))
    arm = found["arms"][0]
    assert np.shape(arm["metrics"]["distinct_4"]["values"]) == (2, 3)
    assert np.mean(arm["metrics"]["distinct_4"]["values"], axis=0).tolist() == pytest.approx(
        arm["metrics"]["distinct_4"]["mean"]
    )
    assert [told["generation"] for told in arm["samples"]] == [1, 2, 3] and arm["modes"] is None
    assert all(len(text) == 16 for told in arm["samples"] for text in told["rows"])
    assert found["real"]["kind"] == "text" and found["real"]["rows"][0] == HELD_OUT[0][:16]
    encoded = study(options, TEXT, HELD_OUT, encode=lambda text: [300 + b for b in text.encode()])
    assert encoded["real"] is None and encoded["arms"][0]["samples"] == []


def test_a_gaussian_brings_its_maps_and_a_mixture_its_modes(monkeypatch):
    monkeypatch.setattr("lmlab.autophagy.study.MAPS", ((1, 50, (10, 100)), (3, 5, (50, 100, 200))))
    options = AutophagyOptions(
        generator="gaussian", loops=("fresh",), control=False, generations=1, seeds=1, bias=(1.0, 0.5), n_real=20,
        metrics=("frechet",),
    )  # fmt: skip
    found = plain(study(options, TEXT, HELD_OUT))
    assert [(p["bias"], p["d"], np.shape(p["ratio"])) for p in found["phase"]] == [
        (1.0, 1, (2, 2)), (1.0, 3, (3, 3)), (0.5, 1, (2, 2)), (0.5, 3, (3, 3)),
    ]  # fmt: skip
    assert [m["bias"] for m in found["memory"]] == [1.0, 0.5] and found["real"] is None
    found = plain(study(replace(options, generator="mixture", n_real=100, bias=(0.8,)), TEXT, HELD_OUT))
    arm = found["arms"][0]
    assert 1 <= arm["modes"]["left"][0] <= 25 and 0 < arm["modes"]["variance"][0] < 0.01
    assert np.shape(arm["samples"][0]["rows"]) == (250, 2) and np.shape(found["real"]["rows"]) == (100, 2)
    assert "phase" not in found


def test_modes_are_counted_as_they_stand():
    law = figures.grid_law()
    rows = np.concatenate([law.means[:3] + 0.1, law.means[:2] - 0.1, [[9.0, 9.0]]])
    left, spread = figures.count_modes(rows)
    assert left == 3 and spread == pytest.approx(0.01)  # two of the modes have two rows
    assert math.isnan(figures.count_modes(law.means)[1])
