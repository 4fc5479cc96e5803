"""What the encoder learns of objects: features, how they are scaled, classes and colours."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ...data.objects import ObjectStudy
from ...errors import BrainDataError
from ...features import FeatureSource
from ...features.objects import with_features
from .losses import Goal
from .recipes import Targets

__all__ = ["Goals", "TargetScale", "goals_of", "targets_of", "with_targets"]


@dataclass(frozen=True)
class Goals:
    """What the encoder should say of objects, one row an object.

    Attributes:
        ids: (n,) Objects.
        geometry, appearance: (n, d) fp32 features of length 1.
        label, color: (n,) int64 classes and colours; colours are -1 where there are no labels of them.
    """

    ids: np.ndarray
    geometry: np.ndarray
    appearance: np.ndarray
    label: np.ndarray
    color: np.ndarray

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Positions of objects."""
        places = {name: row for row, name in enumerate(self.ids.tolist())}
        return np.array([places[name] for name in ids.tolist()], np.int64)

    def of(self, ids: np.ndarray) -> Goal:
        """The goals of trials by their objects, as tensors."""
        rows = self.rows(ids)
        geometry, appearance, label, color = (
            torch.from_numpy(x[rows]) for x in (self.geometry, self.appearance, self.label, self.color)
        )
        return Goal(geometry, appearance, label, color)

    def joined(self, other: "Goals") -> "Goals":
        """These objects and others."""
        names = ("ids", "geometry", "appearance", "label", "color")
        return Goals(*(np.concatenate((getattr(self, name), getattr(other, name))) for name in names))


@dataclass(frozen=True)
class TargetScale:
    """Features (x - mean) / std, scaled to length 1.

    Attributes:
        mean, std: fp64 (d,) over the train objects. A feature that is constant over them has std 1.
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> "TargetScale":
        """The scale of the features (n, d) of train objects."""
        values = features.astype(np.float64)
        std = values.std(0)
        return cls(values.mean(0), np.where(std > 1e-6 * std.max(initial=0), std, 1.0))

    def transform(self, features: np.ndarray) -> np.ndarray:
        """Scaled features, fp32 (n, d), each of length 1."""
        scaled = (features - self.mean) / self.std
        return (scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).astype(np.float32)


def goals_of(
    study: ObjectStudy, ids: np.ndarray, sources: Mapping[str, FeatureSource], scales: Mapping[str, TargetScale]
) -> Goals:
    """What the encoder should say of objects.

    Args:
        study: Data set with their labels.
        ids: (n,) Objects.
        sources: Their features, see `targets_of`.
        scales: Scales of these.
    """
    geometry, appearance = (scales[name].transform(sources[name].get(ids)) for name in ("geometry", "appearance"))
    color = study.label("color", ids) if "color" in study.stimuli.labels else np.full(len(ids), -1)
    return Goals(ids, geometry, appearance, study.label("class", ids).astype(np.int64), color.astype(np.int64))


def with_targets(study: ObjectStudy, wanted: Targets) -> ObjectStudy:
    """The study with the features that a recipe names. A study that has features keeps them.

    Args:
        study: Data set.
        wanted: Targets of the recipe.

    Raises:
        BrainDataError: The recipe asks for given features and the study has none, or its objects have no frames.
    """
    if study.targets is not None:
        return study
    if wanted.features == "given":
        raise BrainDataError("expected targets in the study, which this recipe asks for, got none; see with_targets")
    return with_features(study, wanted.features, wanted.frames, wanted.size)


def targets_of(study: ObjectStudy, wanted: Targets) -> dict[str, FeatureSource]:
    """Sources of the features of "geometry" and "appearance" of a study that has them.

    Args:
        study: Data set, see `with_targets`.
        wanted: Targets of the recipe.

    Raises:
        BrainDataError: The recipe asks for grey features that the study does not have.
    """
    color, geometry = study.targets, study.grey_targets if wanted.geometry == "grey" else study.targets
    if color is None or geometry is None:
        raise BrainDataError(
            f"expected {wanted.geometry} targets in the study, which this recipe asks for, got none; "
            "Targets(geometry='color') needs no grey ones"
        )
    return {"geometry": geometry, "appearance": color}
