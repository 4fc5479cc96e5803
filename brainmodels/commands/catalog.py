"""What `veca brain catalog` prints: coverage, a filtered list, or one card; and its page.

print("\n".join(catalog_lines("models", CatalogSettings(task="IBI", signal="eeg"))))
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import brainmodels.catalog as catalog

from ..catalog.cards import Card, ModelCard, card_facts, card_json
from ..errors import BrainDataError, near_names

__all__ = ["CatalogSettings", "catalog_lines"]

_FILTERS = {
    "models": ("task", "signal", "family", "dataset", "generator", "year", "here", "setting", "direction"),
    "datasets": ("stimulus", "signal", "here", "setting", "offline"),
    "regions": ("dataset", "part", "role"),
    "generators": ("kind", "output", "here"),
    "metrics": ("level", "offline", "here"),
    "features": ("weights",),
    "pitfalls": ("dataset",),
}
_COLUMNS = {
    "models": ("year", "task", "signal", "family", "datasets", "here"),
    "datasets": ("signal", "stimulus", "subjects", "access", "here"),
    "regions": ("part", "role", "files", "here"),
    "generators": ("kind", "output", "here"),
    "metrics": ("group", "here"),
    "features": ("kind", "weights", "here"),
    "pitfalls": ("command",),
}


@dataclass(frozen=True, kw_only=True)
class CatalogSettings:
    """What to show.

    Attributes:
        task: Task of models, such as IBI.
        signal: Signal of models and data sets: fmri, eeg or meg.
        modality: The same as signal.
        family: Family of models, such as BPFA, or none.
        dataset: Data set of models, regions and pitfalls.
        generator: Generator of models, or its kind, such as diffusion.
        year: A year, or the first and the last year, of models.
        here: What this package does, such as implements or reads.
        setting: passive, active or invasive, of models and data sets.
        direction: decode or encode, of models.
        stimulus: Stimulus of data sets, such as image.
        offline: Data sets that are made here; metrics that need no weights.
        part: Part of the brain of regions, such as ventral.
        role: What regions respond to, such as faces.
        kind: Kind of generators, such as gan.
        output: What generators make, such as image.
        level: Level of metrics, such as semantic.
        weights: Weights of features: none, shipped or yours.
        add: TOML file with cards of your own, which are added first.
        json: Print JSON.
        html: File to write the whole catalogue to, as one page.
    """

    task: str | None = None
    signal: str | None = None
    modality: str | None = None
    family: str | None = None
    dataset: str | None = None
    generator: str | None = None
    year: tuple[int, ...] = ()
    here: str | None = None
    setting: str | None = None
    direction: str | None = None
    stimulus: str | None = None
    offline: bool | None = None
    part: str | None = None
    role: str | None = None
    kind: str | None = None
    output: str | None = None
    level: str | None = None
    weights: str | None = None
    add: Path | None = None
    json: bool = False
    html: Path | None = None

    @property
    def filters(self) -> dict[str, Any]:
        """The filters that were given, by name."""
        named = {name for names in _FILTERS.values() for name in names}
        given = {x.name: getattr(self, x.name) for x in fields(self) if x.name in named}
        if given["year"] and len(given["year"]) > 2:
            raise BrainDataError(f"expected one year, or the first and the last, got {given['year']}")
        if self.modality is not None:
            if self.signal not in (None, self.modality):
                raise BrainDataError(f"expected one signal, got {self.signal!r} and the modality {self.modality!r}")
            given["signal"] = self.modality
        given["year"] = (given["year"] * 2)[:2] or None
        return {name: value for name, value in given.items() if value is not None}


def catalog_lines(what: str | None, settings: CatalogSettings) -> list[str]:
    """Lines to print. With `html`, the page is written as well, and its path is the last line.

    Args:
        what: A section, such as "models", or the name of a card. None is the number of models of each task and signal.
        settings: Filters, and the form of the answer.

    Raises:
        BrainDataError: An unknown name or value, with near ones, or a filter that the section does not have.
    """
    if settings.add is not None:
        catalog.load(settings.add)
    lines = _shown(what, settings)
    if settings.html is not None:
        from ..report.catalog import write_catalog

        lines.append(str(write_catalog(settings.html)))
    return lines


def _shown(what: str | None, settings: CatalogSettings) -> list[str]:
    filters = settings.filters
    if what in _FILTERS:
        return _listed(what, filters, settings.json)
    if filters:
        name = next(iter(filters))
        having = [section for section, names in _FILTERS.items() if name in names]
        raise BrainDataError(f"expected one of {', '.join(having)} before --{name}, got {what or 'nothing'}")
    if what is None:
        return _coverage(settings.json)
    try:
        cards = catalog.cards_named(what)
    except BrainDataError as error:
        near = near_names(what, list(_FILTERS))
        raise BrainDataError(f"{error}" if not near else f"{error}; or a section{near}") from None
    if settings.json:
        return [_json([card_json(card) for card in cards])]
    return [line for card in cards for line in _card_lines(card)]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _listed(section: str, filters: dict[str, Any], as_json: bool) -> list[str]:
    allowed = _FILTERS[section]
    for name in filters:
        if name not in allowed:
            raise BrainDataError(
                f"expected a filter of {section} (--{', --'.join(allowed)}), got --{name}{near_names(name, allowed)}"
            )
    cards = getattr(catalog, f"list_{section}")(**filters)
    if as_json:
        return [_json([card_json(card) for card in cards])]
    columns = _COLUMNS[section]
    table = [["name", *columns], *([card.name, *(_word(getattr(card, name)) for name in columns)] for card in cards)]
    if section == "metrics":
        for row, card in zip(table, [None, *cards], strict=True):
            of = card and card.definition
            row += ["direction", "chance"] if card is None else [of.direction, _chance(of)] if of else ["", ""]
    count = f"{len(cards)} {section if len(cards) != 1 else section.removesuffix('s')}"
    return [*_aligned(table), count]


def _coverage(as_json: bool) -> list[str]:
    """The map of tasks and signals."""
    cells = catalog.coverage()
    if as_json:
        return [_json([cell._asdict() for cell in cells])]
    signals = list(dict.fromkeys(cell.signal for cell in cells))
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    found = {(cell.task, cell.signal): cell for cell in cells}
    table = [["task", *signals, "", "here"]]
    for task in tasks:
        row = [found.get((task, signal)) for signal in signals]
        here = ", ".join(name for cell in row if cell for name in cell.here)
        table.append([task, *(str(cell.models) if cell else "" for cell in row), catalog.TASKS[task], here])
    counts = (f"{len(getattr(catalog, f'list_{section}')())} {section}" for section in _FILTERS)
    return ["Decoding models by task and signal:", *_aligned(table), ", ".join(counts)]


def _card_lines(card: Card) -> list[str]:
    """One card, its pitfalls, and what runs here in its place."""
    lines = [f"{card.name} ({card.section})"]
    if card.aliases:
        lines.append(f"  {'also':14} {', '.join(card.aliases)}")
    for name, value in card_facts(card).items():
        if name == "listed_family" or value == "unknown":
            continue
        sure = f" ({card.confidence(name)})" if name in {x.name for x in fields(card)} and name != "here" else ""
        words = f"{value}: {catalog.HERE[value]}" if name == "here" else _word(value)
        reading = " (our reading)" if name == "family" and isinstance(card, ModelCard) else sure
        lines.append(f"  {name:14} {words}{reading}")
    if card.note:
        lines.append(f"  {'note':14} {card.note}")
    lines += [f"  {'source':14} {source.id} ({source.kind}, {source.confidence})" for source in card.sources]
    if isinstance(card, catalog.DatasetCard):
        lines += [f"  pitfall: {x.problem} {x.control}" for x in catalog.list_pitfalls(dataset=card.name)]
        lines += [f"  veca brain layouts {name}" for name in card.layouts]
    if isinstance(card, ModelCard):
        here = [card] if card.here == "implements" else catalog.here_instead(card)
        names = ", ".join(x.name for x in here)
        lines += [f"  runs here: {names}" if here[0] is card else f"  what runs here instead: {names}"] if here else []
        lines += [f"  veca brain train --model {name} --help" for x in here for name in _commands(x)]
    return lines


def _commands(card: ModelCard) -> list[str]:
    """Names of a model on the command line; none where the packages of `veca[brain]` are not installed."""
    try:
        from ..systems import SYSTEMS
    except ImportError:
        return []
    return [name for name, place in SYSTEMS.items() if place in card.ref]


def _chance(definition: Any) -> str:
    return "" if definition.chance is None else f"{definition.chance:.3g}"


def _word(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _aligned(table: list[list[str]]) -> list[str]:
    """Rows with columns of equal width."""
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in table]
