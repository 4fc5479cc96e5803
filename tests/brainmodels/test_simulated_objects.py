"""Simulated responses to solids against their own definition, and the ideal observer of two streams by brute force."""

import functools
from dataclasses import replace

import numpy as np
import pytest

import brainmodels
from brainmodels.data.objects import ObjectTrials
from brainmodels.data.sensors import region_of
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.features.arrays import ArrayFeatures
from brainmodels.layouts.eeg3d import EEG3D_CHANNELS
from brainmodels.simulated.eeg import ideal_observer, simulate_eeg
from brainmodels.simulated.objects import OBJECT_PRESETS, ObjectPreset, ObjectTruth, simulate_objects
from brainmodels.simulated.truth import EEGTruth
from veca.data.solids import BODIES, CLASSES, COLORS, PARTS, make_solid, parse_solid_id

SMALL = ObjectPreset(bodies=2, parts=2, n_chans=4, snr_db=-6.0)
LEVELS = {"class": range(3), "body": ("box", "cone"), "color": range(2)}
CLASS_BODY = (0, 0, 1)  # body of each class


@functools.cache
def simulated(snr_db=None, order="random", drift=0.0, preset="tiny", seed=0):
    return simulate_objects(preset, snr_db=snr_db, order=order, drift=drift, seed=seed)


def planted(seed, channels, times, snr):
    """A small true model of one stream: combinations of class and colour, of which one cannot occur."""
    rng = np.random.default_rng(seed)
    templates = {
        name: rng.normal(size=(len(levels), channels, times)).astype(np.float32) for name, levels in LEVELS.items()
    }
    roots = rng.normal(size=(channels, channels)), rng.normal(size=(times, times))
    rows = [(cls, CLASS_BODY[cls], color) for cls in range(3) for color in range(2)][:5]
    members = np.array(
        [np.concatenate([np.eye(len(x))[i] for x, i in zip(LEVELS.values(), row, strict=True)]) for row in rows]
    )
    prior = np.array([0.1, 0.3, 0.2, 0.15, 0.25])
    return EEGTruth(templates, snr, *(x @ x.T + np.eye(len(x)) for x in roots), LEVELS, members, prior), rows


def means_of(truth, rows):
    """Mean response to each combination, fp64 (combinations, channels * times)."""
    sums = [sum(x[i].astype(np.float64) for x, i in zip(truth.templates.values(), row, strict=True)) for row in rows]
    return np.sqrt(truth.snr) * np.stack(sums).reshape(len(rows), -1)


def drawn(truth, rows, chosen, rng):
    """Trials of these combinations, (n, channels, times)."""
    roots = np.linalg.cholesky(truth.channel_covariance), np.linalg.cholesky(truth.time_covariance)
    shape = (len(chosen), len(roots[0]), len(roots[1]))
    return means_of(truth, rows)[chosen].reshape(shape) + roots[0] @ rng.normal(size=shape) @ roots[1].T


def test_two_streams_are_bayes_rule():
    """Against densities of the whole Gaussian of both streams, with another number of repeats in each sample."""
    (first, rows), (second, _) = planted(0, 2, 3, 0.8), planted(1, 3, 2, 0.5)
    rng = np.random.default_rng(2)
    values = {"static": rng.normal(size=(6, 2, 3)), "dynamic": rng.normal(size=(6, 3, 2))}
    repeats = np.array([1, 2, 4, 1, 2, 4])
    densities = np.tile(first.prior, (6, 1))
    for truth, array in zip((first, second), values.values(), strict=True):
        covariance = np.kron(truth.channel_covariance, truth.time_covariance)
        for sample, count in enumerate(repeats):
            rest = array[sample].reshape(-1) - means_of(truth, rows)  # (combinations, channels * times)
            weights = np.einsum("ci,ij,cj->c", rest, np.linalg.inv(covariance / count), rest)
            densities[sample] *= np.exp(-weights / 2)
    truths = {"static": first, "dynamic": second}
    for place, (name, levels) in enumerate(LEVELS.items()):
        expected = np.stack(
            [densities[:, [row[place] == level for row in rows]].sum(1) for level in range(len(levels))]
        ).T
        expected /= expected.sum(1, keepdims=True)
        np.testing.assert_allclose(ideal_observer(truths, values, name, repeats), expected, rtol=1e-9)
        assert np.abs(expected - ideal_observer(first, values["static"], name, repeats)).max() > 0.05


def test_two_equal_streams_are_worth_three_decibels():
    """One stream of twice the signal-to-noise ratio is right as often. Bounds are four standard errors."""
    truth, rows = planted(0, 2, 3, 0.2)
    double = replace(truth, snr=0.4)
    rng, count = np.random.default_rng(3), 4000
    chosen = rng.choice(len(rows), count, p=truth.prior)
    classes = np.array([row[0] for row in rows])[chosen]

    def accuracy(*arguments):
        return (ideal_observer(*arguments, "class").argmax(1) == classes).mean()

    values = {name: drawn(truth, rows, chosen, rng) for name in ("a", "b")}
    both = accuracy({"a": truth, "b": truth}, values)
    single, louder = accuracy(truth, values["a"]), accuracy(double, drawn(double, rows, chosen, rng))
    assert abs(both - louder) < 4 * np.sqrt(2 * both * (1 - both) / count)
    assert both > single + 0.05
    mean = (values["a"] + values["b"]) / 2  # exactly: the mean of two trials
    expected = ideal_observer(truth, mean, "class", repeats=2)
    np.testing.assert_allclose(ideal_observer({"a": truth, "b": truth}, values, "class"), expected, rtol=1e-9)


def test_without_a_signal_nothing_is_found():
    study = simulated(-np.inf)
    truth, trials = study.truth["sim01"], ObjectTrials.of(study, "sim01", "train+val")
    np.testing.assert_allclose(truth.posterior(trials, "class"), 1 / 6)
    loud = ObjectTruth(*(replace(model, snr=0.06) for model in (truth.static, truth.dynamic)))
    for label, levels in (("class", 6), ("color", 6)):
        right = (loud.posterior(trials, label).argmax(1) == study.label(label, trials.ids)).mean()
        assert abs(right - 1 / levels) < 4 * np.sqrt(5 / 36 / len(trials))


def test_noise_of_the_streams_is_uncorrelated():
    study = simulated(-np.inf)
    static, dynamic = (study.dataset(name).subject("sim01").responses.values for name in study.streams)
    for channel in range(16):
        pair = static[:, channel].ravel(), dynamic[:, channel, :250].ravel()
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.1
    means = np.concatenate([static.mean(2), dynamic.mean(2)], 1).T  # slow noise, which streams could share
    assert abs(np.corrcoef(means)[:16, 16:]).mean() < 0.1
    with pytest.raises(AssertionError):  # the same test finds noise that is shared
        assert abs(np.corrcoef(static[:, 0].ravel(), static[:, 0].ravel())[0, 1]) < 0.1


def test_eeg_of_scenes_is_as_it_was():
    """Numbers of `simulate_eeg` before the observer learned of other factors and streams."""
    values = simulate_eeg("static", 1, 5, -10, 4, 6, 2).subject("sim01").responses.values
    first = [-0.07951591908931732, 0.7762094736099243, -0.0519065223634243, -0.8768306970596313]
    last = [-0.9114586114883423, -0.09755093604326248, -1.6307454109191895, -0.9344052672386169]
    np.testing.assert_allclose(values[0, 0, :4], first, rtol=1e-6)
    np.testing.assert_allclose(values[-1, -1, -4:], last, rtol=1e-6)
    weights = np.arange(values.size).reshape(values.shape)
    np.testing.assert_allclose((values.astype(np.float64) * weights).sum(), -9774393.843588924, rtol=1e-6)


def test_labels_are_those_of_the_solids():
    study = simulated()
    ids = study.stimuli.ids.tolist()
    assert study.class_names == ("sphere", "sphere_ring", "box", "box_ring", "cylinder", "cylinder_ring")
    assert study.color_names == tuple(COLORS)
    names = np.array(study.class_names)[study.label("class", ids)]
    for image_id, name, color, body, part, stretch in zip(
        ids, names, *(study.label(x, ids) for x in ("color", "body", "part", "stretch")), strict=True
    ):
        seed, cls, number = parse_solid_id(image_id)
        solid = make_solid(cls, number, seed)
        assert (CLASSES[cls], solid.body, solid.part, solid.stretch) == (name, body, part, stretch)
        assert solid.color == study.color_names[color]
    palette, rgb = study.palette(), np.array(list(COLORS.values()))
    assert (np.square(palette[:, None] - rgb).sum(2).argmin(1) == np.arange(6)).all()


@pytest.mark.parametrize("order", ["random", "blocked"])
def test_presentations(order):
    study = simulated(order=order)
    static, dynamic = (study.dataset(name).subject("sim01") for name in study.streams)
    table = static.responses.trials
    for column in ("image_id", "session", "repeat", "trial"):
        np.testing.assert_array_equal(getattr(table, column), getattr(dynamic.responses.trials, column))
    names, counts = np.unique(table.image_id, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        image_id: 4 if parse_solid_id(image_id)[2] >= 8 else 2 for image_id in study.stimuli.ids.tolist()
    }
    assert np.bincount(table.session).tolist() == [0, *[6] * 24]
    classes = study.label("class", table.image_id)
    changes = (np.diff(classes) != 0).sum()
    assert changes == 5 if order == "blocked" else changes > 90
    assert static.design == {"blocked": "block", "random": "event"}[order]
    split = study.split()
    assert {parse_solid_id(name)[2] for name in split.test} == {8, 9} and not split.val
    assert len(split.train) == 48 and len(split.test) == 12


def test_responses_are_signal_and_noise_of_unit_power():
    study = simulated(preset=SMALL, snr_db=6.0)
    for name in study.streams:
        truth, responses = getattr(study.truth["sim01"], name), study.dataset(name).subject("sim01").responses
        power = truth.prior @ np.square(means_of(truth, np.stack(rows_of(truth)))).mean(1) / truth.snr
        assert abs(power - 1) < 1e-5
        signal = np.sqrt(truth.snr) * truth.evoked(study.stimuli, responses.trials.image_id)
        rest = responses.values - signal
        assert abs(rest.var() - 1) < 0.05 and abs((rest * signal).mean() / np.square(signal).mean()) < 0.1


def rows_of(truth):
    """Level of every factor in each combination."""
    ends = np.cumsum([len(levels) for levels in truth.levels.values()])
    return [[part.argmax() for part in np.split(row, ends[:-1])] for row in truth.members]


def test_topographies_follow_the_regions():
    """Standard deviation over levels and channels of a region, which the gains scale."""
    truth = simulated(preset=ObjectPreset(bodies=4, parts=3, n_chans=64, snr_db=-20.0)).truth["sim01"].static
    regions = np.array([region_of(name) for name in EEG3D_CHANNELS])

    def strength(factor, region):
        peak = np.abs(truth.templates[factor]).max(2) / np.abs(truth.templates[factor]).max()  # (levels, channels)
        return np.sqrt(np.square(peak[:, regions == region]).mean())

    for factor, gains in (
        ("class", {"temporal": 0.6, "parietal": 0.5, "frontal": 0.1, "central": 0.1}),
        ("color", {"temporal": 1.25, "parietal": 0.125, "frontal": 0.125}),
    ):
        for region, gain in gains.items():
            assert abs(strength(factor, region) / strength(factor, "occipital") / gain - 1) < 0.5
    stretches = {region: strength("stretch", region) for region in set(regions.tolist())}
    assert max(stretches, key=stretches.__getitem__) == "parietal"


def test_the_observer_knows_how_often_it_is_right():
    """Its mean confidence is its accuracy, and two streams are worth more than one."""
    study = simulated(-22.0)
    truth, trials = study.truth["sim01"], ObjectTrials.of(study, "sim01", "train")
    found = {}
    for streams in (("static",), ("dynamic",), ("static", "dynamic")):
        posterior = truth.posterior(trials.with_streams(*streams), "class")
        np.testing.assert_allclose(posterior.sum(1), 1)
        right = (posterior.argmax(1) == study.label("class", trials.ids)).mean()
        assert abs(right - posterior.max(1).mean()) < 4 * np.sqrt(0.25 / len(trials))
        found[streams] = right
    assert found["static", "dynamic"] > max(found["static",], found["dynamic",])


def test_means_count_their_trials():
    """A mean of four presentations is as sure as four trials whose log likelihoods are added."""
    study = simulated(-22.0)
    truth, single = study.truth["sim01"], ObjectTrials.of(study, "sim01", "test")
    mean = single.averaged()
    assert mean.repeats.tolist() == [4] * 12
    for label in ("class", "body", "stretch"):
        expected = []
        for image_id in mean.ids:
            trials = single.take(single.ids == image_id).values()
            streams = {(name, i): x[i : i + 1] for name, x in trials.items() for i in range(4)}
            truths = {key: getattr(truth, key[0]) for key in streams}
            expected.append(ideal_observer(truths, streams, label)[0])
        np.testing.assert_allclose(truth.posterior(mean, label), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "order, drift, found", [("blocked", 1.0, True), ("random", 1.0, False), ("blocked", 0.0, False)]
)
def test_drift_tells_the_class_in_blocks_only(order, drift, found):
    """Nearest class mean of the channels' levels, without a response. Chance is 1/6 of 48 test trials."""
    study = simulated(-np.inf, order, drift)
    levels = {}
    for part in ("train", "test"):
        trials = ObjectTrials.of(study, "sim01", part)
        values = np.concatenate([x.mean(2) for x in trials.values().values()], 1)  # (n, 2 * channels)
        levels[part] = values, study.label("class", trials.ids)
    centres = np.stack([levels["train"][0][levels["train"][1] == cls].mean(0) for cls in range(6)])
    values, classes = levels["test"]
    right = (np.square(values[:, None] - centres).sum(2).argmin(1) == classes).mean()
    assert right > 0.6 if found else abs(right - 1 / 6) < 4 * np.sqrt(5 / 36 / 48)


def test_the_same_seed_gives_the_same_study():
    one, two = (simulate_objects(SMALL, count, seed=5) for count in (1, 2))
    other = simulate_objects(SMALL, seed=6)
    for name in one.streams:
        values = [x.dataset(name).subject("sim01").responses.values for x in (one, two, other)]
        np.testing.assert_array_equal(values[0], values[1])
        assert not np.array_equal(values[0], values[2])
        second = two.dataset(name).subject("sim02").responses
        assert not np.array_equal(values[0], second.values)
    assert two.subjects == ("sim01", "sim02") and set(two.truth) == {"sim01", "sim02"}


def test_presets_have_the_shapes_of_the_data_set():
    like = OBJECT_PRESETS["eeg3d_like"]
    assert like.classes == tuple(range(72)) and like.ch_names == EEG3D_CHANNELS
    tiny = OBJECT_PRESETS["tiny"]
    assert {region_of(name) for name in tiny.ch_names} == {"frontal", "central", "temporal", "parietal", "occipital"}
    assert [CLASSES[cls] for cls in OBJECT_PRESETS["nano"].classes[:5]] == [
        BODIES[0],
        *(f"{BODIES[0]}_{part}" for part in PARTS[1:4]),
        BODIES[1],
    ]
    static, dynamic = (simulated().dataset(name).subject("sim01").space for name in ("static", "dynamic"))
    assert (static.sfreq, len(static.times), static.times[0]) == (250, 250, -0.2)
    assert (dynamic.sfreq, len(dynamic.times), dynamic.times[0]) == (100, 600, -0.2)


def test_changed_studies_keep_the_truth():
    study = simulated()
    features = ArrayFeatures(np.eye(60), study.stimuli.ids)
    for other in (study.with_targets(features), study.with_splits(replace(study.split(), name="again"))):
        assert other.truth["sim01"] is study.truth["sim01"]
    assert study.targets is None and study.with_targets(features).targets is features
    assert list(study.with_splits(replace(study.split(), name="again")).splits) == ["objects", "again"]
    assert brainmodels.simulate_objects is simulate_objects


def test_bad_arguments():
    with pytest.raises(BrainDataError, match="expected preset to be one of tiny, nano, eeg3d_like, got 'nanno'; near"):
        simulate_objects("nanno")
    with pytest.raises(BrainDataError, match="expected order to be one of random, blocked, got 'sorted'"):
        simulate_objects("tiny", order="sorted")
    for options in ({"n_subjects": 0}, {"seed": -1}, {"drift": -1.0}, {"drift": float("nan")}):
        with pytest.raises(BrainDataError, match="expected n_subjects of at least 1"):
            simulate_objects("tiny", **options)
    study = simulated()
    truth, trials = study.truth["sim01"], ObjectTrials.of(study, "sim01", "test")
    with pytest.raises(BrainDataError, match="expected a factor of class, body, part, color, stretch, got 'shape'"):
        truth.posterior(trials, "shape")
    small = ObjectTrials.of(simulated(preset=SMALL), "sim01", "test")
    with pytest.raises(AxisError, match=r"expected values \(n, 16, 250\), got \(32, 4, 250\)"):
        truth.posterior(small)
    with pytest.raises(
        BrainDataError, match=r"expected values of the streams \['static'\], got those of \['dynamic'\]"
    ):
        ideal_observer({"static": truth.static}, {"dynamic": np.zeros((1, 16, 600))}, "class")
    both = {"static": np.zeros((1, 16, 250)), "dynamic": np.zeros((2, 16, 600))}
    with pytest.raises(AxisError, match="expected as many samples of every stream, got 1 of static, 2 of dynamic"):
        ideal_observer({"static": truth.static, "dynamic": truth.dynamic}, both, "class")
