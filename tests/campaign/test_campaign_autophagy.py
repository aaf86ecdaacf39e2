"""Long: a study is killed a hundred times at random moments, and resumed each time, on every backend."""

import os

import pytest

from autophagy.kills import campaign

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]
KILLS = 100


@pytest.mark.parametrize(("workers", "backend"), [(1, "loky"), (2, "loky"), (2, "threading")])
def test_a_hundred_kills(tmp_path, workers, backend):
    hits, resumed = campaign(tmp_path, KILLS, workers, backend)
    print(f"{hits} kills, {resumed} studies resumed, {workers} workers, {backend}")


def test_a_hundred_kills_on_a_ray_cluster(tmp_path, monkeypatch):
    """The cluster lives on; what is killed is the program that uses it."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else ray warns of a change to come
    address = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False).address_info["gcs_address"]
    try:
        monkeypatch.setitem(os.environ, "RAY_ADDRESS", address)
        hits, resumed = campaign(tmp_path, KILLS, 2, "ray")
        print(f"{hits} kills, {resumed} studies resumed, a local ray cluster")
    finally:
        ray.shutdown()
