"""Whether the catalogue is true: `check` compares it with what this package can do, in both directions."""

import importlib
import inspect
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .cards import (
    Card,
    DatasetCard,
    FeatureCard,
    GeneratorCard,
    MetricCard,
    ModelCard,
    Pitfall,
    RegionCard,
    registered_metrics,
)
from .published import PublishedNumber
from .store import all_cards, published_numbers
from .words import CALLABLE, GENERATOR_KINDS

__all__ = ["check", "resolved"]

_GENERIC = ("load",)  # every layout has it, so that a test must name the layout
_ROOT = Path(__file__).parents[2]


def check(cards: Sequence[Card] | None = None, numbers: Sequence[PublishedNumber] | None = None) -> list[str]:
    """Problems of the catalogue, one sentence each. An empty list is what tests demand.

    | rule | what is compared |
    |---|---|
    | references | what a card says is here can be called, is public, and is named in its test file |
    | nothing is missing | what can be called here has exactly one card |
    | status | a planned system is not registered; an implemented one has a recipe `paper` or `full` |
    | facts | families agree, names are unique, cards have sources, names of other cards exist |
    | published numbers | all conditions are known |

    Layouts, systems, metrics, regions, simulators, extractors of features and generators can be called.
    Test files are looked for beside the package. An installed package has none, and this part is left out there.

    Args:
        cards: Cards to check. None checks all cards.
        numbers: Published numbers to check. None checks those of this package.

    Raises:
        ImportError: An optional package that a system needs is not installed.
    """
    cards = all_cards() if cards is None else tuple(cards)
    rows = published_numbers() if numbers is None else numbers
    found: list[str] = []
    for rule in (_references, _claims, _recipes, _families, _unique, _sourced, _named):
        found += rule(cards)
    return [*found, *_published(rows, cards)]


def resolved(ref: str) -> Any:
    """What a reference such as "brainmodels.layouts.god:load" names.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such name.
    """
    return pkgutil.resolve_name(ref)


def _groups() -> dict[str, tuple[list[str], Callable[[Sequence[Card]], list[str]]]]:
    """Names of what is here, and a function that returns the names that cards claim, by group."""
    classes = resolved("brainmodels.layouts._nsd:ROI_CLASSES")
    simulated = importlib.import_module("brainmodels.simulated")
    return {
        "layout": (list(resolved("brainmodels.layouts:LAYOUTS")), _of(DatasetCard, lambda x: x.layouts)),
        "system": (list(resolved("brainmodels.systems:SYSTEMS").values()), _of(ModelCard, lambda x: x.ref)),
        "metric": (registered_metrics(), _of(MetricCard, lambda x: (x.name,))),
        "region": ([name for names in classes.values() for name in names], _of(RegionCard, lambda x: (x.name,))),
        "simulated region": (list(simulated.ROIS), _of(RegionCard, lambda x: filter(None, (x.files.get("SIM"),)))),
        "simulator": (
            [f"brainmodels.simulated:{x}" for x in simulated.__all__ if x.startswith("simulate")],
            _of(DatasetCard, lambda x: x.ref),
        ),
        "features": (_extractors(), _of(FeatureCard, lambda x: (ref.rpartition(":")[2] for ref in x.ref))),
        "generator": (
            [ref for room in ("brainmodels.nn", "brainmodels.drawing") for ref in _drawers(room)],
            _of(GeneratorCard, lambda x: x.ref),
        ),
    }


def _of(kind: type[Card], names: Callable[[Any], Iterable[str]]) -> Callable[[Sequence[Card]], list[str]]:
    return lambda cards: [name for card in cards if isinstance(card, kind) for name in names(card)]


def _extractors() -> list[str]:
    """Names of the classes of extractors that `features.extractor` can make."""
    known = vars(importlib.import_module("brainmodels.features.registry"))
    base = known["Extractor"]
    return [name for name, x in known.items() if inspect.isclass(x) and issubclass(x, base) and x is not base]


def _drawers(room: str) -> list[str]:
    """Public classes of a room that make pictures from tokens, as references: those with a fingerprint."""
    module = importlib.import_module(room)
    classes = {name: x for name in module.__all__ if inspect.isclass(x := getattr(module, name))}
    return [f"{room}:{name}" for name, x in classes.items() if hasattr(x, "fingerprint") and name != "TokensToImage"]


def _references(cards: Sequence[Card]) -> Iterator[str]:
    for card in cards:
        label = f"{card.section}/{card.name}"
        if card.here not in CALLABLE:
            if card.ref or card.proof:
                yield f"{label}: a card that is {card.here} has no ref and no proof, got {[*card.ref, *card.proof]}"
            continue
        if not card.ref or not card.proof:
            yield f"{label}: a card that {card.here} needs ref and proof, got {[*card.ref]} and {[*card.proof]}"
        for ref in card.ref:
            yield from (f"{label}: {problem}" for problem in _broken(ref))
        yield from (f"{label}: {problem}" for problem in _unproved(card))


def _broken(ref: str) -> Iterator[str]:
    """What is wrong with a reference."""
    module, colon, name = ref.partition(":")
    try:
        found = resolved(ref) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        yield f"{ref} does not resolve: {error}"
        return
    if not callable(found):
        yield f"{ref} is not callable"
    elif name not in getattr(importlib.import_module(module), "__all__", ()):
        yield f"{ref} is not in __all__ of {module}"


def _unproved(card: Card) -> Iterator[str]:
    """What a card refers to and its test files do not name."""
    if not (_ROOT / "tests/brainmodels").is_dir():
        return
    missing = [path for path in card.proof if not (_ROOT / path).is_file()]
    yield from (f"there is no test file {path}" for path in missing)
    text = "\n".join((_ROOT / path).read_text(encoding="utf-8") for path in card.proof if path not in missing)
    for words in _proving(card):
        if not any(re.search(rf"\b{re.escape(word)}\b", text) for word in words):
            yield f"{', '.join(card.proof)} do not name {' or '.join(words)}"


def _proving(card: Card) -> list[tuple[str, ...]]:
    """Words of which a test of the card has at least one, for each of its references."""
    if isinstance(card, FeatureCard):
        return [(*card.names_here, *(ref.rpartition(":")[2] for ref in card.ref))]
    places = [ref.partition(":") for ref in card.ref]
    return [(module.rpartition(".")[2] if name in _GENERIC else name,) for module, _, name in places]


def _claims(cards: Sequence[Card]) -> Iterator[str]:
    for group, (names, claims) in _groups().items():
        counts = Counter(claims(cards))
        for name in names:
            if counts[name] != 1:
                yield f"expected one card for the {group} {name}, got {counts[name]}"
    known = set(_groups()["layout"][0])
    for card in cards:
        for name in card.layouts if isinstance(card, DatasetCard) else ():
            if name not in known:
                yield f"datasets/{card.name}: there is no layout {name}"


def _recipes(cards: Sequence[Card]) -> Iterator[str]:
    """Planned systems that are registered, and implemented ones without a recipe of the paper."""
    systems = resolved("brainmodels.systems:SYSTEMS")
    registered = {_letters(x) for key, place in systems.items() for x in (key, place.rpartition(":")[2])}
    for card in cards:
        if not isinstance(card, ModelCard):
            continue
        if card.here == "planned" and any(_letters(name) in registered for name in card.names):
            yield f"models/{card.name}: it is planned, but it is among the systems"
        if card.here == "implements" and not any(_has_recipe(ref) for ref in card.ref):
            yield f"models/{card.name}: none of the recipes beside {', '.join(card.ref)} is paper() or full()"


def _has_recipe(ref: str) -> bool:
    """Whether the recipes of the room of a class have `paper` or `full`."""
    room = ref.partition(":")[0]
    try:
        recipes = importlib.import_module(f"{room}.recipes")
    except ImportError:
        return False
    return any(callable(getattr(recipes, name, None)) for name in ("paper", "full"))


def _families(cards: Sequence[Card]) -> Iterator[str]:
    for card in cards:
        if isinstance(card, ModelCard) and card.family != card.listed_family:
            yield f"models/{card.name}: its facts give the family {card.family}, listed is {card.listed_family}"


def _unique(cards: Sequence[Card]) -> Iterator[str]:
    counts = Counter((card.section, name.casefold()) for card in cards for name in card.names)
    yield from (
        f"{section}: {count} cards have the name {name!r}" for (section, name), count in counts.items() if count > 1
    )
    anchors = Counter(card.anchor for card in cards)
    yield from (f"{count} cards have the anchor {anchor!r}" for anchor, count in anchors.items() if count > 1)


def _sourced(cards: Sequence[Card]) -> Iterator[str]:
    for card in cards:
        if not card.sources:
            yield f"{card.section}/{card.name}: it has no source"
        elif all(source.facts for source in card.sources):
            yield f"{card.section}/{card.name}: no source stands for the facts that none of them names"
        known = {x.name for x in fields(card)}
        wrong = [name for source in card.sources for name in source.facts if name not in known]
        yield from (
            f"{card.section}/{card.name}: a source names the fact {name!r}, which it does not have" for name in wrong
        )


def _named(cards: Sequence[Card]) -> Iterator[str]:
    """Names of other cards and of metrics that do not exist."""
    known: dict[str, set[str]] = {}
    for card in cards:
        known.setdefault(card.section, set()).add(card.name)
    for card in cards:
        links: list[tuple[str, Iterable[str]]] = []
        if isinstance(card, ModelCard):
            links = [("datasets", card.datasets), ("metrics", card.reports)]
            links.append(("generators", [x for x in card.generators if x not in GENERATOR_KINDS]))
        elif isinstance(card, DatasetCard):
            links = [("regions", card.regions), ("pitfalls", card.pitfalls)]
        elif isinstance(card, RegionCard):
            links = [("datasets", card.files)]
        elif isinstance(card, Pitfall):
            links = [("metrics", card.metrics)]
        for section, names in links:
            for name in names:
                if name not in known.get(section, ()):
                    yield f"{card.section}/{card.name}: there is no card {name!r} of {section}"


def _published(rows: Sequence[PublishedNumber], cards: Sequence[Card]) -> Iterator[str]:
    metric = resolved("brainmodels.metrics:metric")
    models = {card.name for card in cards if isinstance(card, ModelCard)}
    for row in rows:
        label = f"published/{row.model}, {row.metric}"
        if row.missing:
            yield f"{label}: expected all conditions, without {', '.join(row.missing)}"
        if row.model not in models:
            yield f"{label}: there is no such model"
        try:
            metric(row.metric)
        except ValueError as error:
            yield f"{label}: {error}"


def _letters(name: str) -> str:
    return "".join(x for x in name.casefold() if x.isalnum())
