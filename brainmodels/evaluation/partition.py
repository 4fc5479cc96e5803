"""How much of the responses each set of features explains alone, and how much sets explain together.

    partition = partition_of(study, {"veca": (X, X_test), "gabor": (Z, Z_test)})
    partition.regions["V1"].unique["veca"]  # Difference: what is lost without veca, with interval and p

Banded ridge is fitted to all sets together, and to all but one. The unique share of a set is the score of all minus the
score without it (Lescroart et al., Frontiers in Computational Neuroscience 9, 2015). The shared part is the score of
all minus all unique parts. Penalties and weights of the sets are chosen on train images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..baselines import BandedRidge
from ..errors import BrainDataError
from ..metrics.statistics import Difference, resampled_difference
from .encoding import WHOLE, Encoded, Resampled, Study, judge, ridge_prediction, standardized

__all__ = ["Partition", "RegionPartition", "check_partition", "partition_of"]

MODEL = "banded ridge"


@dataclass(frozen=True)
class RegionPartition:
    """Parts of the score of one region.

    Attributes:
        voxels: Number of voxels.
        total: (value, low, high) of all sets together: share of the explainable variance, or mean r without a ceiling.
        unique: What is lost without a set, by name.
        shared: What is left of the total without all unique parts. It may be below 0 where sets suppress noise of
            each other.
    """

    voxels: int
    total: tuple[float, float, float]
    unique: Mapping[str, Difference]
    shared: Difference

    def to_json(self) -> dict[str, Any]:
        unique = {name: _told(part) for name, part in self.unique.items()}
        return {"voxels": self.voxels, "total": list(self.total), "unique": unique, "shared": _told(self.shared)}


@dataclass(frozen=True)
class Partition:
    """Parts of the scores of several sets of features.

    Attributes:
        names: Names of the sets.
        regions: Parts of all voxels, under `WHOLE`, and of each region.
        fits: Scores of all sets together, under "", and without each set, by its name.
    """

    names: Sequence[str]
    regions: Mapping[str, RegionPartition]
    fits: Mapping[str, Encoded]

    def to_json(self) -> dict[str, Any]:
        regions = {name: region.to_json() for name, region in self.regions.items()}
        return {"sets": list(self.names), "regions": regions}


def check_partition(wanted: bool, names: Sequence[str]) -> None:
    """Refuse a partition of fewer than two sets of features.

    Raises:
        BrainDataError: See above.
    """
    if wanted and len(names) < 2:
        raise BrainDataError(f"expected two or more sets of features to partition, got {', '.join(names) or 'none'}")


def partition_of(study: Study, rows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Partition:
    """Fit banded ridge to all sets and to all but one, and split the score of the test images.

    Args:
        study: Responses to the train and test images.
        rows: Features (n, p) of the train and test images by the name of the set, two sets or more.

    Raises:
        BrainDataError: Fewer than two sets.
        ImportError: himalaya is not installed.
    """
    names = list(rows)
    check_partition(True, names)
    left = {"": names} | {name: [other for other in names if other != name] for name in names}
    fits = {
        name: judge(study, _prediction(study, [rows[x] for x in kept]), MODEL, " + ".join(kept))
        for name, kept in left.items()
    }
    regions = {}
    for region, mask in {WHOLE: study.voxels, **study.rois}.items():
        whole = fits[""].resampled[region]
        parts = {name: _minus(whole, fits[name].resampled[region]) for name in names}
        rest = whole
        for part in parts.values():
            rest = _minus(rest, part)
        told = {name: _difference(part, study) for name, part in parts.items()}
        regions[region] = RegionPartition(int(mask.sum()), whole.span, told, _difference(rest, study))
    return Partition(names, regions, fits)


def _prediction(study: Study, sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Test responses (n, V) from several sets, each weighted by voxel; of one set by ridge."""
    if len(sets) == 1:
        return ridge_prediction(study, *sets[0])
    scaled = [standardized(*pair) for pair in sets]
    mean = np.mean([train.shape[1] for train, _ in scaled])
    factors = [np.float32((mean / train.shape[1]) ** 0.5) for train, _ in scaled]  # equal variance of all sets
    X, X_test = (
        np.concatenate([pair[part] * factor for pair, factor in zip(scaled, factors, strict=True)], 1)
        for part in (0, 1)
    )
    ends = np.cumsum([train.shape[1] for train, _ in scaled])
    spaces = {str(k): slice(int(end - scaled[k][0].shape[1]), int(end)) for k, end in enumerate(ends)}
    model = BandedRidge(spaces, random_state=study.seed).fit(X, study.measured_train[:, study.voxels])
    out = np.zeros((len(X_test), len(study.voxels)), np.float32)
    out[:, study.voxels] = model.predict(X_test)
    return out


def _minus(first: Resampled, second: Resampled) -> Resampled:
    return Resampled(first.value - second.value, first.draws - second.draws)


def _difference(part: Resampled, study: Study) -> Difference:
    return resampled_difference(part.draws, np.zeros_like(part.draws), part.value, len(study.test))


def _told(part: Difference) -> dict[str, Any]:
    return {"value": part.value, "interval": [part.interval.low, part.interval.high], "p": part.p}
