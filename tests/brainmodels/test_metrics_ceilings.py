"""Noise ceilings recover planted reliability; a ceiling on variance is not one on correlations."""

import numpy as np
import pytest

from brainmodels.data import reliability
from brainmodels.data.reliability import ncsnr, noise_ceiling
from brainmodels.errors import BrainDataError
from brainmodels.metrics import ceilings, encoding
from brainmodels.metrics.ceilings import explainable_variance, max_r, spearman_brown, split_half


def simulated(snr, images=600, repeats=3, seed=0):
    """Unit-variance trials of voxels with planted ncsnr; the signal, the trials in random order, the rows."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(images, len(snr))) * snr / np.sqrt(1 + snr**2)
    counts = np.full(images, repeats) if np.isscalar(repeats) else np.asarray(repeats)
    shown = np.repeat(np.arange(images), counts)
    shown = shown[rng.permutation(len(shown))]
    values = signal[shown] + rng.normal(size=(len(shown), len(snr))) / np.sqrt(1 + snr**2)
    return signal, values.astype(np.float32), [np.flatnonzero(shown == i) for i in range(images)]


@pytest.fixture(scope="module")
def planted():
    snr = np.random.default_rng(1).uniform(0.2, 1.0, 150)
    return (snr, *simulated(snr))


def test_ncsnr_in_plain_loops(monkeypatch):
    _, values, rows = simulated(np.array([0.4, 0.9, 0.6]), 15, repeats=[1, 2, 3] * 5)
    monkeypatch.setattr(reliability, "_BATCH_NUMBERS", 60)
    expected = []
    for voxel in values.astype(float).T:
        noise = np.mean([voxel[group].var(ddof=1) for group in rows if len(group) > 1])
        expected.append(np.sqrt(max(0, voxel.var(ddof=1) - noise) / noise))
    np.testing.assert_allclose(ncsnr(values, rows), expected, rtol=1e-10)


def test_ncsnr_recovers_what_was_planted(planted):
    snr, _, values, rows = planted
    found = ncsnr(values, rows)
    assert np.corrcoef(found, snr)[0, 1] > 0.97  # measured .987
    assert 0.95 < np.median(found / snr) < 1.05


def test_voxels_without_noise_or_variance():
    _, values, rows = simulated(np.array([0.5, 0.5, 0.5]), 20)
    values[:, 0] = 0.1
    values[0, 1] = np.nan
    for group in rows:
        values[group, 2] = values[group[0], 2]
    found = ncsnr(values, rows)
    assert np.isnan(found[:2]).all() and np.isinf(found[2])
    assert noise_ceiling(found, 3)[2] == 1 and np.isnan(noise_ceiling(found, 3)[:2]).all()
    assert ceilings.ceiling_mask(noise_ceiling(found, 3)).tolist() == [False, False, True]
    with pytest.raises(BrainDataError, match="2 or more trials"):
        ncsnr(values, [group[:1] for group in rows])


def test_ceiling_of_k_repeats():
    assert noise_ceiling(np.array([0.5]), 3)[0] == pytest.approx(0.25 / (0.25 + 1 / 3))
    unequal = noise_ceiling(np.array([0.5]), [1] * 4 + [2] * 3 + [3] * 2)[0]
    assert unequal == pytest.approx(0.25 / (0.25 + (4 + 3 / 2 + 2 / 3) / 9))
    for wrong in (0, [], [1.5]):
        with pytest.raises(BrainDataError, match="1 or more"):
            noise_ceiling(np.array([0.5]), wrong)


@pytest.mark.parametrize("repeats", [1, 3, [1, 2, 3] * 200])
def test_the_true_signal_reaches_the_ceiling(planted, repeats):
    """sum r^2 / sum NC is 1 for a perfect model; with the ceiling squared, or its root, it is not."""
    snr = planted[0]
    signal, values, rows = simulated(snr, 600, repeats, seed=2)
    averaged = np.stack([values[group].mean(0) for group in rows])
    r = encoding.voxel_r(averaged, signal)
    ceiling = noise_ceiling(snr, [len(group) for group in rows])
    mask = ceilings.ceiling_mask(ceiling)
    assert 0.95 < encoding.nr2(r, ceiling, mask).total < 1.05
    assert not 0.9 < encoding.nr2(r, ceiling**2, mask).total < 1.1
    assert not 0.9 < encoding.nr2(r, np.sqrt(ceiling), mask).total < 1.1
    assert np.median(r[mask] / max_r(ceiling)[mask]) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_split_half_recovers_reliability(planted, repeats):
    """The reliability of a mean of k repeats is the noise ceiling of k repeats."""
    snr = planted[0]
    _, values, rows = simulated(snr, 600, repeats, seed=3)
    rho, half = split_half(values, rows, splits=4)
    assert half == repeats // 2
    reliability = spearman_brown(rho, repeats / half)
    truth = noise_ceiling(snr, repeats)
    assert abs(np.mean(reliability - truth)) < 0.01
    assert np.corrcoef(reliability, truth)[0, 1] > 0.95
    assert abs(np.mean(rho - truth)) > 0.05  # uncorrected halves are too unreliable


def test_spearman_brown_by_hand():
    assert spearman_brown(0.5) == pytest.approx(2 * 0.5 / 1.5)
    assert spearman_brown(spearman_brown(0.3, 2), 1.5) == pytest.approx(spearman_brown(0.3, 3))


def test_split_half_of_exact_repeats_is_one():
    values = np.repeat(np.random.default_rng(4).normal(size=(9, 2)), 2, axis=0)
    rho, _ = split_half(values, [np.array([2 * i, 2 * i + 1]) for i in range(9)])
    np.testing.assert_allclose(rho, 1)
    with pytest.raises(BrainDataError, match="two or more"):
        split_half(values, [np.array([0])])


def test_explainable_variance(planted):
    snr = planted[0]
    _, values, rows = simulated(snr, 600, 3, seed=5)
    small = explainable_variance(values, rows, corrected=False)[0]
    data = np.stack([values[[group[k] for group in rows], 0].astype(float) for k in range(3)])  # (repeats, images)
    by_hand = data.mean(0).var() / np.mean([row.var() for row in data])
    assert small == pytest.approx(by_hand)
    corrected = explainable_variance(values, rows)
    assert corrected[0] == pytest.approx(by_hand - (1 - by_hand) / 2)
    truth = snr**2 / (1 + snr**2)  # share of a single trial
    assert abs(np.mean(corrected - truth)) < 0.01
    with pytest.raises(BrainDataError, match="equally many"):
        explainable_variance(values, [rows[0][:2], *rows[1:]])


def test_mask_in_words():
    words = ceilings.mask_in_words(np.array([True, False, True]), 1, 0.1)
    assert words == "NC >= 0.1: 2 of 3 voxels, 1 undefined"
