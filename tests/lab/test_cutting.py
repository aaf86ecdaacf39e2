"""A study of tokenizers: typing errors, and the answer in the report's first table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmlab.lab.recipe import load_recipe
from lmlab.lab.report import cutting
from lmlab.lab.report.read import RunFiles, Stage
from lmlab.lab.steps.typos import with_typos
from lmlab.model.errors import ConfigError


def run_of(bits: dict[str, list[tuple[float, float | None]]], tokenizers: int | None = None) -> RunFiles:
    stages: list[Stage] = []

    def add(stage: str, variant: str, seed: int, folder: str, result: dict[str, Any]) -> None:
        stages.append(Stage(stage, variant, seed, Path(folder), result, {}, 1.0, False))

    for i, (name, pairs) in enumerate(bits.items()):
        for seed, (clean, wrong) in enumerate(pairs):
            folder = f"tokenize-{i if tokenizers is None else i % tokenizers}"
            add("tokenize", name, seed, folder, {"vocab_size": 2048})
            typos = None if wrong is None else {"share": 0.05, "bits_per_byte": wrong}
            add("evaluate", name, seed, f"evaluate-{i}", {"bits_per_byte": clean, "typos": typos})
    return RunFiles(Path("x"), {}, "", {}, tuple(stages), ())


STUDY = {
    "base": [(2.00, 2.50), (2.02, 2.52), (2.01, 2.51)],
    "unigram": [(2.001, 2.50), (2.018, 2.53), (2.012, 2.50)],
    "sampled<0.1>": [(2.10, 2.45), (2.12, 2.47), (2.11, 2.46)],
}


def test_the_answer_names_what_is_seen_and_what_is_not() -> None:
    run = run_of(STUDY)
    said = cutting.verdict(run)
    assert said is not None
    assert said.startswith("Against base, 3 seeds: <strong>none is seen to have fewer bits per byte</strong>")
    assert (
        "the other way: sampled&lt;0.1&gt; <span>(+0.100)</span>; no difference is seen for unigram" in said
    )
    assert "<strong>less harmed by typing errors: sampled&lt;0.1&gt; <span>(−0.150)</span></strong>" in said
    figure = cutting.answer(run)
    assert figure is not None
    rows = figure.panels[0].table.rows
    assert [row[0] for row in rows] == list(STUDY)
    assert rows[2][4] == pytest.approx(2.11)
    assert rows[2][5] == pytest.approx(0.1)
    assert rows[2][8] is True and rows[1][8] is False
    assert "5.0" in figure.reading


def test_no_answer_where_nothing_was_asked() -> None:
    without = {name: [(clean, None) for clean, _ in pairs] for name, pairs in STUDY.items()}
    one = {"base": STUDY["base"]}
    for run in (run_of(without), run_of(one), run_of(STUDY, tokenizers=1), run_of({})):
        assert cutting.verdict(run) is None
        assert cutting.answer(run) is None


def test_typing_errors_are_the_same_for_all_and_as_many_as_asked_for() -> None:
    documents = [
        "the quick brown fox jumps over the lazy dog 123. " * 40,
        "春眠不覺曉，處處聞啼鳥。" * 40,
        "...",
        "",
    ]
    first = list(with_typos(documents, 0.1))
    assert first == list(with_typos(documents, 0.1))
    assert first[2:] == ["...", ""]
    for text, wrong in zip(documents[:2], first[:2], strict=True):
        assert wrong != text
        assert 0.9 * len(text) < len(wrong) < 1.1 * len(text)
    assert sum(len(next(iter(with_typos([c], 0.5)))) > 0 for c in "abcdefgh") == 8
    letters = next(iter(with_typos(["ab" * 5000], 0.2)))
    assert set(letters) == {"a", "b"}


def test_the_recipe_of_the_study() -> None:
    recipe = load_recipe("tokenizers")
    assert recipe.seeds >= 3
    assert recipe.evaluate.typos == 0.05


@pytest.mark.bad_input
def test_a_share_of_letters_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[evaluate]\ntypos = 0.7\n")
    with pytest.raises(ConfigError, match=r"typos.*a share of letters, above 0 and at most 0.5"):
        load_recipe(tmp_path / "x.toml")
