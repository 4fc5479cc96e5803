"""HTML pages from Jinja2 templates, and numbers as text. A page needs no scripts and no network."""

import functools
from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

__all__ = ["gflops", "listed", "megabytes", "millions", "percent", "render", "seconds", "times"]


def render(template: str, package: str = "veca.report", **values: Any) -> str:
    """Fill in a template. All values are escaped, so that only the templates themselves hold HTML.

    Args:
        template: File name of the template, such as "demo.html".
        package: Package whose folder `templates` is searched first; the second is that of `veca.report`.
        **values: Values of the names that the template uses.

    Raises:
        jinja2.TemplateNotFound: There is no such template.
        jinja2.UndefinedError: The template uses a name or an attribute that has no value.
    """
    return _environment(package).get_template(template).render(values)


@functools.cache
def _environment(package: str) -> Environment:
    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, "veca.report"))])
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=loader, trim_blocks=True, lstrip_blocks=True
    )
    numbers = (gflops, listed, megabytes, millions, percent, seconds, times)
    environment.filters |= {function.__name__: function for function in numbers}
    return environment


def times(ratio: float) -> str:
    """A ratio with two digits, which is the precision of a measured ratio: "1.32×", "7.8×", "21×"."""
    return f"{ratio:.2f}×" if ratio < 2 else f"{ratio:.1f}×" if ratio < 10 else f"{ratio:.0f}×"


def seconds(value: float) -> str:
    """Seconds as "12.3 ms" or "2.00 s"."""
    return f"{_three(value * 1e3)} ms" if value < 1 else f"{_three(value)} s"


def megabytes(value: float) -> str:
    """Bytes as "9.45 MB" or "2.50 GB"."""
    return f"{_three(value / 1e6)} MB" if value < 1e9 else f"{_three(value / 1e9)} GB"


def gflops(value: float) -> str:
    """FLOPs as "6.70 GFLOPs" or "5.65 TFLOPs"."""
    return f"{_three(value / 1e9)} GFLOPs" if value < 1e12 else f"{_three(value / 1e12)} TFLOPs"


def millions(value: float) -> str:
    """A count as "2.83 M"."""
    return f"{value / 1e6:.2f} M"


def percent(value: float) -> str:
    """A share as "17 %"; one below 10 % has one decimal."""
    digits = 0 if abs(value) >= 0.1 or value == 0 else 1
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def listed(words: Sequence[object]) -> str:
    """Words as a list in a sentence: "a, b and c"."""
    *others, last = map(str, words)
    return " and ".join(filter(None, (", ".join(others), last)))


def _three(value: float) -> str:
    """A number with three significant digits; zeros are kept."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:.0f}"
