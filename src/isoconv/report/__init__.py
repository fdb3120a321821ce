"""The report of a study: one self-contained HTML file made from run directories, with CSV and Markdown beside it."""

from isoconv.report.page import write_report

__all__ = ["write_report"]
