"""Published numbers of brain models. `published.html` and `objects.html` say why they are hard to compare."""

from typing import NamedTuple

__all__ = ["CAPTIONS", "GENERATION", "IMAGES", "OBJECTS", "OBJECT_REGIONS", "ROWS", "Generated", "Published"]


class Published(NamedTuple):
    """One row of the table of published numbers.

    Attributes:
        model: Name of the model and the subjects, or of the region that was left out.
        cells: Numbers in the order of the columns of its table. "–" is unknown.
        source: Where the numbers were read.
    """

    model: str
    cells: tuple[str, ...]
    source: str


_SYNBRAIN, _NEUROFLOW = "arXiv 2508.10298", "arXiv 2604.09817, as quoted by third parties"
# MSE, sample r, decoding, encoding, and retrieval of raw and synthetic responses
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


_NEURO3D = "arXiv 2411.12248, CVPR 2025"
OBJECTS = (
    Published("chance, by the paper", ("1.39 / 6.94", "16.67 / 33.33", "50 / 30", "–"), _NEURO3D),
    Published("DeepNet", ("3.70 / 9.90", "20.95 / 49.71", "–", "–"), _NEURO3D),
    Published("EEGNet", ("3.82 / 9.72", "18.35 / 46.47", "–", "–"), _NEURO3D),
    Published("Conformer", ("4.05 / 10.30", "18.27 / 35.81", "–", "–"), _NEURO3D),
    Published("TSConv (NICE)", ("4.05 / 10.13", "31.13 / 59.49", "–", "–"), _NEURO3D),
    Published(
        "Neuro-3D",
        ("5.91 / 16.30", "39.93 / 61.40", "55.81 / 57.64", "Chamfer 5.35e-2, F1 77.01"),
        f"{_NEURO3D}; clouds as quoted by third parties",
    ),
    Published(
        "BrainGS", ("6.48 / 18.75", "42.20 / 64.92", "79.5 / –", "“CD” 2.318"), "CVPR 2026, as quoted by third parties"
    ),
    Published("Neuro-3D, in BrainGS", ("–", "–", "55.8 / –", "“CD” 2.956"), "CVPR 2026, as quoted by third parties"),
    Published(
        "BrainSSD, retrieval",
        ("6.65 / 21.76", "–", "–", "CD .113, F .304, meshes"),
        "CVPR 2026, as quoted by third parties",
    ),
    Published("Neuro-3D, in BrainSSD", ("5.42 / 16.25", "–", "–", "–"), "CVPR 2026, as quoted by third parties"),
)
"""Numbers on EEG-3D in percent: object top-1 / 5, colour top-1 / 2, 2-way top-1 / 10-way top-3, and distances."""

OBJECT_REGIONS = (
    Published("none", ("14.2", "15.7", "16.0"), _NEURO3D),
    Published("frontal", ("14.0", "15.6", "15.6"), _NEURO3D),
    Published("central", ("13.8", "15.1", "15.7"), _NEURO3D),
    Published("parietal", ("13.1", "15.3", "15.7"), _NEURO3D),
    Published("occipital", ("13.1", "13.8", "14.6"), _NEURO3D),
    Published("temporal", ("13.3", "15.1", "14.6"), _NEURO3D),
)
"""Object top-5 of Neuro-3D in percent without a region: dynamic, static and fused. One object is 0.7."""
