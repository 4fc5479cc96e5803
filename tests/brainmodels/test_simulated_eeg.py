"""Simulated EEG against its own definition, and the ideal observer against brute force."""

import functools
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.simulated.eeg import EEGTruth, ideal_observer, simulate_eeg
from brainmodels.simulated.scenes import FACTORS


def accuracy(dataset, label, repeats=1, subject="sim01"):
    """Share of trials, or of means over groups of trials of an image, that the ideal observer gets right."""
    responses = dataset.subject(subject).responses
    groups = [
        rows[i : i + repeats] for rows in responses.rows_of(dataset.stimuli.ids) for i in range(0, len(rows), repeats)
    ]
    values = np.stack([responses.batch(rows).mean(0) for rows in groups])
    names = dataset.stimuli.label(label, responses.trials.image_id[[rows[0] for rows in groups]])
    truth = np.array([FACTORS[label].index(name) for name in names])
    posterior = ideal_observer(dataset.truth[subject], values, label, repeats)
    return (posterior.argmax(1) == truth).mean(), posterior.max(1).mean()


_KINDS = ("static", "dynamic")


@functools.cache
def simulated(snr, kind="static", n_train=400, repeats=1, n_chans=16, seed=0):
    snr_db = 10 * np.log10(snr) if snr else -np.inf
    return simulate_eeg(
        kind, 1, n_chans, snr_db, seed, n_train=n_train, n_test=8, repeats=repeats, test_repeats=repeats
    )


def test_noise_has_the_covariance_that_is_told():
    dataset = simulated(0.0, n_train=600, n_chans=6)
    truth, values = dataset.truth["sim01"], dataset.subject("sim01").responses.values.astype(np.float64)
    channels = np.einsum("nct,ndt->cd", values, values) / (values.shape[0] * values.shape[2])
    times = np.einsum("ncs,nct->st", values, values) / (values.shape[0] * values.shape[1])
    np.testing.assert_allclose(channels, truth.channel_covariance, atol=0.04)
    np.testing.assert_allclose(times, truth.time_covariance, atol=0.1)
    np.testing.assert_allclose(np.diag(truth.channel_covariance), 1)
    np.testing.assert_allclose(np.diag(truth.time_covariance), 1)
    assert truth.time_covariance[0, 1] > 0.7 and abs(truth.time_covariance[0, -1]) < 0.3
    white = np.linalg.solve(np.linalg.cholesky(truth.time_covariance), values.reshape(-1, 250).T)
    assert abs(white.var() - 1) < 0.01
    lags = np.array([(white[:-lag] * white[lag:]).mean() for lag in (1, 2, 10, 100)])
    assert np.abs(lags).max() < 0.01


def test_static_and_dynamic_noise_are_independent():
    """One stream of random numbers for both gave r = 0.60 in the first channel."""
    static, dynamic = (simulated(0.0, kind, 200, n_chans=4).subject("sim01").responses.values for kind in _KINDS)
    for channel in range(4):
        assert abs(np.corrcoef(static[:, channel].ravel(), dynamic[:, channel, :250].ravel())[0, 1]) < 0.05


def test_noise_is_one_over_f():
    values = simulated(0.0, n_train=300, n_chans=4).subject("sim01").responses.values
    power = (np.abs(np.fft.rfft(values * np.hanning(250))) ** 2).mean((0, 1))[3:60]
    slope = np.polyfit(np.log(np.arange(3, 60)), np.log(power), 1)[0]
    assert abs(slope + 1) < 0.1


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_signal_has_unit_power_and_falls_on_the_noise(kind):
    dataset = simulated(4.0, kind, n_train=300, n_chans=5)
    truth, responses = dataset.truth["sim01"], dataset.subject("sim01").responses
    signal = truth.evoked(dataset.stimuli, responses.trials.image_id)
    assert abs((signal**2).mean() - 1) < 0.06
    noise = responses.values - 2 * signal  # sqrt of 4
    assert abs(noise.var() - 1) < 0.03
    assert abs((noise * signal).mean()) < 0.03


def test_static_responses_follow_the_onset():
    dataset = simulated(1.0, n_chans=5)
    times = dataset.subject("sim01").space.times
    for templates in dataset.truth["sim01"].templates.values():
        power = (templates**2).sum(1)
        assert (times[power.argmax(1)] >= 0.09).all() and (times[power.argmax(1)] <= 0.31).all()
        assert (power[:, times > 0.7].sum(1) < 1e-3 * power.sum(1)).all()


def test_dynamic_responses_follow_the_turn():
    """Long after the onset, what is evoked is a constant and one cosine per turn of 6 s."""
    dataset = simulated(1.0, "dynamic", n_train=8, n_chans=3)
    times = dataset.subject("sim01").space.times
    late = times > 1.2
    basis = np.column_stack(
        [np.ones(late.sum()), np.cos(2 * np.pi * times[late] / 6), np.sin(2 * np.pi * times[late] / 6)]
    )
    for templates in dataset.truth["sim01"].templates.values():
        waves = templates[..., late].reshape(-1, late.sum()).T.astype(np.float64)
        fitted = basis @ np.linalg.lstsq(basis, waves, rcond=None)[0]
        assert ((waves - fitted) ** 2).sum() < 1e-4 * (waves**2).sum()
        assert (waves.var(0) > 0).all()


def test_ideal_observer_is_bayes_rule():
    """Against densities of the whole Gaussian, summed over every combination of levels."""
    rng = np.random.default_rng(0)
    channels, times, snr, repeats = 2, 3, 0.8, 2
    templates = {
        name: rng.normal(size=(len(levels), channels, times)).astype(np.float32) for name, levels in FACTORS.items()
    }
    roots = rng.normal(size=(channels, channels)), rng.normal(size=(times, times))
    covariances = [root @ root.T + np.eye(len(root)) for root in roots]
    truth = EEGTruth(templates, snr, *covariances)
    values = rng.normal(size=(4, channels, times))
    precision = np.linalg.inv(np.kron(*covariances) / repeats)
    densities = np.zeros((4, *(len(levels) for levels in FACTORS.values())))
    for combination in np.ndindex(*densities.shape[1:]):
        mean = sum(templates[name][level] for name, level in zip(FACTORS, combination, strict=True)).astype(np.float64)
        residual = (values - np.sqrt(snr) * mean).reshape(4, -1)
        prior = (1 / 9, 4 / 9, 4 / 9)[combination[list(FACTORS).index("size")]]
        densities[(slice(None), *combination)] = prior * np.exp(
            -0.5 * np.einsum("ni,ij,nj->n", residual, precision, residual)
        )
    for axis, name in enumerate(FACTORS, 1):
        expected = densities.sum(tuple(other for other in range(1, 5) if other != axis))
        expected /= expected.sum(1, keepdims=True)
        np.testing.assert_allclose(ideal_observer(truth, values, name, repeats), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("label", ["shape", pytest.param("color", marks=pytest.mark.slow)])
def test_accuracy_rises_from_chance(label):
    """8 levels: 12.5 % without a signal. Bounds are four standard errors of 408 trials."""
    found = [accuracy(simulated(snr), label)[0] for snr in (0.0, 5e-3, 2e-2, 2e-1)]
    assert abs(found[0] - 0.125) < 0.066
    assert found[0] + 0.1 < found[1] < found[2] - 0.1 and found[2] < found[3]
    assert found[3] > 0.95


def test_the_observer_knows_how_often_it_is_right():
    """Its mean confidence is its accuracy, as of any observer who knows the model."""
    for snr in (5e-3, 2e-2):
        right, confidence = accuracy(simulated(snr), "shape")
        assert abs(right - confidence) < 0.07


def test_repeats_count_as_signal_to_noise():
    """The mean of 4 trials is worth 10 log10 4 dB, in accuracy and in the power of what remains of the noise."""
    averaged = accuracy(simulated(5e-3, repeats=4), "shape", repeats=4)[0]
    single = accuracy(simulated(2e-2), "shape")[0]
    alone = accuracy(simulated(5e-3), "shape")[0]
    assert abs(averaged - single) < 0.09 and averaged > alone + 0.15
    responses = simulated(0.0, n_train=100, repeats=4).subject("sim01").responses
    means = np.stack(
        [responses.batch(rows).mean(0) for rows in responses.rows_of(np.unique(responses.trials.image_id))]
    )
    gain = 10 * np.log10(responses.values.var() / means.var())
    assert abs(gain - 10 * np.log10(4)) < 0.2


def test_a_decoder_stays_below_the_ideal_observer():
    """Linear discriminant analysis of projections on the true templates, fitted on twice the trials that are tested."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    dataset = simulate_eeg("static", 1, 16, -14.0, seed=2, n_train=500, n_test=250, repeats=1, test_repeats=1)
    truth = dataset.truth["sim01"]
    scores = {}
    templates = np.concatenate(list(truth.templates.values())).reshape(25, -1)
    for part in ("train", "test"):
        pairs = dataset.pairs("sim01", "scenes", part)
        values = pairs.array()
        labels = dataset.stimuli.label("shape", pairs.image_ids)
        scores[part] = values.reshape(len(values), -1) @ templates.T, labels, values
    decoder = LinearDiscriminantAnalysis().fit(*scores["train"][:2])
    decoded = decoder.score(*scores["test"][:2])
    best = np.array(FACTORS["shape"])[ideal_observer(truth, scores["test"][2], "shape").argmax(1)]
    ideal = (best == scores["test"][1]).mean()
    assert 0.2 < decoded < ideal


def test_subjects_differ_and_share_images():
    dataset = simulate_eeg(n_subjects=2, n_chans=63, n_train=8, n_test=4)
    first, second = (dataset.subject(name) for name in ("sim01", "sim02"))
    assert first.responses.values.shape == (32, 63, 250)
    assert set(first.responses.trials.image_id) == set(second.responses.trials.image_id)
    assert list(first.responses.trials.image_id) != list(second.responses.trials.image_id)
    topographies = [
        np.concatenate([t.reshape(-1) for t in dataset.truth[name].templates.values()]) for name in dataset.subjects
    ]
    assert abs(np.corrcoef(*topographies)[0, 1] - 0.64) < 0.06
    assert len(dataset.split("scenes").test) == 4
    assert dataset.with_splits().truth["sim01"] is dataset.truth["sim01"]


def test_a_subject_does_not_depend_on_the_others():
    one, three = (simulate_eeg(n_subjects=count, n_chans=4, n_train=6, n_test=2, seed=9) for count in (1, 3))
    np.testing.assert_array_equal(one.subject("sim01").responses.values, three.subject("sim01").responses.values)
    other = simulate_eeg(n_subjects=1, n_chans=4, n_train=6, n_test=2, seed=10)
    assert not np.array_equal(one.subject("sim01").responses.values, other.subject("sim01").responses.values)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_in_another_process():
    program = (
        "import hashlib; from brainmodels.simulated.eeg import simulate_eeg; "
        "r = simulate_eeg('dynamic', 1, 5, -10, 4, 6, 2).subject('sim01').responses; "
        "print(hashlib.sha256(r.values.tobytes() + '|'.join(r.trials.image_id).encode()).hexdigest())"
    )
    found = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout}
    responses = simulate_eeg("dynamic", 1, 5, -10, 4, 6, 2).subject("sim01").responses
    here = hashlib.sha256(responses.values.tobytes() + "|".join(responses.trials.image_id).encode()).hexdigest()
    assert found == {here + "\n"}


def test_bad_arguments():
    with pytest.raises(BrainDataError, match="expected kind 'static' or 'dynamic', got 'video'"):
        simulate_eeg("video")
    with pytest.raises(BrainDataError, match="expected at least 1 of n_chans, got 0"):
        simulate_eeg(n_chans=0)
    with pytest.raises(BrainDataError, match="expected a seed of at least 0, got -1"):
        simulate_eeg(seed=-1)
    dataset = simulate_eeg(n_subjects=1, n_chans=3, n_train=2, n_test=1)
    with pytest.raises(AxisError, match=r"expected values \(n, 3, 250\), got \(1, 3, 200\)"):
        ideal_observer(dataset.truth["sim01"], np.zeros((1, 3, 200)), "shape")
    with pytest.raises(BrainDataError, match="got 'place'"):
        ideal_observer(dataset.truth["sim01"], np.zeros((1, 3, 250)), "place")
