"""Models stacked with ridge: weights against a search, what a right and a useless model get, folders, new subjects."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sklearn.base import clone

from brainmodels import load_model
from brainmodels.baselines import PriorRidge, Ridge
from brainmodels.errors import BrainDataError, LayoutError
from brainmodels.systems import SYSTEMS
from brainmodels.training import Stacked
from brainmodels.training.linear import LinearMap, flat
from brainmodels.training.stacked import _finding_weight, _weight
from brainmodels.training.trials import held_out
from tests.brainmodels.fitted import features, pairs, small, study
from tests.brainmodels.toy.estimator import ToyRecipe, ToyRidge

RECIPE = ToyRecipe(validation=0.2)


class Informed(ToyRidge):
    """Predicts the planted signal in some voxels and noise in the others; reads the true tokens."""

    right: np.ndarray

    def predict(self, features, *, image_ids=None, subject=None):
        ids, rng = np.asarray(image_ids), np.random.default_rng(len(image_ids))
        signal = study().truth["sim01"].signal(ids) if len(ids) else np.empty((0, 24))
        known = study().truth["sim01"].signal(pairs().image_ids)
        measured = pairs().array()
        scaled = (signal - known.mean(0)) / known.std(0) * measured.std(0) + measured.mean(0)
        noise = measured.mean(0) + measured.std(0) * rng.normal(size=signal.shape)
        return np.where(self.right, 0.8 * (scaled - measured.mean(0)) + measured.mean(0), noise).astype(np.float32)


def informed(right):
    model = Informed(RECIPE)
    model.right = right
    return model


def regions():
    """The regions of the subject without voxels that an earlier one has, and the others."""
    left, found = np.ones(24, bool), {}
    for name, mask in study().subject("sim01").space.rois.items():
        if (mask & left).any():
            found[name], left = mask & left, left & ~mask
    return found | ({"other voxels": left} if left.any() else {})


def test_weight_is_the_best_of_a_search():
    rng = np.random.default_rng(0)
    for scale, shift in ((1, 0), (0.2, 0), (1, 3), (-1, 0)):
        truth, base = rng.normal(size=(2, 40, 5))
        model = scale * truth + rng.normal(size=(40, 5)) + shift
        grid = np.linspace(0, 1, 2001)
        errors = [((truth - base - w * (model - base)) ** 2).sum() for w in grid]
        assert abs(_weight(truth, base, model) - grid[np.argmin(errors)]) <= 5e-4
    assert _weight(truth, base, base) == 0


def test_the_weight_of_decoding_finds_images_best():
    """Against loops over weights, images and candidates: the smallest that is no standard error above the best. A
    perfect baseline keeps 0, a perfect model is trusted.
    """
    rng = np.random.default_rng(0)
    truth, others = rng.normal(size=(12, 30)), rng.normal(size=(40, 30))
    base, model = (truth + 2.5 * rng.normal(size=truth.shape) for _ in range(2))
    scores = {}
    for step in range(21):
        logs = []
        for own, guess in zip(truth, base + step / 20 * (model - base), strict=True):
            found = [guess @ x / np.linalg.norm(x) for x in (own, *truth, *others)]
            logs.append(np.log(1 + sum(x > found[0] + 1e-12 for x in found[1:])))
        scores[step / 20] = np.array(logs)
    best = min(scores.values(), key=np.mean)
    right = min(w for w, x in scores.items() if np.mean(x - best) <= np.std(x - best) / 12**0.5)
    assert 0 < right < 1 and _finding_weight(truth, base, model, others) == right
    assert _finding_weight(truth, truth, model, others) == 0
    assert _finding_weight(truth, rng.normal(size=truth.shape), truth, others) >= 0.5


def test_each_region_trusts_who_is_right_there():
    """A model that knows the planted signal in one region alone counts there, and nowhere else."""
    names = [*regions()]
    stacked = Stacked(informed(regions()[names[0]])).fit(features(), pairs(), subject="sim01")
    weights = stacked.meta_["stack"]["weights"]["sim01"]["encode"]
    assert list(weights) == names and len(names) > 2
    assert weights[names[0]] > 0.6 and max(weights[name] for name in names[1:]) < 0.2
    json.dumps(stacked.meta_)


@pytest.mark.parametrize("base", ["ridge", "prior"])
def test_a_useless_model_hardly_counts_beside_a_baseline_that_saw_no_image_it_is_weighed_on(base):
    stacked = Stacked(informed(np.zeros(24, bool)), base).fit(features(), pairs(), subject="sim01")
    assert max(stacked.meta_["stack"]["weights"]["sim01"]["encode"].values()) < 0.3  # of 26 images and few voxels
    train = pairs(average="repeats")
    held = held_out(train.image_ids, RECIPE.validation)
    kept = np.array([row for row in np.argsort(train.image_ids) if train.image_ids[row] not in held])
    assert len(held) == stacked.meta_["stack"]["weights"]["sim01"]["images"]
    X, X_test = (flat(stacked.tokens(features(), x)) for x in (train.image_ids[kept], pairs("test").image_ids))
    mean, std, scale = X.mean(0), X.std(0), stacked.scales_["sim01"]
    measured = (train.array()[kept] - scale.mean) / scale.std
    fitted = {"ridge": Ridge, "prior": PriorRidge}[base]().fit((X - mean) / std, measured)
    got = stacked.stacks_["sim01"].encoder(X_test)
    np.testing.assert_allclose(got, fitted.predict((X_test - mean) / std), atol=1e-3)


@pytest.mark.parametrize("system", ["neuroflow", "synbrain"])
def test_between_model_and_baseline_both_ways(system):
    """What comes out is base + w (model - base), with the maps of the file and the weights that are told."""
    stacked = Stacked(small(system, validation=0.2)).fit(features(), pairs(), subject="sim01")
    ids, model = pairs("test").image_ids, stacked.model
    told, stack = stacked.meta_["stack"]["weights"]["sim01"], stacked.stacks_["sim01"]
    base = model.scales_["sim01"].undo(stack.encoder(flat(model.tokens(features(), ids))))
    alone = model.predict(features(), image_ids=ids)
    for name, mask in regions().items():
        expected = base + told["encode"][name] * (alone - base)
        got = stacked.predict(features(), image_ids=ids)
        np.testing.assert_allclose(got[:, mask], expected[:, mask], atol=2e-3)
    if system == "neuroflow":
        measured = pairs("test").array()
        alone, got = (model.tokens(x.decode(measured)) for x in (model, stacked))
        base = stack.decoder(model._measured(measured, "sim01").numpy()).reshape(alone.shape)
        np.testing.assert_allclose(got, base + told["decode"] * (alone - base), atol=1e-3)
    draws = {"n_trials": 3, "noise": "residual", "seed": 1}
    moved = stacked.predict(features(), image_ids=ids, **draws) - model.predict(features(), image_ids=ids, **draws)
    np.testing.assert_allclose(moved, np.repeat(moved[:, :1], 3, 1), atol=1e-4)  # trials vary as the model's do
    assert stacked.subjects_ == ("sim01",) and stacked.latent_heads == model.latent_heads
    assert stacked.label == f"{type(model).__name__} + ridge"


def test_folder_holds_both_and_the_model_alone(tmp_path):
    stacked = Stacked(small("neuroflow", validation=0.2)).fit(features(), pairs(), subject="sim01")
    folder = stacked.save(tmp_path / "model")
    loaded, ids, measured = load_model(folder), pairs("test").image_ids, pairs("test").array()
    assert isinstance(loaded, Stacked) and loaded.base == "ridge" and loaded.meta_ == stacked.meta_
    np.testing.assert_array_equal(loaded.predict(features(), image_ids=ids), stacked.predict(features(), image_ids=ids))
    np.testing.assert_array_equal(loaded.decode(measured), stacked.decode(measured))
    alone = type(stacked.model).load(folder)
    np.testing.assert_array_equal(
        alone.predict(features(), image_ids=ids), stacked.model.predict(features(), image_ids=ids)
    )
    arrays = load_file(folder / "stack.safetensors")
    for changed, message in (
        ({k: v for k, v in arrays.items() if k != "sim01.shares"}, r"expected sim01\.shares in stack\.safetensors"),
        (arrays | {"more": arrays["sim01.shares"].clone()}, r"expected no more in stack\.safetensors"),
    ):
        save_file(changed, folder / "stack.safetensors")
        with pytest.raises(LayoutError, match=message):
            load_model(folder)
    stacked.model.save(folder)  # a model alone replaces both
    assert not isinstance(load_model(folder), Stacked)


def test_an_adapted_model_has_a_baseline_of_the_new_subject():
    stacked = Stacked(small("neuroflow", validation=0.2)).fit(features(), pairs(), subject="sim01")
    grown = stacked.adapt(features(), pairs(subject="sim02"), subject="sim02")
    assert grown.subjects_ == ("sim01", "sim02") and stacked.subjects_ == ("sim01",)
    assert grown.predict(features(), image_ids=pairs("test").image_ids, subject="sim02").shape == (60, 30)
    assert set(grown.meta_["stack"]["weights"]) == {"sim01", "sim02"}


def test_what_is_refused(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "toy", "tests.brainmodels.toy.estimator:ToyRidge")
    with pytest.raises(BrainDataError, match=r"expected base to be one of ridge, .* got 'lasso'"):
        Stacked(ToyRidge(RECIPE), "lasso")
    with pytest.raises(BrainDataError, match="expected validation images of sim01 to weigh the model by, got none"):
        Stacked(ToyRidge(RECIPE)).fit(features(), pairs(), subject="sim01", validation=0.0)
    with pytest.raises(AttributeError, match="no attribute 'decoded'"):
        _ = Stacked(ToyRidge(RECIPE)).decoded
    assert clone(Stacked(ToyRidge(RECIPE), "prior")).base == "prior"


def test_linear_map_folds_units_and_ignores_columns_that_hardly_vary():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 6)) * [1, 100, 1e-6, 5, 1, 1] + [0, 30, 2, 0, 0, 7]
    Y = rng.normal(size=(80, 4)) + X[:, :1]
    fitted = LinearMap.fit(Ridge((10.0,)), X, Y)
    kept = [0, 1, 3, 4, 5]
    scaled = ((X - X.mean(0)) / X.std(0))[:, kept]
    np.testing.assert_allclose(fitted(X), Ridge((10.0,)).fit(scaled, Y).predict(scaled), atol=1e-4)
    assert not fitted.weight[2].any()


def test_large_tokens_are_averaged_in_groups():
    tokens = np.arange(2 * 256 * 128, dtype=np.float32).reshape(2, 256, 128)
    rows = flat(tokens)
    assert rows.shape == (2, 128 * 128)
    np.testing.assert_array_equal(rows[:, :128], tokens[:, :2].mean(1))
    assert flat(tokens[:, :16]).shape == (2, 16 * 128)
