"""Frozen dataclasses as JSON, and back without guessing: recipes, sizes, settings."""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_type_hints

import numpy as np

from .errors import BrainDataError, near_names

__all__ = ["from_json", "plain", "to_json"]


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Record = TypeVar("Record", bound=_Dataclass)


def to_json(record: Any) -> dict[str, Any]:
    """A dataclass, and those within it, as dictionaries, lists, numbers and strings."""
    return plain(asdict(record))


def plain(value: Any) -> Any:
    """A value in JSON types: numbers and arrays of NumPy, tuples, sets and paths are converted at any depth.

    Keys of mappings become text, and sets become sorted lists. Other values stay as they are.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[Record], content: Mapping[str, Any], where: str | None = None) -> Record:
    """The dataclass that `to_json` described; what is left out has its default.

    Args:
        kind: Class of the dataclass.
        content: Dictionary that `to_json` returned.
        where: Name of the record in messages; None is the name of its class.

    Raises:
        BrainDataError: a key is unknown, here or in a record within.
    """
    known = [field.name for field in fields(kind)]
    for key in content:
        if key not in known:
            raise BrainDataError(
                f"expected keys of {where or kind.__name__} ({', '.join(known)}), got {key!r}{near_names(key, known)}"
            )
    kinds = get_type_hints(kind)
    return kind(**{key: _valued(kinds[key], value, where and f"{where}.{key}") for key, value in content.items()})


def _valued(kind: Any, value: Any, where: str | None) -> Any:
    if value is not None:
        kind = next((x for x in get_args(kind) if is_dataclass(x)), kind) if NoneType in get_args(kind) else kind
        if isinstance(kind, type) and is_dataclass(kind):
            return from_json(kind, value, where)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
