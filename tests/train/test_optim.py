"""The optimisers against steps written out by hand."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lmlab.model import AttentionOptions, ConfigError, Decoder, DecoderConfig
from lmlab.train import TrainConfig, build_optimizer
from lmlab.train.optim import set_learning_rate

CONFIG = DecoderConfig(
    vocab_size=13, d_model=8, n_layers=2, n_heads=2, d_ff=12, attention=AttentionOptions(qk_norm=True)
)


def random_gradients(model: Decoder, seed: int) -> None:
    for index, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(100 * seed + index)
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize("init", ["scaled", "mup"])
def test_adamw_is_adamw(init: Any) -> None:
    model = Decoder(dataclasses.replace(CONFIG, init=init)).double()
    config = TrainConfig(betas=(0.8, 0.9), weight_decay=0.3)
    optimizer = build_optimizer(model, config)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    m = {name: torch.zeros_like(p) for name, p in expected.items()}
    v = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step, rate in enumerate((0.01, 0.02, 0.005), start=1):
        random_gradients(model, step)
        set_learning_rate(optimizer, rate, config)
        optimizer.step()
        for name, parameter in model.named_parameters():
            hidden = parameter.ndim == 2 and name != "embedding.weight"
            lr = rate * 256 / 8 if init == "mup" and hidden else rate
            g = parameter.grad
            assert g is not None
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.9 * v[name] + 0.1 * g * g
            decay = 0.3 if parameter.ndim == 2 else 0.0
            mean, square = m[name] / (1 - 0.8**step), v[name] / (1 - 0.9**step)
            expected[name] = expected[name] * (1 - lr * decay) - lr * mean / (square.sqrt() + 1e-8)
            assert torch.allclose(parameter.detach(), expected[name], rtol=1e-12, atol=1e-14), name


def test_matrices_decay_and_vectors_do_not() -> None:
    groups = {g["name"]: g for g in build_optimizer(Decoder(CONFIG), TrainConfig()).param_groups}
    assert set(groups) == {"decay", "no_decay"}
    assert groups["no_decay"]["weight_decay"] == 0 and groups["decay"]["weight_decay"] == 0.1
    assert all(name.endswith(("norm.weight", "_gain")) for name in groups["no_decay"]["names"])
    assert len(groups["no_decay"]["names"]) == 2 * 2 + 2 * 2 + 1
    assert len(groups["decay"]["names"]) == 1 + 2 * 4


def blocks_of(name: str, matrix: Tensor | None) -> tuple[Tensor, ...]:
    """The matrices that the model fuses into one."""
    assert matrix is not None
    return matrix.chunk(3 if "qkv" in name else 2 if "gate_up" in name else 1)


def hidden_matrices(model: Decoder) -> dict[str, list[Tensor]]:
    """Each matrix that Muon moves, in its blocks."""
    return {
        name: list(blocks_of(name, parameter.detach().clone()))
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and name != "embedding.weight"
    }


def test_muon_orthogonalises_each_block_and_nothing_else() -> None:
    model = Decoder(CONFIG).double()
    config = TrainConfig(optimizer="muon", muon_lr=0.02, lr=3e-3, weight_decay=0.0)
    optimizer = build_optimizer(model, config)
    before, embedding = hidden_matrices(model), model.embedding.weight.detach().clone()
    random_gradients(model, 1)
    for name, parameter in model.named_parameters():
        # Newton-Schulz in five sweeps brings singular values from 0.1 to 1 of the largest into 0.7 ... 1.2.
        for block in blocks_of(name, parameter.grad) if name in before else ():
            u, s, vh = torch.linalg.svd(block, full_matrices=False)
            block.copy_(u @ torch.diag(torch.linspace(0.3, 1, len(s), dtype=s.dtype)) @ vh)
    set_learning_rate(optimizer, config.lr, config)
    optimizer.step()
    for name, blocks in hidden_matrices(model).items():
        for old, new in zip(before[name], blocks, strict=True):
            scale = 0.02 * math.sqrt(max(1.0, old.shape[0] / old.shape[1]))
            singular = torch.linalg.svdvals((new - old) / scale)
            assert float(singular.min()) > 0.65 and float(singular.max()) < 1.25, name
    moved = model.embedding.weight.detach() - embedding
    assert torch.allclose(moved.abs(), torch.full_like(moved, 3e-3), rtol=1e-5)
    names = {group["name"]: group["names"] for group in optimizer.param_groups}
    assert "layers.0.mixer.qkv.weight[2]" in names["muon"]
    assert "embedding.weight" in names["decay"]
    assert not any("norm" in name or "gain" in name for name in names["muon"])


def test_muon_and_the_schedule_move_in_proportion() -> None:
    config = TrainConfig(optimizer="muon", muon_lr=0.02, lr=3e-3)
    optimizer = build_optimizer(Decoder(CONFIG), config)
    set_learning_rate(optimizer, 1.5e-3, config)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"muon": 0.01, "decay": 1.5e-3, "no_decay": 1.5e-3})


@pytest.mark.bad_input
def test_an_older_torch_has_no_muon_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r'"muon" needs torch >= 2.9'):
        build_optimizer(Decoder(CONFIG), TrainConfig(optimizer="muon"))
