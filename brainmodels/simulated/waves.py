"""What simulated EEG consists of: evoked responses, and noise that is correlated over channels and times.

    truth, mixing = plant("static", gains, members, prior, snr=0.01, seed=0, number=1)
    noise(mixing, 250, rng)  # (channels, times), unit variance

`eeg` and `objects` make studies of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .truth import EEGTruth

__all__ = ["NOISE", "ONSET", "ORDER", "OWN_STREAM", "WINDOWS", "noise", "plant"]

ONSET = 0.2  # seconds from the start of a window to the stimulus
WINDOWS = {"static": (250, 250.0), "dynamic": (600, 100.0)}  # samples, hertz
_SOURCES = 20  # sources of the noise that channels share
_SHARED_NOISE = 0.36  # their share of the noise variance
_COMMON, _COURSES, _PERSON, ORDER, NOISE = range(5)  # streams of random numbers
OWN_STREAM = {"static": (), "dynamic": (1,)}  # both kinds of one seed are one brain in different noise


def plant(
    kind: str,
    gains: Mapping[str, np.ndarray],
    levels: Mapping[str, Sequence],
    members: np.ndarray,
    prior: np.ndarray,
    snr: float,
    seed: int,
    number: int,
) -> tuple[EEGTruth, np.ndarray]:
    """The true model of one subject.

    Each level of a factor has a topography and a time course. Topographies of two subjects have a correlation of 0.64,
    and their time courses are equal. Both kinds of one subject have equal topographies.

    Args:
        kind: "static" or "dynamic", see `WINDOWS`.
        gains: Standard deviation of the topographies at each channel, (channels,), by factor.
        levels: Levels of each factor, in the order of `gains`.
        members: Combinations of levels that occur, (combinations, levels of all factors) of 0 and 1.
        prior: Probability of each combination, (combinations,).
        snr: Power of the evoked response over that of the noise, in a single trial.
        seed: Seed of the study.
        number: Number of the subject.

    Returns:
        The truth, and the matrix that mixes sources of noise into channels, (channels, sources).
    """
    num_times, _ = WINDOWS[kind]
    keys = (seed, _COMMON), (seed, _COURSES), (seed, _PERSON, number)
    common, courses, own = (np.random.default_rng(key) for key in keys)
    templates = {}
    for name, gain in gains.items():
        shape = (len(levels[name]), len(gain), 1)
        topography = (0.8 * common.normal(size=shape) + 0.6 * own.normal(size=shape)) * gain[:, None]
        templates[name] = topography * _time_courses(kind, len(levels[name]), courses)[:, None]
    flat = np.concatenate([values.reshape(len(values), -1) for values in templates.values()])
    power = prior @ np.einsum("ci,ij,cj->c", members, flat @ flat.T, members) / flat.shape[1]
    templates = {name: (values / np.sqrt(power)).astype(np.float32) for name, values in templates.items()}
    n_chans = len(next(iter(gains.values())))
    mixing = own.normal(size=(n_chans, _SOURCES))
    mixing *= np.sqrt(_SHARED_NOISE) / np.linalg.norm(mixing, axis=1, keepdims=True)
    channel_covariance = mixing @ mixing.T + (1 - _SHARED_NOISE) * np.eye(n_chans)
    steps = np.arange(num_times)
    time_covariance = np.fft.irfft(_pink_power(num_times))[np.abs(steps[:, None] - steps)]
    return EEGTruth(templates, snr, channel_covariance, time_covariance, dict(levels), members, prior), mixing


def noise(mixing: np.ndarray, num_times: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance, (channels, times): pink noise of each channel, and shared sources."""
    white = rng.normal(size=(len(mixing) + mixing.shape[1], 2 * num_times))
    pink = np.fft.irfft(np.fft.rfft(white) * np.sqrt(_pink_power(num_times)))[:, :num_times]
    return np.sqrt(1 - _SHARED_NOISE) * pink[: len(mixing)] + mixing @ pink[len(mixing) :]


def _time_courses(kind: str, levels: int, rng: np.random.Generator) -> np.ndarray:
    """Time courses (levels, times): a Gaussian bump after the onset, and for "dynamic" a response to the angle."""
    num_times, sfreq = WINDOWS[kind]
    times = np.arange(num_times) / sfreq - ONSET
    latency, width = rng.uniform(0.1, 0.3, (levels, 1)), rng.uniform(0.03, 0.08, (levels, 1))
    courses = np.exp(-0.5 * ((times - latency) / width) ** 2)
    if kind == "dynamic":
        angle = 2 * np.pi * times * sfreq / num_times
        preferred = rng.uniform(0, 2 * np.pi, (levels, 1))
        courses += -np.expm1(-times.clip(0) / 0.1) * (1 + np.cos(angle - preferred)) / 2
    return courses


def _pink_power(num_times: int) -> np.ndarray:
    """Power 1/f at the frequencies of a period of 2 num_times samples, (num_times + 1,).

    0 Hz has the power of the lowest frequency. The window is half the period, so that its two ends are not neighbours.
    The powers are scaled to unit variance.
    """
    power = 1 / np.maximum(np.arange(num_times + 1), 1.0)
    return power / np.fft.irfft(power)[0]
