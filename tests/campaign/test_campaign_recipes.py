"""Mutated recipes: read, or refused in one line that names the file. Nothing is ever run."""

import random
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from campaign.conftest import Tally
from lab.tiny_run import TINY
from lmlab.lab import load_recipe
from lmlab.lab.checks import check
from lmlab.lab.pipeline import STAGES
from lmlab.lab.recipe import recipe_names
from lmlab.model import ConfigError

VALUES = [
    *(
        "0",
        "-1",
        "1",
        "2",
        "1e308",
        "nan",
        "inf",
        "-inf",
        "true",
        "[]",
        "{}",
        '""',
        '"none"',
        "[1, 2]",
        "1.5",
    ),
    *(
        "9223372036854775807",
        "99999999999999999999",
        '"../x"',
        '"a\\u0000b"',
        '{ rule = "gradient" }',
        "1979-05-27",
    ),
    *(
        '"\\u202e"',
        "[[1]]",
        '{ name = "emo" }',
        "0x10",
        "[true]",
        '["ce", 1]',
        '"auto"',
        "[{ method = 'pi' }]",
    ),
]
CHECKED = 10  # one of so many is asked of the rooms, too, which puts its model together without memory


def sources() -> list[str]:
    folder = resources.files("lmlab.lab") / "recipes"
    return [TINY, *((folder / f"{name}.toml").read_text(encoding="utf-8") for name in recipe_names())]


def mutated(draw: random.Random, text: str) -> str:
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        lines = text.split("\n")
        keyed = [i for i, line in enumerate(lines) if re.match(r"\s*[\w.-]+ *=", line)]
        kind = draw.randrange(9)
        if kind <= 3 and keyed:  # another value
            i = draw.choice(keyed)
            lines[i] = lines[i].split("=")[0] + "= " + draw.choice(VALUES)
        elif kind == 4 and keyed:  # another key
            i = draw.choice(keyed)
            lines[i] = draw.choice(["a", "x.y", "", "steps", '"\\u0000"']) + lines[i]
        elif kind == 5:  # a line less, twice, or elsewhere
            i = draw.randrange(len(lines))
            line = lines.pop(i)
            for _ in range(draw.randrange(3)):
                lines.insert(draw.randrange(len(lines) + 1), line)
        elif kind == 6:  # another table
            heads = [i for i, line in enumerate(lines) if line.startswith("[")]
            if heads:
                names = ("train", "model.vq", "loss.cost", "x", "[variants]", "evaluate.length", "retry")
                lines[draw.choice(heads)] = f"[{draw.choice(names)}]"
        elif kind == 7:  # characters
            i = draw.randrange(len(text) + 1)
            strange = draw.choice(
                ["\x00", "\u202e", "'", '"', "[", "]", "=", "\ud7ff", "\n", "#", "\U0001f600"]
            )
            text = text[:i] + strange + text[i + draw.randrange(3) :]
            continue
        else:
            i, j = sorted(draw.randrange(len(text) + 1) for _ in range(2))
            text = text[:i] + text[min(j, i + 40) :]
            continue
        text = "\n".join(lines)
    return text


def read(folder: Path, count: int, seed: int) -> Counter[str]:
    draw = random.Random(seed)
    texts = sources()
    (folder / "text.txt").write_text("text", encoding="utf-8")
    path = folder / "mutant.toml"
    outcomes: Counter[str] = Counter()
    for number in range(count):
        text = mutated(draw, draw.choice(texts))
        path.write_text(text, encoding="utf-8")
        try:
            recipe = load_recipe(path)
            again = recipe.to_toml()
            path.write_text(again, encoding="utf-8")
            assert load_recipe(path).to_toml() == again, text
            sizes = (
                recipe.model.d_model,
                recipe.model.n_layers,
                recipe.model.ff_width,
                recipe.tokenize.vocab_size,
            )
            if number % CHECKED == 0 and max(sizes) < 1 << 13 and recipe.model.n_layers < 64:
                for _, _, arm in list(recipe.arms())[:2]:
                    check(arm, [name for name in STAGES if name != "compare"])
            outcomes["a recipe"] += 1
        except ConfigError as error:
            said = str(error)
            assert "\n" not in said and len(said) < 1000, (text, said)
            outcomes["one clear error"] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{text}") from error
    return outcomes


def test_some_mutants(tmp_path: Path) -> None:
    outcomes = read(tmp_path, 150, seed=1)
    assert outcomes["one clear error"] > 30 and outcomes["a recipe"] > 10


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_ten_thousand_mutants(tmp_path: Path, tally: Tally) -> None:
    tally("mutated recipes", read(tmp_path, 10_000, seed=2))
