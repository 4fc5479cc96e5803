"""Options of layouts of EEG from plain words of the command line.

with_recipe(module, {"tmin": -0.2, "tmax": 0.8, "highpass": 0.1, "event_id": "onset:100"})
# {"epochs": EpochRecipe(-0.2, 0.8, l_freq=0.1), "event_id": {"onset": 100}}
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from types import ModuleType
from typing import Any

from ..errors import BrainDataError, near_names
from ._recordings import KINDS
from .raw_eeg import EpochRecipe

__all__ = ["WORDS", "codes_of", "needed_options", "recipe_of", "with_recipe"]

_ALIASES = {"highpass": "l_freq", "lowpass": "h_freq"}
_NUMBERS = ("tmin", "tmax", "sfreq", "l_freq", "h_freq", "min_gap")
WORDS = (*(field.name for field in fields(EpochRecipe)), *_ALIASES)
"""Words of a recipe: the attributes of `EpochRecipe`, and highpass and lowpass for the edges of its filter."""


def with_recipe(module: ModuleType, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a layout, with the words of a recipe joined into `epochs`, and codes and files read from text.

    Args:
        module: Layout. If its `load` takes `epochs`, words of a recipe are allowed. They change `module.EPOCHS` where
            there is one.
        options: Options as they were given.

    Raises:
        BrainDataError: A word has no such value, `epochs` and words are both given, or the ends of the epoch are not.
    """
    parameters = inspect.signature(module.load).parameters
    if "epochs" not in parameters:
        return dict(options)
    words = {name: value for name, value in options.items() if name in WORDS}
    found = {name: value for name, value in options.items() if name not in WORDS}
    given = found.get("epochs")
    if words and given is not None:
        raise BrainDataError(f"expected epochs= or single words of a recipe, got epochs and {', '.join(words)}")
    base: EpochRecipe | None = getattr(module, "EPOCHS", None)
    if words or isinstance(given, Mapping):
        found["epochs"] = recipe_of(words or given or {}, base)
    elif given is not None and not isinstance(given, EpochRecipe):
        raise BrainDataError(f'expected epochs as an EpochRecipe or {{"tmin": -0.2, "tmax": 0.8}}, got {given!r}')
    if isinstance(found.get("event_id"), str):
        found["event_id"] = codes_of(found["event_id"])
    if isinstance(found.get("files"), str):
        found["files"] = _words(found["files"])
    return found


def needed_options(module: ModuleType, options: Mapping[str, Any], layout: str) -> None:
    """Check that every option without a default is given.

    Raises:
        BrainDataError: One is missing. The message says how to give it.
    """
    parameters = inspect.signature(module.load).parameters
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in ("root", "subject", "allocate", *options)
    ]
    if missing:
        examples = {"epochs": "tmin=-0.2 tmax=0.8", "event_id": "event_id=onset:100"}
        said = " ".join(examples.get(name, f"{name}=...") for name in missing)
        raise BrainDataError(f"expected {' and '.join(missing)} of {layout!r}, got none; pass them as options: {said}")


def recipe_of(words: Mapping[str, Any], base: EpochRecipe | None = None) -> EpochRecipe:
    """The recipe that words stand for, such as {"tmin": -0.2, "tmax": 0.8, "baseline": "-0.2,0"}.

    Args:
        words: Values by the names in `WORDS`. Intervals and lists are sequences or text with commas. In `baseline`,
            the words start and end mean the ends of the epoch.
        base: Recipe that the words change. None needs `tmin` and `tmax`.

    Raises:
        BrainDataError: A name is unknown or twice there, a value has another form, or an end of the epoch is missing.
    """
    values: dict[str, Any] = {}
    for name, value in words.items():
        field = _ALIASES.get(name, name)
        if name not in WORDS:
            raise BrainDataError(
                f"expected words of a recipe ({', '.join(WORDS)}), got {name!r}{near_names(name, WORDS)}"
            )
        if field in values:
            raise BrainDataError(f"expected {field} once, got it as {name} too")
        values[field] = _value(field, name, value)
    missing = [name for name in ("tmin", "tmax") if base is None and values.get(name) is None]
    if missing:
        raise BrainDataError(
            f"expected {' and '.join(missing)} of the epochs in seconds, such as tmin=-0.2 tmax=0.8, got none"
        )
    recipe = EpochRecipe(**values) if base is None else replace(base, **values)
    if not recipe.tmin < recipe.tmax:
        raise BrainDataError(f"expected tmin before tmax, got {recipe.tmin:g} and {recipe.tmax:g} s")
    return recipe


def codes_of(text: str) -> dict[str, int]:
    """Codes by name from a text such as onset:100,target:5. Another form is a `BrainDataError`."""
    found = {}
    for word in _words(text):
        name, colon, code = word.rpartition(":")
        if not colon or not name or not code.strip().isdigit():
            raise BrainDataError(f"expected codes as NAME:CODE, such as onset:100,target:5, got {text!r}")
        found[name.strip()] = int(code)
    return found


def _value(field: str, name: str, value: Any) -> Any:
    if value is None and field not in ("tmin", "tmax"):
        return None if field not in ("drop_codes", "phase", "min_gap", "kind") else _refuse(name, "a value", value)
    if field in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _refuse(name, "a number", value)
        return float(value)
    if field == "phase":
        return value if value in ("zero", "zero-double") else _refuse(name, "zero or zero-double", value)
    if field == "kind":
        return value if value in KINDS else _refuse(name, f"one of {', '.join(KINDS)}", value)
    if field == "mask":
        return _whole(name, value)
    if field == "drop_codes":
        return tuple(_whole(name, x) for x in _words(value))
    if field == "baseline":
        return _interval(name, value)
    if field == "montage":
        return value if isinstance(value, str) and value else _refuse(name, "the name of a montage of MNE", value)
    if field == "reference" and value == "average":
        return value
    return tuple(map(str, _words(value))) or _refuse(name, "names of channels", value)


def _interval(name: str, value: Any) -> tuple[float | None, float | None]:
    ends = _words(value)
    wanted = "two ends in seconds, such as -0.2,0 or start,0"
    if len(ends) != 2:
        _refuse(name, wanted, value)
    found: list[float | None] = []
    for end in ends:
        try:
            found.append(None if end in (None, "start", "end", "") else float(end))
        except (TypeError, ValueError):
            _refuse(name, wanted, value)
    return found[0], found[1]


def _whole(name: str, value: Any) -> int:
    try:
        return int(str(value).strip(), 0)
    except ValueError:
        return _refuse(name, "whole numbers", value)


def _words(value: Any) -> list[Any]:
    """Elements of a sequence, or of text with commas."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",")] if value.strip() else []
    return list(value) if isinstance(value, Sequence) else [value]


def _refuse(name: str, wanted: str, value: Any) -> Any:
    raise BrainDataError(f"expected {wanted} as {name}, got {value!r}")
