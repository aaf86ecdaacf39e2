"""The methods and tensors that the tests of `attend` and of its caches go through."""

from typing import Any

import torch
from torch import Tensor

from lmlab.rope import (
    ABF,
    DCA,
    PI,
    ALiBi,
    CosA,
    DynamicNTK,
    InvLeakyReRoPE,
    KeyNorm,
    LeakyReRoPE,
    Llama3,
    LogN,
    LongRoPE,
    NTKAware,
    NTKFixed,
    NTKMixed,
    Proportional,
    ReRoPE,
    Rotary,
    SelfExtend,
    Temperature,
    Window,
    YaRN,
)

T0 = 16
PLAIN = Rotary(8, base=100.0, train_length=T0)
ODD = Rotary(6, base=50.0, train_length=T0, interleaved=True, attention_factor=1.1)  # with heads of 9 dims


def bands(w: int) -> list[Any]:
    return [
        *(Window(w), Window(w, 1), Window(w, 3), ReRoPE(w), LeakyReRoPE(w, 3.7), InvLeakyReRoPE(w, 2.0)),
        *(SelfExtend(w, 1), SelfExtend(w, 3), DCA(w, 0), DCA(w + 2, 2)),
    ]


OTHERS = [
    *(
        None,
        PI(),
        PI(2),
        NTKAware(),
        NTKFixed(3),
        NTKMixed(3),
        DynamicNTK(2),
        ABF(1e3),
        YaRN(),
        YaRN(4, ramp="index"),
    ),
    *(LongRoPE((1.0, 2.0, 3.0, 4.0), (4.0, 5.0, 6.0, 7.0)), Llama3(4), Proportional(0.5, 2)),
    *(LogN(), LogN(8, clip=False), Temperature(1.3), KeyNorm(), CosA(), CosA("position"), CosA(30), ALiBi()),
    *(
        ReRoPE(5) | LogN() | ALiBi() | NTKAware() | KeyNorm(),
        Window(5, 2) | ALiBi(),
        DCA(7, 2) | LogN() | YaRN(),
    ),
]
EVERY = bands(5) + OTHERS


def tensors(
    t: int,
    keys: int | None = None,
    *,
    b: int = 1,
    h: int = 2,
    hk: int = 2,
    d: int = 8,
    seed: int = 0,
    **kind: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    kind = {"dtype": torch.float64} | kind
    shapes = ((b, h, t, d), (b, hk, keys or t, d), (b, hk, keys or t, d))
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64).to(**kind) for shape in shapes)  # type: ignore[return-value]
