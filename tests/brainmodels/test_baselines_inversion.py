"""Inversion of linear encoders against the conditional of the joint normal distribution, and what noise it is told."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from brainmodels.baselines import GaussianInversion, Ridge, VoxelModel, heldout_variance
from brainmodels.baselines.inversion import _precision_times, _shared_noise
from brainmodels.errors import AxisError, BrainDataError, LeakageError
from tests.brainmodels.gauss import Gauss


def conditional(inversion, model, Y, R):
    """(mean, covariance) of x given y, from the joint normal distribution of both; nothing of size E is inverted."""
    S, W = inversion.covariance_, model.coef_.T.astype(np.float64)
    gain = S @ W.T @ np.linalg.inv(W @ S @ W.T + R)
    mean = inversion.mean_ + (Y - model.intercept_ - W @ inversion.mean_) @ gain.T
    return mean, S - gain @ W @ S


def planted(voxels=40, width=6, seed=0, count=30):
    """(inversion, true encoder, test images, their responses)."""
    world = Gauss(width, seed)
    inversion = GaussianInversion().fit(world.images(200) + 0.3)
    (w, b, sigma), x = world.voxels(voxels), world.images(count)
    return inversion, VoxelModel(w, b, "truth", ("a:1", "a:2"), sigma**2), x, world.respond(x, w, b, sigma)


def cosine(found, truth):
    return ((found * truth).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(truth, axis=1)).mean()


def top1(found, truth):
    return np.mean((found / np.linalg.norm(found, axis=1, keepdims=True) @ truth.T).argmax(1) == np.arange(len(truth)))


@pytest.mark.parametrize("noise", ["residual", "constant"])
@pytest.mark.parametrize("voxels", [3, 40])
def test_inversion_is_the_conditional_of_the_joint_distribution(noise, voxels):
    inversion, model, _, y = planted(voxels)
    inversion.noise = noise
    variance = model.residual_var_.astype(np.float64)
    R = np.diag(variance if noise == "residual" else np.full(voxels, variance.mean()))
    mean, covariance = conditional(inversion, model, y, R)
    found, spread = inversion.decode(model, y, return_covariance=True)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, mean, atol=1e-10)
    np.testing.assert_allclose(spread, covariance, atol=1e-12)


def test_the_prior_is_that_of_the_bank():
    bank = np.random.default_rng(0).normal(size=(50, 4)) * [1, 2, 3, 0] + 5  # a feature that does not vary
    inversion = GaussianInversion().fit(bank)
    np.testing.assert_allclose(inversion.mean_, bank.mean(0))
    np.testing.assert_allclose(inversion.covariance_, ledoit_wolf(bank)[0])
    deaf = VoxelModel(np.zeros((4, 2)), np.ones(2), "none", residual_var_=np.ones(2))
    np.testing.assert_allclose(inversion.decode(deaf, np.full((3, 2), 9.0)), np.tile(bank.mean(0), (3, 1)))


def test_the_posterior_covers_the_truth_as_it_says():
    """Errors have the covariance that the posterior states; x of the bank is drawn here as the prior has it."""
    rng = np.random.default_rng(0)
    inversion, model, _, _ = planted()
    x = rng.multivariate_normal(inversion.mean_, inversion.covariance_, 4000)
    sigma = np.sqrt(model.residual_var_)
    y = x @ model.coef_ + model.intercept_ + sigma * rng.standard_normal((4000, 40))
    found, covariance = inversion.decode(model, y, return_covariance=True)
    np.testing.assert_allclose(np.cov((found - x).T), covariance, atol=0.08 * np.abs(covariance).max())


def test_shared_noise_equals_a_dense_covariance():
    world = Gauss(6)
    inversion, model, _, y = planted()
    loading = world.rng.normal(size=(2, 40))
    residuals = world.rng.normal(size=(25, 2)) @ loading + world.rng.normal(size=(25, 40))
    model = replace(model, residual_var_=(residuals**2).mean(0))
    inversion.noise = 2
    own, shared = _shared_noise(residuals, model.residual_var_.astype(np.float64), 2)
    R = np.diag(own) + shared @ shared.T
    np.testing.assert_allclose(np.diag(R), model.residual_var_, rtol=1e-10)
    W = model.coef_.T.astype(np.float64)
    np.testing.assert_allclose(_precision_times(W, own, shared), np.linalg.solve(R, W), atol=1e-10)
    mean, covariance = conditional(inversion, model, y, R)
    found, spread = inversion.decode(model, y, return_covariance=True, residuals=residuals)
    np.testing.assert_allclose(found, mean, atol=1e-10)
    np.testing.assert_allclose(spread, covariance, atol=1e-12)


def test_planted_shared_noise_is_found_and_helps_and_none_does_no_harm():
    """Shared noise twice as large as each voxel's own: measured .08 of cosine. Without any, less than .001 is lost."""
    gains = []
    for strength in (2.0, 0.0):
        world = Gauss(8, 3)
        inversion, (w, b, sigma) = GaussianInversion().fit(world.images(400)), world.voxels(60)
        loading = strength * sigma * world.rng.choice([-1, 1], 60)
        x, residuals = world.images(300), world.rng.normal(size=(120, 60)) * sigma
        residuals += world.rng.normal(size=(120, 1)) * loading
        y = world.respond(x, w, b, sigma) + world.rng.normal(size=(300, 1)) * loading
        model = VoxelModel(w, b, "truth", residual_var_=(residuals**2).mean(0))
        plain = cosine(inversion.decode(model, y), x)
        inversion.noise = 1
        gains.append(cosine(inversion.decode(model, y, residuals=residuals), x) - plain)
        _, shared = _shared_noise(residuals, model.residual_var_.astype(np.float64), 1)
        if strength:
            assert abs(np.corrcoef(shared[:, 0], loading)[0, 1]) > 0.99
    assert gains[0] > 0.05 and abs(gains[1]) < 0.01


def test_each_voxels_own_noise_is_worth_telling():
    """64 voxels, true weights, 8 features: measured cosine .968 with each sigma and .945 with one for all."""
    scores = []
    for seed in range(20):
        world = Gauss(8, seed)
        bank, (w, b, sigma), x = world.images(500), world.voxels(64), world.images(50)
        model, y = VoxelModel(w, b, "truth", residual_var_=sigma**2), world.respond(x, w, b, sigma)
        scores.append(
            [cosine(GaussianInversion(noise).fit(bank).decode(model, y), x) for noise in ("residual", "constant")]
        )
    own, common = np.mean(scores, 0)
    assert own == pytest.approx(0.968, abs=0.006) and common == pytest.approx(0.945, abs=0.008)


def test_errors_on_the_context_itself_ruin_an_inversion():
    """Where images are not more than the 16 features, residuals of the fit vanish, and the voxels that happen to be
    fitted best decide alone. Measured with 180 voxels:

    | images | cosine in-sample | top-1 of 60 | cosine held out | top-1 of 60 |
    |---|---|---|---|---|
    | 8 | .04 | .02 | .49 | .38 |
    | 16 | .30 | .19 | .76 | .94 |
    """
    alphas = 10.0 ** np.arange(-4, 4)  # the smallest ones let ridge interpolate

    def ridge(x, y):
        return VoxelModel.of(Ridge(alphas).fit(x, y), "ridge")

    for count, worst, best in ((8, (0.15, 0.1), (0.42, 0.3)), (16, (0.4, 0.25), (0.65, 0.75))):
        scores = []
        for seed in range(3):
            world = Gauss(16, seed)
            inversion, truth = GaussianInversion().fit(world.images(500)), world.voxels(180)
            x, test = world.images(count), world.images(60)
            y, measured = world.respond(x, *truth), world.respond(test, *truth)
            model = ridge(x, y)
            inside = ((y - model.predict(x)) ** 2).mean(0)
            for variance in (inside, heldout_variance(ridge, x, y)):
                found = inversion.decode(replace(model, residual_var_=variance), measured)
                scores.append((cosine(found, test), top1(found, test)))
        in_sample, held_out = np.mean(scores[::2], 0), np.mean(scores[1::2], 0)
        assert (in_sample < worst).all() and (held_out > best).all()


def test_voxels_without_a_number_are_left_out_and_counted(caplog):
    inversion, model, _, y = planted()
    broken = y.copy()
    broken[3, 5], broken[:, 9], broken[0, 9] = np.nan, np.nan, np.inf
    mask = ~np.isin(np.arange(40), [5, 9])
    with caplog.at_level(logging.WARNING):
        found = inversion.decode(model, broken)
    np.testing.assert_allclose(found, inversion.decode(model.select(mask), y[:, mask]), atol=1e-12)
    assert "2 of 40 voxels are not finite for all images" in caplog.text
    residuals = np.random.default_rng(0).normal(size=(20, 40))
    inversion.noise = 1
    assert np.isfinite(inversion.decode(model, broken, residuals=residuals)).all()
    with pytest.raises(BrainDataError, match="finite for all 30 images, got none of 40"):
        inversion.decode(model, np.full_like(y, np.nan))


def test_misuse_is_named():
    inversion, model, _, y = planted()
    with pytest.raises(BrainDataError, match=r"fit\(bank\)"):
        GaussianInversion().decode(model, y)
    with pytest.raises(BrainDataError, match=r"got None; the errors on the context itself are refused, because they"):
        inversion.decode(replace(model, residual_var_=None), y)
    with pytest.raises(BrainDataError, match=r"variances above 0, got 0\.0 in voxel 3"):
        inversion.decode(replace(model, residual_var_=np.where(np.arange(40) == 3, 0, 1)), y)
    with pytest.raises(LeakageError, match="outside the context of truth, got 1 that are in it, such as a:2"):
        inversion.decode(model, y, image_ids=[f"a:{row}" for row in range(2, 32)])
    inversion.decode(model, y, image_ids=[f"b:{row}" for row in range(30)])
    with pytest.raises(AxisError, match="responses of 40 voxels, as the encoder has, got 39"):
        inversion.decode(model, y[:, 1:])
    with pytest.raises(AxisError, match="encoder of 6 features, as the bank has, got one of 5"):
        inversion.decode(replace(model, coef_=model.coef_[:5]), y)
    with pytest.raises(BrainDataError, match="residuals only for shared noise, got them with noise='residual'"):
        inversion.decode(model, y, residuals=y)
    with pytest.raises(BrainDataError, match="features vary, got 4 equal ones"):
        GaussianInversion().fit(np.ones((4, 2)))
    shared = GaussianInversion(3).fit(np.eye(6))
    with pytest.raises(BrainDataError, match="residuals of held-out images for 3 shared components, got None"):
        shared.decode(model, y)
    with pytest.raises(AxisError, match="residuals of 40 voxels, got 39"):
        shared.decode(model, y, residuals=y[:, 1:])
    with pytest.raises(BrainDataError, match=r"fewer than 3 shared components for residuals \(3, 40\), got 3"):
        shared.decode(model, y, residuals=y[:3])
    for wrong in ("diag", 0, True, 2.0):
        with pytest.raises(BrainDataError, match="'residual', 'constant' or a number of components, got"):
            GaussianInversion(wrong)
