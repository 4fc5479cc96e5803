"""Questions to the catalogue: lists with filters, one card by its name, and what is covered.

list_models(task="IBI", signal="eeg", family="MTF")
card("EEG-ImageNet").name  # "EEG-VOA"
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from ..errors import BrainDataError, check_choice, near_names
from .cards import (
    SECTIONS,
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
from .store import all_cards
from .words import FAMILIES, GENERATOR_KINDS, HERE, PARTS, ROLES, SETTINGS, SIGNALS, STIMULI, TASKS, WEIGHTS

__all__ = [
    "Covered",
    "card",
    "cards_named",
    "coverage",
    "here_instead",
    "list_datasets",
    "list_features",
    "list_generators",
    "list_metrics",
    "list_models",
    "list_pitfalls",
    "list_regions",
]

_Kind = TypeVar("_Kind", bound=Card)
Years = tuple[int, int] | int


class Covered(NamedTuple):
    """One cell of the map of tasks and signals.

    Attributes:
        task: Name of the task.
        signal: Name of the signal.
        models: Number of passive decoding models in the catalogue. A model of two tasks counts in both.
        here: Names of the models that this package implements.
    """

    task: str
    signal: str
    models: int
    here: tuple[str, ...]


def list_models(
    *,
    task: str | None = None,
    signal: str | None = None,
    family: str | None = None,
    dataset: str | None = None,
    generator: str | None = None,
    year: Years | None = None,
    here: str | None = None,
    setting: str | None = None,
    direction: str | None = None,
) -> list[ModelCard]:
    """Decoding and encoding models, filtered. A filter of None lets all pass.

    Args:
        task: Name of a task, such as "IBI".
        signal: "fmri", "eeg" or "meg".
        family: Computed family, such as "BPFA", or "none" for models without one.
        dataset: Name or alias of a data set.
        generator: Name of a generator, or its kind, such as "diffusion".
        year: A year, or the first and the last year.
        here: What this package does, such as "implements".
        setting: "passive", "active" or "invasive".
        direction: "decode" or "encode". Models of both directions pass either.

    Raises:
        BrainDataError: An unknown value of a filter; the message lists near ones.
    """
    _check(task=(task, TASKS), signal=(signal, SIGNALS), family=(family, (*FAMILIES, "none")))
    _check(here=(here, HERE), setting=(setting, SETTINGS), direction=(direction, ("decode", "encode")))
    first, last = _years(year)
    data = None if dataset is None else card(dataset, "datasets").name
    makers = None if generator is None else _generators(generator)
    return _all(
        ModelCard,
        lambda x: task is None or task in x.task,
        lambda x: signal in (None, x.signal),
        lambda x: family in (None, x.family or "none"),
        lambda x: data is None or data in x.datasets,
        lambda x: makers is None or bool(makers & set(x.generators)),
        lambda x: year is None or (x.year is not None and first <= x.year <= last),
        lambda x: here in (None, x.here),
        lambda x: setting in (None, x.setting),
        lambda x: direction is None or x.direction in (direction, "both"),
    )


def list_datasets(
    *,
    stimulus: str | None = None,
    signal: str | None = None,
    here: str | None = None,
    setting: str | None = None,
    offline: bool | None = None,
) -> list[DatasetCard]:
    """Data sets, filtered. A filter of None lets all pass.

    Args:
        stimulus: What was shown or played, such as "image".
        signal: "fmri", "eeg" or "meg".
        here: What this package does, such as "reads".
        setting: "passive", "active" or "invasive".
        offline: True lists only data that this package makes itself, False only the others.

    Raises:
        BrainDataError: An unknown value of a filter; the message lists near ones.
    """
    _check(stimulus=(stimulus, STIMULI), signal=(signal, SIGNALS), here=(here, HERE), setting=(setting, SETTINGS))
    return _all(
        DatasetCard,
        lambda x: stimulus is None or stimulus in x.stimulus,
        lambda x: signal in (None, x.signal),
        lambda x: here in (None, x.here),
        lambda x: setting in (None, x.setting),
        lambda x: offline in (None, x.here == "simulates"),
    )


def list_regions(*, dataset: str | None = None, part: str | None = None, role: str | None = None) -> list[RegionCard]:
    """Regions, filtered.

    Args:
        dataset: Name or alias of a data set that has the region.
        part: Part of the brain, such as "ventral".
        role: What the region responds to, such as "faces".

    Raises:
        BrainDataError: An unknown value of a filter; the message lists near ones.
    """
    _check(part=(part, PARTS), role=(role, ROLES))
    data = None if dataset is None else card(dataset, "datasets").name
    return _all(
        RegionCard,
        lambda x: data is None or data in x.files,
        lambda x: part in (None, x.part),
        lambda x: role in (None, x.role),
    )


def list_generators(
    *, kind: str | None = None, output: str | None = None, here: str | None = None
) -> list[GeneratorCard]:
    """Generators, filtered.

    Args:
        kind: Kind, such as "gan".
        output: What it makes, such as "image".
        here: What this package does, such as "implements".

    Raises:
        BrainDataError: An unknown value of a filter; the message lists near ones.
    """
    outputs = sorted({x.output for x in _all(GeneratorCard) if x.output})
    _check(kind=(kind, GENERATOR_KINDS), output=(output, outputs), here=(here, HERE))
    return _all(
        GeneratorCard,
        lambda x: kind in (None, x.kind),
        lambda x: output in (None, x.output),
        lambda x: here in (None, x.here),
    )


def list_metrics(*, level: str | None = None, offline: bool | None = None, here: str | None = None) -> list[MetricCard]:
    """Metrics as cards, filtered.

    Args:
        level: Level of the metric, such as "semantic". Metrics that this package lacks have none.
        offline: True lists only metrics that need no network weights, False only those that need them.
        here: What this package does: "measures" or "outside".

    Raises:
        BrainDataError: An unknown value of a filter; the message lists near ones.
    """
    _check(here=(here, HERE))
    known = None if level is None and offline is None else set(registered_metrics(level, offline))
    return _all(MetricCard, lambda x: known is None or x.name in known, lambda x: here in (None, x.here))


def list_features(*, weights: str | None = None) -> list[FeatureCard]:
    """Extractors of features; `weights` is "none", "shipped" or "yours". Another word is a `BrainDataError`."""
    _check(weights=(weights, WEIGHTS))
    return _all(FeatureCard, lambda x: weights in (None, x.weights))


def list_pitfalls(*, dataset: str | None = None) -> list[Pitfall]:
    """Pitfalls: all, or those of a data set. An unknown data set is a `BrainDataError`."""
    named = None if dataset is None else _dataset(dataset).pitfalls
    return _all(Pitfall, lambda x: named is None or x.name in named)


def card(name: str, section: str | None = None) -> Any:
    """One card by its name or an alias, in upper or lower case.

    Args:
        name: Name or alias.
        section: Section to look in, such as "models". Needed where two sections have the name.

    Raises:
        BrainDataError: An unknown name, with near ones; or a name that several sections have.
    """
    found = cards_named(name, section)
    if len(found) > 1:
        where = ", ".join(x.section for x in found)
        raise BrainDataError(f"expected a section ({where}) for {name!r}, which is in each of them, got none")
    return found[0]


def cards_named(name: str, section: str | None = None) -> list[Card]:
    """All cards with this name or alias, in upper or lower case: "DIR" is a data set and a model.

    Raises:
        BrainDataError: An unknown name, with near ones, or an unknown section.
    """
    if section is not None:
        check_choice("section", section, tuple(SECTIONS))
    known = [x for x in all_cards() if section in (None, x.section)]
    exact = [x for x in known if name in x.names]
    folded = [x for x in known if name.casefold() in (word.casefold() for word in x.names)]
    if not folded:
        words = sorted({word for x in known for word in x.names})
        lower = {word.casefold(): word for word in words}
        near = near_names(name, words) or near_names(name.casefold(), list(lower))
        raise BrainDataError(f"expected a name of {section or 'the catalogue'}, got {name!r}{near}")
    return exact or folded


def coverage() -> list[Covered]:
    """Number of passive decoding models of each task and signal, and those that run here. Empty cells are left out."""
    models = [x for x in list_models(direction="decode") if x.setting == "passive"]
    found = []
    for task in TASKS:
        for signal in SIGNALS:
            cell = [x for x in models if task in x.task and x.signal == signal]
            if cell:
                here = tuple(x.name for x in cell if x.here == "implements")
                found.append(Covered(task, signal, len(cell), here))
    return found


def here_instead(model: ModelCard) -> list[ModelCard]:
    """Models that run here, share a task and the signal with one that does not, and have its direction.

    Those of the same family come first.
    """
    if model.here == "implements":
        return []
    same = [
        x
        for x in list_models(here="implements", direction="encode" if model.direction == "encode" else "decode")
        if x.signal == model.signal and set(x.task) & set(model.task)
    ]
    return sorted(same, key=lambda x: x.family != model.family)


def _dataset(name: str) -> DatasetCard:
    return card(name, "datasets")


def _generators(word: str) -> set[str]:
    """Names and kinds that a filter by generator lets pass."""
    cards = _all(GeneratorCard)
    if word in GENERATOR_KINDS:
        return {word} | {x.name for x in cards if x.kind == word}
    names = [name for x in cards for name in x.names]
    if word.casefold() not in (x.casefold() for x in names):
        raise BrainDataError(
            f"expected a generator or a kind of {', '.join(GENERATOR_KINDS)}, got {word!r}"
            f"{near_names(word, [*names, *GENERATOR_KINDS])}"
        )
    return {card(word, "generators").name}


def _years(year: Years | None) -> tuple[int, int]:
    if year is None:
        return 0, 0
    first, last = (year, year) if isinstance(year, int) else year
    if first > last:
        raise BrainDataError(f"expected the first year before the last, got {first} and {last}")
    return first, last


def _check(**filters: tuple[Any, Iterable[Any]]) -> None:
    """Check that the value of each filter is None or one of its choices."""
    for name, (value, choices) in filters.items():
        if value is not None:
            check_choice(name, value, tuple(choices))


def _all(kind: type[_Kind], *tests: Callable[[_Kind], bool]) -> list[_Kind]:
    """The cards of a kind that pass all tests, in the order of the catalogue."""
    found: Sequence[_Kind] = [x for x in all_cards() if isinstance(x, kind)]
    return [x for x in found if all(test(x) for test in tests)]
