"""The rotated copies of q and k that the parts of a band meet in (`lmlab.attention.band`).

Where a copy's rows stand is a function of the row's own position, so its cos and sin are a table that all
layers and steps share: the tables last used are kept.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lmlab.rope import DCA, Rotary, Window
from lmlab.rope.band import BandMethod, ReRoPE, SplitMethod
from lmlab.rope.rotary import tables, turn

Place = str  # where a copy's rows stand: see `_stand`


def rotated_parts(
    method: BandMethod | None,
    q: Tensor,
    k: Tensor,
    i: Tensor,
    rotary: Rotary | None,
    theta: Tensor | None,
    spans: Sequence[tuple[int, int]],
) -> tuple[list[Tensor], list[Tensor]]:
    """The copies of q and of k, one a part.

    i: int64 positions of the queries, [t] of successive ones, or [b t]. theta: θ' [f], or [b f] where each
    row of the batch has its own. spans: the keys that each part is asked for; it gets those only."""
    places = _places(method)
    if rotary is None or theta is None:
        return [q] * len(places), [k[:, :, start:stop] for start, stop in spans]
    queries = [_turned(q, method, place, i, rotary, theta) for place, _ in places]
    found: dict[tuple[Place, tuple[int, int]], Tensor] = {}  # parts that need the same copy share it
    keys = []
    for (_, place), (start, stop) in zip(places, spans, strict=True):
        if (place, (start, stop)) not in found:
            j = torch.arange(start, stop)
            found[place, (start, stop)] = _turned(k[:, :, start:stop], method, place, j, rotary, theta)
        keys.append(found[place, (start, stop)])
    return queries, keys


def _places(method: BandMethod | None) -> list[tuple[Place, Place]]:
    """Where the queries and the keys of each part stand."""
    match method:
        case DCA():
            return [("in chunk", "in chunk"), ("after chunk", "in chunk"), ("beyond", "in chunk")]
        case Window(sinks=sinks) if sinks:
            return [("own", "own"), ("at sinks", "own")]
        case SplitMethod():
            return [("own", "own"), ("far query", "far key")]
    return [("own", "own")]


def _stand(method: BandMethod | None, place: Place, i: Tensor) -> Tensor:
    """Positions of rows i at this place; a single one where all rows share it."""
    match method, place:
        case DCA(), "in chunk":
            return i % method.step
        case DCA(chunk=chunk), "after chunk":
            return (i % method.step + method.step).clamp(max=chunk)
        case DCA(chunk=chunk), "beyond":
            return torch.tensor([chunk])
        case Window(window=window, sinks=sinks), "at sinks":
            return i.clamp(max=window + sinks - 1)
        case ReRoPE(window=window), "far query":
            return torch.tensor([window])
        case SplitMethod(), "far query":
            positions: Tensor = method.far_query(i.double())
            return positions
        case SplitMethod(), "far key":
            positions = method.far_key(i.double())
            return positions
    return i


def _turned(
    x: Tensor, method: BandMethod | None, place: Place, i: Tensor, rotary: Rotary, theta: Tensor
) -> Tensor:
    if x.shape[2] == 0 or (
        isinstance(method, ReRoPE) and place == "far key" and rotary.attention_factor == 1
    ):
        return x  # ReRoPE's far keys stand at 0
    if theta.ndim == 2:
        cos, sin = tables(_stand(method, place, i), theta, x)
    else:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        size = 1 << int(i.max()).bit_length()  # a table serves until the positions double
        cos, sin = _table(method, place, tuple(theta.tolist()), size, dtype, x.device)
        if cos.shape[0] > 1:
            rows = i if i.ndim == 2 else slice(int(i[0]), int(i[-1]) + 1)
            cos, sin = cos[rows], sin[rows]
    if rotary.attention_factor != 1:
        cos, sin = cos * rotary.attention_factor, sin * rotary.attention_factor
    return turn(x, cos, sin, interleaved=rotary.interleaved)


@lru_cache(maxsize=8)
def _table(
    method: BandMethod | None,
    place: Place,
    theta: tuple[float, ...],
    size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """cos and sin of rows 0 … size−1 at this place."""
    with torch.inference_mode(False):  # a table made here may serve a pass that needs gradients later
        like = torch.empty(0, dtype=dtype, device=device)
        return tables(
            _stand(method, place, torch.arange(size)), torch.tensor(theta, dtype=torch.float64), like
        )
