"""Ridge classification of EEG from whitened means over bins of time: the baseline of every EEG classifier.

    ridge = SensorRidge().fit(train, study.label("class", train.ids), colors=study.label("color", train.ids))
    ridge.scores(test.averaged()).argmax(1)  # guessed classes
    ridge.classify(test.averaged()).color  # probabilities of colours

`SensorFeatures` gives the whitened means as a table for any classifier of scikit-learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.objects import ObjectTrials
from ..errors import AxisError, BrainDataError, check_choice
from .courses import CourseFeatures, check_sensors, in_bins, inverse_root, noise_of

__all__ = ["BINS", "SensorClasses", "SensorFeatures", "SensorRidge"]

BINS = {"static": 0.04, "dynamic": 0.2}
"""Length of a bin of each stream in seconds."""

_SHARPNESS = np.geomspace(0.1, 1000.0, 200)


@dataclass(frozen=True)
class SensorClasses:
    """Probabilities of classes and colours.

    Attributes:
        ids: Object of each row, (n,).
        shape: Probabilities of the classes, fp64 (n, K).
        color: Probabilities of the colours, fp64 (n, Q). None without labels of colours in the fit.
    """

    ids: np.ndarray
    shape: np.ndarray
    color: np.ndarray | None = None


class SensorFeatures:
    """Means over bins of time, with channels whitened by the noise of the train trials.

    The noise covariance S (C, C) of a stream is that of its train trials around the mean of their object, over all
    bins. Where no object has two trials, it is that around the mean of their class. Features are S^(-1/2) x.
    Directions without variance, such as a reference channel, become 0.

    Args:
        bins: Length of a bin of each stream in seconds. Streams that the trials lack are ignored.

    Attributes:
        spaces_: Sensors of each stream in the fit.
        whitening_: S^(-1/2) of each stream, fp64 (C, C).
    """

    def __init__(self, bins: Mapping[str, float] = BINS):
        self.bins = dict(bins)

    def fit(self, trials: ObjectTrials, labels: Sequence[int] | np.ndarray | None = None) -> "SensorFeatures":
        """Estimate the noise covariance of each stream.

        Args:
            trials: Train trials.
            labels: Classes of the trials, (n,). They are used only where no object has two trials.

        Raises:
            BrainDataError: A stream has no length of a bin, or no object or class has two trials.
        """
        missing = [name for name in trials.streams if name not in self.bins]
        if missing:
            raise BrainDataError(f"expected bins of {', '.join(trials.streams)}, got none of {missing[0]}")
        groups = _groups(trials.ids, labels)
        self.spaces_ = {name: trials.spaces[name] for name in trials.streams}
        values = in_bins(trials, self.bins)
        self.whitening_ = {name: _whitening(values[name], groups) for name in trials.streams}
        return self

    def transform(self, trials: ObjectTrials) -> np.ndarray:
        """Features of trials, for any classifier of scikit-learn.

        Args:
            trials: Single trials or means.

        Returns:
            fp64 (n, p); p is the sum over streams of channels times bins, channels first.

        Raises:
            AxisError: Channels, their order, times or rate differ from the fit.
            UnitsError: The unit differs from the fit.
            BrainDataError: The trials have other streams than the fit.
        """
        check_sensors(self.spaces_, trials)
        values = in_bins(trials, self.bins)
        white = [self.whitening_[name] @ values[name] for name in self.spaces_]
        return np.concatenate([x.reshape(len(x), -1) for x in white], 1)  # (n, p)


class SensorRidge:
    """Ridge regression from `SensorFeatures` to one-hot classes.

        argmin_w sum_i weight_i |y_i - b - x_i w|^2 + penalty * mean eigenvalue * |w|^2

    `weight_i` is n / (K n_k) for a trial of a class with n_k trials, so that all classes count the same. The
    eigenvalues are those of the weighted, centred kernel (n, n), in which the system is solved. The intercept is free.

    Probabilities are softmax(sharpness * repeats * scores), because the mean of k presentations has 1 / k of the noise
    variance. The sharpness maximises the likelihood of the train trials, each scored by a fit without the trials of its
    object.

    Args:
        bins: Length of a bin of each stream in seconds.
        penalty: Factor of the mean eigenvalue. Of several, each label takes the one with the best accuracy on train
            trials that are scored without the trials of their object.
        components: Number of courses in time that are read in place of the bins, see `CourseFeatures`. Their filters
            know the labels of all train trials, so scores of these trials are too good. None reads the bins.

    Attributes:
        features_: The fitted `SensorFeatures` or `CourseFeatures`.
        coef_, intercept_: Weights (p, K) and intercepts (K,) of each label, "class" and "color".
        penalty_: Chosen factor of each label.
        sharpness_: Factor of the scores of a single presentation in the softmax, of each label.
        heldout_: Scores (n, K) of the train trials by fits without the trials of their object, of each label.
    """

    def __init__(
        self,
        bins: Mapping[str, float] = BINS,
        penalty: float | Sequence[float] = 1.0,
        components: int | None = None,
    ):
        self.bins = dict(bins)
        self.penalty, self.components = penalty, components

    def fit(
        self,
        trials: ObjectTrials,
        labels: Sequence[int] | np.ndarray,
        num_classes: int | None = None,
        *,
        colors: Sequence[int] | np.ndarray | None = None,
        num_colors: int | None = None,
    ) -> "SensorRidge":
        """Fit classes, and colours where there are labels of them.

        Args:
            trials: Train trials of one or both streams, single ones or means.
            labels: Classes of the trials, (n,) integers from 0.
            num_classes: Number of classes. None means the largest label plus 1.
            colors: Colours of the trials, (n,) integers from 0.
            num_colors: Number of colours. None means the largest label plus 1.

        Raises:
            AxisError: Labels are not (n,) integers.
            BrainDataError: A label is out of range, a class has no trial, a penalty is not above 0, or the noise
                cannot be estimated.
        """
        penalties = np.atleast_1d(np.asarray(self.penalty, np.float64))
        if not (len(penalties) and np.isfinite(penalties).all() and (penalties > 0).all()):
            raise BrainDataError(f"expected a finite penalty above 0, got {self.penalty}")
        targets = {"class": _checked(labels, num_classes, len(trials), "classes")}
        if colors is not None:
            targets["color"] = _checked(colors, num_colors, len(trials), "colors")
        kinds = [numbers for numbers, _ in targets.values()]
        self.features_ = (
            SensorFeatures(self.bins).fit(trials, kinds[0])
            if self.components is None
            else CourseFeatures(self.bins, self.components).fit(trials, kinds)
        )
        x = self.features_.transform(trials)  # (n, p)
        objects = np.unique(trials.ids, return_inverse=True)[1]
        self.coef_, self.intercept_, self.penalty_ = {}, {}, {}
        self.sharpness_, self.heldout_ = {}, {}
        for name, (numbers, count) in targets.items():
            system = _System(x, numbers, count)
            tried = [(float(factor), system.heldout(float(factor), objects)) for factor in penalties]
            right = [np.mean(scores.argmax(1) == numbers) for _, scores in tried]
            factor, scores = tried[int(np.argmax(right))]
            self.coef_[name], self.intercept_[name] = system.weights(factor)
            self.penalty_[name], self.heldout_[name] = factor, scores
            self.sharpness_[name] = _sharpness(scores, numbers) / float(trials.repeats.mean())
        return self

    def scores(self, trials: ObjectTrials, label: str = "class") -> np.ndarray:
        """Predicted one-hot targets, fp64 (n, K). The highest one is the guess.

        Args:
            trials: Single trials or means.
            label: "class" or "color".

        Raises:
            AxisError, UnitsError: The trials differ from those of the fit, see `SensorFeatures.transform`.
            BrainDataError: There were no labels of this name in the fit.
        """
        check_choice("label", label, tuple(self.coef_))
        return self.features_.transform(trials) @ self.coef_[label] + self.intercept_[label]

    def classify(self, trials: ObjectTrials) -> SensorClasses:
        """Probabilities of classes, and of colours where the fit had labels of them.

        Args:
            trials: Single trials or means.

        Raises:
            AxisError, UnitsError: The trials differ from those of the fit, see `SensorFeatures.transform`.
        """
        x, repeats = self.features_.transform(trials), trials.repeats[:, None]
        found = {
            name: _softmax(self.sharpness_[name] * repeats * (x @ coef + self.intercept_[name]))
            for name, coef in self.coef_.items()
        }
        return SensorClasses(trials.ids, found["class"], found.get("color"))


class _System:
    """Weighted ridge regression in its kernel form, for several penalties.

    With D = diag(sqrt(weight)), A = D (x - mean x) and A A' = U diag(l) U', the weights are A' U diag(1 / (l + a)) U' D
    (y - mean y). Means are weighted.
    """

    def __init__(self, x: np.ndarray, labels: np.ndarray, count: int):
        n = len(x)
        weight = n / (count * np.bincount(labels, minlength=count)[labels])
        self.share, self.root = weight / weight.sum(), np.sqrt(weight)[:, None]  # (n,), (n, 1)
        self.targets = np.eye(count)[labels]  # (n, K)
        self.x_mean, self.y_mean = self.share @ x, self.share @ self.targets
        self.rows = self.root * (x - self.x_mean)  # (n, p)
        values, self.basis = np.linalg.eigh(self.rows @ self.rows.T)
        self.values = values.clip(0)  # (n,)
        self.moved = self.basis.T @ (self.root * (self.targets - self.y_mean))  # (n, K)

    def weights(self, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """Slopes (p, K) and intercepts (K,)."""
        dual = self.basis @ (self.moved / (self.values + factor * self._unit())[:, None])
        coef = self.rows.T @ dual
        return coef, self.y_mean - self.x_mean @ coef

    def heldout(self, factor: float, objects: np.ndarray) -> np.ndarray:
        """Scores (n, K) of each row by a fit without the rows of its object, at the same penalty and weights.

        A fit without the rows G has the residuals (I - H_GG)^-1 e_G, where H is the matrix from targets to predictions
        and e are the residuals of the fit with all rows.
        """
        shrunk = self.basis * (self.values / (self.values + factor * self._unit()))
        fitted = shrunk @ self.moved / self.root + self.y_mean
        residuals, scores = self.targets - fitted, np.empty_like(fitted)
        for rows in np.split(np.argsort(objects, kind="stable"), np.cumsum(np.bincount(objects))[:-1]):
            hat = shrunk[rows] @ self.basis[rows].T / self.root[rows] * self.root[rows].T + self.share[rows]
            scores[rows] = self.targets[rows] - np.linalg.solve(np.eye(len(rows)) - hat, residuals[rows])
        return scores

    def _unit(self) -> float:
        """Mean eigenvalue. It is 1 where all features are constant, so that predictions are then the means."""
        return float(self.values.mean()) or 1.0


def _groups(ids: np.ndarray, labels: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """Number of the group of each trial, around whose mean the noise is measured."""
    groups = np.unique(ids, return_inverse=True)[1]
    if np.bincount(groups).max(initial=0) < 2 and labels is not None:
        groups = np.unique(np.asarray(labels), return_inverse=True)[1]
    if np.bincount(groups).max(initial=0) < 2:
        raise BrainDataError(
            f"expected an object or a class with two trials or more to measure the noise, got {len(ids)} trials of "
            f"{len(ids)} different ones"
        )
    return groups


def _whitening(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """S^(-1/2) (C, C), where S is the covariance of values (n, C, bins) around the mean of their group."""
    noise, freedom = noise_of(values, groups)
    return inverse_root(np.tensordot(noise, noise, ((0, 2), (0, 2))) / (freedom * values.shape[2]))


def _checked(labels: Any, count: int | None, length: int, what: str) -> tuple[np.ndarray, int]:
    """Labels (n,) and their number."""
    numbers = np.asarray(labels)
    if numbers.shape != (length,) or numbers.dtype.kind not in "iu":
        raise AxisError(f"expected integers ({length},) of {what}, got {numbers.dtype} {numbers.shape}")
    total = int(numbers.max()) + 1 if count is None else count
    if numbers.min() < 0 or numbers.max() >= total:
        raise BrainDataError(f"expected {what} from 0 to {total - 1}, got {numbers.min()} to {numbers.max()}")
    empty = np.flatnonzero(np.bincount(numbers, minlength=total) == 0)
    if len(empty):
        raise BrainDataError(f"expected trials of all {total} {what}, got none of {empty[0]}")
    return numbers.astype(np.int64), total


def _sharpness(scores: np.ndarray, labels: np.ndarray) -> float:
    """Factor of scores (n, K) in a softmax under which the labels are likeliest."""
    rows = np.arange(len(labels))
    return float(max(_SHARPNESS, key=lambda factor: np.log(_softmax(factor * scores)[rows, labels] + 1e-12).mean()))


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
