"""`lmlab bench generate`: tokens a second beside transformers' Llama with the same weights, and constant states."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from statistics import median

import torch

from lmlab.attention import VQOptions
from lmlab.hf import to_llama
from lmlab.lab.bench import Row, benchmark, compare
from lmlab.model import Decoder, DecoderConfig, generate


def seconds_a_token(model: Decoder, prompt: int, count: int) -> float:
    """Median processor time of `count` steps after a prompt."""
    with torch.inference_mode():
        state = model.init_state(1, prompt + count)
        model.step(torch.zeros(1, prompt, dtype=torch.int64), state)
        token, taken = torch.zeros(1, 1, dtype=torch.int64), []
        for _ in range(count):
            start = time.process_time()
            model.step(token, state)
            taken.append(time.process_time() - start)
    return median(taken)


@benchmark("generate")
def rows(quick: bool) -> Iterator[Row]:
    v, d, layers, heads, new = (64, 32, 1, 2, 8) if quick else (4096, 192, 6, 6, 128)
    config = DecoderConfig(vocab_size=v, d_model=d, n_layers=layers, n_heads=heads, max_length=2 * new)
    model = Decoder(config).eval()
    llama = to_llama(model)
    for batch in (1, 8):
        prompt = torch.randint(1, v, (batch, 8), generator=torch.Generator().manual_seed(0))
        prompts = prompt.tolist()
        mask = torch.ones_like(prompt)

        def theirs(prompt: torch.Tensor = prompt, mask: torch.Tensor = mask) -> torch.Tensor:
            made: torch.Tensor = llama.generate(
                prompt, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
            )  # type: ignore[operator]
            return made

        ours = partial(generate, model, prompts, max_new_tokens=new, temperature=0)
        same = [g.ids for g in ours()] == theirs()[:, 8:].tolist()
        t = compare({"ours": ours, "theirs": theirs}, repeats=1 if quick else 5, clock="cpu")
        yield Row(
            f"generation, batch {batch}, {new} new tokens, greedy",
            rival="LlamaForCausalLM.generate",
            ours=batch * new / t["ours"].median,
            theirs=batch * new / t["theirs"].median,
            unit="tokens/s",
            ratio=t["theirs"].median / t["ours"].median,
            target=">= 2",
            note="" if same else "texts differ",
        )
    far = 64 if quick else 4096
    for name in ("vq", "attention"):
        constant = Decoder(
            DecoderConfig(
                vocab_size=v,
                d_model=d,
                n_layers=layers,
                n_heads=heads,
                mixer=name,
                vq=VQOptions(codes=64, window=32),
            )
        ).eval()
        late, early = seconds_a_token(constant, far, 16), seconds_a_token(constant, 64, 16)
        yield Row(
            f"a token after {far}, mixer {name!r}",
            rival="the same after 64",
            ours=late,
            theirs=early,
            ratio=late / early,
            target="<= 1.1" if name == "vq" and not quick else "",
        )
