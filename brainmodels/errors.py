"""What goes wrong with brain data, by name. All are `ValueError`s that say what was expected, what came, and where."""

import difflib
from collections.abc import Sequence
from typing import Any

__all__ = [
    "AlignmentError",
    "AxisError",
    "BrainDataError",
    "IdError",
    "LayoutError",
    "LeakageError",
    "NormalizationError",
    "UnitsError",
    "UnsafePickleError",
    "near_names",
    "need",
]


class BrainDataError(ValueError):
    """Any mistake in stimuli, responses or what is asked of them."""


class LayoutError(BrainDataError):
    """A file is missing, truncated, or not in the layout it should have."""


class AxisError(BrainDataError):
    """An array has another number or length of axes than it should."""


class IdError(BrainDataError):
    """An image id is unknown, or the order of rows is."""


class AlignmentError(BrainDataError):
    """Responses carry no information about the images they are said to belong to."""


class LeakageError(BrainDataError):
    """What is tested on was seen in training."""


class NormalizationError(BrainDataError):
    """Values are on another scale than they should be, or would be scaled twice."""


class UnsafePickleError(BrainDataError):
    """A file can run code when it is opened, and nobody allowed it."""


class UnitsError(BrainDataError):
    """A physical unit is not the expected one."""


def near_names(name: str, known: Sequence[str], count: int = 3) -> str:
    """The end of a message: `; near: a, b`, or nothing where no known name resembles this one."""
    near = difflib.get_close_matches(str(name), [str(x) for x in known], count, cutoff=0.5)
    return f"; near: {', '.join(near)}" if near else ""


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The value, or a `BrainDataError` unless it is one of `choices`."""
    if value not in choices:
        listed = ", ".join(map(str, choices))
        raise BrainDataError(f"expected {name} to be one of {listed}, got {value!r}{near_names(value, choices)}")
    return value


def need(package: str, why: str) -> ImportError:
    """The error of an absent package of the extra `brain`, to raise from the `ImportError` that found it."""
    return ImportError(f"{why} needs {package}; install it with: pip install 'veca[brain]'")
