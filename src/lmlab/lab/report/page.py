"""The page: HTML that is well-formed XML, without a script and without anything to load."""

from collections.abc import Sequence

from lmlab.lab.report import (
    autophagy,
    heads,
    length,
    losses,
    notes,
    samples,
    summary,
    tokenizer,
    training,
)
from lmlab.lab.report.figure import Figure, Panel, Section
from lmlab.lab.report.read import RunFiles
from lmlab.lab.report.style import page_style
from lmlab.lab.report.text import escape, listing

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def sections(run: RunFiles) -> list[Section]:
    """In the order of reading: the result, what it writes, how it came about, the small print."""
    parts = [
        summary.section(run),
        losses.section(run),
        samples.section(run),
        training.section(run),
        tokenizer.section(run),
        length.section(run),
        heads.section(run),
        autophagy.section(run),
        notes.section(run),
    ]
    return [part for part in parts if part is not None]


def page(run: RunFiles, parts: Sequence[Section]) -> str:
    title = escape(run.name)
    links = "".join(f'<li><a href="#{p.name}">{escape(p.title)}</a></li>' for p in parts)
    body = "\n".join(map(_section, parts))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<link rel="icon" href="data:,"/>
<title>{title}: report</title>
<style>
{page_style()}</style>
</head>
<body>
<header>
<p class="kicker">lmlab report</p>
<h1>{title}</h1>
<p class="verdict">{summary.verdict(run)}</p>
{_findings(run)}{_unfinished(run)}
{summary.tiles(run)}
<nav aria-label="Parts of the report"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer>
<p>The numbers behind each figure lie in the folder <code>figures</code> of the run, as CSV and SVG.</p>
</footer>
</body>
</html>
"""


def _findings(run: RunFiles) -> str:
    """The other results in a sentence each, and what a careful reader has to know."""
    said = [
        line
        for part in (summary, training, samples, length, heads, autophagy, notes)
        for line in part.findings(run)
    ]
    return f'<ul class="findings">{"".join(f"<li>{line}</li>" for line in said)}</ul>' if said else ""


def _unfinished(run: RunFiles) -> str:
    waiting = summary.missing(run)
    if not waiting:
        return ""
    return (
        f'<p class="banner">This run is not finished: still to come is {escape(listing(waiting))}. '
        "What is done is shown below; the same command goes on where it stopped.</p>"
    )


def _section(part: Section) -> str:
    lead = part.lead if part.lead.startswith("<") else f'<p class="lead">{part.lead}</p>' if part.lead else ""
    figures = "\n".join(map(_figure, part.figures))
    return f'<section id="{part.name}"><h2>{escape(part.title)}</h2>{lead}\n{figures}</section>'


def _figure(figure: Figure) -> str:
    name = escape(figure.name)
    files = listing([f"<code>figures/{escape(p.name)}.csv</code>" for p in figure.panels])
    caption = f"<figcaption>Numbers: {files}</figcaption>" if files else ""
    panels = "".join(map(_panel, figure.panels))
    return (
        f'<figure id="figure-{name}" role="group" aria-labelledby="heading-{name}">'
        f'<h3 id="heading-{name}">{escape(figure.title)}</h3><p class="reading">{escape(figure.reading)}</p>'
        f'<div class="panels">{panels}</div>{figure.note}{caption}</figure>'
    )


def _panel(panel: Panel) -> str:
    title = f"<h4>{escape(panel.title)}</h4>" if panel.title else ""
    return f'<div class="panel{" wide" if panel.wide else ""}">{title}{panel.html}</div>'
