"""Variance between trials, against planted variances and definitions."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.evaluation.variability import repeat_variance, trial_variance
from brainmodels.features import ArrayFeatures
from brainmodels.simulated import simulate
from brainmodels.systems.synbrain.estimator import SynBrain
from brainmodels.systems.synbrain.recipes import tiny

VOXELS = 40
SPREAD = np.linspace(0.5, 2, VOXELS)
IDS = [f"im{i:03d}" for i in range(300)]


class Planted:
    """A model whose draws have a known variance: that of the trials with "residual", a constant with "unit"."""

    label = "Planted"

    def __init__(self):
        self.scales_ = {"one": SimpleNamespace(kept=np.ones(VOXELS, bool))}

    def predict(self, features, image_ids, subject=None, n_trials=1, noise="none", noise_scale=1.0, seed=0):
        places = np.array([IDS.index(name) for name in image_ids])
        exact = np.sin(places[:, None] + np.arange(VOXELS)).astype(np.float32)
        spread = {"none": 0 * SPREAD, "unit": 0 * SPREAD + 0.3, "residual": SPREAD}[noise]
        noise = np.random.default_rng(seed).standard_normal((len(places), n_trials, VOXELS))
        stack = exact[:, None] + noise_scale * spread * noise
        return stack.astype(np.float32) if n_trials > 1 else stack[:, 0].astype(np.float32)


def trials(repeats=2, seed=1):
    """Trials of all images, and of which: signals of their own, noise of standard deviation SPREAD."""
    rng, ids = np.random.default_rng(seed), np.repeat(IDS, repeats)
    signal = np.repeat(5 * rng.standard_normal((len(IDS), VOXELS)), repeats, 0)
    return (signal + SPREAD * rng.standard_normal((len(ids), VOXELS))).astype(np.float32), ids


def test_repeats_have_the_planted_variance_however_few():
    for repeats in (2, 5):
        found, shown = repeat_variance(*trials(repeats))
        assert shown.tolist() == IDS
        assert abs(np.median(found / SPREAD**2) - 1) < 0.06  # 0.5 without k / (k - 1) for two


def test_the_definition_with_unequal_repeats_in_any_order():
    values, ids = trials(4)
    chosen = np.random.default_rng(0).permutation(len(ids))[:500]
    values, ids = values[chosen], ids[chosen]
    expected = []
    for name in np.unique(ids):
        own = values[ids == name].astype(np.float64)
        if len(own) > 1:
            expected.append(((own - own.mean(0)) ** 2).sum(0) / (len(own) - 1))
    found, shown = repeat_variance(values, ids)
    np.testing.assert_allclose(found, np.mean(expected, 0), rtol=1e-12)
    assert len(shown) == len(expected) < len(IDS)
    with pytest.raises(BrainDataError, match="two trials or more, got 300 images with one"):
        repeat_variance(values[:300], IDS)


def test_ratios_are_those_that_were_planted():
    values, ids = trials(3)
    rois = {"low": SPREAD < 1, "high": SPREAD >= 1}
    options = {"rois": rois, "noises": ("none", "unit", "residual"), "planted": SPREAD**2}
    found = trial_variance(Planted(), None, values, ids, n_trials=10, **options)
    for against in ("measured", "planted"):
        assert found.ratio("none", against) == {"all": 0, "low": 0, "high": 0}
        right = found.ratio("residual", against)
        assert all(abs(value - 1) < 0.03 for value in right.values())
        unit = found.ratio("unit", against)
        for name, mask in {"all": rois["low"] | rois["high"], **rois}.items():
            assert abs(unit[name] - np.median(0.09 / SPREAD[mask] ** 2)) < 0.03 * unit[name] + 0.003
        assert found.pattern("residual", against) > 0.99 and abs(found.pattern("unit", against)) < 0.5
    assert np.isnan(found.pattern("none"))
    double = trial_variance(Planted(), None, values, ids, n_trials=10, noise_scale=2, **options)
    assert abs(double.ratio("residual")["all"] - 4) < 0.15


def test_the_record_is_json_and_says_what_is_undefined():
    values, ids = trials(3)
    found = trial_variance(Planted(), None, values, ids, noises=("none", "residual"), rois={"first": SPREAD < 1})
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (record["images"], record["repeats"], record["n_trials"]) == (300, 900, 20)
    assert record["ratio"]["measured"]["residual"]["first"] == found.ratio("residual")["first"]
    assert record["pattern"]["measured"]["none"] is None and "planted" not in record["ratio"]
    assert record["voxels"] == {"all": 40, "first": int((SPREAD < 1).sum())}


def test_the_same_seed_gives_the_same_numbers_and_parts_do_not_repeat_each_other(monkeypatch):
    values, ids = trials(2)
    first = trial_variance(Planted(), None, values, ids, noises=("residual",), seed=3).sampled["residual"]
    again = trial_variance(Planted(), None, values, ids, noises=("residual",), seed=3).sampled["residual"]
    np.testing.assert_array_equal(first, again)
    monkeypatch.setattr("brainmodels.evaluation.variability._NUMBERS", VOXELS * 20)  # one image a part
    parts = trial_variance(Planted(), None, values, ids, noises=("residual",), seed=3).sampled["residual"]
    assert abs(np.median(parts / SPREAD**2) - 1) < 0.03
    assert not np.array_equal(first, parts)
    assert (parts / SPREAD**2).std() < 0.05  # equal noise in every part would leave that of 20 draws, 0.3


def test_what_is_refused():
    values, ids = trials(2)
    with pytest.raises(BrainDataError, match="two draws or more"):
        trial_variance(Planted(), None, values, ids, n_trials=1)
    with pytest.raises(AxisError, match="expected V1 of 40 voxels, got"):
        trial_variance(Planted(), None, values, ids, rois={"V1": np.ones(39, bool)})
    found = trial_variance(Planted(), None, values, ids, noises=("none",))
    with pytest.raises(BrainDataError, match="'measured', got 'planted'"):
        found.ratio("none", "planted")


def test_residual_noise_of_a_fitted_model_has_the_variance_of_trials_and_latent_noise_has_not():
    """Fitted to train repeats, judged on test repeats and on the planted noise: within 15 %."""
    dataset = simulate("tiny", seed=1, n_subjects=1, drift=False)
    ids = dataset.stimuli.ids
    tokens = np.random.default_rng(0).standard_normal((len(ids), 16, 32)).astype(np.float32)
    recipe = tiny()
    recipe = replace(recipe, stage1=replace(recipe.stage1, steps=5), stage2=replace(recipe.stage2, steps=3))
    model = SynBrain(recipe, device="cpu")
    source = ArrayFeatures(tokens, ids)
    model.fit(source, dataset.pairs("sim01", "shared", "train"), subject="sim01", validation=0.0, alignment="off")
    truth, space = dataset.truth["sim01"], dataset.subject("sim01").space
    found = trial_variance(
        model, source, dataset.pairs("sim01", "shared", "test"), rois=space.rois, planted=1 - truth.ceiling(1)
    )
    assert all(abs(value - 1) < 0.15 for value in found.ratio("residual").values())
    assert all(abs(value - 1) < 0.15 for value in found.ratio("residual", "planted").values())
    assert found.pattern("residual", "planted") > 0.8
    assert found.ratio("none")["all"] == 0 and found.ratio("posterior")["all"] < 0.3
