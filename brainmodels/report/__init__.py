"""The report of an evaluation: a page with figures and tables, and all numbers in a JSON file beside it."""

from .page import write_report

__all__ = ["write_report"]
