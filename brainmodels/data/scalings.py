"""The scalings that `Normalizer` offers by name: how each is fitted, applied and undone.

    SCALINGS["train_z"]().fit(responses, rows)  # {"mean": ..., "std": ..., "session": ...}

There are three kinds. Fixed factors convert units. The z-scores are

    x = (values - mean) / std

with statistics of all trials or of the train trials, per session or not, and per voxel or channel. The third kind
whitens EEG channels. Statistics are accumulated in fp64, batch by batch.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from ..errors import AxisError, NormalizationError, UnitsError
from .moments import Moments
from .responses import Responses, TrialTable

__all__ = ["PSC", "SCALINGS", "STORED_PER_PERCENT", "Scaling", "column_statistics"]

Arrays = dict[str, np.ndarray]
_BATCH = 512  # trials
_STD_FLOOR = 1e-8  # share of the mean, below which a voxel counts as constant
PSC = "percent signal change"  # the unit of betas
STORED_PER_PERCENT = 300  # stored integers per percent, in the betas of the Natural Scenes Dataset


class Scaling(Protocol):
    """One way to scale responses. Its fitted statistics are in `arrays`, not in the object.

    Attributes:
        fits: Whether `fit` has to be called first.
        statistics: Whether `fit` uses the values of trials, not only their unit.
        transductive: Whether `fit` uses all trials, test trials included.
        unlabelled: Whether `fit` uses all trials of the subject that show no test image, not only train trials.
    """

    fits: bool
    statistics: bool
    transductive: bool
    unlabelled: bool

    def fit(self, responses: Responses, rows: np.ndarray) -> Arrays:
        """Statistics of the trials at these positions, by name."""
        ...

    def forward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable) -> np.ndarray:
        """Scale values of these trials, (n, voxels) or (n, channels, times)."""
        ...

    def backward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable | None) -> np.ndarray:
        """Undo `forward`."""
        ...

    def num_constant(self, arrays: Arrays) -> int:
        """Number of voxels or channels that become NaN."""
        ...


def column_statistics(
    responses: Responses, rows: np.ndarray, groups: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and squared deviations of every column within groups of trials, by Chan's update of batches in fp64.

    Args:
        responses: Responses of one subject. Where they are EEG, all times of a channel count as its samples.
        rows: Positions of the trials to use, (n,).
        groups: Group of each of these trials, (n,), from 0.
        num_groups: Number of groups, G.

    Returns:
        Number of samples (G,), mean (G, V) and sum of squared deviations (G, V).
    """
    found = [Moments() for _ in range(num_groups)]
    for positions, batch in _batches(responses, rows):
        for group in np.unique(groups[positions]):
            part = batch[groups[positions] == group]
            part = part if part.ndim == 2 else np.moveaxis(part, 1, 2).reshape(-1, part.shape[1])
            with np.errstate(invalid="ignore"):  # missing and infinite values make their column NaN
                found[group].add(part)
    mean, spread = np.zeros((2, num_groups, responses.num_voxels))
    for group, item in enumerate(found):
        mean[group], spread[group] = item.mean, item.total
    return np.array([item.count for item in found]), mean, spread


class _Factor:
    """Values times a fixed number, which converts their unit."""

    fits, statistics, transductive, unlabelled = False, False, False, False
    divisor: float | None = None

    def fit(self, responses: Responses, rows: np.ndarray) -> Arrays:
        return {} if self.divisor is None else {"factor": np.array(_stored_unit(responses) / self.divisor)}

    def forward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable) -> np.ndarray:
        return values * self._factor(arrays)

    def backward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable | None) -> np.ndarray:
        return values / self._factor(arrays)

    def num_constant(self, arrays: Arrays) -> int:
        return 0

    def _factor(self, arrays: Arrays) -> np.float32:
        return np.float32(arrays.get("factor", 1))


class _PercentSignalChange(_Factor):
    """Percent signal change: stored integers / 300, as the Natural Scenes Dataset defines them."""

    fits = True
    divisor = float(STORED_PER_PERCENT)


class _Div2000(_PercentSignalChange):
    """Stored integers / 2000, without centring, as SynBrain scales them."""

    divisor = 2000.0


class _Standard:
    """(values - mean) / std of each column, over all trials or by session."""

    fits, statistics, transductive, unlabelled = True, True, False, False
    ddof, by_session, ndim = 1, False, 2

    def fit(self, responses: Responses, rows: np.ndarray) -> Arrays:
        if responses.values.ndim != self.ndim:
            wanted = "(trials, voxels)" if self.ndim == 2 else "(trials, channels, times)"
            raise AxisError(f"expected responses {wanted} for this normaliser, got {responses.values.shape}")
        trials = responses.trials[rows]
        sessions, groups = self._sessions(trials)
        samples, mean, spread = column_statistics(responses, rows, groups, max(1, len(sessions)))
        self._enough(np.bincount(groups, minlength=max(1, len(sessions))), sessions, responses.trials)
        std = np.sqrt(spread / np.maximum(samples - self.ddof, 1)[:, None])
        std = np.where(std > _STD_FLOOR * np.abs(mean), std, np.nan)
        return {"mean": mean.astype(np.float32), "std": std.astype(np.float32), "session": sessions}

    def forward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable) -> np.ndarray:
        mean, std = self._of_trials(arrays, values, trials)
        return (values - mean) / std

    def backward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable | None) -> np.ndarray:
        mean, std = self._of_trials(arrays, values, trials)
        return values * std + mean

    def num_constant(self, arrays: Arrays) -> int:
        return int(np.isnan(arrays["std"]).any(0).sum())

    def _sessions(self, trials: TrialTable) -> tuple[np.ndarray, np.ndarray]:
        if not self.by_session:
            return np.empty(0, np.int64), np.zeros(len(trials), np.int64)
        if len(trials) and trials.session.min() < 0:
            unknown = int((trials.session < 0).sum())
            raise NormalizationError(
                f"expected the session of every trial, got {unknown} of unknown session; use 'train_z'"
            )
        return np.unique(trials.session, return_inverse=True)

    def _enough(self, counts: np.ndarray, sessions: np.ndarray, trials: TrialTable) -> None:
        if counts.min() < 2:
            raise NormalizationError(f"expected 2 trials or more to take a standard deviation, got {counts.min()}")

    def _of_trials(
        self, arrays: Arrays, values: np.ndarray, trials: TrialTable | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std for these trials, (n or 1, V), or (n or 1, channels, 1) for EEG."""
        mean, std = arrays["mean"], arrays["std"]
        if values.ndim != self.ndim or values.shape[1] != mean.shape[1]:
            raise AxisError(f"expected values of {mean.shape[1]} columns on {self.ndim} axes, got {values.shape}")
        if self.by_session:
            rows = _find(arrays["session"], trials)
            mean, std = mean[rows], std[rows]
        return (mean, std) if values.ndim == 2 else (mean[..., None], std[..., None])


class _SessionZ(_Standard):
    """z-scores per session and voxel, with statistics of all trials, test trials included."""

    transductive, ddof, by_session = True, 0, True


class _SessionZTrain(_Standard):
    """z-scores per session and voxel, with statistics of train trials, `min_trials` or more in each session."""

    ddof, by_session = 0, True

    def __init__(self, min_trials: int = 20):
        self.min_trials = max(2, min_trials)

    def _enough(self, counts: np.ndarray, sessions: np.ndarray, trials: TrialTable) -> None:
        few = np.flatnonzero(counts < self.min_trials)
        if len(few):
            kind = "trials without test images" if self.unlabelled else "train trials"
            raise NormalizationError(
                f"expected {self.min_trials} {kind} or more in every session, got {counts[few[0]]} in session "
                f"{sessions[few[0]]} ({len(few)} such sessions); use 'train_z', or fit on more images"
            )


class _SessionZUnlabelled(_SessionZTrain):
    """z-scores per session and voxel, with statistics of all trials that show no test image.

    Which images these trials show is not used. A subject with a context of few images has enough trials for it.
    """

    unlabelled = True


class _ChannelZ(_Standard):
    """z-scores per channel, with statistics over the times of all train trials."""

    ddof, ndim = 0, 3


class _TrialZ:
    """z-scores of each trial over its channels and times, or over its voxels."""

    fits, statistics, transductive, unlabelled = False, False, False, False

    def fit(self, responses: Responses, rows: np.ndarray) -> Arrays:
        return {}

    def forward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable) -> np.ndarray:
        axes = tuple(range(1, values.ndim))
        values = values.astype(np.float64)
        mean, std = values.mean(axes, keepdims=True), values.std(axes, keepdims=True)
        return (values - mean) / np.where(std > _STD_FLOOR * np.abs(mean), std, np.nan)

    def backward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable | None) -> np.ndarray:
        raise NormalizationError("expected statistics to undo 'trial_z' with, got none: they are of each trial alone")

    def num_constant(self, arrays: Arrays) -> int:
        return 0


class _NoiseWhitening:
    """EEG channels times the inverse square root of the covariance of the noise ("mvnn").

    The method is that of Guggenmos, Sterzer and Cichy (2018), with one covariance for all conditions and times, fitted
    on train trials only. The noise of a trial is its difference from the mean over the trials of its image. The
    covariance is shrunk towards a multiple of the identity with the intensity of Ledoit and Wolf (2004).
    """

    fits, statistics, transductive, unlabelled = True, True, False, False

    def fit(self, responses: Responses, rows: np.ndarray) -> Arrays:
        if responses.values.ndim != 3:
            shape = responses.values.shape
            raise AxisError(f"expected responses (trials, channels, times) for 'mvnn', got {shape}")
        part = responses.subset(rows)
        groups = [group for group in part.rows_of(np.unique(part.trials.image_id)) if len(group) > 1]
        if not groups:
            raise NormalizationError("expected images shown several times to tell noise from signal, got none")
        channels = responses.num_voxels
        moment, fourth, samples, freedom = np.zeros((channels, channels)), np.zeros((channels, channels)), 0, 0
        for group in groups:
            trials = part.batch(group).astype(np.float64)
            noise = np.moveaxis(trials - trials.mean(0), 1, 2).reshape(-1, channels)
            moment += noise.T @ noise
            fourth += np.square(noise).T @ np.square(noise)
            samples += len(noise)
            freedom += len(noise) - len(noise) // len(group)
        good = np.diag(moment) > 1e-12 * np.diag(moment).max()
        kept = np.ix_(good, good)
        covariance = _shrunk(moment[kept] / samples, fourth[kept].sum(), samples) * (samples / freedom)
        values, vectors = np.linalg.eigh(covariance)
        matrix, inverse = np.full((2, channels, channels), np.nan)
        matrix[kept] = (vectors / np.sqrt(values)) @ vectors.T
        inverse[kept] = (vectors * np.sqrt(values)) @ vectors.T
        return {"matrix": matrix, "inverse": inverse}

    def forward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable) -> np.ndarray:
        return self._apply(arrays["matrix"], values)

    def backward(self, arrays: Arrays, values: np.ndarray, trials: TrialTable | None) -> np.ndarray:
        return self._apply(arrays["inverse"], values)

    def num_constant(self, arrays: Arrays) -> int:
        return int(np.isnan(np.diag(arrays["matrix"])).sum())

    @staticmethod
    def _apply(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
        if values.ndim != 3 or values.shape[1] != len(matrix):
            raise AxisError(f"expected values (trials, {len(matrix)} channels, times), got {values.shape}")
        good = ~np.isnan(np.diag(matrix))
        out = np.full(values.shape, np.nan)
        out[:, good] = matrix[np.ix_(good, good)] @ values[:, good]
        return out


def _shrunk(covariance: np.ndarray, fourth: float, samples: int) -> np.ndarray:
    """Shrink a covariance towards a multiple of the identity, as Ledoit and Wolf (2004) do.

    Args:
        covariance: Covariance S = sum x x' / n of samples x with mean 0, (C, C).
        fourth: Sum of x_i^2 x_j^2 over all samples and all pairs i, j.
        samples: Number of samples n.
    """
    size = len(covariance)
    center = np.trace(covariance) / size
    norm = np.square(covariance).sum()
    distance = norm - size * center**2
    error = (fourth / samples - norm) / samples
    share = 0.0 if distance <= 0 else min(max(error, 0.0), distance) / distance
    return (1 - share) * covariance + share * center * np.eye(size)


def _batches(responses: Responses, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions among `rows` and values, in order."""
    for start in range(0, len(rows), _BATCH):
        positions = np.arange(start, min(start + _BATCH, len(rows)))
        yield positions, responses.batch(rows[positions])


def _stored_unit(responses: Responses) -> float:
    """Stored integers of the Natural Scenes Dataset in one unit of a batch: 300 for percent signal change, else 1."""
    if responses.unit == PSC:
        return float(STORED_PER_PERCENT)
    if responses.values.dtype == np.int16 and responses.scale == 1:
        return 1.0
    raise UnitsError(
        f"expected betas in {PSC} or as the stored int16, got {responses.values.dtype} in unit {responses.unit!r}; "
        "say what they are with Responses(unit=...)"
    )


def _find(sessions: np.ndarray, trials: TrialTable | None) -> np.ndarray:
    """Positions of the trials' sessions among the fitted sessions, (n,)."""
    if trials is None:
        raise NormalizationError("expected the trials, whose sessions say which statistics to use, got none")
    rows = np.searchsorted(sessions, trials.session)
    known = rows < len(sessions)
    known[known] = sessions[rows[known]] == trials.session[known]
    if not known.all():
        missing = int(trials.session[~known].min())
        raise NormalizationError(
            f"expected trials of the {len(sessions)} sessions that were fitted, got session {missing}; "
            "fit on images of it too, or use 'train_z'"
        )
    return rows


SCALINGS: dict[str, type[Scaling]] = {
    "none": _Factor,
    "psc": _PercentSignalChange,
    "div2000": _Div2000,
    "session_z": _SessionZ,
    "session_z_train": _SessionZTrain,
    "session_z_unlabelled": _SessionZUnlabelled,
    "train_z": _Standard,
    "trial_z": _TrialZ,
    "channel_z": _ChannelZ,
    "mvnn": _NoiseWhitening,
}
