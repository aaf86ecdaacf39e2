"""The first part of a run's report as a PNG, for the README: python tests/lab/picture.py RUN OUT.png"""

import base64
import sys
from pathlib import Path

from browser import Browser

WIDTH = 1040
LAST = "bits-per-byte"  # the figure at which the picture ends


def picture(report: Path) -> bytes:
    """The page from its top to the end of one figure."""
    with Browser() as browser:
        browser.open(report, width=WIDTH)
        place = f"document.querySelector('#figure-{LAST}').getBoundingClientRect().bottom + scrollY"
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": browser.evaluate(place) + 8, "scale": 1}
        shot = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    return base64.b64decode(shot["data"])


if __name__ == "__main__":
    run, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(picture((run / "report.html").resolve()))
