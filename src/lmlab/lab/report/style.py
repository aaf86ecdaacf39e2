"""The look of the report: three style sheets beside this file. Colours are those of Okabe and Ito."""

from importlib.resources import files


def page_style() -> str:
    """For report.html: light, dark and print."""
    return _sheet("colours") + _sheet("page") + _sheet("chart")


def chart_style() -> str:
    """For a chart that stands alone in a file."""
    return _sheet("colours") + _sheet("chart") + "svg { background: var(--card); }\n"


def _sheet(name: str) -> str:
    return files("lmlab.lab.report").joinpath(f"{name}.css").read_text(encoding="utf-8")
