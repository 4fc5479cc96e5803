"""Errors of `brainmodels`, and helpers that write their messages.

    try:
        dataset = load_prepared("prepared/subj01")
    except BrainDataError as error:  # also catches LayoutError, AxisError and the others
        print(error)

All are `ValueError`s. Their messages say what was expected, what came, and where.
"""

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
    """A mistake in brain data or in the arguments of a function. The base of all errors here."""


class LayoutError(BrainDataError):
    """A file is missing, is truncated, or has another layout than expected."""


class AxisError(BrainDataError):
    """An array has another number or length of axes than expected."""


class IdError(BrainDataError):
    """An id is unknown or repeated, or the order of rows is unknown."""


class AlignmentError(BrainDataError):
    """Responses carry no information about the images that they are matched with."""


class LeakageError(BrainDataError):
    """Test data were used in training."""


class NormalizationError(BrainDataError):
    """Values are on another scale than expected, or would be scaled twice."""


class UnsafePickleError(BrainDataError):
    """A file can run code when it is opened, and the caller did not allow that."""


class UnitsError(BrainDataError):
    """A physical unit is not the expected one."""


def near_names(name: str, known: Sequence[str], count: int = 3) -> str:
    """The end of a message, `; near: a, b`, with up to `count` known names that resemble this one, or nothing."""
    near = difflib.get_close_matches(str(name), [str(x) for x in known], count, cutoff=0.5)
    return f"; near: {', '.join(near)}" if near else ""


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """Return the value if it is one of `choices`, and raise a `BrainDataError` otherwise."""
    if value not in choices:
        listed = ", ".join(map(str, choices))
        raise BrainDataError(f"expected {name} to be one of {listed}, got {value!r}{near_names(value, choices)}")
    return value


def need(package: str, why: str, extra: str = "brain") -> ImportError:
    """An `ImportError` that says how to install a missing package of an extra.

    Args:
        package: Name of the package.
        why: What needs the package, as the subject of a sentence, such as "reading betas.hdf5".
        extra: Name of the extra, "brain" or "face".
    """
    return ImportError(f"{why} needs {package}; install it with: pip install 'veca[{extra}]'")
