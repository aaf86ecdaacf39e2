"""In float32 `attend` is as good as the formula with float32 numbers, forward and backward."""

from typing import Any

import pytest
import torch

from extension_cases import EVERY, ODD, PLAIN, bands, tensors
from lmlab.attention import attend
from lmlab.rope import LongRoPE
from lmlab.rope.reference import attend_reference


@pytest.mark.parametrize("extension", [*EVERY, *bands(1), *bands(37)], ids=repr)
def test_float32_is_as_good_as_naive_float32(extension: Any) -> None:
    rotary, dim = (PLAIN, 8) if isinstance(extension, LongRoPE) else (ODD, 9)
    ours, naive = 0.0, 0.0
    for seed in range(3):
        exact = [x.requires_grad_() for x in tensors(151, h=4, hk=2, d=dim, seed=seed)]
        weight = torch.randn(
            1, 4, 151, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        call = {"rotary": rotary, "extension": extension}
        want = attend_reference(*exact, **call)
        want_grads = torch.autograd.grad(want, exact, weight)
        single = [x.detach().float().requires_grad_() for x in exact]
        errors = []
        for out in (attend(*single, **call), attend_reference(*single, **call, dtype=torch.float32)):
            grads = torch.autograd.grad(out, single, weight.float())
            assert out.dtype == torch.float32
            errors.append(
                [
                    float((a.detach() - b.detach()).norm() / weight.norm())
                    for a, b in zip((out, *grads), (want, *want_grads), strict=True)
                ]
            )
        ours, naive = ours + torch.tensor(errors[0]), naive + torch.tensor(errors[1])
    assert (ours <= 2 * naive + 1e-6).all(), (ours / naive).tolist()
