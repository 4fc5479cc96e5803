"""Published numbers of SynBrain and NeuroFlow. The template `published.html` says why they are hard to compare."""

from typing import NamedTuple

__all__ = ["ROWS", "Published"]


class Published(NamedTuple):
    """One row of the table of published numbers.

    Attributes:
        model: Name of the model and the subjects.
        cells: MSE, sample r, decoding, encoding, and retrieval of raw and synthetic responses. "–" is unknown.
        source: Where the numbers were read.
    """

    model: str
    cells: tuple[str, ...]
    source: str


_SYNBRAIN, _NEUROFLOW = "arXiv 2508.10298", "arXiv 2604.09817, as quoted by third parties"
ROWS = (
    Published("SynBrain, mean of subjects 1, 2, 5, 7", (".139", ".687", "–", "95.7 / 94.3", "84.8 / 92.5"), _SYNBRAIN),
    Published("SynBrain, subject 1", (".079", ".715", "–", "96.7 / 95.9", "94.7 / 99.3"), _SYNBRAIN),
    Published("linear regression, subject 1", (".102", ".676", "–", "– / 83.7", "–"), _SYNBRAIN),
    Published("NeuroFlow, mean of 1, 2, 5, 7", ("–", "–", "95.6 / 94.2", "98.6 / 98.7", "80.6 / 97.0"), _NEUROFLOW),
    Published("MindEye2, mean of 1, 2, 5, 7", ("–", "–", "95.4 / 93.0", "–", "98.8 / –"), "arXiv 2403.11207"),
)
