"""The house: which rooms there are, which way they may look, and what importing one may load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import lmlab

ROOMS = "retry tokenize rope attention recurrent losses model train evaluate autophagy hf lab".split()
HOME = Path(lmlab.__file__).parent
# What importing a room must not load: its parts come when they are used.
HEAVY = ("torch", "transformers", "matplotlib", "sklearn", "ray", "pyarrow", "tyro", "rich", "joblib")
NUMPY_FREE = ("retry",)
TRANSFORMERS = ("hf",)  # importing it registers the model type with transformers, whatever that loads


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import statement of a file, those inside functions too."""
    package = ["lmlab", *path.relative_to(HOME).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, stem
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above_it(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], "retry", "_native", "_lazy", "_linear"}
    against = [
        f"{path.relative_to(HOME)}:{line} imports {name}"
        for path in sorted((HOME / room).rglob("*.py"))
        for line, name in imported(path)
        if name.startswith("lmlab.") and name.split(".")[1] in ROOMS and name.split(".")[1] not in allowed
    ]
    assert not against


@pytest.mark.parametrize("room", ["retry", "tokenize"])
def test_the_rooms_without_torch_never_import_it(room: str) -> None:
    names = {name.split(".")[0] for path in (HOME / room).rglob("*.py") for _, name in imported(path)}
    assert "torch" not in names


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_loads_no_room_below_and_nothing_heavy(room: str) -> None:
    below = [f"lmlab.{other}" for other in ROOMS[ROOMS.index(room) + 1 :]]
    heavy = () if room in TRANSFORMERS else HEAVY
    unwanted = [*below, *heavy, *(["numpy"] if room in NUMPY_FREE else [])]
    program = f"import sys, lmlab.{room}; print([m for m in {unwanted!r} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ROOMS)
def test_a_door_opens_on_every_name_that_it_lists(room: str) -> None:
    door = import_module(f"lmlab.{room}")
    assert len(set(door.__all__)) == len(door.__all__)
    for name in door.__all__:
        assert getattr(door, name) is not None


def test_the_public_names_are_those_that_were_decided() -> None:
    """A public name is a promise: adding one changes tests/public_names.txt, in the same commit."""
    listed = Path(__file__).with_name("public_names.txt").read_text(encoding="utf-8").splitlines()
    public = [f"lmlab.{room}.{name}" for room in ROOMS for name in import_module(f"lmlab.{room}").__all__]
    assert sorted(public) == [line for line in listed if line]


def test_import_of_the_package_is_quick() -> None:
    """`import lmlab` loads itself and its door, nothing else of weight (it takes some milliseconds)."""
    program = "import sys; before = set(sys.modules); import lmlab; print(sorted(set(sys.modules) - before))"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = ast.literal_eval(ran.stdout)
    assert {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) == {"lmlab"}
