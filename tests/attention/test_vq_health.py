"""Codes stay alive in training, in one process and in two; `tests/campaign` holds the same for longer."""

from pathlib import Path

from attention.codebook_training import run


def test_codes_are_alive_after_training_in_one_process_and_in_two(tmp_path: Path) -> None:
    numbers = (150, 0, 16, 16, 1, 32, 4)
    (alone,) = run(tmp_path, 1, *numbers, timeout=120)
    first, second = run(tmp_path, 2, *numbers, timeout=200)
    assert first == second
    for told in (alone, first):
        assert min(told["alive"]) >= 0.9 and told["loss"][1] < told["loss"][0]
