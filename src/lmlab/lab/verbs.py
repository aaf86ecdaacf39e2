"""The verbs of the `lmlab` command, as functions. Each has a twin in Python; here only the edge: read, print.

Nothing heavy is imported before a verb is called, so `lmlab VERB --help` is quick.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from lmlab.model import Decoder
    from lmlab.tokenize import Tokenizer

Sets = Annotated[
    tuple[str, ...],
    UseAppendAction,
    arg(name="set", metavar="KEY=VALUE", help="a key of the recipe, e.g. --set train.steps=100"),
]


def run_recipe(
    recipe: Positional[str] = "demo",
    /,
    *,
    out: Path | None = None,
    sets: Sets = (),
    quiet: bool = False,
    no_wait: bool = False,
    jobs: int = 1,
    tensorboard: bool = False,
) -> None:
    """Run a recipe from raw text to a report. Stages that are done already are not done again.

    Args:
        recipe: a TOML file or the name of a shipped recipe (see `lmlab recipes`)
        out: the run's directory; runs/NAME if not given
        quiet: show nothing but the result
        no_wait: end with 5 if another run holds the directory, instead of waiting
        jobs: variants and seeds at a time, each in a process of its own
        tensorboard: write the training's scalars below DIR/tensorboard, too
    """
    _run(("run", recipe), out, sets, quiet, no_wait, jobs, None, tensorboard)


def demo(
    *, out: Path | None = None, sets: Sets = (), quiet: bool = False, no_wait: bool = False, jobs: int = 1
) -> None:
    """The shipped recipe `demo`: two languages, one small model, all the stages, in under five minutes.

    Args:
        out: the run's directory; runs/demo if not given
        quiet: show nothing but the result
        no_wait: end with 5 if another run holds the directory, instead of waiting
        jobs: variants and seeds at a time
    """
    _run(("demo",), out, sets, quiet, no_wait, jobs, None)


def train_recipe(
    recipe: Positional[str] = "demo",
    /,
    *,
    out: Path | None = None,
    sets: Sets = (),
    quiet: bool = False,
    no_wait: bool = False,
    jobs: int = 1,
    tensorboard: bool = False,
) -> None:
    """The stages of a recipe up to training: corpus, tokenize, train.

    Args:
        recipe: a TOML file or the name of a shipped recipe
        out: the run's directory; runs/NAME if not given
        quiet: show nothing but the result
        no_wait: end with 5 if another run holds the directory, instead of waiting
        jobs: variants and seeds at a time
        tensorboard: write the training's scalars below DIR/tensorboard, too
    """
    only = ("corpus", "tokenize", "train")
    _run(("train", recipe), out, sets, quiet, no_wait, jobs, only, tensorboard)


def autophagy_recipe(
    recipe: Positional[str] = "demo",
    /,
    *,
    out: Path | None = None,
    sets: Sets = (),
    quiet: bool = False,
    no_wait: bool = False,
    jobs: int = 1,
) -> None:
    """The self-consuming loops of a recipe's [autophagy], and their report.

    Args:
        recipe: a TOML file or the name of a shipped recipe
        out: the run's directory; runs/NAME if not given
        quiet: show nothing but the result
        no_wait: end with 5 if another run holds the directory, instead of waiting
        jobs: loops at a time
    """
    _run(("autophagy", recipe), out, sets, quiet, no_wait, jobs, ("corpus", "autophagy", "report"))


def autophagy_map(
    *,
    n_real: tuple[int, ...],
    n_synth: tuple[int, ...],
    bias: float = 1.0,
    d: int = 1,
    trials: int = 4096,
    seed: int = 0,
) -> None:
    """n_e/n_r of a Gaussian fed fresh real and synthetic rows: above 1 the synthetic rows help. As CSV.

    Args:
        n_real: real rows a generation
        n_synth: synthetic rows a generation
        bias: of sampling; 1 is unbiased
        d: dimensions
        trials: runs that each cell is the mean of; many dimensions need few
        seed: of the draws
    """
    from lmlab.autophagy.figures import phase

    found = phase(n_real, n_synth, bias=bias, d=d, trials=trials, seed=seed)
    print(",".join(["n_real", *map(str, n_synth)]))
    for n, ratios in zip(n_real, found["ratio"], strict=True):
        print(",".join([str(n), *(f"{ratio:.4f}" for ratio in ratios)]))
    if found["admissible"] is not None:
        print(f"# n_synth* = {found['admissible']:.1f} for many real rows")


def _run(
    words: tuple[str, ...],
    out: Path | None,
    sets: tuple[str, ...],
    quiet: bool,
    no_wait: bool,
    jobs: int,
    only: tuple[str, ...] | None,
    tensorboard: bool = False,
) -> None:
    from lmlab.lab.overrides import parse_overrides
    from lmlab.lab.recipe import load_recipe

    recipe = load_recipe(words[-1], parse_overrides(sets))
    from lmlab.lab.pipeline import STAGES, run  # after the recipe is known to be right: this loads more

    only = (*STAGES, "report") if only is None else only
    command = ["lmlab", *words, *(["--out", str(out)] if out else [])]
    command += [word for pair in sets for word in ("--set", pair)]
    command += ["--jobs", str(jobs)] if jobs > 1 else []
    command += ["--tensorboard"] if tensorboard else []
    done = run(
        recipe,
        out,
        quiet=quiet,
        jobs=jobs,
        wait=not no_wait,
        only=only,
        command=shlex.join(command),
        tensorboard=tensorboard,
    )
    for variant, values in done.metrics["variants"].items():
        if values["bits_per_byte"] is not None:
            baselines = done.metrics["baselines"]
            beside = ", ".join(f"{k} {v:.3f}" for k, v in baselines.items() if v is not None)
            print(f"{variant}: {values['bits_per_byte']:.3f} bits per byte ({beside})")
    print(done.report or done.path)


def recipes() -> None:
    """The recipes that ship with lmlab, each with its first comment."""
    from importlib import resources

    from lmlab.lab.recipe import recipe_names

    for name in recipe_names():
        text = (resources.files("lmlab.lab") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        first = next((line for line in text.splitlines() if line.startswith("#")), "")
        print(f"{name:12} {first.lstrip('# ')}")


def report(directory: Positional[Path], /) -> None:
    """Write the report of a run directory again.

    Args:
        directory: a finished or half-finished run
    """
    from lmlab.lab.report import write_report

    print(write_report(directory))


def load_model(directory: Path, variant: str = "base") -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a run directory, or of a directory that holds both."""
    from lmlab.model import Decoder
    from lmlab.tokenize import Tokenizer

    home = directory / "models" / variant
    if not home.is_dir():
        home = directory
    for name in ("config.json", "tokenizer.json"):
        if not (home / name).is_file():
            raise FileNotFoundError(f"{home} holds no {name}; give a run directory or models/NAME in one")
    return Decoder.load(home), Tokenizer.load(home / "tokenizer.json")


def _held_out(directory: Path, file: Path | None, max_bytes: int) -> list[str]:
    """The documents of `file`, else the held-out ones of the run."""
    from lmlab.lab.corpus import documents
    from lmlab.lab.options import CorpusOptions
    from lmlab.lab.sources import CorpusError, Skipped, find_sources
    from lmlab.lab.steps.evaluate import first_documents

    if file is not None:
        options = CorpusOptions(path=str(file))
        sources, skipped = find_sources(options, Path(), Path())
        found = [text for source in sources for text in documents(source, options, skipped)]
        if not found:
            raise CorpusError(f"no document in {file} can be used. Left out: {skipped or Skipped()}")
        return found
    stages = json.loads((directory / "stages.json").read_text(encoding="utf-8"))
    corpus = next(row["directory"] for row in stages if row["stage"] == "corpus")
    return list(first_documents(directory / corpus / "held_out.jsonl", max_bytes))


def eval_bits(
    directory: Positional[Path],
    file: Positional[Path | None] = None,
    /,
    *,
    variant: str = "base",
    length: int | None = None,
    stride: int | None = None,
    max_bytes: int = 200_000,
) -> dict[str, Any]:
    """Bits per byte of a trained model, on a file or on the held-out text of its run.

    Args:
        directory: a run directory, or one with config.json, model.safetensors and tokenizer.json
        file: text, JSONL or parquet; the run's held-out text if not given
        variant: which model of the run
        length: tokens in a window; what the model was trained on if not given
        stride: tokens that a window moves on; `length` if not given
        max_bytes: at most so much of the run's held-out text
    """
    from lmlab.evaluate import bits_per_byte

    model, tokenizer = load_model(directory, variant)
    texts = _held_out(directory, file, max_bytes)
    found = bits_per_byte(model, tokenizer, texts, length=length, stride=stride)
    return _print(
        {
            "bits_per_byte": found.value,
            "bytes_per_token": found.bytes_per_token,
            "tokens": found.tokens,
            "bytes": found.bytes,
            "documents": found.documents,
        }
    )


def eval_length(
    directory: Positional[Path],
    file: Positional[Path | None] = None,
    /,
    *,
    variant: str = "base",
    contexts: tuple[int, ...] = (),
    last: int = 64,
    extension: Annotated[
        tuple[str, ...],
        UseAppendAction,
        arg(
            metavar="METHOD", help="rerope:window=64, ntkaware, … ; a + joins methods; again for another row"
        ),
    ] = (),
) -> dict[str, Any]:
    """Loss against length, without and with extensions, the window beside.

    Args:
        directory: a run directory, or one with config.json, model.safetensors and tokenizer.json
        file: text; the run's held-out text if not given
        variant: which model of the run
        contexts: lengths in tokens; 1, 2 and 4 times the trained length if not given
        last: how many last tokens are scored
    """
    import torch

    from lmlab.lab.recipe import END
    from lmlab.lab.sources import CorpusError
    from lmlab.lab.steps.evaluate import LENGTH_ROWS, LengthTests, usable

    model, tokenizer = load_model(directory, variant)
    trained = model.config.max_length
    lengths = list(contexts) or [trained, 2 * trained, 4 * trained]
    tokens: list[int] = []
    for text in _held_out(directory, file, 10_000_000):
        tokens += [*tokenizer.encode(text), tokenizer.special_tokens[END]]
    width = max(lengths) + 1
    rows = min(len(tokens) // width, LENGTH_ROWS)
    if rows < 1:
        raise CorpusError(
            f"contexts up to {max(lengths)} need {width} tokens of text and found {len(tokens)}"
        )
    ids = torch.tensor(tokens[: rows * width]).reshape(rows, width)
    extensions = usable(model.config.position.kind, [parse_extension(text) for text in extension])
    return _print({"rows": LengthTests(model, ids, extensions, trained, lengths, last).table()})


def parse_extension(text: str) -> list[dict[str, Any]]:
    """`rerope:window=64+logn` as the tables of a recipe."""
    from lmlab.lab.overrides import parse_overrides

    tables = []
    for part in text.split("+"):
        method, _, values = part.partition(":")
        tables.append({"method": method.strip(), **parse_overrides(v for v in values.split(",") if v)})
    return tables


def eval_passkey(
    directory: Positional[Path],
    /,
    *,
    variant: str = "base",
    lengths: tuple[int, ...] = (),
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0),
    trials: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """How often a key hidden in random ids is found again, by length and depth.

    Args:
        directory: a run directory, or one with config.json, model.safetensors and tokenizer.json
        variant: which model of the run
        lengths: in tokens; 1, 2 and 4 times the trained length if not given
        depths: where the key lies, 0 the beginning, 1 the end
        trials: for each cell
        seed: of the random ids
    """
    from dataclasses import asdict

    from lmlab.evaluate import passkey

    model, _ = load_model(directory, variant)
    trained, vocab = model.config.max_length, model.config.vocab_size
    wanted = list(lengths) or [trained, 2 * trained, 4 * trained]
    cells = passkey(
        model, lengths=wanted, depths=list(depths), vocab=vocab, marker=vocab - 2, trials=trials, seed=seed
    )
    return _print({"passkey": [asdict(cell) for cell in cells]})


def generate_text(
    directory: Positional[Path],
    prompt: Positional[str] = "",
    /,
    *,
    variant: str = "base",
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    min_p: float | None = None,
    samples: int = 1,
    seed: int = 0,
) -> None:
    """Text from a trained model, after a prompt or from the beginning of a document.

    Args:
        directory: a run directory, or one with config.json, model.safetensors and tokenizer.json
        prompt: what the text begins with
        variant: which model of the run
        max_new_tokens: at most so many tokens
        temperature: 0 takes the likeliest token
        top_k: only the k likeliest tokens
        top_p: only the likeliest tokens that together have this probability
        min_p: only tokens at least this likely, as a share of the likeliest one
        samples: how many texts
        seed: another seed, other texts
    """
    from lmlab.lab.recipe import END
    from lmlab.model import generate

    model, tokenizer = load_model(directory, variant)
    end = tokenizer.special_tokens[END]
    made = generate(
        model,
        [[end, *tokenizer.encode(prompt)]] * samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=[end],
        seed=seed,
    )
    print("\n\n".join(prompt + tokenizer.decode(one.ids) for one in made))


def convert_model(
    source: Positional[Path],
    target: Positional[Path],
    /,
    *,
    to: Literal["hf", "llama", "lmlab"],
    variant: str = "base",
) -> None:
    """A model and its tokenizer in another form, in a new directory.

    Args:
        source: a run directory, or a directory with a model in any of the three forms
        target: a directory that isn't there yet
        to: hf (AutoModelForCausalLM after `import lmlab.hf`), llama (without lmlab), lmlab (a run's own form)
        variant: which model of the run
    """
    home = source / "models" / variant
    from lmlab.hf import convert

    convert(home if home.is_dir() else source, target, to=to)
    print(target)


def data_fetch(name: Positional[str], /, *, path: Path | None = None, to: Path | None = None) -> None:
    """Bring a pinned corpus through its registry's ordinary client; `corpus.name` reads it then.

    Args:
        name: see `lmlab data list`
        path: the archive, if it is here already: no network is used then
        to: the folder of corpora; $LMLAB_DATA or ~/.cache/lmlab/corpora if not given
    """
    from lmlab.lab.fetch import fetch

    print(fetch(name, path=path, to=to))


def data_list() -> None:
    """The corpora that can be fetched, and which are here."""
    from lmlab.lab.fetch import CORPORA, data_folder

    print("sample       in the package: Tang poems and the King James Bible, 1 MB each")
    print("recall       made on the spot: passages, pairs and notes that must be looked up")
    print("passages     made on the spot: random passages that come again, near and far")
    for corpus in CORPORA.values():
        here = "  (fetched)" if (data_folder() / corpus.name / "SOURCE.json").is_file() else ""
        print(f"{corpus.name:12} {corpus.about}; {corpus.licence}{here}")


def bench(
    part: Positional[str] = "all",
    /,
    *,
    quick: bool = False,
    out: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Measure a part against its rivals, side by side in one run.

    Args:
        part: retry, tokenize, rope, attention, recurrent, losses, autophagy, train, generate, or all
        quick: small sizes, to see that it runs
        out: write the rows as JSON to this file
        markdown: write them as a Markdown table to this file
    """
    from lmlab.lab import bench as frame
    from lmlab.model.errors import ConfigError

    known = sorted(frame.parts())
    if part not in ("all", *known):
        raise ConfigError("PART", f"must be one of {', '.join(('all', *known))}, got {part!r}")
    names = known if part == "all" else [part]
    results = {name: frame.run_part(name, quick=quick) for name in names}
    if out is not None:
        frame.write_json(out, results)
    if markdown is not None:
        frame.write_markdown(markdown, results)


def _print(value: dict[str, Any]) -> dict[str, Any]:
    from lmlab.lab.stages import finite

    print(json.dumps(finite(value), ensure_ascii=False, indent=1))
    return value
