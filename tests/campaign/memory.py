"""Does a week of work hold its memory? Encode, train, generate, extend and restore, again and again.

    python tests/campaign/memory.py --seconds 3600

Prints JSON: rounds, resident MiB at a quarter of the time and at the end, and the slope between the two in MiB an
hour, fitted by least squares. The first quarter isn't counted: allocators and caches fill up in it.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmlab.attention import VQOptions
from lmlab.model import Decoder, DecoderConfig, generate
from lmlab.rope import ReRoPE
from lmlab.tokenize import Tokenizer
from lmlab.train import TokenFile, TrainConfig, train

WORDS = "light water earth heaven night day 春 花 月 江 山 the of and".split()


def resident() -> float:
    """MiB of this process that lie in memory, after the C library has given back what it holds in reserve."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Work:
    """One round of everything that a long session does."""

    def __init__(self, folder: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        draw = random.Random(1)
        self.texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(200)]
        self.tokenizer = Tokenizer.train(self.texts, vocab_size=320, special_tokens=["<eos>"])
        self.folder = folder
        size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=320, max_position_embeddings=64, pad_token_id=0, **size)
        self.llama = LlamaForCausalLM(config).eval()
        self.mixers = ["attention", "recurrent", "vq"]

    def round(self, number: int) -> None:
        from lmlab.hf import extend, restore

        end = self.tokenizer.special_tokens["<eos>"]
        ids = [list(map(int, one)) for one in self.tokenizer.encode_batch(self.texts, alpha=0.5, seed=number)]
        data = TokenFile.write(self.folder / "data.tok", ids, vocab_size=320, end_id=end)
        options: dict[str, Any] = {
            "vocab_size": 320,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 2,
            "max_length": 32,
        }
        mixer = self.mixers[number % len(self.mixers)]
        model = Decoder(DecoderConfig(mixer=mixer, vq=VQOptions(codes=16, window=8), **options), seed=number)
        config = TrainConfig(steps=4, batch_size=4, length=32, precision="float32", save_every=2, seed=number)
        train(model, data, config, out=self.folder / "run", resume=False)
        prompts = [[end, *row[:4]] for row in ids[:4]]
        made = generate(model, prompts, max_new_tokens=12, seed=number)
        self.tokenizer.decode(made[0].ids)
        extend(self.llama, ReRoPE(window=16), train_length=64)
        with torch.no_grad():
            self.llama(torch.tensor([prompts[0] * 10]))
        restore(self.llama)


def measure(seconds: float) -> dict[str, float]:
    """Rounds until the time is up."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    times: list[float] = []
    sizes: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder))
        start, number = time.monotonic(), 0
        while (now := time.monotonic() - start) < seconds or number < 12:
            work.round(number)
            number += 1
            if not times or now - times[-1] >= seconds / 400:
                times.append(time.monotonic() - start)
                sizes.append(resident())
    quarter = next(i for i, t in enumerate(times) if t >= times[-1] / 4)
    t, y = np.array(times[quarter:]), np.array(sizes[quarter:])
    slope = float(np.polyfit(t, y, 1)[0]) if len(t) > 1 else 0.0
    return {
        "rounds": number,
        "seconds": times[-1],
        "quarter_MiB": float(y[0]),
        "end_MiB": float(y[-1]),
        "slope_MiB_per_hour": slope * 3600,
        "slope_KiB_per_round": slope * 1024 * times[-1] / number,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    print(json.dumps(measure(parser.parse_args().seconds)))
