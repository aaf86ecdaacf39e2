"""A run small enough to be made many times; as a program it is a run that can be killed."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lmlab.attention import VQOptions
from lmlab.model import Decoder, DecoderConfig
from lmlab.train import Step, TokenFile, TrainConfig, train, weights_sha256

MODEL = DecoderConfig(
    vocab_size=17, d_model=16, n_layers=2, n_heads=2, d_ff=16, max_length=8, vq=VQOptions(codes=8, window=3)
)
CONFIG = TrainConfig(steps=24, batch_size=4, length=8, save_every=5, precision="float32", lr=1e-2)


def tokens(path: Path) -> TokenFile:
    documents = [[1 + (start + 3 * i) % 16 for i in range(30)] for start in range(20)]
    return TokenFile.write(path, documents, vocab_size=17, end_id=0)


def main(arguments: list[str]) -> None:
    """OUT TOKENS [kill=STEP] [stop=STEP] [loss=NAME] [optimizer=NAME] [mixer=NAME] [dtype=float64]

    Prints the step that it went on from, the weights' sha256 and the losses."""
    torch.set_num_threads(1)
    out, path = arguments[:2]
    options = dict(argument.split("=") for argument in arguments[2:])
    kill, stop = int(options.pop("kill", 0)), int(options.pop("stop", 0))
    config = replace(MODEL, mixer=options.pop("mixer", "attention"))
    model = Decoder(config).to(getattr(torch, options.pop("dtype", "float32")))
    changes: dict[str, Any] = {**options}
    if "loss" in changes:
        changes["loss"] = {"name": changes["loss"]}
    settings = TrainConfig.from_dict({**CONFIG.to_dict(), **changes})

    def on_step(step: Step) -> None:
        if step.step == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(model, TokenFile.open(path), settings, out=None if out == "-" else out, on_step=on_step)
    if int(os.environ.get("RANK", "0")) == 0:
        print(result.resumed_at, weights_sha256(model), *(repr(step.loss) for step in result.history))


if __name__ == "__main__":
    main(sys.argv[1:])
