"""The factor on attention logits: what it may depend on, and which value a rule gives.

Logits are m (q . k). For q and k of unit variance q . k has variance d, so m = alpha / sqrt(d), with alpha
the factor on logits of unit variance; alpha = 1 is the usual rule. The article asks which alpha lets the
largest gradient through (kexue.fm/archives/9812); the file gradient.py says what is exact in that.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lmlab.attention import gradient

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["annealed", "fit", "typical", "share"]

# Where alpha is the root of an integral, rows are interpolated: a polynomial a panel of this width in log n.
_PANEL = 2.0
_DEGREE = 12


@runtime_checkable
class ScaleRule(Protocol):
    """The multiplier of q . k as a function of n, the number of keys that a query sees."""

    def __call__(self, n: Tensor, *, head_dim: int) -> Tensor:
        """n: float64 of any shape `[*n]`. Returns `[*n]`, or `[h, *n]` where heads differ."""
        ...


@dataclass(frozen=True)
class InverseSqrt:
    """1 / sqrt(d), the usual rule ("Attention is all you need", 1706.03762)."""

    def __call__(self, n: Tensor, *, head_dim: int) -> Tensor:
        return n.new_full(n.shape, head_dim**-0.5)


@dataclass(frozen=True)
class MuP:
    """1 / d, or sqrt(base_dim) / d, which equals the usual rule at d = base_dim (muP, 2203.03466)."""

    base_dim: int | None = None

    def __post_init__(self) -> None:
        if self.base_dim is not None and self.base_dim < 1:
            raise ValueError(f"base_dim must be >= 1, got {self.base_dim}")

    def __call__(self, n: Tensor, *, head_dim: int) -> Tensor:
        return n.new_full(n.shape, math.sqrt(self.base_dim or 1) / head_dim)


def _check_floor(floor: float) -> None:
    if not floor >= 0:
        raise ValueError(f"floor must be >= 0, got {floor}")


@dataclass(frozen=True)
class EntropyInvariant:
    """max(floor, ln n / ln train_length) / sqrt(d): a row keeps its entropy as n grows (kexue.fm 8823)."""

    train_length: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.train_length < 2:
            raise ValueError(f"train_length must be >= 2, got {self.train_length}")
        _check_floor(self.floor)

    def __call__(self, n: Tensor, *, head_dim: int) -> Tensor:
        return (n.log() / math.log(self.train_length)).clamp(min=self.floor) / math.sqrt(head_dim)


@dataclass(frozen=True)
class GradientScale:
    """alpha(n) / sqrt(d) with alpha from the gradient that a row of n logits lets through.

    form "annealed": maximiser of the article's approximation, (1 + 2 alpha^2) e^(alpha^2) = n.
    form "fit":      its fit, 0.84 sqrt(ln n); for cosines in 128 dimensions 3.5 ln n.
    form "typical":  1.03 sqrt(2 ln n), which maximises the geometric mean of the row measure.
    form "share":    where the exact mean has reached `share` of its limit (it has no maximum).
    n: a fixed number of keys (the article: half the longest length, for a decoder), or None: every row's own.
    logits "cosine": q and k are unit vectors, and alpha itself is the multiplier.
    floor: least alpha; "annealed" falls below 1 for n < 5.
    """

    form: Form = "annealed"
    share: float = 0.9
    n: float | None = None
    logits: gradient.Logits = "normal"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.form not in ("annealed", "fit", "typical", "share"):
            raise ValueError(f'form must be "annealed", "fit", "typical" or "share", got {self.form!r}')
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}")
        if self.n is not None:
            gradient.check_n(self.n)
        if self.logits not in ("normal", "cosine"):
            raise ValueError(f'logits must be "normal" or "cosine", got {self.logits!r}')
        if self.logits == "cosine" and self.form == "typical":
            raise ValueError('form="typical" is known for logits="normal" only; use "annealed" or "share"')
        _check_floor(self.floor)

    def __call__(self, n: Tensor, *, head_dim: int) -> Tensor:
        seen = n if self.n is None else n.new_tensor(self.n)
        alpha = self.alpha(seen, head_dim=head_dim).clamp(min=self.floor).expand(n.shape)
        return alpha if self.logits == "cosine" else alpha / math.sqrt(head_dim)

    def alpha(self, n: Tensor, *, head_dim: int | None) -> Tensor:
        """The factor on logits of unit variance (or on cosines), before the floor."""
        gradient.check_logits(self.logits, head_dim)
        if self.form == "typical":
            return 1.03 * (2 * n.log()).sqrt()
        if self.form == "fit":
            if self.logits == "normal":
                return 0.84 * n.log().sqrt()
            if head_dim != 128:
                raise ValueError(
                    f'form="fit" for cosines was fitted at head_dim=128, got {head_dim}; use "annealed"'
                )
            return 3.5 * n.log()
        if self.form == "annealed" and self.logits == "normal":
            return _annealed_normal(n)
        if n.ndim == 0:  # one number, asked for once; rows come as tensors, again and again
            return n.new_tensor(_solve(self.form, self.share, self.logits, head_dim, float(n)))
        log_n = n.double().log().flatten().numpy(force=True)
        alpha = np.empty_like(log_n)
        panels = np.floor(log_n / _PANEL)
        for panel in np.unique(panels):
            here = panels == panel
            alpha[here] = _panel(self.form, self.share, self.logits, head_dim, int(panel))(log_n[here])
        if self.form == "annealed":
            alpha *= np.sqrt(log_n)
        return n.new_tensor(alpha).view(n.shape)


def as_number(scale: float | Tensor | ScaleRule | None, head_dim: int) -> float | Tensor | ScaleRule | None:
    """The number of a rule that gives every row the same; anything else as it is."""
    if isinstance(scale, (InverseSqrt, MuP)) or (isinstance(scale, GradientScale) and scale.n is not None):
        return _same_for_all(scale, head_dim)
    return scale


@lru_cache(maxsize=1024)
def _same_for_all(rule: ScaleRule, head_dim: int) -> float:
    import torch

    return float(rule(torch.ones((), dtype=torch.float64), head_dim=head_dim))


def attention_scale_of(option: Any, *, train_length: int, heads: int) -> float | ScaleRule | None:
    """The `scale` of `attend` from what a recipe says: None, a number, a rule's name, or a table with `rule`.

    Names: "inv-sqrt", "mup", "log-n", "gradient", "learned", "ssmax". A table holds the fields of the rule's
    class beside `rule`; a train_length or heads that it doesn't give is the model's.
    Raises ValueError that names the rule or the field.
    """
    if option is None or (isinstance(option, (int, float)) and not isinstance(option, bool)):
        return option
    table = {"rule": option} if isinstance(option, str) else dict(option)
    name = table.pop("rule", None)
    if name in ("learned", "ssmax"):
        from lmlab.attention.learned import LearnedScale

        length: Any = table.pop("train_length", train_length)
        initial: ScaleRule = EntropyInvariant(length) if name == "ssmax" else InverseSqrt()
        return _make(name, LearnedScale, {"heads": heads, "initial": initial} | table)
    rules: dict[str, Callable[..., ScaleRule]] = {
        "inv-sqrt": InverseSqrt,
        "mup": MuP,
        "log-n": EntropyInvariant,
        "gradient": GradientScale,
    }
    if name not in rules:
        raise ValueError(f"scale must name a rule ({', '.join([*rules, 'learned', 'ssmax'])}), got {name!r}")
    if name == "log-n":
        table.setdefault("train_length", train_length)
    return _make(name, rules[name], table)


def _make(name: str, rule: Callable[..., ScaleRule], fields: dict[str, Any]) -> ScaleRule:
    known = list(inspect.signature(rule).parameters)
    for field in fields:
        if field not in known:
            raise ValueError(
                f'scale rule "{name}" has no field {field!r}; its fields: {", ".join(known) or "none"}'
            )
    return rule(**fields)


@overload
def attention_scale(n: float, *, head_dim: int | None = ..., rule: ScaleRule = ...) -> float: ...
@overload
def attention_scale(n: Tensor, *, head_dim: int | None = ..., rule: ScaleRule = ...) -> Tensor: ...
def attention_scale(
    n: float | Tensor, *, head_dim: int | None = None, rule: ScaleRule = GradientScale()
) -> float | Tensor:
    """What a rule gives for a row of n keys.

    head_dim None: alpha, the factor on logits of unit variance. With head_dim: the multiplier of q . k.
    A float for a number, a float64 tensor of n's shape for a tensor.

    Raises ValueError for n < 1 or head_dim < 1, TypeError for a rule that isn't an object.
    """
    import torch

    check_rule(rule, "rule")
    seen = torch.as_tensor(n, dtype=torch.float64)
    if seen.numel():
        gradient.check_n(float(seen.min()))
    if head_dim is not None and head_dim < 1:
        raise ValueError(f"head_dim must be >= 1, got {head_dim}")
    if head_dim is None and isinstance(rule, GradientScale):
        value = rule.alpha(seen, head_dim=None).clamp(min=rule.floor).expand(seen.shape)
    elif head_dim is None and isinstance(rule, MuP):
        raise ValueError(
            "MuP depends on the width: give head_dim, e.g. attention_scale(1024, head_dim=64, rule=MuP())"
        )
    else:
        value = rule(seen, head_dim=1 if head_dim is None else head_dim)
    return value if not isinstance(n, (int, float)) else float(value)


def check_rule(rule: object, argument: str) -> None:
    """TypeError for a rule's name or class where the object is meant."""
    if isinstance(rule, (str, type)) or not callable(rule):
        raise TypeError(f"{argument} must be a rule such as InverseSqrt(), got {rule!r}")


def _annealed_normal(n: Tensor) -> Tensor:
    """Root alpha of (1 + 2 alpha^2) e^(alpha^2) = n; alpha^2 = W(n sqrt(e) / 2) - 1/2 with Lambert's W."""
    log_n = n.log()
    # x = alpha^2 solves x + log(1 + 2x) = log n: a start within 1.4 %, and two steps of Halley's method, which
    # triples the digits. Written in x and log1p, small x is as exact as large.
    x = log_n * (1 + 0.39 * log_n) / (3 + 0.382 * log_n)
    for _ in range(2):
        twice = 2 * x
        left = log_n - x - twice.log1p()
        slope = twice + 3
        x = x + left * (twice + 1) * slope / (slope.square() - 2 * left)
    return x.sqrt()


@lru_cache(maxsize=4096)
def _solve(form: Form, share: float, logits: gradient.Logits, head_dim: int | None, n: float) -> float:
    """Annealed: maximiser of alpha (1 - M(2 alpha) / (n M(alpha)^2)), M the moment generating function of a
    cosine. Share: root alpha of f(alpha, n) = share * f(infinity, n)."""
    if form == "annealed":
        assert head_dim is not None
        return 0.0 if n == 1 else _root(lambda a: gradient.annealed_log_n(a, head_dim) - math.log(n), 1.0)
    n = max(n, 1 + 1e-9)  # at n = 1 both sides are 0; their ratio has a limit
    if logits == "normal" or head_dim is None:
        goal = share * gradient.limit_normal(n)
        return _root(lambda a: gradient.exact_normal(a, n) / goal - 1, 1.0)
    goal = share * gradient.limit_cosine(n, head_dim)
    return _root(lambda a: gradient.exact_cosine(a, n, head_dim) / goal - 1, 1.0)


@lru_cache(maxsize=256)
def _panel(
    form: Form, share: float, logits: gradient.Logits, head_dim: int | None, panel: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """`_solve` as a polynomial in log n on one panel, over sqrt(log n) where it begins like that (annealed)."""

    def values(log_n: NDArray[np.float64]) -> NDArray[np.float64]:
        alpha = [_solve(form, share, logits, head_dim, math.exp(x)) for x in log_n]
        return np.array(alpha) / (np.sqrt(log_n) if form == "annealed" else 1.0)

    low = panel * _PANEL
    fitted = np.polynomial.Chebyshev.interpolate(values, deg=_DEGREE, domain=[low, low + _PANEL])
    return cast("Callable[[NDArray[np.float64]], NDArray[np.float64]]", fitted)


def _root(rising: Callable[[float], float], start: float) -> float:
    """Root of a rising function on (0, infinity), negative near 0: bracket by doubling, then Illinois."""
    low, high = 0.0, start
    at_low, at_high = -1.0, rising(start)
    while at_high < 0:
        low, at_low = high, at_high
        high *= 2
        at_high = rising(high)
    side = 0
    for _ in range(100):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = rising(middle)
        if abs(value) < 1e-12 or high - low < 1e-13 * high:
            return middle
        if value < 0:
            low, at_low = middle, value
            at_high = at_high / 2 if side < 0 else at_high
            side = -1
        else:
            high, at_high = middle, value
            at_low = at_low / 2 if side > 0 else at_low
            side = 1
    return middle
