"""Intervals cover what they should, and chance is where it is."""

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.metrics import Metric, score_images
from brainmodels.metrics.statistics import (
    bootstrap,
    bootstrap_mean,
    bootstrap_weights,
    paired_difference,
    pairing_chance,
    permutation_chance,
)

METRIC = Metric("made", "semantic", "up", 0.5, None, "made")


def coverage(draw, clusters=None, runs=400):
    """Share of 95 % intervals that contain the true mean, 2."""
    rng = np.random.default_rng(1)
    return np.mean([2 in bootstrap_mean(draw(rng), 400, seed, clusters) for seed in range(runs)])


def test_coverage_of_a_known_mean():
    assert 0.90 <= coverage(lambda rng: rng.normal(2, 1, 60)) <= 0.99


def test_clusters_are_drawn_whole():
    """Four samples of each of 30 objects: images drawn one by one cover the mean far too seldom, objects do."""
    objects = np.repeat(np.arange(30), 4)

    def draw(rng):
        return 2 + rng.normal(size=30)[objects] + 0.3 * rng.normal(size=120)

    assert 0.90 <= coverage(draw, objects) <= 0.99
    assert coverage(draw) < 0.80


def test_weights_are_draws_with_replacement():
    weights = bootstrap_weights(7, 4000, seed=1)
    assert (weights.sum(1) == 7).all() and (weights >= 0).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.07)
    np.testing.assert_allclose(weights.var(0), 6 / 7, atol=0.1)  # of a multinomial
    clustered = bootstrap_weights(5, 10, seed=1, clusters=["a", "b", "a", "c", "b"])
    assert (clustered[:, 0] == clustered[:, 2]).all() and (clustered[:, 1] == clustered[:, 4]).all()
    np.testing.assert_array_equal(bootstrap_weights(9, 5, seed=3), bootstrap_weights(9, 5, seed=3))
    assert (bootstrap_weights(9, 5, seed=3) != bootstrap_weights(9, 5, seed=4)).any()


def test_any_statistic_sees_the_same_draws():
    values = np.random.default_rng(2).exponential(size=40)
    assert bootstrap(lambda drawn: values[drawn].mean(), 40, 200, 5)[:2] == pytest.approx(
        bootstrap_mean(values, 200, 5)[:2]
    )


def test_differences_share_their_resamples():
    """Two models on the same hard and easy images: apart they overlap, paired they are distinct."""
    rng = np.random.default_rng(3)
    image = rng.normal(size=80)
    first, second = image + 0.3 + 0.1 * rng.normal(size=80), image + 0.1 * rng.normal(size=80)
    found = paired_difference(first, second)
    assert found.value == pytest.approx(np.mean(first) - np.mean(second)) and found.distinct and found.n == 80
    assert bootstrap_mean(first).low < bootstrap_mean(second).high
    assert not paired_difference(first, first + rng.normal(size=80) * 0.1).distinct
    with pytest.raises(AxisError, match="80 and 79"):
        paired_difference(first, second[1:])


def test_permutations_find_chance_and_tell_a_real_pairing_from_it():
    rng = np.random.default_rng(4)
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)

    def correlation(order):
        return np.corrcoef(x, y[order])[0, 1]

    real = correlation(np.arange(50))
    found = permutation_chance(correlation, 50, 500, observed=real)
    assert 0.0 in found.interval and real not in found.interval and found.p_up == pytest.approx(1 / 501)
    assert found.sd == pytest.approx(1 / np.sqrt(49), rel=0.15)  # of r under independence


def test_chance_of_pairs_against_every_permutation():
    """Four pairs have 24 permutations; the sampled distribution has their mean and quantiles."""
    from itertools import permutations

    table = np.random.default_rng(5).random((4, 4))
    every = [table[np.arange(4), list(order)].mean() for order in permutations(range(4))]
    found = pairing_chance(table, 5000)
    assert found.mean == pytest.approx(np.mean(every), abs=0.01) and found.sd == pytest.approx(np.std(every), rel=0.05)
    assert found.p_up == pytest.approx(np.mean(np.array(every) >= np.diag(table).mean() - 1e-12), abs=0.02)
    with pytest.raises(AxisError, match="all pairs"):
        pairing_chance(table[:3])


def test_scores_of_images():
    table = np.random.default_rng(6).random((30, 30))
    score = score_images(METRIC, np.diag(table), table, seed=7, features="abc", subject="sim01")
    assert score.value == pytest.approx(np.diag(table).mean()) and score.n == 30
    assert score.interval == bootstrap_mean(np.diag(table), seed=7)
    assert score.chance == 0.5 and score.chance_interval == pairing_chance(table, seed=7).interval
    assert (score.features, score.subject, score.seed) == ("abc", "sim01", 7)
    assert score_images(METRIC, np.array([0.3])).interval is None  # one image has no interval


def test_bad_input():
    with pytest.raises(BrainDataError, match="2 that are not"):
        bootstrap_mean([1.0, np.nan, np.inf])
    with pytest.raises(AxisError, match="one value"):
        score_images(METRIC, np.ones((2, 2)))
    with pytest.raises(BrainDataError, match="clusters to resample, got 1"):
        bootstrap_mean([1.0, 2.0], clusters=["a", "a"])
    with pytest.raises(AxisError, match="cluster for each"):
        bootstrap_mean([1.0, 2.0], clusters=["a"])
