"""Voxel models, held-out errors, priors over weights and two ridges: loops in fp64, and a world with known truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit

from brainmodels.baselines import PriorRidge, ReleasedRidge, Ridge, VoxelModel, WeightPrior, heldout_variance
from brainmodels.baselines.voxels import heldout_residuals
from brainmodels.errors import AxisError, BrainDataError, LeakageError
from tests.brainmodels.gauss import BIAS_VARIANCE, Gauss, bayes
from tests.brainmodels.test_baselines_ridge import closed_form


def ridge_of(X, Y):
    """A fit at a penalty that is written out here."""
    return VoxelModel(*closed_form(X, Y, 2.0), "closed form")


def few(count=12, voxels=7, width=5, seed=0):
    """(features, responses) of few images in the linear world."""
    world = Gauss(width, seed)
    x, truth = world.images(count), world.voxels(voxels)
    return x, world.respond(x, *truth)


def some_prior(width=5, seed=1):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width + 1, width + 1))
    return WeightPrior(rng.normal(size=width + 1), mixing @ mixing.T + 0.1 * np.eye(width + 1))


def solved(X, Y, prior, noise):
    """Posterior mean (E+1, V), a voxel at a time."""
    Z, precision = np.column_stack([X, np.ones(len(X))]), np.linalg.inv(prior.covariance)
    found = [
        np.linalg.solve(Z.T @ Z / v + precision, Z.T @ y / v + precision @ prior.mean)
        for y, v in zip(Y.T, noise, strict=True)
    ]
    return np.stack(found, 1)


def test_bayes_ridge_of_the_world_is_an_independent_solve():
    world = Gauss(6)
    x, (w, b, sigma) = world.images(9), world.voxels(11)
    y = world.respond(x, w, b, sigma)
    truth = WeightPrior(np.zeros(7), np.diag([1.0] * 6 + [BIAS_VARIANCE]))
    for found in (np.vstack(bayes(x, y, sigma)), truth.posterior(x, y, sigma**2)):
        np.testing.assert_allclose(found, solved(x, y, truth, sigma**2), rtol=1e-10, atol=1e-12)


def test_a_voxel_model_is_the_baseline_that_it_came_from():
    for x, y in (few(40), few(12, width=30)):
        fitted = Ridge().fit(x, y)
        model = VoxelModel.of(fitted, "ridge", ["a:1", "a:2", "a:1"])
        assert model.image_ids == ("a:1", "a:2") and model.coef_.dtype == np.float32
        np.testing.assert_allclose(model.predict(x), fitted.predict(x), atol=1e-5)
        np.testing.assert_allclose(model.score(x, y), fitted.score(x, y), atol=1e-5)
        expected = 1 - ((y - model.predict(x)) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(model.score(x, y), expected, rtol=1e-6)


def test_some_voxels_of_a_model_are_its_columns():
    x, y = few(40)
    model = replace(VoxelModel.of(Ridge().fit(x, y), "ridge", ["a:1"]), residual_var_=np.arange(1, 8))
    mask = np.array([False, True, True, False, False, False, True])
    part = model.select(mask)
    np.testing.assert_allclose(part.predict(x), model.predict(x)[:, mask], atol=1e-6)
    assert part.residual_var_.tolist() == [2, 3, 7] and (part.method, part.image_ids) == ("ridge", ("a:1",))
    for wrong in (mask[:6], mask.astype(int), np.zeros(7, bool)):
        with pytest.raises(AxisError, match="booleans of 7 voxels, not all False, got"):
            model.select(wrong)


def test_a_voxel_model_survives_tensors_and_leaves_the_others_of_a_file():
    x, y = few(40)
    plain = VoxelModel.of(Ridge().fit(x, y), "ridge")
    full = replace(plain, method="prior_ridge", image_ids=("a:é", "a:2"), residual_var_=np.arange(1, 8))
    arrays = plain.arrays("sim01.first") | full.arrays("sim01.second") | {"other": torch.zeros(1)}
    again = [VoxelModel.taken(arrays, f"sim01.{name}") for name in ("first", "second")]
    assert list(arrays) == ["other"] and again[0].residual_var_ is None
    for found, written in zip(again, (plain, full), strict=True):
        assert (found.method, found.image_ids) == (written.method, written.image_ids)
        np.testing.assert_array_equal(found.predict(x), written.predict(x))
    np.testing.assert_array_equal(again[1].residual_var_, full.residual_var_)
    with pytest.raises(KeyError, match=r"sim01\.first\.coef"):
        VoxelModel.taken(arrays, "sim01.first")


def test_misuse_of_a_voxel_model_is_named():
    coef, intercept = np.ones((5, 7)), np.zeros(7)
    model = VoxelModel(coef, intercept, "ridge", ("a:1", "a:2"))
    model.check_unseen(["a:3"])
    with pytest.raises(LeakageError, match="outside the context of ridge, got 1 that are in it, such as a:2"):
        model.check_unseen(["a:3", "a:2"])
    with pytest.raises(AxisError, match="expected 5 features, as ridge has weights, got 4"):
        model.predict(np.ones((2, 4)))
    with pytest.raises(AxisError, match=r"expected intercept_ of 7 voxels, got shape \(6,\)"):
        VoxelModel(coef, intercept[:6], "ridge")
    with pytest.raises(AxisError, match=r"expected residual_var_ of 7 voxels, got shape \(1,\)"):
        replace(model, residual_var_=np.ones(1))
    for values in (np.full(7, np.nan), -np.ones(7)):
        with pytest.raises(BrainDataError, match="finite residual_var_ and no negative variances"):
            replace(model, residual_var_=values)
    with pytest.raises(AxisError, match=r"weights \(features, voxels\), got shape \(7,\)"):
        VoxelModel(intercept, intercept, "ridge")


@pytest.mark.parametrize("groups", [None, np.arange(24) // 2], ids=["rows", "images"])
def test_heldout_variance_by_hand(groups):
    X, Y = few(24)
    folds = list(KFold(5).split(X) if groups is None else GroupKFold(5).split(X, groups=groups))
    residuals = np.empty_like(Y)
    for train, test in folds:
        w, b = closed_form(X[train], Y[train], 2.0)
        residuals[test] = Y[test] - X[test] @ w - b
    r, n = (residuals**2).mean(0), 24 if groups is None else 12
    expected = (n * r + 4 * r.mean()) / (n + 4)
    np.testing.assert_allclose(heldout_variance(ridge_of, X, Y, groups), expected, rtol=1e-5)
    np.testing.assert_allclose(heldout_residuals(ridge_of, X, Y, groups), residuals, atol=1e-5)


def test_heldout_variance_is_near_the_noise_where_images_abound_and_errors_of_the_fit_are_not():
    world = Gauss(16)
    truth = world.voxels(60)
    for count, heldout in ((400, (0.95, 1.15)), (16, (1.5, 3.0))):
        x = world.images(count)
        y = world.respond(x, *truth)
        noise = (truth[2] ** 2).mean()
        low, high = heldout
        assert low < heldout_variance(ridge_of, x, y).mean() / noise < high
    least = VoxelModel(*closed_form(x, y, 1e-6), "interpolation")
    assert ((y - least.predict(x)) ** 2).mean() < 0.05 * noise


def test_folds_that_leave_rows_out_are_refused():
    X, Y = few(24)
    with pytest.raises(BrainDataError, match=r"folds that hold out every row once, got row \d+ in [02]"):
        heldout_variance(ridge_of, X, Y, cv=ShuffleSplit(2, random_state=0))
    with pytest.raises(AxisError, match="24 and 23"):
        heldout_variance(ridge_of, X, Y[:23])


def test_a_prior_has_the_moments_of_all_voxels_of_all_subjects():
    rng = np.random.default_rng(0)
    models = [VoxelModel(rng.normal(size=(4, v)), rng.normal(2, 0.1, v), "ridge") for v in (30, 50)]
    prior = WeightPrior.of(models)
    rows = np.concatenate([np.column_stack([m.coef_.T, m.intercept_]) for m in models]).astype(np.float64)
    np.testing.assert_allclose(prior.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(prior.covariance, ledoit_wolf(rows)[0] + 1e-6 * np.eye(5), rtol=1e-12)
    with pytest.raises(AxisError, match="one number of features, got 3, 4"):
        WeightPrior.of([*models, VoxelModel(np.ones((3, 2)), np.ones(2), "ridge")])
    with pytest.raises(BrainDataError, match="two or more voxels, got 0 with fewer"):
        WeightPrior.of([])


@pytest.mark.parametrize("generator", [np.random.default_rng(0), torch.Generator().manual_seed(0)], ids=["np", "torch"])
def test_draws_have_the_moments_of_the_prior(generator):
    prior = some_prior(3)
    draws = np.asarray(prior.draw(generator, 40_000), np.float64)
    scale = np.sqrt(np.diag(prior.covariance))
    assert np.abs((draws.mean(0) - prior.mean) / scale).max() < 0.03
    assert np.abs((np.cov(draws.T) - prior.covariance) / np.outer(scale, scale)).max() < 0.04


def test_misuse_of_a_prior_is_named():
    with pytest.raises(BrainDataError, match="positive definite covariance, got others"):
        WeightPrior(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(BrainDataError, match="positive definite covariance, got others"):
        WeightPrior(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]))  # a triangle alone would look well
    with pytest.raises(AxisError, match=r"a mean \(E\+1,\) and its covariance, got \(2,\) and \(3, 3\)"):
        WeightPrior(np.zeros(2), np.eye(3))
    with pytest.raises(BrainDataError, match=r"variances above 0, got 0\.0 in voxel 1"):
        some_prior().posterior(*few(), np.array([1.0, 0, 1, 1, 1, 1, 1]))
    with pytest.raises(AxisError, match=r"expected features \(12, 4\) .* got \(12, 5\)"):
        some_prior(4).posterior(*few(), np.ones(7))


@pytest.mark.parametrize("count", [12, 5, 40])
def test_prior_ridge_is_a_loop_over_voxels(count):
    """Also with fewer images than inner folds need, and with more images than features."""
    (X, Y), prior = few(count), some_prior()
    model = PriorRidge(prior=prior).fit(X, Y)
    noise = heldout_variance(lambda x, y: VoxelModel.of(Ridge(cv=min(5, len(x))).fit(x, y), "ridge"), X, Y)
    np.testing.assert_allclose(model.noise_, noise, rtol=1e-6)
    expected = solved(X, Y, prior, noise)
    np.testing.assert_allclose(model.coef_, expected[:-1], atol=1e-5)
    np.testing.assert_allclose(model.intercept_, expected[-1], atol=1e-5)
    np.testing.assert_allclose(model.predict(X), X @ expected[:-1] + expected[-1], atol=1e-5)


def test_prior_ridge_keeps_the_rows_of_an_image_together():
    X, Y = few(12)
    X, Y = np.tile(X, (2, 1)), np.concatenate([Y, Y + 1e-3])  # row by row, every held-out image would be known
    images = np.arange(24) % 12
    noise = PriorRidge(prior=some_prior()).fit(X, Y, groups=images).noise_
    r = np.zeros(7)
    for train, test in GroupKFold(5).split(X, groups=images):
        r += ((Y[test] - Ridge().fit(X[train], Y[train], images[train]).predict(X[test])) ** 2).sum(0) / 24
    np.testing.assert_allclose(noise, (12 * r + 4 * r.mean()) / 16, rtol=1e-5)


def test_a_narrow_prior_or_endless_noise_leaves_the_prior_mean():
    (X, Y), prior = few(), some_prior()
    mean = np.tile((X @ prior.mean[:-1] + prior.mean[-1])[:, None], 7)
    narrow = PriorRidge(prior=WeightPrior(prior.mean, 1e-12 * prior.covariance)).fit(X, Y)
    np.testing.assert_allclose(narrow.predict(X), mean, atol=1e-5)
    np.testing.assert_array_equal(prior.posterior(X, Y, np.full(7, np.inf)), np.tile(prior.mean[:, None], 7))


@pytest.mark.parametrize("count", [12, 40])
def test_a_wide_prior_over_the_intercept_makes_ridge(count):
    """N(0, diag(c, ..., c, much)) with noise a c is ridge with penalty a and a free intercept."""
    X, Y = few(count)
    prior = WeightPrior(np.zeros(6), np.diag([3.0] * 5 + [1e9]))
    slopes, intercept = closed_form(X, Y, 0.7)
    found = prior.posterior(X, Y, np.full(7, 0.7 * 3))
    np.testing.assert_allclose(found, np.vstack([slopes, intercept]), atol=1e-6)


@pytest.mark.parametrize(("count", "gain"), [(8, 0.85), (16, 0.87), (64, 0.95)])
def test_voxels_of_others_help_where_images_are_few(count, gain):
    """Squared error against noise-free responses, measured as a ratio:

    | images | to ridge | to Bayes |
    |---|---|---|
    | 8 | .75 | 1.14 |
    | 16 | .80 | 1.15 |
    | 64 | .91 | 1.07 |
    """
    errors = []
    for seed in range(3):
        world = Gauss(16, seed)
        others, (w, b, sigma) = world.voxels(300), world.voxels(100)
        many, x, query = world.images(300), world.images(count), world.images(300)
        prior = WeightPrior.of([VoxelModel.of(Ridge().fit(many, world.respond(many, *others)), "ridge")])
        y, truth = world.respond(x, w, b, sigma), query @ w + b
        best, intercept = bayes(x, y, sigma)
        found = [PriorRidge(prior=prior).fit(x, y).predict(query), Ridge().fit(x, y).predict(query)]
        errors.append([np.square(p - truth).mean() for p in (*found, query @ best + intercept)])
    with_prior, without, least = np.mean(errors, 0)
    assert 0.99 * least < with_prior < min(gain * without, 1.25 * least)


def test_prior_ridge_follows_its_prior_through_clones_and_fits():
    (X, Y), prior = few(), some_prior()
    model = clone(PriorRidge(prior=prior))
    np.testing.assert_array_equal(model.prior.mean, prior.mean)
    np.testing.assert_array_equal(model.fit(X, Y).predict(X), PriorRidge(prior=prior).fit(X, Y).predict(X))
    np.testing.assert_array_equal(model.set_params(prior=None).fit(X, Y).predict(X), PriorRidge().fit(X, Y).predict(X))
    assert not hasattr(model, "noise_") and hasattr(model, "alphas_")
    assert not hasattr(model.set_params(prior=prior).fit(X, Y), "alphas_")
    with pytest.raises(AxisError, match="expected 4 features, as the prior has, got 5"):
        PriorRidge(prior=some_prior(4)).fit(X, Y)
    with pytest.raises(BrainDataError, match=r"variances above 0, got 0\.0 in voxel 0"):
        PriorRidge(prior=prior).fit(X, np.full_like(Y, 3))


def released_by_hand(X, Y, alphas):
    """Five blocks of n // 5 rows; explained variance chooses; the weights of the folds are averaged."""
    Z, size = np.column_stack([X, np.ones(len(X))]), len(X) // 5
    chosen, weights = [], []
    for y in Y.T:
        scores, fits = np.zeros((5, len(alphas))), np.zeros((5, len(alphas), Z.shape[1]))
        for fold in range(5):
            test = np.isin(np.arange(len(X)), range(fold * size, fold * size + size))
            z = Z[~test]
            for place, alpha in enumerate(alphas):
                fits[fold, place] = np.linalg.solve(z.T @ z + alpha * np.eye(Z.shape[1]), z.T @ y[~test])
                scores[fold, place] = 1 - np.var(y[test] - Z[test] @ fits[fold, place]) / np.var(y[test])
        best = scores.mean(0).argmax()
        chosen.append((alphas[best], scores.mean(0)[best]))
        weights.append(fits[:, best].mean(0))
    return np.array(chosen).T, np.array(weights).T


@pytest.mark.parametrize("width", [5, 30])
def test_released_ridge_by_hand(width):
    X, Y = few(23, 15, width)  # three rows are left over
    Y = Y + np.linspace(0, 4, 15)
    model = ReleasedRidge().fit(X, Y)
    (alphas, scores), weights = released_by_hand(X, Y, (0.01, 1.0, 10.0, 100.0))
    assert len(set(alphas)) > 1
    np.testing.assert_array_equal(model.alphas_, alphas)
    np.testing.assert_allclose(model.cv_scores_, scores, rtol=1e-6)
    np.testing.assert_allclose(model.coef_, weights[:-1], atol=1e-5)
    np.testing.assert_allclose(model.intercept_, weights[-1], atol=1e-5)
    np.testing.assert_allclose(model.predict(X), X @ weights[:-1] + weights[-1], atol=1e-5)


def test_released_ridge_is_weaker_with_many_images_and_with_large_means():
    """Squared error against noise-free responses, 64 images: measured 1.14 times ridge's, and 2.8 with means of 5."""
    world = Gauss(16)
    (w, b, sigma), x, query = world.voxels(200), world.images(64), world.images(300)
    y, ratios = world.respond(x, w, b, sigma), []
    for mean in (0, 5):
        truth = query @ w + b + mean
        errors = [
            np.square(model.fit(x, y + mean).predict(query) - truth).mean() for model in (ReleasedRidge(), Ridge())
        ]
        ratios.append(errors[0] / errors[1])
    assert 1.02 < ratios[0] < 1.2 and ratios[1] > 1.5


def test_misuse_of_released_ridge_is_named():
    X, Y = few(12)
    with pytest.raises(BrainDataError, match="two or more folds of two or more rows, got 5 of 9 samples"):
        ReleasedRidge().fit(X[:9], Y[:9])
    with pytest.raises(LeakageError, match="one row for each image, got 12 of 6 images"):
        ReleasedRidge().fit(X, Y, groups=np.arange(12) % 6)
    constant = ReleasedRidge().fit(X, np.full_like(Y, 2.0))
    assert np.isnan(constant.cv_scores_).all() and set(constant.alphas_) == {0.01}


def test_facts_of_a_model_are_json():
    facts = VoxelModel(np.ones((2, 2)), np.ones(2), "ridge", ("a:1",)).arrays("x")["x.facts"]
    assert json.loads(bytes(facts.tolist())) == {"method": "ridge", "image_ids": ["a:1"]}
