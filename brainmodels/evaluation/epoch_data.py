"""Epochs of one subject for a study: means over repeats in bins of time, noise between channels, and noise ceilings.

    data = collect(dataset, subject, split)
    data.train.shape, data.test.shape    # (n, C, L), (m, C, L)
    alpha = collect(dataset, subject, split, band=Band("alpha", 8, 12))  # log power in place of voltage

Trials are read in blocks, so that only means and the test trials are in memory.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..baselines.courses import inverse_root
from ..data import BrainDataset, Pairs, SensorSpace, Split, Subject
from ..data.reliability import noise_ceiling
from ..errors import BrainDataError, need
from ..metrics.ceilings import spearman_brown, split_half

__all__ = ["MOST_BINS", "Band", "EpochData", "bin_width", "collect", "log_power"]

MOST_BINS = 100
"""Largest number of bins of time where no length is given."""
_BLOCK_BYTES = 64 << 20
_CYCLES = 4.0  # cycles of a wavelet at the lowest frequency of a band
_FREQUENCIES = 4  # in a band
_SHRINKAGE = 0.05  # of the covariance between channels


@dataclass(frozen=True)
class Band:
    """A band of frequencies.

    Attributes:
        name: Name of the band, such as "alpha".
        low, high: Ends in hertz.

    Raises:
        BrainDataError: The ends are not above 0 and in this order.
    """

    name: str
    low: float
    high: float

    def __post_init__(self):
        if not 0 < self.low < self.high:
            raise BrainDataError(f"expected a band from a frequency above 0 to a higher one, got {self}")

    def __str__(self) -> str:
        return f"{self.name} {self.low:g}\N{EN DASH}{self.high:g} Hz"

    @classmethod
    def parse(cls, word: str) -> "Band":
        """A band from a word such as alpha=8-12. Any other form is a `BrainDataError`."""
        match = re.fullmatch(r"(\w+)=(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", word)
        if match is None:
            raise BrainDataError(f"expected a band as NAME=LOW-HIGH in hertz, such as alpha=8-12, got {word!r}")
        return cls(match[1], float(match[2]), float(match[3]))

    @property
    def frequencies(self) -> np.ndarray:
        """Frequencies of the wavelets, from the lower to the upper end, equally far apart."""
        return np.linspace(self.low, self.high, _FREQUENCIES)


@dataclass(frozen=True, eq=False)
class EpochData:
    """Responses of train and test images over time.

    Attributes:
        name: "amplitude", or the band whose log power the responses are.
        space: Channels and bins. Times are the middles of the bins.
        pairs: Test pairs, which scores name.
        train_ids, test_ids: Ids of the images, (n,) and (m,).
        train, test: Means over the repeats of each image, fp32 (n, C, L) and (m, C, L).
        trials: Single test trials, fp32 (k, C, L).
        groups: Rows of `trials` of each test image.
        whitening: Inverse square root (C, C) of the covariance of the noise between channels, in train trials around
            the mean of their image. None where no train image was repeated.
        ceiling: Noise ceiling of r^2 of the test means, fp64 (C, L), not clipped. None where nothing was repeated.
        ceiling_from: How the ceiling was estimated, in words.
    """

    name: str
    space: SensorSpace
    pairs: Pairs
    train_ids: np.ndarray
    test_ids: np.ndarray
    train: np.ndarray
    test: np.ndarray
    trials: np.ndarray
    groups: list[np.ndarray]
    whitening: np.ndarray | None
    ceiling: np.ndarray | None
    ceiling_from: str

    @property
    def after(self) -> np.ndarray:
        """Mask (L,) of the bins that end after the onset. Without such bins, all."""
        found = self.space.times + 0.5 / self.space.sfreq > 0
        return found if found.any() else np.ones_like(found)

    def white(self, epochs: np.ndarray) -> np.ndarray:
        """Epochs (n, C, L) whose noise is white over channels, or the same epochs where the noise is not known."""
        return epochs if self.whitening is None else np.einsum("cd,ndl->ncl", self.whitening, epochs, optimize=True)


def bin_width(space: SensorSpace, seconds: float | None = None) -> int:
    """Samples of a bin. None is the smallest number that leaves at most `MOST_BINS` bins.

    Raises:
        BrainDataError: A bin is shorter than a sample, or longer than the epoch.
    """
    count = len(space.times)
    if seconds is None:
        return -(-count // MOST_BINS)
    width = round(seconds * space.sfreq)
    if not 1 <= width <= count:
        raise BrainDataError(
            f"expected bins of {1 / space.sfreq:g} to {count / space.sfreq:g} s, as the epochs allow, got {seconds:g} s"
        )
    return width


def collect(
    dataset: BrainDataset,
    subject: Subject,
    split: Split,
    time_bin: float | None = None,
    band: Band | None = None,
    seed: int = 0,
) -> EpochData:
    """Read the trials of a subject, and average them over bins and repeats.

    Args:
        dataset: Data set with the subject.
        subject: Subject with responses (trials, channels, times).
        split: Split of the images.
        time_bin: Length of a bin in seconds. None leaves at most `MOST_BINS` bins. Samples after the last whole bin are
            left out.
        band: Band whose log power replaces the values. It is computed in single trials, so it holds responses that are
            not locked in phase to the onset.
        seed: Seed of the random halves of the repeats.

    Raises:
        BrainDataError: A bin or a band does not fit the epochs.
    """
    space = subject.space
    if not isinstance(space, SensorSpace):
        raise BrainDataError(f"expected responses of sensors over time of {subject.id}, got voxels")
    width = bin_width(space, time_bin)
    if band is not None:
        _check_band(band, space)
    train, test = (dataset.pairs(subject.id, split, part, "none") for part in ("train", "test"))
    sums = _Sums(train, width, band)
    test_ids, rows = np.unique(test.image_ids, return_inverse=True)
    trials = np.concatenate([block for _, block in _blocks(test, width, band)])
    groups = [np.flatnonzero(rows == number) for number in range(len(test_ids))]
    bins = trials.shape[2]
    times = space.times[: bins * width].reshape(bins, width).mean(1)
    binned = replace(space, sfreq=space.sfreq / width, times=times, unit=space.unit if band is None else "log power")
    ceiling, told = _ceiling(trials, groups, sums, seed)
    means = np.stack([trials[group].mean(0) for group in groups])
    pairs = dataset.pairs(subject.id, split, "test", "repeats")
    name = "amplitude" if band is None else str(band)
    return EpochData(
        name, binned, pairs, sums.ids, test_ids, sums.means, means, trials, groups, sums.whitening(), ceiling, told
    )


def log_power(values: np.ndarray, sfreq: float, band: Band) -> np.ndarray:
    """Logarithm of the power in a band, from Morlet wavelets of MNE.

    Args:
        values: Trials (n, C, T).
        sfreq: Sampling rate in hertz.
        band: Band of frequencies. Wavelets have 4 cycles at its lower end, and the same length at all frequencies.

    Returns:
        fp32 (n, C, T), log10 of the mean power over the frequencies.
    """
    try:
        from mne.time_frequency import tfr_array_morlet
    except ImportError as error:
        raise need("mne", "power in bands") from error
    freqs = band.frequencies
    cycles = _CYCLES * freqs / freqs[0]
    options: Any = {"n_cycles": cycles, "output": "power", "zero_mean": True, "verbose": "error"}
    morlet: Any = tfr_array_morlet  # its type knows tuples, which it returns for other outputs
    power = morlet(values.astype(np.float64), sfreq, freqs, **options).mean(2)
    return np.log10(np.maximum(power, np.finfo(np.float64).tiny)).astype(np.float32)


class _Sums:
    """Means over repeats, and the noise around them, from blocks of single trials."""

    def __init__(self, pairs: Pairs, width: int, band: Band | None):
        self.ids, rows = np.unique(pairs.image_ids, return_inverse=True)
        counts = np.bincount(rows)
        repeated = counts > 1
        space = pairs.subject.space
        shape = len(space), len(getattr(space, "times", ())) // width
        total = np.zeros((len(counts), *shape), np.float32)
        squares, within, covariance = np.zeros(shape), np.zeros(shape), np.zeros((shape[0], shape[0]))
        for indices, block in _blocks(pairs, width, band):
            np.add.at(total, rows[indices], block)
            block = block.astype(np.float64)
            squares += np.square(block).sum(0)
            again = block[repeated[rows[indices]]]
            within += np.square(again).sum(0)
            covariance += np.einsum("ncl,ndl->cd", again, again, optimize=True)
        self.means = total / counts[:, None, None].astype(np.float32)
        self._freedom, self._bins = int((counts[repeated] - 1).sum()), shape[1]
        means, weights = self.means[repeated].astype(np.float64), counts[repeated]
        self._covariance = covariance - np.einsum("n,ncl,ndl->cd", weights, means, means, optimize=True)
        self._noise = (within - np.einsum("n,ncl->cl", weights, np.square(means))) / max(1, self._freedom)
        grand = total.sum(0, dtype=np.float64) / counts.sum()
        self._variance = (squares - counts.sum() * np.square(grand)) / max(1, counts.sum() - 1)

    def whitening(self) -> np.ndarray | None:
        """Inverse square root of the covariance of the noise, (C, C), a little shrunk to a multiple of the identity."""
        if self._freedom < 2:
            return None
        count = len(self._covariance)
        level = np.trace(self._covariance) / count
        return inverse_root(((1 - _SHRINKAGE) * self._covariance + _SHRINKAGE * level * np.eye(count)) / self._scale)

    @property
    def _scale(self) -> float:
        return float(self._freedom * self._bins)

    def ncsnr(self) -> np.ndarray | None:
        """Standard deviation of the signal over that of the noise of one trial, (C, L); None without repeats."""
        if self._freedom < 1:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(np.maximum(self._variance - self._noise, 0) / self._noise)


def _ceiling(trials: np.ndarray, groups: list[np.ndarray], sums: _Sums, seed: int) -> tuple[np.ndarray | None, str]:
    """Noise ceiling of r^2 (C, L) of the test means, and how it was estimated."""
    counts = np.array([len(group) for group in groups])
    shape = trials.shape[1:]
    if counts.min() > 1:
        rho, half = split_half(trials.reshape(len(trials), -1), groups, seed=seed)
        factor = float(1 / np.mean(1 / counts) / half)
        return spearman_brown(rho, factor).reshape(
            shape
        ), f"halves of {counts.min()} or more repeats of each test image"
    ratio = sums.ncsnr()
    if ratio is None:
        return None, "no image was repeated"
    ceiling = noise_ceiling(ratio.ravel(), counts.tolist()).reshape(shape)
    return ceiling, "repeats of train images, because test images were shown once"


def _blocks(pairs: Pairs, width: int, band: Band | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions and bins (n, C, L) of single trials, a block at a time."""
    space = pairs.subject.space
    assert isinstance(space, SensorSpace)
    bins = len(space.times) // width
    size = max(1, _BLOCK_BYTES // (4 * len(space) * len(space.times) * (1 if band is None else 2 * _FREQUENCIES)))
    for indices, values in pairs.batches(size):
        if band is not None:
            values = log_power(values, space.sfreq, band)
        cut = values[:, :, : bins * width].reshape(*values.shape[:2], bins, width)
        yield indices, cut.mean(3)


def _check_band(band: Band, space: SensorSpace) -> None:
    length = len(space.times) / space.sfreq
    if band.high >= space.sfreq / 2:
        raise BrainDataError(
            f"expected a band below {space.sfreq / 2:g} Hz, half the sampling rate of the epochs, got {band}"
        )
    if _CYCLES / band.low > length:
        raise BrainDataError(
            f"expected a band from {_CYCLES / length:.3g} Hz, whose wavelets of {_CYCLES:g} cycles fit into epochs of "
            f"{length:g} s, got {band}"
        )
