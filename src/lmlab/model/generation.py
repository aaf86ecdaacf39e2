"""Text from a decoder: prompts of any lengths, one batch, a random stream of its own for every row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmlab.model.decoder import Decoder
from lmlab.model.sampling import check_filters, inverse_cdf, next_token_probs, uniforms
from lmlab.model.state import DecoderState


@dataclass(frozen=True)
class Generation:
    """ids: the new tokens, without the prompt, a stop token included. logprobs: of each new token under the
    model itself (temperature 1, no filter), in nats. finish: why it ended."""

    ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 64,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue every prompt by up to max_new_tokens tokens, or until one of `stop`.

    Row r's i-th token is the inverse CDF, under `next_token_probs`, of one uniform number that depends on
    (seed, r, i) only: neither batch_size nor the other prompts change it. on_token(row, token) is called as
    tokens are chosen. Raises ValueError for an empty prompt or arguments out of range, IndexError for ids
    outside the vocabulary.
    """
    _check(model, prompts, max_new_tokens, batch_size, temperature, top_k, top_p, min_p)
    training = model.training
    model.eval()
    choose = _Chooser(temperature, top_k, top_p, min_p)
    ids: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    stops = frozenset(int(token) for token in stop)
    try:
        for start in range(0, len(prompts), batch_size):
            rows = list(range(start, min(start + batch_size, len(prompts))))
            for state, logits, rows_of_state in _prefill(model, prompts, rows, max_new_tokens):
                _continue(
                    model,
                    state,
                    logits,
                    rows_of_state,
                    max_new_tokens,
                    choose,
                    stops,
                    seed,
                    ids,
                    logprobs,
                    on_token,
                )
    finally:
        model.train(training)
    return [
        Generation(row_ids, row_logprobs, "stop" if row_ids and row_ids[-1] in stops else "length")
        for row_ids, row_logprobs in zip(ids, logprobs, strict=True)
    ]


class _Chooser:
    """The sampling arguments, applied to logits."""

    def __init__(
        self, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
    ) -> None:
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p

    def __call__(self, logits: Float[Tensor, "b v"], u: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        p = next_token_probs(
            logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p
        )
        return inverse_cdf(p, u)


def _prefill(
    model: Decoder, prompts: Sequence[Sequence[int]], rows: list[int], max_new_tokens: int
) -> list[tuple[DecoderState, Tensor, list[int]]]:
    """Run the prompts, equal lengths together, so that padding never enters the model. Where the layers'
    states can hold rows at different positions, all rows go on as one batch."""
    device = model.head.device
    buckets: dict[int, list[int]] = {}
    for row in rows:
        buckets.setdefault(len(prompts[row]), []).append(row)
    parts = []
    for length, members in sorted(buckets.items()):
        ids = torch.tensor([list(prompts[row]) for row in members], dtype=torch.int64, device=device)
        state = model.init_state(len(members), length + max_new_tokens)
        parts.append((state, model.step(ids, state), members))
    if len(parts) == 1 or not parts[0][0].can_join:
        return parts
    joined = DecoderState.join([state for state, _, _ in parts])
    return [
        (joined, torch.cat([logits for _, logits, _ in parts]), [row for _, _, part in parts for row in part])
    ]


def _continue(
    model: Decoder,
    state: DecoderState,
    logits: Tensor,
    rows: list[int],
    max_new_tokens: int,
    choose: _Chooser,
    stops: frozenset[int],
    seed: int,
    ids: list[list[int]],
    logprobs: list[list[float]],
    on_token: Callable[[int, int], None] | None,
) -> None:
    """Draw token after token for the rows of one batch; finished rows leave when a quarter is done."""
    u = torch.from_numpy(uniforms(seed, rows, max_new_tokens)).to(logits.device)
    running = np.ones(len(rows), dtype=bool)
    for step in range(max_new_tokens):
        tokens = choose(logits, u[:, step])
        scores = torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, dim=-1)
        chosen = scores.gather(1, tokens[:, None]).squeeze(1).tolist()
        for index, token in enumerate(tokens.tolist()):
            if not running[index]:
                continue
            ids[rows[index]].append(token)
            logprobs[rows[index]].append(chosen[index])
            if on_token is not None:
                on_token(rows[index], token)
            running[index] = token not in stops
        if step + 1 == max_new_tokens or not running.any():
            return
        if 4 * int((~running).sum()) >= len(rows):
            kept = torch.from_numpy(np.flatnonzero(running)).to(logits.device)
            state, tokens, u = state.select(kept), tokens[kept], u[kept]
            rows = [row for row, keep in zip(rows, running, strict=True) if keep]
            running = np.ones(len(rows), dtype=bool)
        logits = model.step(tokens[:, None], state)


def _check(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> None:
    check_filters(temperature, top_k, top_p, min_p)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be an integer >= 0, got {max_new_tokens}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be an integer >= 1, got {batch_size}")
    v = model.config.vocab_size
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty; give the end token, generate(model, [[end_id]], ...)")
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= v:
            raise IndexError(f"ids of prompt {row} must lie in [0, {v}), got values from {low} to {high}")
    longest = max((len(prompt) for prompt in prompts), default=0) + max_new_tokens
    beyond = longest > model.config.max_length and any(
        mixer == "attention" for mixer in model.config.layer_mixers
    )
    extension: Any = model.config.position.extension
    if beyond and extension is None:
        warnings.warn(
            f"generating up to {longest} tokens, outside the trained range of {model.config.max_length}; a "
            "position.extension such as {'method': 'rerope', 'window': "
            f"{max(1, model.config.max_length // 2)}}} keeps the distances within it",
            stacklevel=3,
        )
