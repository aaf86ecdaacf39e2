"""Every wrong call gets one error that names the argument, what was given and the right call."""

import pytest
import torch
from torch import Tensor

from lmlab.losses import (
    EMO,
    Cost,
    Focal,
    LinearLoss,
    LogitsLoss,
    MixCE,
    TaiLr,
    linear_loss,
    logits_loss,
    named_loss,
)

pytestmark = pytest.mark.bad_input

HIDDEN, WEIGHT, TARGET = torch.randn(2, 3, 4), torch.randn(5, 4), torch.tensor([[0, 1, 2], [4, -100, 0]])


def _raises(error: type[Exception], text: str, *args: object, **options: object) -> None:
    given = [HIDDEN, WEIGHT, TARGET]
    given[: len(args)] = [new if new is not None else old for new, old in zip(args, given, strict=False)]
    with pytest.raises(error, match=text):
        linear_loss(*given, **options)


def test_shapes() -> None:
    _raises(ValueError, r"hidden must be \[… d\] and weight \[v d\]; got hidden \(2, 3, 3\)", HIDDEN[..., :3])
    _raises(ValueError, r"weight \(5, 4, 1\)", None, WEIGHT[..., None])
    _raises(ValueError, r"weight must have at least one row", None, WEIGHT[:0])
    _raises(
        ValueError,
        r"target must have the leading axes of its partner, \(2, 3\); got \(6,\)",
        None,
        None,
        TARGET.flatten(),
    )
    _raises(ValueError, r"bias must be \[v\] = \[5\]; got \(4,\)", bias=torch.zeros(4))
    with pytest.raises(ValueError, match=r"logits must be \[… v\] with at least one word; got \(3, 0\)"):
        logits_loss(torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64))


def test_types() -> None:
    _raises(TypeError, r"hidden must be a floating-point tensor; got torch.int64", HIDDEN.long())
    _raises(TypeError, r"weight must be a floating-point tensor; got torch.uint8", None, WEIGHT.byte())
    _raises(
        TypeError,
        r"target must be an int64 tensor of word ids; got torch.float32",
        None,
        None,
        TARGET.float(),
    )
    _raises(
        TypeError,
        r"hidden torch.bfloat16, weight torch.float32: cast them to one dtype, or.*autocast",
        HIDDEN.bfloat16(),
    )
    _raises(
        TypeError, r"all tensors must be on one device; got hidden on meta, weight on cpu", HIDDEN.to("meta")
    )
    _raises(TypeError, r"cost must be a Cost, such as cost=Cost.frozen\(weight\); got Tensor", cost=WEIGHT)
    _raises(
        TypeError,
        r"the cost's embedding is on meta, the head on cpu: call cost.to\(weight.device\)",
        cost=Cost.frozen(WEIGHT).to("meta"),
    )


def test_targets_outside_the_vocabulary() -> None:
    for bad in (5, -1, 10**12):
        target = TARGET.clone()
        target[1, 1] = bad
        _raises(
            IndexError,
            rf"target\[1, 1\] = {bad} is outside \[0, 5\) and isn't ignore_index=-100",
            None,
            None,
            target,
        )
    with pytest.raises(IndexError, match=r"target\[0\] = 7"):
        logits_loss(torch.randn(1, 5), torch.tensor([7]))


def test_options() -> None:
    _raises(ValueError, r"EMO\(.*\) needs a cost: pass cost=Cost.frozen\(weight\)", loss="emo")
    _raises(ValueError, r"the cost knows 6 words and the head 5", loss="emo", cost=Cost.zero_one(6))
    _raises(ValueError, r"label_smoothing=1.5 must be between 0 and 1", label_smoothing=1.5)
    _raises(ValueError, r"label_smoothing=0.1 with TVD", loss="tvd", label_smoothing=0.1)
    _raises(ValueError, r"z_loss=-1 must be >= 0", z_loss=-1)
    _raises(ValueError, r"softcap=0 must be > 0", softcap=0)
    _raises(ValueError, r"""reduction='avg' must be "mean", "sum" or "none\"""", reduction="avg")
    _raises(ValueError, r"budget=-1 must be a number of bytes", budget=-1)
    _raises(ValueError, r"num_items with reduction='sum'", reduction="sum", num_items=4)
    _raises(ValueError, r"num_items=0 must be > 0", num_items=0)
    _raises(ValueError, r"num_items=0 must be > 0: 5 tokens of this call are kept", num_items=torch.tensor(0))
    _raises(
        ValueError, r"num_items must be an int or a 0-d tensor; got shape \(1,\)", num_items=torch.ones(1)
    )


def test_names_and_fields() -> None:
    _raises(ValueError, r"""loss 'cross' is unknown; known: "ce", "tvd",.*"emo2-adaptive\"""", loss="cross")
    _raises(ValueError, r"loss must be a dataclass of lmlab.losses or a name.*got 3", loss=3)
    with pytest.raises(ValueError, match=r"Focal \('focal'\) has no field 'eta'; it has: gamma"):
        named_loss("focal", eta=1)
    with pytest.raises(ValueError, match=r"CE \('ce'\) has no field 'x'; it has: no fields"):
        named_loss("ce", x=1)
    with pytest.raises(
        ValueError, match=r"""EMO\(balance='both'\): balance must be "none", "emo" or "ce\""""
    ):
        EMO("both")
    with pytest.raises(ValueError, match=r"clamp must be > 0, or None for no limit"):
        EMO(clamp=0)
    with pytest.raises(
        ValueError, match=r"""emo is a weight of balance="none" only; write EMO\("none", emo=0.3\)"""
    ):
        EMO(emo=0.3)
    with pytest.raises(ValueError, match=r"EMO\(ce=inf\)"):
        EMO("none", ce=float("inf"))
    with pytest.raises(ValueError, match=r"Focal\(gamma=-1\): gamma must be >= 0 and finite"):
        Focal(-1)
    with pytest.raises(ValueError, match=r"TaiLr\(floor=2\): floor must be between 0 and 1"):
        TaiLr(floor=2)
    with pytest.raises(ValueError, match=r"MixCE\(eta=nan\)"):
        MixCE(float("nan"))
    assert named_loss("emo", clamp=None) == named_loss("emo-paper")


def test_modules_check_their_options_when_they_are_made() -> None:
    for kind in (LinearLoss, LogitsLoss):
        with pytest.raises(ValueError, match="needs a cost"):
            kind("emo")
        with pytest.raises(ValueError, match="z_loss=-1"):
            kind(z_loss=-1)
    assert "TaiLr" in repr(LinearLoss("tailr"))


class _Partitioned(torch.nn.Parameter):
    """A parameter as ZeRO-3 leaves it outside of its gathering."""

    ds_status = "NOT_AVAILABLE"


def test_a_sharded_head_is_refused_before_any_work() -> None:
    _raises(
        ValueError,
        r"partitioned by ZeRO-3.*GatheredParameters\(\[weight\]\)",
        None,
        _Partitioned(torch.empty(0)),
    )
    flat = WEIGHT.flatten()
    flat._is_flat_param = True
    _raises(ValueError, r"sharded by FSDP.*summon_full_params", None, flat)

    class DTensor(Tensor):
        pass

    _raises(ValueError, r"DTensor.*weight.full_tensor\(\)", None, WEIGHT.as_subclass(DTensor))
