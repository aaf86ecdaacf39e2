"""What a campaign counts goes to counts.json, and from there into docs/campaign.md."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from campaign.table import COUNTS, PAGE, page

Tally = Callable[[str, Mapping[str, int]], None]


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Note what the cases of a campaign ended in; a short version's are not noted."""
    start = time.monotonic()
    long = request.node.get_closest_marker("campaign") is not None

    def note(what: str, outcomes: Mapping[str, int]) -> None:
        if not long:
            return
        counts = json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.exists() else {}
        seconds = round(time.monotonic() - start)
        counts[what] = {"cases": sum(outcomes.values()), "outcomes": dict(outcomes), "seconds": seconds}
        COUNTS.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        Path(PAGE).write_text(page(counts), encoding="utf-8")

    yield note
