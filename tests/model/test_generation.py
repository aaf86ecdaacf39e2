"""Sampling against sorted oracles and counts; generation row by row and in batches."""

import dataclasses
import math
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from lmlab.attention import VQOptions
from lmlab.model import AttentionOptions, Decoder, DecoderConfig, PositionOptions, generate, next_token_probs
from lmlab.model.sampling import inverse_cdf, uniforms
from lmlab.recurrent import RecurrentOptions

CONFIG = DecoderConfig(vocab_size=19, d_model=16, n_layers=2, n_heads=2, d_ff=16, max_length=64)


def sharp(config: DecoderConfig = CONFIG) -> Decoder:
    """Float64, with weights that make its text vary."""
    model = Decoder(config).double().eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def sorted_oracle(
    z: list[float], temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> list[float]:
    weights = [math.exp((x - max(z)) / temperature) for x in z]
    p = {i: w / sum(weights) for i, w in enumerate(weights)}

    def renormalised(kept: list[int]) -> dict[int, float]:
        total = sum(p[i] for i in kept)
        return {i: p[i] / total for i in kept}

    if top_k is not None:
        p = renormalised(sorted(p, key=lambda i: (-p[i], i))[:top_k])
    if top_p is not None:
        kept, mass = [], 0.0
        for i in sorted(p, key=lambda i: (-p[i], i)):
            kept.append(i)
            mass += p[i]
            if mass >= top_p:
                break
        p = renormalised(kept)
    if min_p is not None:
        p = renormalised([i for i in p if p[i] >= min_p * max(p.values())])
    return [p.get(i, 0.0) for i in range(len(z))]


# Logits on a coarse grid: ties are frequent; thresholds off the grid of their sums.
@given(
    z=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 2, 5, 99]),
    top_p=st.sampled_from([None, 1e-6, 0.31831, 0.87123]),
    min_p=st.sampled_from([None, 0.0, 0.21234, 0.61217]),
)
def test_filters_are_those_of_the_sorted_oracle(
    z: list[int], temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    logits = torch.tensor([[float(x) for x in z]], dtype=torch.float64)
    p = next_token_probs(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = sorted_oracle([float(x) for x in z], temperature, top_k, top_p, min_p)
    assert np.allclose(p[0].numpy(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.peer
@pytest.mark.parametrize("filters", [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"temperature": 0.6}])
def test_filters_are_those_of_transformers(filters: dict[str, Any]) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    warper = {
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
        "temperature": process.TemperatureLogitsWarper,
    }
    ((name, value),) = filters.items()
    logits = torch.randn(7, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.softmax(warper[name](value)(torch.zeros(7, 1, dtype=torch.int64), logits), dim=-1)
    assert torch.allclose(next_token_probs(logits, **filters), expected, rtol=1e-12, atol=0)


def test_temperature_zero_is_the_lowest_of_the_largest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert next_token_probs(logits, temperature=0).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_half_logits_are_filtered_in_float32() -> None:
    p = next_token_probs(torch.zeros(1, 1000, dtype=torch.bfloat16))
    assert p.dtype == torch.float32 and float(p.sum()) == pytest.approx(1, abs=1e-5)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(5))
    p = next_token_probs(logits, top_k=9).double()
    u = torch.from_numpy(uniforms(7, list(range(20_000)), 1)[:, 0])
    drawn = inverse_cdf(p.expand(20_000, -1), u)
    counts = torch.bincount(drawn, minlength=12).numpy()
    kept = p[0].numpy() > 0
    assert counts[~kept].sum() == 0
    assert chisquare(counts[kept], 20_000 * p[0].numpy()[kept] / p[0].numpy().sum()).pvalue > 1e-4


def test_the_ends_of_the_unit_interval_draw_tokens_that_have_mass() -> None:
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    ends = torch.tensor([0.0, 0.25, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert inverse_cdf(p.expand(3, -1), ends).tolist() == [1, 3, 3]


def by_hand(model: Decoder, prompt: list[int], row: int, count: int, seed: int, **filters: Any) -> list[int]:
    """One token after another, each by a forward pass over everything before it."""
    ids, u = list(prompt), uniforms(seed, [row], count)[0]
    with torch.no_grad():
        for step in range(count):
            p = next_token_probs(model(torch.tensor([ids]))[:, -1], **filters)
            ids.append(int(inverse_cdf(p, torch.tensor([u[step]]))))
    return ids[len(prompt) :]


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11, 12], [13, 2], [4]]


@pytest.mark.parametrize("kind", ["plain", "hwfa2", "rerope", "vq", "recurrent"])
def test_rows_are_what_each_would_be_alone(kind: str) -> None:
    configs = {
        "plain": CONFIG,
        "hwfa2": dataclasses.replace(CONFIG, n_layers=3, hybrid="hwfa2", n_kv_heads=1),
        "vq": dataclasses.replace(CONFIG, mixer=("attention", "vq"), vq=VQOptions(codes=8, window=3)),
        "recurrent": dataclasses.replace(
            CONFIG, mixer=("attention", "recurrent"), recurrent=RecurrentOptions(cell="lstm")
        ),
        "rerope": dataclasses.replace(
            CONFIG, position=PositionOptions(extension={"method": "rerope", "window": 4})
        ),
    }
    model = sharp(configs[kind])
    filters: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95}
    together = generate(model, PROMPTS, max_new_tokens=9, seed=4, **filters)
    for size in (1, 4):
        assert generate(model, PROMPTS, max_new_tokens=9, seed=4, batch_size=size, **filters) == together or [
            g.ids for g in generate(model, PROMPTS, max_new_tokens=9, seed=4, batch_size=size, **filters)
        ] == [g.ids for g in together]
    for row, prompt in enumerate(PROMPTS):
        assert together[row].ids == by_hand(model, prompt, row, 9, seed=4, **filters)
    assert together[1].ids != together[5].ids  # the same prompt, another row


def test_greedy_text_is_the_argmax_at_every_step() -> None:
    model = sharp()
    ids = [1, 2]
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, [[1, 2]], max_new_tokens=8, temperature=0)[0].ids == ids[2:]


def test_log_probabilities_are_the_models_own() -> None:
    model = sharp()
    made = generate(model, PROMPTS, max_new_tokens=5, temperature=0.7, top_k=3, seed=1)
    for prompt, generation in zip(PROMPTS, made, strict=True):
        whole = torch.tensor([prompt + generation.ids])
        with torch.no_grad():
            scores = torch.log_softmax(model(whole)[0], dim=-1)
        for i, (token, logprob) in enumerate(zip(generation.ids, generation.logprobs, strict=True)):
            assert logprob == pytest.approx(float(scores[len(prompt) + i - 1, token]), abs=1e-10)


def test_stop_tokens_end_their_row_and_no_other() -> None:
    model = sharp()
    free = generate(model, PROMPTS * 3, max_new_tokens=12, seed=2)
    stop = Counter(token for generation in free for token in generation.ids).most_common(1)[0][0]
    stopped = generate(model, PROMPTS * 3, max_new_tokens=12, seed=2, stop=[stop])
    assert {generation.finish for generation in stopped} == {"stop", "length"}
    for whole, cut in zip(free, stopped, strict=True):
        end = whole.ids.index(stop) + 1 if stop in whole.ids else 12
        assert cut.ids == whole.ids[:end] and len(cut.logprobs) == end
        assert cut.finish == ("stop" if stop in whole.ids else "length")


def test_tokens_are_reported_as_they_come() -> None:
    seen: dict[int, list[int]] = {}
    made = generate(
        sharp(), PROMPTS, max_new_tokens=4, on_token=lambda row, token: seen.setdefault(row, []).append(token)
    )
    assert seen == {row: generation.ids for row, generation in enumerate(made)}


def test_a_model_can_be_trained_after_it_generated() -> None:
    model = sharp()
    generate(model, [[1, 2]], max_new_tokens=3)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert model.head.grad is not None


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_the_native_step_is_the_step_in_torch(kv_heads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    options = AttentionOptions(qk_norm=True)
    config = dataclasses.replace(
        CONFIG, n_kv_heads=kv_heads, d_head=10, d_ff=21, attention=options, init="mup"
    )
    model = sharp(config)
    ids = torch.randint(19, (17, 12), generator=torch.Generator().manual_seed(0))
    for rows in (1, 3, 8, 16):
        results = []
        for native in (True, False):
            monkeypatch.setattr("lmlab.model.decode.MOST_ROWS", 16 if native else 0)
            with torch.no_grad():
                state = model.init_state(rows)
                logits = [model.step(ids[:rows, t : t + 1], state) for t in range(12)]
            results.append(torch.stack(logits))
        assert torch.allclose(*results, rtol=1e-11, atol=1e-12)


def test_nothing_to_do_is_done() -> None:
    model = sharp()
    assert generate(model, [], max_new_tokens=3) == []
    assert generate(model, [[1]], max_new_tokens=0)[0].ids == []
    model.train()
    generate(model, [[1]], max_new_tokens=1)
    assert model.training


def test_leaving_the_trained_range_is_said() -> None:
    with pytest.warns(UserWarning, match=r"up to 67 tokens, outside the trained range of 64.*rerope.*32"):
        generate(sharp(), [[1, 2]], max_new_tokens=65)
    extended = PositionOptions(extension={"method": "rerope", "window": 32})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(sharp(dataclasses.replace(CONFIG, position=extended)), [[1, 2]], max_new_tokens=65)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prompts": [[1], []]}, ValueError, "prompt 1 is empty; give the end token"),
    ({"prompts": [[19]]}, IndexError, r"ids of prompt 0 must lie in \[0, 19\), got values from 19 to 19"),
    ({"prompts": [[-1, 3]]}, IndexError, "got values from -1 to 3"),
    ({"temperature": -0.1}, ValueError, r"temperature must be a number >= 0 \(0 is greedy\), got -0.1"),
    ({"temperature": float("nan")}, ValueError, "temperature must be a number >= 0"),
    ({"top_k": 0}, ValueError, "top_k must be an integer >= 1 or None, got 0"),
    ({"top_p": 0.0}, ValueError, r"top_p must lie in \(0, 1\] or be None, got 0.0"),
    ({"top_p": 1.1}, ValueError, "top_p must lie"),
    ({"min_p": -0.1}, ValueError, r"min_p must lie in \[0, 1\] or be None, got -0.1"),
    ({"min_p": 1.5}, ValueError, "min_p must lie"),
    ({"max_new_tokens": -1}, ValueError, "max_new_tokens must be an integer >= 0, got -1"),
    ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1, got 0"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("arguments", "error", "text"), BAD, ids=[str(case[0]) for case in BAD])
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    call: dict[str, Any] = {"prompts": [[1]], "max_new_tokens": 2, **arguments}
    with pytest.raises(error, match=text):
        generate(sharp(), call.pop("prompts"), **call)
