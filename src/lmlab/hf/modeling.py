"""`Decoder` as a model of transformers: forward with labels, left padding, generate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from lmlab.hf.configuration import LMLabConfig
from lmlab.model import Decoder, DecoderState

# transformers renamed the argument and the field of outputs in 5.24.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class LMLabCache:
    """What the decoder remembers of a batch: one DecoderState for each group of rows that stand together.

    Rows of different lengths (left padding) share one state where the mixers allow it, else each length has
    its own."""

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.groups: list[tuple[Tensor | None, DecoderState]] = []  # rows (None: all), their state
        self.seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the input seen so far, padding included."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was (beam search)."""
        moved: list[tuple[Tensor | None, DecoderState]] = []
        for rows, state in self.groups:
            if rows is None:
                moved.append((None, state.select(beam_idx)))
                continue
            where = torch.nonzero(torch.isin(beam_idx, rows))[:, 0]
            local = torch.searchsorted(rows, beam_idx[where])
            if len(where):
                moved.append((where, state.select(local)))
        self.groups = moved


class _Base(PreTrainedModel):  # type: ignore[misc]
    config_class = LMLabConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers' name and form)

    def _init_weights(self, module: nn.Module) -> None:
        """Decoder's constructor has drawn them."""


class LMLabModel(_Base):
    """The last hidden states [b t d], for AutoModel."""

    def __init__(self, config: LMLabConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(config.to_decoder_config())
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.decoder.embedding = value
        self.decoder.config = replace(self.decoder.config, vocab_size=value.num_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: LMLabCache | None = None,
        past_key_values: LMLabCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' models: see LMLabForCausalLM."""
        cache = _cache(cache, past_key_values, use_cache)
        ids, pads = _inputs(input_ids, attention_mask, cache, kwargs)
        h, aux = hidden_states(self.decoder, ids, pads, cache)
        out = BaseModelOutputWithPast(last_hidden_state=h, hidden_states=(h,))
        out[CACHE] = cache
        return out if return_dict is not False else out.to_tuple()


class LMLabForCausalLM(_Base, GenerationMixin):  # type: ignore[misc]
    """Logits, a loss where labels are given, and `generate`.

    Computes what `Decoder` computes, bit for bit. attention_mask is 0 … 0 1 … 1 0 … 0 in every row: left
    padding never enters the model and positions start at a row's first token; right padding is allowed without
    a cache. labels are shifted here, -100 is ignored; auxiliary losses of the mixers are added. hidden_states
    holds the last ones only. Packed rows (position_ids that start anew), 4-D masks and inputs_embeds raise
    NotImplementedError.
    """

    def __init__(self, config: LMLabConfig) -> None:
        super().__init__(config)
        self.model = LMLabModel(config)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes an LMLabCache

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """The head; a tied one is a view on the embedding, made on the spot."""
        decoder = self.model.decoder
        if decoder.output is not None:
            return decoder.output
        weight = decoder.embedding.weight
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        head.weight = weight
        return head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        if self.model.decoder.output is not None:
            self.model.decoder.output = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: LMLabCache | None = None,
        past_key_values: LMLabCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        decoder = self.model.decoder
        cache = _cache(cache, past_key_values, use_cache)
        ids, pads = _inputs(input_ids, attention_mask, cache, kwargs)
        out = CausalLMOutputWithPast()
        if _is_decode_step(ids, cache) and labels is None and not output_hidden_states:
            assert cache is not None
            out["logits"] = _decode_step(decoder, ids, cache)[:, None]
        else:
            h, aux = hidden_states(decoder, ids, pads, cache)
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            out["logits"] = nn.functional.linear(h[:, keep], decoder.head)
            if labels is not None:
                loss = self.loss_function(
                    logits=out["logits"], labels=labels, vocab_size=self.config.vocab_size, **kwargs
                )
                out["loss"] = loss + aux.to(loss.dtype)
            if output_hidden_states:
                out["hidden_states"] = (h,)
        if cache is not None:
            out[CACHE] = cache
        return out if return_dict is not False else out.to_tuple()


def hidden_states(
    decoder: Decoder, ids: Tensor, pads: Tensor | None, cache: LMLabCache | None
) -> tuple[Tensor, Tensor]:
    """(last hidden states [b t d], zero where padding stands; the sum of auxiliary losses).

    pads [b]: columns of padding before each row, None where there are none."""
    b, t = ids.shape
    if cache is not None and cache.seen:
        cache.seen += t
        parts = [
            (rows, decoder.hidden(ids if rows is None else ids[rows], state)) for rows, state in cache.groups
        ]
        return _gathered([(rows, 0, found.h) for rows, found in parts], b, t), parts[0][1].aux
    lengths = [0] if pads is None else sorted(set(pads.tolist()))
    groups: list[tuple[Tensor | None, int]] = [(None, lengths[0])]
    if len(lengths) > 1:
        assert pads is not None
        groups = [(torch.nonzero(pads == pad)[:, 0], pad) for pad in lengths]
    found = []
    for rows, pad in groups:
        some = ids[:, pad:] if rows is None else ids[rows, pad:]
        state = None if cache is None else decoder.init_state(len(some))
        found.append((rows, pad, decoder.hidden(some, state)))
    if cache is not None:
        cache.seen = t
        cache.groups = _joined([(rows, part.state) for rows, _, part in found])
    # Each part's auxiliary loss is a mean over its rows.
    weights = [1.0 if rows is None else len(rows) / b for rows, _, _ in found]
    aux = sum(
        (w * part.aux for w, (_, _, part) in zip(weights, found, strict=True)),
        ids.new_zeros((), dtype=found[0][2].aux.dtype),
    )
    return _gathered([(rows, pad, part.h) for rows, pad, part in found], b, t), aux


def _gathered(parts: list[tuple[Tensor | None, int, Tensor]], b: int, t: int) -> Tensor:
    """Hidden states of groups of rows, each without its padding, as one [b t d]."""
    rows, pad, h = parts[0]
    if rows is None and pad == 0:
        return h
    whole = h.new_zeros(b, t, h.shape[2])
    for rows, pad, h in parts:
        whole[slice(None) if rows is None else rows, pad:] = h
    return whole


def _joined(groups: list[tuple[Tensor | None, Any]]) -> list[tuple[Tensor | None, DecoderState]]:
    """The groups as one where their states can share a batch."""
    if len(groups) == 1 or not groups[0][1].can_join:
        return groups
    order = torch.cat([rows for rows, _ in groups if rows is not None])
    return [(None, DecoderState.join([state for _, state in groups]).select(torch.argsort(order)))]


def _is_decode_step(ids: Tensor, cache: LMLabCache | None) -> bool:
    return cache is not None and cache.seen > 0 and ids.shape[1] == 1


def _decode_step(decoder: Decoder, ids: Tensor, cache: LMLabCache) -> Tensor:
    """Logits [b v] of one new token a row: `Decoder.step`, which has a native path."""
    cache.seen += 1
    if cache.groups[0][0] is None:
        return decoder.step(ids, cache.groups[0][1])
    logits = ids.new_empty(len(ids), decoder.config.vocab_size, dtype=decoder.head.dtype)
    for rows, state in cache.groups:
        logits[rows] = decoder.step(ids[rows], state)
    return logits


def _cache(cache: Any, past_key_values: Any, use_cache: bool | None) -> LMLabCache | None:
    """The cache to use: the given one, a new one, or None where none is asked for (`generate` asks)."""
    given = past_key_values if cache is None else cache
    if isinstance(given, LMLabCache):
        return given
    if given is not None and given.get_seq_length() > 0:
        raise NotImplementedError(
            f"a {type(given).__name__} can't hold this model's states: leave the argument {CACHE} out, the first "
            "call returns an LMLabCache"
        )
    return LMLabCache() if use_cache else None


def _inputs(
    input_ids: Tensor | None, mask: Tensor | None, cache: LMLabCache | None, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """(ids, columns of padding before each row or None). NotImplementedError or ValueError for what isn't
    supported."""
    embeds, positions = kwargs.pop("inputs_embeds", None), kwargs.pop("position_ids", None)
    if input_ids is None or embeds is not None:
        raise NotImplementedError("this model takes input_ids [batch, tokens]; inputs_embeds isn't supported")
    b, t = input_ids.shape
    before = 0 if cache is None else cache.seen
    pads = None if mask is None else _padding(mask, b, before, t, cached=cache is not None)
    if positions is not None:
        expected = torch.arange(before, before + t, device=positions.device).expand(b, t)
        if pads is not None:
            expected = expected - pads[:, None].to(positions.device)
        if not torch.equal(torch.where(expected < 0, positions, expected), positions.expand(b, t)):
            raise NotImplementedError(
                "position_ids must count the tokens of each row from 0: packed rows aren't supported"
            )
    return input_ids, pads


def _padding(mask: Tensor, b: int, before: int, t: int, *, cached: bool) -> Tensor | None:
    if mask.ndim != 2 or mask.shape[0] != b or mask.shape[1] not in (t, before + t):
        raise NotImplementedError(
            f"attention_mask must be [batch, tokens] = {[b, before + t]}, got {list(mask.shape)}: other masks aren't "
            "supported"
        )
    filled = mask.bool()
    if bool(filled.all()):
        return None
    new = filled[:, -t:]
    if before:
        if not bool(new.all()):
            raise ValueError("attention_mask: tokens that follow cached ones can't be padding")
        return None if mask.shape[1] == t else (~filled).sum(1)
    pads = torch.where(new.any(1), new.int().argmax(1), 0)
    ends = pads + new.sum(1)
    columns = torch.arange(t, device=mask.device)
    if not torch.equal(new, (columns >= pads[:, None]) & (columns < ends[:, None])) or not bool(
        new.any(1).all()
    ):
        raise ValueError(
            "attention_mask must be 0 … 0 1 … 1 0 … 0 in every row, with at least one 1: the tokens of a row "
            "are one piece"
        )
    if cached and bool((ends < t).any()):
        raise ValueError('attention_mask: with a cache padding goes left (tokenizer.padding_side = "left")')
    return pads if bool(pads.any()) else None
