"""The vocabulary as a model of Hugging Face's `tokenizers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmlab.tokenize.files import Contents

if TYPE_CHECKING:
    import tokenizers

SPECIAL_SCORE = -1e6  # never part of a best path


def byte_alphabet() -> list[str]:
    """GPT-2's character for each byte: printable Latin-1 stands for itself, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    code = {byte: byte for byte in printable} | {byte: 0x100 + k for k, byte in enumerate(others)}
    return [chr(code[byte]) for byte in range(256)]


def convert(contents: Contents) -> tokenizers.Tokenizer:
    """A `tokenizers.Tokenizer` with the same ids. Its sampler (alpha) draws from a wrong law: see the docs."""
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    except ImportError:
        raise ImportError("to_huggingface needs tokenizers: pip install 'lmlab[hf]'") from None
    alphabet = byte_alphabet()
    special = {i: name for name, i in contents.special_tokens.items()}
    vocab = [
        (special[i], SPECIAL_SCORE) if i in special else ("".join(alphabet[b] for b in piece), score)
        for i, (piece, score) in enumerate(zip(contents.pieces, contents.scores, strict=True))
    ]
    made = Tokenizer(models.Unigram(vocab, unk_id=None, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    if contents.normalize == "nfc":
        made.normalizer = normalizers.NFC()
    made.add_special_tokens([AddedToken(special[i], special=True, normalized=False) for i in sorted(special)])
    return made
