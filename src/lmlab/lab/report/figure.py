"""What a section of the report is made of: figures of panels, each with the numbers behind it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmlab.lab.report.chart import Drawing
from lmlab.lab.report.text import escape, visible


@dataclass(frozen=True)
class Table:
    """Numbers for a CSV file."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_cell(v) for v in self.columns)
        writer.writerows([_cell(v) for v in row] for row in self.rows)
        return out.getvalue()


@dataclass(frozen=True)
class Panel:
    """One drawing (saved as figures/NAME.svg, too) or table (HTML), with its numbers."""

    name: str
    body: Drawing | str
    table: Table
    title: str = ""
    wide: bool = False

    @property
    def html(self) -> str:
        return self.body.full + self.body.small if isinstance(self.body, Drawing) else self.body


@dataclass(frozen=True)
class Figure:
    """A heading, one sentence on how to read it, and its panels. `note`: HTML below them."""

    name: str
    title: str
    reading: str
    panels: Sequence[Panel]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A chapter of the report. `lead`: HTML; without figures it says why there are none."""

    name: str
    title: str
    lead: str = ""
    figures: Sequence[Figure] = field(default=())


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text: Sequence[int] = (0,),
    styles: Sequence[str] = (),
) -> str:
    """A table that scrolls inside itself. Cells are HTML; columns of `text` stand left, numbers right."""

    def cell(tag: str, index: int, value: str, scope: str = "") -> str:
        side = ' class="n"' if index not in text else ' class="text"' if index else ""
        return f"<{tag}{side}{scope}>{value}</{tag}>"

    head = "".join(cell("th", i, escape(c), ' scope="col"') for i, c in enumerate(columns))
    body = ""
    for number, row in enumerate(rows):
        style = f' class="{styles[number]}"' if number < len(styles) and styles[number] else ""
        cells = "".join(
            cell("td" if i else "th", i, v, "" if i else ' scope="row"') for i, v in enumerate(row)
        )
        body += f"<tr{style}>{cells}</tr>"
    return (
        '<div class="scroll" tabindex="0"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value
