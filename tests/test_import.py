"""A first sign of life: the package and its native module load."""

import lmlab
from lmlab import _native


def test_native_module_has_a_part_for_each_room() -> None:
    assert lmlab.__version__
    assert _native.tokenize.__name__.endswith("tokenize")
