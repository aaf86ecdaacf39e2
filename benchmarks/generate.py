"""`lmlab bench generate`: tokens a second beside transformers' Llama with the same weights, and constant states."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from statistics import median

import torch

from lmlab.attention import VQOptions
from lmlab.lab.bench import Row, benchmark, compare
from lmlab.model import Decoder, DecoderConfig, generate


def llama_of(model: Decoder) -> torch.nn.Module:
    """transformers' LlamaForCausalLM with the weights of a plain decoder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.d_model,
            intermediate_size=c.ff_width,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.kv_heads,
            max_position_embeddings=c.max_length,
            rms_norm_eps=c.norm_eps,
            tie_word_embeddings=c.tie_embeddings,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    heads = [c.n_heads * c.head_width, c.kv_heads * c.head_width, c.kv_heads * c.head_width]
    weights = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    for index, block in enumerate(model.blocks):
        name = f"model.layers.{index}."
        q, k, v = block.mixer.qkv.weight.split(heads)  # type: ignore[union-attr, operator]
        gate, up = block.mlp.gate_up.weight.chunk(2)
        weights |= {
            name + "input_layernorm.weight": block.mixer_norm.weight,
            name + "post_attention_layernorm.weight": block.mlp_norm.weight,
            name + "self_attn.q_proj.weight": q,
            name + "self_attn.k_proj.weight": k,
            name + "self_attn.v_proj.weight": v,
            name + "self_attn.o_proj.weight": block.mixer.out.weight,  # type: ignore[union-attr]
            name + "mlp.gate_proj.weight": gate,
            name + "mlp.up_proj.weight": up,
            name + "mlp.down_proj.weight": block.mlp.down.weight,
        }
    weights["lm_head.weight"] = model.head
    llama.load_state_dict(weights)
    return llama


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
    llama = llama_of(model)
    for batch in (1, 8):
        prompt = torch.randint(1, v, (batch, 8), generator=torch.Generator().manual_seed(0))
        prompts = prompt.tolist()
        mask = torch.ones_like(prompt)

        def theirs(prompt: torch.Tensor = prompt, mask: torch.Tensor = mask) -> torch.Tensor:
            made: torch.Tensor = llama.generate(
                prompt, attention_mask=mask, max_new_tokens=new, do_sample=False
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
