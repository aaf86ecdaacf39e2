"""The comparison of losses: the same batches for all, rates chosen on validation, differences paired by seed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lab.tiny_run import TINY, write_tiny
from lmlab.lab import CorpusError, Run, load_recipe, run
from lmlab.lab.steps.compare import METRICS, label_of
from lmlab.model import ConfigError

COMPARE = """
[compare]
losses = ["ce", { name = "emo", cost = { center = true } }, "focal"]
seeds = 2
steps = 4
learning_rates = [1e-3, 1e-2]
prompts = 3
new_tokens = 6
corpus = { path = "second.txt", held_out = 0.4 }
"""
ONLY = ("corpus", "tokenize", "train", "compare")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_tiny(folder)
    texts = (folder / "text.txt").read_text(encoding="utf-8").split("\n\n\n")
    second = [*texts[:10], *(f"sea {n} wind {n * n} moon " * 4 for n in range(40))]
    (folder / "second.txt").write_text("\n\n\n".join(second), encoding="utf-8")
    (folder / "compare.toml").write_text(TINY + COMPARE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(home: Path) -> Run:
    return run(load_recipe(home / "compare.toml"), home / "run", quiet=True, only=ONLY)


def result(path: Path) -> dict[str, Any]:
    (row,) = (r for r in json.loads((path / "stages.json").read_text()) if r["stage"] == "compare")
    found: dict[str, Any] = json.loads((path / row["directory"] / "stage.json").read_text())["result"]
    return found


def test_every_loss_is_tuned_alike_and_measured_on_the_same_seeds(done: Run) -> None:
    found = result(done.path)
    assert [loss["label"] for loss in found["losses"]] == ["ce", "emo(cost.center=true)", "focal"]
    for loss in found["losses"]:
        assert [row["rate"] for row in loss["tried"]] == [1e-3, 1e-2]
        assert loss["learning_rate"] == min(loss["tried"], key=lambda row: row["ce"])["rate"]
        assert [r["seed"] for r in loss["runs"]] == [1, 2]
        assert all(len(r["history"]) == 4 for r in loss["runs"])
        assert set(loss["metrics"]) == set(METRICS)
        values = [r["metrics"]["ce"] for r in loss["runs"]]
        assert loss["metrics"]["ce"] == pytest.approx(sum(values) / 2)
    ce, emo, _ = found["losses"]
    # the first batch is the same one, before any step: so is its cross-entropy
    for one, other in zip(ce["runs"], emo["runs"], strict=True):
        assert one["history"][0]["ce"] == pytest.approx(other["history"][0]["ce"], rel=1e-5)
    pairs = [b["metrics"]["ce"] - a["metrics"]["ce"] for a, b in zip(ce["runs"], emo["runs"], strict=True)]
    difference = emo["differences"]["ce"]
    assert difference["mean"] == pytest.approx(sum(pairs) / 2)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert ce["differences"] == {}


def test_what_the_model_was_trained_on_is_in_no_split(done: Run) -> None:
    corpus = result(done.path)["corpus"]
    assert corpus["known"] > 0
    assert corpus["documents"]["validation"] >= corpus["documents"]["test"] > 0


def test_the_cost_is_told_raw_and_centred(done: Run) -> None:
    cost = result(done.path)["cost"]
    assert len(cost["histogram"]["edges"]) == len(cost["histogram"]["raw"]) + 1
    assert cost["nearest"] and {"piece", "raw", "centred"} == set(cost["nearest"][0])
    assert sum(cost["histogram"]["raw"]) == sum(cost["histogram"]["centred"])


def test_metrics_hold_the_comparison(done: Run) -> None:
    compare = done.metrics["variants"]["base"]["compare"]
    assert set(compare) == {"ce", "emo(cost.center=true)", "focal"}
    assert compare["focal"]["ce"]["mean"] > 0 and "seen" in compare["focal"]["ce"]["difference"]


def test_the_comparison_is_not_done_again(home: Path, done: Run) -> None:
    before = result(done.path)
    run(load_recipe(home / "compare.toml"), done.path, quiet=True, only=ONLY)
    assert result(done.path) == before


def test_two_processes_give_the_same_numbers(home: Path, done: Run) -> None:
    keys = {"compare.seeds": 1, "compare.learning_rates": [1e-2], "compare.losses": ["ce", "focal"]}
    together = run(load_recipe(home / "compare.toml", keys), home / "together", quiet=True, only=ONLY, jobs=2)
    ours = {x["label"]: x["runs"][0]["metrics"] for x in result(together.path)["losses"]}
    alone = {x["label"]: x for x in result(done.path)["losses"]}
    for label, metrics in ours.items():
        if alone[label]["learning_rate"] == 1e-2:
            assert metrics == pytest.approx(alone[label]["runs"][0]["metrics"], rel=1e-4)


def test_labels_say_what_is_other() -> None:
    assert label_of("emo") == "emo"
    assert label_of({"name": "emo", "balance": "none", "emo": 0.3}) == "emo(balance=none, emo=0.3)"
    assert label_of({"name": "emo", "shift": True}) == "emo(shift=true)"


def test_what_can_not_be_compared_is_refused(home: Path, tmp_path: Path) -> None:
    bad = load_recipe(home / "compare.toml", {"compare.losses": ["ce", "emoo"]})
    with pytest.raises(ConfigError, match="unknown") as caught:
        run(bad, tmp_path / "run", quiet=True)
    assert caught.value.key == "compare.losses[1]"
    same = load_recipe(home / "compare.toml", {"compare.corpus": {"path": "text.txt", "held_out": 0.02}})
    with pytest.raises(
        CorpusError, match=r"\[compare\] needs at least 34 tokens for its (validation|test) split"
    ):
        run(same, tmp_path / "run", quiet=True, only=ONLY)


def test_the_pull_of_each_loss_is_its_derivative(done: Run) -> None:
    gradient = result(done.path)["gradient"]
    p = gradient["probabilities"]
    pull = {row["label"]: row["pull"] for row in gradient["losses"]}
    assert pull["ce"] == pytest.approx([1 - x for x in p], abs=1e-5)
    gamma = 2.0  # of the focal loss: d/dz of (1 - p)^g log p
    focal = [(1 - x) ** gamma * (1 - x) - gamma * x * (1 - x) ** gamma * math.log(x) for x in p]
    assert pull["focal"] == pytest.approx(focal, abs=1e-5)
    assert all(a != b for a, b in zip(pull["emo(cost.center=true)"], pull["ce"], strict=True))
