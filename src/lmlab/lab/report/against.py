"""Each loop at its last generation against its control, paired by seed: what is a difference and what isn't."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmlab.lab.intervals import Difference, paired
from lmlab.lab.report.figure import Figure, Panel, Table, html_table
from lmlab.lab.report.read import array, get
from lmlab.lab.report.text import escape, finite, number


def figure(
    arms: Sequence[Mapping[str, Any]], metrics: Sequence[str], names: Sequence[str], suffix: str, of: str
) -> Figure | None:
    """`names`: of the arms. None where no loop has a control with the same seeds."""
    controls = {_which(a): a for a in arms if a.get("control")}
    loops = [
        (arm, controls[_which(arm)], name)
        for arm, name in zip(arms, names, strict=True)
        if not arm.get("control") and _which(arm) in controls
    ]
    found = {
        metric: _differences([(arm, control) for arm, control, _ in loops], metric) for metric in metrics
    }
    if not any(found.values()):
        return None
    cells, rows = [], []
    for i, (arm, control, name) in enumerate(loops):
        line = [escape(name)]
        for metric in metrics:
            first, last = _ends(arm, metric)
            beside = _ends(control, metric)[1]
            one = found[metric].get(i)
            line.append(_told(last, one))
            rows.append(
                [arm.get("loop"), arm.get("bias"), metric, first, last, beside]
                + ([one.mean, one.low, one.high, one.level, one.seen] if one else [None] * 5)
            )
        cells.append(line)
    name = f"against{suffix}"
    columns = [
        "loop",
        "bias",
        "metric",
        "first",
        "last",
        "control",
        "difference",
        "low",
        "high",
        "level",
        "seen",
    ]
    return Figure(
        name,
        f"Against the control at the last generation{of}",
        "The loop's mean, and in brackets how far it is above its control, paired by seed; bold where Student's "
        "interval leaves 0 out, held to 95 % over all loops of a column (Holm). What isn't bold is not known to "
        "differ.",
        [Panel(name, html_table(["loop", *metrics], cells), Table(columns, rows), wide=True)],
    )


def _which(arm: Mapping[str, Any]) -> tuple[str, str]:
    """Loop and bias, which an arm and its control have in common, as text: a file may hold anything there."""
    return str(arm.get("loop")), str(arm.get("bias"))


def _differences(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metric: str
) -> dict[int, Difference]:
    """By arm, where every seed of both has a number."""
    apart = {}
    for i, (arm, control) in enumerate(pairs):
        ours, theirs = _last(arm, metric), _last(control, metric)
        if ours and len(ours) == len(theirs):
            apart[str(i)] = [a - b for a, b in zip(ours, theirs, strict=True)]
    found: dict[int, Difference] = {}
    if apart:
        n = len(next(iter(apart.values())))
        same = {key: row for key, row in apart.items() if len(row) == n}
        found = {int(key): one for key, one in paired({"": [0.0] * n} | same, "").items()}
    return found


def _last(arm: Mapping[str, Any], metric: str) -> list[float]:
    """The last generation's value of each seed; none if one is missing."""
    ends = [
        finite(array(row)[-1]) if array(row) else None for row in array(get(arm, "metrics", metric, "values"))
    ]
    known = [v for v in ends if v is not None]
    return known if len(known) == len(ends) else []


def _ends(arm: Mapping[str, Any], metric: str) -> tuple[float | None, float | None]:
    means = array(get(arm, "metrics", metric, "mean"))
    return (finite(means[0]), finite(means[-1])) if means else (None, None)


def _told(last: float | None, one: Difference | None) -> str:
    if one is None:
        return number(last, 3)
    sign = "+" if one.mean >= 0 else "−"
    text = f"{number(last, 3)} ({sign}{number(abs(one.mean), 3)})"
    return f"<strong>{text}</strong>" if one.seen else text
