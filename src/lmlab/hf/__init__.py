"""Hugging Face and back: decoders and tokenizers as transformers' own, Llamas in and out, models that read longer
inputs than they were trained on, and trainers with a fused loss.

Importing this room makes transformers' Auto classes know the model type "lmlab".
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.hf.configuration import LMLabConfig as LMLabConfig
    from lmlab.hf.conversion import convert as convert
    from lmlab.hf.extension import as_model as as_model
    from lmlab.hf.extension import extend as extend
    from lmlab.hf.extension import restore as restore
    from lmlab.hf.extension import rotary_of as rotary_of
    from lmlab.hf.llama import from_llama as from_llama
    from lmlab.hf.llama import to_llama as to_llama
    from lmlab.hf.modeling import LMLabForCausalLM as LMLabForCausalLM
    from lmlab.hf.registration import register as register
    from lmlab.hf.tokenizer import save_tokenizer as save_tokenizer
    from lmlab.hf.trainer import FusedLossMixin as FusedLossMixin
    from lmlab.hf.trainer import fused_trainer as fused_trainer

_PLACES = {
    "configuration": ["LMLabConfig"],
    "conversion": ["convert"],
    "extension": ["as_model", "extend", "restore", "rotary_of"],
    "llama": ["from_llama", "to_llama"],
    "modeling": ["LMLabForCausalLM"],
    "registration": ["register"],
    "tokenizer": ["save_tokenizer"],
    "trainer": ["FusedLossMixin", "fused_trainer"],
}

__all__ = [
    "FusedLossMixin",
    "LMLabConfig",
    "LMLabForCausalLM",
    "as_model",
    "convert",
    "extend",
    "from_llama",
    "fused_trainer",
    "register",
    "restore",
    "rotary_of",
    "save_tokenizer",
    "to_llama",
]

__getattr__, __dir__ = door(__name__, _PLACES)

if find_spec("transformers") is not None:
    from lmlab.hf.registration import register as register

    register()
