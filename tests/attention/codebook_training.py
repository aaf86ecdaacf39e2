"""A decoder over quantised keys, trained on the Bible; as a program it tells how its codes are.

    codebook_training.py FOLDER steps pieces codes d_model n_layers length batch_size

pieces: size of the vocabulary; 0 trains on bytes, of which a text has too few for many codes in the first layer.
Prints one line of JSON: the share of living codes of every key head, the loss at both ends, and a hash of the
codebooks. Under torchrun's environment the processes share each batch."""

import hashlib
import json
import lzma
import os
import socket
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from lmlab.attention import Codebook, VQOptions
from lmlab.model import Decoder, DecoderConfig
from lmlab.tokenize import Tokenizer
from lmlab.train import TokenFile, TrainConfig, train


def main(folder: str, *numbers: str) -> None:
    steps, pieces, codes, d_model, n_layers, length, batch_size = map(int, numbers)
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    text = lzma.decompress((files("lmlab.lab") / "data" / "kjv.txt.xz").read_bytes())
    path = Path(folder) / f"text-{rank}"
    ids, vocabulary, end = list(text[:400_000]), 257, 256
    if pieces:
        tokenizer = Tokenizer.train([text[:600_000].decode()], vocab_size=pieces, special_tokens=["<eos>"])
        ids, vocabulary = tokenizer.encode(text[:2_000_000].decode()), pieces
        end = tokenizer.special_tokens["<eos>"]
    TokenFile.write(path, [ids], vocab_size=vocabulary, end_id=end)
    model = Decoder(
        DecoderConfig(
            vocab_size=vocabulary,
            d_model=d_model,
            n_layers=n_layers,
            n_heads=2,
            max_length=length,
            mixer="vq",
            vq=VQOptions(codes=codes, window=8),
        )
    )
    config = TrainConfig(
        steps=steps, batch_size=batch_size, length=length, precision="float32", eval_every=10**6
    )
    history = train(model, TokenFile.open(path), config).history
    books = [module for module in model.modules() if isinstance(module, Codebook)]
    told = {
        "alive": [share for book in books for share in book.stats().alive.tolist()],
        "loss": [history[0].loss, history[-1].loss],
        "codebooks": hashlib.sha256(b"".join(book.embedding.numpy().tobytes() for book in books)).hexdigest(),
    }
    print(json.dumps(told))


def run(folder: Path, processes: int, *numbers: int, timeout: float) -> list[dict[str, Any]]:
    """What each of the processes printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, __file__, str(folder), *map(str, numbers)]
    ranks = [
        subprocess.Popen(
            command,
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    told = [rank.communicate(timeout=timeout) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(error for _, error in told)
    return [json.loads(printed) for printed, _ in told]


if __name__ == "__main__":
    main(*sys.argv[1:])
