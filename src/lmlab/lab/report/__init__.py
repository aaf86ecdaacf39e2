"""The report of a run: one page of HTML that needs nothing else, and a file for each figure."""

from lmlab.lab.report.write import write_report

__all__ = ["write_report"]
