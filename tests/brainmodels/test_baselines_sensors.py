"""Ridge on whitened bins of EEG against its definition, against scikit-learn, and on simulated subjects."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier

from brainmodels.baselines.sensors import SensorFeatures, SensorRidge
from brainmodels.data import SensorSpace
from brainmodels.data.objects import ObjectTrials
from brainmodels.data.sensors import binned
from brainmodels.errors import AxisError, BrainDataError, UnitsError
from brainmodels.metrics.eeg import top_k_hits
from brainmodels.simulated.objects import simulate_objects

BINS = {"static": 0.04, "dynamic": 0.2}
NAMES = ("FZ", "C3", "T7", "P3", "O1")
STATIC = SensorSpace(NAMES, 100.0, np.arange(20) / 100, unit="z")
DYNAMIC = SensorSpace(NAMES[1:], 50.0, np.arange(31) / 50, unit="z")
studied = functools.cache(simulate_objects)


def made(repeats=2, seed=0, objects=15, classes=3):
    """Trials of both streams whose class shifts some channels, and their classes. Class 0 has fewer objects."""
    rng = np.random.default_rng(seed)
    of_object = np.array([0] * 2 + [number % (classes - 1) + 1 for number in range(objects - 2)])
    ids, labels = np.repeat([f"o{i:02d}" for i in range(objects)], repeats), np.repeat(of_object, repeats)
    mixing = rng.normal(size=(5, 5))
    values = {}
    for name, space in (("static", STATIC), ("dynamic", DYNAMIC)):
        noise = np.einsum(
            "dc,nct->ndt", mixing[: len(space), : len(space)], rng.normal(size=(len(ids), len(space), 31))
        )
        shift = rng.normal(size=(classes, len(space), 31))[labels]
        values[name] = (noise + 0.5 * shift)[:, :, : len(space.times)]
    return ObjectTrials.from_arrays(values, ids, {"static": STATIC, "dynamic": DYNAMIC}), labels


def whitened(trials, groups, stream):
    """Features by the definition: S^(-1/2) of the covariance around the mean of the group, in fp64."""
    values = binned(trials.values()[stream], trials.spaces[stream].sfreq, BINS[stream]).astype(np.float64)
    residuals = values.copy()
    for name in set(groups.tolist()):
        residuals[groups == name] -= residuals[groups == name].mean(0)
    columns = residuals.transpose(1, 0, 2).reshape(values.shape[1], -1)
    free = (len(groups) - len(set(groups.tolist()))) * values.shape[2]
    variances, axes = np.linalg.eigh(columns @ columns.T / free)
    root = axes @ np.diag(variances**-0.5) @ axes.T
    return np.stack([root @ trial for trial in values]).reshape(len(values), -1)


def test_features_are_whitened_around_the_mean_of_their_object():
    trials, _ = made()
    expected = np.concatenate([whitened(trials, trials.ids, name) for name in ("static", "dynamic")], 1)
    found = SensorFeatures(BINS).fit(trials).transform(trials)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    static = found[:, : 5 * 5].reshape(len(found), 5, 5)
    residuals = static - np.repeat(static.reshape(15, 2, 5, 5).mean(1), 2, 0)
    covariance = np.einsum("ncb,ndb->cd", residuals, residuals) / (15 * 5)
    np.testing.assert_allclose(covariance, np.eye(5), atol=1e-9)


def test_means_are_whitened_around_the_mean_of_their_class():
    trials, labels = made(repeats=1)
    found = SensorFeatures(BINS).fit(trials, labels).transform(trials)
    np.testing.assert_allclose(found[:, :25], whitened(trials, labels, "static"), rtol=1e-9, atol=1e-9)
    with pytest.raises(BrainDataError, match="an object or a class with two trials or more"):
        SensorFeatures(BINS).fit(trials)


def test_a_reference_channel_changes_nothing():
    """FZ is 0 in every trial after a reference to it. Its features are 0, and the scores those without it."""
    trials, labels = made()
    values = trials.values(["static"])["static"]
    values[:, 0] = 0
    static = trials.with_streams("static").with_values({"static": values})
    space = replace(STATIC, ch_names=NAMES[1:])
    without = ObjectTrials.from_arrays({"static": values[:, 1:]}, trials.ids, {"static": space})
    ridge = SensorRidge(BINS).fit(static, labels)
    features = ridge.features_.transform(static).reshape(len(static), 5, 5)
    np.testing.assert_allclose(features[:, 0], 0, atol=1e-8)
    np.testing.assert_allclose(ridge.scores(static), SensorRidge(BINS).fit(without, labels).scores(without), atol=1e-8)


def balanced(labels, count):
    return len(labels) / (count * np.bincount(labels)[labels])


def mean_eigenvalue(x, weight):
    """Of the weighted kernel, whose rows are centred on their weighted mean."""
    rows = np.sqrt(weight)[:, None] * (x - np.average(x, axis=0, weights=weight))
    return np.linalg.eigvalsh(rows @ rows.T).mean()


@pytest.mark.parametrize("factor", [1.0, 0.03])
def test_scores_are_those_of_scikit_learn(factor):
    """`RidgeClassifier` has targets -1 and 1 in place of 0 and 1."""
    trials, labels = made()
    test, _ = made(seed=0, repeats=3)
    ridge = SensorRidge(BINS, penalty=factor).fit(trials, labels)
    x = ridge.features_.transform(trials)
    alpha = factor * mean_eigenvalue(x, balanced(labels, 3))
    other = RidgeClassifier(alpha=alpha, class_weight="balanced", solver="cholesky").fit(x, labels)
    expected = other.decision_function(ridge.features_.transform(test))
    np.testing.assert_allclose(2 * ridge.scores(test) - 1, expected, rtol=1e-8, atol=1e-8)
    assert ridge.penalty_ == {"class": factor}


def test_heldout_scores_are_those_of_fits_without_the_object():
    trials, labels = made()
    ridge = SensorRidge(BINS, penalty=0.1).fit(trials, labels)
    x, weight = ridge.features_.transform(trials), balanced(labels, 3)
    alpha = 0.1 * mean_eigenvalue(x, weight)
    for name in ("o00", "o07", "o14"):
        rest = trials.ids != name
        other = Ridge(alpha=alpha).fit(x[rest], np.eye(3)[labels[rest]], sample_weight=weight[rest])
        np.testing.assert_allclose(ridge.heldout_["class"][~rest], other.predict(x[~rest]), rtol=1e-7, atol=1e-9)


def test_the_penalty_with_the_best_heldout_accuracy_is_taken():
    trials, labels = made()
    tried = {p: SensorRidge(BINS, penalty=p).fit(trials, labels) for p in (1e-4, 0.3, 1e4)}
    right = {p: np.mean(ridge.heldout_["class"].argmax(1) == labels) for p, ridge in tried.items()}
    assert len(set(right.values())) > 1
    best = max(right, key=lambda p: right[p])
    chosen = SensorRidge(BINS, penalty=(1e-4, 0.3, 1e4)).fit(trials, labels)
    assert chosen.penalty_ == {"class": best}
    np.testing.assert_allclose(chosen.scores(trials), tried[best].scores(trials), rtol=1e-9)


def test_colours_have_their_own_weights():
    trials, labels = made()
    colors = np.arange(len(labels)) // 2 % 4
    both = SensorRidge(BINS).fit(trials, labels, colors=colors)
    alone = SensorRidge(BINS).fit(trials, colors)
    np.testing.assert_allclose(both.scores(trials, "color"), alone.scores(trials), rtol=1e-9)
    found = both.classify(trials)
    np.testing.assert_array_equal(found.ids, trials.ids)
    np.testing.assert_allclose(found.shape.sum(1), 1)
    np.testing.assert_allclose(found.color.sum(1), 1)
    np.testing.assert_array_equal(found.shape.argmax(1), both.scores(trials).argmax(1))
    assert alone.classify(trials).color is None
    with pytest.raises(BrainDataError, match="label to be one of class, got 'color'"):
        alone.scores(trials, "color")


def test_other_channels_times_units_and_streams_are_refused():
    trials, labels = made()
    ridge = SensorRidge(BINS).fit(trials, labels)

    def changed(**space):
        spaces = {**trials.spaces, "static": replace(STATIC, **space)}
        return replace(trials, spaces=spaces)

    with pytest.raises(AxisError, match="expected channel C3 of static at position 1 as in the fit, got T7"):
        ridge.scores(changed(ch_names=("FZ", "T7", "C3", "P3", "O1")))
    with pytest.raises(AxisError, match="expected 100 Hz of static as in the fit, got 50 Hz"):
        ridge.scores(changed(sfreq=50.0, times=np.arange(20) / 50))
    with pytest.raises(AxisError, match="expected 20 times of static as in the fit, got 10"):
        ridge.classify(changed(times=STATIC.times[:10]))
    with pytest.raises(UnitsError, match="expected static in z as in the fit, got V"):
        ridge.scores(changed(unit="V"))
    with pytest.raises(BrainDataError, match="expected streams static, dynamic as in the fit, got dynamic"):
        ridge.scores(trials.with_streams("dynamic"))


def test_wrong_arguments_say_what_was_expected():
    trials, labels = made()
    with pytest.raises(AxisError, match=r"expected integers \(30,\) of classes, got int64 \(29,\)"):
        SensorRidge(BINS).fit(trials, labels[1:])
    with pytest.raises(AxisError, match="of classes, got float64"):
        SensorRidge(BINS).fit(trials, labels * 1.0)
    with pytest.raises(BrainDataError, match="expected classes from 0 to 1, got 0 to 2"):
        SensorRidge(BINS).fit(trials, labels, 2)
    with pytest.raises(BrainDataError, match="expected trials of all 5 classes, got none of 3"):
        SensorRidge(BINS).fit(trials, labels, 5)
    with pytest.raises(BrainDataError, match="finite penalty above 0, got 0"):
        SensorRidge(BINS, penalty=0).fit(trials, labels)
    with pytest.raises(BrainDataError, match="expected bins of static, dynamic, got none of dynamic"):
        SensorRidge({"static": 0.04}).fit(trials, labels)


def fitted(preset, seed, *streams):
    study = studied(preset, seed=seed)
    train = ObjectTrials.of(study, "sim01", "train").with_streams(*streams)
    test = ObjectTrials.of(study, "sim01", "test").with_streams(*streams)
    ridge = SensorRidge().fit(train, study.label("class", train.ids), colors=study.label("color", train.ids))
    return study, ridge, test


def test_tiny_classes_are_found_and_colours_in_part():
    study, ridge, test = fitted("tiny", 0, "static", "dynamic")
    mean = test.averaged()
    classes, colors = study.label("class", mean.ids), study.label("color", mean.ids)
    assert top_k_hits(ridge.scores(mean), classes).mean() >= 0.8  # chance 1 / 6
    assert top_k_hits(ridge.scores(mean, "color"), colors, 2).mean() >= 0.5  # chance 1 / 3


def test_nano_is_near_its_known_accuracy():
    """Two streams are better than one. No decoder is better than the ideal observer."""
    right = {}
    for streams in (("static", "dynamic"), ("static",), ("dynamic",)):
        study, ridge, test = fitted("nano", 0, *streams)
        mean = test.averaged()
        classes, colors = study.label("class", mean.ids), study.label("color", mean.ids)
        scores = ridge.scores(mean)
        right[streams] = top_k_hits(scores, classes).mean(), top_k_hits(scores, classes, 5).mean()
        if len(streams) == 2:
            found = top_k_hits(ridge.scores(mean, "color"), colors).mean()
            ideal = (study.truth["sim01"].posterior(mean).argmax(1) == classes).mean()
    fused, static, dynamic = right.values()
    assert 0.45 <= fused[0] <= ideal and fused[1] >= 0.85 and 0.6 <= found < 1
    assert fused[0] >= max(static[0], dynamic[0]) + 0.05 and min(static[0], dynamic[0]) >= 0.25


def test_probabilities_of_single_trials_and_of_means_are_calibrated():
    """The likelihood of the truth falls if the logits of either are multiplied by 2 or 1 / 2."""
    study, ridge, test = fitted("nano", 0, "static", "dynamic")
    for trials in (test, test.averaged()):
        chances = ridge.classify(trials).shape
        rows, truth = np.arange(len(trials)), study.label("class", trials.ids)

        def likelihood(power, chances=chances, rows=rows, truth=truth):
            sharper = chances**power
            return np.log(sharper[rows, truth] / sharper.sum(1)).mean()

        assert likelihood(1) > max(likelihood(0.5), likelihood(2))


def test_ridge_on_courses_beats_ridge_on_bins():
    """The courses drop what is noise in time. On these seeds no test object was used to choose anything."""
    found = []
    for seed in (0, 1):
        study = simulate_objects("nano", seed=seed)
        train, test = (ObjectTrials.of(study, "sim01", part) for part in ("train", "test"))
        labels = study.label("class", train.ids)
        truth = study.label("class", test.averaged().ids)
        for components in (None, 3):
            ridge = SensorRidge(components=components).fit(train, labels)
            found.append((ridge.scores(test.averaged()).argmax(1) == truth).mean())
    assert found[1] > found[0] + 0.1 and found[3] > found[2] + 0.1
