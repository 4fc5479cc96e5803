"""Reduced-rank ridge and ridge with a prior: brute force in fp64, limits where they equal ridge, and planted truth."""

import numpy as np
import pytest
from sklearn.model_selection import KFold

from brainmodels.baselines import PriorRidge, ReducedRankRidge, Ridge
from brainmodels.errors import BrainDataError
from tests.brainmodels.test_baselines_ridge import SHAPES, closed_form, made, relative


def projected(X, Y, alphas, rank):
    """Slopes and intercept of ridge whose fitted values keep their `rank` largest singular directions, in fp64."""
    slopes, _ = closed_form(X, Y, alphas)
    patterns = np.linalg.svd((X - X.mean(0)) @ slopes)[2][:rank]
    slopes = slopes @ patterns.T @ patterns
    return slopes, Y.mean(0) - X.mean(0) @ slopes


@SHAPES
def test_reduced_rank_by_brute_force(features):
    """The rank is that of a loop over folds and ranks; the slopes are those of that rank."""
    X, Y = made(features, voxels=12)
    model = ReducedRankRidge((10.0, 1000.0), ranks=(1, 2, 3, 5, 8)).fit(X, Y)
    assert len(set(model.alphas_)) > 1
    for rank, score in model.rank_scores_.items():
        errors = []
        for train, test in KFold(5).split(X):
            slopes, intercept = projected(X[train], Y[train], model.alphas_, rank)
            errors.append(((Y[test] - X[test] @ slopes - intercept) ** 2).sum())
        np.testing.assert_allclose(-score, np.sum(errors) / len(X), rtol=1e-4)
    assert [*model.rank_scores_] == [1, 2, 3, 5, 8, 12]
    assert relative(model.coef_, projected(X, Y, model.alphas_, model.rank_)[0]) < 1e-3


def test_full_rank_is_ridge():
    X, Y = made(voxels=6)
    model, ridge = ReducedRankRidge(ranks=(64,)).fit(X, Y), Ridge().fit(X, Y)
    assert model.rank_ == 6 and [*model.rank_scores_] == [6]
    np.testing.assert_allclose(model.predict(X), ridge.predict(X), rtol=1e-4)


@pytest.mark.parametrize("ranks", [(), (0, 2), (1.5,)])
def test_ranks_are_whole_numbers(ranks):
    with pytest.raises(BrainDataError, match="expected ranks of 1 or more, got"):
        ReducedRankRidge(ranks=ranks).fit(*made())


@SHAPES
def test_prior_by_brute_force(features):
    """The posterior mean under N(0, S), with S the second moment of the slopes that ridge finds, in fp64."""
    X, Y = made(features)
    model = PriorRidge((0.5,)).fit(X, Y)
    others = Ridge().fit(X, Y).coef_.astype(np.float64)
    prior, x, y = others @ others.T / Y.shape[1], X - X.mean(0), Y - Y.mean(0)
    noise = 0.5 * Y.var(0).mean() * np.eye(len(X))
    slopes = prior @ x.T @ np.linalg.solve(x @ prior @ x.T + noise, y)
    assert relative(model.predict(X) - Y.mean(0), x @ slopes) < 1e-3
    assert relative(model.coef_, slopes) < 5e-3


def test_units_of_the_responses_do_not_matter():
    X, Y = made()
    model, scaled = PriorRidge().fit(X, Y), PriorRidge().fit(X, 1e4 * Y)
    assert relative(scaled.predict(X), 1e4 * model.predict(X)) < 1e-5


@pytest.mark.parametrize("estimator", [ReducedRankRidge(), PriorRidge()], ids=lambda x: type(x).__name__)
def test_voxels_that_share_a_few_patterns_teach_each_other(estimator):
    """200 voxels, weights in 4 of 100 directions, 120 noisy samples: R^2 at least 1.4 times ridge's. Weights that are
    independent have nothing to share; there the prior, whose parts are drawn with noise, loses up to a quarter.
    """
    rng = np.random.default_rng(0)
    X, mixing = rng.normal(size=(1120, 100)), rng.normal(size=(4, 200))
    gained = []
    for weights in (rng.normal(size=(100, 4)) @ mixing / 20, rng.normal(size=(100, 200)) / 10):
        Y = X @ weights + rng.normal(size=(1120, 200))
        scores = [model.fit(X[:120], Y[:120]).score(X[120:], Y[120:]).mean() for model in (estimator, Ridge())]
        gained.append(scores[0] / scores[1])
    assert gained[0] > 1.4 and gained[1] > 0.75


@pytest.mark.parametrize("estimator", [ReducedRankRidge(), PriorRidge()], ids=lambda x: type(x).__name__)
def test_constant_responses_and_a_single_voxel(estimator):
    X, Y = made()
    np.testing.assert_allclose(estimator.fit(X, np.full_like(Y, 3)).predict(X), 3, rtol=1e-6)
    one = estimator.fit(X, Y[:, :1])
    assert one.predict(X).shape == (60, 1)
    assert one.score(X, Y[:, :1])[0] > 0.8 * Ridge().fit(X, Y[:, :1]).score(X, Y[:, :1])[0]
