"""AdamW, or Muon for the hidden matrices with AdamW for the rest, over named groups of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lmlab.model import ConfigError, Decoder
from lmlab.model.config import MUP_BASE_WIDTH
from lmlab.train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimiser of a run. Every group has a "name", the "names" of its parameters and "lr_scale", which
    multiplies the scheduled rate: matrices decay ("decay"), norms and other vectors don't ("no_decay"); under
    init="mup" the hidden matrices ("hidden") run at d_base/d of the rate.

    "muon": hidden matrices go to torch.optim.Muon ("muon"), the fused ones block by block. ConfigError when
    this torch has no Muon.
    """
    groups = _groups(model, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            "optimizer", f'"muon" needs torch >= 2.9, which has torch.optim.Muon; this is {torch.__version__}'
        )
    return MuonAdamW(groups, _blocks(model), config)


def set_learning_rate(optimizer: Optimizer, rate: float, config: TrainConfig) -> None:
    """Put the scheduled rate into every group ("muon": in proportion to muon_lr)."""
    for group in optimizer.param_groups:
        base = rate / config.lr * config.muon_lr if group["name"] == "muon" else rate
        group["lr"] = base * group["lr_scale"]


def _groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    mup = isinstance(model, Decoder) and model.config.init == "mup"
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        vector = parameter.ndim < 2 or name.endswith(".bias")  # a table of biases is no matrix
        hidden = parameter.ndim == 2 and name not in ("embedding.weight", "output.weight")
        if vector:
            kind = "no_decay"
        elif hidden and config.optimizer == "muon":
            kind = "muon"
        elif hidden and mup:
            kind = "hidden"
        else:
            kind = "decay"
        group = groups.setdefault(kind, {"name": kind, "params": [], "names": [], "lr_scale": 1.0})
        group["params"].append(parameter)
        group["names"].append(name)
    if "no_decay" in groups:
        groups["no_decay"]["weight_decay"] = 0.0
    if "hidden" in groups and isinstance(model, Decoder):
        groups["hidden"]["lr_scale"] = MUP_BASE_WIDTH / model.config.d_model
    return list(groups.values())


def _blocks(model: nn.Module) -> dict[str, list[int]]:
    """Rows of each block of the fused matrices: their parts are matrices of their own to Muon."""
    if not isinstance(model, Decoder):
        return {}
    c = model.config
    kv = c.kv_heads * c.head_width
    sizes = {
        "mixer.qkv.weight": [c.n_heads * c.head_width, kv, kv],
        "mlp.gate_up.weight": [c.ff_width, c.ff_width],
    }
    return {
        name: rows
        for name, parameter in model.named_parameters()
        for suffix, rows in sizes.items()
        if name.endswith(suffix) and parameter.shape[0] == sum(rows)
    }


class MuonAdamW(Optimizer):
    """torch.optim.Muon on the group "muon" and AdamW on the others, behind one interface.

    Muon orthogonalises a whole matrix. A fused matrix is handed to it as its blocks: parameters that share
    the matrix's storage, whose gradients are rows of its gradient.
    """

    def __init__(
        self, groups: list[dict[str, Any]], blocks: dict[str, list[int]], config: TrainConfig
    ) -> None:
        muon_group = next((group for group in groups if group["name"] == "muon"), None)
        rest = [group for group in groups if group["name"] != "muon"]
        self._parts: list[tuple[Tensor, list[nn.Parameter]]] = []
        views: list[nn.Parameter] = []
        names: list[str] = []
        for name, parameter in (
            zip(muon_group["names"], muon_group["params"], strict=True) if muon_group else ()
        ):
            rows = blocks.get(name, [parameter.shape[0]])
            parts = [nn.Parameter(part) for part in parameter.detach().split(rows)]
            self._parts.append((parameter, parts))
            views += parts
            names += [f"{name}[{index}]" for index in range(len(parts))] if len(parts) > 1 else [name]
        self.adamw = torch.optim.AdamW(
            rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.muon = torch.optim.Muon(
            [{"name": "muon", "params": views, "names": names, "lr_scale": 1.0}],
            lr=config.muon_lr,
            weight_decay=config.weight_decay,
            adjust_lr_fn="original",
        )
        super().__init__([{"params": views}, *({"params": group["params"]} for group in rest)], {})
        # One list of groups and one table of states: schedules and checkpoints see a single optimiser.
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for parameter, parts in self._parts:
            gradients = (
                None if parameter.grad is None else parameter.grad.split([len(part) for part in parts])
            )
            for index, part in enumerate(parts):
                part.grad = None if gradients is None else gradients[index]
        self.muon.step()
        self.adamw.step()
        self.state.update(self.muon.state)
        self.state.update(self.adamw.state)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.adamw.zero_grad(set_to_none)
        for parameter, parts in self._parts:
            for part in parts:
                part.grad = None
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def restore(self) -> None:
        """Hand the states in `self.state` to the two optimisers (after a checkpoint was read)."""
        for inner in (self.muon, self.adamw):
            for group in inner.param_groups:
                for parameter in group["params"]:
                    if parameter in self.state:
                        inner.state[parameter] = self.state[parameter]
