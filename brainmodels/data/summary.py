"""A short table of one subject's data, in which a wrong file is easy to see.

    print(summarize(dataset, "subj01"))  # trials, sessions, images, repeats, voxels, splits, noise ceiling

`veca brain prepare` prints this table.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import NormalizationError
from .dataset import BrainDataset, Subject
from .normalize import DEFAULT, Normalizer
from .reliability import ncsnr, noise_ceiling
from .spaces import VoxelSpace

__all__ = ["NoiseCeiling", "SubjectSummary", "summarize"]

_log = logging.getLogger(__name__)
_CEILING_IMAGES = 500  # enough for a median over voxels
_MASK = 0.1


@dataclass(frozen=True)
class NoiseCeiling:
    """The best score that noise allows, estimated from repeats of the same image.

    Attributes:
        ncsnr: Median over voxels of the standard deviation of the signal over that of the noise, for one presentation.
        ceiling: Median over voxels of the share of variance that a perfect model explains in the mean of `repeats`.
        repeats: Most frequent number of presentations among the repeated images.
        share: Share of the voxels with a ceiling of 0.1 or more.
        images: Number of images with two or more presentations that the estimate uses.
        normalizer: Name of the scaling that was applied first.
    """

    ncsnr: float
    ceiling: float
    repeats: int
    share: float
    images: int
    normalizer: str

    def __str__(self) -> str:
        return (
            f"ncsnr {self.ncsnr:.2f}, NC({self.repeats}) {self.ceiling:.2f} (medians over voxels), {self.share:.0%} of "
            f"voxels at NC >= {_MASK:g}; {self.images} images, {self.normalizer}"
        )


@dataclass(frozen=True)
class SubjectSummary:
    """Trials, images, voxels and reliability of one subject. `print` shows it as a table.

    Attributes:
        subject: Id of the subject.
        layout: Name of the layout of the source files.
        path: Path of the prepared folder. Empty where nothing was written.
        trials: Number of trials.
        images: Number of different images that were shown.
        repeats: Number of images by how often they were shown.
        sessions: Number of sessions. None where they are not known.
        voxels: Number of voxels by region, "all" first; of channels where `sensors` is true.
        normalizer: Name of the scaling that the stored values went through.
        unit: Physical unit of the responses.
        splits: Numbers of train, validation and test images by name of the split.
        ceiling: Estimated noise ceiling. None for EEG, and where no image was shown twice.
        sensors: Whether the responses are those of channels over time.
    """

    subject: str
    layout: str
    path: str
    trials: int
    images: int
    repeats: Mapping[int, int]
    sessions: int | None
    voxels: Mapping[str, int]
    normalizer: str
    unit: str
    splits: Mapping[str, tuple[int, int, int]]
    ceiling: NoiseCeiling | None
    sensors: bool = False

    def __str__(self) -> str:
        repeats = ", ".join(f"{count} shown {number} x" for number, count in self.repeats.items())
        voxels = ", ".join(f"{name} {count}" for name, count in self.voxels.items())
        absent = "by `veca brain evaluate`, over time" if self.sensors else "none: no voxels with repeated images"
        rows = [
            ("subject", f"{self.subject} ({self.layout})"),
            ("trials", f"{self.trials} in {self.sessions if self.sessions is not None else 'unknown'} sessions"),
            ("images", f"{self.images}: {repeats}"),
            ("channels" if self.sensors else "voxels", voxels),
            ("values", f"normaliser {self.normalizer}, unit {self.unit}"),
            *(("split", f"{name}: {a} train, {b} val, {c} test images") for name, (a, b, c) in self.splits.items()),
            ("ceiling", str(self.ceiling or absent)),
        ]
        rows += [("folder", self.path)] if self.path else []
        return "\n".join(f"{name:9}{text}" for name, text in rows)


def summarize(dataset: BrainDataset, subject: str, path: str = "") -> SubjectSummary:
    """Count what the data of one subject hold, and estimate their noise ceiling.

    The estimate scales responses with statistics of the train images of the first split, or of all images where there
    is no split.

    Args:
        dataset: Data set with the subject.
        subject: Id of the subject.
        path: Path of the folder that the subject was written to.

    Raises:
        IdError: The subject is unknown.
    """
    person = dataset.subject(subject)
    trials = person.responses.trials
    _, counts = np.unique(trials.image_id, return_counts=True)
    numbers, images = np.unique(counts, return_counts=True)
    sessions = np.unique(trials.session)
    rois = person.space.rois if isinstance(person.space, VoxelSpace) else {}
    return SubjectSummary(
        subject=subject,
        layout=str(person.provenance.get("layout", "unknown")),
        path=path,
        trials=len(trials),
        images=len(counts),
        repeats=dict(zip(numbers.tolist(), images.tolist(), strict=True)),
        sessions=None if -1 in sessions else len(sessions),
        voxels={"all": len(person.space), **{name: int(mask.sum()) for name, mask in rois.items()}},
        normalizer=person.normalizer,
        unit=person.responses.unit,
        splits={
            name: (len(split.ids("train", subject)), len(split.ids("val", subject)), len(split.ids("test", subject)))
            for name, split in dataset.splits.items()
        },
        ceiling=_ceiling(dataset, person),
        sensors=not isinstance(person.space, VoxelSpace),
    )


def _ceiling(dataset: BrainDataset, person: Subject) -> NoiseCeiling | None:
    names, counts = np.unique(person.responses.trials.image_id, return_counts=True)
    names, counts = names[counts > 1], counts[counts > 1]
    if person.responses.values.ndim != 2 or not len(names):
        return None
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), _CEILING_IMAGES)).round().astype(int))
    groups = person.responses.rows_of(names[chosen])
    normalizer = _normalizer(dataset, person)
    if normalizer is None:
        return None
    rows = np.concatenate(groups)
    values = normalizer.transform(person.responses.batch(rows), person.responses.trials[rows])
    ends = np.cumsum([len(group) for group in groups])
    snr = ncsnr(values, np.split(np.arange(len(rows)), ends[:-1]))
    repeats = int(np.bincount(counts).argmax())
    ceiling = noise_ceiling(snr, repeats)
    kept = np.isfinite(snr)
    if not kept.any():
        return None
    return NoiseCeiling(
        ncsnr=float(np.median(snr[kept])),
        ceiling=float(np.median(ceiling[kept])),
        repeats=repeats,
        share=float((ceiling[kept] >= _MASK).mean()),
        images=len(groups),
        normalizer=person.normalizer if normalizer.name == "none" else normalizer.name,
    )


def _normalizer(dataset: BrainDataset, person: Subject) -> Normalizer | None:
    """A fitted normaliser for the estimate of the noise ceiling, or None where there are too few trials.

    It is "none" where the values are normalised already, otherwise "session_z_train", or "train_z" where sessions are
    unknown or too short.
    """
    if person.normalizer not in ("none", "psc", "div2000"):
        return Normalizer("none").fit(person.responses)
    split = next(iter(dataset.splits.values()), None)
    responses = person.responses
    if split is not None:
        responses = responses.subset(split.rows(responses.trials, "train", person.id))
    known = set(responses.trials.session.tolist()) >= set(person.responses.trials.session.tolist())
    for name in (DEFAULT, "train_z") if known else ("train_z",):
        try:
            return Normalizer(name, None if person.normalizer == "none" else person.normalizer).fit(
                responses, np.unique(responses.trials.image_id)
            )
        except NormalizationError as error:
            _log.info("no %s for the noise ceiling of %s: %s", name, person.id, error)
    return None
