"""What importing `lmlab.retry` loads, and what its everyday use does."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch numpy asyncio trio multiprocessing logging tempfile inspect dataclasses socket ssl email".split()
)

USE = """
from lmlab.retry import Budget, Retry, atomic_write
io = Retry(ConnectionError, attempts=5, budget=Budget(0.1))
for attempt in io:
    with attempt:
        pass
io(lambda: 1)(); io.call(int); io.quiet().call(int); list(io.stream(lambda c: [1]))
with atomic_write("file") as f:
    f.write(b"x")
"""


@pytest.mark.parametrize("program", ["import lmlab.retry", "import lmlab.retry.testing", USE])
def test_nothing_heavy_is_loaded(program: str, tmp_path: object) -> None:
    # -S, because what site's .pth files import is not ours
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{program}\n"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=str(tmp_path)
    )
    loaded = ran.stdout.strip()
    assert loaded == "[]" or (program.endswith("testing") and "multiprocessing" not in loaded)
