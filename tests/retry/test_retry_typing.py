"""Type checkers find wrong arguments of decorated functions and methods, and accept the typed loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[2]

# Only this room is read: the others, and torch with them, would take half a minute.
CONFIG = """
[mypy]
mypy_path = {home}/src
[mypy-lmlab.*]
follow_imports = skip
[mypy-lmlab.retry.*]
follow_imports = normal
"""


def test_mypy_finds_what_it_must(tmp_path: Path) -> None:
    """Every `type: ignore` of the file is an error that mypy must find: --strict refuses one not needed."""
    cases = HOME / "tests" / "typing" / "retry.py"
    assert cases.read_text(encoding="utf-8").count("# type: ignore[") >= 25
    config = tmp_path / "mypy.ini"
    config.write_text(CONFIG.format(home=HOME), encoding="utf-8")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", config, "--cache-dir", tmp_path, cases],
        capture_output=True,
        text=True,
        cwd=HOME,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
