"""Encoding metrics against plain loops in fp64, and whole evaluations on planted responses."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import pearsonr

from brainmodels.data import BrainDataset
from brainmodels.errors import AxisError, BrainDataError, IdError, NormalizationError
from brainmodels.metrics import encoding, protocols, published
from brainmodels.metrics.encoding import ev, nr2, pearson, r2, sample_r, usable_voxels, voxel_r
from brainmodels.metrics.statistics import bootstrap, bootstrap_mean
from tests.brainmodels.made import made_dataset


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(23, 11)) + 3 * rng.normal(size=11)
    return y, 0.6 * y + rng.normal(size=y.shape) + 0.5


def by_hand(name, y, p):
    """One value of two vectors, in the words of the definition."""
    pairs = list(zip(y, p, strict=True))
    mean_y, mean_d = sum(y) / len(y), sum(a - b for a, b in pairs) / len(pairs)
    if name == "pearson":
        return pearsonr(y, p)[0]
    if name == "r2":
        return 1 - sum((a - b) ** 2 for a, b in pairs) / sum((a - mean_y) ** 2 for a in y)
    if name == "ev":
        return 1 - sum((a - b - mean_d) ** 2 for a, b in pairs) / sum((a - mean_y) ** 2 for a in y)
    if name == "mse":
        return sum((a - b) ** 2 for a, b in pairs) / len(pairs)
    return sum(a * b for a, b in pairs) / math.sqrt(sum(a * a for a in y) * sum(b * b for b in p))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["pearson", "r2", "ev", "mse", "cosine"])
def test_formula(arrays, name, axis, monkeypatch):
    y, p = arrays
    monkeypatch.setattr(encoding, "_BATCH_NUMBERS", 50)  # several batches
    columns = zip(y.T, p.T, strict=True) if axis == 0 else zip(y, p, strict=True)
    expected = [by_hand(name, *pair) for pair in columns]
    np.testing.assert_allclose(getattr(encoding, name)(y, p, axis=axis), expected, rtol=1e-12)


def test_axis_has_no_default(arrays):
    with pytest.raises(TypeError):
        r2(*arrays)


def test_bias_costs_r2_and_not_ev(arrays):
    y = arrays[0]
    np.testing.assert_allclose(ev(y, y + 5, axis=0), 1)
    assert (r2(y, y + 5, axis=0) < 0).all()
    np.testing.assert_allclose(r2(y, np.broadcast_to(y.mean(0), y.shape), axis=0), 0, atol=1e-12)


def test_fp32_far_from_zero_is_summed_in_fp64():
    """In fp32 sums a mean of 1e4 leaves nothing of a correlation of noise with sd 1."""
    rng = np.random.default_rng(1)
    y = (rng.normal(size=(4000, 2)) + 1e4).astype(np.float32)
    p = (y - 1e4 + rng.normal(size=y.shape)).astype(np.float32)
    expected = [pearsonr(y[:, v].astype(float), p[:, v].astype(float))[0] for v in range(2)]
    np.testing.assert_allclose(voxel_r(y, p), expected, rtol=1e-10)


def test_constant_voxels_are_nan_and_counted(arrays):
    y, p = (array.copy() for array in arrays)
    y[:, 2] = 0.1  # the mean of 23 times 0.1 is not 0.1
    y[:, 5] = np.nan
    p[:, 7] = 0.3
    r = voxel_r(y, p)
    assert np.isnan(r[[2, 5]]).all() and r[7] == 0 and np.isfinite(np.delete(r, [2, 5])).all()
    assert np.isnan(r2(y, p, axis=0)[[2, 5]]).all() and np.isnan(ev(y, p, axis=0)[[2, 5]]).all()
    assert np.flatnonzero(~usable_voxels(y)).tolist() == [2, 5]
    summary = encoding.summarize(r)
    assert (summary.n, summary.undefined) == (9, 2)
    assert summary.median == np.median(np.delete(r, [2, 5]))
    with pytest.raises(BrainDataError, match="1 voxels that are not"):
        sample_r(y, p)


def test_predictions_may_not_be_undefined(arrays):
    """A model that answers NaN where it is hard would leave those voxels out of its mean."""
    y, p = arrays[0], arrays[1].copy()
    p[3, 4] = np.nan
    with pytest.raises(BrainDataError, match="finite predictions"):
        voxel_r(y, p)


def test_shapes_are_checked(arrays):
    y, p = arrays
    with pytest.raises(AxisError, match=r"\(23, 11\)"):
        voxel_r(y, p[:, :3])
    with pytest.raises(AxisError, match="flatten"):
        voxel_r(y[None], p[None])
    with pytest.raises(AxisError, match="two or more"):
        voxel_r(y[:1], p[:1])
    with pytest.raises(AxisError, match="axis"):
        pearson(y, p, axis=-1)


def test_summaries():
    values = np.array([0.0, 0.1, 0.2, 0.3, np.nan, 0.9])
    rois = {"V1": np.array([1, 1, 1, 0, 1, 0], bool), "V4": np.array([0, 0, 0, 1, 0, 1], bool)}
    found = encoding.roi_summary(values, rois)
    assert (found["V1"].n, found["V1"].undefined, found["V1"].median) == (3, 1, 0.1)
    assert (found["V1"].q25, found["V1"].q75) == pytest.approx((0.05, 0.15))
    assert found["V1"].share_above == pytest.approx(1 / 3)  # above, not at, 0.1
    masked = encoding.roi_summary(values, rois, mask=values < 0.5)
    assert (masked["V4"].n, masked["V4"].mean) == (1, 0.3)
    assert encoding.summarize(np.full(3, np.nan)).undefined == 3
    with pytest.raises(AxisError):
        encoding.summarize(values, np.ones(6))


def test_subjects_not_voxels_are_the_sample():
    mean, sem = encoding.across_subjects([0.1, 0.2, 0.3, 0.4])
    assert mean == pytest.approx(0.25) and sem == pytest.approx(np.std([0.1, 0.2, 0.3, 0.4], ddof=1) / 2)
    with pytest.raises(BrainDataError):
        encoding.across_subjects([0.1])


def test_nr2_by_hand():
    r, ceiling = np.array([0.5, -0.2, 0.9, np.nan]), np.array([0.5, 0.4, 0.6, 0.5])
    found = nr2(r, ceiling)
    assert found.total == pytest.approx((0.25 - 0.04 + 0.81) / 1.5)
    np.testing.assert_allclose(found.ratios, [0.5, -0.1, 1.35, np.nan])  # above 1 and not clipped
    assert found.median == pytest.approx(0.5)
    assert (found.n, found.negative) == (3, 1) and found.negative_share == pytest.approx(0.04 / 1.5)
    assert nr2(r, ceiling, ceiling > 0.45).total == pytest.approx((0.25 + 0.81) / 1.1)
    with pytest.raises(BrainDataError, match="ceiling_mask"):
        nr2(r, np.array([0.5, 0.0, 0.6, 0.5]), np.ones(4, bool))


def test_algonauts_score_by_hand():
    assert encoding.algonauts_score([0.5, -0.9, 0.8], [0.5, 0.5, 0.4]) == pytest.approx(0.5)
    assert encoding.algonauts_score([0.5, 0.9], [1.0, 0.0]) == pytest.approx((0.25 + 1) / 2)
    with pytest.raises(BrainDataError, match="1 and 0"):
        encoding.algonauts_score([np.nan, 0.9], [1.0, 0.5])


def test_linear_cka_against_its_definition(monkeypatch):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(12, 30)) + 2, rng.normal(size=(12, 5))
    y[:, :3] += x[:, :3]
    a, b = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    monkeypatch.setattr(encoding, "_BATCH_NUMBERS", 40)
    assert encoding.linear_cka(x, y) == pytest.approx(expected, rel=1e-12)
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    assert encoding.linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    with pytest.raises(AxisError):
        encoding.linear_cka(x, y[:-1])


@pytest.fixture(scope="module")
def planted():
    """A subject with 30 test images of three trials, and its responses without noise."""
    dataset = made_dataset(num_images=90, seed=3)
    person = dataset.subject("subj01")
    dataset = dataset.with_subject(replace(person, normalizer="div2000"))
    every = dataset.pairs("subj01", "made", "test", average="repeats")
    return dataset, every.image_ids[::-1], every.array()[::-1]


def by_name(scores):
    return {score.metric.name: score for score in scores}


def test_scores_of_a_whole_test_set(planted):
    """Values are those of the functions; rows given in another order are found by id."""
    dataset, ids, clean = planted
    test = dataset.pairs("subj01", "made", "test", average="repeats")
    noisy = clean + np.random.default_rng(4).normal(size=clean.shape)
    found = by_name(protocols.encoding_scores(test, noisy, ids, np.full(clean.shape[1], 2.0), resamples=200, seed=5))
    y, p = test.array(), noisy[::-1]
    r = voxel_r(y, p)
    assert found["voxel_r"].value == pytest.approx(np.median(r))
    assert found["r2_mean"].value == pytest.approx(r2(y, p, axis=0).mean())
    assert found["mse"].value == pytest.approx(np.square(y - p).mean())
    assert found["nr2"].value == pytest.approx((r * abs(r)).sum() / (len(r) * 4 / (4 + 1 / 3)))
    assert found["voxel_r"].ceiling == pytest.approx(np.sqrt(4 / (4 + 1 / 3)))
    for score in found.values():
        assert score.value in score.interval and score.n == 30 and score.seed == 5, score
        assert (score.part, score.repeats, score.normalizer) == ("test", "avg_voxels", "div2000")
        assert f"{len(r)} of {len(r)} voxels" in score.mask
    assert not found["voxel_r"].at_chance and not found["sample_r"].at_chance and not found["mse"].at_chance


def test_the_bootstrap_of_voxel_scores_draws_images(planted):
    """The intervals from weighted sums equal those of recomputing the metric on the drawn images, bias removed."""
    dataset, ids, clean = planted
    test = dataset.pairs("subj01", "made", "test", average="repeats")
    noisy = clean + np.random.default_rng(4).normal(size=clean.shape) + 0.7
    found = by_name(protocols.encoding_scores(test, noisy, ids, resamples=60, seed=6))
    y, p = test.array(), noisy[::-1]
    functions = {"voxel_r": voxel_r, "r2": partial(r2, axis=0), "ev": partial(ev, axis=0)}

    def statistic(drawn, name, average):
        return average(functions[name](y[drawn], p[drawn]))

    for name in functions:
        for suffix, average in (("", np.median), ("_mean", np.mean)):
            again, values = partial(statistic, name=name, average=average), []
            bootstrap(lambda drawn, again=again, values=values: values.append(again(drawn)) or 0, len(y), 60, 6)
            centred = np.array(values) - np.mean(values) + found[name + suffix].value
            expected = np.quantile(centred, [0.025, 0.975])
            assert found[name + suffix].interval[:2] == pytest.approx(expected, abs=1e-5), name


def test_wrong_pairs_are_at_chance(planted):
    dataset, ids, clean = planted
    test = dataset.pairs("subj01", "made", "test", average="repeats")
    found = by_name(
        protocols.encoding_scores(test, clean[np.random.default_rng(8).permutation(30)], ids, resamples=200)
    )
    for name in ("voxel_r", "voxel_r_mean", "sample_r", "cosine", "mse"):
        assert found[name].at_chance, found[name]


def test_single_trials_are_drawn_with_their_image(planted):
    """Three trials of one image are one observation: the interval is wider than with trials drawn one by one."""
    dataset, ids, clean = planted
    test = dataset.pairs("subj01", "made", "test")
    noisy = clean + np.random.default_rng(9).normal(size=clean.shape)
    found = by_name(protocols.encoding_scores(test, noisy, ids, resamples=400))
    score = found["sample_r"]
    order = {name: row for row, name in enumerate(ids)}
    values = sample_r(test.array(), noisy[[order[name] for name in test.image_ids]])
    assert score.value == pytest.approx(values.mean()) and score.n == 90 and score.n_of == "trials of 30 images"
    alone = bootstrap_mean(values, 400)
    assert score.interval.high - score.interval.low > 1.3 * (alone.high - alone.low)
    y, p = test.array(), noisy[[order[name] for name in test.image_ids]]
    again = bootstrap(lambda drawn: voxel_r(y[drawn], p[drawn]).mean(), 90, 400, clusters=test.image_ids)
    low, high = found["voxel_r_mean"].interval[:2]
    assert high - low == pytest.approx(again.high - again.low, rel=1e-3)
    known = by_name(protocols.encoding_scores(test, noisy, ids, np.ones(clean.shape[1]), resamples=400))
    again = bootstrap(lambda drawn: np.mean(voxel_r(y[drawn], p[drawn]) ** 2) / 0.5, 90, 400, clusters=test.image_ids)
    low, high = known["nr2"].interval[:2]  # no r is negative, and a single trial with ncsnr 1 has a ceiling of 0.5
    assert high - low == pytest.approx(again.high - again.low, rel=1e-3)


@pytest.mark.parametrize("repeats", ["equal", "unequal"])
def test_permuted_correlations_against_recomputing(repeats):
    rng = np.random.default_rng(10)
    image = np.repeat(np.arange(8), 3) if repeats == "equal" else np.repeat(np.arange(8), [1, 2, 3, 1, 2, 3, 1, 2])
    y, p = rng.normal(size=(len(image), 5)), rng.normal(size=(8, 5))
    p[:, 2] = 1.5
    case = protocols.MatchedResponses(y, p, image)
    found = protocols._permuted_r(case, 7, seed=11)
    orders = np.random.default_rng(11)
    for row in found:
        np.testing.assert_allclose(row, voxel_r(y, p[orders.permutation(8)][image]), atol=1e-6)


def test_the_mean_map_correlates_with_every_image(planted):
    """Uncentred sample_r is high without information, and its chance says so; voxel_r of a constant is 0."""
    dataset, ids, clean = planted
    offset = 4 * np.random.default_rng(12).normal(size=clean.shape[1])
    person = dataset.subject("subj01")
    moved = replace(person, responses=replace(person.responses, values=person.responses.values + offset))
    test = BrainDataset([moved], dataset.stimuli, dataset.splits).pairs("subj01", "made", "test", average="repeats")
    mean_map = np.broadcast_to(test.array().mean(0), clean.shape)
    found = by_name(protocols.encoding_scores(test, mean_map, ids, resamples=100))
    assert found["sample_r"].value > 0.9 and found["sample_r"].chance == pytest.approx(found["sample_r"].value)
    assert found["voxel_r"].value == 0 and found["voxel_r"].at_chance


def test_voxels_below_the_ceiling_do_not_count(planted):
    dataset, ids, clean = planted
    test = dataset.pairs("subj01", "made", "test", average="repeats")
    ncsnr = np.where(np.arange(clean.shape[1]) < 4, 1.0, 0.01)
    found = by_name(protocols.encoding_scores(test, clean, ids, ncsnr, resamples=20))
    assert f"NC >= 0.1: 4 of {len(ncsnr)} voxels" in found["voxel_r"].mask
    assert found["mse"].value == pytest.approx(0)
    with pytest.raises(BrainDataError, match="expected voxels to score"):
        protocols.encoding_scores(test, clean, ids, ncsnr * 0, resamples=20)
    unknown = by_name(protocols.encoding_scores(test, clean, ids, resamples=20))
    assert "nr2" not in unknown and "no noise ceiling" in unknown["voxel_r"].note


def test_predictions_are_joined_by_id(planted):
    dataset, ids, clean = planted
    test = dataset.pairs("subj01", "made", "test", average="repeats")
    with pytest.raises(IdError, match="got none; near"):
        protocols.encoding_scores(test, clean[1:], ids[1:])
    with pytest.raises(IdError, match="one prediction an image"):
        protocols.encoding_scores(test, clean, [ids[1], *ids[1:]])
    with pytest.raises(AxisError, match="an id for each"):
        protocols.encoding_scores(test, clean, ids[1:])
    with pytest.raises(AxisError, match="voxels"):
        protocols.encoding_scores(test, clean[:, 1:], ids)


def test_synbrain_compares_with_every_trial(planted):
    dataset, ids, clean = planted
    trials = dataset.pairs("subj01", "made", "test")
    found = by_name(published.scores_as_in_synbrain(trials, clean, ids, resamples=20))
    assert set(found) == {"mse", "sample_r", "cosine"} and found["mse"].n == 90
    rows = {name: row for row, name in enumerate(ids)}
    values = [[], [], []]
    for name, y in zip(trials.image_ids, trials.array(), strict=True):
        for out, which in zip(values, ("mse", "pearson", "cosine"), strict=True):
            out.append(by_hand(which, y.astype(float), clean[rows[name]].astype(float)))
    for name, expected in zip(("mse", "sample_r", "cosine"), values, strict=True):
        assert found[name].value == pytest.approx(np.mean(expected), rel=1e-6)
        assert "synbrain" in found[name].note and found[name].repeats == "single"
    with pytest.raises(BrainDataError, match="single trials"):
        published.scores_as_in_synbrain(dataset.pairs("subj01", "made", "test", average="repeats"), clean, ids)


def test_neuroflow_maps_predictions_back(planted):
    dataset, ids, clean = planted
    test, train = (dataset.pairs("subj01", "made", part, average="repeats") for part in ("test", "train"))
    known = train.array().astype(float)
    z = (clean - known.mean(0)) / known.std(0)
    found = by_name(published.scores_as_in_neuroflow(test, z, ids, train, resamples=20))
    assert found["mse"].value < 1e-12 and found["sample_r"].value == pytest.approx(1) and found["mse"].n == 30
    with pytest.raises(BrainDataError, match="train images"):
        published.scores_as_in_neuroflow(test, z, ids, test)


def test_paper_protocols_refuse_other_scales(planted):
    dataset, ids, clean = planted
    other = dataset.with_subject(replace(dataset.subject("subj01"), normalizer="psc"))
    with pytest.raises(NormalizationError, match="div2000"):
        published.scores_as_in_synbrain(other.pairs("subj01", "made", "test"), clean, ids)
