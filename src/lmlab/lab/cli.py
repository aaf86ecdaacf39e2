"""The `lmlab` command: a table from verb to function. What goes wrong is said in one line.

Exit codes: 0 done, 1 any other error, 2 usage or recipe, 3 corpus, 4 training failed, 5 busy, 130 and 143
signals. `LMLAB_DEBUG=1` shows the traceback of an error.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from types import FrameType
from typing import Any

OTHER, USAGE, CORPUS, TRAINING, BUSY = 1, 2, 3, 4, 5

# verb -> (module, function, what it does)
VERBS: dict[str, tuple[str, str, str]] = {
    "run": ("lmlab.lab.verbs", "run_recipe", "run a recipe: raw text in, a report out"),
    "demo": ("lmlab.lab.verbs", "demo", "the shipped recipe `demo`, in under five minutes"),
    "recipes": ("lmlab.lab.verbs", "recipes", "the shipped recipes"),
    "report": ("lmlab.lab.verbs", "report", "write the report of a run again"),
    "train": ("lmlab.lab.verbs", "train_recipe", "a recipe's stages up to training"),
    "autophagy": ("lmlab.lab.verbs", "autophagy_recipe", "a recipe's self-consuming loops"),
    "autophagy map": (
        "lmlab.lab.verbs",
        "autophagy_map",
        "what synthetic rows are worth beside fresh real ones",
    ),
    "eval bits": ("lmlab.lab.verbs", "eval_bits", "bits per byte of a trained model"),
    "eval length": ("lmlab.lab.verbs", "eval_length", "loss against length"),
    "eval passkey": ("lmlab.lab.verbs", "eval_passkey", "a key found again in a long text"),
    "generate": ("lmlab.lab.verbs", "generate_text", "text from a trained model"),
    "convert": ("lmlab.lab.verbs", "convert_model", "a model to Hugging Face's form, to a Llama, or back"),
    "data fetch": ("lmlab.lab.verbs", "data_fetch", "bring a pinned corpus (the only verb with network)"),
    "data list": ("lmlab.lab.verbs", "data_list", "the corpora that can be fetched"),
    "tokenize train": ("lmlab.tokenize.command", "train", "learn a vocabulary from text"),
    "tokenize encode": ("lmlab.tokenize.command", "encode", "lines of text to lines of ids"),
    "tokenize decode": ("lmlab.tokenize.command", "decode", "lines of ids to lines of text"),
    "tokenize inspect": ("lmlab.tokenize.command", "inspect", "how a text is cut, and its lattice as SVG"),
    "bench": ("lmlab.lab.verbs", "bench", "measure a part against its rivals"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    with contextlib.suppress(ValueError):  # signals belong to the main thread
        signal.signal(signal.SIGTERM, _terminated)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # the reader has gone: nothing more to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OTHER
    except SystemExit as error:
        if error.code == 128 + signal.SIGTERM:
            print("terminated", file=sys.stderr)
        return error.code if isinstance(error.code, int) else OTHER if error.code else 0
    except Exception as error:
        if os.environ.get("LMLAB_DEBUG"):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return _exit_code(error)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else USAGE
    if words[0] in ("-V", "--version"):
        import lmlab

        print(f"lmlab {lmlab.__version__}")
        return 0
    for verb in (" ".join(words[:2]), words[0]):
        if verb in VERBS:
            module_name, function, _ = VERBS[verb]
            rest = words[len(verb.split()) :]
            call = _parse(getattr(importlib.import_module(module_name), function), verb, rest)
            call()
            return 0
    if words[1:] in (["-h"], ["--help"]) and (group := _group(words[0])):
        print(_help(group, words[0]))
        return 0
    return _unknown(words)


def _parse(function: Callable[..., Any], verb: str, words: list[str]) -> Callable[[], Any]:
    """The call that the words ask for. tyro reads them; its boxed errors are made one line."""
    import tyro

    @functools.wraps(function)
    def later(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(function, *args, **kwargs)

    said = io.StringIO()
    prog = f"lmlab {verb}"
    try:
        with contextlib.redirect_stderr(said):
            config = (tyro.conf.FlagCreatePairsOff,)
            call: Callable[[], Any] = tyro.cli(later, prog=prog, args=words, config=config)
    except SystemExit as error:
        if error.code:
            print(f"error: {_unboxed(said.getvalue())} (see `{prog} --help`)", file=sys.stderr)
        raise
    return call


def _unboxed(text: str) -> str:
    """tyro's box of several lines as one: the message, and what was perhaps meant."""
    lines = [line.strip("│╭╮╰╯─ ") for line in text.splitlines() if line.startswith("│")]
    try:
        message = " ".join(lines[: lines.index("")])
        meant = re.search(r"Perhaps you meant: *(\S+)", " ".join(lines))
    except ValueError:
        return " ".join(filter(None, lines)) or " ".join(text.split())
    return f"{message}. Did you mean {meant[1]}?" if meant else message


def _unknown(words: list[str]) -> int:
    """No such verb: the nearest one, or what the first word may be followed by."""
    group = _group(words[0])
    if group:
        problem = f"`lmlab {words[0]}` takes {', '.join(verb.split()[1] for verb in group)}"
    else:
        near = get_close_matches(words[0], [*VERBS, *{v.split()[0] for v in VERBS}], n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "See `lmlab --help`."
        problem = f"unknown command {words[0]!r}. {hint}"
    print(f"error: {problem}", file=sys.stderr)
    return USAGE


def _group(word: str) -> list[str]:
    """The verbs of two words that begin with this one."""
    return [verb for verb in VERBS if verb.startswith(f"{word} ")]


def _help(verbs: Sequence[str] = (), group: str = "") -> str:
    rows = {verb: VERBS[verb][2] for verb in verbs or sorted(VERBS)}
    width = max(map(len, rows))
    usage = f"usage: lmlab {group or 'VERB'} [ARGUMENTS]   (lmlab VERB --help tells more)"
    lines = [usage, "", *(f"  {verb:{width}}  {about}" for verb, about in rows.items())]
    if not group:
        lines += ["", "Begin with `lmlab demo`, then `lmlab run RECIPE --set key=value`."]
    return "\n".join(lines)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory"
    named = type(error).__module__.startswith("lmlab") or isinstance(error, OSError | ImportError)
    return text if named and text else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _exit_code(error: Exception) -> int:
    """The exit code for an error, by class; only classes of modules that are loaded can be meant."""
    codes = (
        ("lmlab.model.errors", "ConfigError", USAGE),
        ("lmlab.lab.sources", "CorpusError", CORPUS),
        ("lmlab.train.errors", "TrainingError", TRAINING),
        ("lmlab.lab.stages", "Busy", BUSY),
    )
    for module, name, code in codes:
        found = sys.modules.get(module)
        if found is not None and isinstance(error, getattr(found, name)):
            return code
    return OTHER
