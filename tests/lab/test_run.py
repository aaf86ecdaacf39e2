"""The whole way from text to report, small: what it leaves, what it does again, and what a kill changes."""

import dataclasses
import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.tiny_run import TINY, metrics_of, run_and_die, write_tiny
from lmlab.lab import CorpusError, Run, load_recipe, run
from lmlab.lab.journal import read_lines
from lmlab.lab.pipeline import PROGRESS
from lmlab.model import ConfigError, Decoder
from lmlab.model.checkpoint import read_tensors
from lmlab.tokenize import Tokenizer
from lmlab.train import TokenFile, TrainingError, train, weights_sha256

HOSTILE = '<script>alert(1)</script></svg>]]>\u202e\x1b[31m&amp;"'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def first(home: Path) -> Run:
    return run(load_recipe(home / "tiny.toml"), home / "run", quiet=True)


def stages(path: Path) -> dict[str, dict[str, Any]]:
    """stages.json, by stage (and variant, where there are several)."""
    rows = json.loads((path / "stages.json").read_text())
    several = len({row["variant"] for row in rows} - {None}) > 1
    return {f"{r['stage']} {r['variant']}" if several and r["variant"] else r["stage"]: r for r in rows}


def again(home: Path, path: Path, **keys: Any) -> list[str]:
    """Run the recipe with other keys in a finished directory; the stages that were done anew."""
    overrides = {key.replace("__", "."): value for key, value in keys.items()}
    run(load_recipe(home / "tiny.toml", overrides), path, quiet=True)
    return [name for name, row in stages(path).items() if not row["reused"]]


# --- what a run leaves --------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_specification_says(first: Run) -> None:
    path = first.path
    for name in ("recipe.toml", "versions.json", "log.jsonl", "stages.json", "samples.jsonl", "metrics.json"):
        assert (path / name).is_file()
    assert first.report == path / "report.html" and first.report.is_file()
    assert sorted(p.name for p in (path / "models" / "base").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    listed = stages(path)
    assert list(listed) == ["corpus", "tokenize", "train", "evaluate", "generate", "autophagy"]
    for name, row in listed.items():
        told = json.loads((path / row["directory"] / "stage.json").read_text())
        assert told["stage"] == name and told["key"].startswith(row["directory"].rpartition("-")[2])
    assert not [p for p in path.rglob("*") if "tmp-" in p.name]
    assert list((path / "figures").glob("*.svg")) and list((path / "figures").glob("*.csv"))


def test_metrics_have_their_schema_and_are_finite_or_null(first: Run) -> None:
    metrics = json.loads((first.path / "metrics.json").read_text())
    assert metrics == first.metrics
    assert list(metrics) == ["schema", "name", "seed", "baselines", "corpus", "variants"]
    assert metrics["schema"] == 1 and list(metrics["variants"]) == ["base"]
    assert set(metrics["baselines"]) == {"uniform", "unigram", "zlib", "lzma"}
    base = metrics["variants"]["base"]
    for key in "bits_per_byte bytes_per_token tokens_per_second train_loss held_out_loss".split():
        assert base[key] > 0
    assert base["tokens"] == 8 * 2 * 16
    assert set(base["length"]) == {"none", "window", "ntkaware"}
    assert set(base["length"]["none"]["loss"]) == {"16", "32", "64"}
    assert set(base["autophagy"]) == {"synthetic 1", "synthetic control 1"}
    assert base["samples"]["distinct_1"] > 0


def test_the_model_of_a_run_is_read_again(first: Run) -> None:
    home = first.path / "models" / "base"
    model, tokenizer = Decoder.load(home), Tokenizer.load(home / "tokenizer.json")
    base = first.metrics["variants"]["base"]
    assert weights_sha256(model) == base["weights_sha256"]
    assert model.num_parameters() == base["parameters"]
    assert "<eos>" in tokenizer.special_tokens
    assert len(read_tensors(home / "model.safetensors")) > 5


def test_samples_tell_prompt_pieces_and_probabilities(first: Run) -> None:
    rows = list(read_lines(first.path / "samples.jsonl"))
    assert len(rows) == 2
    for row in rows:
        assert row["variant"] == "base" and row["prompt"] == ""
        assert len(row["pieces"]) == len(row["logprobs"]) and all(p <= 0 for p in row["logprobs"])
        assert row["finish"] in ("stop", "length") and 0 <= row["copied"] <= 1


def test_the_log_has_a_line_for_each_step(first: Run) -> None:
    rows = list(read_lines(first.path / "log.jsonl"))
    steps = [row for row in rows if row["event"] == "step"]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert all({"time", "stage", "variant", "loss", "lr"} <= set(row) for row in steps)
    assert rows[0]["event"] == "start" and rows[-1]["event"] == "end"


def test_the_resolved_recipe_runs_to_the_same_stages(first: Run, home: Path) -> None:
    resolved = load_recipe(first.path / "recipe.toml")
    run(resolved, first.path, quiet=True)
    assert all(row["reused"] for row in stages(first.path).values())


# --- what is done again -------------------------------------------------------------------------------------


def test_the_same_command_does_nothing_again(first: Run, home: Path) -> None:
    before = metrics_of(first.path)
    assert again(home, first.path) == []
    assert metrics_of(first.path) == before


def test_a_moved_or_touched_corpus_is_the_same_one(first: Run, home: Path, tmp_path: Path) -> None:
    text = (home / "text.txt").read_bytes()
    (tmp_path / "other name.txt").write_bytes(text)
    assert again(home, first.path, corpus__path=str(tmp_path / "other name.txt")) == []


def test_one_changed_byte_does_everything_again(first: Run, home: Path, tmp_path: Path) -> None:
    text = (home / "text.txt").read_bytes()
    (tmp_path / "text.txt").write_bytes(text + b"!")
    recipe = load_recipe(home / "tiny.toml", {"corpus.path": str(tmp_path / "text.txt")})
    run(recipe, first.path, quiet=True)
    assert not any(row["reused"] for row in stages(first.path).values())


@pytest.mark.parametrize(
    ("keys", "anew"),
    [
        ({"generate__temperature": 0.5}, ["generate"]),
        ({"evaluate__stride": 4}, ["evaluate"]),
        ({"autophagy__seeds": 2}, ["autophagy"]),
        ({"train__lr": 1e-3}, ["train", "evaluate", "generate"]),
        ({"model__d_ff": 48}, ["train", "evaluate", "generate"]),
        ({"tokenize__vocab_size": 310}, ["tokenize", "train", "evaluate", "generate"]),
        ({"name": "renamed"}, []),
        ({"retry__kills": 1}, []),
        ({"train__save_every": 4}, []),
    ],
)
def test_only_what_depends_on_a_key_is_done_again(
    keys: dict[str, Any], anew: list[str], first: Run, home: Path
) -> None:
    assert again(home, first.path, **keys) == anew


def test_stages_that_variants_share_are_done_once(home: Path) -> None:
    extra = """
        [[variants]]
        name = "loud"
        set = { "generate.temperature" = 2.0 }
        [[variants]]
        name = "small"
        set = { "model.d_model" = 8 }
    """
    (home / "variants.toml").write_text(TINY + extra, encoding="utf-8")
    done = run(load_recipe(home / "variants.toml", {"seeds": 2}), home / "variants", quiet=True)
    names = [p.name.partition("-")[0] for p in (done.path / "stages").iterdir()]
    assert {name: names.count(name) for name in sorted(set(names))} == {
        "autophagy": 2,
        "corpus": 1,
        "evaluate": 4,
        "generate": 6,
        "tokenize": 1,
        "train": 4,
    }
    assert sorted(p.name for p in (done.path / "models").iterdir()) == [
        "base",
        "base.1",
        "loud",
        "loud.1",
        "small",
        "small.1",
    ]
    variants = done.metrics["variants"]
    assert list(variants) == ["base", "loud", "small"]
    single = variants["small"]["seeds"]
    assert list(single) == ["0", "1"]
    mean = (single["0"]["bits_per_byte"] + single["1"]["bits_per_byte"]) / 2
    assert variants["small"]["bits_per_byte"] == pytest.approx(mean)
    assert variants["base"]["weights_sha256"] is None  # two models have no one hash


def test_variants_in_processes_of_their_own_give_the_same_numbers(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(home / "tiny.toml", {"seeds": 2, "retry.kills": 2})
    only = ("corpus", "tokenize", "train", "evaluate")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: two of them on a machine of two cores
    try:
        alone = run(recipe, tmp_path / "alone", quiet=True, only=only)
    finally:
        torch.set_num_threads(threads)
    together = run(recipe, tmp_path / "together", jobs=2, only=only)
    assert metrics_of(together.path) == metrics_of(alone.path)
    shown = capsys.readouterr().err
    assert "train base seed 0: done in" in shown and "train base seed 1: done in" in shown
    assert not (together.path / PROGRESS).exists()


# --- kills --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Any:
    """Children that are forked from a process that has torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "lmlab.lab.pipeline", "lmlab.lab.report", "lmlab.train", "lmlab.model"]
    )
    return context


def died(processes: Any, recipe: Path, out: Path, kill_at: int = 0, kill_step: int = 0) -> int | None:
    """Run in a child that is killed at a point; how many points there were, None if it was killed."""
    here, there = processes.Pipe(duplex=False)
    child = processes.Process(target=run_and_die, args=(str(recipe), str(out), kill_at, kill_step, there))
    child.start()
    there.close()
    child.join(120)
    if child.exitcode == 0:
        return int(here.recv())
    assert child.exitcode == -9
    return None


@pytest.fixture(scope="module")
def unbroken(processes: Any, home: Path) -> tuple[Path, int]:
    """A run that nobody disturbed, and the number of points at which it can be killed."""
    out = home / "unbroken"
    calls = died(processes, home / "tiny.toml", out, 0)
    assert calls is not None and calls > 100
    return out, calls


MOMENTS = random.Random(11).sample(range(2**30), 5)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_at_random_moments_ends_as_if_nothing_had_been(
    moment: int, processes: Any, unbroken: tuple[Path, int], home: Path, tmp_path: Path
) -> None:
    whole, calls = unbroken
    out, kills = tmp_path / "run", 0
    # kill it there, then once more before the end of what is left, then let it end
    at = 1 + moment % calls
    while died(processes, home / "tiny.toml", out, at) is None:
        kills += 1
        at = 1 + moment // 7 % (calls // 2) if kills < 2 else 0
    assert kills >= 1
    assert metrics_of(out) == metrics_of(whole)
    assert list(stages(out)) == list(stages(whole))
    assert not [p for p in out.rglob("*") if p.name.startswith(".tmp-")]
    assert not [row for row in (out / "log.jsonl").read_text().splitlines() if not row.endswith("}")]


@pytest.mark.parametrize(("killed", "checkpoint"), [(5, 4), (6, 4), (7, 6)])
def test_training_goes_on_at_its_checkpoint_and_says_so(
    killed: int, checkpoint: int, processes: Any, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert died(processes, home / "tiny.toml", out, kill_step=killed) is None
    done = run(load_recipe(home / "tiny.toml"), out, quiet=True)
    resumed = [row["step"] for row in read_lines(out / "log.jsonl") if row["event"] == "resume"]
    assert resumed == [checkpoint]
    told = json.loads((out / stages(done.path)["train"]["directory"] / "stage.json").read_text())
    assert told["result"]["resumed_at"] == checkpoint
    assert [row["step"] for row in told["result"]["history"]] == list(range(1, 9))


def test_a_training_with_nothing_left_to_do_says_so_too(processes: Any, home: Path, tmp_path: Path) -> None:
    """Killed when the last checkpoint stands and the stage doesn't."""
    recipe, out = load_recipe(home / "tiny.toml"), tmp_path / "run"
    assert died(processes, home / "tiny.toml", out, kill_step=7) is None
    (work,) = out.glob("stages/.tmp-train-*")
    data = TokenFile.open(next(out.glob("stages/tokenize-*/train.tok")))
    held_out = TokenFile.open(next(out.glob("stages/tokenize-*/held_out.tok")))
    model = Decoder(dataclasses.replace(recipe.model, vocab_size=data.vocab_size), seed=recipe.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the child
    train(model, data, recipe.train, out=work / "checkpoints", held_out=held_out)
    torch.set_num_threads(threads)
    run(recipe, out, quiet=True)
    resumed = [row["step"] for row in read_lines(out / "log.jsonl") if row["event"] == "resume"]
    assert resumed == [8]


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"model.mixer": "attentoin"}, "model.mixer"),
        ({"loss.name": "cross-entropy"}, "loss.name"),
        ({"loss.gamma": 2.0}, "loss.gamma"),
        ({"tokenize.load": "none.json"}, "tokenize.load"),
        ({"loss.cost": {"kind": "file", "path": "none.safetensors"}, "loss.name": "emo"}, "loss.cost.path"),
        ({"autophagy.metrics": ["bits_per_bite"]}, "autophagy.metrics"),
        ({"autophagy.generator": "diffusion"}, "autophagy.metrics"),
    ],
)
def test_what_only_the_rooms_know_is_refused_before_any_work(
    keys: dict[str, Any], key: str, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(load_recipe(home / "tiny.toml", keys), tmp_path / "run", quiet=True)
    assert caught.value.key == key
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["../up", "a/../../b", "a\0b"])
def test_a_directory_above_is_refused(out: str, home: Path) -> None:
    with pytest.raises(ConfigError, match="'out' must be a directory without"):
        run(load_recipe(home / "tiny.toml"), Path(out), quiet=True)


def test_a_file_in_the_place_of_the_directory_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="is a file"):
        run(load_recipe(home / "tiny.toml"), home / "text.txt", quiet=True)


def test_a_text_that_is_too_small_tells_what_it_needs(home: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b c\n\n\nd e f", encoding="utf-8")
    recipe = load_recipe(home / "tiny.toml", {"corpus.path": str(tmp_path / "text.txt")})
    with pytest.raises(CorpusError, match="at least 34 bytes in the train split, and found 5 bytes"):
        run(recipe, tmp_path / "run", quiet=True)
    long = load_recipe(home / "tiny.toml", {"evaluate.length.contexts": [16, 4096]})
    with pytest.raises(CorpusError, match="needs 8194 held-out tokens"):
        run(long, tmp_path / "long", quiet=True)
    loops = load_recipe(home / "tiny.toml", {"autophagy.n_real": 10**6, "autophagy.n_initial": 10**6})
    with pytest.raises(CorpusError, match=r"\[autophagy\] needs more text"):
        run(loops, tmp_path / "loops", quiet=True, only=("corpus", "autophagy"))
    digits = {
        "autophagy.generator": "diffusion",
        "autophagy.metrics": ["recall"],
        "autophagy.n_initial": 2000,
    }
    with pytest.raises(CorpusError, match=r"\[autophagy\] needs more rows than its data set has"):
        run(
            load_recipe(home / "tiny.toml", digits),
            tmp_path / "digits",
            quiet=True,
            only=("corpus", "autophagy"),
        )


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_checkpoint(
    home: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(home / "tiny.toml", {"train.lr": 1e30, "train.clip": "none", "train.warmup": 0.0})
    with pytest.raises(TrainingError, match=r"at step .* are not finite; the last checkpoint is kept"):
        run(recipe, tmp_path / "run", quiet=True)


# --- hostile text -------------------------------------------------------------------------------------------


def test_a_hostile_document_is_inert_in_the_report(home: Path, tmp_path: Path) -> None:
    texts = (home / "text.txt").read_text(encoding="utf-8").split("\n\n\n")
    texts = [f"{HOSTILE} {text}" for text in texts] + ["nul\0here"]
    path = tmp_path / "<script>alert(2)</script>.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n\n".join(texts), encoding="utf-8")
    recipe = load_recipe(
        home / "tiny.toml",
        {"corpus.path": str(path), "generate.prompts": [HOSTILE], "tokenize.vocab_size": 400},
    )
    done = run(recipe, tmp_path / "run", quiet=True)
    assert done.report is not None
    page = done.report.read_text(encoding="utf-8")
    assert "<script" not in page and "\u202e" not in page and "\x1b" not in page
    assert "default-src 'none'" in page
    assert done.metrics["corpus"]["skipped"] == {"NUL": 1}
