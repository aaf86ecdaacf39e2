"""A tokenizer's files as AutoTokenizer reads them."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from lmlab.tokenize import Tokenizer

OWN_FILE = "lmlab_tokenizer.json"  # the tokenizer itself, for the way back


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into the directory `path`, and the tokenizer's own file
    beside them. `AutoTokenizer.from_pretrained(path)` gives the ids of `Tokenizer.encode` (the best path;
    its own sampling draws from another law). "<eos>", where there is one, ends, begins and pads texts."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    ends = {}
    if "<eos>" in tokenizer.special_tokens:
        ends = {"eos_token": "<eos>", "bos_token": "<eos>", "pad_token": "<eos>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.to_huggingface(),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **ends,
    )
    fast.save_pretrained(path)
    tokenizer.save(path / OWN_FILE)
