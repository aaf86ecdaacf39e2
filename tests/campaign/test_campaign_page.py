"""The page in the documentation is the one that the counts make."""

import json

from campaign.table import COUNTS, PAGE, page


def test_the_page_is_made_from_the_counts() -> None:
    counts = json.loads(COUNTS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(counts)
    ended = {name for told in counts.values() for name in told["outcomes"]}
    assert not ended & {"other bits", "no clear error", "not mended"}
