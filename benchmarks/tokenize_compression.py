"""`lmlab bench tokenize`, second half: bytes a token beside sentencepiece at its best, in domain and out of it.

All train on the same lines and are measured on lines that none has seen; a line's end belongs to no piece.
sentencepiece keeps the text as it is (identity, byte fallback), so that all are lossless.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sentencepiece
from lmlab.benchmarks import tokenize_corpora as corpora

from lmlab.lab.bench import Row, benchmark
from lmlab.tokenize import Tokenizer

LOSSLESS = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "allow_whitespace_only_pieces": True,
    "hard_vocab_limit": False,
    "max_sentence_length": 1 << 20,
    "num_threads": 2,
    "minloglevel": 2,
}
UNSPLIT = {"split_by_unicode_script": False, "split_by_whitespace": False, "split_by_number": False}

Settings = Mapping[str, Any]


def settings(quick: bool) -> Iterator[tuple[str, Settings]]:
    """Every setting of sentencepiece that is tried."""
    coverages = (0.98,) if quick else (0.98, 0.9995, 1.0)
    for model, coverage, split in itertools.product(("bpe", "unigram"), coverages, (True, False)):
        name = f"{model}, coverage {coverage:g}" + ("" if split else ", no split")
        yield name, {"model_type": model, "character_coverage": coverage, **({} if split else UNSPLIT)}
    if not quick:
        longer = {**UNSPLIT, "max_sentencepiece_length": 32}
        yield (
            "bpe, coverage 0.98, no split, length 32",
            {"model_type": "bpe", "character_coverage": 0.98, **longer},
        )


def sentencepiece_model(
    lines: Sequence[str], vocab_size: int, given: Settings
) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, **LOSSLESS, **given
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def bytes_per_token(lines: Sequence[str], ids: Sequence[Sequence[int]]) -> float:
    return sum(len(line.encode()) for line in lines) / sum(map(len, ids))


@benchmark("tokenize")
def rows(quick: bool) -> Iterator[Row]:
    size = 60_000 if quick else 3_000_000
    kept, held = corpora.split(corpora.mixed(size))
    others = corpora.other_domains(size // 10)
    yield from _tables("zh+en+code", kept, {"held-out lines": held, **others}, 1500 if quick else 8192, quick)
    text = "\n".join([corpora.code(size // 3), *map(str, corpora.files("readme"))])
    kept, held = corpora.split(corpora.cut(text, size // 2))
    yield from _tables("code and readmes", kept, {"held-out lines": held}, 500 if quick else 3800, quick)


def _tables(
    name: str, kept: Sequence[str], tests: Mapping[str, Sequence[str]], vocab_size: int, quick: bool
) -> Iterator[Row]:
    ours = Tokenizer.train(kept, vocab_size)
    own = {of: bytes_per_token(lines, ours.encode_batch(lines).tolist()) for of, lines in tests.items()}
    best: dict[str, tuple[float, str]] = {of: (0.0, "") for of in tests}
    for setting, given in settings(quick):
        try:
            rival = sentencepiece_model(kept, ours.vocab_size, given)
        except RuntimeError as error:  # more characters than the vocabulary has entries
            yield Row(
                f"bytes/token, {name}", f"sentencepiece {setting}", note=f"can't be trained: {error}"[:120]
            )
            continue
        for of, lines in tests.items():
            found = bytes_per_token(lines, rival.encode(list(lines)))
            best[of] = max(best[of], (found, setting))
            what, rival_name = (
                f"bytes/token, {name} (v = {ours.vocab_size}): {of}",
                f"sentencepiece {setting}",
            )
            yield Row(what, rival_name, own[of], found, unit="B/token", ratio=own[of] / found)
    for of, (found, setting) in best.items():
        target = ">= 1.05" if name != "zh+en+code" else ">= 1.03"
        yield Row(
            f"bytes/token, {name} (v = {ours.vocab_size}): {of}, the best",
            f"sentencepiece {setting}",
            own[of],
            found,
            unit="B/token",
            ratio=own[of] / found,
            target=target,
        )
