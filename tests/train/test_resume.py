"""Killed runs end as if they had not been, and damaged or foreign checkpoints are told apart."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.model import CheckpointError, Decoder
from lmlab.retry import Counters, disk
from lmlab.retry.testing import testing
from lmlab.train import TokenFile, TrainConfig, train, weights_sha256
from lmlab.train.resume import latest
from train import training
from train.training import CONFIG, MODEL, tokens


def command(*arguments: Any) -> list[str]:
    return [sys.executable, training.__file__, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment())


@pytest.fixture
def data(tmp_path: Path) -> TokenFile:
    return tokens(tmp_path / "train.tok")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MODEL_OF = {mixer: dataclasses.replace(MODEL, mixer=mixer) for mixer in ("attention", "vq", "recurrent")}


def finished(data: TokenFile, mixer: str = "attention", **changes: Any) -> tuple[str, list[float]]:
    """Weights and losses of the run that nothing stops."""
    model = Decoder(MODEL_OF[mixer])
    result = train(model, data, TrainConfig.from_dict({**CONFIG.to_dict(), **changes}))
    return weights_sha256(model), [step.loss for step in result.history]


def test_a_run_killed_five_times_ends_with_the_same_weights(data: TokenFile, tmp_path: Path) -> None:
    draw = random.Random(0)
    kills = sorted(draw.sample(range(1, 25), 5))
    for kill in kills:
        assert run(tmp_path / "run", data.path, f"kill={kill}").returncode == -signal.SIGKILL
    ran = run(tmp_path / "run", data.path)
    resumed_at, sha256, *losses = ran.stdout.split()
    expected, expected_losses = finished(data)
    assert int(resumed_at) == kills[-1] // 5 * 5 if kills[-1] < 24 else 20
    assert sha256 == expected
    assert list(map(float, losses)) == expected_losses
    assert not list((tmp_path / "run").glob("tmp-*"))


@pytest.mark.parametrize("mixer", ["attention", "vq", "recurrent"])
@pytest.mark.parametrize("changes", [{"optimizer": "muon"}, {"loss": {"name": "emo"}}], ids=["muon", "emo"])
def test_every_part_of_a_run_is_resumed(
    data: TokenFile, tmp_path: Path, mixer: str, changes: dict[str, Any]
) -> None:
    class Stop(Exception):
        pass

    def stop(step: Any) -> None:
        if step.step == 12:
            raise Stop

    config = TrainConfig.from_dict({**CONFIG.to_dict(), **changes})
    with pytest.raises(Stop):
        train(Decoder(MODEL_OF[mixer]), data, config, out=tmp_path / "run", on_step=stop)
    model = Decoder(MODEL_OF[mixer], seed=7)  # its own weights are replaced
    result = train(model, data, config, out=tmp_path / "run")
    assert result.resumed_at == 10
    assert (weights_sha256(model), [step.loss for step in result.history]) == finished(data, mixer, **changes)


def test_sigterm_finishes_the_step_saves_and_leaves(data: TokenFile, tmp_path: Path) -> None:
    ran = run(tmp_path / "run", data.path, "stop=7")
    assert ran.returncode == 143, ran.stderr
    assert max(path.name for path in (tmp_path / "run").glob("step-*")) == "step-00000008"
    resumed_at, sha256, *_ = run(tmp_path / "run", data.path).stdout.split()
    assert (int(resumed_at), sha256) == (8, finished(data)[0])


def test_a_finished_run_is_not_done_again(data: TokenFile, tmp_path: Path) -> None:
    first, again = Decoder(MODEL), Decoder(MODEL, seed=1)
    train(first, data, CONFIG, out=tmp_path / "run")
    result = train(again, data, CONFIG, out=tmp_path / "run")
    assert result.resumed_at == 24 and len(result.history) == 24
    assert weights_sha256(first) == weights_sha256(again)


def test_resume_false_starts_over(data: TokenFile, tmp_path: Path) -> None:
    train(Decoder(MODEL), data, CONFIG, out=tmp_path / "run")
    longer = dataclasses.replace(CONFIG, lr=2e-2)
    result = train(Decoder(MODEL), data, longer, out=tmp_path / "run", resume=False)
    assert result.resumed_at == 0 and len(result.history) == 24


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_taken(
    data: TokenFile, tmp_path: Path
) -> None:
    train(Decoder(MODEL), data, CONFIG, out=tmp_path / "run")
    newest = tmp_path / "run" / "step-00000024" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    model = Decoder(MODEL)
    with pytest.warns(UserWarning, match=r"damaged checkpoint: .*step-00000024.*going on from step-00000020"):
        result = train(model, data, CONFIG, out=tmp_path / "run")
    assert result.resumed_at == 20
    assert weights_sha256(model) == finished(data)[0]


@pytest.mark.bad_input
def test_damage_everywhere_is_an_error(data: TokenFile, tmp_path: Path) -> None:
    train(Decoder(MODEL), data, CONFIG, out=tmp_path / "run")
    for path in (tmp_path / "run").glob("step-*/state.json"):
        path.write_text("{")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        train(Decoder(MODEL), data, CONFIG, out=tmp_path / "run")


@pytest.mark.bad_input
def test_a_checkpoint_of_another_run_is_refused(data: TokenFile, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(Decoder(MODEL), data, dataclasses.replace(CONFIG, steps=5), out=out)
    with pytest.raises(CheckpointError, match=r"train.lr = 0.01, now it is 0.5; the same setting goes on"):
        train(Decoder(MODEL), data, dataclasses.replace(CONFIG, steps=5, lr=0.5), out=out)
    other = dataclasses.replace(MODEL, d_ff=24)
    with pytest.raises(CheckpointError, match=r"model.d_ff = 16, now it is 24"):
        train(Decoder(other), data, dataclasses.replace(CONFIG, steps=5), out=out)
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    foreign = TokenFile.write(tmp_path / "other.tok", [[1] * 99], vocab_size=17, end_id=0)
    with pytest.raises(CheckpointError, match="made from other tokens"):
        train(Decoder(MODEL), foreign, dataclasses.replace(CONFIG, steps=5), out=out)


def test_another_number_of_threads_is_said_and_the_old_one_kept(data: TokenFile, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(Decoder(MODEL), data, dataclasses.replace(CONFIG, steps=5), out=out)
    state = json.loads((out / "step-00000005" / "state.json").read_text())
    assert state["threads"] == 1
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match=r"made with 1 threads, this process has 2: going on with 1"):
        train(Decoder(MODEL), data, dataclasses.replace(CONFIG, steps=5), out=out)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_two_processes_are_one(data: TokenFile, tmp_path: Path, dtype: str, tolerance: float) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            command(tmp_path / "two", data.path, f"dtype={dtype}"),
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    (first, first_error), (second, second_error) = (rank.communicate(timeout=120) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], first_error + second_error
    assert second == first_error == second_error == ""
    alone = run("-", data.path, f"dtype={dtype}").stdout.split()[2:]
    together = first.split()[2:]
    assert len(together) == 24
    for one, other in zip(alone, together, strict=True):
        assert float(one) == pytest.approx(float(other), rel=tolerance)


def test_a_checkpoint_is_written_again_where_the_disk_fails_for_a_while(
    data: TokenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.replace, []

    def replace(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) in (1, 4):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    counters = Counters()
    model = Decoder(MODEL)
    with testing():
        train(model, data, CONFIG, out=tmp_path / "run", retry=disk(hooks=(counters,), name=None))
    assert counters.retries == {"save_checkpoint": 2} and not counters.gave_up
    assert weights_sha256(model) == finished(data)[0]
    found = latest(tmp_path / "run")
    assert found is not None and found.state["step"] == CONFIG.steps
    assert list((tmp_path / "run").glob("tmp-*")) == []
