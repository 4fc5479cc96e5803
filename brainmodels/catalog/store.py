"""Reading cards from TOML files: the entries of this package, and cards of your own.

    [[models]]
    name = "Mine"
    task = ["IBI"]
    sources = [{id = "arXiv 2601.00001", kind = "paper", confidence = "read"}]

A file has one table array for each section that it fills. Metrics of one kind share a table, see `metrics.toml`.
"""

import functools
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import BrainDataError, check_choice
from ..records import from_json
from .cards import SECTIONS, Card, MetricCard, Source
from .published import PublishedNumber

__all__ = ["all_cards", "load", "published_numbers", "read_cards"]

_GROUP = ("name", "module", "proof", "papers", "sources", "note", "functions")
_added: list[Card] = []


@functools.cache
def _shipped() -> tuple[Card, ...]:
    """The cards of this package, in the order of the files."""
    folder = resources.files("brainmodels.catalog").joinpath("entries")
    texts = [folder.joinpath(f"{section}.toml") for section in SECTIONS]
    return tuple(card for file in texts for card in read_cards(file.read_text(encoding="utf-8"), file.name))


def all_cards() -> tuple[Card, ...]:
    """The cards of this package, then those that `load` added."""
    return *_shipped(), *_added


@functools.cache
def published_numbers() -> tuple[PublishedNumber, ...]:
    """The published numbers whose conditions are known."""
    file = resources.files("brainmodels.catalog").joinpath("entries/published.toml")
    rows = tomllib.loads(file.read_text(encoding="utf-8"))["numbers"]
    return tuple(from_json(PublishedNumber, row, f"{file.name}, {row.get('model')}") for row in rows)


def read_cards(text: str, where: str) -> list[Card]:
    """The cards of a TOML text.

    Args:
        text: Content of the file.
        where: Name of the file, for messages.

    Raises:
        BrainDataError: Not TOML, an unknown section or field, or a value that a field cannot have.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BrainDataError(f"expected TOML in {where}, got {error}") from error
    found: list[Card] = []
    for section, rows in content.items():
        if section == "metric_groups":
            found += [card for row in rows for card in _metrics(row, where)]
        else:
            check_choice(f"section of {where}", section, tuple(SECTIONS))
            found += [_card(SECTIONS[section], row, where) for row in rows]
    return found


def load(path: str | Path) -> list[Card]:
    """Add your own cards to the catalogue, for as long as the program runs.

    Args:
        path: TOML file with one table array for each section, such as `[[models]]`.

    Returns:
        The added cards.

    Raises:
        BrainDataError: As `read_cards`, or a name that the section already has.
    """
    path = Path(path)
    cards = read_cards(path.read_text(encoding="utf-8"), str(path))
    taken = {(card.section, name.casefold()): card.name for card in all_cards() for name in card.names}
    for card in cards:
        for name in card.names:
            if owner := taken.get((card.section, name.casefold())):
                raise BrainDataError(f"expected new names of {card.section} in {path}, got {name!r}, a name of {owner}")
        taken |= {(card.section, name.casefold()): card.name for name in card.names}
    _added.extend(cards)
    return cards


def _card(kind: type[Card], row: Mapping[str, Any], where: str) -> Card:
    label = f"{where}, {row.get('name', 'a card without a name')}"
    if "name" not in row:
        raise BrainDataError(f"expected a name of each card in {where}, got {dict(row)}")
    sources = _sources(row.get("sources", ()), label)
    try:
        return from_json(kind, {**row, "sources": sources}, label)
    except BrainDataError as error:
        raise type(error)(f"{error} (in {label})") from None


def _sources(rows: Iterable[Mapping[str, Any]], where: str) -> tuple[Source, ...]:
    return tuple(from_json(Source, row, f"sources of {where}") for row in rows)


def _metrics(row: Mapping[str, Any], where: str) -> list[Card]:
    """A card for each metric of a group. `functions` has the names of metrics by the function that computes them."""
    label = f"{where}, {row.get('name')}"
    for key in row:
        check_choice(f"key of {label}", key, _GROUP)
    shared = {
        "group": row["name"],
        "papers": tuple(row.get("papers", ())),
        "proof": tuple(row["proof"]),
        "sources": _sources(row["sources"], label),
        "note": row.get("note", ""),
        "here": "measures",
    }
    return [
        MetricCard(name=name, ref=(f"{row['module']}:{function}",), **shared)
        for function, names in row["functions"].items()
        for name in names
    ]
