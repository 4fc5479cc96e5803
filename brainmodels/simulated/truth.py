"""The truth about simulated subjects, which is kept beside their data and never given to a model.

    truth = dataset.truth["sim01"]
    truth.expected(ids)   # responses without noise, (len(ids), V)
    truth.ceiling()       # the best possible r^2 of each voxel, (V,)

`planted_features` returns the features that the signals are made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..data.dataset import BrainDataset, Split, Subject
from ..data.ids import Ids
from ..data.stimuli import StimulusSet
from ..errors import AxisError
from .scenes import FACTORS, SceneFeatures
from .tuning import Tuning, standardize

__all__ = ["Drift", "EEGTruth", "SimulatedDataset", "SubjectTruth", "planted_features", "scene_members"]

_SIZES = (1 / 9, 4 / 9, 4 / 9)  # frequencies of small, medium and large main objects; other factors are uniform


@dataclass(frozen=True)
class Drift:
    """Change of the values in a session: y exp(gain / 4) + offset + slope t, with t from -1 to 1 over the session.

    Attributes:
        gain: Exponent of the factor of each session and voxel, (sessions, V).
        offset: Constant of each session and voxel, (sessions, V).
        slope: Trend of each session and voxel, (sessions, V).
    """

    gain: np.ndarray
    offset: np.ndarray
    slope: np.ndarray

    def apply(self, values: np.ndarray, session: int) -> np.ndarray:
        """Add drift to the values (n, V) of all trials of a session, which are in the order of time.

        Args:
            values: Values of all trials of the session, (n, V).
            session: Number of the session, from 1.
        """
        time = np.linspace(-1, 1, len(values), dtype=np.float32)[:, None]
        row = session - 1
        return values * np.exp(self.gain[row] / 4) + self.offset[row] + self.slope[row] * time


@dataclass(frozen=True)
class SubjectTruth:
    """The true model of one subject's fMRI.

    Attributes:
        tuning: Weights, centres of receptive fields and preferences of the voxels.
        ncsnr: Standard deviation of the signal over that of the noise, for one presentation, (V,).
        mean: Mean response of each voxel over all sessions, (V,).
        drift: Drift of each session. All zero where there is none.
        repeats: Number of presentations of each image.
        features: Function from ids of scenes to raw features.
    """

    tuning: Tuning
    ncsnr: np.ndarray
    mean: np.ndarray
    drift: Drift
    repeats: int
    features: SceneFeatures = field(repr=False)

    def signal(self, ids: Ids) -> np.ndarray:
        """Signals of any scenes without noise, fp32 (len(ids), V). Over all scenes they have mean 0 and variance 1."""
        return self.tuning.signal(self.features(ids))

    def expected(self, ids: Ids) -> np.ndarray:
        """Responses to any scenes without noise and drift, fp32 (len(ids), V), in the units of the responses."""
        return self.signal(ids) * np.sqrt(self.ceiling(1)).astype(np.float32) + self.mean

    def ceiling(self, repeats: int | None = None) -> np.ndarray:
        """The best expected r^2 of any model for each voxel, ncsnr^2 / (ncsnr^2 + 1 / repeats), (V,).

        Args:
            repeats: Number of trials in the average of a measured response. None means all presentations of an image.
        """
        signal = self.ncsnr.astype(np.float64) ** 2
        return signal / (signal + 1 / (self.repeats if repeats is None else repeats))


@dataclass(frozen=True)
class EEGTruth:
    """The true model of one subject's EEG.

    Attributes:
        templates: Evoked responses by factor, fp32 (levels, channels, times), in the order of `levels`. The sum over
            factors has unit power on average over stimuli.
        snr: Power of the evoked response over that of the noise, in a single trial.
        channel_covariance: Covariance of the noise between channels, (channels, channels). The covariance of a
            flattened trial is the Kronecker product of this and `time_covariance`.
        time_covariance: Covariance of the noise between times, (times, times).
        levels: Levels of each factor, as the stimuli's labels name them. Default: those of drawn scenes.
        members: Combinations of levels that occur, fp64 (combinations, levels of all factors) of 0 and 1.
        prior: Probability of each combination, (combinations,).
    """

    templates: Mapping[str, np.ndarray]
    snr: float
    channel_covariance: np.ndarray
    time_covariance: np.ndarray
    levels: Mapping[str, Sequence] = field(default_factory=lambda: dict(FACTORS))
    members: np.ndarray = field(default_factory=lambda: scene_members()[0], repr=False)
    prior: np.ndarray = field(default_factory=lambda: scene_members()[1], repr=False)

    @cached_property
    def _filters(self) -> tuple[np.ndarray, np.ndarray]:
        """Matched filters S^-1 M of all levels, (levels, channels * times), and M' S^-1 M of each combination."""
        templates = np.concatenate(list(self.templates.values())).astype(np.float64)
        filters = np.linalg.solve(self.channel_covariance, templates)
        filters = np.linalg.solve(self.time_covariance, filters.swapaxes(1, 2)).swapaxes(1, 2)
        filters = filters.reshape(len(templates), -1)
        gram = filters @ templates.reshape(len(templates), -1).T
        return filters, np.einsum("ci,ij,cj->c", self.members, gram, self.members)

    def evidence(self, values: np.ndarray) -> np.ndarray:
        """Log likelihood of each combination for single trials, up to a constant, (n, combinations).

        Args:
            values: Single trials or means, (n, channels, times). For the mean of k trials, multiply the result by k.

        Raises:
            AxisError: The values have other channels or times than the subject.
        """
        shape = next(iter(self.templates.values())).shape[1:]
        if np.ndim(values) != 3 or values.shape[1:] != shape:
            raise AxisError(f"expected values (n, {shape[0]}, {shape[1]}), got {np.shape(values)}")
        filters, power = self._filters
        matched = np.asarray(values, np.float64).reshape(len(values), -1) @ filters.T  # (n, levels)
        return np.sqrt(self.snr) * matched @ self.members.T - self.snr / 2 * power

    def evoked(self, stimuli: StimulusSet, ids: Ids) -> np.ndarray:
        """Evoked responses to images, (len(ids), channels, times), without noise and without the factor sqrt(snr)."""
        total: Any = sum(
            templates[[self.levels[name].index(level) for level in stimuli.label(name, ids)]]
            for name, templates in self.templates.items()
        )
        return total


class SimulatedDataset(BrainDataset):
    """A data set that has the truth about its subjects.

    Attributes:
        truth: A `SubjectTruth` for fMRI or an `EEGTruth` for EEG, by subject id.
        features: Function from ids of scenes to raw features.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        stimuli: StimulusSet,
        splits: Mapping[str, Split] | None,
        truth: Mapping[str, SubjectTruth | EEGTruth],
        features: SceneFeatures,
    ):
        super().__init__(subjects, stimuli, splits)
        self.truth = dict(truth)
        self.features = features

    def with_splits(self, *splits: Split) -> "SimulatedDataset":
        """The same data with more splits."""
        return self._like(super().with_splits(*splits))

    def with_subject(self, subject: Subject) -> "SimulatedDataset":
        """The same data with one subject added or replaced. The truth does not change."""
        return self._like(super().with_subject(subject))

    def _like(self, other: BrainDataset) -> "SimulatedDataset":
        subjects = list(other.subjects.values())
        return SimulatedDataset(subjects, other.stimuli, other.splits, self.truth, self.features)


def scene_members() -> tuple[np.ndarray, np.ndarray]:
    """All combinations of levels of drawn scenes, as `EEGTruth` has them, and their priors."""
    counts = [len(levels) for levels in FACTORS.values()]
    chosen = list(np.ndindex(*counts))
    members = np.stack(
        [np.concatenate([np.eye(n)[i] for n, i in zip(counts, levels, strict=True)]) for levels in chosen]
    )
    uniform = 3 / np.prod(counts)
    return members, np.array([_SIZES[levels[list(FACTORS).index("size")]] * uniform for levels in chosen])


def planted_features(dataset: BrainDataset, ids: Ids) -> np.ndarray:
    """The features that signals are made from, for any simulated scenes.

    The product of these features with the weights of a linear subject is its signal.

    Args:
        dataset: Data set that keeps the features of scenes that were drawn before.
        ids: Ids of scenes, such as "sim0:000123". They need not be in the data set.

    Returns:
        Standardised features, fp32 (len(ids), 133). The columns are 36 edges, 72 colour opponents, then shape, colour,
        size and background as one-hot codes, see `FEATURE_GROUPS`.

    Raises:
        IdError: An id is not that of a simulated scene.
    """
    features = dataset.features if isinstance(dataset, SimulatedDataset) else SceneFeatures()
    return standardize(features(ids))
