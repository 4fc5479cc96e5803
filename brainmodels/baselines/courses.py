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
from ..data.spaces import SensorSpace
from ..errors import BrainDataError

__all__ = ["CourseFeatures", "SignalFilters", "check_sensors", "in_bins", "inverse_root", "noise_of"]

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
        for name, values in in_bins(trials, bins).items():  # (n, C, L)
            if values.shape[2] < components:
                raise BrainDataError(f"expected {components} bins or more of {name}, got {values.shape[2]}")
            noise, freedom = noise_of(values, objects)
            over_time = inverse_root(np.einsum("ncs,nct->st", noise, noise) / (freedom * noise.shape[1]))
            noise = noise @ over_time
            channels = inverse_root(np.einsum("ncs,nds->cd", noise, noise) / (freedom * noise.shape[2]))
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
        check_sensors(self.spaces_, trials)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.spaces_}
        for start in range(0, len(trials), _BLOCK):
            for name, values in trials.batch(np.arange(start, min(start + _BLOCK, len(trials)))).items():
                parts[name].append(self.filters_[name].apply(values.astype(np.float64)))
        return np.concatenate([np.concatenate(x).reshape(len(trials), -1) for x in parts.values()], 1)  # (n, p)


def in_bins(trials: ObjectTrials, bins: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Means over bins of each stream, fp64 (n, C, L). Trials are read in blocks."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in trials.streams}
    for start in range(0, len(trials), _BLOCK):
        for name, values in trials.batch(np.arange(start, min(start + _BLOCK, len(trials)))).items():
            parts[name].append(binned(values, trials.spaces[name].sfreq, bins[name]).astype(np.float64))
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def noise_of(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Values (n, C, L) around the mean of their group, and their degrees of freedom: n minus the number of groups."""
    counts = np.bincount(groups)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, groups, values)
    return values - (sums / counts[:, None, None])[groups], len(values) - len(counts)


def inverse_root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric inverse square root; directions without variance become 0."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > _EMPTY * values.max()
    scale = np.zeros_like(values)
    scale[kept] = 1 / np.sqrt(values[kept])
    return (vectors * scale) @ vectors.T


def check_sensors(spaces: Mapping[str, SensorSpace], trials: ObjectTrials) -> None:
    """Check that trials have the streams and the sensors of a fit.

    Raises:
        AxisError, UnitsError: Channels, times, rate or unit differ.
        BrainDataError: There are other streams.
    """
    if set(trials.streams) != set(spaces):
        raise BrainDataError(f"expected streams {', '.join(spaces)} as in the fit, got {', '.join(trials.streams)}")
    for name, space in spaces.items():
        check_space(space, trials.spaces[name], name)


def _between(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scatter (L, L) over times of the means of classes, weighted by their sizes."""
    scatter = np.zeros((values.shape[2], values.shape[2]))
    for label in np.unique(labels):
        chosen = labels == label
        mean = values[chosen].mean(0) - values.mean(0)  # (C, L)
        scatter += chosen.sum() * mean.T @ mean
    return scatter
