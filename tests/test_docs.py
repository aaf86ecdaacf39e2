"""The documentation's frame: every page can be reached, every link leads somewhere, the API page is whole."""

import re
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
DOCS = HOME / "docs"
NAV = re.findall(r": (\S+\.md)$", (HOME / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
PAGES = sorted(DOCS.rglob("*.md"))


def test_every_page_is_in_the_navigation() -> None:
    assert {page.relative_to(DOCS).as_posix() for page in PAGES} <= set(NAV)
    assert len(NAV) == len(set(NAV))


@pytest.mark.parametrize(
    "page", [HOME / "README.md", *PAGES], ids=lambda page: page.relative_to(HOME).as_posix()
)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    planned = {DOCS / name for name in NAV}
    dead = [t for t in local if not (page.parent / t).exists() and page.parent / t not in planned]
    assert not dead


def test_the_api_page_has_every_public_name() -> None:
    """`scripts/public_names.py` writes it."""
    names = (HOME / "tests" / "public_names.txt").read_text(encoding="utf-8").split()
    sections = re.split(
        r"^## `lmlab\.(\w+)`$", (DOCS / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    listed = {
        f"lmlab.{room}.{name}"
        for room, body in zip(sections[1::2], sections[2::2], strict=True)
        for name in re.findall(r"^- `(\w+)", body, flags=re.MULTILINE)
    }
    assert set(names) == listed
