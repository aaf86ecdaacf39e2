"""The kernels for an accelerator, in Triton's interpreter, against the compiled loops."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: its kernels can't be interpreted"
)
def test_interpreted_kernels_are_the_compiled_loops() -> None:
    """In a process of its own: Triton must know before its first import that it is to interpret."""
    program = Path(__file__).with_name("interpreted_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "all agree", ran.stderr[-3000:]
