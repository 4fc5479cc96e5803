"""Data sets of subjects with their stimuli and splits, and the batches of responses that models train on.

    dataset = brainmodels.simulate("tiny")
    split = dataset.split("shared")
    train = dataset.pairs("sim01", split, "train", average="repeats")
    Y = train.array()                      # (images, voxels) fp32
    X = cache.get(train.image_ids)         # (images, features) fp32, found by id

Responses, images and features are matched by image id only.
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
    """One person's responses, and what is known about them.

    Attributes:
        id: Id of the subject, such as "subj01".
        responses: Responses of all trials.
        space: Voxels or sensors that the columns of the responses stand for.
        normalizer: Name of the scaling that the stored values already went through. "none": they are as measured.
        design: "event", or "block" where images of a class followed each other. Time alone then predicts the class.
        provenance: Layout, files, sizes and hashes of the source, as JSON values.

    Raises:
        AxisError: Space and responses differ in the number of columns or times.
        BrainDataError: `design` is unknown.
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
                "%s has a block design, so time alone predicts the class: run the block-shuffle control", self.id
            )


@dataclass(frozen=True)
class Split:
    """The images to train on, to validate on and to test on.

    A split consists of image ids. `rows` gives the trials of a part for one subject.

    Attributes:
        name: Name of the rule that made the split.
        train: Ids of the train images. The three sets of ids are disjoint.
        val: Ids of the validation images.
        test: Ids of the test images.
        params: Parameters of the rule, such as its seed, fraction and variant.
        train_of: Train images of single subjects, by subject id. Other subjects have all train images.
        val_of: Validation images of single subjects, by subject id. Other subjects have all validation images.
        sessions: Session numbers by part. A part that is named here has the trials of these sessions only.

    Raises:
        LeakageError: An image is in two parts, for any subject.
        BrainDataError: `sessions` names an unknown part.
    """

    name: str
    train: frozenset[str]
    val: frozenset[str]
    test: frozenset[str]
    params: dict[str, Any] = field(default_factory=dict)
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
        """Image ids of a part, "train", "val" or "test", for a subject."""
        if part not in PARTS:
            raise BrainDataError(f"expected part {', '.join(PARTS)}, got {part!r}")
        own = getattr(self, f"{part}_of", None)
        return own[subject] if own is not None and subject in own else getattr(self, part)

    def rows(self, trials: TrialTable, part: str, subject: str | None = None) -> np.ndarray:
        """Positions of the trials of a part in a subject's table, ascending, int64 (n,)."""
        chosen = np.isin(trials.image_id, np.array(sorted(self.ids(part, subject)), dtype=str))
        if self.sessions is not None and part in self.sessions:
            chosen &= np.isin(trials.session, sorted(self.sessions[part]))
        return np.flatnonzero(chosen)

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits of a SHA-256. They change with any id of any part, and with the sessions."""
        content = {key: value for key, value in self.to_json().items() if key not in ("name", "params")}
        return json_digest(content, compact=False)

    def to_json(self) -> dict[str, Any]:
        """The whole split as JSON values, from which `from_json` makes it again."""
        by_name = {
            key: {name: sorted(ids) for name, ids in (getattr(self, key) or {}).items()}
            for key in ("train_of", "val_of", "sessions")
        }
        parts = {part: sorted(getattr(self, part)) for part in PARTS}
        return {"name": self.name, "params": dict(self.params), **parts, **by_name}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Split":
        """The split from the JSON values of `to_json`."""
        parts = {part: frozenset(content[part]) for part in PARTS}
        by_name: dict[str, Any] = {
            key: {name: frozenset(ids) for name, ids in content[key].items()} or None
            for key in ("train_of", "val_of", "sessions")
        }
        return cls(content["name"], params=content["params"], **parts, **by_name)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, part))} {part}" for part in PARTS)
        return f"Split({self.name!r}, {counts}, {self.hash})"


class Transform(Protocol):
    """A change of values that `BrainDataset.pairs` applies to single trials before it averages them.

    A fitted `Normalizer` is one.
    """

    name: str

    def transform(self, values: np.ndarray, trials: TrialTable) -> np.ndarray:
        """Change the values of these trials, (n, voxels) or (n, channels, times), and keep their shape."""
        ...


class Pairs:
    """Responses of one part of a split, with the ids of their images. All batches come from here.

    `BrainDataset.pairs` makes it. A sample is one trial, or the mean over the trials of one image.

    Attributes:
        subject: Subject whose responses these are.
        split: Split that the samples come from.
        part: Part of the split, "train", "val" or "test".
        image_ids: Image id of each sample, (n,), in the order of the data set's images, then of repeats.
        trials: For each sample, the rows of the subject's responses that it averages.
        average: "repeats" or "none", see `BrainDataset.pairs`.
        transform: Change of values that is applied before averaging, or None.
        columns: Voxels that are kept, (V,), or None for all.
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
        """Scalings that the values went through, stored ones first: "none", "div2000", "session_z > train_z"."""
        applied = [self.subject.normalizer, "none" if self.transform is None else self.transform.name]
        return " > ".join(name for name in applied if name != "none") or "none"

    @property
    def transductive(self) -> bool:
        """Whether statistics of test trials went into the values, as stored or by the transform."""
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
        else:  # the statistics cover all columns
            values = self.transform.transform(self.subject.responses.batch(rows), self.subject.responses.trials[rows])
            values = values if self.columns is None else values[:, self.columns]
        if len(rows) == len(groups):
            return values
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        sums = np.add.reduceat(values, starts, axis=0)
        return sums / sizes.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)

    def array(self, batch_size: int = 512) -> np.ndarray:
        """All samples, fp32 (n, voxels) or (n, channels, times), read `batch_size` samples at a time."""
        out = None
        for indices, batch in self.batches(batch_size):
            out = np.empty((len(self), *batch.shape[1:]), np.float32) if out is None else out
            out[indices] = batch
        return self.batch([]) if out is None else out

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of (positions, samples), in order, `batch_size` samples at a time."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)))
            yield indices, self.batch(indices)


class BrainDataset:
    """Subjects, the images they saw, and named splits of those images.

    Args:
        subjects: Subjects with different ids.
        stimuli: Images, at least those of every trial.
        splits: Splits by name. The functions of `brainmodels.data.splits` make more.

    Raises:
        IdError: A trial shows an image that is not in `stimuli`, or two subjects have one id.
    """

    def __init__(self, subjects: Sequence[Subject], stimuli: StimulusSet, splits: Mapping[str, Split] | None = None):
        self.subjects = {subject.id: subject for subject in subjects}
        if len(self.subjects) != len(subjects):
            raise IdError(f"expected subjects with different ids, got {[subject.id for subject in subjects]}")
        self.stimuli = stimuli
        self.splits = dict(splits or {})
        for subject in subjects:
            stimuli.rows(np.unique(subject.responses.trials.image_id))

    def __repr__(self) -> str:
        splits = ", ".join(self.splits) or "none"
        return f"BrainDataset({', '.join(self.subjects)}; {len(self.stimuli)} images; splits: {splits})"

    def subject(self, subject_id: str) -> Subject:
        """The subject with this id. An unknown id is an `IdError`."""
        if subject_id not in self.subjects:
            known = ", ".join(self.subjects)
            raise IdError(
                f"expected a subject of {known}, got {subject_id!r}{near_names(subject_id, list(self.subjects))}"
            )
        return self.subjects[subject_id]

    def split(self, name: str) -> Split:
        """The split with this name. An unknown name is a `BrainDataError`."""
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
            subject: Id of the subject.
            split: Split, or name of a split of this data set.
            part: "train", "val" or "test".
            average: "repeats" averages the trials of each image, "none" keeps single trials.
            transform: Change of values that is applied to single trials before averaging, such as a fitted
                `Normalizer`.
            roi: Region whose voxels are kept. None keeps all.

        Raises:
            IdError: The subject is unknown.
            NormalizationError: The transform would normalise stored values that are normalised already.
            LeakageError: The transform was fitted on test images and does not declare itself transductive.
            BrainDataError: Another argument is unknown, or a region is asked of sensors.
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
        columns = None
        if roi is not None:
            if not isinstance(person.space, VoxelSpace):
                raise BrainDataError(f"expected roi None for {subject}, whose responses are of sensors, got {roi!r}")
            columns = np.flatnonzero(person.space.roi(roi))
        return Pairs(person, split, part, ids, groups, average, transform, columns)

    def with_splits(self, *splits: Split) -> "BrainDataset":
        """The same data with more splits."""
        return BrainDataset(list(self.subjects.values()), self.stimuli, self.splits | {s.name: s for s in splits})

    def with_subject(self, subject: Subject) -> "BrainDataset":
        """The same data with one subject added or replaced."""
        return BrainDataset(list((self.subjects | {subject.id: subject}).values()), self.stimuli, self.splits)


def _check_times(subject: Subject) -> None:
    """Check that voxels have one value a trial, and sensors one for each of their times."""
    shape = subject.responses.values.shape
    times = (len(subject.space.times),) if isinstance(subject.space, SensorSpace) else ()
    if shape[2:] != times:
        wanted = "(trials, channels, times)" if times else "(trials, voxels)"
        known = f" with {times[0]} times" if times else ""
        raise AxisError(f"expected responses {wanted}{known} of {subject.id}, as its space has, got {shape}")


def _check_transform(subject: Subject, split: Split, transform: Transform | None) -> None:
    """Let the transform refuse statistics of test images, and values that are scaled already."""
    check = getattr(transform, "check", None)
    if check is not None:
        check(subject, split)
