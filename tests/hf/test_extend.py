"""`extend` on families of Hugging Face models with tiny random weights."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from lmlab.attention import parts
from lmlab.hf import as_model, backend, extend, restore, rotary_of
from lmlab.rope import (
    DCA,
    DynamicNTK,
    LengthWarning,
    LogN,
    NTKAware,
    ReRoPE,
    Rotary,
    Window,
    YaRN,
    frequencies,
)
from lmlab.rope.reference import attend_reference
from lmlab.rope.rotary import turn

T0 = 32
# transformers 5.2x renames the argument
CACHE = (
    "cache"
    if "cache" in inspect.signature(transformers.LlamaForCausalLM.forward).parameters
    else "past_key_values"
)
SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": T0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"sliding_window": None},
    "Gemma": {"head_dim": 16},
    "Phi": {"partial_rotary_factor": 0.5},
    "GPTNeoX": {"rotary_pct": 0.25, "hidden_act": "gelu"},
    "Cohere": {},
    "Glm": {"head_dim": 8},
}


def build(family: str, seed: int = 0, **options: Any) -> Any:
    sizes = dict(SIZES)
    if family in ("Phi", "GPTNeoX"):
        del sizes["num_key_value_heads"]
    config = getattr(transformers, f"{family}Config")(**sizes, **FAMILIES.get(family, {}), **options)
    torch.manual_seed(seed)
    kind = {"Gemma3Text": "Gemma3"}.get(family, family)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():  # attention of random weights is nearly uniform: make positions matter
        for name, weight in model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "query_key_value")) and weight.ndim == 2:
                weight.mul_(12)
    return model


def tokens(n: int, t: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 48, (n, t), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    out: Tensor = model(input_ids=ids, **options).logits
    return out


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def test_as_trained_it_gives_the_model_s_own_logits_and_comes_back_bit_for_bit(model: Any) -> None:
    ids = tokens(2, 50)
    before = logits(model, ids)
    weights = {name: x.clone() for name, x in (*model.named_parameters(), *model.named_buffers())}
    assert extend(model) is model
    scale = before.abs().max()
    assert (logits(model, ids) - before).abs().max() < 3e-6 * max(1.0, scale)
    extend(model, ReRoPE(8))
    assert (logits(model, ids) - before).abs().max() > 1e-4 * scale  # an extension does change something
    torch.testing.assert_close(logits(model, ids[:, :8]), before[:, :8], rtol=0, atol=3e-6 * max(1.0, scale))
    assert restore(model) is model
    assert torch.equal(logits(model, ids), before)
    assert torch.equal(logits(restore(model), ids), before)
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        assert torch.equal(x, weights[name])


def test_a_second_extend_replaces_the_first(model: Any) -> None:
    ids = tokens(2, 50)
    before = logits(model, ids)
    extend(model, ReRoPE(8) | LogN())
    only = logits(model, ids)
    extend(model, NTKAware(4), length=60)
    assert not torch.equal(logits(model, ids), only)
    extend(extend(model, DCA(16, 4)), ReRoPE(8) | LogN())
    assert torch.equal(logits(model, ids), only)
    assert torch.equal(logits(restore(model), ids), before)  # one restore takes all of them back


def test_generation_with_the_cache_is_generation_without(model: Any) -> None:
    check_generation(model, ReRoPE(8) | LogN())


@pytest.mark.parametrize("extension", [DCA(16, 4), NTKAware(4), DynamicNTK(2), Window(12, 2), None], ids=repr)
def test_generation_with_the_cache_under_other_methods(extension: Any) -> None:
    check_generation(build("Llama"), extension)


def check_generation(model: Any, extension: Any) -> None:
    ids = tokens(1, 40)
    extend(model, extension, length=60)
    whole = logits(model, ids)
    with torch.no_grad():
        out = model(input_ids=ids[:, :30], use_cache=True)
        steps = [out.logits]
        cache = out.past_key_values
        for a, b in ((30, 31), (31, 36), (36, 40)):
            out = model(input_ids=ids[:, a:b], use_cache=True, **{CACHE: cache})
            steps.append(out.logits)
    torch.testing.assert_close(
        torch.cat(steps, dim=1), whole, rtol=0, atol=1e-5 * float(whole.abs().max() + 1)
    )
    kept = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=True)
    again = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(kept, again)


def test_left_padding_changes_nothing(model: Any) -> None:
    extend(model, ReRoPE(8) | LogN())
    ids = tokens(3, 40)
    mask = torch.ones_like(ids)
    padded = ids.clone()
    for row, pad in enumerate((0, 7, 39)):
        mask[row, :pad], padded[row, :pad] = 0, 0
    got = logits(model, padded, attention_mask=mask)
    for row, pad in enumerate((0, 7, 39)):
        alone = logits(model, ids[row : row + 1, pad:])
        torch.testing.assert_close(
            got[row : row + 1, pad:], alone, rtol=0, atol=1e-5 * float(alone.abs().max() + 1)
        )
    new = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    for row, pad in enumerate((0, 7, 39)):
        alone = model.generate(ids[row : row + 1, pad:], max_new_tokens=5, do_sample=False)
        assert torch.equal(new[row, 40:], alone[0, 40 - pad :])


def test_rerope_is_a_llama_written_out() -> None:
    model = build("Llama").double()
    extension = ReRoPE(8) | LogN()
    ids = tokens(2, 45)
    rotary = rotary_of(model)
    assert rotary == Rotary(8, train_length=T0)
    weights = dict(model.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt() * weights[name]

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(2):
        at = f"model.layers.{layer}."
        y = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            (y @ weights[f"{at}self_attn.{n}_proj.weight"].T).view(2, 45, -1, 8).transpose(1, 2)
            for n in "qkv"
        )
        mixed = (
            attend_reference(q, k, v, rotary=rotary, extension=extension).transpose(1, 2).reshape(2, 45, 32)
        )
        x = x + mixed @ weights[at + "self_attn.o_proj.weight"].T
        y = norm(x, at + "post_attention_layernorm.weight")
        gate = torch.nn.functional.silu(y @ weights[at + "mlp.gate_proj.weight"].T)
        x = x + (gate * (y @ weights[at + "mlp.up_proj.weight"].T)) @ weights[at + "mlp.down_proj.weight"].T
    want = norm(x, "model.norm.weight") @ weights["lm_head.weight"].T
    torch.testing.assert_close(
        logits(extend(model, extension), ids), want, rtol=0, atol=2e-6 * float(want.detach().abs().max())
    )


def test_two_models_of_one_config_do_not_disturb_each_other() -> None:
    one = build("Llama")
    other = type(one)(one.config).eval()
    ids = tokens(1, 48)
    plain = logits(one, ids), logits(other, ids)
    extend(one, ReRoPE(8))
    assert torch.equal(logits(other, ids), plain[1])
    extend(other, Window(8))
    first, second = logits(one, ids), logits(other, ids)
    restore(one)
    assert torch.equal(logits(one, ids), plain[0])
    assert torch.equal(logits(other, ids), second)
    extend(one, ReRoPE(8))
    restore(other)
    assert torch.equal(logits(one, ids), first)
    assert torch.equal(logits(other, ids), plain[1])


ROPE_TYPES: list[tuple[dict[str, Any], int]] = [
    ({"rope_type": "linear", "factor": 2.0}, T0),
    ({"rope_type": "dynamic", "factor": 2.0}, T0),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, T0),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 16}, T0),
    ({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0],
      "original_max_position_embeddings": 16}, 16),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rope", "trained"), ROPE_TYPES, ids=lambda x: x["rope_type"] if isinstance(x, dict) else ""
)
@pytest.mark.parametrize("t", [12, 60])
def test_models_shipped_with_their_own_scaling(rope: dict[str, Any], trained: int, t: int) -> None:
    model = build("Llama", rope_parameters={"rope_theta": 10000.0} | rope)
    ids = tokens(1, t)
    before = logits(model, ids)
    assert rotary_of(model).train_length == trained
    extend(model)
    assert (logits(model, ids) - before).abs().max() < 1e-5 * max(1.0, float(before.abs().max()))
    restore(model)
    assert torch.equal(logits(model, ids), before)


def test_rotary_of_reads_dims_pairs_and_base() -> None:
    assert rotary_of(build("Phi")) == Rotary(4, train_length=T0)
    assert rotary_of(build("GPTNeoX")) == Rotary(2, train_length=T0)
    assert rotary_of(build("Cohere")) == Rotary(
        8, base=rotary_of(build("Cohere")).base, train_length=T0, interleaved=True
    )
    glm = rotary_of(build("Glm"))
    assert (glm.dim, glm.interleaved) == (4, True)
    scaled = rotary_of(build("Llama", rope_parameters={"rope_theta": 5e5}), train_length=16)
    assert scaled == Rotary(8, base=5e5, train_length=16)
    model = extend(build("Llama"), ReRoPE(4))
    assert rotary_of(model) == Rotary(8, train_length=T0)
    assert rotary_of(model, 16).train_length == 16


def test_sliding_layers_keep_their_window_and_full_layers_take_the_extension() -> None:
    kinds = ["sliding_attention", "full_attention"]
    for family in ("Qwen2", "Gemma3Text"):
        extra: dict[str, Any] = {"head_dim": 8} if family == "Gemma3Text" else {"use_sliding_window": True}
        model = build(family, layer_types=kinds, sliding_window=6, **extra)
        ids = tokens(1, 50)
        before = logits(model, ids)
        extend(model)
        torch.testing.assert_close(
            logits(model, ids), before, rtol=0, atol=1e-5 * float(before.abs().max() + 1)
        )
        extend(model, ReRoPE(8))
        changed = logits(model, ids)
        assert (changed - before).abs().max() > 1e-5
        with torch.no_grad():
            out = model(input_ids=ids[:, :30], use_cache=True)
            rest = [
                model(input_ids=ids[:, i : i + 1], **{CACHE: out.past_key_values}).logits
                for i in range(30, 50)
            ]
        torch.testing.assert_close(
            torch.cat([out.logits, *rest], 1), changed, rtol=0, atol=1e-5 * float(changed.abs().max() + 1)
        )
        restore(model)
        assert torch.equal(logits(model, ids), before)
    every = build("Mistral", seed=1)
    every.config.sliding_window = 6
    with pytest.raises(ValueError, match=r"ReRoPE\(window=8\) would change nothing: every attention layer"):
        extend(every, ReRoPE(8))


def test_layers_without_rotary_take_logit_methods_only() -> None:
    model = build("SmolLM3", no_rope_layers=[1, 0], use_sliding_window=False)
    ids = tokens(1, 50)
    before = logits(model, ids)
    extend(model)
    torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=1e-5 * float(before.abs().max() + 1))
    extend(model, ReRoPE(8) | LogN())
    assert (logits(model, ids) - before).abs().max() > 1e-5
    restore(model)
    assert torch.equal(logits(model, ids), before)


def test_gradients_flow() -> None:
    model = extend(build("Llama").train(), ReRoPE(8))
    ids = tokens(2, 40)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in model.parameters())


def test_a_static_cache_is_cut_to_what_is_filled() -> None:
    model = extend(build("Llama"), ReRoPE(8) | LogN())
    ids = tokens(1, 40)
    dynamic = model.generate(ids, max_new_tokens=6, do_sample=False)
    static = model.generate(
        ids, max_new_tokens=6, do_sample=False, cache_implementation="static", disable_compile=True
    )
    assert torch.equal(dynamic, static)


def test_a_method_that_moves_needs_a_length() -> None:
    model = build("Llama")
    ids = tokens(1, 40)
    extend(model, DynamicNTK(2), length=48)
    model.generate(ids, max_new_tokens=4, do_sample=False)
    extend(model, DynamicNTK(2))
    with pytest.warns(LengthWarning, match="pass length=prompt") as caught:
        model.generate(ids, max_new_tokens=4, do_sample=False)
    assert len({str(w.message) for w in caught}) == 1


def test_a_doubtful_window_is_said_once() -> None:
    model = build("Llama")
    with pytest.warns(LengthWarning, match=r"window above 3/4 of the train length 32"):
        extend(model, ReRoPE(30))
    with pytest.warns(LengthWarning, match=r"no pair turns 32 times"):
        extend(model, YaRN(4, fast=32))


def test_as_model_leaves_the_model_as_it_was() -> None:
    model = build("Llama")
    ids = tokens(2, 50)
    plain = logits(model, ids)
    f = as_model(model)
    with torch.no_grad():
        assert (f(ids) - plain).abs().max() < 3e-6
        assert torch.equal(f(ids[:, :8], extension=ReRoPE(8)), f(ids[:, :8]))
        wide = f(ids, extension=ReRoPE(8))
    assert torch.equal(logits(model, ids), plain)
    extend(model, Window(8))
    windowed = logits(model, ids)
    with torch.no_grad():
        assert torch.equal(f(ids, extension=ReRoPE(8)), wide)
        assert torch.equal(as_model(model)(ids, extension=ReRoPE(8)), wide)
    assert torch.equal(logits(model, ids), windowed)
    assert torch.equal(logits(restore(model), ids), plain)


@pytest.mark.bad_input
def test_what_is_refused_and_leaves_the_model_alone() -> None:
    ids = tokens(2, 20)
    with pytest.raises(TypeError, match="model must be a transformers PreTrainedModel, got Linear"):
        extend(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"extension must be a method such as ReRoPE\(window=1024\)"):
        extend(build("Llama"), "rerope")
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=48)
    ).eval()
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no rotary positions"):
        extend(gpt2)
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=48)
    )
    with pytest.raises(NotImplementedError, match="is an encoder-decoder"):
        extend(t5)
    capped = build("Gemma2", head_dim=8)
    before = logits(capped, ids)
    with pytest.raises(NotImplementedError, match="soft-capped logits are not supported"):
        extend(capped, ReRoPE(8))
    assert torch.equal(logits(capped, ids), before)
    dropping = build("Llama", attention_dropout=0.1).train()
    with pytest.raises(NotImplementedError, match=r"attention dropout 0\.1 in training"):
        extend(dropping)
    assert dropping.training
    extend(dropping.eval())
    with pytest.raises(NotImplementedError, match=r"no attention dropout, got 0\.1"):
        dropping.train()(input_ids=ids)

    model = extend(build("Llama"), ReRoPE(8))
    right = torch.ones_like(ids)
    right[0, -3:] = 0
    with pytest.raises(ValueError, match="takes left padding only"):
        logits(model, ids, attention_mask=right)
    with pytest.raises(NotImplementedError, match="takes a padding mask"):
        logits(model, ids, attention_mask=torch.ones(2, 1, 20, 20).bool())
    packed = torch.arange(20).remainder(10).expand(2, 20)
    with pytest.raises(NotImplementedError, match="packed sequences"):
        logits(model, ids, position_ids=packed, use_cache=False)
    with pytest.raises(NotImplementedError, match="attention weights"):
        logits(model, ids, output_attentions=True)
    with pytest.raises(ValueError, match="length must be at least the number of keys 20, got 10"):
        logits(extend(model, DynamicNTK(2), length=10), ids)
    # an extend that fails leaves the extension that was there
    kept = logits(extend(model, ReRoPE(8)), ids)
    with pytest.raises(ValueError, match="two band methods"):
        extend(model, [ReRoPE(8), Window(4)])
    assert torch.equal(logits(model, ids), kept)
    assert math.isfinite(float(kept.sum()))


def test_half_precision_models_turn_by_exact_angles(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cosines that reach a bfloat16 model's keys at position 10⁶, against float64."""
    made: list[tuple[Tensor, Tensor]] = []

    def watched(x: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> Tensor:
        made.append((cos, sin))
        return turn(x, cos, sin, **options)

    monkeypatch.setattr(parts, "turn", watched)
    extend(model.to(torch.bfloat16), YaRN(4))
    rotary = rotary_of(model)
    theta = frequencies(rotary, YaRN(4))[0]
    module = next(m for m in model.modules() if backend.SETTING in m.__dict__)
    keys, heads, dim = 1_000_001, 2, rotary.dim + rotary.dim % 4
    q = torch.ones(1, heads, 1, dim, dtype=torch.bfloat16)
    k = torch.ones(1, 1, keys, dim, dtype=torch.bfloat16)
    backend.attention(module, q, k, k, None)
    angles = theta * (keys - 1)
    assert {cos.shape[0] for cos, _ in made} == {1, keys}
    for cos, sin in made:
        assert (cos[-1] - angles.cos()).abs().max() <= 1e-6
        assert (sin[-1] - angles.sin()).abs().max() <= 1e-6


def test_half_precision_models_are_read_the_same_way() -> None:
    model = build("Llama").bfloat16()
    ids = tokens(1, 40)
    before = logits(model, ids)
    extend(model)
    assert rotary_of(model) == Rotary(8, train_length=T0)
    torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=0.05 * float(before.abs().max()))
    assert logits(extend(model, ReRoPE(8) | LogN()), ids).isfinite().all()
    scaled = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
    full = rotary_of(build("Llama", rope_parameters=scaled))
    assert full.inv_freq is not None
    assert rotary_of(build("Llama", rope_parameters=scaled).half()) == full
