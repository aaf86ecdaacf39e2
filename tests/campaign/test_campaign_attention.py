"""Minutes: after a thousand steps of real training at least 95 of 100 codes live, in one process and in two."""

from pathlib import Path

import pytest

from attention.codebook_training import run

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("pieces", "codes", "d_model", "layers", "length", "batch"),
    [(1024, 64, 64, 2, 64, 8), (4096, 256, 64, 2, 128, 8)],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_codes_live_after_a_thousand_steps(
    tmp_path: Path,
    pieces: int,
    codes: int,
    d_model: int,
    layers: int,
    length: int,
    batch: int,
    processes: int,
) -> None:
    told = run(tmp_path, processes, 1000, pieces, codes, d_model, layers, length, batch, timeout=3000)
    print(f"{codes} codes, {processes} processes: alive {told[0]['alive']}, loss {told[0]['loss']}")
    assert all(one == told[0] for one in told)
    assert min(told[0]["alive"]) >= 0.95 and told[0]["loss"][1] < told[0]["loss"][0]
