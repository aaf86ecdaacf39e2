"""The recall corpus through the laboratory: what is trained on, and what is asked of the model."""

import json
from pathlib import Path

from lmlab.evaluate.recall import ALPHABET
from lmlab.lab import load_recipe, run
from lmlab.tokenize import Tokenizer
from lmlab.train import TokenFile

RECIPE = """
name = "recall"
corpus = { name = "recall", max_bytes = 9000, held_out = 0.2 }
tokenize = { vocab_size = 256 }
model = { d_model = 16, n_layers = 1, n_heads = 2, d_ff = 16 }
train = { steps = 2, batch_size = 2, length = 32 }
generate = { samples = 0 }

[evaluate.length]
contexts = [32, 64]
last = 16
passkey = { depths = [0.0, 0.5], trials = 2 }
extensions = [[{ method = "rerope", window = 8 }, { method = "logn" }]]
"""


def test_passages_and_notes_are_asked_for_under_every_method(tmp_path: Path) -> None:
    (tmp_path / "recall.toml").write_text(RECIPE)
    done = run(load_recipe(tmp_path / "recall.toml"), tmp_path / "run", quiet=True)
    stages = {p.name.partition("-")[0]: p for p in (tmp_path / "run" / "stages").iterdir()}

    tokenizer = Tokenizer.load(stages["tokenize"] / "tokenizer.json")
    assert len(tokenizer.encode(ALPHABET)) == 64  # one id a symbol, also beside real text
    text = [json.loads(line)["text"] for line in (stages["corpus"] / "train.jsonl").read_text().splitlines()]
    assert 0.1 < sum(" " in one for one in text) / len(text) < 0.4
    train = TokenFile.open(stages["tokenize"] / "train.tok")
    assert len(train) == sum(len(one) + 1 for one in text)

    told = json.loads((stages["evaluate"] / "stage.json").read_text())["result"]
    methods = ["none", "window", "rerope(window=8) + logn"]
    assert list(done.metrics["variants"]["base"]["length"]) == methods
    assert [(r["method"], r["length"]) for r in told["length"]["copy"]] == [
        (method, length) for method in methods for length in (32, 64)
    ]
    assert [(r["method"], r["length"], r["depth"]) for r in told["passkey"]] == [
        (method, length, depth) for method in methods for length in (32, 64) for depth in (0.0, 0.5)
    ]
    assert all(0 <= row["accuracy"] <= 1 for row in (*told["length"]["copy"], *told["passkey"]))
