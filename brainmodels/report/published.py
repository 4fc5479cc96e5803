"""A handful of published numbers of SynBrain and NeuroFlow, with what makes them hard to compare."""

from typing import NamedTuple

__all__ = ["HEAD", "ROWS", "WARNINGS", "Published"]

HEAD = ("MSE", "sample r", "decode Incep / CLIP", "encode Incep / CLIP", "Raw / Syn")


class Published(NamedTuple):
    """One row: the model, cells in the order of `HEAD`, "–" where nothing is known, and where it was read."""

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

WARNINGS = (
    "MSE and sample r are of betas / 2000, not centred, where a mean map scores high and a linear regression already "
    "reaches .676; they do not compare with z-scored responses.",
    "Incep and CLIP are two-way identification of drawn pictures by networks. SynBrain's encoding is judged by "
    "MindEye2, NeuroFlow's by itself: image, own response, own decoder. These are two metrics.",
    "Raw and Syn are top-1 among 300 images; a gallery of another size is another metric, and the two directions of "
    "retrieval may have changed names.",
    "Test sets of 982 and of 1000 images differ, and session statistics of the public code of NeuroFlow and MindEye2 "
    "include test trials.",
    "Pixel scores of NeuroFlow's larger variant blend in MindEye2's blurry image.",
)
