"""Angles against plain floats and transformers; the rotation against complex numbers."""

import math
from typing import Any

import pytest
import torch

from lmlab.rope import (
    ABF,
    PI,
    DynamicNTK,
    Llama3,
    LogN,
    LongRoPE,
    NTKAware,
    NTKFixed,
    NTKMixed,
    Proportional,
    ReRoPE,
    Rotary,
    Window,
    YaRN,
    distances,
    frequencies,
    rotate,
)
from lmlab.rope import rotary as rotary_file

T0, BASE, DIM = 128, 10000.0, 16


def _plain(formula: Any) -> torch.Tensor:
    return torch.tensor([formula(m, BASE ** (-2 * m / DIM)) for m in range(DIM // 2)], dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "length", "formula"),
    [
        (None, 900, lambda m, t: t),
        (PI(3), None, lambda m, t: t / 3),
        (PI(), 512, lambda m, t: t / 4),
        (PI(), 64, lambda m, t: t),
        (NTKAware(4), None, lambda m, t: (BASE * 4 ** (16 / 14)) ** (-m / 8)),
        (NTKFixed(4), None, lambda m, t: t / 4 ** ((m + 1) / 8)),
        (NTKMixed(4), None, lambda m, t: t * math.exp(-math.log(4) * ((m + 1) / 8) ** 0.625)),
        (DynamicNTK(2), 512, lambda m, t: (BASE * 7 ** (16 / 14)) ** (-m / 8)),
        (ABF(5e5), None, lambda m, t: 5e5 ** (-m / 8)),
        (Proportional(0.4, 2), None, lambda m, t: t / 2 if m < 3 else 0),
        (LongRoPE((1.5,) * 8, (3.0,) * 8), 128, lambda m, t: t / 1.5),
        (LongRoPE((1.5,) * 8, (3.0,) * 8), 129, lambda m, t: t / 3),
        (
            YaRN(4, fast=8),
            None,
            lambda m, t: t * (lambda g: g + (1 - g) / 4)(min(1, max(0, (T0 * t / 2 / math.pi - 1) / 7))),
        ),
        (
            YaRN(4),  # fast is 2 at T₀ = 128
            None,
            lambda m, t: t * (lambda g: g + (1 - g) / 4)(min(1, max(0, T0 * t / 2 / math.pi - 1))),
        ),
        (
            Llama3(8, 1, 4),
            None,
            lambda m, t: (lambda g: (1 - g) * t / 8 + g * t)(min(1, max(0, (T0 * t / 2 / math.pi - 1) / 3))),
        ),
    ],
)
def test_frequencies_by_their_formulas(method: Any, length: int | None, formula: Any) -> None:
    theta, _ = frequencies(Rotary(DIM, BASE, T0), method, length=length)
    assert theta.dtype == torch.float64
    torch.testing.assert_close(theta, _plain(formula), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "method",
    [PI(1), NTKAware(1), NTKFixed(1), NTKMixed(1), YaRN(1), YaRN(1, ramp="index"), Llama3(1), ABF(BASE)],
)
def test_a_factor_of_one_is_exactly_plain(method: Any) -> None:
    rotary = Rotary(DIM, BASE, T0)
    assert torch.equal(frequencies(rotary, method)[0], frequencies(rotary)[0])


def test_factors_of_none_follow_the_length_and_are_plain_within_the_trained_one() -> None:
    rotary = Rotary(DIM, BASE, T0)
    plain = frequencies(rotary)[0]
    for cls in (PI, NTKAware, NTKFixed, NTKMixed, YaRN):
        assert torch.equal(frequencies(rotary, cls(), length=T0)[0], plain)
        assert torch.equal(frequencies(rotary, cls())[0], plain)
        torch.testing.assert_close(frequencies(rotary, cls(), length=3 * T0), frequencies(rotary, cls(3)))
    assert torch.equal(frequencies(rotary, DynamicNTK(4), length=T0)[0], plain)


def test_methods_that_are_one_another() -> None:
    rotary = Rotary(DIM, BASE, T0)
    close = {"rtol": 1e-13, "atol": 0.0}
    torch.testing.assert_close(frequencies(rotary, NTKMixed(3, 0)), frequencies(rotary, PI(3)), **close)
    torch.testing.assert_close(frequencies(rotary, NTKMixed(3, 1)), frequencies(rotary, NTKFixed(3)), **close)
    torch.testing.assert_close(
        frequencies(rotary, DynamicNTK(1), length=700), frequencies(rotary, NTKAware(), length=700), **close
    )


def test_factors_of_the_logits() -> None:
    rotary = Rotary(DIM, BASE, T0, attention_factor=1.1)
    assert frequencies(rotary)[1] == 1.1
    assert frequencies(rotary, YaRN(4))[1] == pytest.approx(1.1 * (0.1 * math.log(4) + 1), rel=1e-15)
    assert frequencies(rotary, YaRN(0.5))[1] == frequencies(rotary, YaRN(4, attention_factor=1))[1] == 1.1
    long = LongRoPE((1.0,) * 8, (2.0,) * 8, factor=4)
    assert frequencies(rotary, long)[1] == pytest.approx(
        1.1 * math.sqrt(1 + math.log(4) / math.log(T0)), rel=1e-15
    )


def test_given_angles_override_the_base() -> None:
    given = tuple(0.5**m for m in range(8))
    rotary = Rotary(DIM, BASE, T0, inv_freq=given)
    assert frequencies(rotary)[0].tolist() == list(given)
    assert frequencies(rotary, PI(4))[0].tolist() == [x / 4 for x in given]


@pytest.mark.peer
@pytest.mark.parametrize(
    ("parameters", "method", "length"),
    [
        ({"rope_type": "linear", "factor": 4.0}, PI(4), None),
        ({"rope_type": "dynamic", "factor": 2.0}, DynamicNTK(2), 8192),
        ({"rope_type": "dynamic", "factor": 2.0}, DynamicNTK(2), 1024),
        ({"rope_type": "yarn", "factor": 4.0}, YaRN(4, fast=32, ramp="index"), None),
        (
            {"rope_type": "yarn", "factor": 8.0, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
            YaRN(8, fast=16, slow=2, ramp="index", truncate=False),
            None,
        ),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            Llama3(8, 1, 4),
            None,
        ),
        ({"rope_type": "longrope", "factor": 4.0}, "longrope", 1024),
        ({"rope_type": "longrope", "factor": 4.0}, "longrope", 4096),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.25}, Proportional(0.25), None),
    ],
)
def test_frequencies_are_those_of_transformers(
    parameters: dict[str, Any], method: Any, length: int | None
) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = parameters["rope_type"]
    if kind not in ROPE_INIT_FUNCTIONS:
        pytest.skip(f"this transformers knows no {kind}")
    dim, base, trained = 64, 500000.0, 2048
    short, long = [1 + 0.01 * m for m in range(32)], [1 + 0.3 * m for m in range(32)]
    if method == "longrope":
        method = LongRoPE(tuple(short), tuple(long), factor=4)
        parameters = parameters | {"short_factor": short, "long_factor": long}
    config = transformers.LlamaConfig(
        hidden_size=4 * dim,
        num_attention_heads=4,
        max_position_embeddings=trained if kind == "dynamic" else 8192,
        rope_parameters={"rope_theta": base, "original_max_position_embeddings": trained, **parameters},
    )
    theirs, their_factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
    ours, our_factor = frequencies(Rotary(dim, base, trained), method, length=length)
    torch.testing.assert_close(theirs.double(), ours[: len(theirs)], rtol=3e-6, atol=0)
    assert our_factor == pytest.approx(their_factor, rel=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "d"), [(8, 8), (6, 9)])
def test_rotation_is_multiplication_by_a_unit_number(interleaved: bool, dim: int, d: int) -> None:
    x = torch.randn(2, 3, 5, d, dtype=torch.float64)
    positions = torch.tensor([[0.0, 1, 2.5, 7, 100], [3, 4, 5, 6, 7]], dtype=torch.float64)
    theta, _ = frequencies(Rotary(dim))
    out = rotate(x, positions, theta, interleaved=interleaved)
    pairs = slice(0, dim, 2), slice(1, dim, 2)
    if not interleaved:
        pairs = slice(0, dim // 2), slice(dim // 2, dim)
    phase = torch.polar(torch.ones(()).double(), positions[..., None] * theta)[:, None]
    want = torch.complex(x[..., pairs[0]], x[..., pairs[1]]) * phase
    torch.testing.assert_close(out[..., pairs[0]], want.real, rtol=0, atol=1e-14)
    torch.testing.assert_close(out[..., pairs[1]], want.imag, rtol=0, atol=1e-14)
    assert torch.equal(out[..., dim:], x[..., dim:])
    assert torch.equal(out[0], rotate(x[:1], positions[0], theta, interleaved=interleaved)[0])


def test_rotation_has_exact_gradients() -> None:
    x = torch.randn(1, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    theta = frequencies(Rotary(4))[0]
    torch.autograd.gradcheck(lambda x: rotate(x, torch.arange(3), theta), x)
    torch.autograd.gradgradcheck(lambda x: rotate(x, torch.arange(3), theta, interleaved=True), x)


def test_positions_of_a_million_are_exact_in_float32() -> None:
    at = torch.arange(1_000_000 - 8, 1_000_000 + 8)
    theta = frequencies(Rotary(64))[0]
    one = torch.zeros(1, 1, 16, 64)
    one[..., :32] = 1
    got = rotate(one, at, theta)[0, 0, :, :32].double()
    assert (got - (at[:, None].double() * theta).cos()).abs().max() <= 2e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_type_gets_angles_as_exact(dtype: torch.dtype) -> None:
    at = torch.arange(1_000_000 - 8, 1_000_000 + 8)
    for method in (None, NTKAware(500), YaRN(500)):
        theta = frequencies(Rotary(64), method)[0]
        cos, sin = rotary_file.tables(at, theta, torch.empty(0, dtype=dtype))
        angles = at[:, None].double() * theta
        assert cos.dtype == sin.dtype == torch.float32
        assert (cos - angles.cos()).abs().max() <= 2e-7
        assert (sin - angles.sin()).abs().max() <= 2e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_turned_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 6, 8).to(dtype)
    theta = frequencies(Rotary(8))[0]
    at = torch.arange(6) * 1001
    assert torch.equal(rotate(x, at, theta), rotate(x.float(), at, theta).to(dtype))


def test_empty_inputs() -> None:
    theta = frequencies(Rotary(4))[0]
    assert rotate(torch.zeros(1, 2, 0, 4), torch.arange(0), theta).shape == (1, 2, 0, 4)


@pytest.mark.bad_input
def test_bad_input_of_rotate() -> None:
    theta = frequencies(Rotary(8))[0]
    with pytest.raises(ValueError, match=r"x must have at least 8 dims .* got 6"):
        rotate(torch.zeros(1, 1, 2, 6), torch.arange(2), theta)
    with pytest.raises(ValueError, match=r"positions must have shape \(2,\) or \(1, 2\), got \(3,\)"):
        rotate(torch.zeros(1, 1, 2, 8), torch.arange(3), theta)
    with pytest.raises(ValueError, match=r"short and long must have 4 numbers .* got 2"):
        frequencies(Rotary(8), LongRoPE((1, 1), (2, 2)))


def test_distances_for_figures() -> None:
    plain = distances(None, 5)
    assert plain[3, 1] == 2 and plain[1, 3].isnan() and plain.dtype == torch.float64
    assert distances(ReRoPE(2) | LogN(), 5)[4].tolist() == [2, 2, 2, 1, 0]
    window = distances(Window(2, sinks=1), 5)
    assert window[4].tolist()[0] == 2 and window[4, 1:3].isnan().all() and window[1, 0] == 1
    assert distances(PI(), 8, train_length=4)[7, 0] == 3.5


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_native_rotation_has_the_bits_of_torch(interleaved: bool, dtype: torch.dtype) -> None:
    for seed, (b, t, f, d) in enumerate([(1, 1, 1, 2), (2, 37, 5, 13), (3, 8, 16, 32), (2, 700, 32, 64)]):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(b, t, 3, d, generator=draw, dtype=dtype).transpose(1, 2)
        for shape in ((t, f), (1, f), (b, t, f)):
            cos, sin = (torch.randn(shape, generator=draw, dtype=dtype) for _ in range(2))
            got = rotary_file.turn(x, cos, sin, interleaved=interleaved)
            if cos.ndim == 3:
                cos, sin = cos[:, None], sin[:, None]
            want = rotary_file._turned_by_torch(x, cos, sin, interleaved, torch.empty(x.shape, dtype=dtype))
            assert torch.equal(got, want)
