"""The catalogue as one page without scripts or network. Menus at its top choose cards by signal, task and status.

write_catalog(Path("out/catalog.html"))
"""

from pathlib import Path
from typing import Any

import brainmodels.catalog as catalog
from veca.report.page import render

from ..catalog.cards import Card, ModelCard, card_facts
from ..catalog.words import CONFIDENCES

__all__ = ["write_catalog"]

_TITLES = {
    "models": "Models",
    "datasets": "Data sets",
    "regions": "Regions",
    "generators": "Generators",
    "metrics": "Metrics",
    "features": "Features",
    "pitfalls": "Pitfalls",
}
_SHOWN = {
    "models": ("year", "venue", "datasets", "label"),
    "datasets": ("signal", "stimulus", "subjects", "items", "per_subject", "access", "licence", "design"),
    "regions": ("part", "role", "files"),
    "generators": ("kind", "output", "conditions"),
    "metrics": ("group", "level", "direction", "chance", "protocol"),
    "features": ("kind", "weights", "names_here"),
    "pitfalls": ("problem", "control", "command"),
}


def write_catalog(path: str | Path) -> Path:
    """Write the page.

    Args:
        path: File to write. Its folder is made.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render("catalog.html", "brainmodels.report", **_view()), encoding="utf-8")
    return path


def _view() -> dict[str, Any]:
    """What the template shows."""
    cells = catalog.coverage()
    cards = catalog.all_cards()
    models = catalog.list_models()
    signals = [x for x in catalog.SIGNALS if any(cell.signal == x for cell in cells)]
    tasks = {task: words for task, words in catalog.TASKS.items() if any(task in x.task for x in models)}
    return {
        "tasks": tasks,
        "signals": signals,
        "cells": {(cell.task, cell.signal): cell for cell in cells},
        "data_here": {x.signal for x in catalog.list_datasets() if x.here in ("reads", "simulates")},
        "by_task": {
            **{f"{task}: {words}": _by_family([x for x in models if task in x.task]) for task, words in tasks.items()},
            "No task recorded": _by_family([x for x in models if not x.task]),
        },
        "sections": {
            section: [_row(card) for card in cards if card.section == section]
            for section in _TITLES
            if section != "models"
        },
        "titles": _TITLES,
        "columns": _SHOWN,
        "here": catalog.HERE,
        "families": catalog.FAMILIES,
        "confidences": CONFIDENCES,
        "index": sorted(((name, card.anchor, card.section) for card in cards for name in card.names), key=_folded),
        "counts": {section: sum(card.section == section for card in cards) for section in _TITLES},
        "survey": sum(x.listed and x.setting == "passive" for x in models),
        "implemented": [x for x in models if x.here == "implements"],
    }


def _by_family(models: list[ModelCard]) -> dict[str, list[dict[str, Any]]]:
    """Rows of models by family; those without one come last."""
    names = [*catalog.FAMILIES, None]
    groups = {name: [_row(x) for x in models if x.family == name] for name in names}
    return {name or "no family": rows for name, rows in groups.items() if rows}


def _row(card: Card) -> dict[str, Any]:
    """A card as the template shows it. `marks` are the classes that the menus select."""
    facts = card_facts(card)
    signal = getattr(card, "signal", None)
    marks = [f"here-{card.here}", *([f"signal-{signal}"] if signal else [])]
    return {
        "card": card,
        "cells": [_word(facts.get(name)) for name in _SHOWN[card.section]],
        "marks": " ".join(marks),
        "family": card.family if isinstance(card, ModelCard) else None,
        "sources": "; ".join(f"{x.id} ({x.confidence})" for x in card.sources),
    }


def _word(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _folded(entry: tuple[str, str, str]) -> tuple[str, str]:
    return entry[0].casefold(), entry[2]
