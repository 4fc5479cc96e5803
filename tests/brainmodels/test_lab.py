"""The untidy simulated subjects of the preset "lab": each planted property by its own statistic."""

import dataclasses

import numpy as np
import pytest

from brainmodels.data.reliability import ncsnr, noise_ceiling
from brainmodels.errors import BrainDataError
from brainmodels.simulated import PRESETS, LabPreset, simulate
from brainmodels.simulated.lab import lab_noise, presentations, run_numbers
from brainmodels.simulated.tuning import ROIS


@pytest.fixture(scope="module")
def lab():
    return simulate("lab")


@pytest.fixture(scope="module")
def noise(lab):
    """Noise alone (trials, V) of a good session with many trials, its runs and its space."""
    space, preset = lab.subject("sim01").space, PRESETS["lab"]
    runs = np.repeat(np.arange(60), 50)
    return lab_noise(space, runs, preset, False, np.random.default_rng(3)), runs, space


def test_noise_of_neighbours_correlates_and_that_of_distant_voxels_does_not(noise):
    values, _, space = noise
    values = (values - values.mean(0)) / values.std(0)
    places = {tuple(place): number for number, place in enumerate(space.index.tolist())}
    for axis in range(3):
        steps = {step: [] for step in (1, 2, 4)}
        for place, number in places.items():
            for step, pairs in steps.items():
                other = tuple(np.add(place, step * np.eye(3, dtype=int)[axis]))
                if other in places:
                    pairs.append((number, places[other]))
        r = {step: np.mean([(values[:, a] * values[:, b]).mean() for a, b in pairs]) for step, pairs in steps.items()}
        assert r[1] == pytest.approx(0.4, abs=0.01) and r[2] < 0.07 and abs(r[4]) < 0.01, (axis, r)


def test_noise_is_serial_within_runs_only_and_has_unit_variance(noise):
    values, runs, _ = noise
    assert values.var() == pytest.approx(1, abs=0.02)
    same = runs[1:] == runs[:-1]
    lag = (values[1:] * values[:-1]).mean(1)
    assert lag[same].mean() == pytest.approx(0.3, abs=0.02) and abs(lag[~same].mean()) < 0.03
    second = (values[2:] * values[:-2]).mean(1)[runs[2:] == runs[:-2]]
    assert second.mean() == pytest.approx(0.09, abs=0.02)


def test_seventy_percent_have_no_signal_in_every_region_and_at_the_border(lab):
    for name, subject in lab.subjects.items():
        truth, space = lab.truth[name], subject.space
        assert np.mean(~truth.reliable) == pytest.approx(0.7, abs=0.01)
        assert (truth.ncsnr[~truth.reliable] == 0).all() and (truth.ncsnr[truth.reliable] > 0.15).all()
        inside = np.sum(list(space.rois.values()), axis=0)
        assert set(space.rois) == set(ROIS) and inside.max() == 1
        assert np.mean(inside == 0) == pytest.approx(0.15, abs=0.01) and not truth.reliable[inside == 0].any()
        for region, mask in space.rois.items():
            assert 0.25 < truth.reliable[mask].mean() < 0.5, region
        assert space.ncsnr is None and space.affine is not None


def test_reliable_voxels_lie_in_patches(lab):
    subject, truth = lab.subject("sim01"), lab.truth["sim01"]
    volume = subject.space.volume(truth.reliable.astype(float), 0)
    beside = volume[1:][volume[:-1] == 1].mean()
    assert beside > 0.5  # 0.3 if they were scattered


def test_what_the_repeats_show_is_what_was_planted(lab):
    """Without the bad session, ncsnr from repeats follows the planted one, and is near 0 where there is no signal."""
    subject, truth = lab.subject("sim01"), lab.truth["sim01"]
    trials = subject.responses.trials
    values = np.array(subject.responses.values, np.float64)
    for session in np.unique(trials.session):
        rows = trials.session == session
        with np.errstate(invalid="ignore"):
            values[rows] = (values[rows] - values[rows].mean(0)) / values[rows].std(0)
    good = np.flatnonzero(trials.session != truth.bad_session)
    names = trials.image_id[good]
    groups = [good[names == name] for name in np.unique(names)]
    found = ncsnr(values, groups)
    assert np.corrcoef(found[truth.reliable], truth.ncsnr[truth.reliable])[0, 1] > 0.9
    alive = ~truth.reliable & ~truth.dead
    assert np.median(noise_ceiling(found[alive], 1)) < 0.02 < np.median(noise_ceiling(found[truth.reliable], 1))


def test_the_bad_session_is_noisier_and_has_another_gain(lab):
    subject, truth = lab.subject("sim02"), lab.truth["sim02"]
    trials, alive = subject.responses.trials, ~truth.dead
    spread = {s: subject.responses.values[trials.session == s][:, alive].std(0).mean() for s in range(1, 7)}
    worst = max(spread, key=spread.get)
    assert worst == truth.bad_session == 3
    assert spread[3] > 3 * max(value for session, value in spread.items() if session != 3)
    gain = truth.drift.gain.mean(1)
    assert gain[2] == pytest.approx(2, abs=0.15) and np.abs(np.delete(gain, 2)).max() < 0.15


def test_dead_voxels_are_always_zero_and_no_others(lab):
    for name, subject in lab.subjects.items():
        truth = lab.truth[name]
        silent = (np.asarray(subject.responses.values) == 0).all(0)
        np.testing.assert_array_equal(silent, truth.dead)
        assert truth.dead.sum() == 12 and not (truth.dead & truth.reliable).any()
        assert (truth.expected(["sim0:000000"])[0, truth.dead] == 0).all()


def test_repeats_are_unequal_and_the_ceiling_counts_them(lab):
    trials, truth = lab.subject("sim01").responses.trials, lab.truth["sim01"]
    names, counts = np.unique(trials.image_id, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == dict(truth.presentations)
    assert np.bincount(counts).tolist() == [0, 65, 65, 65, 65] and len(trials) == PRESETS["lab"].trials == 650
    test = [truth.presentations[name] for name in sorted(lab.split("shared").test)]
    np.testing.assert_allclose(truth.ceiling(), noise_ceiling(truth.ncsnr, test))
    np.testing.assert_allclose(truth.ceiling(2), noise_ceiling(truth.ncsnr, 2))


def test_runs_and_subjects(lab):
    first, second = (lab.subject(name) for name in ("sim01", "sim02"))
    assert (first.responses.num_voxels, second.responses.num_voxels) == (900, 780)
    trials = first.responses.trials
    assert set(zip(trials.session.tolist(), trials.run.tolist(), strict=True)) == {
        (session, run) for session in range(1, 7) for run in range(1, 5)
    }
    assert (np.diff(trials.session * 10 + trials.run) >= 0).all()
    np.testing.assert_array_equal(run_numbers(np.array([1, 1, 1, 2, 2]), 2), [1, 1, 2, 1, 2])
    assert first.space.shape == second.space.shape == (14, 13, 12)


def test_it_follows_from_the_seed_and_keeps_its_files(lab, tmp_path):
    again = simulate("lab", n_subjects=1, folder=tmp_path)
    np.testing.assert_array_equal(again.subject("sim01").responses.values, lab.subject("sim01").responses.values)
    other = simulate("lab", n_subjects=1, seed=1)
    assert (other.truth["sim01"].reliable != lab.truth["sim01"].reliable).any()
    quiet = simulate("lab", n_subjects=1, snr_scale=0)
    assert (quiet.truth["sim01"].ncsnr == 0).all()


def test_options_are_checked():
    preset = PRESETS["lab"]
    with pytest.raises(BrainDataError, match=r"neighbours from 0 to 0.7, got .*neighbours=0.9"):
        dataclasses.replace(preset, neighbours=0.9)
    with pytest.raises(BrainDataError, match="bad_session of 1 to 6"):
        dataclasses.replace(preset, bad_session=7)
    white = dataclasses.replace(preset, neighbours=0.0, serial=0.0, own=20, shared=10)
    assert isinstance(white, LabPreset)
    counts = presentations([str(number) for number in range(12)], white, np.random.default_rng(0))
    assert sorted(counts.values()) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
