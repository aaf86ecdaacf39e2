"""Recipes: what is read, what is refused and in which words, and that a resolved recipe is the same recipe."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.lab import RecipeError, load_recipe
from lmlab.lab.overrides import apply, parse_overrides, read_toml, to_toml
from lmlab.lab.recipe import every_key, recipe_from, recipe_names


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, **overrides: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return caught.value


def test_an_empty_recipe_is_the_sample_with_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, ""))
    assert recipe.name == "recipe"  # the file's
    assert recipe.model.max_length == recipe.train.length == 256
    assert recipe.model.vocab_size == recipe.tokenize.vocab_size == 4096
    assert recipe.autophagy is None and recipe.compare is None and recipe.evaluate.length is None
    assert [arm[:2] for arm in recipe.arms()] == [("base", 0)]


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_read_and_its_resolved_form_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = load_recipe(write(tmp_path, recipe.to_toml()))
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()


def test_a_recipe_that_says_everything_comes_back(tmp_path: Path) -> None:
    text = """
        name = "all"
        seed = 3
        seeds = 2
        [corpus]
        path = "text/*.txt"
        document_separator = "\\n--\\n"
        [tokenize]
        vocab_size = 300
        alpha = 0.2
        special_tokens = ["<a>", "\\u007f"]
        [model]
        d_model = 16
        n_heads = 2
        mixer = ["attention", "recurrent"]
        [model.attention]
        scale = { rule = "gradient", share = 0.9 }
        [position]
        extension = [{ method = "rerope", window = 8 }, { method = "logn" }]
        [train]
        clip = "none"
        betas = [0.9, 0.99]
        [loss]
        name = "emo"
        cost = { kind = "live", center = true }
        [evaluate.length]
        passkey = { depths = [0, 1] }
        [generate]
        top_p = "none"
        [autophagy]
        generator = "ngram"
        [compare]
        losses = ["ce", { name = "emo", emo = 0.3 }]
        corpus = { name = "sample" }
        [[variants]]
        name = "nope"
        set = { "position.kind" = "nope", "position.extension" = "none" }
    """
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.train.clip is None and recipe.generate.top_p is None
    assert recipe.train.seed == 3
    assert [arm[:2] for arm in recipe.arms()] == [("base", 3), ("base", 4), ("nope", 3), ("nope", 4)]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = load_recipe(write(elsewhere, recipe.to_toml()))
    assert again.to_toml() == recipe.to_toml()
    assert again.variants[0].recipe.position.kind == "nope"


def test_seeds_share_the_text_and_the_tokenizer(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "seed = 5\nseeds = 3"))
    arms = [arm for _, _, arm in recipe.arms()]
    assert [arm.train.seed for arm in arms] == [5, 6, 7]
    # "None" stands for the recipe's seed, which is another one in the further arms
    assert [arm.corpus.seed for arm in arms] == [None, 5, 5]
    assert [arm.tokenize.seed for arm in arms] == [None, 5, 5]


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[train]\nstep = 3", "train.step", "train.steps"),
        ("sede = 3", "sede", "seed"),
        ("[trian]\nsteps = 3", "trian", "train"),
        ("[model.attention]\nqknorm = true", "model.attention.qknorm", "model.attention.qk_norm"),
        ("[model.vq]\ncode = 3", "model.vq.code", "model.vq.codes"),
        ("[evaluate.length]\nlasst = 3", "evaluate.length.lasst", "evaluate.length.last"),
        ("[evaluate.length.passkey]\ntrails = 3", "evaluate.length.passkey.trails", None),
        ("[loss.cost]\nknd = 3", "loss.cost.knd", "loss.cost.kind"),
        (
            '[compare]\nlosses = ["ce", { name = "emo", emmo = 1 }]',
            "compare.losses[1].emmo",
            "compare.losses[1].emo",
        ),
        ("steps = 3", "steps", "train.steps"),
        ("[model]\nvocab_size = 3", "model.vocab_size", "tokenize.vocab_size"),
        ("[train]\nloss = 3", "train.loss", None),
        ('[[variants]]\nname = "a"\nsets = {}', "variants[0].sets", "variants[0].set"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(
    text: str, key: str, nearest: str | None, tmp_path: Path
) -> None:
    error = refused(tmp_path, text)
    assert error.key == key
    assert str(error).startswith(f"recipe.toml: unknown key '{key}'")
    if nearest is not None:
        assert error.nearest == nearest
        assert str(error).endswith(f"Did you mean '{nearest}'?")
    assert "\n" not in str(error)


def test_the_sentence_of_the_specification(tmp_path: Path) -> None:
    error = refused(tmp_path, "[train]\nstep = 3")
    assert str(error) == "recipe.toml: unknown key 'train.step'. Did you mean 'train.steps'?"


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('[train]\nsteps = "many"', "train.steps", "'many'"),
        ("[train]\nsteps = true", "train.steps", "integer"),
        ("[train]\nlr = -1", "train.lr", "-1"),
        ("[train]\nlr = nan", "train.lr", "nan"),
        ("[train]\nlr = inf", "train.lr", "inf"),
        ("[train]\nsteps = 1.5", "train.steps", "1.5"),
        ("[train]\nbatch_size = 0", "train.batch_size", "0"),
        ('[train]\nschedule = "linear"', "train.schedule", "wsd"),
        ("train = 3", "train", "table"),
        ("seed = -1", "seed", "whole number >= 0"),
        ("seeds = 0", "seeds", "whole number >= 1"),
        ("[corpus]\nheld_out = 1.0", "corpus.held_out", "between 0 and 1"),
        ('[corpus]\npath = "a"\nname = "sample"', "corpus.path", "left out when name"),
        ('[corpus]\nname = "../x"', "corpus.name", "../x"),
        ("[tokenize]\nvocab_size = 255", "tokenize.vocab_size", ">= 256"),
        ("[model]\nn_heads = 7", "model.n_heads", "divisor"),
        ("[model.vq]\ncodes = 0", "model.vq.codes", ">= 1"),
        ("[position]\ndim = 3", "position.dim", "even"),
        ('[position]\nextension = { method = "rerop", window = 3 }', "position.extension", "rerope"),
        (
            "[position]\nextension = [1]",
            "position.extension",
            'a table such as {method = "rerope", window = 1024}',
        ),
        ("[position]\nextension = 3", "position.extension", "got 3"),
        (
            '[evaluate.length]\nextensions = [{ method = "rerope" }]',
            "evaluate.length.extensions[0]",
            "window",
        ),
        ("[generate]\ntop_p = 0.0", "generate.top_p", "at most 1"),
        ("[generate]\ntemperature = -0.1", "generate.temperature", ">= 0"),
        ('[autophagy]\nloops = ["replace"]', "autophagy.loops", "synthetic"),
        ("[autophagy]\nbias = [2]", "autophagy.bias", "[0, 1]"),
        ("[compare]\nlosses = []", "compare.losses", '"ce"'),
        ('[compare]\nlosses = ["ce", 3]', "compare.losses[1]", "a name, or a table"),
        ("variants = 3", "variants", "list of tables"),
        ('[[variants]]\nname = "base"', "variants[0].name", "base"),
        ('[[variants]]\nname = "a"\n[[variants]]\nname = "a"', "variants[1].name", "not twice"),
        ('[[variants]]\nname = "a"\nset = { seeds = 2 }', "variants[0].set", "seeds"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_accepted(
    text: str, key: str, words: str, tmp_path: Path
) -> None:
    error = refused(tmp_path, text)
    assert error.key == key
    assert str(error).startswith(f"recipe.toml: '{key}'")
    assert words in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["..", "a/b", "a\\u0000b", ".hidden", "", "x" * 65, "ä", "a\\nb"])
def test_names_that_can_not_be_file_names_are_refused(name: str, tmp_path: Path) -> None:
    assert refused(tmp_path, f'name = "{name}"').key == "name"
    assert refused(tmp_path, f'[[variants]]\nname = "{name}"').key == "variants[0].name"


def test_a_mistake_in_a_variant_names_the_variant(tmp_path: Path) -> None:
    error = refused(tmp_path, '[[variants]]\nname = "vq"\nset = { "model.mixr" = "vq" }')
    assert "variant 'vq'" in str(error) and "'model.mixer'" in str(error)


def test_a_mistake_in_toml_tells_line_and_column(tmp_path: Path) -> None:
    assert str(refused(tmp_path, "seed = 1\nname = [")).startswith("recipe.toml: ")
    assert "line 2, column" in str(refused(tmp_path, "seed = 1\nname == 3\n"))
    path = tmp_path / "bad.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(RecipeError, match="not UTF-8 at byte 8"):
        load_recipe(path)


def test_a_missing_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such file, and the shipped ones are .*demo") as caught:
        load_recipe(tmp_path / "none.toml")
    assert caught.value.nearest is None
    with pytest.raises(RecipeError, match="Did you mean 'demo'"):
        load_recipe("demmo")
    with pytest.raises(RecipeError):
        load_recipe("a\0b")


# --- overrides ----------------------------------------------------------------------------------------------


def test_overrides_are_toml_values_and_bare_words_are_strings() -> None:
    given = [
        "train.steps=3",
        "train.lr = 6e-3",
        "corpus.path=my text.txt",
        'name="a b"',
        "model.mixer=[\"vq\", 'attention']",
        "position.extension={method='rerope', window=8}",
        "train.compile=true",
        "corpus.document_separator=",
    ]
    assert parse_overrides(given) == {
        "train.steps": 3,
        "train.lr": 6e-3,
        "corpus.path": "my text.txt",
        "name": "a b",
        "model.mixer": ["vq", "attention"],
        "position.extension": {"method": "rerope", "window": 8},
        "train.compile": True,
        "corpus.document_separator": "",
    }


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train.steps"], "--set takes key=value, got 'train.steps'"),
        (["=3"], "--set takes key=value"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["a=[1,"], "isn't a TOML value"),
        (["a={b"], "isn't a TOML value"),
        (["a=1\nb=2"], "'a'"),
    ],
)
def test_a_wrong_override_is_refused(words: list[str], text: str) -> None:
    with pytest.raises(RecipeError, match="(?s)" + text.replace("[", r"\[").replace("{", r"\{")) as caught:
        parse_overrides(words)
    assert text in str(caught.value)


def test_a_mistake_in_an_override_is_told_as_one() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo", {"train.step": 3})
    assert str(caught.value) == "--set: unknown key 'train.step'. Did you mean 'train.steps'?"
    with pytest.raises(RecipeError, match="'name' isn't a table"):
        load_recipe("demo", {"name.x": 3})
    with pytest.raises(RecipeError, match="isn't a dotted key"):
        load_recipe("demo", {"train..steps": 3})


keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
values = st.recursive(
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, max_size=4))
def test_written_toml_reads_back_equal(table: dict[str, Any]) -> None:
    import tomllib

    assert tomllib.loads(to_toml(table)) == table


@given(st.dictionaries(st.sampled_from(["a", "b.c", "b.d.e", "f.g"]), values, max_size=4))
def test_applying_overrides_sets_them_and_leaves_the_table_alone(overrides: dict[str, Any]) -> None:
    table = {"a": 1, "b": {"c": 2, "k": 3}}
    result = apply(table, overrides)
    for key, value in overrides.items():
        at: Any = result
        for part in key.split("."):
            at = at[part]
        assert at == value
    assert table == {"a": 1, "b": {"c": 2, "k": 3}}
    assert result["b"]["k"] == 3


def test_with_keys_checks_the_whole_again() -> None:
    recipe = load_recipe("demo").with_keys({"train.length": 128})
    assert recipe.model.max_length == 128
    with pytest.raises(ValueError, match=r"train\.steps"):
        recipe.with_keys({"train.steps": -1})


# --- the keys -----------------------------------------------------------------------------------------------


def test_every_key_is_described_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    # under its section as `key`, or as `table.key`
    missing = [k for k in every_key() if not any(f"`{'.'.join(k.split('.')[n:])}`" in page for n in range(4))]
    assert not missing


def test_reading_a_recipe_loads_no_torch() -> None:
    program = (
        "import sys; from lmlab.lab import load_recipe; load_recipe('demo'); "
        "print([m for m in ('torch', 'tyro', 'rich', 'matplotlib') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_toml_of_a_shipped_recipe_is_what_the_package_holds() -> None:
    from importlib import resources

    with resources.as_file(resources.files("lmlab.lab") / "recipes" / "demo.toml") as path:
        assert recipe_from(read_toml(path)) == load_recipe("demo")


@pytest.mark.parametrize("name", recipe_names())
def test_the_rooms_accept_every_variant_of_a_shipped_recipe(name: str) -> None:
    from lmlab.lab.checks import check
    from lmlab.lab.pipeline import STAGES

    recipe = load_recipe(name)
    for variant in (recipe, *(v.recipe for v in recipe.variants)):
        check(variant, STAGES)
