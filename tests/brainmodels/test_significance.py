"""Tests over voxels against loops, scipy and planted effects."""

import math

import numpy as np
import pytest
from scipy import stats

from brainmodels.data.reliability import ncsnr, noise_ceiling
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.metrics.ceilings import _resampled_ceilings, ceiling_interval
from brainmodels.metrics.significance import (
    _influence,
    fdr_adjusted,
    num_orders,
    permutations_within,
    voxel_difference,
    voxel_test,
)
from brainmodels.metrics.statistics import paired_difference, resampled_difference, sign_flips


def correlated(n, voxels, r, seed=0):
    """(measured, predicted) (n, voxels) whose correlation is r on average."""
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(n, voxels))
    return measured, r * measured + np.sqrt(1 - r**2) * rng.normal(size=(n, voxels))


def r_of(y, p):
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(y.T, p.T, strict=True)])


def test_p_values_are_those_of_a_loop_over_permutations(monkeypatch):
    monkeypatch.setattr("brainmodels.metrics.significance._VOXELS", 3)  # blocks of voxels that do not divide them
    measured, predicted = correlated(24, 7, 0.3)
    blocks = np.arange(24) % 3
    regions = {"few": np.arange(7) < 2, "rest": np.arange(7) >= 2}
    found = voxel_test(measured, predicted, 99, 5, blocks, regions)
    orders = permutations_within(24, 99, 5, blocks)
    drawn = np.array([r_of(measured, predicted[order]) for order in orders])
    r = r_of(measured, predicted)
    np.testing.assert_allclose(found.r, r, atol=1e-9)
    np.testing.assert_allclose(found.p, (1 + (drawn >= r).sum(0)) / 100)
    np.testing.assert_allclose(found.p_max, (1 + (drawn.max(1)[:, None] >= r).sum(0)) / 100)
    means = np.stack([drawn[:, mask].mean(1) for mask in regions.values()], 1)
    for column, (name, mask) in enumerate(regions.items()):
        region = found.regions[name]
        assert region.mean == pytest.approx(r[mask].mean()) and region.voxels == mask.sum()
        assert region.p == pytest.approx((1 + (means[:, column] >= r[mask].mean()).sum()) / 100)
        assert region.p_max == pytest.approx((1 + (means.max(1) >= r[mask].mean()).sum()) / 100)


def test_p_of_one_voxel_is_that_of_scipy():
    measured, predicted = correlated(7, 1, 0.6, seed=4)
    exact = stats.permutation_test(
        (measured[:, 0],),
        lambda y: np.corrcoef(y, predicted[:, 0])[0, 1],
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert voxel_test(measured, predicted, 20_000).p[0] == pytest.approx(exact.pvalue, abs=0.01)


def test_constant_voxels_are_not_tested_and_constant_predictions_never_significant():
    measured, predicted = correlated(30, 5, 0.9)
    measured[:, 1], predicted[:, 2] = 4, -1
    found = voxel_test(measured, predicted, 200, regions={"all": np.ones(5, bool), "dead": np.arange(5) == 1})
    assert np.isnan(found.r[1]) and np.isnan(found.p[1]) and np.isnan(found.q[1]) and np.isnan(found.p_max[1])
    assert found.p[2] == 1 and found.p_max[2] == 1
    assert found.fdr().tolist() == found.max_statistic().tolist() == [True, False, False, True, True]
    assert found.regions["all"].voxels == 4 and "dead" not in found.regions


def test_permutations_within_runs_ignore_what_runs_share():
    """Both rise and fall with the run. Free permutations take that for knowledge of the images."""
    rng = np.random.default_rng(0)
    runs = np.repeat(np.arange(8), 10)
    shift = rng.normal(size=(8, 200))[runs]
    measured, predicted = (shift + rng.normal(size=(80, 200)) for _ in range(2))
    free, within = voxel_test(measured, predicted, 400), voxel_test(measured, predicted, 400, blocks=runs)
    assert (free.p < 0.05).mean() > 0.8
    assert (within.p < 0.05).mean() < 0.09 and not within.fdr().any() and not within.max_statistic().any()


def test_orders_stay_in_their_blocks_and_are_counted():
    blocks = np.array(list("aabbbc"))
    orders = permutations_within(6, 500, 1, np.array(list("aabbbb")))
    assert (np.sort(orders[:, :2], 1) == [0, 1]).all() and (np.sort(orders[:, 2:], 1) == [2, 3, 4, 5]).all()
    assert len(np.unique(orders, axis=0)) == 2 * 24 == num_orders(6, np.array(list("aabbbb")))
    assert num_orders(6, blocks) == 12 and num_orders(5) == 120 and num_orders(400) == math.inf
    with pytest.raises(BrainDataError, match=r"expected 20 orders .* got 6 images in 3 blocks"):
        permutations_within(6, 10, 0, blocks)
    with pytest.raises(AxisError, match=r"expected a block for each of 6 images, got shape \(5,\)"):
        permutations_within(6, 10, 0, blocks[:5])
    with pytest.raises(AxisError, match="expected region 'V1' of 3 voxels"):
        voxel_test(*correlated(9, 3, 0), 10, regions={"V1": np.ones(4, bool)})


def test_adjusted_p_follow_benjamini_and_hochberg():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005, 0.9])
    known = np.sort(p[~np.isnan(p)])
    expected = {x: min(known[j] * 5 / (j + 1) for j in range(i, 5)) for i, x in enumerate(known)}
    np.testing.assert_allclose(fdr_adjusted(p), [expected.get(x, np.nan) for x in p])
    assert np.isnan(fdr_adjusted(np.full(3, np.nan))).all()


def test_what_an_image_adds_is_the_jackknife():
    measured, predicted = correlated(12, 2, 0.5)
    added = _influence(measured, predicted)
    r = r_of(measured, predicted)
    np.testing.assert_allclose(added.mean(0), r)
    left = np.array([r_of(np.delete(measured, i, 0), np.delete(predicted, i, 0)) for i in range(12)])
    np.testing.assert_allclose(added, r + 11 * (left.mean(0) - left), atol=1e-9)
    predicted[:, 1] = 3
    assert (_influence(measured, predicted)[:, 1] == 0).all()


def test_a_difference_of_two_models_is_a_loop_over_signs():
    measured, first = correlated(20, 4, 0.6)
    _, second = correlated(20, 4, 0.1, seed=9)
    found = voxel_difference(measured, first, second, 200, 3)
    added = _influence(measured, first) - _influence(measured, second)
    drawn = np.abs([(signs[:, None] * added).mean(0) for signs in sign_flips(20, 200, 3).astype(float)])
    size = np.abs(added.mean(0))
    np.testing.assert_allclose(found.difference, added.mean(0))
    np.testing.assert_allclose(found.p, (1 + (drawn >= size - 1e-6).sum(0)) / 201)
    np.testing.assert_allclose(found.p_max, (1 + (drawn.max(1)[:, None] >= size - 1e-6).sum(0)) / 201)
    assert found.mean == pytest.approx(added.mean())
    other = voxel_difference(measured, second, first, 200, 3)
    np.testing.assert_allclose(other.difference, -found.difference)
    np.testing.assert_allclose(other.p, found.p)


@pytest.mark.parametrize(("n", "shared"), [(30, 0.0), (60, 0.5), (60, 0.8)])
def test_p_of_a_difference_is_uniform_for_equal_models(n, shared):
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(n, 2000))
    measured = np.sqrt(shared) * signal + np.sqrt(1 - shared) * rng.normal(size=signal.shape)
    first, second = (signal + 0.7 * rng.normal(size=signal.shape) for _ in range(2))
    found = voxel_difference(measured, first, 5 * second, 400)  # scales do not matter
    assert 0.025 < (found.p <= 0.05).mean() < 0.065
    assert found.p_mean > 0.01 and (found.q > 0.05).all()


def test_clusters_flip_together_and_few_are_refused():
    clusters = np.repeat([3, 1, 2, 9, 4, 5], 2)
    signs = sign_flips(12, 2000, 0, clusters)
    assert (signs[:, ::2] == signs[:, 1::2]).all() and len(np.unique(signs, axis=0)) == 64
    with pytest.raises(BrainDataError, match=r"expected six clusters or more, .* got 3"):
        sign_flips(6, 10, 0, np.array([0, 0, 1, 1, 2, 2]))
    with pytest.raises(AxisError, match=r"expected a cluster for each of 5 images, got shape \(4,\)"):
        sign_flips(5, 10, 0, np.arange(4))


def test_p_of_paired_scores_is_that_of_the_binomial():
    """Where both are right or wrong, an image says nothing: the sign test of McNemar is left."""
    first, second = np.zeros(40), np.zeros(40)
    first[:14], second[10:15] = 1, 1  # 10 for the first, 1 for the second
    found = paired_difference(first, second, 20_000)
    assert found.value == pytest.approx(9 / 40)
    assert found.p == pytest.approx(stats.binomtest(10, 11).pvalue, abs=0.004)
    assert paired_difference(first, first).p == 1
    assert paired_difference(first[:4], second[:4]).p is None


def test_resampled_differences_are_paired_and_centred():
    rng = np.random.default_rng(0)
    both = rng.normal(size=5000)
    found = resampled_difference(both + 0.2 + rng.normal(0, 0.1, 5000), both, 0.3, 60)
    assert found.value == 0.3 and found.n == 60
    np.testing.assert_allclose(found.interval[:2], 0.3 + 0.1 * stats.norm.ppf([0.025, 0.975]), atol=0.01)
    assert found.p == pytest.approx(2 * stats.norm.sf(3), abs=0.002)
    with pytest.raises(AxisError, match="same resamples, got 5000 and 3"):
        resampled_difference(both, both[:3], 0, 60)


def repeated(seed, images, counts, ratio):
    """Responses (trials, V) with this ratio (V,) of signal to noise, and the trials of each image."""
    rng = np.random.default_rng(seed)
    shown = np.repeat(np.arange(images), counts)
    values = (rng.normal(size=(images, len(ratio))) * ratio)[shown] + rng.normal(size=(len(shown), len(ratio)))
    return values, [np.flatnonzero(shown == image) for image in range(images)]


def test_resampled_ceilings_are_ceilings_of_resampled_images():
    values, rows = repeated(0, 9, np.array([1, 2, 3, 1, 2, 3, 1, 2, 3]), np.array([0.5, 1.0]))
    weights = np.array([np.ones(9), [2, 0, 1, 0, 3, 1, 0, 1, 1]])
    counts = np.array([len(group) for group in rows], float)
    found = _resampled_ceilings(values[np.concatenate(rows)], counts, weights, 3)
    for row, drawn in zip(found, weights.astype(int), strict=True):
        again = [group for group, times in zip(rows, drawn, strict=True) for _ in range(times)]
        np.testing.assert_allclose(row, noise_ceiling(ncsnr(values, again), 3), atol=1e-12)


def test_intervals_of_ceilings_cover_the_planted_one():
    ratio, inside, covered = np.array([0.4, 0.7, 1.0, 0.0] * 6), [], []
    truth, region = noise_ceiling(ratio, 3), ratio > 0
    for seed in range(40):
        values, rows = repeated(seed, 60, np.tile([1, 2, 3, 4], 15), ratio)
        found = ceiling_interval(values, rows, 3, {"signal": region}, 200, seed)
        inside.append(((found.low <= truth) & (truth <= found.high))[region].mean())
        mean, interval = found.means["signal"]
        assert mean == pytest.approx(found.value[region].mean()) and mean in interval
        covered.append(truth[region].mean() in interval)
    assert 0.88 < np.mean(inside) <= 0.99 and 0.8 <= np.mean(covered) <= 1
    with pytest.raises(AxisError, match="expected mask 'V1' of 24 voxels"):
        ceiling_interval(values, rows, 3, {"V1": np.ones(3, bool)})
    with pytest.raises(BrainDataError, match="expected images with 2 or more trials, got 1"):
        ceiling_interval(values[:4], [np.array([row]) for row in range(4)], 3)
