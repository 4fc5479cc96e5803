"""What is measured from simulated subjects is what was planted, and the score of an oracle is the ceiling."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.simulated import FACTORS, FEATURE_GROUPS, PRESETS, planted_features, simulate
from tests.brainmodels.simulations import OTHER_SCENES, SUBJECTS, made, parts


def session_z(dataset, subject):
    """All trials, standardised in each session by its trials of images that are not in the test part; fp64."""
    responses = dataset.subject(subject).responses
    values, trials = responses.values.astype(np.float64), responses.trials
    train = ~np.isin(trials.image_id, sorted(dataset.split("shared").test))
    for session in np.unique(trials.session):
        now = trials.session == session
        values[now] = (values[now] - values[now & train].mean(0)) / values[now & train].std(0)
    return values


def means(dataset, subject, values, ids):
    return np.stack([values[rows].mean(0) for rows in dataset.subject(subject).responses.rows_of(ids)])


@functools.cache
def measured(dataset, subject):
    """Repeat-averaged responses (train, test) after standardisation."""
    values = session_z(dataset, subject)
    return [means(dataset, subject, values, ids) for ids in parts(dataset, subject)]


def columns_r(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def ridge(x, y, new):
    """Predictions at `new`, each column of y with the alpha of least leave-one-out error."""
    u, s, vt = np.linalg.svd(x - x.mean(0), full_matrices=False)
    target = u.T @ (y - y.mean(0))
    best, coefficients = np.full(y.shape[1], np.inf), np.zeros((x.shape[1], y.shape[1]))
    for alpha in np.logspace(-1, 5, 13):
        shrink = s**2 / (s**2 + alpha)
        leverage = 1 / len(x) + u**2 @ shrink
        error = (((y - y.mean(0) - u @ (shrink[:, None] * target)) / (1 - leverage)[:, None]) ** 2).sum(0)
        better = error < best
        best[better] = error[better]
        coefficients[:, better] = vt.T @ ((shrink / s)[:, None] * target[:, better])
    return (new - x.mean(0)) @ coefficients + y.mean(0)


def share_of_ceiling(dataset, subject, prediction):
    """Sum r^2 / sum NC over voxels."""
    r = columns_r(prediction, measured(dataset, subject)[1])
    return (r**2).sum() / dataset.truth[subject].ceiling().sum()


def ridge_on_planted(dataset, subject):
    train, test = (planted_features(dataset, ids) for ids in parts(dataset, subject))
    return ridge(train, measured(dataset, subject)[0], test)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_oracle_reaches_the_ceiling_and_ridge_nearly(subject):
    dataset = made("tiny")
    own, shared = parts(dataset, subject)
    assert 0.90 < share_of_ceiling(dataset, subject, dataset.truth[subject].signal(shared)) < 1.06
    assert 0.80 < share_of_ceiling(dataset, subject, ridge_on_planted(dataset, subject)) < 1.06
    train, test = (dataset.stimuli.images(ids, 16).reshape(len(ids), -1) / 255 for ids in (own, shared))
    assert share_of_ceiling(dataset, subject, ridge(train, measured(dataset, subject)[0], test)) < 0.4


def test_half_the_signal_to_noise_ratio():
    dataset = made("tiny", snr_scale=0.5)
    scores = [share_of_ceiling(dataset, subject, ridge_on_planted(dataset, subject)) for subject in SUBJECTS]
    assert min(scores) > 0.65 and max(scores) < 1.06


def test_expected_responses_are_the_mean_of_many():
    dataset = simulate(replace(PRESETS["tiny"], own=20, shared=4, repeats=200), n_subjects=1, drift=False)
    test = dataset.pairs("sim01", "shared", "test", average="repeats")
    error = test.array() - dataset.truth["sim01"].expected(test.image_ids)
    noise = np.sqrt(1 / (1 + dataset.truth["sim01"].ncsnr ** 2) / 200)
    assert abs((error / noise).std() - 1) < 0.1 and abs((error / noise).mean()) < 0.15


def test_nothing_is_found_where_nothing_was_planted():
    dataset = made("tiny", snr_scale=0.0)
    assert not dataset.truth["sim01"].ceiling().any()
    for subject in SUBJECTS:
        prediction, test = ridge_on_planted(dataset, subject), measured(dataset, subject)[1]
        r = columns_r(prediction, test)
        assert abs(r.mean()) < 0.06 and 0.75 < r.std() * np.sqrt(60) < 1.25
        similar = np.corrcoef(test, prediction)[:60, 60:]  # rows measured, columns predicted
        two_way = (np.diag(similar)[:, None] > similar).sum(1) / 59
        assert abs(two_way.mean() - 0.5) < 0.12
        assert (similar.argmax(1) == np.arange(60)).mean() < 0.1


def test_identification_where_something_was_planted():
    prediction, test = ridge_on_planted(made("tiny"), "sim01"), measured(made("tiny"), "sim01")[1]
    similar = np.corrcoef(test, prediction)[:60, 60:]
    assert (np.diag(similar)[:, None] > similar).sum() / (60 * 59) > 0.95


def estimated_ncsnr(dataset, subject, values):
    own, shared = parts(dataset, subject)
    trials = np.stack([values[rows] for rows in dataset.subject(subject).responses.rows_of(own + shared)])
    noise = trials.var(1, ddof=1).mean(0)
    return np.sqrt(np.maximum(values.var(0, ddof=1) - noise, 0) / noise)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_reliability_is_estimated_after_session_scaling_only(subject):
    dataset = made("tiny")
    planted = dataset.truth[subject].ncsnr
    estimate = estimated_ncsnr(dataset, subject, session_z(dataset, subject))
    assert np.corrcoef(estimate, planted)[0, 1] > 0.93
    assert 0.90 < np.median(estimate / planted) < 1.05
    raw = estimated_ncsnr(dataset, subject, dataset.subject(subject).responses.values.astype(float))
    assert np.median(raw / planted) < 0.8  # what cvnlab/nsddatapaper#1 saw
    steady = made("tiny", drift=False)
    steady = estimated_ncsnr(steady, subject, steady.subject(subject).responses.values.astype(float))
    assert 0.90 < np.median(steady / planted) < 1.05


@pytest.mark.parametrize("roi", ["V1", "V4"])
def test_receptive_fields_are_found(roi):
    dataset = made("tiny", snr_scale=3.0)
    for subject in SUBJECTS:
        features = planted_features(dataset, parts(dataset, subject)[0])[:, FEATURE_GROUPS["edges"]]
        voxels = dataset.subject(subject).space.roi(roi)
        unit = np.eye(36)
        found = ridge(features, measured(dataset, subject)[0][:, voxels], unit) - ridge(
            features, measured(dataset, subject)[0][:, voxels], np.zeros((1, 36))
        )
        weight = np.maximum(found, 0) ** 2
        weight /= weight.sum(0)
        y, x = np.divmod(np.arange(36), 6)
        centers = dataset.truth[subject].tuning.rf_centers[voxels]
        assert np.corrcoef(x @ weight, centers[:, 0])[0, 1] > 0.9
        assert np.corrcoef(y @ weight, centers[:, 1])[0, 1] > 0.9


def decoded(dataset, subject, factor, without=()):
    """Share of test images whose factor is decoded from all voxels but those of some regions."""
    keep = ~np.any([dataset.subject(subject).space.roi(name) for name in without], axis=0) if without else slice(None)
    train, test = (values[:, keep] for values in measured(dataset, subject))
    labels, truth = (dataset.stimuli.label(factor, ids) for ids in parts(dataset, subject))
    levels = np.array(FACTORS[factor])
    scores = ridge(train, (labels[:, None] == levels).astype(float), test)
    return (levels[scores.argmax(1)] == truth).mean()


def test_regions_hold_what_they_are_named_after():
    """Without SHAPE shape is hardly decoded and colour as before; without COLOR the other way round."""
    dataset = made("tiny")

    def loss(roi, factor):
        return np.mean([decoded(dataset, s, factor) - decoded(dataset, s, factor, [roi]) for s in SUBJECTS])

    assert loss("SHAPE", "shape") > 0.15 and loss("COLOR", "color") > 0.15
    assert abs(loss("SHAPE", "color")) < 0.05 and abs(loss("COLOR", "shape")) < 0.05


def test_mean_map_looks_good_until_responses_are_centred():
    dataset = made("tiny")
    for subject in SUBJECTS:
        values = dataset.subject(subject).responses.values.astype(float)
        train = ~np.isin(dataset.subject(subject).responses.trials.image_id, parts(dataset, subject)[1])
        centred = (values - values[train].mean(0)) / values[train].std(0, ddof=1)
        scores = []
        for version in (values, centred):
            own, shared = (means(dataset, subject, version, ids) for ids in parts(dataset, subject))
            scores.append(np.corrcoef(own.mean(0), shared)[0, 1:].mean())
        assert scores[0] > 0.6 and abs(scores[1]) < 0.1


def test_one_subject_maps_to_another():
    """Signals of shared tuning map linearly without loss, on scenes that nobody saw; measured ones still identify."""
    dataset = made("tiny")
    first, second = (
        dataset.truth[s].signal(OTHER_SCENES)[:, dataset.subject(s).space.roi("SEM")].astype(np.float64)
        for s in ("sim01", "sim02")
    )
    u, s, vt = np.linalg.svd(first[:200], full_matrices=False)
    mapped = first[200:] @ vt[:16].T @ ((u[:, :16] / s[:16]).T @ second[:200])
    assert columns_r(mapped, second[200:]).min() > 0.9999
    a, b = (measured(dataset, s)[1] for s in ("sim01", "sim02"))
    mapped = np.concatenate([ridge(np.delete(a, i, 0), np.delete(b, i, 0), a[i : i + 1]) for i in range(60)])
    similar = np.corrcoef(b, mapped)[:60, 60:]
    two_way = (np.diag(similar)[:, None] > similar).sum() / (60 * 59)
    assert two_way > 0.75
    rolled = np.roll(similar, 1, 0)
    assert (np.diag(rolled)[:, None] > rolled).sum() / (60 * 59) < 0.6


def test_more_images_teach_more():
    dataset = made("tiny")
    train, test = (planted_features(dataset, ids) for ids in parts(dataset, "sim01"))
    responses = measured(dataset, "sim01")[0]
    scores = [share_of_ceiling(dataset, "sim01", ridge(train[:n], responses[:n], test)) for n in (15, 60, 240)]
    assert scores[0] + 0.1 < scores[1] < scores[2] - 0.1


def test_nonlinear_subjects_are_beyond_ridge_but_not_beyond_the_oracle():
    dataset = made("tiny", tuning="nonlinear")
    for subject in SUBJECTS:
        oracle = share_of_ceiling(dataset, subject, dataset.truth[subject].signal(parts(dataset, subject)[1]))
        linear = share_of_ceiling(dataset, subject, ridge_on_planted(dataset, subject))
        assert 0.90 < oracle < 1.06 and linear < 0.7


@pytest.mark.slow
def test_small_is_nearly_solved_by_ridge():
    dataset = simulate("small", n_subjects=2)
    for subject in dataset.subjects:
        assert 0.9 < share_of_ceiling(dataset, subject, ridge_on_planted(dataset, subject)) < 1.06
