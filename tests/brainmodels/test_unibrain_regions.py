"""Regions of simulated subjects: what they tell the captions, and what a region says that is switched on alone."""

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.metrics.labels import caption_label_scores
from brainmodels.simulated import FACTORS, FEATURE_GROUPS, scene_stimuli
from brainmodels.systems.unibrain import Latents, Penalties, Regressors
from brainmodels.systems.unibrain.regions import activation, random_masks, region_ablation, region_mask, word_share
from tests.brainmodels.simulations import made
from tests.brainmodels.toy.generator import ToyGenerator

LABELS = ("shape", "color", "background")


@pytest.fixture(scope="module")
def study():
    """Captions of a noisy subject: averaged responses, one-hot words, and the labels of the test images."""
    dataset = made("small", seed=1, n_subjects=1, snr_scale=0.3)
    parts = {part: dataset.pairs("sim01", "shared", part, "repeats") for part in ("train", "test")}
    texts = {part: [dataset.stimuli.captions(str(x))[1] for x in pairs.image_ids] for part, pairs in parts.items()}
    scenes = scene_stimuli(9, 200)
    words = {word for name in scenes.ids for word in scenes.captions(str(name))[1].split()}
    generator = ToyGenerator(words, 8)
    latents = Latents(z_text=generator.latents(captions=texts["train"]).z_text)
    return dataset, parts, generator, latents


def scored(study, latents):
    dataset, parts, generator, _ = study
    ids = [str(name) for name in parts["test"].image_ids]
    labels = {name: dict(zip(ids, dataset.stimuli.label(name, ids), strict=True)) for name in LABELS}
    captions = dict(zip(ids, generator.write(latents.z_text), strict=True))
    found = caption_label_scores(captions, labels, FACTORS, resamples=20)
    return {score.metric.name[14:-1]: score.value for score in found}


@pytest.mark.slow
def test_words_fall_with_the_region_that_knows_them(study):
    dataset, parts, _, latents = study
    X, X_test, rois = parts["train"].array(), parts["test"].array(), dataset.subject("sim01").space.rois
    whole = scored(study, Regressors.fit(X, latents, Penalties(), "none").predict(X_test))
    for region, label in {"SHAPE": "shape", "COLOR": "color", "PLACE": "background"}.items():
        mask = region_mask(rois, region)
        made = region_ablation(X, latents, X_test, mask, Penalties(), "none", ("without", "silenced"))
        for form, found in made.items():
            score = scored(study, found)
            assert score[label] <= whole[label] - 0.1, (region, form)
            others = [name for name in LABELS if name != label]
            assert all(score[name] >= whole[name] - 0.12 for name in others), (region, form, score, whole)
    early = region_ablation(X, latents, X_test, region_mask(rois, "V1"), Penalties(), "none", ("alone",))["alone"]
    assert scored(study, early)["shape"] < 0.3 < whole["shape"]


def test_voxels_that_prefer_a_shape_put_its_word_into_the_caption(study):
    dataset, parts, generator, latents = study
    X = parts["train"].array()
    regressors = Regressors.fit(X, latents, Penalties())
    weights = dataset.truth["sim01"].tuning.weights[FEATURE_GROUPS["shape"]]  # (shapes, V)
    found = control = 0
    for row, shape in enumerate(FACTORS["shape"]):
        mask = weights[row] > np.quantile(weights[row], 0.97)
        assert np.argmax(weights[:, mask].mean(1)) == row
        found += word_share(generator.write(activation(regressors, mask).z_text), shape)
        others = [generator.write(activation(regressors, x).z_text)[0] for x in random_masks(mask, 4, seed=row)]
        control += word_share(others, shape)
    assert found >= 6 and control <= 3


def test_moves_have_the_length_that_is_said():
    rng = np.random.default_rng(0)
    X, z = rng.normal(size=(60, 12)).astype(np.float32), rng.normal(size=(60, 5)).astype(np.float32)
    regressors = Regressors.fit(X, Latents(z_text=z), Penalties())
    mask = np.arange(12) < 4
    mean = regressors.predict(regressors.mean[None], calibrated=False).z_text
    for amplitude, length in (("matched", np.median(np.linalg.norm(z - z.mean(0), axis=1))), ("brain_diffuser", 50)):
        move = activation(regressors, mask, amplitude).z_text - mean
        assert np.linalg.norm(move) == pytest.approx(length, rel=1e-3)
    half = regressors.predict((regressors.mean + regressors.std * mask)[None], calibrated=False).z_text - mean
    assert np.corrcoef(half, move)[0, 1] == pytest.approx(1)


def test_silencing_keeps_the_fit(study):
    rng = np.random.default_rng(0)
    X, z = rng.normal(size=(60, 6)).astype(np.float32), rng.normal(size=(60, 2)).astype(np.float32)
    mask = np.arange(6) == 2
    silent = region_ablation(X, Latents(z_text=z), X[:5], mask, Penalties())["silenced"].z_text
    given = X[:5].copy()
    given[:, 2] = X[:, 2].mean()
    plain = Regressors.fit(X, Latents(z_text=z), Penalties()).predict(given).z_text
    np.testing.assert_allclose(silent, plain, rtol=1e-5, atol=1e-6)


def test_regions_that_cannot_be_used_are_refused():
    rois = {"V1": np.array([0, 1, 0]), "FFA": np.zeros(3)}
    assert region_mask(rois, "V1", np.array([True, True, False])).tolist() == [False, True]
    with pytest.raises(BrainDataError, match="near: V1"):
        region_mask(rois, "V11")
    with pytest.raises(BrainDataError, match="voxels in the region 'FFA'"):
        region_mask(rois, "FFA")
    regressors = Regressors.fit(
        np.eye(6, 4, dtype=np.float32), Latents(z_text=np.ones((6, 2), np.float32)), Penalties()
    )
    with pytest.raises(AxisError, match="4 voxels"):
        activation(regressors, np.ones(3))
    with pytest.raises(BrainDataError, match="empty"):
        activation(regressors, np.zeros(4))
    masks = random_masks(np.array([1, 1, 0, 0, 0]), 3)
    assert [int(mask.sum()) for mask in masks] == [2, 2, 2]
    assert word_share(["a red circle", "circles"], "circle") == 0.5
