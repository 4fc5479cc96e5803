"""Filters of EEG without training: white channels, and the few courses in time that carry the objects.

    filters = SignalFilters.fit(trials, [classes, colors], {"static": 0.04, "dynamic": 0.2}, 4)
    filters["static"].apply(values)  # (n, C, T) to (n, 4, C)

A trial is a signal in noise whose covariance is that of channels times that of times. In whitened data, the scatter of
the classes over times is that of the signal plus a multiple of the identity. Its first eigenvectors are the courses
with the most signal. This is linear discriminant analysis along time. xDAWN (Rivet et al., 2009) does it for the
channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.objects import ObjectTrials
from ..data.sensors import binned, check_space, time_slices
from ..errors import BrainDataError

__all__ = ["CourseFeatures", "SignalFilters"]

_BLOCK = 128  # trials that are read at a time
_EMPTY = 1e-10  # share of the largest variance below which a direction is empty, as that of a reference channel


@dataclass(frozen=True)
class SignalFilters:
    """Filters of one stream.

    Attributes:
        channels: fp64 (C, C) inverse square root of the noise's covariance between channels.
        times: fp64 (T, k) courses; filtered noise has unit variance in each.
    """

    channels: np.ndarray
    times: np.ndarray

    @classmethod
    def fit(
        cls,
        trials: ObjectTrials,
        labels: Sequence[np.ndarray],
        bins: Mapping[str, float],
        components: int,
    ) -> "dict[str, SignalFilters]":
        """Filters of every stream, from single trials. Noise is what differs between presentations of an object.

        Args:
            trials: Single train trials.
            labels: Kinds of classes of the trials, (n,) each. The scatter between classes is summed over the kinds.
            bins: Length of a bin of each stream in seconds; courses are constant within bins.
            components: Number k of courses.

        Raises:
            BrainDataError: No object has two trials, or there are fewer bins than components.
        """
        _, objects = np.unique(trials.ids, return_inverse=True)
        if len(objects) == objects.max() + 1:
            raise BrainDataError(
                f"expected two trials of an object to measure noise, got one of each of {len(objects)}"
            )
        found = {}
        for name in trials.streams:
            values = _binned(trials, name, bins[name])  # (n, C, L)
            if values.shape[2] < components:
                raise BrainDataError(f"expected {components} bins or more of {name}, got {values.shape[2]}")
            noise = _residuals(values, objects)
            over_time = _inverse_root(np.einsum("ncs,nct->st", noise, noise) / (len(noise) * noise.shape[1]))
            noise = noise @ over_time
            channels = _inverse_root(np.einsum("ncs,nds->cd", noise, noise) / (len(noise) * noise.shape[2]))
            white = channels @ values @ over_time
            scatter = sum(_between(white, label) for label in labels)
            courses = np.linalg.eigh(scatter)[1][:, ::-1][:, :components]  # (L, k)
            space = trials.spaces[name]
            parts = time_slices(len(space.times), space.sfreq, bins[name])
            spread = np.zeros((len(space.times), len(parts)))
            for place, part in enumerate(parts):
                spread[part, place] = 1 / (part.stop - part.start)
            found[name] = cls(channels, spread @ over_time @ courses)
        return found

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Filtered trials (n, k, C) of trials (n, C, T)."""
        return (self.channels @ values @ self.times).swapaxes(1, 2)


class CourseFeatures:
    """Trials as the values of white channels in a few courses in time, for any classifier of scikit-learn.

    Args:
        bins: Length of a bin of each stream in seconds.
        components: Number k of courses of each stream.

    Attributes:
        spaces_: Sensors of each stream in the fit.
        filters_: `SignalFilters` of each stream.
    """

    def __init__(self, bins: Mapping[str, float], components: int):
        self.bins, self.components = dict(bins), components

    def fit(self, trials: ObjectTrials, labels: Sequence[np.ndarray]) -> "CourseFeatures":
        """Estimate the filters of every stream; see `SignalFilters.fit`."""
        self.spaces_ = dict(trials.spaces)
        self.filters_ = SignalFilters.fit(trials, labels, self.bins, self.components)
        return self

    def transform(self, trials: ObjectTrials) -> np.ndarray:
        """Features fp64 (n, p) of single trials or means; p is the sum over streams of k channels.

        Raises:
            AxisError, UnitsError: Channels, times, rate or unit differ from the fit.
            BrainDataError: The trials have other streams than the fit.
        """
        if set(trials.streams) != set(self.spaces_):
            raise BrainDataError(
                f"expected streams {', '.join(self.spaces_)} as in the fit, got {', '.join(trials.streams)}"
            )
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.spaces_}
        for name, space in self.spaces_.items():
            check_space(space, trials.spaces[name], name)
        for start in range(0, len(trials), _BLOCK):
            for name, values in trials.batch(np.arange(start, min(start + _BLOCK, len(trials)))).items():
                parts[name].append(self.filters_[name].apply(values.astype(np.float64)))
        return np.concatenate([np.concatenate(x).reshape(len(trials), -1) for x in parts.values()], 1)  # (n, p)


def _binned(trials: ObjectTrials, stream: str, seconds: float) -> np.ndarray:
    """Means over bins, fp64 (n, C, bins). Trials are read in blocks."""
    blocks, rate = [], trials.spaces[stream].sfreq
    for start in range(0, len(trials), _BLOCK):
        values = trials.batch(np.arange(start, min(start + _BLOCK, len(trials))), [stream])[stream]
        blocks.append(binned(values, rate, seconds).astype(np.float64))
    return np.concatenate(blocks)


def _residuals(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values around the mean of their group, scaled to the variance of single values; groups of one are left out."""
    counts = np.bincount(groups)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, groups, values)
    kept = counts[groups] > 1
    of, count = groups[kept], counts[groups[kept]][:, None, None]
    return (values[kept] - sums[of] / count) * np.sqrt(count / (count - 1))


def _between(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scatter (L, L) over times of the means of classes, weighted by their sizes."""
    scatter = np.zeros((values.shape[2], values.shape[2]))
    for label in np.unique(labels):
        chosen = labels == label
        mean = values[chosen].mean(0) - values.mean(0)  # (C, L)
        scatter += chosen.sum() * mean.T @ mean
    return scatter


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric inverse square root; directions without variance become 0."""
    values, vectors = np.linalg.eigh(covariance)
    full = values > _EMPTY * values[-1]
    return vectors[:, full] / np.sqrt(values[full]) @ vectors[:, full].T
