"""Studies of people who saw objects as a still picture and as a turning video.

    study = brainmodels.simulate_objects("tiny")
    study.label("class", ids)     # (n,) numbers from 0
    study.cloud(ids[0])           # (N, 6) fp32, xyz and rgb
    study.palette("objects")      # (Q, 3), the colour that each colour label stands for

`objects.ObjectTrials` has the responses in the form that models take.
"""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from ..errors import AxisError, BrainDataError, IdError, check_choice
from .dataset import BrainDataset, Split
from .feature_source import FeatureSource
from .ids import Ids
from .stimuli import StimulusSet

__all__ = ["STREAMS", "ObjectStudy"]

STREAMS = ("static", "dynamic")
"""Names of the streams: responses to the still picture, and to the turning video."""

_DISTINCT = 16  # points that a cloud must have


class ObjectStudy:
    """People, the objects that they saw, and the clouds, labels and features of these objects.

    The stimuli have the labels "class" (numbers from 0), "name" (of the class) and "object" (number in the class).
    They may have "color" (numbers from 0). Their source has a method `cloud(image_id)`.

    Args:
        static: Responses to still pictures. None where only the other stream exists.
        dynamic: Responses to turning videos of the same objects, or None.
        targets: Features of the coloured objects by id, one vector each, or None.
        grey_targets: Features of the objects without colour, or None.
        color_names: Names of the colour labels, in their order. None where they are not known.

    Attributes:
        static, dynamic, targets, grey_targets: As given.

    Raises:
        IdError: The streams have other subjects, objects, labels or splits, or an object has no target.
        BrainDataError: There is no stream, no cloud or no label "class", or classes are not numbered from 0.
    """

    def __init__(
        self,
        static: BrainDataset | None = None,
        dynamic: BrainDataset | None = None,
        targets: FeatureSource | None = None,
        grey_targets: FeatureSource | None = None,
        color_names: Sequence[str] | None = None,
    ):
        self.static, self.dynamic = static, dynamic
        self.targets, self.grey_targets = targets, grey_targets
        if not self.streams:
            raise BrainDataError("expected a data set of at least one stream, static or dynamic, got none")
        if static is not None and dynamic is not None:
            _check_same(static, dynamic)
        self._class_names = _class_names(self.stimuli)
        self._color_names = None
        if "color" in self.stimuli.labels and color_names is not None:
            self._color_names = tuple(color_names)
        if not hasattr(self.stimuli.source, "cloud"):
            raise BrainDataError(
                f"expected stimuli whose source has point clouds, got {type(self.stimuli.source).__name__}"
            )
        self._check_targets()
        self._palettes: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(self.subjects)}; {', '.join(self.streams)}; {len(self.stimuli)} objects "
            f"of {len(self.class_names)} classes; splits: {', '.join(self.splits) or 'none'})"
        )

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that exist, in the order of `STREAMS`."""
        return tuple(name for name in STREAMS if getattr(self, name) is not None)

    def dataset(self, stream: str) -> BrainDataset:
        """The data set of a stream. An unknown name is a `BrainDataError`."""
        return getattr(self, check_choice("stream", stream, self.streams))

    @property
    def stimuli(self) -> StimulusSet:
        """All objects."""
        return self.dataset(self.streams[0]).stimuli

    @property
    def subjects(self) -> tuple[str, ...]:
        """Ids of the subjects."""
        return tuple(self.dataset(self.streams[0]).subjects)

    @property
    def splits(self) -> dict[str, Split]:
        """Splits by name."""
        return self.dataset(self.streams[0]).splits

    def split(self, name: str | Split | None = None) -> Split:
        """The split with this name. None gives the first one, and a split itself is returned as it is.

        Raises:
            BrainDataError: There is no split, or none with this name.
        """
        if isinstance(name, Split):
            return name
        if name is None and self.splits:
            name = next(iter(self.splits))
        return self.dataset(self.streams[0]).split(str(name))

    def cloud(self, image_id: str) -> np.ndarray:
        """The point cloud of an object, fp32 (N, 6): xyz as stored, and rgb in [0, 1].

        Raises:
            IdError: The object is unknown.
            AxisError: The cloud is not (N, 6).
            BrainDataError: Points are not finite, fewer than 16 are distinct, or colours are outside [0, 1].
        """
        self.stimuli.rows([image_id])
        source: Any = self.stimuli.source
        cloud = np.asarray(source.cloud(image_id), np.float32)
        _check_cloud(cloud, image_id)
        return cloud

    def label(self, name: str, ids: Ids) -> np.ndarray:
        """Labels of objects, (len(ids),): "class", "name", "object", and "color" where it is known.

        Raises:
            IdError: An object is unknown.
            BrainDataError: There is no such label.
        """
        return self.stimuli.label(name, ids)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in the order of the label "class"."""
        return self._class_names

    @property
    def color_names(self) -> tuple[str, ...] | None:
        """Name of each colour, in the order of the label "color". None where there are no labels or no names."""
        return self._color_names

    def palette(self, split: str | Split | None = None) -> np.ndarray | None:
        """Colour of each colour label, as the mean over the points of the objects that are not in the test part.

        Args:
            split: Split, or name of one. None takes the first one.

        Returns:
            Colours fp64 (Q, 3) in [0, 1], or None where there are no colour labels.

        Raises:
            IdError: A colour has no object outside the test part.
        """
        if "color" not in self.stimuli.labels:
            return None
        split = self.split(split)
        if split.hash not in self._palettes:
            ids = sorted(split.ids("train") | split.ids("val"))
            labels, count = self.label("color", ids), int(self.stimuli.labels["color"].max()) + 1
            missing = sorted(set(range(count)) - set(labels.tolist()))
            if missing:
                raise IdError(
                    f"expected train objects of {count} colours in split {split.name!r}, got none of {missing[0]}"
                )
            means = np.stack([self.cloud(name)[:, 3:].mean(0, dtype=np.float64) for name in ids])
            self._palettes[split.hash] = np.stack([means[labels == color].mean(0) for color in range(count)])
        return self._palettes[split.hash].copy()

    def with_targets(self, targets: FeatureSource | None, grey_targets: FeatureSource | None = None) -> Self:
        """The same study with other features of its objects. An object without one is an `IdError`."""
        other = copy.copy(self)
        other.targets, other.grey_targets = targets, grey_targets
        other._check_targets()
        return other

    def with_splits(self, *splits: Split) -> Self:
        """The same study with more splits."""
        other = copy.copy(self)
        for stream in self.streams:
            setattr(other, stream, self.dataset(stream).with_splits(*splits))
        return other

    def _check_targets(self) -> None:
        for name in ("targets", "grey_targets"):
            targets = getattr(self, name)
            missing = [] if targets is None else [x for x in self.stimuli.ids.tolist() if x not in targets]
            if missing:
                raise IdError(
                    f"expected {name} of {len(self.stimuli)} objects, got none of {len(missing)}, such as {missing[0]}"
                )


def _check_same(static: BrainDataset, dynamic: BrainDataset) -> None:
    """Check that two streams have the same subjects, objects, labels and splits."""
    for what, first, second in (
        ("subjects", set(static.subjects), set(dynamic.subjects)),
        ("objects", set(static.stimuli.ids.tolist()), set(dynamic.stimuli.ids.tolist())),
        ("splits", set(static.splits), set(dynamic.splits)),
        ("labels", set(static.stimuli.labels), set(dynamic.stimuli.labels)),
    ):
        for stream, others in (("static", second - first), ("dynamic", first - second)):
            if others:
                raise IdError(
                    f"expected the same {what} in both streams, got {len(first)} static and {len(second)} dynamic; "
                    f"{min(others)!r} is not in the {stream} stream"
                )
    for name, split in static.splits.items():
        if split.hash != dynamic.splits[name].hash:
            raise IdError(f"expected the same split {name!r} in both streams, got other objects in its parts")
    for name in static.stimuli.labels:
        ids = static.stimuli.ids
        wrong = static.stimuli.label(name, ids) != dynamic.stimuli.label(name, ids)
        if wrong.any():
            raise IdError(f"expected the same labels {name!r} in both streams, got others of {ids[wrong][0]}")


def _class_names(stimuli: StimulusSet) -> tuple[str, ...]:
    classes = stimuli.label("class", stimuli.ids)
    found, first = np.unique(classes, return_index=True)
    if not np.array_equal(found, np.arange(len(found))):
        raise BrainDataError(f"expected classes numbered from 0 without gaps, got {', '.join(map(str, found[:12]))}")
    return tuple(str(name) for name in stimuli.label("name", stimuli.ids[first]))


def _check_cloud(cloud: np.ndarray, image_id: str) -> None:
    if cloud.ndim != 2 or cloud.shape[1] != 6:
        raise AxisError(f"expected a point cloud (points, 6) of {image_id}, got {cloud.shape}")
    if not np.isfinite(cloud).all():
        count = int((~np.isfinite(cloud)).any(1).sum())
        raise BrainDataError(f"expected finite points of {image_id}, got {count} that are not")
    # a few points are enough to see that a cloud is sound, and much faster than all
    if len(np.unique(cloud[: 4 * _DISTINCT, :3], axis=0)) < _DISTINCT:
        count = len(np.unique(cloud[:, :3], axis=0))
        if count < _DISTINCT:
            raise BrainDataError(f"expected at least {_DISTINCT} distinct points of {image_id}, got {count}")
    if not (cloud[:, 3:].min() >= 0 and cloud[:, 3:].max() <= 1):
        low, high = cloud[:, 3:].min(), cloud[:, 3:].max()
        raise BrainDataError(f"expected colours in [0, 1] of {image_id}, got {low:.3g} to {high:.3g}")
