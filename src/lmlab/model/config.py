"""What a decoder is made of, as frozen dataclasses of plain values. No torch is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.attention.options import VQOptions
from lmlab.model.fields import check_fields, from_plain, require, to_plain
from lmlab.recurrent.options import RecurrentOptions

SCALE_RULES = ("inv-sqrt", "mup", "log-n", "gradient", "learned", "ssmax")
MUP_BASE_WIDTH = 256


@dataclass(frozen=True)
class AttentionOptions:
    """Options of the softmax attention layers.

    qk_norm: RMS norm of q and k over the head's width, each with a learned gain, before rotation.
    scale: None (1/sqrt(d_head); 1 under key_norm and cosa; 1/d_head under init="mup"), a number (the
    multiplier of q·k), the name of a rule of `lmlab.attention` ("inv-sqrt", "mup", "log-n", "gradient",
    "learned", "ssmax") or a table `{"rule": name, ...}` with that rule's arguments.
    window: attend to the last `window` positions only; such a layer keeps it whatever the extension.
    """

    qk_norm: bool = False
    scale: str | float | dict[str, Any] | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.window is None or self.window >= 1, "window", "an integer >= 1 or left out", self.window)
        rule = self.scale.get("rule") if isinstance(self.scale, dict) else self.scale
        named = isinstance(self.scale, (dict, str))
        accepted = f'a number, a rule ({", ".join(SCALE_RULES)}) or a table {{"rule": name, ...}}'
        require(not named or rule in SCALE_RULES, "scale", accepted, self.scale)


@dataclass(frozen=True)
class PositionOptions:
    """How attention layers know positions (`lmlab.rope`).

    kind: "rope", "nope" (none) or "alibi". base: of the rotary frequencies. dim: rotated dimensions of a
    head (None: all), even. key_norm, cosa: keys, or queries and keys, at unit length. extension: the length
    extension used at inference: None, a table `{"method": "rerope", "window": 128}` or a list of tables
    (the objects of `lmlab.rope` are taken too).
    """

    kind: Literal["rope", "nope", "alibi"] = "rope"
    base: float = 1e4
    dim: int | None = None
    key_norm: bool = False
    cosa: bool = False
    extension: Any = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.base > 1, "base", "a number > 1", self.base)
        require(
            self.dim is None or (self.dim >= 2 and self.dim % 2 == 0), "dim", "an even integer >= 2", self.dim
        )
        require(not (self.key_norm and self.cosa), "cosa", "false when key_norm is true", self.cosa)


@dataclass(frozen=True)
class DecoderConfig:
    """The whole decoder: ids [b t] -> logits [b t vocab_size].

    mixer is a name or a pattern of names that is repeated over the layers: "attention", "vq", "recurrent", or
    a plug-in. max_length is the length trained on, not a limit. `from_dict(to_dict(config)) == config`.
    """

    vocab_size: int
    d_model: int = 192
    n_layers: int = 6
    n_heads: int = 6
    n_kv_heads: int | None = None
    d_head: int | None = None
    d_ff: int | None = None
    max_length: int = 256
    mixer: str | tuple[str, ...] = "attention"
    hybrid: Literal["none", "hwfa", "hwfa2"] = "none"
    attention: AttentionOptions = AttentionOptions()
    position: PositionOptions = PositionOptions()
    vq: VQOptions = VQOptions()
    recurrent: RecurrentOptions = RecurrentOptions()
    tie_embeddings: bool = True
    norm_eps: float = 1e-5
    init: Literal["scaled", "mup"] = "scaled"

    def __post_init__(self) -> None:
        check_fields(self)
        for key in ("vocab_size", "d_model", "n_layers", "n_heads", "max_length"):
            require(getattr(self, key) >= 1, key, "an integer >= 1", getattr(self, key))
        for key in ("n_kv_heads", "d_head", "d_ff"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, "an integer >= 1 or left out", value)
        require(
            self.n_heads % self.kv_heads == 0,
            "n_kv_heads",
            f"a divisor of n_heads = {self.n_heads}",
            self.n_kv_heads,
        )
        if self.d_head is None:
            require(
                self.d_model % self.n_heads == 0,
                "n_heads",
                f"a divisor of d_model = {self.d_model} (or give d_head)",
                self.n_heads,
            )
            require(
                self.head_width % 2 == 0,
                "n_heads",
                f"such that d_model // n_heads is even (d_model = {self.d_model})",
                self.n_heads,
            )
        require(self.head_width % 2 == 0, "d_head", "even", self.d_head)
        dim = self.position.dim
        require(
            dim is None or dim <= self.head_width,
            "position.dim",
            f"at most the head's width {self.head_width}",
            dim,
        )
        require(self.norm_eps >= 0, "norm_eps", "a number >= 0", self.norm_eps)
        require(len(self.mixer) > 0, "mixer", "a name or a list of names", self.mixer)
        require(
            self.hybrid == "none" or self.attention.window is None,
            "attention.window",
            f'left out when hybrid = "{self.hybrid}"',
            self.attention.window,
        )
        require(
            self.hybrid == "none" or self.position.kind == "rope",
            "hybrid",
            '"none" unless position.kind = "rope"',
            self.hybrid,
        )

    @property
    def kv_heads(self) -> int:
        """Key/value heads (h_kv)."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_width(self) -> int:
        """Width of a head (e)."""
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def ff_width(self) -> int:
        """Width of the feed-forward layer (f): 8d/3 rounded up to a multiple of 64 unless given."""
        return -(-8 * self.d_model // (3 * 64)) * 64 if self.d_ff is None else self.d_ff

    @property
    def layer_mixers(self) -> tuple[str, ...]:
        """The mixer's name for each layer."""
        pattern = (self.mixer,) if isinstance(self.mixer, str) else self.mixer
        return tuple(pattern[layer % len(pattern)] for layer in range(self.n_layers))

    @property
    def output_scale(self) -> float:
        """The factor on the last hidden state: d_base/d_model under "mup", else 1."""
        return MUP_BASE_WIDTH / self.d_model if self.init == "mup" else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = to_plain(self)
        plain["position"]["extension"] = _extension_tables(self.position.extension)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecoderConfig:
        """From plain values; an unknown key or a wrong value is a ConfigError that names it."""
        return from_plain(cls, values)


def _extension_tables(extension: Any) -> Any:
    """Methods of `lmlab.rope` as the tables that a recipe holds."""
    if extension is None or isinstance(extension, Mapping):
        return extension
    methods = getattr(extension, "methods", extension)
    if isinstance(methods, (list, tuple)):
        return [_extension_tables(method) for method in methods]
    return {"method": type(extension).__name__.lower(), **to_plain(extension)}
