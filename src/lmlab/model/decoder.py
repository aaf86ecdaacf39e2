"""The decoder, top to bottom: ids -> embedding -> L x (mixer, SwiGLU) -> norm -> logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmlab._linear import Linear, linear
from lmlab.model import decode
from lmlab.model.attention import CONFIGURED, Attention
from lmlab.model.checkpoint import load_decoder, save_decoder
from lmlab.model.config import DecoderConfig
from lmlab.model.initialise import initialise, stream
from lmlab.model.mixers import MixerFactory, build_mixer
from lmlab.model.ops import add_norm, matmul_dtype, swiglu
from lmlab.model.positions import RotaryTable, layer_positions
from lmlab.model.state import DecoderState


class Hidden(NamedTuple):
    """h [b t d] after the last norm (logits = h · headᵀ), the state that was passed in, moved, and the sum of
    the layers' auxiliary losses."""

    h: Tensor
    state: DecoderState | None
    aux: Tensor


class RMSNorm(nn.Module):
    """gain ⊙ x / sqrt(mean(x²) + eps)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "... d"], delta: Float[Tensor, "... d"] | None, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "... d"], Float[Tensor, "... d"]]:
        """(x + delta, its norm in `dtype`)."""
        return add_norm(x, delta, self.weight, self.eps, dtype)


class SwiGLU(nn.Module):
    """W_down( SiLU(W_gate x) ⊙ W_up x ), gate and up in one matrix [2f d]."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * inner, bias=False)
        self.down = Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        down: Tensor = self.down(swiglu(self.gate_up(x)))
        return down


class Block(nn.Module):
    """a = x + Mix(RMS(x)); a + SwiGLU(RMS(a)).

    x comes as a sum that is still to be made, x + delta, and goes out as one: each sum is made in the same pass
    as the norm that follows it.
    """

    def __init__(self, config: DecoderConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = mixer
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.ff_width)

    def forward(
        self, x: Float[Tensor, "b t d"], delta: Float[Tensor, "b t d"] | None, state: Any, extension: Any
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"], Any, Tensor | None]:
        if isinstance(self.mixer, Attention):
            x, normed = self.mixer_norm(x, delta, matmul_dtype(x))
            mixed, state, aux = self.mixer(normed, state, extension=extension)
        else:
            x, normed = self.mixer_norm(x, delta, x.dtype)
            mixed, state, aux = self.mixer(normed, state)
        a, normed = self.mlp_norm(x, mixed, matmul_dtype(x))
        return a, self.mlp(normed), state, aux


class Decoder(nn.Module):
    """A decoder-only language model.

    seed: of the first weights. mixers: plug-ins by name, (config, layer) -> Mixer; those installed under the
    entry-point group "lmlab.mixers" are found by themselves. Raises ConfigError for an unknown mixer.
    """

    def __init__(
        self, config: DecoderConfig, *, seed: int = 0, mixers: Mapping[str, MixerFactory] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        rotated = config.head_width if config.position.dim is None else config.position.dim
        table = RotaryTable(rotated, config.position.base)
        plans = layer_positions(config)
        # Constructors draw from torch's global generator, and a room's own parameters (cells, codebooks) keep
        # what they drew: each layer gets a stream of its own, and the generator is put back.
        with torch.random.fork_rng(devices=[]):
            self.embedding = nn.Embedding(config.vocab_size, config.d_model)
            blocks = []
            for layer in range(config.n_layers):
                torch.manual_seed(stream(seed, f"layers.{layer}"))
                blocks.append(Block(config, build_mixer(config, layer, plans[layer], table, mixers or {})))
            self.layers = nn.ModuleList(blocks)
            self.norm = RMSNorm(config.d_model, config.norm_eps)
            self.output = (
                None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
            )
        initialise(self, config, seed)

    @property
    def head(self) -> Float[Tensor, "v d"]:
        """The output matrix; the embedding itself when tied."""
        return self.embedding.weight if self.output is None else self.output.weight

    @property
    def blocks(self) -> list[Block]:
        """The layers, first to last."""
        return cast(list[Block], list(self.layers))

    def forward(self, ids: Int[Tensor, "b t"], *, extension: Any = CONFIGURED) -> Float[Tensor, "b t v"]:
        """Logits. extension: of `lmlab.rope`, for the attention layers; None: plain; left out: the
        configuration's. Raises ValueError for ids that aren't [b t], IndexError for ids outside [0, v)."""
        h = self._run(self._checked(ids), None, extension).h
        return linear(h, self.head)

    def hidden(self, ids: Int[Tensor, "b t"], state: DecoderState | None = None) -> Hidden:
        """The last hidden states, for a loss that is fused with the head; a given state is moved in place."""
        return self._run(self._checked(ids), state, CONFIGURED)

    def init_state(self, batch_size: int, max_length: int | None = None) -> DecoderState:
        """An empty state. max_length: tokens to come in all; the cache is allocated once for them, and
        extensions that depend on the length take it as theirs. None: room for the trained length, grows."""
        capacity: Any = max_length
        layers = []
        for block in self.blocks:
            mixer: Any = block.mixer
            if not isinstance(mixer, Attention) and max_length is None:
                capacity = self.config.max_length
            layers.append(mixer.init_state(batch_size, capacity))
        return DecoderState(layers)

    def step(self, ids: Int[Tensor, "b t"], state: DecoderState) -> Float[Tensor, "b v"]:
        """Logits of the last position; `state` moves in place by t. Any split of a sequence into steps gives
        what `forward` gives."""
        ids = self._checked(ids)
        if decode.possible(self, ids, state):
            return decode.decode(self, ids, state)
        h = self._run(ids, state, CONFIGURED).h
        return linear(h[:, -1], self.head)

    def num_parameters(self, embeddings: bool = True) -> int:
        """How many numbers are trained; without the embedding (and an untied head) if embeddings is False."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if embeddings:
            return total
        return (
            total - self.embedding.weight.numel() - (0 if self.output is None else self.output.weight.numel())
        )

    def flops_per_token(self, length: int) -> int:
        """Floating-point operations of one token's forward pass in a sequence of `length` (training: 3x)."""
        total = 2 * self.head.numel()
        for block in self.blocks:
            mixer: Any = block.mixer
            mlp = block.mlp.gate_up.weight.numel() + block.mlp.down.weight.numel()
            total += int(mixer.flops_per_token(length)) + 2 * mlp
        return total

    def save(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into the directory `path`."""
        save_decoder(self, Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        mixers: Mapping[str, MixerFactory] | None = None,
    ) -> Decoder:
        """Read what `save` wrote. dtype None: that of the file. Raises CheckpointError, which names the file,
        key or tensor that doesn't fit."""
        model: Decoder = load_decoder(
            lambda config: cls(config, mixers=mixers), Path(path), device=torch.device(device), dtype=dtype
        )
        return model

    def _run(self, ids: Tensor, state: DecoderState | None, extension: Any) -> Hidden:
        x, delta = self.embedding(ids), None
        total = x.new_zeros(())
        for index, block in enumerate(self.blocks):
            layer_state = None if state is None else state.layers[index]
            x, delta, layer_state, aux = block(x, delta, layer_state, extension)
            if state is not None:
                state.layers[index] = layer_state
            if aux is not None:
                total = total + aux
        if state is not None:
            state.position += ids.shape[1]
        _, h = self.norm(x, delta, matmul_dtype(x))
        if self.config.output_scale != 1.0:
            h = h * self.config.output_scale
        return Hidden(h, state, total)

    def _checked(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.config.vocab_size)
        return ids


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """ValueError or IndexError unless ids is a non-empty integer [b t] within [0, vocab_size)."""
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(
            f"ids must be [batch, time] with time >= 1, got shape {list(ids.shape)}; one row: ids[None]"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be integers (int64), got {ids.dtype}")
    if ids.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = (int(end) for end in torch.aminmax(ids))
    if low < 0 or high >= vocab_size:
        raise IndexError(f"ids must lie in [0, {vocab_size}), got values from {low} to {high}")
