"""One page of a study: pictures, figures and tables, with every number in a JSON file beside it."""

from .page import write_report

__all__ = ["write_report"]
