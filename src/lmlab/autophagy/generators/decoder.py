"""The project's own decoder in a loop: trained from scratch on rows of ids at each generation."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from lmlab.autophagy.generators.kde import draw_rows
from lmlab.autophagy.generators.template import TemplateLaw

if TYPE_CHECKING:
    import torch

    from lmlab.model import Decoder, DecoderConfig
    from lmlab.train import TrainConfig

_AT_ONCE = 64  # rows of a batch that is sampled or scored


@dataclass(frozen=True)
class DecoderLM(TemplateLaw):
    """Rows `[n t]` of ids of one length. A row is a document: it begins after the end token and ends with it.

    config, train: what `lmlab.model` and `lmlab.train` take. The end token is the tokenizer's `<eos>`, else
    id vocab_size − 1; rows may not hold it, and none is sampled: a model's law is that of rows without it.
    Bias is the temperature. Row weights are draw weights. Each fit draws its own seeds, for the first
    weights and for the batches, from its rng; `train.seed` isn't used. precision "auto" would be decided by a
    clock, so it is taken as "float32".

    epochs: train for so many passes over the rows, whatever `train.steps` says: with fixed steps a loop that
    mixes synthetic rows in would also halve the updates spent on real ones.
    """

    config: DecoderConfig
    train: TrainConfig
    tokenizer: Any = None
    epochs: float | None = None

    def __init__(
        self, config: DecoderConfig, train: TrainConfig, *, tokenizer: Any = None, epochs: float | None = None
    ) -> None:
        if epochs is not None and not 0.0 < epochs < math.inf:
            raise ValueError(f"DecoderLM: epochs must be a number > 0 or None, got {epochs!r}")
        if tokenizer is not None and "<eos>" not in getattr(tokenizer, "special_tokens", {}):
            raise ValueError("DecoderLM: tokenizer has no special token '<eos>', with which a row ends")
        if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
            raise ValueError(
                f"DecoderLM: config.vocab_size is {config.vocab_size}, the tokenizer has {tokenizer.vocab_size}"
            )
        precision = "float32" if train.precision == "auto" else train.precision
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "train", dataclasses.replace(train, precision=precision, seed=0))
        object.__setattr__(self, "tokenizer", tokenizer)
        object.__setattr__(self, "epochs", epochs)

    @property
    def end_id(self) -> int:
        if self.tokenizer is None:
            return self.config.vocab_size - 1
        return int(self.tokenizer.special_tokens["<eos>"])

    def fit(
        self, data: Int[np.ndarray, "n t"], weights: Float[np.ndarray, " n"] | None, rng: np.random.Generator
    ) -> FittedDecoderLM:
        from lmlab.model import Decoder
        from lmlab.train import TokenFile, train

        self._check(data)
        seed, batches = (int(x) for x in rng.integers(2**31, size=2))
        rows = draw_rows(data, weights, rng)
        model = Decoder(self.config, seed=seed)
        with tempfile.TemporaryDirectory(prefix="lmlab-rows-") as folder:
            path = Path(folder) / "rows.tok"
            file = TokenFile.write(path, rows, vocab_size=self.config.vocab_size, end_id=self.end_id)
            train(model, file, self._settings(len(file), batches))
            del file  # the map of the file, before its folder goes
        return FittedDecoderLM(self, model.eval(), data.shape[1], data.dtype)

    def _settings(self, tokens: int, seed: int) -> TrainConfig:
        steps = self.train.steps
        if self.epochs is not None:
            steps = math.ceil(self.epochs * tokens / (self.train.batch_size * self.train.length))
        return dataclasses.replace(self.train, steps=steps, seed=seed)

    def _check(self, data: np.ndarray) -> None:
        if data.ndim != 2 or data.dtype.kind not in "iu" or data.size == 0:
            raise ValueError(
                f"DecoderLM: data must be rows of integer ids [n t], got {data.dtype} {data.shape}"
            )
        low, high = int(data.min()), int(data.max())
        if low < 0 or high >= self.config.vocab_size or (data == self.end_id).any():
            raise ValueError(
                f"DecoderLM: ids must be in 0 … {self.config.vocab_size - 1} without the end token "
                f"{self.end_id}, got {low} … {high}"
            )

    def nbytes(self, data: np.ndarray) -> int:
        """Bytes of text that the rows stand for; without a tokenizer an id is a byte."""
        if self.tokenizer is None:
            return int(data.size)
        return sum(len(self.tokenizer.decode_bytes(row.tolist())) for row in data)

    def load(self, state: dict[str, np.ndarray]) -> FittedDecoderLM:
        import torch

        from lmlab.model import Decoder

        model = Decoder(self.config)
        weights = {
            name.removeprefix("model/"): torch.from_numpy(np.array(array))
            for name, array in state.items()
            if name.startswith("model/")
        }
        model.load_state_dict(weights)
        return FittedDecoderLM(self, model.eval(), int(state["length"]), state["ids"].dtype)


@dataclass(frozen=True, eq=False)
class FittedDecoderLM:
    """What `DecoderLM.fit` returns."""

    template: DecoderLM
    model: Decoder
    length: int
    dtype: np.dtype[Any]

    def fit(self, data: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator) -> FittedDecoderLM:
        return self.template.fit(data, weights, rng)

    def load(self, state: dict[str, np.ndarray]) -> FittedDecoderLM:
        return self.template.load(state)

    def nbytes(self, data: np.ndarray) -> int:
        return self.template.nbytes(data)

    def state(self) -> dict[str, np.ndarray]:
        arrays = {f"model/{name}": t.detach().cpu().numpy() for name, t in self.model.state_dict().items()}
        return arrays | {"length": np.array(self.length), "ids": np.zeros(0, self.dtype)}

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> Int[np.ndarray, "n t"]:
        """Rows of as many ids as the training rows have; each id by the inverse CDF of one uniform."""
        import torch

        from lmlab.model.sampling import inverse_cdf, next_token_probs

        uniforms = torch.from_numpy(rng.random((n, self.length)))
        rows = torch.empty((n, self.length), dtype=torch.int64)
        with torch.inference_mode():
            for part in _parts(n):
                count = part.stop - part.start
                state = self.model.init_state(count, self.length + 1)
                ids = torch.full((count,), self.template.end_id, dtype=torch.int64)
                for position in range(self.length):
                    logits = self.model.step(ids[:, None], state)
                    p = next_token_probs(self._without_end(logits), temperature=bias)
                    ids = inverse_cdf(p, uniforms[part, position])
                    rows[part, position] = ids
        return rows.numpy().astype(self.dtype)

    def log_prob(self, data: Int[np.ndarray, "n t"]) -> Float[np.ndarray, " n"]:
        """Nats a row: of the law that `sample` draws from at bias 1."""
        import torch

        self.template._check(data)
        ids = torch.from_numpy(data.astype(np.int64))
        begin = torch.full((ids.shape[0], 1), self.template.end_id, dtype=torch.int64)
        inputs = torch.cat([begin, ids[:, :-1]], dim=1)
        found = np.empty(ids.shape[0])
        with torch.inference_mode():
            for part in _parts(ids.shape[0]):
                logits = self._without_end(self.model(inputs[part])).double()
                scores = torch.log_softmax(logits, dim=-1).gather(2, ids[part][:, :, None])
                found[part] = scores[:, :, 0].sum(dim=1).numpy()
        return found

    def _without_end(self, logits: torch.Tensor) -> torch.Tensor:
        logits[..., self.template.end_id] = -math.inf
        return logits


def _parts(n: int) -> Iterator[slice]:
    for begin in range(0, n, _AT_ONCE):
        yield slice(begin, min(begin + _AT_ONCE, n))
