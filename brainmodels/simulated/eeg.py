"""Simulated EEG with known responses to drawn scenes in known noise, so that the best possible decoder is known too.

    dataset = simulate_eeg("static", n_subjects=2, snr_db=-20)
    values = dataset.subject("sim01").responses.batch(range(100))           # (100, 64, 250)
    ideal_observer(dataset.truth["sim01"], values, "shape").argmax(1)       # the best possible guesses

A trial is sqrt(snr) * evoked + noise, where both terms have unit power over channels and window. The evoked response is
a sum over the factors of the scene: shape, colour and size of the main object, and texture of the background. Each
level of a factor has a topography and a time course. The noise is Gaussian with covariance
kron(channel_covariance, time_covariance).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.dataset import Subject
from ..data.responses import Responses, TrialTable
from ..data.spaces import SensorSpace
from ..data.splits import split_from_ids
from ..data.stimuli import StimulusSet
from ..errors import AxisError, BrainDataError
from ..layouts.eeg3d import EEG3D_CHANNELS
from .scenes import FACTORS, SceneFeatures, scene_stimuli
from .truth import EEGTruth, SimulatedDataset, scene_members
from .waves import NOISE, ONSET, ORDER, OWN_STREAM, WINDOWS, noise, plant

__all__ = ["EEG_STUDY", "ideal_observer", "simulate_eeg"]

EEG_STUDY: dict[str, Any] = {
    "n_chans": 64,
    "snr_db": -8.0,
    "n_train": 300,
    "n_test": 60,
    "repeats": 2,
    "test_repeats": 8,
}
"""Arguments of `simulate_eeg` for a study of a minute, `--data simulated:eeg`."""


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
    if kind not in WINDOWS:
        raise BrainDataError(f"expected kind {' or '.join(map(repr, WINDOWS))}, got {kind!r}")
    counts = {"n_subjects": n_subjects, "n_chans": n_chans, "n_train": n_train, "n_test": n_test}
    for name, count in {**counts, "repeats": repeats, "test_repeats": test_repeats}.items():
        if count < 1:
            raise BrainDataError(f"expected at least 1 of {name}, got {count}")
    if seed < 0:
        raise BrainDataError(f"expected a seed of at least 0, got {seed}")
    stimuli = scene_stimuli(seed, n_train + n_test)
    shown = np.repeat(stimuli.ids, [repeats] * n_train + [test_repeats] * n_test)
    subjects, truth, gains = [], {}, dict.fromkeys(FACTORS, np.ones(n_chans))
    for number in range(1, n_subjects + 1):
        name = f"sim{number:02d}"
        truth[name], mixing = plant(kind, gains, FACTORS, *scene_members(), 10 ** (snr_db / 10), seed, number)
        order = np.random.default_rng((seed, ORDER, number)).permutation(len(shown))
        subjects.append(_record(name, kind, truth[name], mixing, seed, number, stimuli, shown[order]))
    split = split_from_ids("scenes", stimuli.ids[:n_train], stimuli.ids[n_train:], seed=seed)
    return SimulatedDataset(subjects, stimuli, {split.name: split}, truth, SceneFeatures())


def ideal_observer(
    truth: EEGTruth | Mapping[str, EEGTruth],
    values: np.ndarray | Mapping[str, np.ndarray],
    label: str,
    repeats: int | np.ndarray = 1,
) -> np.ndarray:
    """Posterior probabilities of one factor under the true model. On average, no decoder is right more often.

    Let M be the template of a combination of levels, and S the covariance of the noise. Up to a constant, the log
    likelihood of the mean x of k trials is

        k (sqrt(snr) x' S^-1 M - snr / 2 M' S^-1 M)

    The posterior sums over the other factors with their priors. Log likelihoods of several streams add up, because
    their noise is independent.

    Args:
        truth: True model of the subject. For several streams, a model of each by its name.
        values: Single trials, or means of `repeats` trials, (n, channels, times). For several streams, those of each by
            its name.
        label: Name of the factor, one of `truth.levels`.
        repeats: Number of trials in the average of each sample, one number or (n,).

    Returns:
        Probabilities of the levels, fp64 (n, levels). Each row sums to 1.

    Raises:
        BrainDataError: The factor or a stream is unknown.
        AxisError: The values have other channels or times than the subject, or streams differ in the number of samples.
    """
    truths = {"": truth} if isinstance(truth, EEGTruth) else truth
    arrays = values if isinstance(values, Mapping) else {"": values}
    if set(truths) != set(arrays) or not truths:
        raise BrainDataError(f"expected values of the streams {sorted(truths)}, got those of {sorted(arrays)}")
    first = next(iter(truths.values()))
    if label not in first.levels:
        raise BrainDataError(f"expected a factor of {', '.join(first.levels)}, got {label!r}")
    if len({len(array) for array in arrays.values()}) > 1:
        counts = ", ".join(f"{len(array)} of {name}" for name, array in arrays.items())
        raise AxisError(f"expected as many samples of every stream, got {counts}")
    logits, weight = np.log(first.prior), repeats if np.ndim(repeats) == 0 else np.asarray(repeats)[:, None]
    for name, model in truths.items():
        logits = logits + weight * model.evidence(arrays[name])
    weights = np.exp(logits - logits.max(1, keepdims=True))
    start = sum(len(first.levels[name]) for name in list(first.levels)[: list(first.levels).index(label)])
    posterior = weights @ first.members[:, start : start + len(first.levels[label])]
    return posterior / posterior.sum(1, keepdims=True)


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
    num_times, sfreq = WINDOWS[kind]
    n_chans = len(mixing)
    values = np.empty((len(shown), n_chans, num_times), np.float32)
    for trial, image_id in enumerate(shown):
        rng = np.random.default_rng((seed, NOISE, number, trial, *OWN_STREAM[kind]))
        values[trial] = np.sqrt(truth.snr) * truth.evoked(stimuli, [image_id])[0] + noise(mixing, num_times, rng)
    names = EEG3D_CHANNELS[:n_chans] if n_chans <= 64 else [f"EEG{channel:03d}" for channel in range(1, n_chans + 1)]
    space = SensorSpace(tuple(names), sfreq, np.arange(num_times) / sfreq - ONSET, unit="z")
    responses = Responses(values, TrialTable.of(shown, session=1, run=1), unit="standard deviations of the noise")
    return Subject(name, responses, space, provenance={"layout": "simulated", "kind": kind, "seed": seed})
