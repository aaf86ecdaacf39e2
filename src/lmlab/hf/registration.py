"""The classes of `lmlab` in transformers' Auto classes, under the model type "lmlab"."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from lmlab.hf.configuration import LMLabConfig
from lmlab.hf.modeling import LMLabForCausalLM, LMLabModel


def register() -> None:
    """Make AutoConfig, AutoModel, AutoModelForCausalLM and AutoTokenizer know "lmlab". May be called again.

    Importing `lmlab.hf` has called it already."""
    AutoConfig.register(LMLabConfig.model_type, LMLabConfig, exist_ok=True)
    AutoModel.register(LMLabConfig, LMLabModel, exist_ok=True)
    AutoModelForCausalLM.register(LMLabConfig, LMLabForCausalLM, exist_ok=True)
    AutoTokenizer.register(LMLabConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
