"""Runs on disk: killed at any moment, damaged, made longer, run by several workers; the same bits always."""

import os
import re
import signal
import sys
import threading

import numpy as np
import pytest

from autophagy.kills import campaign
from lmlab.autophagy import (
    Accumulate,
    Fresh,
    Gaussian,
    History,
    Memory,
    NGram,
    RunMismatch,
    Synthetic,
    run,
    store,
)

POOL = np.random.default_rng(0).integers(0, 5, (400, 6))
CALL = {
    "data": POOL[:300],
    "generations": 4,
    "seeds": 2,
    "bias": 0.8,
    "metrics": ("bits_per_byte", "entropy_1"),
    "held_out": POOL[300:].copy(),
}
LOOP = Memory(Accumulate(12), 2)


def go(out=None, loop=LOOP, **more):
    return run(loop, NGram(5), out=out, **CALL | more)


def equal(a, b):
    assert a.digest == b.digest
    assert (a.values == b.values).all() and (a.origin == b.origin).all()


@pytest.fixture(scope="module")
def whole():
    return go()


def in_child(work):
    """Run `work` in a forked process; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_kill_before_or_after_any_rename_loses_at_most_a_generation(tmp_path, whole):
    moment = 0
    while True:
        out, count = tmp_path / str(moment), [0]

        def work(out=out, count=count, moment=moment):
            rename = os.replace

            def replace(*args, **given):
                if count[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                count[0] += 1
                rename(*args, **given)

            os.replace = replace
            go(out)

        if os.WIFEXITED(in_child(work)):
            break
        done = len(list(out.glob("seed-*/gen-*.npz")))
        # Files: run.json, and one a generation; set files only where they pay.
        assert done >= moment - 1 - len(list(out.glob("sets/*/*"))) - 1
        equal(go(out), whole)
        moment += 1
    assert moment >= 9
    equal(go(out), whole)


@pytest.mark.parametrize(("workers", "backend"), [(1, "loky"), (2, "threading")])
def test_kills_at_random_moments_change_nothing(tmp_path, whole, workers, backend):
    """Quick; `make campaign` kills studies in programs of their own a hundred times on every backend."""
    times = np.random.default_rng(workers).uniform(0.0, 0.05, 50)
    for i, seconds in enumerate(times):
        out = tmp_path / str(i // 10)  # several kills of one run

        def work(out=out, seconds=seconds):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, with nothing cleaned up
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
            go(out, workers=workers, backend=backend)

        in_child(work)
        if i % 10 == 9:
            equal(go(out), whole)


def test_a_killed_program_with_two_processes_is_resumed(tmp_path):
    assert campaign(tmp_path, 2, 2, "loky", seed=4)[0] == 2


@pytest.mark.parametrize(("workers", "backend"), [(2, "threading"), (4, "threading"), (2, "loky")])
def test_workers_and_backends_give_the_same_bits(tmp_path, whole, workers, backend):
    equal(go(workers=workers, backend=backend), whole)
    go(tmp_path, generations=2, workers=workers, backend=backend)
    equal(go(tmp_path), whole)


def test_a_longer_run_goes_on(tmp_path, whole):
    short = go(tmp_path, generations=2)
    assert (short.values == whole.values[:, :2]).all()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/gen-*.npz")}
    equal(go(tmp_path), whole)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    equal(History.read(tmp_path), whole)
    more = go(tmp_path, seeds=3)
    assert (more.values[:2] == whole.values).all()


def test_a_damaged_file_is_reported_and_made_again(tmp_path, whole):
    go(tmp_path)
    newest = tmp_path / "seed-1" / "gen-0004.npz"
    for damage in (lambda b: b[: len(b) // 2], lambda b: b[:-100] + bytes(100), lambda b: b""):
        newest.write_bytes(damage(newest.read_bytes()))
        with pytest.warns(RuntimeWarning, match=r"gen-0004\.npz is damaged"):
            found = go(tmp_path)
        equal(found, whole)
    first = tmp_path / "seed-0" / "gen-0001.npz"
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"gen-0001\.npz is damaged"):
        found = go(tmp_path)
    equal(found, whole)


def test_sets_may_be_deleted_or_damaged(tmp_path, whole):
    go(tmp_path, generations=2)
    for path in tmp_path.glob("sets/*/*.npz"):
        path.write_bytes(b"damaged")
    equal(go(tmp_path), whole)


def test_models_come_back(tmp_path):
    history = run(
        Fresh(6, 6),
        Gaussian(),
        np.random.default_rng(2).standard_normal((60, 2)),
        generations=3,
        out=tmp_path,
    )
    model = history.model(0, 3)
    state = store.read_state(tmp_path, 0, 3)
    assert (model.cov == state["cov"]).all()
    assert (History.read(tmp_path, Gaussian()).model(0, 3).cov == model.cov).all()
    with pytest.raises(ValueError, match=r"History\.read was given no generator"):
        History.read(tmp_path).model(0, 1)
    with pytest.raises(ValueError, match="seed must be one of"):
        history.model(1, 1)
    with pytest.raises(ValueError, match="this run kept no models; run it with out=DIR"):
        run(Fresh(6, 6), Gaussian(), Gaussian(mean=[0.0], cov=[[1.0]]), generations=1).model(0, 1)
    with pytest.raises(ValueError, match=r"holds no run\.json"):
        History.read(tmp_path / "seed-0")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"bias": 0.7}, "bias is 0.8 there and 0.7 here"),
        ({"loop": Synthetic(12)}, "loop.type is 'Memory' there and 'Synthetic' here"),
        ({"data": POOL[:299]}, "data.array is '<i8[300, 6]' there and '<i8[299, 6]' here"),
        ({"metrics": ("entropy_1",)}, "metrics is"),
    ],
)
def test_other_settings_are_a_mismatch_and_touch_nothing(tmp_path, more, field):
    go(tmp_path, generations=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunMismatch, match=re.escape(field)):
        go(tmp_path, **more)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


class Failing(Gaussian):
    """Fails at generation 2 of the seed whose first rows are `bad`."""

    def fit(self, data, weights, rng):
        if data.shape[0] == 7 and data.sum() < 0:
            raise RuntimeError("the disk is full")
        return super().fit(data, weights, rng)


@pytest.mark.parametrize(("workers", "backend"), [(1, "loky"), (2, "threading")])
def test_one_seed_fails_and_the_others_end(tmp_path, workers, backend):
    law = Gaussian(mean=[0.0], cov=[[1.0]])
    call = {"generations": 2, "seeds": 6, "out": tmp_path, "workers": workers, "backend": backend}
    with pytest.raises(RuntimeError, match="the disk is full") as caught:
        run(Synthetic(7, 9), Failing(), law, **call)
    assert re.fullmatch(r"autophagy: seed \d, generation 2", caught.value.__notes__[0])
    failed = int(caught.value.__notes__[0].split("seed ")[1][0])
    done = [(tmp_path / f"seed-{seed}" / "gen-0002.npz").exists() for seed in range(6)]
    assert not done[failed] and any(done)
    assert all((tmp_path / f"seed-{seed}" / "gen-0001.npz").exists() for seed in range(6))


def test_a_second_run_waits_for_the_first(tmp_path, whole, monkeypatch):
    told, found = threading.Event(), []
    monkeypatch.setattr(
        store, "print", lambda *text, **_: told.set() if "waiting for it" in text[0] else None, raising=False
    )
    with store.locked(tmp_path):
        second = threading.Thread(target=lambda: found.append(go(tmp_path)))
        second.start()
        assert told.wait(60)
        assert not found
    second.join()
    equal(found[0], whole)


@pytest.mark.bad_input
def test_ray_is_an_extra(monkeypatch):
    for name in ("ray", "ray.util", "ray.util.joblib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=re.escape("pip install 'lmlab[ray]'")):
        go(workers=2, backend="ray")


@pytest.mark.peer
def test_a_ray_cluster_gives_the_same_bits(tmp_path, whole, monkeypatch):
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else ray warns of a change to come
    pytest.importorskip("ray.util.joblib")  # any folder of that name imports as a bare "ray"
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        go(tmp_path, generations=2, workers=2, backend="ray")
        equal(go(tmp_path, workers=2, backend="ray"), whole)
    finally:
        ray.shutdown()


def test_bars_are_shown_without_changing_anything(whole, capsys):
    equal(go(progress=True), whole)
    assert "seed 1" in capsys.readouterr().out
    equal(go(progress=True, workers=2, backend="threading"), whole)
