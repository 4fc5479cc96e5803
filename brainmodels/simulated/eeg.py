"""Simulated EEG with known responses to drawn scenes in known noise, so that the best possible decoder is known too.

    dataset = simulate_eeg("static", n_subjects=2, snr_db=-20)
    values = dataset.subject("sim01").responses.batch(range(100))           # (100, 64, 250)
    ideal_observer(dataset.truth["sim01"], values, "shape").argmax(1)       # the best possible guesses

A trial is sqrt(snr) * evoked + noise, where both terms have unit power over channels and window. The evoked response is
a sum over the factors of the scene: shape, colour and size of the main object, and texture of the background. Each
level of a factor has a topography and a time course. The noise is Gaussian with covariance
kron(channel_covariance, time_covariance).
"""

import numpy as np

from ..data.dataset import Subject
from ..data.responses import Responses, TrialTable
from ..data.spaces import SensorSpace
from ..data.splits import split_from_ids
from ..data.stimuli import StimulusSet
from ..errors import AxisError, BrainDataError
from ..layouts.eeg3d import EEG3D_CHANNELS
from .scenes import FACTORS, SceneFeatures, scene_stimuli
from .truth import EEGTruth, SimulatedDataset

__all__ = ["ideal_observer", "simulate_eeg"]

_ONSET = 0.2  # seconds from the start of a window to the stimulus
_WINDOWS = {"static": (250, 250.0), "dynamic": (600, 100.0)}  # samples, hertz
_SOURCES = 20  # sources of the noise that channels share
_SHARED_NOISE = 0.36  # their share of the noise variance
_COMMON, _COURSES, _PERSON, _ORDER, _NOISE = range(5)  # streams of random numbers
_OWN_STREAM = {"static": (), "dynamic": (1,)}  # both kinds of one seed are one brain in different noise
_SIZES = (1 / 9, 4 / 9, 4 / 9)  # frequencies of small, medium and large main objects; other factors are uniform


def simulate_eeg(
    kind: str = "static",
    n_subjects: int = 2,
    n_chans: int = 64,
    snr_db: float = -20.0,
    seed: int = 0,
    n_train: int = 160,
    n_test: int = 40,
    repeats: int = 2,
    test_repeats: int = 4,
) -> SimulatedDataset:
    """Simulate EEG of subjects "sim01", "sim02", ... who all look at the same drawn scenes.

    There are 8 shapes and 8 colours, so guesses are right in 12.5 % of trials. The topographies of two subjects have a
    correlation of 0.64, and their latencies are equal. A trial depends on the seed, the subject, its position and its
    image only. For "static" with 64 channels, the ideal observer finds this share of shapes:

    | snr_db | shapes |
    |---|---|
    | -20 | about 75 % |
    | -30 | about 29 % |

    Args:
        kind: "static" has 250 samples at 250 Hz and one response soon after the onset. "dynamic" has 600 samples at
            100 Hz, and a sustained response whose amplitude follows the angle of an object that turns once in 6 s.
        n_subjects: Number of subjects.
        n_chans: Number of channels. Up to 64 channels have the names of EEG-3D's first ones.
        snr_db: Signal-to-noise ratio of a single trial in decibels. The mean of k trials has 10 log10 k more. -inf
            gives noise only.
        seed: Seed of scenes, templates, order and noise, 0 or more.
        n_train: Number of train images of the split "scenes", 5 % of which are for validation.
        n_test: Number of test images of that split.
        repeats: Number of presentations of each train image. Images are shown in random order.
        test_repeats: Number of presentations of each test image.

    Returns:
        A data set with fp32 values, whose `truth` has an `EEGTruth` for each subject.

    Raises:
        BrainDataError: An argument is out of its range.
    """
    if kind not in _WINDOWS:
        raise BrainDataError(f"expected kind {' or '.join(map(repr, _WINDOWS))}, got {kind!r}")
    counts = {"n_subjects": n_subjects, "n_chans": n_chans, "n_train": n_train, "n_test": n_test}
    for name, count in {**counts, "repeats": repeats, "test_repeats": test_repeats}.items():
        if count < 1:
            raise BrainDataError(f"expected at least 1 of {name}, got {count}")
    if seed < 0:
        raise BrainDataError(f"expected a seed of at least 0, got {seed}")
    stimuli = scene_stimuli(seed, n_train + n_test)
    shown = np.repeat(stimuli.ids, [repeats] * n_train + [test_repeats] * n_test)
    subjects, truth = [], {}
    for number in range(1, n_subjects + 1):
        name = f"sim{number:02d}"
        truth[name], mixing = _plant(kind, n_chans, 10 ** (snr_db / 10), seed, number)
        order = np.random.default_rng((seed, _ORDER, number)).permutation(len(shown))
        subjects.append(_record(name, kind, truth[name], mixing, seed, number, stimuli, shown[order]))
    split = split_from_ids("scenes", stimuli.ids[:n_train], stimuli.ids[n_train:], seed=seed)
    return SimulatedDataset(subjects, stimuli, {split.name: split}, truth, SceneFeatures())


def ideal_observer(truth: EEGTruth, values: np.ndarray, label: str, repeats: int = 1) -> np.ndarray:
    """Posterior probabilities of one factor under the true model. On average, no decoder is right more often.

    Let M be the template of a combination of levels, and S the covariance of the noise. Up to a constant, the log
    likelihood of the mean x of k trials is

        k (sqrt(snr) x' S^-1 M - snr / 2 M' S^-1 M)

    The posterior sums over the other factors with their priors.

    Args:
        truth: True model of the subject.
        values: Single trials, or means of `repeats` trials, (n, channels, times).
        label: Name of the factor, one of `FACTORS`.
        repeats: Number of trials in the average of each sample.

    Returns:
        Probabilities of the levels, fp64 (n, levels). Each row sums to 1.

    Raises:
        BrainDataError: The factor is unknown.
        AxisError: The values have other channels or times than the subject.
    """
    if label not in truth.templates:
        raise BrainDataError(f"expected a factor of {', '.join(truth.templates)}, got {label!r}")
    templates = np.concatenate(list(truth.templates.values())).astype(np.float64)
    if values.ndim != 3 or values.shape[1:] != templates.shape[1:]:
        raise AxisError(f"expected values (n, {templates.shape[1]}, {templates.shape[2]}), got {values.shape}")
    filters = np.linalg.solve(truth.channel_covariance, templates)
    filters = np.linalg.solve(truth.time_covariance, filters.swapaxes(1, 2)).swapaxes(1, 2).reshape(len(templates), -1)
    members, prior = _combinations()
    matched = np.asarray(values, np.float64).reshape(len(values), -1) @ filters.T
    power = np.einsum("ci,ij,cj->c", members, filters @ templates.reshape(len(templates), -1).T, members)
    logits = np.log(prior) + repeats * (np.sqrt(truth.snr) * matched @ members.T - truth.snr / 2 * power)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    first = sum(len(FACTORS[name]) for name in list(FACTORS)[: list(FACTORS).index(label)])
    posterior = weights @ members[:, first : first + len(FACTORS[label])]
    return posterior / posterior.sum(1, keepdims=True)


def _plant(kind: str, n_chans: int, snr: float, seed: int, number: int) -> tuple[EEGTruth, np.ndarray]:
    """The true model of one subject, and the matrix that mixes sources of noise into channels, (channels, sources)."""
    num_times, _ = _WINDOWS[kind]
    keys = (seed, _COMMON), (seed, _COURSES), (seed, _PERSON, number)
    common, courses, own = (np.random.default_rng(key) for key in keys)
    templates = {}
    for name, levels in FACTORS.items():
        shape = (len(levels), n_chans, 1)
        topography = 0.8 * common.normal(size=shape) + 0.6 * own.normal(size=shape)
        templates[name] = topography * _time_courses(kind, len(levels), courses)[:, None]
    flat = np.concatenate([values.reshape(len(values), -1) for values in templates.values()])
    members, prior = _combinations()
    power = prior @ np.einsum("ci,ij,cj->c", members, flat @ flat.T, members) / flat.shape[1]
    templates = {name: (values / np.sqrt(power)).astype(np.float32) for name, values in templates.items()}
    mixing = own.normal(size=(n_chans, _SOURCES))
    mixing *= np.sqrt(_SHARED_NOISE) / np.linalg.norm(mixing, axis=1, keepdims=True)
    channel_covariance = mixing @ mixing.T + (1 - _SHARED_NOISE) * np.eye(n_chans)
    steps = np.arange(num_times)
    time_covariance = np.fft.irfft(_pink_power(num_times))[np.abs(steps[:, None] - steps)]
    return EEGTruth(templates, snr, channel_covariance, time_covariance), mixing


def _record(
    name: str,
    kind: str,
    truth: EEGTruth,
    mixing: np.ndarray,
    seed: int,
    number: int,
    stimuli: StimulusSet,
    shown: np.ndarray,
) -> Subject:
    num_times, sfreq = _WINDOWS[kind]
    n_chans = len(mixing)
    values = np.empty((len(shown), n_chans, num_times), np.float32)
    for trial, image_id in enumerate(shown):
        rng = np.random.default_rng((seed, _NOISE, number, trial, *_OWN_STREAM[kind]))
        noise = _noise(mixing, num_times, rng)
        values[trial] = np.sqrt(truth.snr) * truth.evoked(stimuli, [image_id])[0] + noise
    names = EEG3D_CHANNELS[:n_chans] if n_chans <= 64 else [f"EEG{channel:03d}" for channel in range(1, n_chans + 1)]
    space = SensorSpace(tuple(names), sfreq, np.arange(num_times) / sfreq - _ONSET, unit="z")
    responses = Responses(values, TrialTable.of(shown, session=1, run=1), unit="standard deviations of the noise")
    return Subject(name, responses, space, provenance={"layout": "simulated", "kind": kind, "seed": seed})


def _time_courses(kind: str, levels: int, rng: np.random.Generator) -> np.ndarray:
    """Time courses (levels, times): a Gaussian bump after the onset, and for "dynamic" a response to the angle."""
    num_times, sfreq = _WINDOWS[kind]
    times = np.arange(num_times) / sfreq - _ONSET
    latency, width = rng.uniform(0.1, 0.3, (levels, 1)), rng.uniform(0.03, 0.08, (levels, 1))
    courses = np.exp(-0.5 * ((times - latency) / width) ** 2)
    if kind == "dynamic":
        angle = 2 * np.pi * times * sfreq / num_times
        preferred = rng.uniform(0, 2 * np.pi, (levels, 1))
        courses += -np.expm1(-times.clip(0) / 0.1) * (1 + np.cos(angle - preferred)) / 2
    return courses


def _noise(mixing: np.ndarray, num_times: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance, (channels, times): pink noise of each channel, and shared sources."""
    white = rng.normal(size=(len(mixing) + mixing.shape[1], 2 * num_times))
    pink = np.fft.irfft(np.fft.rfft(white) * np.sqrt(_pink_power(num_times)))[:, :num_times]
    return np.sqrt(1 - _SHARED_NOISE) * pink[: len(mixing)] + mixing @ pink[len(mixing) :]


def _pink_power(num_times: int) -> np.ndarray:
    """Power 1/f at the frequencies of a period of 2 num_times samples, (num_times + 1,).

    0 Hz has the power of the lowest frequency. The window is half the period, so that its two ends are not neighbours.
    The powers are scaled to unit variance.
    """
    power = 1 / np.maximum(np.arange(num_times + 1), 1.0)
    return power / np.fft.irfft(power)[0]


def _combinations() -> tuple[np.ndarray, np.ndarray]:
    """All combinations of levels, fp64 (combinations, levels of all factors) of 0 and 1, and their priors."""
    counts = [len(levels) for levels in FACTORS.values()]
    chosen = list(np.ndindex(*counts))
    members = np.stack(
        [np.concatenate([np.eye(n)[i] for n, i in zip(counts, levels, strict=True)]) for levels in chosen]
    )
    uniform = 3 / np.prod(counts)
    return members, np.array([_SIZES[levels[list(FACTORS).index("size")]] * uniform for levels in chosen])
