"""Simulated subjects: trials, signals and places as they were planted; files; what is refused."""

import hashlib
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import brainmodels
from brainmodels.data.grid import grid_features
from brainmodels.errors import BrainDataError, IdError, LayoutError
from brainmodels.simulated import (
    FACTORS,
    FEATURE_GROUPS,
    PRESETS,
    ROIS,
    Preset,
    photograph_stimuli,
    planted_features,
    simulate,
    simulate_eeg,
)
from brainmodels.simulated.tuning import pool
from tests.brainmodels.simulations import OTHER_SCENES, SUBJECTS, made, parts
from tests.processes import start
from veca.data.photographs import load_photograph
from veca.data.scenes import sample_scene

# What was planted


def planted_noise(dataset, subject):
    """The noise of each trial, from the values and the truth by the equation of a trial, in fp64."""
    person, truth = dataset.subject(subject), dataset.truth[subject]
    trials = person.responses.trials
    signal = truth.signal(trials.image_id).astype(np.float64)
    noise = np.empty_like(signal)
    for session in np.unique(trials.session):
        rows = np.flatnonzero(trials.session == session)
        gain, offset, slope = (x[session - 1] for x in (truth.drift.gain, truth.drift.offset, truth.drift.slope))
        for place, row in enumerate(rows):
            time = 2 * place / (len(rows) - 1) - 1
            drawn = (person.responses.values[row] - truth.mean - offset - slope * time) * np.exp(-0.25 * gain)
            noise[row] = drawn * np.sqrt(1 + truth.ncsnr**2) - truth.ncsnr * signal[row]
    return noise, signal


def off_diagonal(noise):
    r = np.corrcoef(noise.T)
    return np.sqrt((r[~np.eye(len(r), dtype=bool)] ** 2).mean())


def test_a_trial_is_signal_noise_drift_and_mean():
    noise, signal = planted_noise(made("tiny"), "sim01")
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    np.testing.assert_allclose(noise.std(0), 1, atol=0.1)
    assert abs((noise * signal).mean()) < 0.01
    assert off_diagonal(noise) < 0.04  # 1 / sqrt(900) = 0.033 by chance


def test_shared_noise_correlates_voxels():
    """A share of 0.2 from 5 sources: correlations of 0.2 cos, of root mean square 0.2 / sqrt(5) = 0.089."""
    noise, _ = planted_noise(made("tiny", n_subjects=1, shared_noise=0.2), "sim01")
    assert abs(noise.std() - 1) < 0.02
    assert 0.085 < off_diagonal(noise) < 0.105


def test_features_are_those_of_the_picture_and_its_labels():
    dataset = made("tiny")
    ids = ["sim0:000007", "sim0:000512", "sim0:000001"]
    planted = planted_features(dataset, ids)
    grid = grid_features(dataset.stimuli.images(ids, 48))
    np.testing.assert_allclose(planted[:, :108], (grid - pool().mean[:108]) / pool().sd[:108], rtol=1e-4, atol=1e-5)
    for name, levels in FACTORS.items():
        columns = FEATURE_GROUPS[name]
        on = planted[:, columns] > -pool().mean[columns] / pool().sd[columns] + 1e-3
        assert (on.sum(1) == 1).all()
        assert [levels[level] for level in on.argmax(1)] == dataset.stimuli.label(name, ids).tolist()
    scene = sample_scene(512, seed=0)
    assert dataset.stimuli.label("place", ["sim0:000512"]) == [scene.objects[0].place]
    assert dataset.stimuli.label("background", ["sim0:000512"]) == [scene.background.texture]
    captions = dataset.stimuli.captions("sim0:000512")
    assert captions[0] == scene.caption and len(set(captions)) == 5
    assert all(scene.objects[0].color in text and scene.objects[0].shape in text for text in captions)


def test_signals_have_unit_variance_on_scenes_that_nobody_saw():
    for tuning in ("linear", "nonlinear"):
        signal = made("tiny", tuning=tuning).truth["sim03"].signal(OTHER_SCENES)
        assert signal.dtype == np.float32
        assert abs(signal.mean()) < 0.03 and abs(signal.var(0).mean() - 1) < 0.05


@pytest.mark.parametrize("roi, sigma", [("V1", 0.7), ("V4", 1.4)])
def test_receptive_fields_by_definition(roi, sigma):
    """Edge energy weighted by a Gaussian about the centre; divided by that of the picture where non-linear."""
    energy = grid_features(made("tiny").stimuli.images(parts(made("tiny"), "sim01")[1], 48))[:, :36].astype(np.float64)
    standard = (energy - pool().mean[:36]) / pool().sd[:36]
    half = pool().raw[:, :36].mean()
    for voxel in np.flatnonzero(made("tiny").subject("sim01").space.roi(roi))[::7]:
        tuning = made("tiny").truth["sim01"].tuning
        x, y = tuning.rf_centers[voxel]
        field = [np.exp(-((c - x) ** 2 + (r - y) ** 2) / (2 * sigma**2)) for r in range(6) for c in range(6)]
        signal = made("tiny").truth["sim01"].signal(parts(made("tiny"), "sim01")[1])[:, voxel]
        assert np.corrcoef(standard @ field, signal)[0, 1] > 1 - 1e-6
        normalized = (energy @ field / np.sum(field)) ** 2 / (half**2 + (energy**2).mean(1))
        bent = made("tiny", tuning="nonlinear").truth["sim01"].signal(parts(made("tiny"), "sim01")[1])[:, voxel]
        assert np.corrcoef(normalized, bent)[0, 1] > 1 - 1e-6
        assert np.corrcoef(normalized, standard @ field)[0, 1] < 0.995


def test_semantic_voxels_of_all_subjects_share_16_dimensions():
    dataset = made("tiny")
    features = planted_features(dataset, OTHER_SCENES)
    signals = [dataset.truth[s].signal(OTHER_SCENES)[:, dataset.subject(s).space.roi("SEM")] for s in SUBJECTS]
    strengths = np.linalg.svd(np.concatenate(signals, 1), compute_uv=False)
    assert strengths[16] < 1e-4 * strengths[15]
    for subject in SUBJECTS:
        assert not dataset.truth[subject].tuning.weights[:36, dataset.subject(subject).space.roi("SEM")].any()
    for name, factor in {"SHAPE": "shape", "COLOR": "color", "PLACE": "background"}.items():
        roi = dataset.subject("sim01").space.roi(name)
        tuning = dataset.truth["sim01"].tuning
        basis = np.concatenate(signals, 1)
        for voxel in np.flatnonzero(roi)[:5]:
            column = FEATURE_GROUPS[factor].start + FACTORS[factor].index(tuning.preferred[voxel])
            signal = dataset.truth["sim01"].signal(OTHER_SCENES)[:, voxel]
            design = np.concatenate([basis, features[:, [column]], np.ones((400, 1))], 1)
            solution, *_ = np.linalg.lstsq(design, signal, rcond=1e-5)
            assert np.abs(design @ solution - signal).max() < 1e-3
            assert solution[-2] > 0.3
            without, *_ = np.linalg.lstsq(design[:, :-2], signal, rcond=1e-5)
            assert np.abs(design[:, :-2] @ without - signal).max() > 0.1


def test_conjunctions_depend_on_pairs_of_factors_alone():
    """After the linear half is taken off, a voxel's signal is one number for each pair of shape and colour."""
    dataset, linear = made("tiny", tuning="nonlinear"), made("tiny")
    truth = dataset.truth["sim02"]
    for roi, pair in {"SEM": ("shape", "color"), "PLACE": ("background", "color")}.items():
        voxels = np.flatnonzero(dataset.subject("sim02").space.roi(roi))[:5]
        np.testing.assert_array_equal(truth.tuning.weights[:, voxels], linear.truth["sim02"].tuning.weights[:, voxels])
        own = parts(dataset, "sim02")[0]
        rest = truth.signal(own)[:, voxels] * truth.tuning.conjunctions.sd[voxels] / np.sqrt(0.5)
        rest = rest - linear.truth["sim02"].signal(own)[:, voxels]
        labels = list(zip(*(dataset.stimuli.label(name, own) for name in pair), strict=True))
        table = {key: rest[[label == key for label in labels]] for key in set(labels)}
        assert max(np.ptp(values, 0).max() for values in table.values()) < 1e-4
        assert np.std([values[0] for values in table.values()], 0).min() > 0.3


# The study


def test_every_image_three_times_in_random_order():
    dataset = made("tiny")
    split = dataset.split("shared")
    own = {}
    for number, subject in enumerate(SUBJECTS):
        trials = dataset.subject(subject).responses.trials
        ids, counts = np.unique(trials.image_id, return_counts=True)
        assert len(ids) == 300 and (counts == 3).all()
        assert np.unique(trials.session, return_counts=True)[1].tolist() == [150] * 6
        assert np.diff(trials.session).min() >= 0
        spread = [len(set(trials.session[trials.image_id == name])) for name in ids[:100]]
        assert 2 < np.mean(spread) < 2.8  # 6 sessions, 3 draws: 2.53 expected
        own[subject] = set(ids) - split.test
        assert len(own[subject]) == 240 and split.ids("train", subject) | split.ids("val", subject) == own[subject]
        assert dataset.subject(subject).responses.num_voxels == (210, 180, 240)[number]
        assert len(dataset.pairs(subject, "shared", "test", average="repeats")) == 60
    assert PRESETS["tiny"].num_voxels(3) == 215
    assert not own["sim01"] & own["sim02"] and not own["sim02"] & own["sim03"]
    assert split.train | split.val == set().union(*own.values())


def test_regions_part_the_voxels_from_back_to_front():
    space = made("tiny").subject("sim03").space
    assert space.shape == (13, 15, 11) and len(np.unique(space.index, axis=0)) == 240
    assert (sum(mask.astype(int) for mask in space.rois.values()) == 1).all()
    depth = [space.index[space.roi(name), 1].mean() for name in ROIS]
    assert (np.diff(depth) > 0).all()
    np.testing.assert_allclose([space.roi(name).mean() for name in ROIS], list(ROIS.values()), atol=0.01)
    millimetres = np.c_[space.index, np.ones(len(space))] @ space.affine.T
    assert np.abs(millimetres[:, :3].mean(0)).max() < 1.8
    np.testing.assert_array_equal(space.ncsnr, made("tiny").truth["sim03"].ncsnr)


def test_neighbours_see_neighbouring_places():
    space, truth = made("tiny").subject("sim01").space, made("tiny").truth["sim01"]
    roi = space.roi("V1")
    assert np.corrcoef(space.index[roi, 0], truth.tuning.rf_centers[roi, 0])[0, 1] < -0.95
    assert np.corrcoef(space.index[roi, 2], truth.tuning.rf_centers[roi, 1])[0, 1] > 0.95


def test_one_change_moves_nothing_else():
    base = made("tiny").subject("sim02").responses
    again = simulate("tiny", n_subjects=2).subject("sim02").responses
    np.testing.assert_array_equal(base.values, again.values)
    for option in ({"snr_scale": 3.0}, {"tuning": "nonlinear"}, {"drift": False}):
        other = made("tiny", **option)
        np.testing.assert_array_equal(base.trials.image_id, other.subject("sim02").responses.trials.image_id)
        assert not np.allclose(base.values, other.subject("sim02").responses.values)
        np.testing.assert_allclose(planted_noise(made("tiny"), "sim02")[0], planted_noise(other, "sim02")[0], atol=1e-4)
    assert not np.allclose(base.values, made("tiny", seed=1).subject("sim02").responses.values)


def test_scanners_differ_by_subject():
    base, voxels = made("tiny"), np.arange(180) % 2.0
    other = simulate("tiny", snr_scale={"sim02": voxels, "sim03": 0.5}, repeats={"sim03": 2})
    np.testing.assert_array_equal(
        other.subject("sim01").responses.values, base.subject("sim01").responses.values
    )  # not named, so as it was
    np.testing.assert_array_equal(other.truth["sim02"].ncsnr, base.truth["sim02"].ncsnr * voxels)
    np.testing.assert_array_equal(other.truth["sim03"].ncsnr, base.truth["sim03"].ncsnr / 2)
    third = other.subject("sim03").responses.trials.image_id
    assert len(third) == 2 * 300 and (np.unique(third, return_counts=True)[1] == 2).all()
    assert other.truth["sim03"].repeats == 2
    assert other.truth["sim03"].ceiling() == pytest.approx(other.truth["sim03"].ceiling(2))


@pytest.mark.parametrize("tuning", ["linear", "nonlinear"])
def test_own_weights_take_their_share_of_the_signal(tuning):
    shared, half, alone = (
        simulate("tiny", n_subjects=1, tuning=tuning, individuality=share).truth["sim01"] for share in (0.0, 0.5, 1.0)
    )
    signals = [truth.signal(OTHER_SCENES).astype(np.float64) for truth in (shared, half, alone)]
    for signal in signals:
        assert np.abs(signal.std(0) - 1).mean() < 0.1

    def explained(signal, others):
        columns = np.stack([*others, np.ones_like(signal)])  # (k, scenes)
        return 1 - np.square(signal - np.linalg.lstsq(columns.T, signal, rcond=None)[0] @ columns).mean() / signal.var()

    shares = [explained(signals[1][:, v], [signals[0][:, v]]) for v in range(210)]
    assert abs(np.mean(shares) - 0.5) < 0.05  # the shared tuning explains half of the variance
    both = [explained(signals[1][:, v], [signals[0][:, v], signals[2][:, v]]) for v in range(210)]
    assert min(both) > 0.999


def test_shuffled_anatomy_moves_voxels_and_no_response():
    base, other = made("tiny"), simulate("tiny", anatomy="shuffled")
    for name in base.subjects:
        space, moved = base.subject(name).space, other.subject(name).space
        np.testing.assert_array_equal(base.subject(name).responses.values, other.subject(name).responses.values)
        assert sorted(map(tuple, space.index)) == sorted(map(tuple, moved.index))
        np.testing.assert_array_equal(space.rois["V1"], moved.rois["V1"])
        roi = moved.rois["V1"]
        assert abs(np.corrcoef(moved.index[roi, 0], other.truth[name].tuning.rf_centers[roi, 0])[0, 1]) < 0.4
    first, second = (other.subject(name).space.index for name in ("sim01", "sim03"))
    assert not np.array_equal(np.argsort(first[:, 1]), np.argsort(second[: len(first), 1]))


def digest(dataset):
    """What must be equal to the bit, and what may differ by the order of sums."""
    trials = dataset.subject("sim02").responses.trials
    exact = hashlib.sha256("".join(trials.image_id).encode())
    exact.update(dataset.stimuli.images(["sim3:000005", "sim3:000301"], 33).tobytes())
    exact.update(dataset.features(["sim3:000300", "sim3:000007"]).tobytes())
    return exact.hexdigest(), dataset.subject("sim02").responses.values[::100, ::50].ravel()


def save_digest(file):
    exact, values = digest(simulate("tiny", seed=3, n_subjects=2))
    np.savez(file, exact=exact, values=values, hash=hash("simulated"))  # Python's hash differs between processes


def test_other_processes_make_the_same(tmp_path):
    process = start(save_digest, tmp_path / "there.npz")
    save_digest(tmp_path / "here.npz")
    process.join()
    here, there = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("here", "there"))
    assert here["exact"] == there["exact"] and (here["hash"] != there["hash"] or "PYTHONHASHSEED" in os.environ)
    np.testing.assert_allclose(there["values"], here["values"], atol=1e-4)


def test_the_package_imports_lightly():
    code = "import sys, brainmodels; assert not {'torch', 'veca', 'brainmodels.data'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def test_the_package_exports_simulate():
    assert brainmodels.simulate is simulate and brainmodels.simulate_eeg is simulate_eeg
    assert {"simulate", "simulate_eeg"} <= set(dir(brainmodels))
    with pytest.raises(AttributeError, match="simulat"):
        _ = brainmodels.simulat


# Files, and what is refused


REDUCED = replace(PRESETS["nsd_like"], voxels=(400,), box=(12, 10, 9), own=270, shared=30)


def test_responses_in_a_file_are_those_in_memory(tmp_path):
    inside, filed = simulate(REDUCED), simulate(REDUCED, folder=tmp_path / "study")
    values = filed.subject("sim01").responses.values
    assert isinstance(values, np.memmap) and not values.flags.writeable
    np.testing.assert_array_equal(values, inside.subject("sim01").responses.values)
    written = (tmp_path / "study/sim01.npy").stat().st_mtime_ns
    assert sorted(file.name for file in (tmp_path / "study").iterdir()) == ["sim01.json", "sim01.npy"]
    np.testing.assert_array_equal(
        simulate(REDUCED, folder=tmp_path / "study").subject("sim01").responses.values, values
    )
    assert (tmp_path / "study/sim01.npy").stat().st_mtime_ns == written
    with pytest.raises(LayoutError, match="of this simulation"):
        simulate(REDUCED, seed=1, folder=tmp_path / "study")
    (tmp_path / "study/sim01.json").unlink()
    with pytest.raises(LayoutError, match="of this simulation"):
        simulate(REDUCED, folder=tmp_path / "study")


def test_an_interrupted_file_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("brainmodels.simulated.truth.Drift.apply", stop)
        simulate(REDUCED, folder=tmp_path)
    assert not (tmp_path / "sim01.npy").exists()
    np.testing.assert_array_equal(
        simulate(REDUCED, folder=tmp_path).subject("sim01").responses.values,
        simulate(REDUCED).subject("sim01").responses.values,
    )


@pytest.mark.slow
def test_a_file_is_written_session_by_session(tmp_path):
    """40 sessions of 90 trials x 8,000 voxels: 115 MB in the file, of which little may be in memory at a time."""
    preset = replace(REDUCED, voxels=(8000,), box=(24, 22, 20), own=1100, shared=100)
    simulate("tiny")
    tracemalloc.start()
    try:
        values = simulate(preset, folder=tmp_path).subject("sim01").responses.values
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert values.nbytes > 115e6 and peak < 60e6


def test_nsd_like_has_the_size_of_its_model_and_asks_for_a_folder():
    preset = PRESETS["nsd_like"]
    assert (preset.voxels, preset.images, preset.trials, preset.sessions) == ((15724,), 10_000, 30_000, 40)
    with pytest.raises(BrainDataError, match=r"folder= for 1\.8 GiB"):
        simulate("nsd_like")


def test_truth_survives_more_splits():
    dataset = made("tiny")
    more = dataset.with_splits(replace(dataset.split("shared"), name="again"))
    assert more.truth is not None and more.truth.keys() == dataset.truth.keys() and "again" in more.splits
    assert more.with_subject(dataset.subject("sim01")).features is dataset.features


def test_photographs_are_found_by_id():
    stimuli = photograph_stimuli(["coffee", "china"])
    assert stimuli.captions("photo:china") == ["a Chinese temple of three storeys above a lake"]
    pixels = (load_photograph("coffee", crop="none").permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(stimuli.image("photo:coffee"), pixels)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"preset": "tinny"}, "got 'tinny'; near: tiny"),
        ({"tuning": "quadratic"}, "'linear' or 'nonlinear', got 'quadratic'"),
        ({"snr_scale": -1.0}, "expected snr_scale of at least 0, got a negative one of sim01"),
        ({"snr_scale": {"sim04": 2.0}}, "expected snr_scale of sim01, sim02, sim03, got one of 'sim04'"),
        ({"snr_scale": {"sim02": np.ones(7)}}, r"expected one snr_scale of sim02, or 180, got shape \(7,\)"),
        ({"repeats": {"sim02": 0}}, "expected repeats of at least 1, got 0 of sim02"),
        ({"individuality": -0.1}, "individuality=-0.1"),
        ({"anatomy": "mirrored"}, "expected anatomy"),
        ({"n_subjects": 0}, "n_subjects=0"),
        ({"shared_noise": 1.5}, "shared_noise=1.5"),
    ],
)
def test_what_cannot_be_simulated_is_refused(options, message):
    with pytest.raises(BrainDataError, match=message):
        simulate(**options)


def test_presets_are_checked():
    with pytest.raises(BrainDataError, match="20 voxels"):
        Preset("few", (8,), (4, 4, 4), own=20, shared=4, sessions=2)
    with pytest.raises(BrainDataError, match="at most"):
        simulate(Preset("crowded", (100,), (4, 4, 4), own=20, shared=4, sessions=2))


@pytest.mark.parametrize("name", ["nsd:00013", "sim0:13", "sim0:0000013", "sim00:000013", "sim0:000013 "])
def test_a_scene_has_one_id(name):
    with pytest.raises(IdError, match=f"got '{name}'"):
        planted_features(made("tiny"), [name])
