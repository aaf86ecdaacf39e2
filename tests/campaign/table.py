"""docs/campaign.md, from the counts of the last campaign."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COUNTS = Path(__file__).parent / "counts.json"
PAGE = Path(__file__).parents[2] / "docs" / "campaign.md"
HEAD = """# What survives

`make campaign` disturbs lmlab on purpose. Each case must end in the same bits as an undisturbed run, or in one
clear error that names what is wrong; after the error the same command, undisturbed, must give the same bits. A
short version of each part is in `make test`. The table is written by the campaign itself: each part when it has
run through, so that a row is always a whole run of its part.

How a fault is made: a library that is loaded before the program counts the calls that change a file (`write`,
`fsync`, `rename`, `open` with `O_CREAT`, `mkdir`, `link`), makes one of them fail after half of its bytes are
written, or all from it on, or ends the process there. Kills by the clock are sent from outside.

| what | cases | ended in | minutes |
|---|---:|---|---:|
"""


def page(counts: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for what, told in sorted(counts.items()):
        outcomes = sorted(told["outcomes"].items(), key=lambda pair: -pair[1])
        ended = "; ".join(f"{n:,} {name}" for name, n in outcomes)
        rows.append(f"| {what} | {told['cases']:,} | {ended} | {told['seconds'] / 60:.1f} |")
    return HEAD + "\n".join(rows) + "\n"
