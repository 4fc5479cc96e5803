"""Encoding from the best layer of a network, chosen for each region on images that are not tested on.

    best = best_layers(sets, study, dataset, rows, Path("out/features"))
    best[0].regions["V1"].layer  # the layer that predicts V1 best on validation images

The choice is made on validation images, or on folds of the train images. Test images have no part in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from veca.hashes import json_digest

from ..data import BrainDataset
from ..errors import BrainDataError
from ..features import FeatureCache
from ..features.sets import FeatureSet, feature_rows
from ..metrics.encoding import voxel_r
from .encoding import Encoded, Study, judge, ridge_prediction

__all__ = ["BEST_LAYER", "BestLayers", "Choice", "best_layers", "check_layers"]

BEST_LAYER = "ridge, best layer by region"
LEAST, FOLDS = 10, 5  # validation images, and folds of the train images
ELSEWHERE, EVERYWHERE = "outside of all regions", "all voxels"


@dataclass(frozen=True)
class Choice:
    """The layer of one region.

    Attributes:
        layer: Number or name of the layer.
        scores: Mean correlation of the voxels by layer, on the images of the choice.
        voxels: Number of voxels that are predicted from this layer.
    """

    layer: Any
    scores: Mapping[Any, float]
    voxels: int


@dataclass(frozen=True)
class BestLayers:
    """Encoding from the best layer of each region.

    Attributes:
        encoded: Scores on the test images.
        name: Name of all layers together.
        select: Images of the choice, "validation" or "folds".
        images: Number of these images.
        regions: Choice by region. A voxel of several regions belongs to the smallest.
    """

    encoded: Encoded
    name: str
    select: str
    images: int
    regions: Mapping[str, Choice]

    def to_json(self) -> dict[str, Any]:
        regions = {
            name: {"layer": x.layer, "voxels": x.voxels, "r": {str(layer): r for layer, r in x.scores.items()}}
            for name, x in self.regions.items()
        }
        return {"features": self.name, "select": self.select, "images": self.images, "regions": regions}


def check_layers(sets: Sequence[FeatureSet], dataset: BrainDataset, study: Study) -> None:
    """Refuse a choice on validation images where there are too few of them.

    Args:
        sets: Sets of features.
        dataset, study: The data, and the responses of the subject.

    Raises:
        BrainDataError: See above.
    """
    for item in sets:
        if item.layer_of is not None and item.layer_of.select == "validation":
            count = len(_validation(dataset, study))
            if count < LEAST:
                raise BrainDataError(
                    f"expected {LEAST} validation images or more with responses in split "
                    f"{study.test.split.name!r}, on which the layer of {item.layer_of.name} is chosen, got {count}; "
                    "pass select=folds to choose it on folds of the train images"
                )


def best_layers(
    sets: Sequence[FeatureSet],
    study: Study,
    dataset: BrainDataset,
    rows: Mapping[str, tuple[np.ndarray, np.ndarray]],
    folder: Path,
    device: str = "cpu",
) -> list[BestLayers]:
    """Choose the best layer of each region for every network with several layers, and score it on the test images.

    Args:
        sets: Sets of features; those without `layer_of` are left out.
        study: Responses of train and test images.
        dataset: The images, and the validation responses.
        rows: Features (n, p) of train and test images by the name of a set.
        folder: Folder of the feature caches.
        device: Device of the extractors.

    Raises:
        BrainDataError: Too few validation images, see `check_layers`.
    """
    check_layers(sets, dataset, study)
    found = []
    for name in dict.fromkeys(item.layer_of.name for item in sets if item.layer_of is not None):
        layers = [item for item in sets if item.layer_of is not None and item.layer_of.name == name]
        found.append(_best(name, layers, study, dataset, rows, folder, device))
    return found


def _best(
    name: str,
    layers: Sequence[FeatureSet],
    study: Study,
    dataset: BrainDataset,
    rows: Mapping[str, tuple[np.ndarray, np.ndarray]],
    folder: Path,
    device: str,
) -> BestLayers:
    known: list[Any] = [item.layer_of for item in layers]
    select, told, tests, images = known[0].select, [], [], len(study.train)
    ids = _validation(dataset, study) if select == "validation" else None
    for item in layers:
        X, X_test = rows[item.name]
        if ids is None:
            told.append(_r_in_folds(study, X))
        else:
            cache = FeatureCache(folder, item.extractor, dataset.stimuli)
            cache.extract(ids, device=device, progress=False, verify=False)
            pairs = dataset.pairs(study.test.subject.id, study.test.split, "val", "repeats", study.train.transform)
            guess = ridge_prediction(study, X, feature_rows(cache, pairs.image_ids))
            told.append(_r(study, pairs.array(), guess))
            images = len(pairs)
        tests.append(ridge_prediction(study, X, X_test))
    r, chosen, regions = np.array(told), np.zeros(len(study.voxels), int), {}
    for region, mask, own in _parts(study):
        means = np.nanmean(r[:, mask], axis=1)
        best = int(np.argmax(means))
        chosen[own] = best
        scores = {one.layer: float(value) for one, value in zip(known, means, strict=True)}
        regions[region] = Choice(known[best].layer, scores, int(own.sum()))
    predicted = np.take_along_axis(np.array(tests), chosen[None, None], 0)[0]
    note = "; ".join(filter(None, [f"layer by region chosen on {images} images, {select}", layers[0].extractor.note]))
    mark = json_digest([*(item.extractor.fingerprint() for item in layers), chosen.tolist()])
    encoded = judge(study, predicted, BEST_LAYER, name, note, features_of=mark)
    return BestLayers(encoded, name, select, images, regions)


def _parts(study: Study) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Regions with their voxels, and with those among them that are in no smaller region."""
    regions = sorted(study.rois.items(), key=lambda item: item[1].sum())
    left, found = study.voxels.copy(), []
    for name, mask in regions:
        found.append((name, mask, mask & left))
        left &= ~mask
    if left.any():
        found.append((ELSEWHERE if regions else EVERYWHERE, left, left.copy()))
    return found


def _validation(dataset: BrainDataset, study: Study) -> np.ndarray:
    """Validation images with responses of the subject."""
    subject, split = study.test.subject, study.test.split
    trials = subject.responses.trials
    return np.unique(trials.image_id[split.rows(trials, "val", subject.id)])


def _r_in_folds(study: Study, X: np.ndarray) -> np.ndarray:
    """Correlation (V,) over train images, each predicted by a fit to the other folds."""
    fold = np.random.default_rng(study.seed).permutation(len(X)) % FOLDS
    guess = np.zeros((len(X), len(study.voxels)), np.float32)
    for number in range(FOLDS):
        out = fold == number
        guess[out] = ridge_prediction(study, X, X[out], np.flatnonzero(~out))
    return _r(study, study.measured_train, guess)


def _r(study: Study, measured: np.ndarray, guess: np.ndarray) -> np.ndarray:
    r = np.full(len(study.voxels), np.nan)
    r[study.voxels] = np.nan_to_num(voxel_r(measured[:, study.voxels], guess[:, study.voxels]))
    return r
