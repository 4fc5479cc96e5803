"""Scores of epochs over time: equal to MNE's and to brute force, right where an effect is planted, else at chance."""

from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import pytest

from brainmodels.baselines.time_points import PENALTIES, GcvRidge, TimeRidge
from brainmodels.data import Responses, Subject
from brainmodels.data.reliability import ncsnr, noise_ceiling
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.evaluation import epoch_scores
from brainmodels.evaluation.epoch_data import Band, _Sums, bin_width, collect, log_power
from brainmodels.evaluation.epoch_results import EpochOptions
from brainmodels.evaluation.epoch_scores import (
    decode_epochs,
    encode_epochs,
    generalize,
    pairwise_classification,
    time_predictions,
)
from brainmodels.evaluation.epoch_sensors import channel_regions, occlude_regions
from brainmodels.evaluation.epoch_statistics import course_of, identification_tables, spans_of
from brainmodels.metrics.retrieval import correlation_matrix, two_way, two_way_pairs
from tests.brainmodels.planted_epochs import CHANNELS, WINDOW, case, planted

OPTIONS = EpochOptions(resamples=300, shuffles=10)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("width", [12, 80])
def test_gcv_chooses_the_penalty_of_the_least_error(rng, width):
    X, Y = rng.normal(size=(60, width)) * rng.uniform(0.1, 9, width), rng.normal(size=(60, 3))
    Y[:, 0] += X[:, 0]
    Z, y = (X - X.mean(0)) / X.std(0), Y - Y.mean(0)
    errors = []
    for penalty in PENALTIES:
        hat = Z @ np.linalg.solve(Z.T @ Z + penalty * np.eye(width), Z.T)
        errors.append(np.square(y - hat @ y).sum(0) / (60 - 1 - np.trace(hat)) ** 2)
    errors = np.array(errors)
    own = GcvRidge(per_target=True).fit(X, Y)
    shared = GcvRidge().fit(X, Y)
    assert own.penalty_.tolist() == np.array(PENALTIES)[errors.argmin(0)].tolist()
    assert shared.penalty_.tolist() == [PENALTIES[int(errors.sum(1).argmin())]]
    slopes = np.linalg.solve(Z.T @ Z + shared.penalty_[0] * np.eye(width), Z.T @ y)
    np.testing.assert_allclose(shared.predict(X), Z @ slopes + Y.mean(0), atol=2e-4)


def test_inputs_that_do_not_vary_get_no_slope_and_bad_ones_are_refused(rng):
    X = rng.normal(size=(20, 3))
    X[:, 1] = 7
    assert (GcvRidge().fit(X, X[:, :1]).slopes_[1] == 0).all()
    with pytest.raises(AxisError, match=r"targets \(20, p\), one row for each input, got \(19, 1\)"):
        GcvRidge().fit(X, X[:19, :1])
    with pytest.raises(BrainDataError, match=r"penalties above 0, got"):
        GcvRidge([0.0])
    with pytest.raises(AxisError, match=r"epochs \(n, channels, times\), got \(20, 3\)"):
        TimeRidge().fit(X, X)
    with pytest.raises(AxisError, match=r"epochs \(n, 3, 2\) as in the fit, got \(4, 2, 2\)"):
        TimeRidge().fit(rng.normal(size=(9, 3, 2)), X[:9]).predict(rng.normal(size=(4, 2, 2)))


def test_each_time_point_equals_mne(rng):
    """MNE's SlidingEstimator takes one target at a time."""
    mne = pytest.importorskip("mne.decoding")
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data, targets = case()
    estimator = make_pipeline(StandardScaler(), Ridge(100.0))
    parts = targets.parts[:, :3]
    theirs = time_predictions(data.train, parts, data.test, estimator)
    ours = TimeRidge([100.0]).fit(data.train, parts).predict(data.test)
    assert ours.shape == (50, 50, 3)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    sliding = mne.SlidingEstimator(estimator, verbose="error").fit(data.train.astype(float), parts[:, 1])
    np.testing.assert_allclose(theirs[:, :, 1], sliding.predict(data.test.astype(float)), atol=1e-12)


def test_temporal_generalisation_equals_mne():
    mne = pytest.importorskip("mne.decoding")
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data, targets = case()
    small = replace(targets, parts=targets.parts[:, :4], test_parts=targets.test_parts[:, :4])
    with mock.patch.object(epoch_scores, "TimeRidge", partial(TimeRidge, [100.0])):
        found = generalize(data, small, OPTIONS)
    estimator = make_pipeline(StandardScaler(), Ridge(100.0))
    train, test = (data.white(x).astype(float) for x in (data.train, data.test))
    some = [0, 17, 20, 40]
    predicted = np.stack(
        [
            mne.GeneralizingEstimator(estimator, verbose="error").fit(train[:, :, some], column).predict(test)
            for column in small.parts.T
        ],
        -1,
    )  # (m, train times, test times, k)
    unit = small.gallery
    for row, time in enumerate(some):
        for column in (3, 19, 21):
            expected = two_way(unit @ predicted[:, row, column].T).mean()
            assert found.values[time, column] == pytest.approx(expected, abs=2e-3)
    assert np.diagonal(found.values)[15:22].mean() > 0.8 and found.values[:10, :10].max() < found.threshold


def test_tables_are_those_of_retrieval(rng):
    real, decoded = rng.normal(size=(12, 5)), rng.normal(size=(12, 5))
    table = correlation_matrix(real, decoded)
    np.testing.assert_allclose(identification_tables(table[None])[0], two_way_pairs(table), atol=1e-6)


def test_a_planted_effect_is_found_in_its_window_and_nowhere_else():
    data, targets = case()
    encoded, decoded = encode_epochs(data, targets, OPTIONS), decode_epochs(data, targets, OPTIONS)
    for course in (encoded.course, decoded.course, pairwise_classification(data, OPTIONS)):
        inside = (course.times > WINDOW[0] - 0.01) & (course.times < WINDOW[1] + 0.01)
        assert course.significant[inside].all() and not course.significant[~inside].any()
        assert course.onset == pytest.approx(WINDOW[0]) and len(course.spans) == 1
        assert (course.low <= course.values).all() and (course.values <= course.high).all()
    best = encoded.course.ceiling
    assert (encoded.course.values[inside] < best[inside] + 0.05).all() and best[inside].min() > 0.7
    assert decoded.score("image_given_brain_top1").value > 0.3 and not decoded.score("two_way[").at_chance
    assert encoded.score("epoch_nr2").value > 0.5 and encoded.score("epoch_r").interval.low > 0
    assert abs(decoded.by_chance("two_way_over_time").value - 0.5) < 0.03
    assert decoded.ranks.shape == (50,) and (decoded.ranks == 1).mean() == decoded.score("image_given_brain_top1").value


def test_noise_alone_is_at_chance_everywhere():
    data, targets = case(0.0)
    encoded, decoded = encode_epochs(data, targets, OPTIONS), decode_epochs(data, targets, OPTIONS)
    generalization = generalize(data, targets, OPTIONS)
    for course in (encoded.course, decoded.course, pairwise_classification(data, OPTIONS)):
        assert course.onset is None and course.spans == []
    names = ("image_given_brain_top1", "two_way[", "two_way_over")
    scores = [encoded.score("epoch_r"), *(decoded.score(name) for name in names)]
    assert all(score.at_chance for score in scores)
    assert (generalization.values > generalization.threshold).sum() == 0
    assert np.nanmax(encoded.r) < encoded.cell_threshold


def test_the_error_of_all_times_together_is_kept():
    """With 5 % of 20 courses of noise, 4 or fewer are called above chance with a probability of 99.7 %."""
    found = {"pairs": 0, "decoding": 0}
    for seed in range(20):
        dataset = planted.__wrapped__(0.0, CHANNELS, 100 + seed, 2)
        data = collect(dataset, dataset.subject("me"), dataset.split("halves"))
        options = EpochOptions(resamples=150, shuffles=0, seed=seed)
        found["pairs"] += pairwise_classification(data, options).onset is not None
        found["decoding"] += decode_epochs(data, case()[1], options).course.onset is not None
    assert max(found.values()) <= 4, found


def test_pairwise_classification_is_discriminant_analysis():
    """scikit-learn's LDA with the same covariance, fitted to the means of one half and asked about the other."""
    from sklearn.covariance import EmpiricalCovariance
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    data, _ = case()
    time = 17
    halves = [np.stack([data.trials[group[start::2]].mean(0)[:, time] for group in data.groups]) for start in (0, 1)]
    whitening = data.whitening
    shared = np.linalg.inv(whitening @ whitening)

    class Known(EmpiricalCovariance):
        def fit(self, X, y=None):
            self.covariance_ = shared
            return self

    right = []
    for known, probe in (halves, halves[::-1]):
        for i in range(8):
            for j in range(8):
                if i != j:
                    lda = LinearDiscriminantAnalysis("lsqr", covariance_estimator=Known(), priors=[0.5, 0.5])
                    lda.fit(known[[i, i, j, j]], [0, 0, 1, 1])
                    right.append(lda.predict(probe[[i]])[0] == 0)
    groups = data.groups[:8]
    small = replace(data, groups=groups)
    assert pairwise_classification(small, OPTIONS).values[time] == pytest.approx(np.mean(right), abs=1e-6)


def test_the_ceiling_is_that_of_repeats():
    dataset = planted()
    data, _ = case()
    signal = 1.0  # variance of a channel in the window, about, in noise of 1; test images were shown 4 times
    inside = (data.space.times > WINDOW[0]) & (data.space.times < WINDOW[1])
    assert np.median(data.ceiling[:, inside]) == pytest.approx(signal / (signal + 1 / 4), abs=0.12)
    assert abs(np.median(data.ceiling[:, ~inside])) < 0.1
    once = planted(1.0, CHANNELS, 0, 1)
    single = collect(once, once.subject("me"), once.split("halves"))
    assert "train images" in single.ceiling_from and pairwise_classification(single, OPTIONS) is None
    pairs = dataset.pairs("me", "halves", "train", "none")
    values = pairs.array().reshape(len(pairs), -1)
    rows = [np.flatnonzero(pairs.image_ids == name) for name in np.unique(pairs.image_ids)]
    ratio = _Sums(pairs, 1, None).ncsnr().ravel()
    np.testing.assert_allclose(ratio, ncsnr(values, rows), rtol=1e-4, atol=1e-4)
    found = np.median(noise_ceiling(ratio, 1).reshape(10, 50)[:, inside])
    assert np.median(single.ceiling[:, inside]) == pytest.approx(found, abs=0.1)


def test_noise_is_white_after_whitening():
    """A source that all channels share is taken out of the noise, up to the shrinkage of 5 %."""
    dataset = planted(0.0)
    subject = dataset.subject("me")
    responses = subject.responses
    shared = np.random.default_rng(1).normal(size=(len(responses), 1, 50))
    values = (responses.values + 1.5 * shared).astype(np.float32)
    mixed = Subject("me", Responses(values, responses.trials), subject.space)
    found = collect(dataset.with_subject(mixed), mixed, dataset.split("halves"))
    before, after = (np.cov(x.swapaxes(0, 1).reshape(10, -1)) for x in (found.trials, found.white(found.trials)))
    assert before[0, 1] == pytest.approx(1.5**2, abs=0.1) and np.linalg.cond(before) > 20
    assert np.abs(after - np.eye(10)).max() < 0.2 and np.linalg.cond(after) < 3


def test_power_of_a_band_is_that_of_its_waves():
    times = np.arange(300) / 200
    waves = np.sin(2 * np.pi * 10 * times) * np.where(times > 0.75, 2.0, 1.0)
    values = np.broadcast_to(waves, (3, 2, 300)) + 1e-6 * np.random.default_rng(0).normal(size=(3, 2, 300))
    power = log_power(values, 200.0, Band("alpha", 8, 12))
    assert power.shape == (3, 2, 300)
    assert power[0, 0, 230] - power[0, 0, 80] == pytest.approx(np.log10(4), abs=0.02)  # twice the amplitude
    gamma = log_power(values, 200.0, Band("gamma", 40, 60))
    assert power[0, 0, 80] - gamma[0, 0, 80] > 2


@pytest.mark.parametrize("word", ["alpha", "alpha=8", "alpha=12-8", "alpha=0-4", "8-12"])
def test_bands_of_another_form_are_refused(word):
    with pytest.raises(BrainDataError, match=r"expected a band"):
        Band.parse(word)


def test_bands_and_bins_must_fit_the_epochs():
    dataset = planted()
    subject, split = dataset.subject("me"), dataset.split("halves")
    with pytest.raises(BrainDataError, match=r"below 25 Hz, half the sampling rate"):
        collect(dataset, subject, split, band=Band.parse("beta=20-30"))
    with pytest.raises(BrainDataError, match=r"from 4 Hz, whose wavelets of 4 cycles fit into epochs of 1 s"):
        collect(dataset, subject, split, band=Band.parse("delta=2-4"))
    with pytest.raises(BrainDataError, match=r"bins of 0.02 to 1 s, as the epochs allow, got 0.001 s"):
        collect(dataset, subject, split, time_bin=0.001)
    assert bin_width(subject.space) == 1 and bin_width(subject.space, 0.1) == 5
    assert collect(dataset, subject, split, time_bin=0.1).space.times[:2] == pytest.approx([-0.16, -0.06])


def test_a_region_is_missed_where_the_effect_is():
    occipital = ("PO7", "O1", "OZ", "O2")
    rows = {row.region: row for row in occlude_regions(*case(1.0, occipital), OPTIONS)}
    assert list(rows) == ["frontal", "central", "temporal", "parietal", "occipital"]
    assert rows["occipital"].two_way.value > 0.25 and rows["occipital"].two_way.distinct
    assert max(abs(row.two_way.value) for name, row in rows.items() if name != "occipital") < 0.08
    assert channel_regions(["A1x", "B2x"]) == {} and channel_regions(["OZ", "O1", "A1x"])["other"] == ("A1x",)


def test_spans_and_shapes_of_courses():
    assert spans_of(np.arange(6), np.array([1, 1, 0, 0, 1, 0], bool)) == [(0.0, 1.0), (4.0, 4.0)]
    with pytest.raises(AxisError, match=r"tables \(3, m, m\), got \(3, 4, 5\)"):
        course_of("x", np.arange(3), np.zeros((3, 4, 5)))
