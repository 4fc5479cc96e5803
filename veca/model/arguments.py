"""Checks of the numbers that define a model, with limits: a config may come from somebody else.

The limits keep a config from occupying the machine before its weights are compared with the model.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

__all__ = ["checked", "whole_number"]

Init = TypeVar("Init", bound=Callable[..., None])

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
    "budget": (1, 4096),
    "trained_budgets": (1, 2**24),
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
_CHECKED = {*_COUNTS, *_NUMBERS}
_SEQUENCES = {"img_size", "trained_budgets", "mean", "std"}  # the first may be one number


def whole_number(name: str, value: Any) -> int:
    """Return an integer of Python or NumPy as one of Python. A TypeError names anything else, also a bool."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"expected {name} to be an int, got bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}") from None


def checked(init: Init) -> Init:
    """Decorate the `__init__` of a model: every number is checked, and becomes one of Python that JSON can hold.

    The values are recorded in the model's `config`. Sequences are checked item by item, and None stays.

    Raises:
        TypeError: An argument is no number, no integer or no sequence of them.
        ValueError: An argument is out of its range or not finite.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        del given["self"]
        numbers = {name: _argument(name, x) for name, x in given.items() if name in _CHECKED and x is not None}
        init(self, **given | numbers)
        for name, value in numbers.items():
            self._set_option(name, value)

    return cast(Init, build)


def _argument(name: str, value: Any) -> Any:
    """A checked number, or a list of them."""
    check = _count if name in _COUNTS else _number
    many = hasattr(value, "__len__") and not isinstance(value, str)
    if name in _SEQUENCES and many:
        return [check(name, item) for item in value]
    if name in _SEQUENCES and name != "img_size":
        raise TypeError(f"expected {name} to be a sequence of numbers, got {type(value).__name__}")
    return check(name, value)


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
