"""Ridge, banded ridge and the decoder against closed forms, scikit-learn, himalaya and planted truth."""

import logging

import numpy as np
import pytest
import sklearn
import torch
from himalaya.backend import get_backend
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import GroupRidgeCV, RidgeCV
from sklearn.linear_model import RidgeCV as SklearnRidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, LeaveOneOut

from brainmodels.baselines import BandedRidge, LinearDecoder, Ridge
from brainmodels.errors import AxisError, BrainDataError

ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0)
SHAPES = pytest.mark.parametrize("features", [20, 90], ids=["primal", "kernel"])


def made(features=20, samples=60, voxels=15, seed=0):
    """Correlated features with large means, responses of unequal reliability with larger ones; fp64."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(samples, features)) @ rng.normal(size=(features, features)) / 4 + 30
    noise = np.geomspace(0.1, 100, voxels)
    Y = (X - 30) @ rng.normal(size=(features, voxels)) + rng.normal(size=(samples, voxels)) * noise + 500
    return X, Y


def closed_form(X, Y, alpha):
    """(slopes, intercept) in fp64; the penalty a number or one for each voxel."""
    x, y = X - X.mean(0), Y - Y.mean(0)
    alphas = np.broadcast_to(alpha, Y.shape[1])
    slopes = [np.linalg.solve(x.T @ x + a * np.eye(x.shape[1]), x.T @ y[:, v]) for v, a in enumerate(alphas)]
    return np.stack(slopes, 1), Y.mean(0) - X.mean(0) @ np.stack(slopes, 1)


def cross_validated(X, Y, alphas, folds):
    """Minus the held-out squared error (alphas, V), averaged over folds, in fp64."""
    scores = []
    for train, test in folds:
        fits = [closed_form(X[train], Y[train], alpha) for alpha in alphas]
        scores.append([-np.mean((Y[test] - X[test] @ w - b) ** 2, 0) for w, b in fits])
    return np.mean(scores, 0)


def relative(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


@SHAPES
@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_ridge_is_the_closed_form(features, alpha):
    X, Y = made(features)
    model = Ridge([alpha]).fit(X, Y)
    slopes, intercept = closed_form(X, Y, alpha)
    assert relative(model.coef_, slopes) < 2e-4
    assert relative(model.intercept_, intercept) < 2e-4
    assert relative(model.predict(X) - Y.mean(0), X @ slopes + intercept - Y.mean(0)) < 2e-5
    assert (model.dual_coef_ is None) == (features < len(X))


@SHAPES
@pytest.mark.parametrize("calibration", ["train_cv", "none"])
def test_a_decoder_is_affine_with_its_calibration(features, calibration):
    X, Y = made(features)
    model = LinearDecoder(calibration=calibration).fit(X, Y)
    weights, bias = model.affine()
    assert relative(X @ weights + bias - Y.mean(0), model.predict(X) - Y.mean(0)) < 1e-3
    with pytest.raises(BrainDataError, match="'test_batch', which is not affine"):
        LinearDecoder(calibration="test_batch").fit(X, Y).affine()


@SHAPES
def test_penalties_are_those_of_cross_validation_by_hand(features):
    X, Y = made(features)
    scores = cross_validated(X, Y, ALPHAS, KFold(5).split(X))
    model = Ridge(ALPHAS, n_targets_batch=4).fit(X, Y)
    np.testing.assert_array_equal(model.alphas_, np.array(ALPHAS)[scores.argmax(0)])
    assert len(set(model.alphas_)) > 2
    np.testing.assert_allclose(model.cv_scores_, scores.max(0), rtol=1e-3)
    assert relative(model.coef_, closed_form(X, Y, model.alphas_)[0]) < 2e-4


@SHAPES
def test_ridge_agrees_with_scikit_learn(features):
    """Leave-one-out, which scikit-learn computes without refitting."""
    X, Y = made(features, samples=40)
    theirs = SklearnRidgeCV(ALPHAS, alpha_per_target=True).fit(X, Y)
    ours = Ridge(ALPHAS, cv=LeaveOneOut()).fit(X, Y)
    np.testing.assert_array_equal(ours.alphas_, theirs.alpha_)
    np.testing.assert_allclose(ours.cv_scores_, theirs.best_score_, rtol=1e-3)
    assert relative(ours.coef_, theirs.coef_.T) < 2e-4


@SHAPES
def test_ridge_agrees_with_himalaya(features):
    X, Y = made(features)
    primal = features < len(X)
    centred = X - X.mean(0)
    theirs = (RidgeCV if primal else KernelRidgeCV)(np.array(ALPHAS), fit_intercept=True, cv=5).fit(centred, Y)
    ours = Ridge(ALPHAS).fit(X, Y)
    np.testing.assert_allclose(ours.alphas_, theirs.best_alphas_, rtol=1e-12)
    np.testing.assert_allclose(ours.cv_scores_, theirs.cv_scores_, rtol=1e-3)
    assert relative(ours.coef_, theirs.coef_ if primal else centred.T @ theirs.dual_coef_) < 2e-4


def test_kernel_form_is_the_primal_form():
    """Columns of zeros change the form of the computation and nothing else."""
    X, Y = made(20)
    wide = np.hstack([X, np.zeros((60, 50))])
    primal, kernel = Ridge(ALPHAS).fit(X, Y), Ridge(ALPHAS).fit(wide, Y)
    assert primal.dual_coef_ is None and kernel.dual_coef_ is not None
    np.testing.assert_array_equal(primal.alphas_, kernel.alphas_)
    assert relative(kernel.coef_[:20], primal.coef_) < 2e-4 and (kernel.coef_[20:] == 0).all()
    assert relative(kernel.predict(wide) - Y.mean(0), primal.predict(X) - Y.mean(0)) < 2e-5


def test_penalty_follows_the_noise_of_each_voxel():
    """White features, slopes of variance 1, noise of variance s: the best penalty is s (Bayes), a decade apart here."""
    rng = np.random.default_rng(0)
    variances = np.repeat([1.0, 10, 100, 1000], 25)
    X = rng.normal(size=(400, 60))
    Y = X @ rng.normal(size=(60, 100)) + rng.normal(size=(400, 100)) * np.sqrt(variances)
    chosen = Ridge([0.1, 1, 10, 100, 1000, 1e4]).fit(X, Y).alphas_
    np.testing.assert_array_equal([np.median(chosen[variances == s]) for s in (10, 100, 1000)], [10, 100, 1000])
    assert (np.abs(np.log10(chosen / variances)) <= 1).mean() > 0.95


def unrelated_images():
    """Four samples of each of 40 images in random order: (images, features that only name the image, responses)."""
    rng = np.random.default_rng(0)
    images = rng.permutation(np.repeat(np.arange(40), 4))
    return images, rng.normal(size=(40, 60))[images], rng.normal(size=(40, 10))[images]


def test_the_samples_of_an_image_stay_in_one_fold():
    """Features that have nothing to do with the responses: the largest penalty is right. With repeats of an image on
    both sides of a fold they predict perfectly, and the smallest wins."""
    images, X, Y = unrelated_images()
    torn = Ridge([1e-2, 1e4]).fit(X, Y)
    whole = Ridge([1e-2, 1e4]).fit(X, Y, groups=images)
    assert (torn.alphas_ == 1e-2).all() and torn.cv_scores_.mean() > -0.1
    assert (whole.alphas_ == 1e4).all() and whole.cv_scores_.mean() < -0.5
    same = Ridge([1e-2, 1e4], cv=GroupKFold(5)).fit(X, Y, groups=images)
    np.testing.assert_array_equal(same.cv_scores_, whole.cv_scores_)


def test_groups_reach_ridge_through_metadata_routing():
    images, X, Y = unrelated_images()
    with sklearn.config_context(enable_metadata_routing=True):
        ridge = Ridge([1e-2, 1e4]).set_fit_request(groups=True)
        search = GridSearchCV(ridge, {"cv": [4]}, scoring="r2", cv=GroupKFold(4)).fit(X, Y, groups=images)
    assert (search.best_estimator_.alphas_ == 1e4).all()


def test_constant_voxel_and_constant_feature():
    X, Y = made()
    X[:, 4], Y[:, 7] = 3.0, 250.0
    model = Ridge(ALPHAS).fit(X, Y)
    assert model.alphas_[7] == max(ALPHAS)  # all penalties are equally good: the largest
    assert np.abs(model.coef_[4]).max() < 1e-9 and (model.predict(X)[:, 7] == 250).all()
    assert np.isnan(model.score(X, Y)[7])


def test_memory_mapped_responses(tmp_path):
    X, Y = made()
    np.save(tmp_path / "Y.npy", Y.astype(np.float32))
    mapped = np.load(tmp_path / "Y.npy", mmap_mode="r")
    first, second = (Ridge(ALPHAS, n_targets_batch=size).fit(X, mapped) for size in (1000, 3))
    assert relative(second.coef_, first.coef_) < 1e-5
    np.testing.assert_array_equal(first.alphas_, second.alphas_)


@pytest.mark.parametrize("alphas", [[], [1.0, 0.0], [-1.0], [np.nan]])
def test_penalties_are_above_zero(alphas):
    with pytest.raises(BrainDataError, match="alphas above 0"):
        Ridge(alphas).fit(*made())


def test_a_grid_that_starts_too_high_is_told(caplog):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 5))
    Y = X @ rng.normal(size=(5, 8)) + 0.01 * rng.normal(size=(60, 8))
    with caplog.at_level(logging.WARNING):
        Ridge([10.0, 100.0]).fit(X, Y)
    assert "100 % of voxels took the smallest alpha, 10" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@SHAPES
def test_ridge_on_a_gpu_is_ridge_on_a_cpu(features):
    X, Y = made(features)
    cpu, gpu = Ridge(ALPHAS, device="cpu").fit(X, Y), Ridge(ALPHAS, device="cuda").fit(X, Y)
    np.testing.assert_array_equal(cpu.alphas_, gpu.alphas_)
    assert relative(gpu.coef_, cpu.coef_) < 2e-4


# LinearDecoder


def planted_decoding(seed=0, images=300, voxels=120, features=10, noise=2.0):
    """Responses that are a noisy mixture of the features."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(images, features)) * 3 + 7
    responses = (features - 7) @ rng.normal(size=(features.shape[1], voxels)) / 3
    return responses + noise * rng.normal(size=responses.shape), features


def test_decoder_identifies_planted_features():
    """Two-way identification of held-out images: near 1, at chance once pairs are shuffled."""
    responses, features = planted_decoding()

    def identification(decoder):
        predicted = decoder.predict(responses[240:])
        similarity = np.corrcoef(features[240:], predicted)[:60, 60:]  # true image by prediction
        return np.mean([np.mean(np.delete(similarity[:, j], j) < similarity[j, j]) for j in range(60)])

    assert identification(LinearDecoder().fit(responses[:240], features[:240])) > 0.97
    shuffles = [np.random.default_rng(seed).permutation(240) for seed in range(20)]
    chance = [identification(LinearDecoder([10.0]).fit(responses[:240], features[order])) for order in shuffles]
    assert abs(np.mean(chance) - 0.5) < 0.05


@pytest.mark.parametrize("images", [300, 80], ids=["primal", "kernel"])
def test_calibration_by_held_out_predictions(images):
    """Mean and spread of held-out predictions, by hand in fp64, at the penalties that were chosen."""
    responses, features = planted_decoding(images=images)
    groups = np.arange(images) // 2
    decoder = LinearDecoder(alphas=ALPHAS, cv=4).fit(responses, features, groups)
    heldout = np.empty_like(features)
    for train, test in GroupKFold(4).split(responses, None, groups):
        slopes, intercept = closed_form(responses[train], features[train], decoder.alphas_)
        heldout[test] = responses[test] @ slopes + intercept
    np.testing.assert_allclose(decoder.heldout_mean_, heldout.mean(0), rtol=1e-4)
    np.testing.assert_allclose(decoder.heldout_std_, heldout.std(0), rtol=1e-3)
    slopes, intercept = closed_form(responses, features, decoder.alphas_)
    expected = (responses @ slopes + intercept - heldout.mean(0)) / heldout.std(0) * features.std(0) + features.mean(0)
    np.testing.assert_allclose(decoder.predict(responses), expected, rtol=2e-3, atol=1e-2)


def test_rows_that_differ_by_rounding_have_no_spread_to_restore():
    """Predictions that differ by rounding alone are the train mean, not rounding errors as wide as the features."""
    responses, features = planted_decoding(images=80)
    decoder = LinearDecoder(calibration="test_batch").fit(responses, features)
    predicted = decoder.predict(responses[:1] * (1 + 1e-7 * np.arange(7)[:, None]))
    np.testing.assert_allclose(predicted, np.broadcast_to(features.mean(0), predicted.shape), rtol=1e-4)


def test_calibration_restores_the_spread():
    """Noisy responses: plain predictions of new images are too narrow, calibrated ones as wide as the features."""
    responses, features = planted_decoding(images=400, noise=8.0)
    train, test = slice(0, 200), slice(200, 400)
    spread = {}
    for calibration in ("none", "train_cv", "test_batch"):
        decoder = LinearDecoder(calibration=calibration).fit(responses[train], features[train])
        assert decoder.transductive_ == (calibration == "test_batch")
        spread[calibration] = np.mean(decoder.predict(responses[test]).std(0) / features[train].std(0))
    assert spread["none"] < 0.75
    assert spread["train_cv"] == pytest.approx(1, abs=0.1)
    assert spread["test_batch"] == pytest.approx(1, abs=1e-5)


def test_only_test_batch_looks_at_the_other_rows():
    responses, features = planted_decoding()
    for calibration in ("none", "train_cv"):
        decoder = LinearDecoder(calibration=calibration).fit(responses, features)
        np.testing.assert_allclose(decoder.predict(responses[:1]), decoder.predict(responses)[:1], rtol=1e-4)
    decoder = LinearDecoder(calibration="test_batch").fit(responses, features)
    assert not np.allclose(decoder.predict(responses[:5])[:2], decoder.predict(responses[:2]), rtol=1e-2)
    with pytest.raises(BrainDataError, match="several rows"):
        decoder.predict(responses[:1])
    with pytest.raises(BrainDataError, match="calibration 'train_cv'"):
        LinearDecoder(calibration="batch").fit(responses, features)


# BandedRidge


def two_spaces(features=(6, 40), samples=100, voxels=30, seed=0):
    """The first space drives half of the voxels, the second the others; columns of the spaces alternate."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(sum(features))
    spaces = {"small": np.sort(order[: features[0]]), "large": np.sort(order[features[0] :])}
    X = rng.normal(size=(samples, sum(features)))
    Y = rng.normal(size=(samples, voxels)) * 2
    half = voxels // 2
    Y[:, :half] += X[:, spaces["small"]] @ rng.normal(size=(features[0], half))
    Y[:, half:] += X[:, spaces["large"]] @ rng.normal(size=(features[1], voxels - half)) * 0.5
    return X, Y, spaces


@pytest.mark.parametrize("samples", [200, 120], ids=["primal", "kernel"])
def test_banded_ridge_drops_a_space_of_noise(samples):
    """6 features that matter beside 140 that do not: one penalty for all must choose between two errors."""
    features = (6, 90) if samples == 200 else (6, 140)
    X, Y, spaces = two_spaces(features, samples + 200)
    Y, half = Y[:, :15], samples
    plain = Ridge().fit(X[:half], Y[:half]).score(X[half:], Y[half:])
    banded = BandedRidge(spaces).fit(X[:half], Y[:half])
    assert (banded.dual_coef_ is None) == (samples == 200)
    assert np.median(banded.score(X[half:], Y[half:]) - plain) > 0.08
    shares = np.exp(banded.deltas_) * banded.alphas_
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-4)
    assert np.median(shares[0]) > 0.9


@pytest.mark.parametrize("samples", [100, 40], ids=["primal", "kernel"])
def test_equal_shares_are_ordinary_ridge(samples):
    """The first draw gives two spaces a half each: a penalty of 10 is one of 20 on all features."""
    X, Y, spaces = two_spaces(samples=samples)
    X, Y = X + 5, Y + 50
    banded = BandedRidge(spaces, alphas=[10.0], n_iter=1).fit(X, Y)
    plain = Ridge([20.0]).fit(X, Y)
    np.testing.assert_allclose(banded.alphas_, 10, rtol=1e-5)
    np.testing.assert_allclose(banded.cv_scores_, plain.cv_scores_, rtol=1e-3)
    assert relative(banded.coef_, plain.coef_) < 2e-4
    assert relative(banded.predict(X), plain.predict(X)) < 1e-5
    assert relative(banded.intercept_, plain.intercept_) < 1e-4


@pytest.mark.parametrize("samples", [100, 40], ids=["primal", "kernel"])
def test_banded_ridge_is_the_closed_form_at_its_deltas(samples):
    """Scaling the columns of a space by exp(delta / 2) turns its penalty into 1."""
    X, Y, spaces = two_spaces(samples=samples)
    model = BandedRidge(spaces, alphas=ALPHAS, n_iter=6).fit(X + 3, Y)
    expected = np.empty((X.shape[1], Y.shape[1]))
    for voxel in range(Y.shape[1]):
        scale = np.empty(X.shape[1])
        for columns, delta in zip(spaces.values(), model.deltas_[:, voxel], strict=True):
            scale[columns] = np.exp(delta / 2)
        expected[:, voxel] = closed_form(X * scale, Y[:, [voxel]], 1.0)[0][:, 0] * scale
    assert relative(model.coef_, expected) < 5e-4
    parts = model.predict_spaces(X + 3)
    assert list(parts) == ["small", "large"]
    np.testing.assert_allclose(sum(parts.values()) + model.Y_mean_, model.predict(X + 3), rtol=1e-3, atol=1e-3)


def test_banded_ridge_agrees_with_himalaya_alone():
    """Same shares, himalaya called by hand in fp64 on features that need no centring of ours."""
    X, Y, _ = two_spaces()
    spaces = {"first": slice(0, 20), "second": slice(20, 46)}
    ours = BandedRidge(spaces, alphas=ALPHAS, n_iter=5, random_state=3).fit(X, Y)
    draws = np.random.default_rng(3)
    shares = [[0.5, 0.5], *(draws.dirichlet([c, c]) for c in (0.1, 1.0, 0.1, 1.0))]
    theirs = GroupRidgeCV(
        "input",
        solver_params={"n_iter": np.array(shares), "alphas": np.array(ALPHAS), "progress_bar": False},
        fit_intercept=True,
    ).fit([X[:, :20], X[:, 20:]], Y)
    same = np.abs(ours.deltas_ - theirs.deltas_).max(0) < 1e-3
    assert same.mean() > 0.9  # fp32 may decide a close race otherwise
    assert relative(ours.coef_[:, same], theirs.coef_[:, same]) < 5e-4


def test_shares_never_underflow():
    """A Dirichlet of concentration 0.001 draws exact zeros in fp32, by which himalaya divides: slopes became NaN."""
    X, Y, spaces = two_spaces()
    model = BandedRidge(spaces, alphas=[1.0], n_iter=8, concentration=[0.001]).fit(X, Y)
    assert np.isfinite(model.coef_).all() and np.isfinite(model.deltas_).all()


def test_the_backend_of_himalaya_is_put_back(monkeypatch):
    X, Y, spaces = two_spaces()
    before = get_backend().name
    BandedRidge(spaces, n_iter=1).fit(X, Y)
    assert get_backend().name == before == "numpy"
    monkeypatch.setattr("himalaya.ridge.GroupRidgeCV.fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        BandedRidge(spaces, n_iter=1).fit(X, Y)
    assert get_backend().name == before


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"a": slice(0, 10)}, "feature 10 in 0"),
        ({"a": slice(0, 30), "b": slice(29, 46)}, "feature 29 in 2"),
        ({"a": slice(0, 46), "b": slice(46, 60)}, "space 'b' within 46 features, got none"),
        ({"a": [0, 1, 99]}, "a column beyond"),
        ({}, "feature 0 in 0"),
    ],
)
def test_every_feature_is_in_one_space(spaces, message):
    X, Y, _ = two_spaces()
    with pytest.raises(AxisError, match=message):
        BandedRidge(spaces).fit(X, Y)


def test_draws_must_be_possible():
    X, Y, spaces = two_spaces()
    with pytest.raises(BrainDataError, match="one or more draws"):
        BandedRidge(spaces, n_iter=0).fit(X, Y)


def test_repeatable_by_seed():
    X, Y, spaces = two_spaces()
    first, second, third = (BandedRidge(spaces, n_iter=6, random_state=seed).fit(X, Y).deltas_ for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, third)
