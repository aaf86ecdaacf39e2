"""From a run directory to report.html and the files of its figures."""

from pathlib import Path

from lmlab.lab.report.chart import Drawing
from lmlab.lab.report.figure import Panel
from lmlab.lab.report.page import page, sections
from lmlab.lab.report.read import read_run
from lmlab.lab.report.style import chart_style
from lmlab.retry import atomic_write


def write_report(run: str | Path) -> Path:
    """Write `report.html`, `figures/*.svg` and `figures/*.csv` of a run directory; the path of the page.

    Reads files only, so it works on a finished run, on one that was killed, and again and again. Files of
    figures that this report doesn't have any more are removed.

    Raises FileNotFoundError where `run` is no run directory.
    """
    files = read_run(Path(run))
    parts = sections(files)
    folder = files.path / "figures"
    folder.mkdir(exist_ok=True)
    kept = set()
    for panel in (p for part in parts for figure in part.figures for p in figure.panels):
        for name, content in _files(panel).items():
            _write(folder / name, content)
            kept.add(name)
    for old in [*folder.glob("*.svg"), *folder.glob("*.csv")]:
        if old.name not in kept:
            old.unlink()
    target = files.path / "report.html"
    _write(target, page(files, parts))
    return target


def _files(panel: Panel) -> dict[str, str]:
    found = {f"{panel.name}.csv": panel.table.csv()}
    if isinstance(panel.body, Drawing):
        head, rest = panel.body.full.split(">", 1)
        found[f"{panel.name}.svg"] = f"{head}><style>{chart_style()}</style>{rest}\n"
    return found


def _write(path: Path, content: str) -> None:
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write(content)
