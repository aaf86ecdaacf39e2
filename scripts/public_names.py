"""Writes tests/public_names.txt anew: run it after a decision to add or drop a public name."""

from importlib import import_module
from pathlib import Path

ROOMS = "retry tokenize rope attention recurrent losses model train evaluate autophagy hf lab".split()


def main() -> None:
    names = [f"lmlab.{room}.{name}" for room in ROOMS for name in import_module(f"lmlab.{room}").__all__]
    path = Path(__file__).parent.parent / "tests" / "public_names.txt"
    path.write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
