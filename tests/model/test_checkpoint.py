"""A model on disk: the same bits in another process, and every damage named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmlab.model import CheckpointError, Decoder, DecoderConfig
from lmlab.train import weights_sha256

CONFIG = DecoderConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, d_ff=8, tie_embeddings=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Decoder(CONFIG, seed=3).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Decoder(CONFIG, seed=3).to(dtype)
    model.save(tmp_path)
    again = Decoder.load(tmp_path)
    assert again.config == CONFIG and again.head.dtype == dtype
    ids = torch.tensor([[1, 5, 2]])
    assert torch.equal(model(ids), again(ids))
    assert weights_sha256(model) == weights_sha256(again) == weights_sha256(tmp_path)
    assert Decoder.load(tmp_path, dtype=torch.float32).head.dtype == torch.float32


def test_a_fresh_process_computes_the_same_logits(saved: Path) -> None:
    program = (
        "import torch; from lmlab.model import Decoder; torch.set_num_threads(1);"
        f"print(Decoder.load({str(saved)!r})(torch.tensor([[1, 5, 2]])).detach().numpy().tobytes().hex())"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    logits = Decoder.load(saved)(torch.tensor([[1, 5, 2]])).detach()
    assert ran.stdout.strip() == logits.numpy().tobytes().hex()


def test_the_fingerprint_sees_names_types_and_bits() -> None:
    model = Decoder(CONFIG)
    first = weights_sha256(model)
    assert first == weights_sha256(Decoder(CONFIG)) != weights_sha256(Decoder(CONFIG, seed=1))
    with torch.no_grad():
        model.norm.weight[0] = torch.nextafter(model.norm.weight[0], torch.tensor(2.0))
    assert weights_sha256(model) != first
    assert weights_sha256(Decoder(CONFIG).double()) != first


def test_only_data_is_written(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((saved / "config.json").read_text())["model_type"] == "lmlab"


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors")

    return apply


def _config(**changes: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        values = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**values, **changes}))

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensor": (
        _tensors(lambda t: t.pop("norm.weight")),
        r"tensor 'norm.weight' \[8\] is missing",
    ),
    "extra tensor": (
        _tensors(lambda t: t.update(extra=torch.zeros(2))),
        r"tensor 'extra' \[2\] has no place in this model",
    ),
    "misshapen tensor": (
        _tensors(lambda t: t.update({"norm.weight": torch.zeros(9)})),
        r"tensor 'norm.weight' must be \[8\], found \[9\]",
    ),
    "NaN": (
        _tensors(lambda t: t["norm.weight"].fill_(float("nan"))),
        "tensor 'norm.weight' holds NaN or infinite values",
    ),
    "unknown key": (_config(n_layer=3), "unknown key 'n_layer'. Did you mean 'n_layers'?"),
    "wrong value": (_config(n_layers="two"), "'n_layers' must be an integer, got 'two'"),
    "another family": (_config(model_type="llama"), "model_type must be 'lmlab', found 'llama'.*convert"),
    "not an object": (lambda p: (p / "config.json").write_text("[1]"), "must hold a JSON object, found list"),
    "no JSON": (lambda p: (p / "config.json").write_text("{"), "can't be read as JSON"),
    "no config": (lambda p: (p / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "has no model.safetensors"),
    "cut weights": (
        lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-7]),
        "can't be read as safetensors",
    ),
    "pickle beside": (
        lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"),
        "pytorch_model.bin: only safetensors is read.*Convert it where you trust it",
    ),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(saved: Path, case: str) -> None:
    damage, text = DAMAGE[case]
    damage(saved)
    with pytest.raises(CheckpointError, match=text):
        Decoder.load(saved)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pkl"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match="only safetensors is read"):
        Decoder.load(tmp_path / name)
    with pytest.raises(CheckpointError, match="only safetensors is read"):
        weights_sha256(tmp_path / name)


def test_weights_that_a_disk_has_changed_are_refused(saved: Path) -> None:
    file = saved / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-6] ^= 1  # one bit of one number, still finite
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: its tensors don't have the sha256 in its header"):
        Decoder.load(saved)


def test_another_configuration_is_told(saved: Path) -> None:
    before = json.loads((saved / "config.json").read_text())
    _config(norm_eps=before["norm_eps"] * 2)(saved)
    with pytest.warns(UserWarning, match=r"config.json isn't the one that the weights were saved with"):
        Decoder.load(saved)


def test_the_same_model_is_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    code = "import sys; from lmlab.model import Decoder; Decoder.load(sys.argv[1]).save(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(saved), str(tmp_path / "again")], check=True)
    for name in ("config.json", "model.safetensors"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
