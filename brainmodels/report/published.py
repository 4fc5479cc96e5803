"""Published numbers of SynBrain and NeuroFlow. The template `published.html` says why they are hard to compare."""

from typing import NamedTuple

__all__ = ["CAPTIONS", "GENERATION", "IMAGES", "ROWS", "Generated", "Published"]


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


class Generated(NamedTuple):
    """One row of the tables of published pictures and captions.

    Attributes:
        model: Name of the model and the subjects.
        images: PixCorr, SSIM, Alex2, Alex5, Inception, CLIP, EffNet-B, SwAV; empty if there are none.
        captions: METEOR, ROUGE-1, ROUGE-L and "CLIP"; empty if there are none.
        source: Where the numbers were read.
    """

    model: str
    images: tuple[str, ...]
    captions: tuple[str, ...]
    source: str


IMAGES = ("PixCorr", "SSIM", "Alex(2)", "Alex(5)", "Incep", "CLIP", "Eff", "SwAV")
CAPTIONS = ("METEOR", "ROUGE-1", "ROUGE-L", "CLIP")
_UNIBRAIN, _RECOMPUTED = "arXiv 2308.07428, tables 1 to 4", "arXiv 2403.11207"
GENERATION = (
    Generated(
        "UniBrain, mean of subjects 1, 2, 5, 7",
        (".249", ".330", ".929", ".956", ".878", ".923", ".766", ".407"),
        (".169", ".245", ".222", "85.3"),
        _UNIBRAIN,
    ),
    Generated(
        "UniBrain, subject 1",
        (".299", ".342", ".954", ".969", ".890", ".930", ".757", ".396"),
        (".170", ".247", ".225", "86.1"),
        _UNIBRAIN,
    ),
    Generated(
        "UniBrain, subject 1, low-level latent alone",
        (".376", ".419", ".866", ".762", ".547", ".532", ".993", ".674"),
        (".185", ".262", ".233", "77.2"),
        _UNIBRAIN,
    ),
    Generated(
        "Brain-Diffuser, recomputed on 40 sessions",
        (".273", ".365", ".944", ".966", ".913", ".909", ".728", ".421"),
        (),
        _RECOMPUTED,
    ),
    Generated("MindEye2, subject 1, COCO captions", (), (".248", ".353", ".326", "63.8"), _RECOMPUTED),
)
