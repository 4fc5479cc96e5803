"""Metrics by name. Each module registers its metrics when `brainmodels.metrics` is imported.

metric("voxel_r").direction                   # "up"
metric("image_given_brain_top1@300").chance   # 1 / 300: the name of a family's member carries the gallery
list_metrics(level="voxel", offline=True)     # ["algonauts_score", "cosine", ...]
"""

import re
from collections.abc import Callable
from dataclasses import replace

from ..errors import BrainDataError, near_names
from .record import LEVELS, Metric

__all__ = ["list_metrics", "metric", "register"]

_METRICS: dict[str, Metric] = {}
_FAMILIES: dict[str, tuple[re.Pattern[str], Callable[..., float] | None]] = {}


def register(definition: Metric, chance: Callable[..., float] | None = None) -> Metric:
    """Make a metric known by its name.

    A name with fields in braces defines a family. `metric("top1@300")` is a member of "top{k:d}@{gallery:d}", and
    `metric("two_way[grid]")` of "two_way[{features}]". A field with ":d" is a whole number.

    Args:
        definition: Definition of the metric, or of every member of a family.
        chance: Function that returns the chance of a member. It gets the fields of the member's name as strings, by
            keyword. None uses the chance of the definition.

    Returns:
        The definition.

    Raises:
        BrainDataError: The name belongs to another definition.
    """
    name = definition.name
    if _METRICS.get(name, definition) != definition:
        raise BrainDataError(f"expected a new metric name, got {name!r}, which already is {_METRICS[name]}")
    _METRICS[name] = definition
    if "{" in name:
        parts = re.split(r"\{(\w+)(:d)?\}", name)  # text, field, ":d" or None, text, ...
        pattern = re.escape(parts[0])
        for field, number, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            kind = r"[1-9][0-9]*" if number else r"[^\[\]]+"  # text stands in brackets and may contain an @
            pattern += f"(?P<{field}>{kind})" + re.escape(text)
        _FAMILIES[name] = re.compile(pattern), chance
    return definition


def metric(name: str) -> Metric:
    """Look up a metric, or a member of a family, by its name.

    Raises:
        BrainDataError: An unknown name; the message lists the nearest ones.
    """
    if name in _METRICS and name not in _FAMILIES:
        return _METRICS[name]
    for family, (pattern, chance) in _FAMILIES.items():
        match = pattern.fullmatch(name)
        if match and name != family:
            given = _METRICS[family]
            return replace(given, name=name, chance=given.chance if chance is None else chance(**match.groupdict()))
    raise BrainDataError(f"expected a metric of list_metrics(), got {name!r}{near_names(name, list(_METRICS))}")


def list_metrics(level: str | None = None, offline: bool | None = None) -> list[str]:
    """Names of all metrics and families, sorted.

    Args:
        level: Level of the metrics to list. None lists all levels.
        offline: True lists only metrics that need no network weights, False only those that need them.

    Raises:
        BrainDataError: An unknown level.
    """
    if level is not None and level not in LEVELS:
        raise BrainDataError(f"expected a level of {', '.join(LEVELS)}, got {level!r}{near_names(level, LEVELS)}")
    return sorted(
        name
        for name, known in _METRICS.items()
        if level in (None, known.level) and offline in (None, known.needs_weights is None)
    )
