"""Checks an installed lmlab from outside its source tree: `python scripts/check_wheel.py PYTHON FOLDER`.

PYTHON is the interpreter of an environment into which the wheel was installed, FOLDER an empty place.
"""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib.metadata, importlib.resources, pathlib, sys
import lmlab
from lmlab import _native
from lmlab.tokenize import Tokenizer

home = pathlib.Path(lmlab.__file__).parent
assert pathlib.Path.cwd() not in home.parents, home
files = {str(f) for f in importlib.metadata.files("lmlab")}
for wanted in ("py.typed", "lab/data/NOTICE", "lab/data/tang.txt.xz", "lab/recipes/demo.toml"):
    assert f"lmlab/{wanted}" in files, wanted
for wanted in ("licenses/LICENSE", "licenses/NOTICE"):
    assert any(f.endswith(wanted) for f in files), wanted
assert not [f for f in files if f.endswith((".cpp", ".h"))]
tokenizer = Tokenizer([b"ab", b"abc"], [-1.0, -2.0])
assert tokenizer.decode_bytes(tokenizer.encode(b"abcab\\xff")) == b"abcab\\xff"
assert "torch" not in sys.modules
print("the wheel is whole:", home)
"""


def main() -> None:
    python, folder = sys.argv[1:]
    subprocess.run([python, "-c", PROGRAM], cwd=folder, check=True)
    for command in (["--help"], ["recipes"], ["run", "demo", "--set", "train.step=1"]):
        ran = subprocess.run([python, "-m", "lmlab", *command], cwd=folder, capture_output=True, text=True)
        wanted = 2 if "--set" in command else 0
        if ran.returncode != wanted or "Traceback" in ran.stderr:
            raise SystemExit(
                f"lmlab {' '.join(command)} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
            )


if __name__ == "__main__":
    main()
