"""Subjects, their stimuli and their splits, joined by image id and by nothing else.

dataset = brainmodels.simulate("tiny")
split = dataset.split("shared")
train = dataset.pairs("sim01", split, "train", average="repeats")
Y = train.array()                      # (images, voxels) fp32
X = cache.get(train.image_ids)         # (images, features) fp32, found by id
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from veca.hashes import json_digest

from ..errors import AxisError, BrainDataError, IdError, LeakageError, near_names
from .responses import Responses, TrialTable, positions
from .scalings import SCALINGS
from .spaces import SensorSpace, VoxelSpace
from .stimuli import StimulusSet

__all__ = ["BrainDataset", "Pairs", "Split", "Subject", "Transform"]

_log = logging.getLogger(__name__)
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Subject:
    """One person's responses.

    Attributes:
        id: such as "subj01".
        responses: all trials.
        space: of the columns.
        normalizer: name of what was already applied to the values as stored; "none" where they are as measured.
        design: "event", or "block" where images of a class followed each other, which lets time stand in for class.
        provenance: layout, files, sizes and hashes; JSON.
    """

    id: str
    responses: Responses
    space: VoxelSpace | SensorSpace
    normalizer: str = "none"
    design: str = "event"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.space) != self.responses.num_voxels:
            kind = "channels" if isinstance(self.space, SensorSpace) else "voxels"
            raise AxisError(
                f"expected {len(self.space)} {kind} of {self.id}, as its space has, got {self.responses.num_voxels}"
            )
        _check_times(self)
        if self.design not in ("event", "block"):
            raise BrainDataError(f"expected design 'event' or 'block', got {self.design!r}")
        if self.design == "block":
            _log.warning(
                "%s has a block design: time alone tells classes apart; run the block-shuffle control", self.id
            )


@dataclass(frozen=True)
class Split:
    """Which images are trained on, validated on and tested on; rows follow from ids, for each subject.

    Attributes:
        name: of the rule.
        train, val, test: image ids, pairwise disjoint.
        params: of the rule: seed, fraction, variant.
        train_of, val_of: train and validation images of single subjects, by subject; others have those of the split.
        sessions: by part, the only sessions whose trials belong to it; a part that is left out has all.

    Raises:
        LeakageError: an image is in two parts, for any subject.
    """

    name: str
    train: frozenset[str]
    val: frozenset[str]
    test: frozenset[str]
    params: Mapping[str, Any] = field(default_factory=dict)
    train_of: Mapping[str, frozenset[str]] | None = None
    val_of: Mapping[str, frozenset[str]] | None = None
    sessions: Mapping[str, frozenset[int]] | None = None

    def __post_init__(self):
        for first, second in (("train", "test"), ("val", "test"), ("train", "val")):
            common = getattr(self, first) & getattr(self, second)
            if common:
                raise LeakageError(
                    f"expected {first} and {second} of split {self.name!r} to share no image, got {len(common)}, "
                    f"such as {min(common)}"
                )
        for part in ("train", "val"):
            for subject, ids in (getattr(self, f"{part}_of") or {}).items():
                if not ids <= getattr(self, part):
                    name = min(ids - getattr(self, part))
                    raise LeakageError(f"expected {part} images of {subject} within those of the split, got {name}")
        unknown = sorted(set(self.sessions or {}) - set(PARTS))
        if unknown:
            raise BrainDataError(f"expected sessions of parts {', '.join(PARTS)}, got {unknown[0]!r}")

    def ids(self, part: str, subject: str | None = None) -> frozenset[str]:
        """Image ids of a part, for a subject."""
        if part not in PARTS:
            raise BrainDataError(f"expected part {', '.join(PARTS)}, got {part!r}")
        own = getattr(self, f"{part}_of", None)
        return own[subject] if own is not None and subject in own else getattr(self, part)

    def rows(self, trials: TrialTable, part: str, subject: str | None = None) -> np.ndarray:
        """Positions of the trials of a part in a subject's table, ascending."""
        chosen = np.isin(trials.image_id, np.array(sorted(self.ids(part, subject)), dtype=str))
        if self.sessions is not None and part in self.sessions:
            chosen &= np.isin(trials.session, sorted(self.sessions[part]))
        return np.flatnonzero(chosen)

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change with any id of any part, and with the sessions."""
        content = {key: value for key, value in self.to_json().items() if key not in ("name", "params")}
        return json_digest(content, compact=False)

    def to_json(self) -> dict[str, Any]:
        """All of the split in lists and strings."""
        by_name = {
            key: {name: sorted(ids) for name, ids in (getattr(self, key) or {}).items()}
            for key in ("train_of", "val_of", "sessions")
        }
        parts = {part: sorted(getattr(self, part)) for part in PARTS}
        return {"name": self.name, "params": dict(self.params), **parts, **by_name}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Split":
        """The split that `to_json` described."""
        parts = {part: frozenset(content[part]) for part in PARTS}
        by_name = {
            key: {name: frozenset(ids) for name, ids in content[key].items()} or None
            for key in ("train_of", "val_of", "sessions")
        }
        return cls(content["name"], params=content["params"], **parts, **by_name)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, part))} {part}" for part in PARTS)
        return f"Split({self.name!r}, {counts}, {self.hash})"


class Transform(Protocol):
    """What `pairs` applies to single trials before it averages; a fitted `Normalizer` is one."""

    name: str

    def transform(self, values: np.ndarray, trials: TrialTable) -> np.ndarray:
        """values (n, voxels) or (n, channels, times) of these trials; the same shape."""


class Pairs:
    """Responses of one part of a split, with the ids of their images: the only source of batches.

    Made by `BrainDataset.pairs`. A sample is one trial, or the mean over the trials of one image.

    Attributes:
        subject, part, split: where they come from.
        image_ids: (n,) of the samples, in the order of the data set's images (and of repeats).
        trials: for each sample, the rows of the subject's responses that it averages.
    """

    def __init__(
        self,
        subject: Subject,
        split: Split,
        part: str,
        image_ids: np.ndarray,
        trials: Sequence[np.ndarray],
        average: str,
        transform: Transform | None,
        columns: np.ndarray | None,
    ):
        self.subject, self.split, self.part = subject, split, part
        self.image_ids, self.trials, self.average = image_ids, trials, average
        self.transform, self.columns = transform, columns

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return (
            f"Pairs({self.subject.id}, {self.split.name}/{self.part}, {len(self)} samples, "
            f"average={self.average!r}, normalizer={self.normalizer!r})"
        )

    @property
    def normalizer(self) -> str:
        """What the values went through, as stored and then here: "none", "div2000", "session_z > train_z"."""
        applied = [self.subject.normalizer, "none" if self.transform is None else self.transform.name]
        return " > ".join(name for name in applied if name != "none") or "none"

    @property
    def transductive(self) -> bool:
        """Whether statistics of test trials went into the values, in the stored ones or here."""
        stored = self.subject.normalizer
        before = stored.endswith("_transductive") or (stored in SCALINGS and SCALINGS[stored].transductive)
        return before or bool(getattr(self.transform, "transductive", False))

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Samples as fp32 (len(indices), voxels) or (len(indices), channels, times)."""
        groups = [self.trials[i] for i in positions(indices, len(self))]
        sizes = np.array([len(rows) for rows in groups])
        if not len(groups):
            return self.subject.responses.batch([], self.columns)
        rows = np.concatenate(groups)
        if self.transform is None:
            values = self.subject.responses.batch(rows, self.columns)
        else:  # statistics are of all columns
            values = self.transform.transform(self.subject.responses.batch(rows), self.subject.responses.trials[rows])
            values = values if self.columns is None else values[:, self.columns]
        if len(rows) == len(groups):
            return values
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        sums = np.add.reduceat(values, starts, axis=0)
        return sums / sizes.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)

    def array(self, batch_size: int = 512) -> np.ndarray:
        """All samples, fp32 (n, voxels) or (n, channels, times), read batch by batch."""
        out = None
        for indices, batch in self.batches(batch_size):
            out = np.empty((len(self), *batch.shape[1:]), np.float32) if out is None else out
            out[indices] = batch
        return self.batch([]) if out is None else out

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions, samples), in order."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)))
            yield indices, self.batch(indices)


class BrainDataset:
    """Subjects, the images they saw, and named splits of those images.

    Args:
        subjects: any number, with ids of their own.
        stimuli: every image of every trial.
        splits: by name; functions of the data set make more (see `brainmodels.data.splits`).

    Raises:
        IdError: a trial shows an image that is not in `stimuli`, or two subjects have one id.
    """

    def __init__(self, subjects: Sequence[Subject], stimuli: StimulusSet, splits: Mapping[str, Split] | None = None):
        self.subjects = {subject.id: subject for subject in subjects}
        if len(self.subjects) != len(subjects):
            raise IdError(f"expected subjects with ids of their own, got {[subject.id for subject in subjects]}")
        self.stimuli = stimuli
        self.splits = dict(splits or {})
        for subject in subjects:
            stimuli.rows(np.unique(subject.responses.trials.image_id))

    def __repr__(self) -> str:
        splits = ", ".join(self.splits) or "none"
        return f"BrainDataset({', '.join(self.subjects)}; {len(self.stimuli)} images; splits: {splits})"

    def subject(self, subject_id: str) -> Subject:
        """A subject by id."""
        if subject_id not in self.subjects:
            known = ", ".join(self.subjects)
            raise IdError(
                f"expected a subject of {known}, got {subject_id!r}{near_names(subject_id, list(self.subjects))}"
            )
        return self.subjects[subject_id]

    def split(self, name: str) -> Split:
        """A split by name."""
        if name not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise BrainDataError(f"expected a split of this data set ({known}), got {name!r}")
        return self.splits[name]

    def pairs(
        self,
        subject: str,
        split: str | Split,
        part: str,
        average: str = "none",
        transform: Transform | None = None,
        roi: str | None = None,
    ) -> Pairs:
        """Responses of a part of a split, with the ids of their images.

        Args:
            subject: id.
            split: its name, or any other split of these images.
            part: "train", "val" or "test".
            average: "repeats" averages the trials of each image, "none" keeps single trials.
            transform: applied to single trials before averaging, such as a fitted `Normalizer`; one that was fitted on
                test images is a `LeakageError` unless it says that it is transductive.
            roi: keeps the voxels of one region.

        Raises:
            NormalizationError: the stored values were normalised and so would they be again.
        """
        person = self.subject(subject)
        split = self.split(split) if isinstance(split, str) else split
        if average not in ("none", "repeats"):
            raise BrainDataError(f"expected average 'none' or 'repeats', got {average!r}")
        rows = split.rows(person.responses.trials, part, subject)
        shown = np.unique(person.responses.trials.image_id[rows])
        ids = self.stimuli.ids[np.sort(self.stimuli.rows(shown))]
        groups = person.responses.rows_of(ids, rows)
        if average == "none":
            ids = np.repeat(ids, [len(group) for group in groups])
            groups = [group[i : i + 1] for group in groups for i in range(len(group))]
        _check_transform(person, split, transform)
        if roi is not None and not isinstance(person.space, VoxelSpace):
            raise BrainDataError(f"expected roi None for {subject}, whose responses are of sensors, got {roi!r}")
        columns = None if roi is None else np.flatnonzero(person.space.roi(roi))
        return Pairs(person, split, part, ids, groups, average, transform, columns)

    def with_splits(self, *splits: Split) -> "BrainDataset":
        """The same data with more splits."""
        return BrainDataset(list(self.subjects.values()), self.stimuli, self.splits | {s.name: s for s in splits})

    def with_subject(self, subject: Subject) -> "BrainDataset":
        """The same data with one subject added or replaced."""
        return BrainDataset(list((self.subjects | {subject.id: subject}).values()), self.stimuli, self.splits)


def _check_times(subject: Subject) -> None:
    """Voxels have one value a trial, sensors one for each of their times."""
    shape = subject.responses.values.shape
    times = (len(subject.space.times),) if isinstance(subject.space, SensorSpace) else ()
    if shape[2:] != times:
        wanted = "(trials, channels, times)" if times else "(trials, voxels)"
        known = f" with {times[0]} times" if times else ""
        raise AxisError(f"expected responses {wanted}{known} of {subject.id}, as its space has, got {shape}")


def _check_transform(subject: Subject, split: Split, transform: Transform | None) -> None:
    """Statistics must not know the test images, nor be taken twice."""
    check = getattr(transform, "check", None)
    if check is not None:
        check(subject, split)
