"""Checks of the numbers that define a model, with limits: a config may come from somebody else.

The limits keep a config from occupying the machine before its weights are compared with the model.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["check_counts", "check_numbers", "check_sequence", "whole_number"]

_COUNTS = {  # smallest and largest value
    "embed_dim": (4, 65536),
    "depth": (1, 1024),
    "num_heads": (1, 4096),
    "multiple_of": (1, 4096),
    "patch_size": (1, 1024),
    "in_chans": (1, 4096),
    "num_cores": (1, 4096),
    "num_classes": (0, 10_000_000),
    "output_dim": (1, 65536),
    "core_logit_log_scale": (2, 2**40),
    "img_size": (1, 2**24),
}
_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "mlp_ratio": ("above 0 and at most 64", lambda x: 0 < x <= 64),
    "rope_base": ("above 0", lambda x: x > 0),
    "rope_zero_low": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "rope_shift": ("of at least 0", lambda x: x >= 0),
    "rope_scale": ("of at least 1", lambda x: x >= 1),
    "core_step_max": ("above 0", lambda x: x > 0),
    "norm_eps": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "init_values": ("that is finite", lambda x: True),
    "drop_path_rate": ("from 0 to below 1", lambda x: 0 <= x < 1),
    "crop_pct": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "mean": ("that is finite", lambda x: True),
    "std": ("above 0", lambda x: x > 0),
}


def whole_number(name: str, value: Any) -> int:
    """Return an integer of Python or NumPy as one of Python. A TypeError names anything else, also a bool."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"expected {name} to be an int, got bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}") from None


def check_counts(**given: Any) -> dict[str, Any]:
    """Return arguments that count something as integers of Python; None stays.

    Raises:
        TypeError: An argument is no integer.
        ValueError: An argument is out of its range.
    """
    return {name: None if value is None else _count(name, value) for name, value in given.items()}


def check_numbers(**given: Any) -> dict[str, Any]:
    """Return arguments that measure something as numbers of Python; None stays.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is out of its range or not finite.
    """
    return {name: None if value is None else _number(name, value) for name, value in given.items()}


def check_sequence(name: str, values: Sequence[Any]) -> list[Any]:
    """Return the values of an argument, checked one by one as `check_counts` or `check_numbers` does."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise TypeError(f"expected {name} to be a sequence of numbers, got {type(values).__name__}")
    return [(_count if name in _COUNTS else _number)(name, value) for value in values]


def _count(name: str, value: Any) -> int:
    value, (low, high) = whole_number(name, value), _COUNTS[name]
    if not low <= value <= high:
        raise ValueError(f"expected {name} from {low} to {high}, got {value}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, np.integer | np.floating):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected {name} to be a number, got {type(value).__name__}")
    text, fits = _NUMBERS[name]
    if not (abs(value) < math.inf and fits(value)):
        raise ValueError(f"expected {name} {text}, got {value}")
    return value
