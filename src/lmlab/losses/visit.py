"""The choice between the native visit of rows and the one in torch operations."""

from __future__ import annotations

import functools
import math
import warnings
from types import ModuleType

import torch
from torch import Tensor

from lmlab.losses import rows_torch
from lmlab.losses.kinds import CE, DFT, EMO, TVD, Focal, MixCE, TaiLr
from lmlab.losses.rows import RowCosts, RowOptions, RowResults, sum_dtype

_NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# In the order of `enum class Loss` in native/losses_rows.h; EMO has one number for each balance.
_LOSSES = ("CE", "TVD", "DFT", "Focal", "TaiLr", "MixCE", "EMO none", "EMO emo", "EMO ce")
# What the torch visit makes of a row beside its logits: z, e, costs, dz, in the type of the sums.
_TORCH_COPIES = 5


def row_bytes(v: int, dtype: torch.dtype, device: torch.device) -> int:
    """Memory that a visit of a row of v logits needs, the logits included."""
    sums = 8 if dtype == torch.float64 else 4
    return v * (dtype.itemsize + (0 if is_native(dtype, device) else _TORCH_COPIES * sums))


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether rows of logits of this type are visited by the native kernel."""
    return device.type == "cpu" and dtype in _NATIVE_DTYPES and native_module() is not None


@functools.cache
def native_module() -> ModuleType | None:
    """The compiled kernels; None, after one warning that says why, where they can't be loaded."""
    try:
        from lmlab._native import losses
    except ImportError as error:
        warnings.warn(
            f"lmlab.losses runs without its native kernels, slower and with the same results: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return losses  # type: ignore[no-any-return]


def visit_rows(
    u: Tensor,
    out: Tensor | None,
    target: Tensor,
    costs: RowCosts | None,
    options: RowOptions,
    scale: float | Tensor,
    rows: Tensor | None,
    tokens: Tensor,
    results: RowResults,
) -> None:
    """Visit rows of the logits u [.. v], each of which is contiguous.

    out: where du goes, like u (it may be u itself); None: no gradient. target [r]: the rows' targets. scale:
    the factor of each row's gradient, one for all or [r]. rows [r]: which rows of u and out are meant (None:
    0, 1, …). tokens [r]: where each row's results go.
    """
    if not is_native(u.dtype, u.device):
        rows_torch.visit_rows(u, out, target, costs, options, scale, rows, tokens, results)
        return
    module = native_module()
    assert module is not None
    loss, first, second, clamp, shift = _numbers(options)
    module.visit_rows(
        u.detach(),
        out,
        target,
        tokens,
        rows,
        None if costs is None else costs.table,
        None if costs is None else costs.index,
        _cost_kind(costs),
        scale.to(sum_dtype(u)) if isinstance(scale, Tensor) else None,
        1.0 if isinstance(scale, Tensor) else scale,
        results.value,
        results.ce,
        results.emo,
        results.lse,
        results.correct,
        loss,
        first,
        second,
        clamp,
        shift,
        options.label_smoothing,
        options.z_loss,
        options.softcap or 0.0,
        torch.get_num_threads(),
    )


def visit_soft_rows(
    u: Tensor,
    out: Tensor | None,
    costs: Tensor,
    mass: Tensor,
    weights: tuple[float, float],
    softcap: float | None,
    scale: float | Tensor,
    rows: Tensor | None,
    tokens: Tensor,
    results: RowResults,
) -> None:
    """Visit rows of u for soft labels: fills emo = Σ_i p_i r_i and lse, and du without the term of each τ_j z_j.

    costs [r v]: r_i = Σ_j τ_j c_ij. mass [r]: Σ_j τ_j. weights: of cross-entropy and of emo. u has the type of
    the sums; all else is as in `visit_rows`.
    """
    if not is_native(u.dtype, u.device):
        rows_torch.visit_soft_rows(u, out, costs, mass, weights, softcap, scale, rows, tokens, results)
        return
    module = native_module()
    assert module is not None
    module.visit_soft_rows(
        u.detach(),
        out,
        tokens,
        rows,
        costs,
        mass,
        scale.to(u.dtype) if isinstance(scale, Tensor) else None,
        1.0 if isinstance(scale, Tensor) else scale,
        results.emo,
        results.lse,
        *weights,
        softcap or 0.0,
        torch.get_num_threads(),
    )


def _cost_kind(costs: RowCosts | None) -> int:
    """The number of `enum class CostKind`: none, zero_one, cosines, costs."""
    if costs is None:
        return 0
    if costs.table is None:
        return 1
    return 2 if costs.cosines else 3


def _numbers(options: RowOptions) -> tuple[int, float, float, float, bool]:
    """(loss, first, second, clamp, shift) of `struct Options`."""
    name = type(options.loss).__name__
    first = second = 0.0
    clamp, shift = math.inf, False
    match options.loss:
        case CE() | TVD() | DFT():
            pass
        case Focal(gamma):
            first = gamma
        case TaiLr(gamma, floor):
            first, second = gamma, floor
        case MixCE(eta):
            first = eta
        case EMO(balance, most, shift, first, second):
            name = f"EMO {balance}"
            clamp = math.inf if most is None else most
    return _LOSSES.index(name), first, second, clamp, shift
