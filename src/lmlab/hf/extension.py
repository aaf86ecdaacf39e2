"""`extend`: a Hugging Face model reads inputs longer than those of its training; `restore` takes it back."""

import copy
from collections.abc import Callable
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lmlab.hf.backend import NAME, SETTING, LayerSetting
from lmlab.hf.layers import Layer, Plan, find_layers
from lmlab.rope import Extension, Rotary, Window, as_extension, warn_length
from lmlab.rope.frequency import FrequencyMethod

_STATE = "_lmlab_extended"  # attributes of the model
_OWNS_CONFIG = "_lmlab_owns_config"


class _State:
    """What is in force on a model, and what `restore` needs."""

    def __init__(self, plan: Plan, implementation: str) -> None:
        self.plan, self.implementation = plan, implementation


def extend(
    model: Any, extension: Any = None, *, train_length: int | None = None, length: int | None = None
) -> Any:
    """Puts a decoder-only rotary model under an extension, in place, and returns it.

        extend(model, ReRoPE(window=1024) | LogN())
        model.generate(ids, max_new_tokens=200)
        restore(model)

    extension: of `lmlab.rope`; None is the model as trained. Layers with a sliding window keep it, layers
    without rotary positions take the logit methods only. train_length: T₀, None reads the config. length: n for
    methods that follow the length, fixed for a whole turn: prompt + new tokens. An extended model that is
    extended again gets the new extension instead.
    Weights and buffers are not touched; the model gets a copy of its config for itself. To see that something
    changed: `rotary_of(model)`, and logits beyond the trained length.
    Raises TypeError, ValueError or NotImplementedError, before anything is changed, for what is not a rotary
    decoder or has what `attend` can't compute; right padding and other masks are refused at the call.
    """
    chosen = as_extension(extension)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, got {type(model).__name__}")
    state: _State | None = model.__dict__.get(_STATE)
    if state is not None:
        _remove(model, state)  # the model is watched as it was; an error puts the old extension back
    before = _settings(model)
    try:
        plan = find_layers(model, train_length)
        settings = [_setting(plan, layer, chosen, length) for layer in plan.layers]
        _check(plan, chosen)
        warn_length(chosen, _first_rotary(plan).train_length, length)
    except Exception:
        if state is not None:
            _install(model, state.plan, before)
        raise
    _install(model, plan, settings)
    return model


def restore(model: Any) -> Any:
    """Takes `extend` back, bit for bit, and returns the model; a model that isn't extended stays as it is."""
    state: _State | None = model.__dict__.get(_STATE)
    if state is not None:
        _remove(model, state)
        for module in model.modules():
            module.__dict__.pop(SETTING, None)
    return model


def rotary_of(model: Any, train_length: int | None = None) -> Rotary:
    """How the model's first full attention layer with positions was trained."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, got {type(model).__name__}")
    state: _State | None = model.__dict__.get(_STATE)
    if state is None:
        return _first_rotary(find_layers(model, train_length))
    rotary = _first_rotary(state.plan)
    if train_length is None:
        return rotary
    return Rotary(**{**vars(rotary), "train_length": train_length})


def as_model(model: Any, *, train_length: int | None = None) -> Callable[..., Tensor]:
    """f(ids [b t], extension=None) -> logits [b t v], for the functions of `lmlab.evaluate`.

    Every call runs under its extension and leaves the model as it found it."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, got {type(model).__name__}")
    state: _State | None = model.__dict__.get(_STATE)
    plan = state.plan if state is not None and train_length is None else None
    if plan is None:
        kept = _settings(model)
        if state is not None:
            _remove(model, state)
        try:
            plan = find_layers(model, train_length)
        finally:
            if state is not None:
                _install(model, state.plan, kept)
    found = plan

    def logits(ids: Int[Tensor, "b t"], extension: Any = None) -> Tensor:
        chosen = as_extension(extension)
        settings = [_setting(found, layer, chosen, None) for layer in found.layers]
        _check(found, chosen)
        before, previous = model.__dict__.get(_STATE), _settings(model)
        if before is not None:
            _remove(model, before)
        _install(model, found, settings)
        try:
            out: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
        finally:
            restore(model)
            if before is not None:
                _install(model, before.plan, previous)
        return out

    return logits


def _setting(plan: Plan, layer: Layer, extension: Extension, length: int | None) -> LayerSetting:
    native = () if layer.native is None else (layer.native,)
    if layer.window is not None:  # its cache drops old keys, only relative distance is used there
        return LayerSetting(layer.rotary, as_extension((Window(layer.window), *native)), length)
    if layer.rotary is None:
        return LayerSetting(None, extension.without_rotary(_first_rotary(plan).train_length), length)
    if extension.find(FrequencyMethod) is None:
        extension = as_extension((extension, *native))
    return LayerSetting(layer.rotary, extension, length)


def _check(plan: Plan, extension: Extension) -> None:
    """Raises where the extension reaches no layer."""
    if extension.methods and not any(layer.window is None and layer.rotary for layer in plan.layers):
        raise ValueError(
            f"{extension} would change nothing: every attention layer with positions has a sliding window"
        )


def _first_rotary(plan: Plan) -> Rotary:
    ordered = sorted(plan.layers, key=lambda layer: layer.window is not None)
    return next(layer.rotary for layer in ordered if layer.rotary is not None)


def _settings(model: nn.Module) -> list[LayerSetting]:
    return [m.__dict__[SETTING] for m in model.modules() if SETTING in m.__dict__]


def _install(model: PreTrainedModel, plan: Plan, settings: list[LayerSetting]) -> None:
    _own_config(model)
    for layer, setting in zip(plan.layers, settings, strict=True):
        layer.module.__dict__[SETTING] = setting
    for module, width in plan.rotaries:
        module.forward = _unrotated(width)
    model.__dict__[_STATE] = _State(plan, model.config._attn_implementation)
    model.set_attn_implementation(NAME)


def _remove(model: PreTrainedModel, state: _State) -> None:
    model.set_attn_implementation(state.implementation)
    for module, _ in state.plan.rotaries:
        del module.forward
    del model.__dict__[_STATE]


def _unrotated(width: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """Stands for a rotary module's forward: cos = 1 and sin = 0."""

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        shape = (*position_ids.shape, width)
        return x.new_ones(shape), x.new_zeros(shape)

    return forward


def _own_config(model: PreTrainedModel) -> None:
    """Models may share one config object, and the attention function is chosen in it: the model gets its own."""
    if model.__dict__.get(_OWNS_CONFIG):
        return
    memo: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            module.config = copy.deepcopy(config, memo)
    model.__dict__[_OWNS_CONFIG] = True
