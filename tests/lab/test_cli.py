"""The command line: exit codes, one line for each mistake, help without torch."""

import io
import json
import os
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from lab.tiny_run import write_tiny
from lmlab.lab import run as run_in_python
from lmlab.lab.cli import VERBS, main
from lmlab.lab.recipe import load_recipe, recipe_names
from lmlab.lab.stages import lock


def call(*words: str) -> tuple[int, str, str]:
    """The exit code, what was printed, and what was said on stderr."""
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        code = main(words)
    return code, out.getvalue(), error.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    return run_in_python(load_recipe(home / "tiny.toml"), home / "run", quiet=True).path


def test_help_lists_every_verb() -> None:
    code, out, _ = call("--help")
    assert code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in out
    code, out, _ = call("tokenize", "--help")
    assert code == 0
    assert "\n  tokenize train " in out and "\n  run " not in out
    assert call()[0] == 2
    assert call("--version")[1].startswith("lmlab 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_explains_itself(verb: str) -> None:
    code, out, _ = call(*verb.split(), "--help")
    assert code == 0
    assert f"lmlab {verb}" in out


def test_help_and_a_bad_recipe_load_no_torch(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[train]\nstep = 3\n")
    program = (
        "import sys; from lmlab.lab.cli import main; codes = [main(w.split('|')) for w in sys.argv[1:]]; "
        "print(codes, [m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    words = ["--help", "run|--help", "tokenize|train|--help", "recipes", f"run|{tmp_path / 'bad.toml'}"]
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[0, 0, 0, 0, 2] []"
    assert ran.stderr == "error: bad.toml: unknown key 'train.step'. Did you mean 'train.steps'?\n"


def test_the_module_is_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "lmlab", "recipes"], capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in ran.stdout.splitlines()] == recipe_names()
    assert all(len(line.split()) > 4 for line in ran.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["runn"], 2, "error: unknown command 'runn'. Did you mean 'run'?"),
        (["xyz"], 2, "error: unknown command 'xyz'. See `lmlab --help`."),
        (["eval"], 2, "error: `lmlab eval` takes bits, length, passkey"),
        (["tokenize", "trian"], 2, "error: `lmlab tokenize` takes train, encode, decode, inspect"),
        (["data", "fetsh"], 2, "error: `lmlab data` takes fetch, list"),
        (["run", "demmo"], 2, "Did you mean 'demo'?"),
        (["run", "demo", "--sett", "a=1"], 2, "--set"),
        (["run", "demo", "--set", "train.steps"], 2, "error: --set takes key=value, got 'train.steps'"),
        (["run", "demo", "--set", "a=1", "--set", "a=2"], 2, "error: --set: 'a' is given twice"),
        (["run", "demo", "--set", "train.step=1"], 2, "Did you mean 'train.steps'?"),
        (["run", "demo", "--set", "train.steps=many"], 2, "'many'"),
        (["run", "demo", "--jobs", "many"], 2, "many"),
        (["run", "demo", "--out", "../x"], 2, "error: 'out' must be a directory without '..'"),
        (["run", "demo", "--set", "corpus.name=nowhere"], 3, "error: no corpus 'nowhere'"),
        (["report", "nowhere"], 1, "error: nowhere is no run directory"),
        (["generate", "nowhere"], 1, "error: nowhere holds no config.json"),
        (["data", "fetch", "nothing"], 1, "error: no corpus 'nothing'; known: tang, kjv, brown, handbook-en"),
        (["bench", "nothing"], 2, "nothing"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    words: list[str], code: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMLAB_DATA", str(tmp_path / "data"))
    found, out, error = call(*words)
    assert found == code, error
    assert text in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not out


def test_nothing_is_written_for_a_bad_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", "demo", "--set", "train.step=1")[0] == 2
    assert call("run", "demo", "--set", "model.mixer=nothing")[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_prints_what_was_found_and_where_the_report_is(home: Path, finished: Path) -> None:
    code, out, error = call("run", str(home / "tiny.toml"), "--out", str(finished), "--quiet")
    assert code == 0 and error == ""
    first, last = out.splitlines()
    assert first.startswith("base: ") and "bits per byte" in first and "zlib" in first
    assert last == str(finished / "report.html")


def test_a_run_shows_each_stage_and_how_long_it_took(home: Path, tmp_path: Path) -> None:
    words = ["run", str(home / "tiny.toml"), "--out", str(tmp_path / "run"), "--set", "name=other"]
    code, _, error = call(*words)
    assert code == 0
    for stage in ("corpus", "tokenize", "train", "evaluate", "generate", "autophagy", "report"):
        assert f"{stage}: done in " in error
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert shlex.split(versions["command"]) == ["lmlab", *words]


def test_the_map_of_synthetic_rows_is_a_table() -> None:
    code, said, _ = call(
        "autophagy", "map", "--bias", "0.9", "--n-real", "100", "400", "--n-synth", "0", "1000"
    )
    assert code == 0
    lines = said.splitlines()
    assert lines[0] == "n_real,0,1000" and lines[1].startswith("100,1.0000,0.1")
    assert lines[3] == "# n_synth* = 648.0 for many real rows"


def test_train_and_autophagy_do_only_their_stages(home: Path, tmp_path: Path) -> None:
    words = ["train", str(home / "tiny.toml"), "--out", str(tmp_path / "train"), "--quiet", "--tensorboard"]
    assert call(*words)[0] == 0
    assert list((tmp_path / "train" / "tensorboard" / "base.0").glob("events.*"))
    rows = json.loads((tmp_path / "train" / "stages.json").read_text())
    assert [row["stage"] for row in rows] == ["corpus", "tokenize", "train"]
    assert call("autophagy", str(home / "tiny.toml"), "--out", str(tmp_path / "loops"), "--quiet")[0] == 0
    rows = json.loads((tmp_path / "loops" / "stages.json").read_text())
    assert [row["stage"] for row in rows] == ["corpus", "autophagy"]
    assert (tmp_path / "loops" / "report.html").is_file()


def test_a_busy_directory(home: Path, finished: Path) -> None:
    with lock(finished):
        code, _, error = call("run", str(home / "tiny.toml"), "--out", str(finished), "--quiet", "--no-wait")
    assert code == 5
    assert error == f"error: {finished} is in use by process {os.getpid()}\n"


def test_a_training_that_fails(home: Path, tmp_path: Path) -> None:
    keys = ["--set", "train.lr=1e30", "--set", "train.clip=none", "--set", "train.warmup=0"]
    code, _, error = call("train", str(home / "tiny.toml"), "--out", str(tmp_path / "run"), "--quiet", *keys)
    assert code == 4
    assert "not finite" in error and error.count("\n") == 1


def test_a_report_is_written_again(finished: Path) -> None:
    (finished / "report.html").unlink()
    code, out, _ = call("report", str(finished))
    assert (code, out) == (0, f"{finished / 'report.html'}\n")
    assert (finished / "report.html").is_file()


def test_half_a_run_is_reported(home: Path, tmp_path: Path) -> None:
    keys = ["--set", "evaluate.length.contexts=[16, 4096]"]  # more text than there is: the run ends here
    code, _, error = call("run", str(home / "tiny.toml"), "--out", str(tmp_path / "run"), "--quiet", *keys)
    assert code == 3 and "held-out tokens" in error
    assert call("report", str(tmp_path / "run"))[0] == 0
    assert "tiny" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_model_of_a_run_is_measured_alone(finished: Path, home: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())["variants"]["base"]
    code, out, _ = call("eval", "bits", str(finished), "--max-bytes", "400")
    assert code == 0
    assert json.loads(out)["bits_per_byte"] == pytest.approx(metrics["bits_per_byte"])
    other = call("eval", "bits", str(finished / "models" / "base"), str(home / "text.txt"))
    assert json.loads(other[1])["documents"] == 100

    code, out, error = call("eval", "length", str(finished), "--contexts", "16", "32", "--last", "8")
    assert code == 0, error
    assert [row["method"] for row in json.loads(out)["rows"]] == ["none", "window"]
    words = ["--contexts", "16", "32", "--last", "8", "--extension", "rerope:window=8+logn"]
    rows = json.loads(call("eval", "length", str(finished), *words)[1])["rows"]
    assert [row["method"] for row in rows] == ["none", "window", "rerope(window=8) + logn"]

    code, out, error = call("eval", "passkey", str(finished), "--lengths", "16", "--depths", "0", "1")
    assert code == 0, error
    assert [cell["depth"] for cell in json.loads(out)["passkey"]] == [0.0, 1.0]


def test_text_is_generated_from_a_run(finished: Path) -> None:
    words = ["generate", str(finished), "light", "--max-new-tokens", "4", "--samples", "2", "--seed", "3"]
    code, out, error = call(*words)
    assert code == 0, error
    assert out.count("light") >= 2
    assert call(*words)[1] == out


def test_an_interrupted_run_says_so(home: Path, tmp_path: Path) -> None:
    """SIGINT and SIGTERM: 130 and 143, a checkpoint, no traceback."""
    program = (
        "import os, signal, sys; from lmlab.lab.cli import main; from lmlab.lab.journal import Journal\n"
        "write = Journal.write\n"
        "def watched(self, stage, event, **fields):\n"
        "    write(self, stage, event, **fields)\n"
        "    if event == 'step' and fields['step'] == 3: os.kill(os.getpid(), int(sys.argv[1]))\n"
        "Journal.write = watched\n"
        "sys.exit(main(sys.argv[2:]))"
    )
    for number, code, text in ((2, 130, "interrupted\n"), (15, 143, "terminated\n")):
        out = tmp_path / str(number)
        words = ["train", str(home / "tiny.toml"), "--out", str(out), "--quiet"]
        ran = subprocess.run(
            [sys.executable, "-c", program, str(number), *words], capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stderr) == (code, text)
        # the signal came while step 3 was told of: step 4 is finished and saved
        assert list(out.glob("stages/.tmp-train-*/checkpoints/step-*4"))
