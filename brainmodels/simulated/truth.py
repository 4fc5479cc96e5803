"""What is known about a simulated study and about none with people: kept beside the data, where no model sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.dataset import BrainDataset, Split, Subject
from ..data.stimuli import StimulusSet
from .scenes import FACTORS, SceneFeatures
from .tuning import Tuning, standardize

__all__ = ["Drift", "EEGTruth", "SimulatedDataset", "SubjectTruth", "planted_features"]


@dataclass(frozen=True)
class Drift:
    """What a session does to the values: y exp(gain / 4) + offset + slope t, t from -1 to 1 over the session.

    Attributes:
        gain, offset, slope: (sessions, V).
    """

    gain: np.ndarray
    offset: np.ndarray
    slope: np.ndarray

    def apply(self, values: np.ndarray, session: int) -> np.ndarray:
        """Values (n, V) of all trials of a session, counted from 1, in the order of time."""
        time = np.linspace(-1, 1, len(values), dtype=np.float32)[:, None]
        row = session - 1
        return values * np.exp(self.gain[row] / 4) + self.offset[row] + self.slope[row] * time


@dataclass(frozen=True)
class SubjectTruth:
    """What was planted in one subject.

    Attributes:
        tuning: what voxels respond to: weights, centres of receptive fields, preferences.
        ncsnr: (V,) standard deviation of signal by that of noise, of one presentation.
        mean: (V,) of a voxel over all sessions.
        drift: of sessions; all zero where there is none.
        repeats: presentations of each image.
        features: raw features of scenes by id.
    """

    tuning: Tuning
    ncsnr: np.ndarray
    mean: np.ndarray
    drift: Drift
    repeats: int
    features: SceneFeatures = field(repr=False)

    def signal(self, ids: Sequence[str]) -> np.ndarray:
        """The noiseless signal of any scenes, fp32 (len(ids), V), mean 0 and variance 1 over scenes at large."""
        return self.tuning.signal(self.features(ids))

    def expected(self, ids: Sequence[str]) -> np.ndarray:
        """The response of any scenes without noise and drift, fp32 (len(ids), V), in the units of the responses."""
        return self.signal(ids) * np.sqrt(self.ceiling(1)).astype(np.float32) + self.mean

    def ceiling(self, repeats: int | None = None) -> np.ndarray:
        """The best r^2 that any model can expect of each voxel, (V,): ncsnr^2 / (ncsnr^2 + 1 / repeats).

        Args:
            repeats: trials that a measured response averages; None is all presentations of an image.
        """
        signal = self.ncsnr.astype(np.float64) ** 2
        return signal / (signal + 1 / (self.repeats if repeats is None else repeats))


@dataclass(frozen=True)
class EEGTruth:
    """What a simulated subject is made of.

    Attributes:
        templates: by factor, fp32 (levels, channels, times), levels in the order of `FACTORS`: what each evokes. Their
            sum has unit power on average over scenes.
        snr: power of what is evoked by that of the noise, in a single trial.
        channel_covariance, time_covariance: (channels, channels) and (times, times); the covariance of the noise of a
            flattened trial is their Kronecker product.
    """

    templates: Mapping[str, np.ndarray]
    snr: float
    channel_covariance: np.ndarray
    time_covariance: np.ndarray

    def evoked(self, stimuli: StimulusSet, ids: Sequence[str]) -> np.ndarray:
        """What images evoke, (len(ids), channels, times): trials without noise and without the factor sqrt(snr)."""
        return sum(
            templates[[FACTORS[name].index(level) for level in stimuli.label(name, ids)]]
            for name, templates in self.templates.items()
        )


class SimulatedDataset(BrainDataset):
    """A data set with the truth beside it.

    Attributes:
        truth: by subject id; a `SubjectTruth` where responses are fMRI, an `EEGTruth` where they are EEG.
        features: raw features of scenes by id.
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
        """The same data with one subject added or replaced; the truth stays what was planted."""
        return self._like(super().with_subject(subject))

    def _like(self, other: BrainDataset) -> "SimulatedDataset":
        subjects = list(other.subjects.values())
        return SimulatedDataset(subjects, other.stimuli, other.splits, self.truth, self.features)


def planted_features(dataset: BrainDataset, ids: Sequence[str]) -> np.ndarray:
    """What the signals are made from, of any simulated scenes, in the data set or not.

    Args:
        dataset: remembers the features of scenes that were drawn before.
        ids: such as "sim0:000123"; anything else is an `IdError`.

    Returns:
        fp32 (len(ids), 133), standardised: 36 of edges, 72 of colour opponents, then shape, colour, size and background
        as one-hot codes; `FEATURE_GROUPS` has the columns. A linear subject's signal is these times its weights.
    """
    features = dataset.features if isinstance(dataset, SimulatedDataset) else SceneFeatures()
    return standardize(features(ids))
