"""What mixes positions in a layer: the three built-in mixers, and plug-ins by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmlab._linear import Linear
from lmlab.model.attention import Attention, attention_scale_of
from lmlab.model.config import DecoderConfig
from lmlab.model.errors import ConfigError
from lmlab.model.positions import LayerPosition, RotaryTable
from lmlab.model.state import RecurrentState

BUILT_IN = ("attention", "vq", "recurrent")
ENTRY_POINTS = "lmlab.mixers"


class Mixer(Protocol):
    """A module that mixes positions causally. Its state has `.nbytes` and `.select(rows)`."""

    def forward(
        self, x: Float[Tensor, "b t d"], state: Any | None = None
    ) -> tuple[Float[Tensor, "b t d"], Any | None, Tensor | None]:
        """(mixed, state, auxiliary loss or None); a given state is moved by t positions."""

    def init_state(self, batch_size: int, max_length: int) -> Any:
        """The state before the first position."""

    def flops_per_token(self, length: int) -> int:
        """Forward, averaged over a sequence of `length`."""


MixerFactory = Callable[[DecoderConfig, int], nn.Module]
"""(config, layer index) -> a Mixer."""


def build_mixer(
    config: DecoderConfig,
    layer: int,
    plan: LayerPosition | None,
    table: RotaryTable,
    plug_ins: Mapping[str, MixerFactory],
) -> nn.Module:
    """The mixer of a layer, by the name in `config.mixer`; `plug_ins` come before installed entry points."""
    name = config.layer_mixers[layer]
    if name in plug_ins:
        return plug_ins[name](config, layer)
    if name == "attention":
        assert plan is not None
        return Attention(config, layer, plan, table)
    if name == "vq":
        return _vq(config)
    if name == "recurrent":
        return RecurrentMixer(config)
    installed = entry_points(group=ENTRY_POINTS)
    if name in installed.names:
        factory: MixerFactory = installed[name].load()
        return factory(config, layer)
    known = sorted({*BUILT_IN, *plug_ins, *installed.names})
    raise ConfigError(
        "mixer",
        f"must be made of known mixers ({', '.join(known)}), got {name!r}; a plug-in goes to "
        f"Decoder(config, mixers={{{name!r}: factory}})",
    )


def _vq(config: DecoderConfig) -> nn.Module:
    from lmlab.attention import VQAttention

    scale = None if config.attention.scale is None and config.init != "mup" else attention_scale_of(config)
    module: nn.Module = VQAttention(
        config.d_model,
        config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_width,
        options=config.vq,
        scale=scale,
    )
    return module


class RecurrentMixer(nn.Module):
    """A cell of `lmlab.recurrent` of width `state` on x, then an output projection [d, state].

    `method` and `window` are for whole sequences (`lmlab.recurrent.solve`); a state is moved by the cell itself.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        options = config.recurrent
        self.width = config.d_model if options.state is None else options.state
        self.kind = options.cell
        self.method, self.window = options.method, options.window
        self.cell = _cell(options.cell, config.d_model, self.width)
        self.out = Linear(self.width, config.d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "b t d"], state: RecurrentState | None = None
    ) -> tuple[Float[Tensor, "b t d"], RecurrentState | None, None]:
        with torch.autocast(x.device.type, enabled=False):  # half precision would round every state
            y = self._mixed(x.to(self.out.weight.dtype), state)
        return self.out(y), state, None

    def _mixed(self, x: Float[Tensor, "b t d"], state: RecurrentState | None) -> Float[Tensor, "b t n"]:
        if state is None and (self.method, self.window) != ("auto", None):
            return self._solved(x)
        y: Tensor
        y, hidden = self.cell(x, None if state is None else state.hidden)
        if state is not None:
            state.hidden = hidden
        return y

    def _solved(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t n"]:
        from lmlab.recurrent import solve

        tol = 1e-12 if x.dtype == torch.float64 else None  # so that steps and whole passes agree
        states = solve(self.cell, x, method=self.method, window=self.window, tol=tol).states
        if self.kind == "lru":
            outputs: Tensor = self.cell.read_out(states, x)  # type: ignore[operator]
            return outputs
        return states[..., : self.width]

    def init_state(self, batch_size: int, max_length: int) -> RecurrentState:
        parts = 2 if self.kind in ("lstm", "diagonal-lstm", "lru") else 1  # h and c; real and imaginary
        return RecurrentState(None, batch_size * parts * self.width * self.out.weight.element_size())

    def flops_per_token(self, length: int) -> int:
        return 2 * sum(parameter.numel() for parameter in self.parameters())


def _cell(name: str, inputs: int, width: int) -> nn.Module:
    from lmlab import recurrent

    classes: dict[str, Any] = {
        "gru": "GRU",
        "lstm": "LSTM",
        "rnn": "RNN",
        "diagonal-gru": "DiagonalGRU",
        "diagonal-lstm": "DiagonalLSTM",
        "diagonal-rnn": "DiagonalRNN",
        "mingru": "MinGRU",
        "lru": "LRU",
    }
    module: nn.Module = getattr(recurrent, classes[name])(inputs, width, batch_first=True)
    return module
