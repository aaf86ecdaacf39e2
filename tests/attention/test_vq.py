"""VQ attention against softmax over quantised keys, written out row by row in float64."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmlab.attention.scale import (
    EntropyInvariant,
    GradientScale,
    InverseSqrt,
    MuP,
    ScaleRule,
    attention_scale,
)
from lmlab.attention.vq import kernel, keys, reference, sweep
from lmlab.attention.vq.assign import assign_codes
from lmlab.attention.vq.function import vq_attention
from lmlab.attention.vq.state import VQState
from lmlab.rope import Rotary


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Case:
    """Random inputs of one shape, and the oracle's answer on them."""

    def __init__(
        self,
        *,
        seed: int,
        b: int = 1,
        g: int = 1,
        m: int = 1,
        t: int = 9,
        s: int = 5,
        d: int = 4,
        e: int = 3,
        w: int | None = None,
        position: str = "none",
        causal: bool = True,
        masked: bool = False,
        scaled: bool = False,
    ) -> None:
        h = g * m
        self.q, self.k, self.v = (
            normal(b, h, t, d, seed=seed),
            normal(b, g, t, d, seed=seed + 1),
            normal(b, g, t, e, seed=seed + 2),
        )
        self.codebook = normal(g, s, d, seed=seed + 3)
        self.options: dict[str, Any] = {}
        if position in ("bias", "both") and w:
            self.options["bias"] = normal(h, w if causal else 2 * w - 1, seed=seed + 4)
        if position in ("rotary", "both") and w and causal:
            self.options |= {"rotary": Rotary(4, base=50.0), "window": w}
        if not causal:
            self.options["causal"] = False
        if masked:
            generator = torch.Generator().manual_seed(seed + 5)
            self.options["key_mask"] = torch.rand(b, t, generator=generator) < 0.7
        if scaled:
            self.options["scale"] = normal(b, h, t, seed=seed + 6)
        self.codes = reference.nearest(self.k, self.codebook)

    def oracle(self, k_hat: Tensor | None = None, **changed: Tensor) -> Tensor:
        heads = torch.arange(self.codebook.shape[0])[:, None]
        options = (
            {"scale": self.q.shape[-1] ** -0.5}
            | self.options
            | {k: v for k, v in changed.items() if k == "bias"}
        )
        return reference.attention(
            changed.get("q", self.q),
            self.codebook[heads, self.codes] if k_hat is None else k_hat,
            changed.get("v", self.v),
            **options,
        )

    def ours(self, **changed: object) -> Tensor:
        inputs = {"q": self.q, "k": self.k, "v": self.v, "codebook": self.codebook} | self.options | changed
        out = vq_attention(**inputs)
        assert isinstance(out, Tensor)
        return out


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**20),
        "b": st.integers(1, 2),
        "g": st.integers(1, 3),
        "m": st.integers(1, 3),
        "t": st.integers(1, 40),
        "s": st.sampled_from([1, 2, 7, 30]),
        "d": st.sampled_from([4, 6]),
        "e": st.integers(1, 5),
        "w": st.sampled_from([1, 2, 5, 8, 50]),
        "position": st.sampled_from(["none", "bias", "rotary", "both"]),
        "causal": st.booleans(),
        "masked": st.booleans(),
        "scaled": st.booleans(),
    }
)


@settings(max_examples=150, deadline=None)
@given(shape=shapes, block=st.sampled_from([1, 2, 5, 8, None]))
def test_equals_the_oracle(shape: dict[str, Any], block: int | None) -> None:
    case = Case(**shape)
    assert (case.ours(block=block) - case.oracle()).abs().max() < 1e-12


@settings(max_examples=60, deadline=None)
@given(shape=shapes, cuts=st.lists(st.integers(0, 40), max_size=5), extra=st.sampled_from([0, 3]))
def test_cut_anywhere_it_is_one_call(shape: dict[str, Any], cuts: list[int], extra: int) -> None:
    case = Case(**shape | {"causal": True})
    bias, mask, scale = (case.options.get(name) for name in ("bias", "key_mask", "scale"))
    window = case.options.get("window") or (bias.shape[1] if isinstance(bias, Tensor) else 0)
    assert isinstance(window, int)
    b, g, t, e = case.v.shape
    states = [
        VQState.empty(b, g, case.codebook.shape[1], e, window=window + extra, dtype=torch.float64)
        for _ in range(2)
    ]
    whole = case.ours(state=states[0])
    edges = sorted({0, t, *(min(c, t) for c in cuts)})
    parts = []
    for low, high in itertools.pairwise(edges):
        part = slice(low, high)
        some: dict[str, object] = {"q": case.q[:, :, part], "k": case.k[:, :, part], "v": case.v[:, :, part]}
        some |= {"key_mask": mask[:, part]} if isinstance(mask, Tensor) else {}
        some |= {"scale": scale[:, :, part]} if isinstance(scale, Tensor) else {}
        parts.append(case.ours(state=states[1], block=3, **some))
    assert (torch.cat(parts, 2) - whole).abs().max() < 1e-12
    assert (whole - case.oracle()).abs().max() < 1e-12
    one, many = states
    assert torch.equal(one.count, many.count) and torch.equal(one.recent_codes, many.recent_codes)
    assert torch.equal(one.seen, many.seen) and one.position == many.position == t
    assert torch.allclose(one.mean, many.mean, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, block=st.sampled_from([1, 3, 8, None]))
def test_gradients_equal_those_of_the_oracle(shape: dict[str, Any], block: int | None) -> None:
    case = Case(**shape)
    heads = torch.arange(case.codebook.shape[0])[:, None]
    k_hat = case.codebook[heads, case.codes].clone().requires_grad_()
    leaves = {"q": case.q, "v": case.v} | ({"bias": case.options["bias"]} if "bias" in case.options else {})
    theirs = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    weight = normal(*case.q.shape[:3], case.v.shape[-1], seed=1)
    wanted = torch.autograd.grad(
        (case.oracle(k_hat, **theirs) * weight).sum(), [k_hat, *theirs.values()], allow_unused=True
    )
    ours = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    k, codebook = case.k.clone().requires_grad_(), case.codebook.clone().requires_grad_()
    out = case.ours(k=k, codebook=codebook, block=block, **ours)
    got = torch.autograd.grad((out * weight).sum(), [k, *ours.values(), codebook])
    for mine, right in zip(got, wanted, strict=False):
        assert (mine - (torch.zeros_like(mine) if right is None else right)).abs().max() < 1e-10
    by_code = torch.zeros_like(codebook)
    masked = case.options.get("key_mask")
    g = wanted[0] if wanted[0] is not None else torch.zeros_like(k_hat)
    g = g if masked is None else g * masked[:, None, :, None]
    for head in range(codebook.shape[0]):
        by_code[head].index_add_(0, case.codes[:, head].reshape(-1), g[:, head].reshape(-1, g.shape[-1]))
    assert (got[-1] - by_code).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("position", "causal"),
    [("none", True), ("bias", True), ("rotary", True), ("none", False), ("bias", False)],
)
def test_local_key_gradient_hears_two_blocks(position: str, causal: bool) -> None:
    block, t = 4, 19
    case = Case(seed=3, b=2, g=2, m=2, t=t, s=6, w=3, position=position, causal=causal)
    k_hat = case.codebook[torch.arange(2)[:, None], case.codes]
    wanted = torch.zeros_like(k_hat)
    weight = normal(2, 4, t, 3, seed=9)
    blocks = torch.arange(t) // block
    for j_block in range(int(blocks[-1]) + 1):
        # the oracle with all keys but those of one block detached, and only the queries that it may hear
        leaf = k_hat.clone().requires_grad_()
        heard = blocks - j_block if causal else (blocks - j_block).abs()
        hears = (heard >= 0) & (heard <= 1)
        out = case.oracle(leaf)
        (grad,) = torch.autograd.grad((out * weight * hears[None, None, :, None]).sum(), leaf)
        wanted[:, :, blocks == j_block] = grad[:, :, blocks == j_block]
    k = case.k.clone().requires_grad_()
    (got,) = torch.autograd.grad((case.ours(k=k, key_grad="local", block=block) * weight).sum(), k)
    assert (got - wanted).abs().max() < 1e-10
    k = case.k.clone().requires_grad_()
    q = case.q.clone().requires_grad_()
    none = torch.autograd.grad(
        (case.ours(q=q, k=k, key_grad="none") * weight).sum(), [k, q], allow_unused=True
    )
    every = torch.autograd.grad((case.ours(q=q, k=k) * weight).sum(), [k, q])
    assert none[0] is None or not bool(none[0].any())
    assert torch.equal(none[1], every[1])


def test_sums_over_codes_equal_pairs_for_key_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmlab.attention.vq import function

    case = Case(seed=5, b=2, g=2, m=2, t=50, s=4, w=6, position="rotary", masked=True)
    gradients = []
    for by_pairs in (True, False):
        monkeypatch.setattr(function, "_pairs_cost_less", lambda inputs, answer=by_pairs: answer)
        k = case.k.clone().requires_grad_()
        gradients.append(torch.autograd.grad(case.ours(k=k, block=7).square().sum(), k)[0])
    assert (gradients[0] - gradients[1]).abs().max() < 1e-12


def test_keys_that_are_codes_give_plain_attention() -> None:
    codebook = normal(2, 6, 8, seed=1)
    picks = torch.randint(6, (1, 2, 33), generator=torch.Generator().manual_seed(2))
    k = codebook[torch.arange(2)[:, None], picks]
    q, v = normal(1, 2, 33, 8, seed=3), normal(1, 2, 33, 5, seed=4)
    out = vq_attention(q, k, v, codebook, block=8)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert isinstance(out, Tensor) and (out - plain).abs().max() < 1e-12


def test_one_code_is_a_running_mean() -> None:
    v = normal(1, 1, 20, 3, seed=1)
    out = vq_attention(normal(1, 1, 20, 4, seed=2), normal(1, 1, 20, 4, seed=3), v, normal(1, 1, 4, seed=4))
    assert isinstance(out, Tensor)
    assert (out - v.cumsum(2) / torch.arange(1, 21)[:, None]).abs().max() < 1e-12


def test_causality_is_exact_and_ties_take_the_lowest_code() -> None:
    case = Case(seed=11, t=30, s=7, w=4, position="bias")
    before = case.ours(block=8)
    case.k[:, :, 20], case.v[:, :, 20] = 3.0, -1.0
    assert torch.equal(case.ours(block=8)[:, :, :20], before[:, :, :20])
    doubled = torch.cat([case.codebook, case.codebook], 1)
    assert torch.equal(assign_codes(case.k, doubled), assign_codes(case.k, case.codebook))
    assert torch.allclose(case.ours(codebook=doubled), case.ours(), atol=1e-14)


def test_a_scale_rule_counts_the_keys_that_were_seen() -> None:
    case = Case(seed=13, b=2, t=12, masked=True)
    mask = case.options["key_mask"]
    assert isinstance(mask, Tensor)
    rule = EntropyInvariant(8)
    by_hand = rule(mask.cumsum(-1).clamp(min=1).double(), head_dim=4)[:, None]
    assert (case.ours(scale=rule) - case.ours(scale=by_hand)).abs().max() < 1e-14
    state = VQState.empty(2, 1, 5, 3, dtype=torch.float64)
    parts = []
    for part in (slice(0, 5), slice(5, 12)):
        some = {name: getattr(case, name)[:, :, part] for name in ("q", "k", "v")}
        parts.append(case.ours(scale=rule, state=state, key_mask=mask[:, part], **some))
    assert (torch.cat(parts, 2) - case.ours(scale=rule)).abs().max() < 1e-12


@pytest.mark.parametrize("device_code", [False, True])
@pytest.mark.parametrize("position", ["bias", "rotary"])
@pytest.mark.parametrize("key_grad", ["all", "local"])
def test_autocast_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, device_code: bool, position: str, key_grad: str
) -> None:
    """Scores, sums and gradients stay in float32, by the kernels and by the torch operations of other devices."""
    if device_code:
        monkeypatch.setattr(kernel, "forward", sweep.forward)
    case = Case(seed=15, b=2, g=2, m=2, t=200, s=12, w=6, position=position)
    options = {
        name: x.float() if isinstance(x, Tensor) else x
        for name, x in (case.options | {"key_grad": key_grad}).items()
    }

    def run(autocast: bool) -> list[Tensor]:
        leaves = [x.float().requires_grad_() for x in (case.q, case.k, case.v, case.codebook)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = vq_attention(*leaves, block=32, **options)
            assert isinstance(out, Tensor)
            return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    for with_it, without in zip(run(True), run(False), strict=True):
        assert torch.equal(with_it, without)


@pytest.mark.parametrize("rule", [InverseSqrt(), MuP(16), GradientScale("share", n=40)])
def test_a_rule_that_is_the_same_for_all_rows_is_a_number(rule: ScaleRule) -> None:
    case = Case(seed=14, b=2, t=12, w=3, position="bias")
    number = attention_scale(12, head_dim=4, rule=rule)
    assert torch.equal(case.ours(scale=rule), case.ours(scale=number))
    rowwise = case.ours(scale=torch.full((2, 1, 12), number, dtype=torch.float64))
    assert (case.ours(scale=rule) - rowwise).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near(dtype: torch.dtype) -> None:
    case = Case(seed=17, t=600, s=16, d=8, e=8, w=8, position="bias")
    q, k, v = (x.to(dtype).requires_grad_() for x in (case.q, case.k, case.v))
    out = vq_attention(q, k, v, case.codebook.float(), bias=case.options["bias"].float(), codes=case.codes)
    assert isinstance(out, Tensor) and out.dtype == dtype
    assert (out.double() - case.ours()).abs().max() < 2e-2
    out.square().sum().backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in (q, k, v))


def test_float32_is_near_and_empty_calls_are_empty() -> None:
    case = Case(seed=19, b=2, g=2, m=2, t=300, s=16, d=8, e=8, w=8, position="bias")
    exact = case.ours()
    single = vq_attention(
        case.q.float(),
        case.k.float(),
        case.v.float(),
        case.codebook.float(),
        bias=case.options["bias"].float(),
        codes=case.codes,
    )
    assert isinstance(single, Tensor)
    assert (single.double() - exact).abs().max() < 3e-6 * case.v.abs().max()
    state = VQState.empty(2, 2, 16, 8, window=8)
    none, same = vq_attention(
        case.q[:, :, :0], case.k[:, :, :0], case.v[:, :, :0], case.codebook, state=state, return_state=True
    )
    assert none.shape == (2, 4, 0, 8) and same is state and state.position == 0


def test_state_is_of_constant_size_and_can_branch() -> None:
    case = Case(seed=23, b=3, t=10, s=4, w=4, position="bias")
    out, state = vq_attention(
        case.q, case.k, case.v, case.codebook, bias=case.options["bias"], return_state=True
    )
    size = state.nbytes
    branch = state.clone()
    case.ours(state=state)
    assert state.nbytes == size and state.position == 20 and branch.position == 10
    rows = torch.tensor([2, 0])
    some = branch.select(rows)
    part = {name: getattr(case, name)[rows] for name in ("q", "k", "v")}
    assert torch.allclose(case.ours(state=some, **part), case.ours(state=branch)[rows], atol=1e-14)
    assert out.shape == (3, 1, 10, 3)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, cut=st.integers(0, 12), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_token_by_token_is_the_whole(shape: dict[str, Any], cut: int, dtype: torch.dtype) -> None:
    """A prompt, then one token at a time: the native step where there is no rotary."""
    case = Case(**shape | {"causal": True, "t": min(shape["t"], 20)})
    bias, mask, scale = (case.options.get(name) for name in ("bias", "key_mask", "scale"))
    window = case.options.get("window") or (0 if bias is None else bias.shape[1])
    b, g, t, e = case.v.shape
    state = VQState.empty(b, g, case.codebook.shape[1], e, window=window, dtype=dtype)
    edges = [0, *range(min(cut, t), t + 1)]
    parts = []
    cast = {name: getattr(case, name).to(dtype) for name in ("q", "k", "v", "codebook")}
    if bias is not None:
        cast["bias"] = bias.to(dtype)
    for low, high in itertools.pairwise(edges):
        part = slice(low, high)
        some: dict[str, Any] = cast | {name: cast[name][:, :, part] for name in ("q", "k", "v")}
        some |= {} if mask is None else {"key_mask": mask[:, part]}
        some |= {} if scale is None else {"scale": scale[:, :, part].to(dtype)}
        with torch.no_grad():
            parts.append(case.ours(state=state, **some))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert (torch.cat(parts, 2) - case.oracle().to(dtype)).abs().max() < tolerance
    assert state.position == t


@settings(max_examples=40, deadline=None)
@given(shape=shapes, block=st.sampled_from([3, 8, 64]), hears=st.integers(0, 2), strict=st.booleans())
def test_the_torch_sweep_equals_the_native_one(
    shape: dict[str, Any], block: int, hears: int, strict: bool
) -> None:
    """What runs on other devices gives the same output, log-sum-exp, state and gradients."""
    case = Case(
        **shape
        | {"causal": True, "position": shape["position"].replace("both", "bias").replace("rotary", "bias")}
    )
    b, h, t, d = case.q.shape
    g, s, e = case.v.shape[1], case.codebook.shape[1], case.v.shape[-1]
    recent, seed = 3, shape["seed"]
    bias = case.options.get("bias")
    picks = torch.randint(-1, s, (b, g, recent), generator=torch.Generator().manual_seed(seed))
    inputs = sweep.Inputs(
        case.q.view(b, g, h // g, t, d),
        None,
        None,
        torch.cat([normal(b, g, recent, e, seed=seed + 7), case.v], 2),
        torch.cat([picks, case.codes], 2),
        case.codebook,
        None if bias is None else bias[:, :4].reshape(g, h // g, -1),
        0.7,
    )
    plan = sweep.Plan(block, 1 if bias is None else min(4, bias.shape[1]), recent, strict)
    start = sweep.Far(
        torch.randint(0, 3, (b, g, s), generator=torch.Generator().manual_seed(seed)).double(),
        normal(b, g, s, e, seed=seed + 8),
    )
    both = []
    for run in (sweep.forward, kernel.forward):
        far = start.clone()
        out, lse = run(plan, inputs, far)
        both.append([out, lse, far.count, far.mean])
    for ours, theirs in zip(*both, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)

    grad = normal(b, g, h // g, t, e, seed=seed + 9)
    rows = (lse, grad, (out * grad).sum(-1))
    slow = sweep.backward(plan, inputs, start, *rows, keys=True, codebook=True)
    limits = ((0, t, 0), (0, block, recent), (5, 4, 4))[hears]
    fast = kernel.backward(plan, inputs, start, *rows, hears=limits, codebook=True)
    assert slow.k is not None and slow.codebook is not None and fast.k is not None
    d_k = slow.k[:, :, recent:]
    if hears == 1:
        keys.far_part(fast.k, plan, inputs, *rows)
    elif hears == 2:
        d_k, _ = keys.by_pairs(plan, inputs, *rows, first=5, reach=4, blocks=2)
    wanted = [slow.q, d_k, slow.v[:, :, recent:], slow.codebook, slow.bias]
    for ours, theirs in zip([fast.q, fast.k, fast.v, fast.codebook, fast.bias], wanted, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or (ours - theirs).abs().max() < 1e-11


@pytest.mark.parametrize(
    ("g", "m", "t", "s", "d", "e", "w", "key_grad"),
    [
        (1, 1, 701, 33, 16, 24, 0, "all"),
        (2, 3, 390, 20, 8, 5, 150, "all"),
        (1, 2, 530, 300, 6, 17, 40, "local"),
        (1, 20, 140, 7, 4, 8, 9, "local"),
        (1, 1, 640, 3, 2, 1, 0, "all"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_long_sequences(
    g: int, m: int, t: int, s: int, d: int, e: int, w: int, key_grad: str, dtype: torch.dtype
) -> None:
    """Several tiles, chunks of keys, segments of time and blocks, against autograd of the whole matrix."""
    case = Case(
        seed=31, b=2, g=g, m=m, t=t, s=s, d=d, e=e, w=w, position="bias" if w else "none", masked=True
    )
    weight = normal(2, g * m, t, e, seed=32)
    leaves = {name: getattr(case, name).clone().requires_grad_() for name in ("q", "k", "v", "codebook")}
    leaves |= {name: x.clone().requires_grad_() for name, x in case.options.items() if name == "bias"}

    k_hat = leaves["codebook"][torch.arange(g)[:, None], case.codes]
    free = torch.zeros_like(k_hat).requires_grad_()
    logits = (leaves["q"] @ (k_hat + free).repeat_interleave(m, 1).mT) * d**-0.5
    distance = torch.arange(t)[:, None] - torch.arange(t)
    heard = torch.arange(t)[:, None] // 128 - torch.arange(t) // 128 < 2
    if key_grad == "local":  # the same numbers, whose far pairs send nothing to `free`
        deaf = (leaves["q"] @ k_hat.repeat_interleave(m, 1).mT) * d**-0.5
        logits = torch.where(heard, logits, deaf)
    if w:
        logits = logits + torch.where(distance < w, leaves["bias"][:, distance.clamp(0, w - 1)], 0.0)
    hidden = (distance < 0) | ~case.options["key_mask"][:, None, None]
    p = logits.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num(0.0)
    out = p @ leaves["v"].repeat_interleave(m, 1)
    named = {"q": leaves["q"], "k": free, "v": leaves["v"], "codebook": leaves["codebook"]}
    named |= {"bias": leaves["bias"]} if w else {}
    wanted = torch.autograd.grad((out * weight).sum(), list(named.values()))

    ours = {name: x.detach().to(dtype).requires_grad_() for name, x in leaves.items()}
    mask = case.options["key_mask"]
    got_out = vq_attention(**ours, key_mask=mask, codes=case.codes, key_grad=key_grad)  # type: ignore[arg-type]
    assert isinstance(got_out, Tensor)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    got = torch.autograd.grad((got_out * weight.to(dtype)).sum(), [ours[name] for name in named])
    for name, mine, right in zip(named, got, wanted, strict=True):
        assert (mine.double() - right).abs().max() < tolerance * max(1.0, float(right.abs().max())), name
