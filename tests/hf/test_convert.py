"""Directories from one form to another, and what transformers makes of them in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf.small import TEXTS, decoder, tokenizer
from lmlab.hf import convert, register
from lmlab.model import CheckpointError, ConfigError, Decoder
from lmlab.tokenize import Tokenizer
from lmlab.train import weights_sha256

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.peer

# In a process that knows nothing: model, tokenizer, pipeline and Trainer, from the directory alone.
PROGRAM = """
import json, sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline
if sys.argv[2] == "hf":
    import lmlab.hf
path, texts = sys.argv[1], json.loads(sys.argv[3])
torch.set_num_threads(1)
model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
ids = [tokenizer(text).input_ids for text in texts]
with torch.no_grad():
    logits = model(torch.tensor(ids[:1])).logits
made = pipeline("text-generation", model=path)(texts[:2], max_new_tokens=5, do_sample=False, batch_size=2)
rows = [{"input_ids": one, "labels": one} for one in ids[:1] * 4]
arguments = TrainingArguments(
    sys.argv[4], use_cpu=True, report_to="none", max_steps=3, per_device_train_batch_size=2, disable_tqdm=True,
    learning_rate=1e-2, logging_steps=1,
)
trainer = Trainer(model, arguments, train_dataset=rows)
trainer.train()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
again = AutoModelForCausalLM.from_pretrained(sys.argv[4] + "/checkpoint-3")
same = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
print(json.dumps({
    "model": type(model).__name__, "ids": ids, "text": tokenizer.decode(ids[0]), "logits": logits[0, -1].tolist(),
    "made": [one[0]["generated_text"] for one in made], "losses": losses, "same": same,
    "lmlab": "lmlab" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a tokenizer as a run leaves them."""
    path = tmp_path_factory.mktemp("models") / "base"
    decoder().save(path)
    tokenizer().save(path / "tokenizer.json")
    return path


@pytest.mark.parametrize(("to", "name"), [("hf", "LMLabForCausalLM"), ("llama", "LlamaForCausalLM")])
def test_transformers_uses_a_converted_model_in_a_fresh_process(
    to: str, name: str, home: Path, tmp_path: Path
) -> None:
    convert(home, tmp_path / to, to=to)
    words = [str(tmp_path / to), to, json.dumps(TEXTS[:3]), str(tmp_path / "trained")]
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    model, own = Decoder.load(home), Tokenizer.load(home / "tokenizer.json")
    assert found["model"] == name and found["lmlab"] == (to == "hf")
    assert found["ids"] == [list(own.encode(text)) for text in TEXTS[:3]]
    assert found["text"] == TEXTS[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = model(torch.tensor(found["ids"][:1]))[0, -1]
    torch.set_num_threads(threads)
    if to == "hf":
        assert found["logits"] == expected.tolist()
    else:
        assert found["logits"] == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)
    assert all(text.startswith(start) for text, start in zip(found["made"], TEXTS, strict=False))
    assert len(found["losses"]) == 3 and found["losses"][-1] < found["losses"][0]
    assert found["same"]


@pytest.mark.parametrize("way", [("hf",), ("llama",), ("hf", "llama"), ("llama", "hf")])
def test_there_and_back_is_the_same_model(way: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    at = home
    for step, form in enumerate(way):
        convert(at, tmp_path / str(step), to=form)
        at = tmp_path / str(step)
    convert(at, tmp_path / "back", to="lmlab")
    back = Decoder.load(tmp_path / "back")
    assert back.config == Decoder.load(home).config
    assert weights_sha256(back) == weights_sha256(home)
    own = Tokenizer.load(tmp_path / "back" / "tokenizer.json")
    assert own.fingerprint == Tokenizer.load(home / "tokenizer.json").fingerprint


def test_a_llama_checkpoint_comes_in_and_goes_out_with_all_that_it_had(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").write_text('{"foreign": true}')
    convert(tmp_path / "llama", tmp_path / "inside", to="lmlab")
    assert not (tmp_path / "inside" / "tokenizer.json").exists()
    convert(tmp_path / "inside", tmp_path / "out", to="llama")
    for name in ("model.safetensors", "tokenizer.json", "config.json", "generation_config.json"):
        before, after = (tmp_path / form / name for form in ("llama", "out"))
        assert before.read_bytes() == after.read_bytes(), name


def test_the_verb_takes_a_run_or_a_model(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmlab.lab.cli import main

    assert main(["convert", str(home), str(tmp_path / "a"), "--to", "hf"]) == 0
    assert main(["convert", str(home.parent.parent), str(tmp_path / "b"), "--to", "llama"]) == 1
    run = tmp_path / "run" / "models" / "base"
    run.parent.mkdir(parents=True)
    run.symlink_to(home)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "b"), "--to", "llama"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["convert", str(home), str(tmp_path / "c"), "--to", "onnx"]) == 2


@pytest.mark.bad_input
def test_what_cannot_be_converted_is_said(home: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="give a new directory"):
        convert(home, home, to="hf")
    with pytest.raises(ConfigError, match="'to' must be one of hf, llama, lmlab"):
        convert(home, tmp_path / "x", to="onnx")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        convert(tmp_path, tmp_path / "x", to="hf")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match="found 'gpt2'"):
        convert(tmp_path, tmp_path / "x", to="hf")
    decoder(attention={"qk_norm": True}).save(tmp_path / "normed")
    with pytest.raises(ConfigError, match="qk_norm"):
        convert(tmp_path / "normed", tmp_path / "x", to="llama")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "normed"]
    convert(home, tmp_path / "hf", to="hf")
    with pytest.raises(CheckpointError, match="in transformers' form"):
        Decoder.load(tmp_path / "hf")


def test_registering_twice_is_the_same() -> None:
    register()
    register()
