"""What single regions and numbers of voxels add to a decoder that reads any voxels, and maps of encoders of voxels.

found = study_voxels(opened, study, space)     # of a model whose decoder takes `voxels`
print(found.regions[0].without["cosine"])      # change of the mean cosine without the first region
maps = weight_maps(opened, study)              # of a model that has `voxel_model`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics import Score, metric
from ..metrics.retrieval import full_gallery, ranks, similarity
from ..metrics.statistics import Difference, paired_difference, score_images
from .encoding import Study
from .opened import OpenedModel
from .token_space import TokenSpace

__all__ = ["COMPONENTS", "RegionEffect", "VoxelStudy", "WeightMaps", "study_voxels", "weight_maps"]

FEWEST = 25  # voxels of the first point of the curve; each further point has twice as many
COMPONENTS = 3  # principal components of weights that become maps


@dataclass(frozen=True)
class RegionEffect:
    """What decoding loses without a region, and by the region alone, compared with decoding from all voxels.

    Attributes:
        region: Name of the region.
        voxels: Number of its voxels that the model knows.
        without: Change of "cosine" and "top1", a mean over images, where its voxels are left out. None where the model
            knows no other voxel.
        alone: The same changes where all other voxels are left out.
    """

    region: str
    voxels: int
    without: Mapping[str, Difference] | None
    alone: Mapping[str, Difference]

    def to_json(self) -> dict[str, Any]:
        ways = {"without": self.without, "alone": self.alone}
        told = {name: None if found is None else _told(found) for name, found in ways.items()}
        return {"region": self.region, "voxels": self.voxels, **told}


@dataclass(frozen=True)
class VoxelStudy:
    """Decoding from some of the voxels.

    Attributes:
        counts: Cosine and top-1 by the number of voxels, which are chosen at random; the last number is that of all.
        regions: Effects of the regions of the subject.
    """

    counts: Mapping[int, Sequence[Score]]
    regions: Sequence[RegionEffect]

    def to_json(self) -> dict[str, Any]:
        counts = {str(count): [score.to_json() for score in scores] for count, scores in self.counts.items()}
        return {"counts": counts, "regions": [effect.to_json() for effect in self.regions]}


@dataclass(frozen=True)
class WeightMaps:
    """Encoders of the voxels of one subject, and the directions in which they differ most.

    Attributes:
        method: Name of the method that made the encoders.
        coef: fp32 (E, V) Weights; NaN in voxels that the model leaves out.
        intercept: fp32 (V,) Likewise.
        components: fp32 (K, V) Scores of the voxels on the first principal components of the weights. The largest
            absolute score of each is positive.
        explained: (K,) Share of the variance of the weights over voxels.
    """

    method: str
    coef: np.ndarray
    intercept: np.ndarray
    components: np.ndarray
    explained: np.ndarray

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "shape": list(self.coef.shape), "explained": self.explained.tolist()}


def study_voxels(opened: OpenedModel, study: Study, space: TokenSpace) -> VoxelStudy:
    """Decode the test images from single regions, without them, and from random voxels of several numbers.

    Args:
        opened: A model whose `decode` takes `voxels` and `max_voxels`.
        study: Responses of its subject.
        space: Its tokens of the test images.
    """
    model, subject = opened.model, opened.subject_in(study)
    kept = model.scales_[subject].kept

    def table(**chosen: Any) -> np.ndarray:
        guess = model.tokens(model.decode(study.test, subject=subject, **chosen))
        return similarity(guess, space.test)

    count = int(kept.sum())
    numbers = [FEWEST * 2**power for power in range(count.bit_length()) if FEWEST * 2**power < count] + [count]
    counts = {number: _scores(opened, study, table(max_voxels=number, seed=study.seed), number) for number in numbers}
    whole, regions = _by_image(table()), []
    for name, region in getattr(study.test.subject.space, "rois", {}).items():
        inside, others = region & kept, ~region & kept
        if inside.any():
            left = _changes(study, _by_image(table(voxels=others)), whole) if others.any() else None
            alone = _changes(study, _by_image(table(voxels=inside)), whole)
            regions.append(RegionEffect(name, int(inside.sum()), left, alone))
    return VoxelStudy(counts, regions)


def weight_maps(opened: OpenedModel, study: Study) -> WeightMaps:
    """The encoders of a subject by voxel.

    Args:
        opened: A model that has `voxel_model`.
        study: Responses of its subject.
    """
    subject = opened.subject_in(study)
    model, kept = opened.model.voxel_model(subject), opened.model.scales_[subject].kept
    weights = model.coef_.T.astype(np.float64)
    left, sizes, _ = np.linalg.svd(weights - weights.mean(0), full_matrices=False)
    scores = (left * sizes)[:, :COMPONENTS]
    scores *= np.sign(scores[np.abs(scores).argmax(0), np.arange(scores.shape[1])])
    shares = sizes[:COMPONENTS] ** 2 / max((sizes**2).sum(), np.finfo(float).tiny)  # encoders may all be the same
    wide = [_widened(values, kept) for values in (model.coef_, model.intercept_[None], scores.T)]
    return WeightMaps(model.method, wide[0], wide[1][0], wide[2], shares)


def _widened(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Rows of the voxels that a model knows, in the columns of all; elsewhere NaN."""
    wide = np.full((len(values), len(kept)), np.nan, np.float32)
    wide[:, kept] = values
    return wide


def _by_image(table: np.ndarray) -> dict[str, np.ndarray]:
    """Cosine, and whether the image is found among all, of each image (n,)."""
    found = ranks(table, "image_given_brain") <= 1
    return {"cosine": np.diagonal(table), "top1": found.astype(np.float64)}


def _changes(study: Study, values: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray]) -> dict[str, Difference]:
    return {name: paired_difference(values[name], whole[name], study.resamples, study.seed) for name in whole}


def _scores(opened: OpenedModel, study: Study, table: np.ndarray, count: int) -> list[Score]:
    """Cosine and top-1 as scores of so many voxels."""
    options: dict[str, Any] = {"resamples": study.resamples, "seed": study.seed, "decoder": opened.name}
    cosine = score_images(metric(f"token_cosine[{opened.tokens_of.name} tokens]"), np.diagonal(table), table, **options)
    scores = [cosine, full_gallery(table, (1,), **options)[0]]
    conditions = {"features": opened.model.fingerprint_, "mask": f"{count} random voxels of the model"}
    return [score.under(study.test, **conditions) for score in scores]


def _told(changes: Mapping[str, Difference]) -> dict[str, list[float]]:
    """Value, lower and upper end by name."""
    return {name: [float(x.value), x.interval.low, x.interval.high] for name, x in changes.items()}
