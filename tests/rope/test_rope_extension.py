"""Methods are values: checked when made, composed in any order, and written to recipes and back."""

import subprocess
import sys
from typing import Any

import pytest

from lmlab import rope
from lmlab.rope import (
    ABF,
    DCA,
    PI,
    ALiBi,
    CosA,
    DynamicNTK,
    Extension,
    InvLeakyReRoPE,
    KeyNorm,
    LayerPosition,
    LeakyReRoPE,
    LengthWarning,
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
    as_extension,
    extension_from_table,
    hybrid,
    warn_length,
)

EVERY = [
    *(PI(), PI(4), NTKAware(2.5), NTKFixed(), NTKMixed(2, 0.5), DynamicNTK(2), ABF(5e5)),
    *(
        YaRN(4, ramp="index", truncate=False),
        LongRoPE((1, 2), (3, 4), factor=2),
        Llama3(),
        Proportional(0.5, 2),
    ),
    *(
        Window(64),
        Window(64, sinks=4),
        ReRoPE(64),
        LeakyReRoPE(64, 8),
        InvLeakyReRoPE(64, 2),
        SelfExtend(64, 8),
    ),
    *(
        DCA(96, 32),
        LogN(),
        LogN(512, clip=False),
        Temperature(1.5),
        KeyNorm(),
        CosA(),
        CosA("position"),
        CosA(64),
    ),
    *(ALiBi(), ALiBi((0.5, 0.25))),
]


def test_order_and_nesting_do_not_matter() -> None:
    one = ReRoPE(64) | LogN() | YaRN(4)
    other = as_extension([YaRN(4), (LogN(), None), Extension((ReRoPE(64),))])
    assert one == other and hash(one) == hash(other)
    assert repr(one) == "YaRN(factor=4.0) | ReRoPE(window=64) | LogN()"
    assert as_extension(one) is one and as_extension(None) == Extension()
    assert (one | ALiBi()).find(ALiBi) == ALiBi() and one.find(DCA) is None


@pytest.mark.parametrize("method", EVERY, ids=repr)
def test_tables_there_and_back(method: rope.Method) -> None:
    extension = as_extension(method)
    tables = extension.to_tables()
    assert extension_from_table(tables) == extension
    assert extension_from_table(tables[0]) == extension
    assert eval(repr(method), vars(rope) | {name: getattr(rope, name) for name in rope.__all__}) == method


def test_a_list_of_tables_composes() -> None:
    given = extension_from_table([{"method": "logn"}, {"method": "rerope", "window": 32}])
    assert given == ReRoPE(32) | LogN()
    assert given.to_tables() == [{"method": "rerope", "window": 32}, {"method": "logn"}]
    assert extension_from_table([]) == extension_from_table(None) == Extension()


def test_the_door_opens_without_torch() -> None:
    code = (
        "import sys, lmlab.rope as r, lmlab.attention as a\n"
        "r.extension_from_table({'method': 'rerope', 'window': 4}), r.hybrid(4, 8), a.VQOptions\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    assert dir(rope) == sorted(rope.__all__)
    for name in rope.__all__:
        assert getattr(rope, name).__name__ == name


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReRoPE(0), "ReRoPE: window must be an integer >= 1, got 0"),
        (lambda: ReRoPE(2.5), "ReRoPE: window must be an integer >= 1, got 2.5"),
        (lambda: ReRoPE(2**53), r"ReRoPE: window must be an integer below 2\^53, got 9007199254740992"),
        (lambda: Window(-1), "Window: window must be an integer >= 1, got -1"),
        (lambda: Window(4, -1), "Window: sinks must be an integer >= 0, got -1"),
        (lambda: LeakyReRoPE(4, 0), "LeakyReRoPE: k must be a number > 0, got 0"),
        (lambda: InvLeakyReRoPE(4, -2), "InvLeakyReRoPE: b must be a number > 0, got -2"),
        (lambda: SelfExtend(4, 0), "SelfExtend: group must be an integer >= 1, got 0"),
        (lambda: DCA(0, 0), "DCA: chunk must be an integer >= 1, got 0"),
        (lambda: DCA(8, -1), "DCA: local must be an integer >= 0, got -1"),
        (lambda: DCA(8, 8), "DCA: local must be below chunk, got chunk=8, local=8"),
        (lambda: PI(0), "PI: factor must be a number > 0 or None, got 0"),
        (lambda: NTKAware(-1), "NTKAware: factor must be a number > 0 or None, got -1"),
        (lambda: NTKFixed(True), "NTKFixed: factor must be a number > 0 or None, got True"),
        (lambda: NTKMixed(2, -1), "NTKMixed: b must be a number >= 0, got -1"),
        (lambda: DynamicNTK(0), "DynamicNTK: factor must be a number > 0, got 0"),
        (lambda: ABF(0), "ABF: base must be a number > 0, got 0"),
        (lambda: YaRN(2, ramp="turn"), 'YaRN: ramp must be "turns" or "index", got \'turn\''),
        (lambda: YaRN(2, fast=1), "YaRN: slow must be below fast"),
        (lambda: LongRoPE((1, 2), (1,)), "LongRoPE: short and long must have one length, got 2 and 1"),
        (lambda: LongRoPE((), ()), r"LongRoPE: short must be D/2 numbers > 0, got \(\)"),
        (lambda: Llama3(low=4), "Llama3: low must be below high"),
        (lambda: Proportional(2), r"Proportional: share must be in \(0, 1\], got 2"),
        (lambda: Temperature(0), "Temperature: factor must be a number > 0, got 0"),
        (lambda: LogN(1), "LogN: train_length must be an integer >= 2, got 1"),
        (lambda: CosA("positions"), "CosA: n must be a number > 1, \"position\" or None, got 'positions'"),
        (lambda: CosA(1), 'CosA: n must be a number > 1, "position" or None, got 1'),
        (lambda: Rotary(7), "Rotary: dim must be an even integer >= 2, got 7"),
        (lambda: Rotary(0), "Rotary: dim must be an even integer >= 2, got 0"),
        (lambda: Rotary(8, base=0), "Rotary: base must be a number > 0, got 0"),
        (lambda: Rotary(8, inv_freq=(1.0,)), r"Rotary: inv_freq must have 4 numbers \(dim/2\), got 1"),
        (lambda: ReRoPE(4) | DCA(8, 2), r"two band methods, DCA\(chunk=8, local=2\) and ReRoPE\(window=4\)"),
        (lambda: PI() | YaRN(), r"two frequency methods, PI\(\) and YaRN\(\)"),
        (lambda: KeyNorm() | CosA(), r"two norm methods, CosA\(\) and KeyNorm\(\)"),
        (lambda: ALiBi() | ALiBi((1.0,)), "two bias methods"),
        (lambda: LogN() | LogN(64), "two logit methods"),
        (lambda: extension_from_table({"method": "reropee", "window": 4}), "did you mean 'rerope'"),
        (lambda: extension_from_table({"method": "ReRoPE", "window": 4}), "did you mean 'rerope'"),
        (
            lambda: extension_from_table({"method": "rerope", "windw": 4}),
            "no field 'windw' .did you mean 'window'",
        ),
        (lambda: extension_from_table({"method": "rerope"}), "method 'rerope' needs window"),
        (lambda: extension_from_table({"window": 4}), 'a table such as {method = "rerope", window = 1024}'),
        (lambda: hybrid(0, 8), "layers must be >= 1, got 0"),
        (lambda: hybrid(2, 8, kind="hwf"), 'kind must be "none", "hwfa" or "hwfa2", got \'hwf\''),
        (lambda: hybrid(1, 8), r"full must be at least 1 and below layers \(1\), got 1"),
        (lambda: hybrid(1, 8, kind="hwfa"), 'layers must be >= 2 for kind="hwfa", got 1'),
    ],
)
def test_bad_values_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "hint"), [("rerope", "got 'rerope'"), (4, "got 4"), (ReRoPE, r"did you mean ReRoPE\(")]
)
def test_not_an_extension(given: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=r"ReRoPE\(window=1024\).*" + hint):
        as_extension(given)


def test_hybrids() -> None:
    narrow = hybrid(4, 128, kind="hwfa")
    width = narrow[0].window
    assert width is not None and abs((width - 1) * 3 + 1 - 96) <= 1.5
    assert narrow == (LayerPosition(width, True),) * 3 + (LayerPosition(None, False),)
    assert hybrid(5, 100) == (
        *(LayerPosition(50, True),) * 2,
        LayerPosition(None, True),
        *(LayerPosition(50, True),) * 2,
    )
    assert [x.window for x in hybrid(6, 96, full=2, window=7)] == [7, 7, None, None, 7, 7]
    assert hybrid(3, 8, kind="none") == (LayerPosition(None, True),) * 3


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        (ReRoPE(97), "a window above 3/4 of the train length 128"),
        (SelfExtend(128, 4), "32 to 64 works"),
        (LeakyReRoPE(32, 2), "the farthest distance at length 1024 is 528, beyond the train length 128"),
        (DCA(129, 0), "chunk is above the train length 128"),
        (YaRN(4, fast=32), "no pair turns 32 times in 128 tokens"),
    ],
)
def test_doubtful_settings_warn(extension: rope.Method, message: str) -> None:
    with pytest.warns(LengthWarning, match=message) as found:
        warn_length(extension | LogN(), 128, 1024)
    assert len(found) == 1


def test_good_settings_do_not_warn() -> None:
    for extension in (ReRoPE(64) | LogN(), LeakyReRoPE(32, 32), YaRN(8), DCA(96, 8), Window(128)):
        warn_length(extension, 128, 1024)


def test_what_a_layer_without_rotary_takes() -> None:
    whole = rope.as_extension([rope.ReRoPE(4), rope.LogN(), rope.Temperature(2), rope.YaRN(), rope.ALiBi()])
    assert whole.without_rotary(64) == rope.LogN(train_length=64) | rope.Temperature(2)
    assert rope.as_extension(rope.CosA()).without_rotary(64) == rope.as_extension(rope.CosA(32.0))
    assert rope.as_extension(rope.LogN(16)).without_rotary(64) == rope.as_extension(rope.LogN(16))
