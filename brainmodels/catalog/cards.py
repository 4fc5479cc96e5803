"""The cards of the catalogue, and the families of decoding models.

    card = ModelCard(name="MindEye", task=("IBI",), signal="fmri", year=2023, facts=FamilyFacts(generator="frozen"))
    card.family            # computed from `facts`
    card.confidence("label")

A card holds facts from elsewhere, says where each was read, and says what this package does about it. None is unknown.
"""

import contextlib
import importlib
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import BrainDataError, check_choice
from ..records import plain, to_json
from .words import (
    ACCESSES,
    ALIGNMENTS,
    CONFIDENCES,
    DIRECTIONS,
    EXTRACTORS,
    FAMILIES,
    GENERATOR_KINDS,
    HERE,
    MAPPINGS,
    PARTS,
    ROLES,
    SETTINGS,
    SIGNALS,
    STATES,
    STIMULI,
    SUBJECTS,
    TASKS,
    WEIGHTS,
)

if TYPE_CHECKING:
    from ..metrics.record import Metric

__all__ = [
    "SECTIONS",
    "Card",
    "DatasetCard",
    "FamilyFacts",
    "FeatureCard",
    "GeneratorCard",
    "MetricCard",
    "ModelCard",
    "Pitfall",
    "RegionCard",
    "Source",
    "card_facts",
    "card_json",
    "derive_family",
    "registered_metrics",
]

_REGISTERING = (  # modules of evaluations that have metrics of their own
    "brainmodels.evaluation.head_case",
    "brainmodels.evaluation.models",
    "brainmodels.evaluation.token_space",
)
_EXAMPLES = {"k": 1, "gallery": 100, "classes": 10, "colors": 6, "ways": 50, "points": 1024}  # of families of metrics


@dataclass(frozen=True)
class Source:
    """Where facts of a card were read.

    Attributes:
        id: Identifier, such as an arXiv number, a DOI, or a repository and its commit.
        kind: Kind of the source, such as "list", "paper" or "reading".
        confidence: One of `CONFIDENCES`.
        facts: Names of the fields that come from it. Empty for all fields that no other source names.
    """

    id: str
    kind: str
    confidence: str
    facts: tuple[str, ...] = ()

    def __post_init__(self):
        check_choice("confidence", self.confidence, tuple(CONFIDENCES))


@dataclass(frozen=True)
class FamilyFacts:
    """What decides the family of a decoding model.

    Attributes:
        brain_pretrained: Whether a part was pretrained on other brain data.
        brain_finetuned: Whether that part was then finetuned on the data at hand.
        mapping: What maps responses to features; "unknown" if there is a map whose form is not recorded.
        generator: How the generator learned: "frozen" was never trained on brain conditions.
        alignment: What aligns responses and features.
        joint_training: Whether one network is trained from the brain to the content.
        search: Whether candidates are searched and scored by an encoder.
    """

    brain_pretrained: bool = False
    brain_finetuned: bool = False
    mapping: str = "unknown"
    generator: str = "unknown"
    alignment: str = "unknown"
    joint_training: bool = False
    search: bool = False

    def __post_init__(self):
        check_choice("mapping", self.mapping, MAPPINGS)
        check_choice("generator", self.generator, STATES)
        check_choice("alignment", self.alignment, ALIGNMENTS)


def derive_family(facts: FamilyFacts) -> str | None:
    """The family of a decoding model by our reading of the survey. The first rule that holds decides.

    | rule | family |
    |---|---|
    | `search` | None |
    | `alignment` is "cycle" | CAEA |
    | `joint_training` | End-to-End |
    | `brain_pretrained` and `brain_finetuned` | BPFA |
    | `brain_pretrained` | BPM |
    | `generator` is "trained" | MTF |
    | `mapping` is not "none", and `generator` is "frozen" | Map |
    | none of these | None |
    """
    if facts.search:
        return None
    if facts.alignment == "cycle":
        return "CAEA"
    if facts.joint_training:
        return "End-to-End"
    if facts.brain_pretrained:
        return "BPFA" if facts.brain_finetuned else "BPM"
    if facts.generator == "trained":
        return "MTF"
    return "Map" if facts.mapping != "none" and facts.generator == "frozen" else None


@dataclass(frozen=True, kw_only=True)
class Card:
    """What all cards have.

    Attributes:
        name: Name of the entry, unique among the cards of its section.
        aliases: Other names that find it.
        note: Remark in plain words.
        sources: Where the facts were read, one source at least.
        licence: SPDX identifier, "none" if all rights are reserved, or "unknown".
        access: How it is obtained, one of `ACCESSES`, or None.
        checked: Date on which licence and access were looked up, YYYY-MM-DD, or None.
        here: What this package does about it, one of `HERE`.
        ref: Names of what runs here, such as "brainmodels.layouts.god:load".
        proof: Test files that use it.
    """

    section: ClassVar[str] = ""

    name: str
    aliases: tuple[str, ...] = ()
    note: str = ""
    sources: tuple[Source, ...] = ()
    licence: str = "unknown"
    access: str | None = None
    checked: str | None = None
    here: str = "outside"
    ref: tuple[str, ...] = ()
    proof: tuple[str, ...] = ()

    def __post_init__(self):
        self._check("access", ACCESSES)
        self._check("here", tuple(HERE))

    def _check(self, name: str, choices: tuple[str, ...]) -> None:
        """Check each value of a field; None is unknown."""
        given = getattr(self, name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None:
                check_choice(f"{name} of {self.section}/{self.name}", value, choices)

    @property
    def names(self) -> tuple[str, ...]:
        """Name and aliases."""
        return self.name, *self.aliases

    @property
    def anchor(self) -> str:
        """Address of the card within the page, such as "models-mindeye"."""
        word = "".join(x if x.isalnum() else "-" for x in self.name.casefold())
        return f"{self.section}-{word}"

    @property
    def listed(self) -> bool:
        """Whether the authors' list of the survey has it."""
        return any(source.confidence == "listed" for source in self.sources)

    def confidence(self, fact: str) -> str:
        """How sure a fact is, one of `CONFIDENCES`.

        Raises:
            BrainDataError: The card has no such field, or no source.
        """
        check_choice(f"fact of {self.name}", fact, tuple(x.name for x in fields(self)))
        named = [source for source in self.sources if fact in source.facts]
        general = named or [source for source in self.sources if not source.facts]
        if not general:
            raise BrainDataError(f"expected a source for {fact} of {self.section}/{self.name}, got none")
        return general[0].confidence


@dataclass(frozen=True, kw_only=True)
class DatasetCard(Card):
    """A data set.

    Attributes:
        signal: One of `SIGNALS`, or None where a data set may hold any.
        stimulus: What was shown or played, of `STIMULI`.
        subjects: Number of people.
        items: Number of different stimuli.
        per_subject: Hours, sessions or trials of one person. This limits a decoder.
        design: "event", or "block" where stimuli of a class followed each other.
        setting: One of `SETTINGS`.
        splits: Splits into train and test that are in use.
        regions: Names of region cards.
        pitfalls: Names of pitfalls that hold for it.
        layouts: Layouts of this package that read it.
    """

    section: ClassVar[str] = "datasets"

    signal: str | None = None
    stimulus: tuple[str, ...] = ()
    subjects: int | None = None
    items: int | None = None
    per_subject: str | None = None
    design: str | None = None
    setting: str = "passive"
    splits: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    pitfalls: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._check("signal", SIGNALS)
        self._check("stimulus", STIMULI)
        self._check("design", ("event", "block"))
        self._check("setting", tuple(SETTINGS))


@dataclass(frozen=True, kw_only=True)
class RegionCard(Card):
    """A region of the brain, or of a scalp. The same name at another voxel size is another card.

    Attributes:
        part: One of `PARTS`, or None.
        role: One of `ROLES`, or None.
        files: Where a data set has it: name of the data set, then a file, class or column.
    """

    section: ClassVar[str] = "regions"

    part: str | None = None
    role: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        self._check("part", PARTS)
        self._check("role", ROLES)


@dataclass(frozen=True, kw_only=True)
class GeneratorCard(Card):
    """What draws a picture, writes a text or makes a sound.

    Attributes:
        kind: One of `GENERATOR_KINDS`, or None where none fits.
        output: What it makes: "image", "text", "music", "object" or "video".
        year: Year of publication.
        conditions: What it is steered by, such as "CLIP image tokens".
    """

    section: ClassVar[str] = "generators"

    kind: str | None = None
    output: str | None = None
    year: int | None = None
    conditions: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._check("kind", GENERATOR_KINDS)


@dataclass(frozen=True, kw_only=True)
class ModelCard(Card):
    """A model of decoding or encoding.

    Attributes:
        task: Names of `TASKS`.
        signal: One of `SIGNALS`, or None.
        setting: One of `SETTINGS`.
        direction: "decode" from responses, "encode" to responses, or "both".
        datasets: Names of data sets.
        year: Year of publication.
        venue: Where it was published; "arXiv" if only there.
        generators: Names of generators, or of `GENERATOR_KINDS` where only the kind is recorded.
        label: What it is made of, in a few words.
        code: Whether the authors link code.
        reports: Names of metrics here whose published values are recorded.
        facts: What decides the family.
        listed_family: Family by our reading of the survey, as a list. `check` compares it with the computed one.
        listed_task: Task in the authors' list, where ours differs.
        subjects: How it treats people, one of `SUBJECTS`.
    """

    section: ClassVar[str] = "models"

    task: tuple[str, ...] = ()
    signal: str | None = None
    setting: str = "passive"
    direction: str = "decode"
    datasets: tuple[str, ...] = ()
    year: int | None = None
    venue: str | None = None
    generators: tuple[str, ...] = ()
    label: str = ""
    code: bool | None = None
    reports: tuple[str, ...] = ()
    facts: FamilyFacts = FamilyFacts()
    listed_family: str | None = None
    listed_task: str | None = None
    subjects: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self._check("task", tuple(TASKS))
        self._check("signal", SIGNALS)
        self._check("setting", tuple(SETTINGS))
        self._check("direction", DIRECTIONS)
        self._check("subjects", SUBJECTS)
        self._check("listed_family", tuple(FAMILIES))
        self._check("listed_task", tuple(TASKS))

    @property
    def family(self) -> str | None:
        """The computed family; None for encoders, and where no rule of `derive_family` holds."""
        return None if self.direction == "encode" else derive_family(self.facts)


@dataclass(frozen=True, kw_only=True)
class MetricCard(Card):
    """A metric. Level, direction, chance, protocol and weights are those of `metrics.metric(name)`.

    Attributes:
        group: What it is used for, such as "pictures".
        papers: Papers that define it or report it.
    """

    section: ClassVar[str] = "metrics"

    group: str = ""
    papers: tuple[str, ...] = ()

    @property
    def example(self) -> str:
        """The name, or that of one member of a family, such as "two_way[features]"."""
        return re.sub(r"\{(\w+)(:d)?\}", lambda x: str(_EXAMPLES.get(x[1], 2)) if x[2] else x[1], self.name)

    @property
    def definition(self) -> "Metric | None":
        """The metric of this package, for a family that of `example`; None for one that this package does not have."""
        from ..metrics import metric

        return metric(self.example) if self.name in registered_metrics() else None


@dataclass(frozen=True, kw_only=True)
class FeatureCard(Card):
    """An extractor of features of pictures.

    Attributes:
        kind: One of `EXTRACTORS`: "control" has no trained weights, "text-image" was trained with texts.
        weights: "none", "shipped" with this package, or "yours".
        names_here: Names that `features.extractor` takes.
    """

    section: ClassVar[str] = "features"

    kind: str = "vision"
    weights: str = "none"
    names_here: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._check("kind", EXTRACTORS)
        self._check("weights", WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class Pitfall(Card):
    """A way to get a number that means something else.

    Attributes:
        problem: What goes wrong.
        control: What reveals it here, in words.
        command: A command that runs or prints it; empty if there is none.
        metrics: Names of metrics that tell the cases apart.
    """

    section: ClassVar[str] = "pitfalls"

    problem: str = ""
    control: str = ""
    command: str = ""
    metrics: tuple[str, ...] = ()


SECTIONS: dict[str, type[Card]] = {
    kind.section: kind for kind in (DatasetCard, RegionCard, GeneratorCard, ModelCard, MetricCard, FeatureCard, Pitfall)
}


def registered_metrics(level: str | None = None, offline: bool | None = None) -> list[str]:
    """Names of all metrics and families of this package, those of evaluations among them, as in `metrics.list_metrics`.

    Metrics of evaluations are left out where the optional packages of `veca[brain]` are not installed.
    """
    from ..metrics import list_metrics

    with contextlib.suppress(ImportError):
        for module in _REGISTERING:
            importlib.import_module(module)
    return list_metrics(level, offline)


def card_json(card: Card) -> dict[str, Any]:
    """A card as JSON types, with its section and what is computed: the family of a model, the protocol of a metric."""
    return {"section": card.section, **to_json(card), **plain(card_facts(card))}


def card_facts(card: Card) -> dict[str, Any]:
    """The fields of a card that say something, by name, for tables; what is computed follows."""
    hidden = {"name", "aliases", "note", "sources", "facts"}
    found = {x.name: getattr(card, x.name) for x in fields(card) if x.name not in hidden}
    if isinstance(card, ModelCard):
        found["family"] = card.family
    if isinstance(card, MetricCard) and card.definition is not None:
        of = card.definition
        found |= {"level": of.level, "direction": of.direction, "chance": of.chance}
        found |= {"needs_weights": of.needs_weights, "protocol": of.protocol}
    return {name: value for name, value in found.items() if value not in (None, "", (), {})}
