"""Damaged checkpoints, models and token files: refused by one clear error, or not damaged in what they say."""

import json
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from campaign.conftest import Tally
from lmlab.model import CheckpointError, Decoder, DecoderConfig
from lmlab.train import TokenFile, TrainConfig, train, weights_sha256

Damage = Callable[[random.Random, bytes], bytes]


def flip(draw: random.Random, data: bytes) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]


def cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def blank(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data))
    size = min(len(data) - start, 1 << draw.randrange(13))
    return data[:start] + bytes(size) + data[start + size :]


def longer(draw: random.Random, data: bytes) -> bytes:
    return data + draw.randbytes(1 + draw.randrange(64))


def noise(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data))
    size = min(len(data) - start, 1 + draw.randrange(64))
    return data[:start] + draw.randbytes(size) + data[start + size :]


def swap(draw: random.Random, data: bytes) -> bytes:
    a, b = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[b:] + data[a:b] + data[:a]


DAMAGES: list[Damage] = [flip, flip, flip, cut, blank, longer, noise, swap]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token file, a training's checkpoints, and its model."""
    home = tmp_path_factory.mktemp("sound")
    draw = random.Random(3)
    rows = [[draw.randrange(1, 50) for _ in range(30)] for _ in range(20)]
    data = TokenFile.write(home / "data.tok", rows, vocab_size=50, end_id=0)
    model = small()
    train(model, data, config(4), out=home / "checkpoints")
    model.save(home / "model")
    return home


def small() -> Decoder:
    return Decoder(DecoderConfig(vocab_size=50, d_model=16, n_layers=1, n_heads=2), seed=1)


def config(steps: int) -> TrainConfig:
    return TrainConfig(
        steps=steps, batch_size=2, length=8, save_every=2, keep=2, precision="float32", schedule="constant"
    )


def damage_one(draw: random.Random, folder: Path) -> str:
    """Damage one file of a folder, or take it away; its name."""
    file = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    before = file.read_bytes()
    after = before
    while after == before:
        after = draw.choice(DAMAGES)(draw, before)
    if draw.random() < 0.03:
        file.unlink()
    else:
        file.write_bytes(after)
    return file.name


def read_tokens(folder: Path) -> str:
    file = TokenFile.open(folder / "data.tok")
    return f"{len(file)} {file.vocab_size} {file.end_id} {file.batch(0, batch_size=4, length=8, seed=0)[0].tolist()}"


def read_model(folder: Path) -> str:
    model = Decoder.load(folder)
    return f"{weights_sha256(model)} {json.dumps(model.config.to_dict(), sort_keys=True)}"


def go_on(sound: Path, folder: Path) -> str:
    """Train on from what is left of the checkpoints."""
    model = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the damaged one is told, and the one before taken
        train(model, TokenFile.open(sound / "data.tok"), config(4), out=folder)
    return weights_sha256(model)


def damaged(sound: Path, folder: Path, count: int, seed: int) -> Counter[str]:
    """Outcomes of `count` damages of each kind of thing."""
    draw = random.Random(seed)
    kinds: dict[str, tuple[Path, Callable[[Path], str]]] = {
        "token file": (sound / "data.tok", read_tokens),
        "model": (sound / "model", read_model),
        "checkpoint": (sound / "checkpoints", lambda path: go_on(sound, path)),
    }
    outcomes: Counter[str] = Counter()
    whole = {}
    for kind, (source, read) in kinds.items():
        for number in range(count + 1):
            target = folder / "work"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy(source, target)
            if number == 0:
                whole[kind] = read(target)
                continue
            state = draw.getstate()
            name = damage_one(draw, target)
            try:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    found = read(target)
            except (CheckpointError, ValueError, FileNotFoundError) as error:
                assert str(target) in str(error) and len(str(error)) < 1500, (kind, name, error)
                outcomes["one clear error"] += 1
                continue
            if (
                found != whole[kind]
                and name == "config.json"
                and any("config.json" in str(w.message) for w in said)
            ):
                outcomes["another configuration, told by a warning"] += 1
                continue
            outcomes["the same bits" if found == whole[kind] else f"other bits: {kind} {name}"] += 1
            assert found == whole[kind], (kind, name, number, hash(state))
    return outcomes


def test_some_damage(sound: Path, tmp_path: Path) -> None:
    outcomes = damaged(sound, tmp_path, 25, seed=1)
    assert outcomes["one clear error"] >= 40


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_a_thousand_damages(sound: Path, tmp_path: Path, tally: Tally) -> None:
    torch.set_num_threads(1)
    tally("damaged token files, models and checkpoints", damaged(sound, tmp_path, 400, seed=2))
