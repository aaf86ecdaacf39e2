"""causal_lm_loss with the causal models of transformers: their own loss and gradients, without their logits."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmlab.losses import EMO, Cost, LinearLoss, causal_lm_loss

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peer

SIZES = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


def _model(name: str) -> Any:
    torch.manual_seed(0)
    if name == "GPT2":
        config = transformers.GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    elif name == "Gemma2":
        config = transformers.Gemma2Config(**SIZES, **HEADS, final_logit_softcapping=2.0)
    elif name == "Cohere":
        config = transformers.CohereConfig(**SIZES, num_attention_heads=2, logit_scale=0.25)
    elif name == "Granite":
        config = transformers.GraniteConfig(**SIZES, num_attention_heads=2, logits_scaling=4.0)
    elif name == "Mixtral":
        config = transformers.MixtralConfig(
            **SIZES, **HEADS, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.3
        )
    else:
        config = transformers.LlamaConfig(**SIZES, **HEADS)
    config.initializer_range = 0.3
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, kind)(config)
    return model.float().train()


def _inputs(rows: int = 3, seed: int = 1) -> dict[str, Tensor]:
    ids = torch.randint(3, 61, (rows, 11), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, :4] = labels[1, 7:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Gemma2", "Cohere", "Granite", "Mixtral"])
def test_cross_entropy_is_the_models_own(name: str) -> None:
    model, inputs = _model(name), _inputs()
    before = {key: value for key, value in vars(model).items() if not key.startswith("_")}
    given = dict(inputs)
    ours, outputs = causal_lm_loss(model, inputs, LinearLoss(), return_outputs=True)
    assert outputs.logits.shape == (3, 0, 61)
    assert inputs.keys() == given.keys() and all(inputs[key] is given[key] for key in given)
    assert before == {key: value for key, value in vars(model).items() if not key.startswith("_")}
    assert "forward" not in vars(model)
    theirs = model(**inputs).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    found, truth = _gradients(model, ours), _gradients(model, theirs)
    assert found.keys() == truth.keys()
    for key in truth:
        torch.testing.assert_close(found[key], truth[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", [LinearLoss(), LinearLoss(EMO("none"), Cost.zero_one(61))])
def test_accumulated_parts_are_the_whole(loss: LinearLoss) -> None:
    model, inputs = _model("Llama"), _inputs(4)
    whole = _gradients(model, causal_lm_loss(model, inputs, loss))
    items = int((inputs["labels"][:, 1:] != -100).sum())
    total = torch.zeros(())
    for part in (slice(0, 1), slice(1, 4)):
        piece = {key: value[part] for key, value in inputs.items()}
        total = total + causal_lm_loss(model, piece, loss, num_items=items)
    parts = _gradients(model, total)
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-5, atol=1e-6)


def test_labels_that_are_shifted_already() -> None:
    model, inputs = _model("Llama"), _inputs()
    truth = causal_lm_loss(model, inputs, LinearLoss())
    labels = inputs.pop("labels")
    inputs["shift_labels"] = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert torch.equal(causal_lm_loss(model, inputs, LinearLoss()), truth)


def test_bfloat16_under_autocast() -> None:
    model, inputs = _model("Llama"), _inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = causal_lm_loss(model, inputs, LinearLoss())
        theirs = model(**inputs).loss
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-2, atol=1e-2)


def test_the_call_goes_through_the_wrapper() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, **inputs: Any) -> Any:
            self.calls += 1
            return self.module(**inputs)

    class Adapter(Wrapper):
        def get_base_model(self) -> nn.Module:
            return self.module

    model, inputs = _model("Llama"), _inputs()
    wrapped = Wrapper(Adapter(model))
    truth = causal_lm_loss(model, inputs, LinearLoss())
    assert torch.equal(causal_lm_loss(wrapped, inputs, LinearLoss()), truth)
    assert wrapped.calls == wrapped.module.calls == 1
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(causal_lm_loss(compiled, inputs, LinearLoss()), truth)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")  # the name that old versions have too
@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_layers_and_a_frozen_head(frozen: bool) -> None:
    model, inputs = _model("Llama"), _inputs()
    model.get_output_embeddings().weight.requires_grad_(not frozen)
    truth = _gradients(model, causal_lm_loss(model, inputs, LinearLoss()))
    assert ("lm_head.weight" in truth) is not frozen
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = _gradients(model, causal_lm_loss(model, {**inputs, "use_cache": False}, LinearLoss()))
    assert found.keys() == truth.keys()
    for key in truth:
        torch.testing.assert_close(found[key], truth[key], rtol=1e-5, atol=1e-6)


@pytest.mark.bad_input
def test_models_that_cannot_leave_their_logits_out() -> None:
    inputs = _inputs()
    without = dict(inputs)
    del without["labels"]
    model = _model("Llama")
    with pytest.raises(
        ValueError, match=r"""inputs must hold "labels" \[b t\]; it holds \['attention_mask'"""
    ):
        causal_lm_loss(model, without, LinearLoss())
    with pytest.raises(TypeError, match=r"Linear isn't of transformers' causal contract.*LogitsLoss"):
        causal_lm_loss(nn.Linear(2, 2), inputs, LinearLoss())

    class Old(nn.Module):
        config = SimpleNamespace()

        def get_output_embeddings(self) -> nn.Module:
            return nn.Linear(2, 2)

        def forward(self, input_ids: Tensor, **rest: Any) -> None: ...

    with pytest.raises(TypeError, match=r"Old.forward has no logits_to_keep.*call LogitsLoss"):
        causal_lm_loss(Old(), inputs, LinearLoss())

    class Adapted(nn.Module):
        def __init__(self, base_layer: nn.Linear) -> None:
            super().__init__()
            self.base_layer = base_layer

        @property
        def weight(self) -> Tensor:
            return self.base_layer.weight

    adapted = copy.deepcopy(model)
    adapted.lm_head = Adapted(adapted.lm_head)
    with pytest.raises(TypeError, match=r"is a Adapted, not a plain nn.Linear.*merge it, or"):
        causal_lm_loss(adapted, inputs, LinearLoss())
