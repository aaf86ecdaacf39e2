"""Stage 5: samples, with the probability of each token and what was copied from the training text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmlab.lab.corpus import read_documents
from lmlab.lab.recipe import END, Recipe
from lmlab.lab.steps.job import Job
from lmlab.model.fields import to_plain

if TYPE_CHECKING:
    from lmlab.model import Generation
    from lmlab.tokenize import Tokenizer

VERSION = 1
INPUTS = ("corpus", "tokenize", "train")
REFERENCE_BYTES = 1 << 20


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    return to_plain(recipe.generate) | {"seed": _seed(recipe)}, []


def work(job: Job) -> dict[str, Any]:
    from lmlab.evaluate import copied_spans, sample_quality
    from lmlab.lab.steps.evaluate import first_documents
    from lmlab.model import Decoder, generate
    from lmlab.tokenize import Tokenizer

    options = job.recipe.generate
    if options.samples == 0:
        (job.out / "samples.jsonl").write_text("", encoding="utf-8")
        return {"samples": {}, "count": 0}
    model = Decoder.load(job.inputs["train"] / "model")
    tokenizer = Tokenizer.load(job.inputs["tokenize"] / "tokenizer.json")
    prompts = [p for p in options.prompts or ("",) for _ in range(options.samples)]
    end = tokenizer.special_tokens[END]
    with job.display.work(job.label) as advance, job.warnings_to_log():
        made = generate(
            model,
            [[end, *tokenizer.encode(p)] for p in prompts],
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            stop=[end],
            seed=_seed(job.recipe),
        )
        advance(0, "what was copied")
        train = "".join(read_documents(job.inputs["corpus"] / "train.jsonl")).encode()
        texts = [_bytes(tokenizer, g) for g in made]
        spans = copied_spans(texts, train)
        reference = list(first_documents(job.inputs["corpus"] / "held_out.jsonl", REFERENCE_BYTES))
        quality = sample_quality([t.decode("utf-8", "replace") for t in texts], reference, train)
    with (job.out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for prompt, generation, text, copied in zip(prompts, made, texts, spans, strict=True):
            row = {
                "prompt": prompt,
                "text": text.decode("utf-8", "replace"),
                "pieces": [tokenizer.decode([i], skip_special_tokens=False) for i in generation.ids],
                "logprobs": generation.logprobs,
                "finish": generation.finish,
                "copied": sum(stop - start for start, stop in copied) / len(text) if text else 0.0,
                "copied_spans": [list(span) for span in copied],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {"samples": quality, "count": len(made)}


def _bytes(tokenizer: Tokenizer, generation: Generation) -> bytes:
    """The bytes of a sample, without the end token."""
    return tokenizer.decode_bytes(generation.ids)


def _seed(recipe: Recipe) -> int:
    return recipe.seed if recipe.generate.seed is None else recipe.generate.seed
