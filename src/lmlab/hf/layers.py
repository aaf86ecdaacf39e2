"""Which modules of a Hugging Face model rotate and attend, and how: found by watching two short forwards.

Both forwards run with an attention function that notes what it is given and returns zeros, so that hidden
states don't depend on positions. In the first one cos = 1, sin = 0: queries come un-rotated. In the second
cos = 0, sin = c, another c for each rotary module and layer type: a rotated pair (x, y) comes as (−c y, c x),
which tells the rotary dims, their pairing, and which rotary a layer listens to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from lmlab.hf.configuration import LMLabConfig
from lmlab.rope import DynamicNTK, LongRoPE, Method, Rotary

_PROBE = "lmlab-probe"
_SEEN = "_lmlab_seen"


@dataclass(frozen=True)
class Layer:
    """An attention module: its rotary (None: no positions), its own window (None: full attention), and the
    length-dependent method that the model itself was shipped with."""

    module: nn.Module
    rotary: Rotary | None
    window: int | None
    native: Method | None


@dataclass(frozen=True)
class Plan:
    """What `extend` changes: attention modules and rotary modules with the width of their cos."""

    layers: tuple[Layer, ...]
    rotaries: tuple[tuple[nn.Module, int], ...]


@dataclass(frozen=True)
class _Source:
    """One pair (cos, sin) that the model computes, and the c it is marked by."""

    module: nn.Module
    layer_type: str | None
    width: int
    mark: float


def find_layers(model: PreTrainedModel, train_length: int | None) -> Plan:
    """The plan for a model; raises NotImplementedError for what `attend` can't compute. Leaves no trace."""
    _check_model(model)
    sources: dict[tuple[int, str | None], _Source] = {}
    plain = _watch(model, sources, marked=False)
    turned = _watch(model, sources, marked=True)
    if not plain:
        raise NotImplementedError(
            f"{type(model).__name__} has no attention layer that calls a registered attention function: "
            "nothing can be extended"
        )
    layers = []
    for module, (query, value, options) in plain.items():
        _check_layer(module, query, value, options)
        found = _pairing(module, query, turned[module][0], list(sources.values()))
        rotary, native = (None, None) if found is None else _rotary(*found, train_length)
        layers.append(Layer(module, rotary, options.get("sliding_window"), native))
    if all(layer.rotary is None for layer in layers):
        raise ValueError(f"{type(model).__name__} has no rotary positions: nothing can be extended")
    widths = {source.module: source.width for source in sources.values()}
    return Plan(tuple(layers), tuple(widths.items()))


def _check_model(model: PreTrainedModel) -> None:
    config = model.config
    name = type(model).__name__
    if isinstance(config, LMLabConfig):
        raise ValueError(
            f"{name} holds a decoder of lmlab, which takes extensions itself: set position.extension before "
            'it is made, config.lmlab["position"]["extension"] = {"method": "rerope", "window": 1024} and '
            "from_pretrained(path, config=config); or for one call of its decoder, "
            "decoder(ids, extension=ReRoPE(window=1024))"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(f"{name} is an encoder-decoder: extend takes decoder-only models")
    configs = {id(m.config) for m in model.modules() if isinstance(m, PreTrainedModel)}
    if len(configs) > 1:
        raise NotImplementedError(
            f"{name} is made of several models: extend its language model alone, for example "
            "extend(model.model.language_model, …)"
        )
    if getattr(config, "output_attentions", False):
        raise NotImplementedError(
            "an extended model can't give attention weights: set output_attentions=False"
        )
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        raise NotImplementedError(f"{name} has chunked attention layers, which attend does not know")
    if not any(type(m).__name__.endswith("RotaryEmbedding") for m in model.modules()):
        raise ValueError(f"{name} has no rotary positions: nothing can be extended")


def _check_layer(module: nn.Module, query: Tensor, value: Tensor, options: dict[str, Any]) -> None:
    name = type(module).__name__
    if query.shape[-1] != value.shape[-1]:
        raise NotImplementedError(f"{name}: latent attention (keys wider than values) is not supported")
    for option, what in (("softcap", "soft-capped logits"), ("s_aux", "attention sinks"), ("sinks", "sinks")):
        if options.get(option) is not None:
            raise NotImplementedError(f"{name}: {what} are not supported")
    if getattr(module, "is_causal", True) is False:
        raise NotImplementedError(f"{name}: attention that is not causal is not supported")
    dropout = getattr(module, "attention_dropout", 0.0)
    if module.training and isinstance(dropout, float) and dropout > 0:
        raise NotImplementedError(
            f"{name}: attention dropout {dropout} in training is not supported; call model.eval() or set it to 0"
        )


def _watch(
    model: PreTrainedModel, sources: dict[tuple[int, str | None], _Source], *, marked: bool
) -> dict[nn.Module, tuple[Tensor, Tensor, dict[str, Any]]]:
    """A forward of four tokens: the queries, values and options of each attention module that was called."""
    ids = torch.arange(1, 5, device=model.device).remainder(model.get_input_embeddings().num_embeddings)[None]
    modules = list(model.modules())
    with _evaluating(model), _rotaries_replaced(modules, sources, marked), _implementation(model, _PROBE):
        for module in modules:
            module.__dict__[_SEEN] = []
        try:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
            return {m: m.__dict__[_SEEN][0] for m in modules if m.__dict__[_SEEN]}
        finally:
            for module in modules:
                del module.__dict__[_SEEN]


def _note(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    module.__dict__[_SEEN].append((query, value, options))
    b, h, t, _ = query.shape
    return value.new_zeros(b, t, h, value.shape[-1]), None


def _no_mask(**kwargs: Any) -> None:
    return None


AttentionInterface.register(_PROBE, _note)
AttentionMaskInterface.register(_PROBE, _no_mask)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _rotaries_replaced(
    modules: list[nn.Module], sources: dict[tuple[int, str | None], _Source], marked: bool
) -> Iterator[None]:
    replaced = [
        m for m in modules if type(m).__name__.endswith("RotaryEmbedding") and "forward" not in m.__dict__
    ]
    for module in replaced:
        module.forward = _marking(module, module.forward, sources, marked)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _marking(
    module: nn.Module,
    forward: Callable[..., Any],
    sources: dict[tuple[int, str | None], _Source],
    marked: bool,
) -> Callable[..., Any]:
    def constant(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer_type = next((x for x in (*args, *kwargs.values()) if isinstance(x, str)), None)
        made = forward(*args, **kwargs)
        if not (isinstance(made, tuple) and len(made) == 2 and made[0].shape == made[1].shape):
            raise NotImplementedError(f"{type(module).__name__} does not give (cos, sin)")
        cos = made[0]
        source = sources.setdefault(
            (id(module), layer_type), _Source(module, layer_type, cos.shape[-1], 1.0 + len(sources))
        )
        mark = source.mark if marked else 0.0
        return torch.full_like(cos, 0.0 if marked else 1.0), torch.full_like(cos, mark)

    return constant


def _pairing(
    module: nn.Module, plain: Tensor, turned: Tensor, sources: list[_Source]
) -> tuple[_Source, int, bool] | None:
    """The source that a layer listens to, its rotary dims and whether pairs are interleaved; None: no rotary."""
    if not bool(plain.count_nonzero()):
        raise NotImplementedError(
            f"{type(module).__name__} has queries of zero: its positions can't be found"
        )
    moved = (plain != turned).any(dim=2).any(dim=1).any(dim=0)
    if not bool(moved.any()):
        return None
    dims = int(moved.nonzero().max()) + 1
    x, y = plain[..., :dims].double(), turned[..., :dims].double()
    half = dims // 2
    for source in sources:
        expected = torch.cat((-x[..., half:], x[..., :half]), dim=-1) * source.mark
        interleaved = torch.stack((-x[..., 1::2], x[..., 0 : 2 * half : 2]), dim=-1).flatten(-2) * source.mark
        for pairs, candidate in ((False, expected), (True, interleaved)):
            if dims % 2 == 0 and torch.allclose(y, candidate, rtol=0.02, atol=1e-6 * float(x.abs().max())):
                return source, dims, pairs
    raise NotImplementedError(
        f"{type(module).__name__} rotates its queries in a way that attend does not know"
    )


def _rotary(
    source: _Source, dims: int, interleaved: bool, train_length: int | None
) -> tuple[Rotary, Method | None]:
    """How the layer was trained, and the length-dependent method that it was shipped with."""
    module, kind = source.module, source.layer_type
    config: Any = module.config
    parameters = dict(config.rope_parameters[kind] if kind else config.rope_parameters)
    rope_type = parameters.get("rope_type", "default")
    base = float(parameters.get("rope_theta", 10000.0))
    trained = int(config.max_position_embeddings)
    native: Method | None = None
    if rope_type == "dynamic":
        native = DynamicNTK(float(parameters["factor"]))
    elif rope_type == "longrope":
        original = int(parameters.get("original_max_position_embeddings") or trained)
        native = LongRoPE(
            tuple(parameters["short_factor"]),
            tuple(parameters["long_factor"]),
            factor=float(parameters.get("factor") or trained / original),
            attention_factor=parameters.get("attention_factor"),
        )
        trained = original
    rotary = Rotary(
        dims,
        base=base,
        train_length=trained if train_length is None else train_length,
        interleaved=interleaved,
    )
    if native is not None:
        return rotary, native
    prefix = f"{kind}_" if kind else ""
    angles: Tensor = getattr(module, f"{prefix}inv_freq")
    if angles.dtype not in (torch.float32, torch.float64):  # model.half() rounds them: compute them anew
        angles = getattr(type(module)(config), f"{prefix}inv_freq")
    angles = angles.detach().double().cpu()
    factor = float(getattr(module, f"{prefix}attention_scaling", 1.0))
    if factor == 1 and torch.allclose(
        angles, torch.tensor(rotary.angles(), dtype=torch.float64), rtol=1e-5, atol=0
    ):
        return rotary, None
    return Rotary(
        dims,
        base=base,
        train_length=rotary.train_length,
        interleaved=interleaved,
        inv_freq=tuple(angles.tolist()),
        attention_factor=factor,
    ), None
