"""`attend` against the T × T formula, the identities of the methods, and decoding against one pass."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from extension_cases import EVERY, ODD, PLAIN, T0, bands, tensors
from lmlab.attention import attend
from lmlab.rope import (
    DCA,
    PI,
    ALiBi,
    CosA,
    DynamicNTK,
    InvLeakyReRoPE,
    KeyNorm,
    LeakyReRoPE,
    LogN,
    LongRoPE,
    NTKAware,
    NTKFixed,
    NTKMixed,
    ReRoPE,
    Rotary,
    SelfExtend,
    Temperature,
    Window,
    YaRN,
)
from lmlab.rope.reference import attend_reference


@pytest.mark.parametrize("w", [1, 2, 36, 37, 38])
def test_bands_are_the_formula(w: int) -> None:
    for method in bands(w):
        q, k, v = tensors(37)
        got = attend(q, k, v, rotary=PLAIN, extension=method)
        torch.testing.assert_close(
            got, attend_reference(q, k, v, rotary=PLAIN, extension=method), rtol=0, atol=2e-13
        )


@pytest.mark.parametrize("extension", EVERY, ids=repr)
@pytest.mark.parametrize(("t", "keys"), [(1, 1), (3, 3), (53, 53), (1, 23), (20, 61), (40, 43)])
def test_grouped_heads_partial_interleaved_and_scaled(extension: Any, t: int, keys: int) -> None:
    if isinstance(extension, LongRoPE):
        extension = LongRoPE(extension.short[:3], extension.long[:3])
    q, k, v = tensors(t, keys, b=2, h=6, hk=2, d=9)
    call = {"rotary": ODD, "extension": extension}
    got = attend(q, k, v, **call, offset=keys - t, scale=0.7)
    want = attend_reference(q, k, v, **call, scale=0.7)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-13)
    got = attend(q, k, v, **call, offset=keys - t)
    torch.testing.assert_close(got, attend_reference(q, k, v, **call), rtol=0, atol=2e-13)


@pytest.mark.parametrize("extension", EVERY, ids=repr)
@pytest.mark.parametrize(("t", "keys", "hk"), [(37, 37, 2), (37, 37, 1), (19, 41, 1), (2, 31, 2)])
def test_gradients_are_those_of_the_formula(extension: Any, t: int, keys: int, hk: int) -> None:
    inputs = [x.requires_grad_() for x in tensors(t, keys, b=2, hk=hk)]
    weight = torch.randn(2, 2, t, 8, dtype=torch.float64)
    call = {"rotary": PLAIN, "extension": extension}
    got = torch.autograd.grad((attend(*inputs, **call, offset=keys - t) * weight).sum(), inputs)
    want = torch.autograd.grad((attend_reference(*inputs, **call) * weight).sum(), inputs)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * float(theirs.abs().max()))


@pytest.mark.parametrize("w", [1, 2, 36, 37, 38])
def test_gradients_at_every_window(w: int) -> None:
    inputs = [x.requires_grad_() for x in tensors(37, b=2, h=6, hk=2, d=9)]
    weight = torch.randn(2, 6, 37, 9, generator=torch.Generator().manual_seed(w), dtype=torch.float64)
    for method in [*bands(w), SelfExtend(w, 3) | LogN() | NTKAware()]:
        call = {"rotary": ODD, "extension": method, "scale": 0.7}
        got = torch.autograd.grad(attend(*inputs, **call), inputs, weight)
        want = torch.autograd.grad(attend_reference(*inputs, **call), inputs, weight)
        for ours, theirs in zip(got, want, strict=True):
            bound = 1e-12 * max(1.0, float(theirs.abs().max()))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("extension", [None, *bands(3)], ids=repr)
def test_gradcheck(extension: Any) -> None:
    inputs = [x.requires_grad_() for x in tensors(9, h=1, hk=1, d=4)]
    rotary = Rotary(4, train_length=T0)
    torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, rotary=rotary, extension=extension), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype) -> None:
    for extension, (t, keys) in itertools.product(
        [*bands(16), LogN(), ALiBi()], [(80, 80), (1, 80), (30, 80)]
    ):
        q, k, v = tensors(t, keys, h=4, dtype=dtype)
        got = attend(q, k, v, rotary=PLAIN, extension=extension, offset=keys - t)
        want = attend_reference(q, k, v, rotary=PLAIN, extension=extension)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LeakyReRoPE(5, 1), None),
        (SelfExtend(5, 1), None),
        (InvLeakyReRoPE(5, 0.5), None),
        (LeakyReRoPE(5, 1e9), ReRoPE(5)),
        (NTKMixed(3, 0), PI(3)),
        (NTKMixed(3, 1), NTKFixed(3)),
        (DynamicNTK(1), NTKAware()),
        (Temperature(2) | LogN(), LogN() | Temperature(2)),
    ],
)
def test_methods_that_are_one_another(one: Any, other: Any) -> None:
    q, k, v = tensors(41)
    got, want = (attend(q, k, v, rotary=PLAIN, extension=e) for e in (one, other))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-7 if one == LeakyReRoPE(5, 1e9) else 1e-12)


@pytest.mark.parametrize(
    "extension",
    [
        *(
            Window(T0),
            Window(T0, 4),
            ReRoPE(T0),
            LeakyReRoPE(T0, 4),
            SelfExtend(T0, 4),
            InvLeakyReRoPE(T0, 2),
        ),
        *(
            DCA(T0, 0),
            DCA(T0 + 4, 4),
            PI(),
            NTKAware(),
            NTKFixed(),
            NTKMixed(),
            YaRN(),
            DynamicNTK(3),
            LogN(),
        ),
        *(ReRoPE(T0) | LogN() | YaRN(), Temperature(1)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_within_the_trained_length_nothing_changes_bit_for_bit(extension: Any, dtype: torch.dtype) -> None:
    for t, keys in ((T0, T0), (T0 - 3, T0 - 3), (1, T0), (5, T0)):
        q, k, v = tensors(t, keys, h=4, dtype=dtype)
        call = {"rotary": PLAIN, "offset": keys - t}
        assert torch.equal(attend(q, k, v, **call, extension=extension), attend(q, k, v, **call))


def test_half_types_stand_where_they_should_at_a_million() -> None:
    """A bfloat16 query at position 10⁶: what it sees in the last keys and in the first ones."""
    keys, dim, dtype = 1_000_001, 4, torch.bfloat16
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, 1, dim, generator=draw).to(dtype)
    k, v = torch.zeros(2, 1, 1, keys, dim, dtype=dtype)
    seen = torch.cat((torch.arange(6), torch.arange(keys - 6, keys)))
    k[0, 0, seen] = 6 * torch.randn(12, dim, generator=draw).to(dtype)
    v[0, 0, seen] = torch.randn(12, dim, generator=draw).to(dtype)
    rotary = Rotary(dim, train_length=2048)
    for extension in (NTKAware(500), ReRoPE(512) | LogN()):
        call = {"rotary": rotary, "extension": extension}
        got = attend(q, k, v, **call, offset=keys - 1)
        want = attend_reference(q, k, v, **call)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=0.05)


def test_later_tokens_do_not_touch_earlier_rows() -> None:
    for extension in EVERY:
        q, k, v = tensors(50, dtype=torch.float32)
        before = attend(q, k, v, rotary=PLAIN, extension=extension)
        for x in (q, k, v):
            x[:, :, 30:] += 1
        after = attend(q, k, v, rotary=PLAIN, extension=extension)
        assert torch.equal(before[:, :, :30], after[:, :, :30])


def test_no_rotary_positions() -> None:
    q, k, v = tensors(30)
    for extension in (
        None,
        ALiBi(),
        Window(7),
        Window(7, 2),
        LogN(16),
        CosA("position"),
        KeyNorm(),
        ALiBi((0.1, 2)),
    ):
        got = attend(q, k, v, extension=extension)
        torch.testing.assert_close(got, attend_reference(q, k, v, extension=extension), rtol=0, atol=1e-12)


def test_scales_numbers_tensors_and_rules() -> None:
    q, k, v = tensors(30, b=2, h=4, hk=2)
    row = torch.rand(30, dtype=torch.float64) + 0.5

    def rule(n: Tensor, *, head_dim: int) -> Tensor:
        return (n.double() + 1).log() / head_dim**0.5

    def by_head(n: Tensor, *, head_dim: int) -> Tensor:
        return torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)[:, None] * rule(n, head_dim=head_dim)

    n = torch.arange(1, 31)
    for extension in (None, ReRoPE(5) | LogN(), KeyNorm()):
        call = {"rotary": PLAIN, "extension": extension}
        for scale, multiplier in (
            (2, torch.tensor(2.0)),
            (0.5, torch.tensor(0.5)),
            (row, row),
            (rule, rule(n, head_dim=8)),
            (by_head, by_head(n, head_dim=8)),
        ):
            by_hand = attend(q * multiplier.expand(2, 4, 30)[..., None], k, v, **call, scale=1.0)
            torch.testing.assert_close(attend(q, k, v, **call, scale=scale), by_hand, rtol=0, atol=1e-12)
    in_window = attend(q, k, v, rotary=PLAIN, extension=Window(7, 2), scale=rule)
    factor = rule(n.clamp(max=9), head_dim=8)[:, None]
    by_hand = attend(q * factor, k, v, rotary=PLAIN, extension=Window(7, 2), scale=1.0)
    torch.testing.assert_close(in_window, by_hand, rtol=0, atol=1e-12)
    late = attend(q[:, :, 20:], k, v, rotary=PLAIN, scale=by_head, offset=20)
    torch.testing.assert_close(
        late, attend(q, k, v, rotary=PLAIN, scale=by_head)[:, :, 20:], rtol=0, atol=1e-12
    )
    ragged = attend(q[:, :, 20:], k, v, rotary=PLAIN, scale=by_head, offset=torch.tensor([20, 20]))
    torch.testing.assert_close(ragged, late, rtol=0, atol=1e-12)


def test_a_scale_that_learns_gets_its_gradient() -> None:
    q, k, v = tensors(20)
    gain = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)

    def total(gain: Tensor) -> Tensor:
        return attend(
            q, k, v, rotary=PLAIN, extension=ReRoPE(4), scale=lambda n, head_dim: gain * n.double().log()
        )

    torch.autograd.gradcheck(total, gain)


def test_empty_inputs() -> None:
    for b, t in ((2, 0), (0, 3)):
        q, k, v = tensors(t, b=b)
        assert attend(q, k, v, rotary=PLAIN, extension=ReRoPE(4)).shape == q.shape
    q, k, v = tensors(3)
    assert attend(q[:, :, :0], k, v, rotary=PLAIN, offset=3).shape == (1, 2, 0, 8)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: attend(q, k, v, offset=1), r"offset must be 0 \(keys 5 − queries 5\), got 1"),
        (lambda q, k, v: attend(q[:, :, :2], k, v), r"offset must be 3 \(keys 5 − queries 2\), got 0"),
        (
            lambda q, k, v: attend(q[:, :, :2], k, v, offset=torch.tensor([4])),
            r"offset must be between 0 and 3",
        ),
        (lambda q, k, v: attend(q, k, v, offset=torch.tensor([-1])), r"got \[-1\]"),
        (lambda q, k, v: attend(q, k, v, offset=torch.zeros(2).long()), r"int64 tensor of shape \(1,\)"),
        (lambda q, k, v: attend(q, k, v, length=4), "length must be at least the number of keys 5, got 4"),
        (
            lambda q, k, v: attend(q, k[:, :1], v),
            r"k and v must have one shape, got \(1, 1, 5, 8\) and \(1, 2, 5, 8\)",
        ),
        (lambda q, k, v: attend(q[:, [0, 1, 0]], k, v), "q has 3, k has 2"),
        (
            lambda q, k, v: attend(q[..., :4], k, v),
            r"k must have q's batch 1 and dim 4, got shape \(1, 2, 5, 8\)",
        ),
        (
            lambda q, k, v: attend(q[0], k, v),
            r"q must have shape \[batch, heads, time, dim\], got \(2, 5, 8\)",
        ),
        (
            lambda q, k, v: attend(q, k, v, rotary=Rotary(10)),
            "rotary.dim must be at most the head dim 8, got 10",
        ),
        (
            lambda q, k, v: attend(q, k, v, extension=ReRoPE(3)),
            r"ReRoPE\(window=3\) changes rotary positions: pass",
        ),
        (
            lambda q, k, v: attend(q, k, v, extension=PI(3)),
            r"PI\(factor=3.0\) changes rotary positions: pass",
        ),
        (
            lambda q, k, v: attend(q, k, v, extension=LogN()),
            r"LogN needs a train length: LogN\(train_length=2048\)",
        ),
        (lambda q, k, v: attend(q, k, v, extension=CosA()), "CosA needs a train length"),
        (
            lambda q, k, v: attend(q, k, v, extension=ALiBi((1.0,))),
            "slopes must have one number for each of 2 heads",
        ),
        (
            lambda q, k, v: attend(q, k, v, rotary=PLAIN, extension=LongRoPE((1.0,), (1.0,))),
            "short and long must have 4 numbers",
        ),
        (lambda q, k, v: attend(q, k, v, extension=[ReRoPE(3), Window(4)]), "two band methods"),
        (
            lambda q, k, v: attend(q, k, v, scale=torch.ones(7)),
            r"scale must broadcast to \(1, 2, 5\), got \(7,\)",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[Tensor, Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*tensors(5))


@pytest.mark.bad_input
def test_wrong_types_are_named() -> None:
    q, k, v = tensors(5)
    with pytest.raises(TypeError, match=r"extension must be a method such as ReRoPE\(window=1024\)"):
        attend(q, k, v, extension="rerope")
    for wrong in ("log-n", LogN):
        with pytest.raises(TypeError, match=r"scale must be .* InverseSqrt\(\)"):
            attend(q, k, v, scale=wrong)
