"""The field as cards: data sets, regions, generators, models, metrics, features, pitfalls, and what is here.

    list_models(task="IBI", signal="eeg", family="MTF")
    card("EEG-ImageNet")          # the data set EEG-VOA; aliases work
    coverage()                    # number of models of each task and signal
    check()                       # problems, none in a release

The order follows Mai et al., "Brain-Conditional Multimodal Synthesis: A Survey and Taxonomy", arXiv 2401.00430. Its
text could not be read. The entries are those of its authors' list, github.com/MichaelMaiii/AIGC-Brain, and families are
our reading. A card says where each fact was read, and None is unknown.
"""

from .cards import (
    SECTIONS,
    Card,
    DatasetCard,
    FamilyFacts,
    FeatureCard,
    GeneratorCard,
    MetricCard,
    ModelCard,
    Pitfall,
    RegionCard,
    Source,
    derive_family,
)
from .published import PublishedNumber
from .query import (
    Covered,
    card,
    cards_named,
    coverage,
    here_instead,
    list_datasets,
    list_features,
    list_generators,
    list_metrics,
    list_models,
    list_pitfalls,
    list_regions,
)
from .status import check
from .store import all_cards, load, published_numbers
from .words import FAMILIES, HERE, SIGNALS, STIMULI, TASKS

__all__ = [
    "FAMILIES",
    "HERE",
    "SECTIONS",
    "SIGNALS",
    "STIMULI",
    "TASKS",
    "Card",
    "Covered",
    "DatasetCard",
    "FamilyFacts",
    "FeatureCard",
    "GeneratorCard",
    "MetricCard",
    "ModelCard",
    "Pitfall",
    "PublishedNumber",
    "RegionCard",
    "Source",
    "all_cards",
    "card",
    "cards_named",
    "check",
    "coverage",
    "derive_family",
    "here_instead",
    "list_datasets",
    "list_features",
    "list_generators",
    "list_metrics",
    "list_models",
    "list_pitfalls",
    "list_regions",
    "load",
    "published_numbers",
]
