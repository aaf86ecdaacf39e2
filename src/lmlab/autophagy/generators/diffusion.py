"""A small denoising diffusion model on vectors, such as the 8 × 8 digits.

Source: Ho et al., arXiv:2006.11239; the cosine schedule of Nichol and Dhariwal, arXiv:2102.09672;
classifier-free guidance of Ho and Salimans, arXiv:2207.12598.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lmlab.autophagy.checks import whole
from lmlab.autophagy.generators.kde import draw_rows
from lmlab.autophagy.generators.template import Template

if TYPE_CHECKING:
    from torch import Tensor

_TIME = 32  # width of the embedding of time
_BATCH, _RATE, _NO_LABEL = 128, 2e-3, 0.1
_AT_ONCE = 4096


@dataclass(frozen=True)
class Diffusion(Template):
    """Rows of `d` numbers; with `classes` > 0 of d + 1, whose last column is the label 0 … classes − 1.

    A perceptron of two hidden layers predicts the noise; `steps` of Adam on batches of 128 rows. Row weights
    are draw weights. Bias λ: with classes the guidance is 1/λ − 1, and labels are drawn by their shares in
    the training rows; without classes all sampling noise is scaled by √λ.
    """

    d: int
    classes: int = 0
    timesteps: int = 100
    hidden: int = 256
    steps: int = 2000

    def __init__(
        self, d: int, *, classes: int = 0, timesteps: int = 100, hidden: int = 256, steps: int = 2000
    ) -> None:
        given = {"d": d, "classes": classes, "timesteps": timesteps, "hidden": hidden, "steps": steps}
        least = {"classes": 0, "timesteps": 2}
        for name, value in given.items():
            object.__setattr__(self, name, whole(f"Diffusion: {name}", value, least.get(name, 1)))

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.d + (self.classes > 0)

    def fit(
        self,
        data: Float[np.ndarray, "n w"],
        weights: Float[np.ndarray, " n"] | None,
        rng: np.random.Generator,
    ) -> FittedDiffusion:
        import torch

        labels = self._labels(data)
        values = data[:, : self.d].astype(np.float32)
        centre, scale = values.mean(axis=0), np.float32(values.std() or 1.0)
        joined = np.column_stack([(values - centre) / scale, labels]).astype(np.float32)
        rows = torch.from_numpy(draw_rows(joined, weights, rng))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        network = self._untrained(generator)
        signal = torch.from_numpy(self._signal())
        with torch.enable_grad():
            for parameter in network.values():
                parameter.requires_grad_()
            optimizer = torch.optim.Adam(network.values(), lr=_RATE)
            for step in range(self.steps):
                for group in optimizer.param_groups:
                    group["lr"] = _RATE * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
                batch = rows[torch.randint(rows.shape[0], (_BATCH,), generator=generator)]
                x, label = batch[:, : self.d], batch[:, self.d].long()
                dropped = torch.rand(_BATCH, generator=generator) < _NO_LABEL
                label = torch.where(dropped, self.classes, label)
                t = torch.randint(self.timesteps, (_BATCH,), generator=generator)
                noise = torch.randn(x.shape, generator=generator)
                kept = signal[t][:, None]
                guess = self._noise(network, kept.sqrt() * x + (1 - kept).sqrt() * noise, t, label)
                loss = ((guess - noise) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        shares = np.bincount(joined[:, self.d].astype(np.int64), weights, minlength=max(self.classes, 1))
        return FittedDiffusion(
            self,
            {name: parameter.detach() for name, parameter in network.items()},
            centre, scale, shares / shares.sum(), data.dtype,
        )  # fmt: skip

    def _labels(self, data: np.ndarray) -> np.ndarray:
        if data.ndim != 2 or data.dtype.kind != "f" or data.shape[0] < 2 or data.shape[1] != self.width:
            raise ValueError(
                f"Diffusion: data must be floating rows [n {self.width}] with n >= 2, "
                f"got {data.dtype} {data.shape}"
            )
        if self.classes == 0:
            return np.zeros(data.shape[0], dtype=np.float32)
        labels = data[:, self.d]
        if not np.isin(labels, np.arange(self.classes)).all():
            raise ValueError(f"Diffusion: the last column must hold labels 0 … {self.classes - 1}")
        return labels.astype(np.float32)

    def _signal(self) -> np.ndarray:
        """The share of variance that is still signal after each step, on the cosine schedule."""
        t = np.arange(self.timesteps + 1) / self.timesteps
        kept = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        ratio = np.maximum(kept[1:] / kept[:-1], 1e-3)
        return np.cumprod(ratio).astype(np.float32)

    def _untrained(self, generator: Any) -> dict[str, Tensor]:
        import torch

        def matrix(out: int, into: int) -> Tensor:
            return torch.randn((out, into), generator=generator) / math.sqrt(into)

        h = self.hidden
        return {
            "in": matrix(h, self.d), "time": matrix(h, _TIME), "label": matrix(self.classes + 1, h) * 0.5,
            "bias_1": torch.zeros(h), "middle": matrix(h, h), "bias_2": torch.zeros(h),
            "middle_2": matrix(h, h), "bias_3": torch.zeros(h),
            "out": torch.zeros(self.d, h), "bias_out": torch.zeros(self.d),
        }  # fmt: skip

    def _noise(self, network: dict[str, Tensor], x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The guessed noise in x `[b d]` at times t `[b]` for labels `[b]` (`classes`: none)."""
        import torch
        from torch.nn.functional import linear, silu

        rates = torch.exp(-math.log(1000.0) * torch.arange(_TIME // 2) / (_TIME // 2))
        angles = t[:, None] * (1000.0 / self.timesteps) * rates
        time = torch.cat([angles.sin(), angles.cos()], dim=1)
        told = linear(time, network["time"]) + network["label"][label]
        h = silu(linear(x, network["in"], network["bias_1"]) + told)
        h = h + silu(linear(h, network["middle"], network["bias_2"]) + told)
        h = h + silu(linear(h, network["middle_2"], network["bias_3"]))
        return linear(h, network["out"], network["bias_out"])

    def load(self, state: dict[str, np.ndarray]) -> FittedDiffusion:
        import torch

        network = {
            name.removeprefix("network/"): torch.from_numpy(np.array(array))
            for name, array in state.items()
            if name.startswith("network/")
        }
        return FittedDiffusion(
            self, network, state["centre"], np.float32(state["scale"]), state["shares"], state["rows"].dtype
        )


@dataclass(frozen=True, eq=False)
class FittedDiffusion:
    """What `Diffusion.fit` returns."""

    template: Diffusion
    network: dict[str, Tensor]
    centre: np.ndarray
    scale: np.float32
    shares: np.ndarray
    dtype: np.dtype[Any]

    def fit(self, data: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator) -> FittedDiffusion:
        return self.template.fit(data, weights, rng)

    def load(self, state: dict[str, np.ndarray]) -> FittedDiffusion:
        return self.template.load(state)

    def state(self) -> dict[str, np.ndarray]:
        arrays = {f"network/{name}": tensor.numpy() for name, tensor in self.network.items()}
        return arrays | {
            "centre": self.centre, "scale": np.asarray(self.scale), "shares": self.shares,
            "rows": np.zeros(0, self.dtype),
        }  # fmt: skip

    def sample(self, n: int, bias: float, rng: np.random.Generator) -> Float[np.ndarray, "n w"]:
        import torch

        t = self.template
        if t.classes > 0 and bias == 0.0:
            raise ValueError("Diffusion: bias must be > 0 with classes: the guidance is 1/bias − 1, got 0.0")
        labels = rng.choice(self.shares.size, n, p=self.shares)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        guidance, heat = (1.0 / bias - 1.0, 1.0) if t.classes else (0.0, math.sqrt(bias))
        parts = []
        with torch.inference_mode():
            for begin in range(0, n, _AT_ONCE):
                label = torch.from_numpy(labels[begin : begin + _AT_ONCE])
                label = label if t.classes else torch.zeros_like(label)
                parts.append(self._denoise(label, guidance, heat, generator).numpy())
        values = np.concatenate([*parts, np.zeros((0, t.d), np.float32)]) * self.scale + self.centre
        rows = np.column_stack([values, labels]) if t.classes else values
        return np.asarray(rows, dtype=self.dtype)

    def _denoise(self, label: Tensor, guidance: float, heat: float, generator: Any) -> Tensor:
        """Rows of the labels, from noise back in `timesteps` ancestral steps."""
        import torch

        template = self.template
        signal = template._signal()
        x = torch.randn((label.shape[0], template.d), generator=generator) * heat
        for step in reversed(range(template.timesteps)):
            t = torch.full((label.shape[0],), step)
            noise = template._noise(self.network, x, t, label)
            if guidance:
                without = template._noise(self.network, x, t, torch.full_like(label, template.classes))
                noise = (1.0 + guidance) * noise - guidance * without
            now = float(signal[step])
            before = float(signal[step - 1]) if step else 1.0
            kept = now / before
            # The step's clean guess is kept within the range that standardised data has.
            clean = ((x - math.sqrt(1.0 - now) * noise) / math.sqrt(now)).clamp(-8.0, 8.0)
            x = (math.sqrt(before) * (1.0 - kept) * clean + math.sqrt(kept) * (1.0 - before) * x) / (
                1.0 - now
            )
            if step:
                spread = math.sqrt((1.0 - before) / (1.0 - now) * (1.0 - kept))
                x = x + heat * spread * torch.randn(x.shape, generator=generator)
        return x
