"""The shipped generator on drawn scenes, and decoding of simulated subjects with it."""

import json
from pathlib import Path

import numpy as np
import pytest

from brainmodels.errors import AlignmentError, LeakageError
from brainmodels.metrics.labels import caption_label_scores
from brainmodels.metrics.text import words
from brainmodels.simulated import FACTORS, scene_stimuli
from brainmodels.systems.unibrain import Latents, UniBrain
from brainmodels.systems.unibrain.sampling import Sampling, image_seeds
from brainmodels.systems.unibrain.saved import SHIPPED
from tests.brainmodels.simulations import made
from tests.brainmodels.unibrain_small import forms, shipped
from veca.hashes import file_digest

LABELS = ("shape", "color", "size", "background")


def labels_of(stimuli, ids, captions):
    """Score of each label, of captions in the order of the ids."""
    truth = {name: dict(zip(ids, map(str, stimuli.label(name, ids)), strict=True)) for name in LABELS}
    found = caption_label_scores(dict(zip(ids, captions, strict=True)), truth, FACTORS, resamples=50)
    return {score.metric.name[14:-1]: score for score in found}


def mean_label(stimuli, ids, captions):
    return float(np.mean([score.value for score in labels_of(stimuli, ids, captions).values()]))


def test_the_shipped_file_is_small_and_is_what_its_record_says():
    file, record = SHIPPED / "nano.safetensors", json.loads((SHIPPED / "nano.json").read_text())
    assert file.stat().st_size < 6e6 and file_digest(file) == record["sha256"]
    assert record["trained"]["recipe"]["scenes_seed"] == 7001 and "torch" in record["versions"]
    assert shipped().fingerprint == record["fingerprint"]


@pytest.mark.parametrize(("form", "bound"), [(1, 0.95), (2, 0.8), (3, 0.95), (4, 0.95)])
def test_captions_come_back_from_their_latents(form, bound):
    texts = forms(5, 200, form)
    latents = shipped().latents(captions=texts)
    back = shipped().write(latents.z_text)
    assert np.mean([words(a) == words(b) for a, b in zip(texts, back, strict=True)]) >= bound
    if form == 1:
        noisy = latents.z_text + 0.5 * np.random.default_rng(0).normal(size=latents.z_text.shape)
        back = shipped().write(noisy.astype(np.float32))
        assert np.mean([words(a) == words(b) for a, b in zip(texts, back, strict=True)]) >= 0.9


def test_shape_words_follow_the_context_with_the_larger_weight():
    """Image and text contexts of different scenes: the words go over from one to the other."""
    scenes, count = scene_stimuli(11, 160), 80
    ids = [str(name) for name in scenes.ids]
    images, texts = scenes.images(ids[:count], 64), [scenes.captions(name)[1] for name in ids[count:]]
    c_image, c_text = shipped().latents(images).c_image, shipped().latents(captions=texts).c_text
    shapes = [list(map(str, scenes.label("shape", part))) for part in (ids[:count], ids[count:])]
    keep = [row for row in range(count) if shapes[0][row] != shapes[1][row]]
    seeds, follows = image_seeds(ids[:count], 0), {}
    for weight in (0.0, 0.3, 0.6, 1.0):
        sampling = Sampling(weight, 1.0, 10, 3.0)
        z = shipped().denoise("text", None, c_image, c_text, sampling=sampling, seeds=seeds)
        said = [set(words(text)) for text in shipped().write(z)]
        follows[weight] = [np.mean([shapes[side][row] in said[row] for row in keep]) for side in (0, 1)]
    image, text = (np.array([follows[weight][side] for weight in follows]) for side in (0, 1))
    assert text[0] >= 0.85 and image[-1] >= 0.6 and text[-1] <= 0.3, follows
    assert (np.diff(text) <= 0.07).all() and (np.diff(image) >= -0.07).all(), follows


@pytest.fixture(scope="module")
def study():
    dataset = made("tiny", seed=1, n_subjects=1)
    model = UniBrain("nano", shipped(), device="cpu")
    model.fit(dataset.stimuli, dataset.pairs("sim01", "shared", "train"), subject="sim01")
    test = dataset.pairs("sim01", "shared", "test", "repeats")
    return dataset, model, test, [str(name) for name in test.image_ids]


def test_captions_of_a_subject_hold_the_labels(study):
    dataset, model, test, ids = study
    score = lambda made: mean_label(dataset.stimuli, ids, made.captions)  # noqa: E731
    only = model.decode(test, what="captions", mode="only_z")
    full = model.decode(test, what="captions")
    assert score(only) >= 0.75 and score(full) >= 0.55
    other = np.roll(np.arange(len(ids)), 7)
    wrong = [only.captions[row] for row in other]
    assert mean_label(dataset.stimuli, ids, wrong) <= 0.35
    assert mean_label(dataset.stimuli, [ids[row] for row in other], wrong) >= 0.75  # they follow the other image
    steps = [score(model.decode(test, what="captions", strength=x)) for x in (0.0, 0.5)]
    assert steps[0] == score(only) and steps[1] <= steps[0] + 0.07
    assert model.decode(test, what="captions", strength=0.0).captions == only.captions


def test_pictures_of_a_subject_are_found(study):
    dataset, model, test, ids = study
    shown = dataset.stimuli.images(ids, 64).transpose(0, 3, 1, 2) / 255
    drawn = model.decode(test, what="images", mode="only_z").images
    table = np.corrcoef(shown.reshape(60, -1), drawn.reshape(60, -1))[:60, 60:]
    own = np.diagonal(table)
    assert own.mean() >= 0.15
    two_way = np.mean([(table[i, i] > np.delete(table[:, i], i)).mean() for i in range(60)])
    wrong = np.mean([(table[(i + 1) % 60, i] > np.delete(table[:, i], (i + 1) % 60)).mean() for i in range(60)])
    assert two_way >= 0.65 and wrong <= 0.55


@pytest.mark.slow
def test_noise_is_at_chance_and_is_noticed():
    dataset = made("tiny", seed=1, n_subjects=1, snr_scale=0.0)
    train, test = (dataset.pairs("sim01", "shared", part, "repeats") for part in ("train", "test"))
    with pytest.raises(AlignmentError):
        UniBrain("nano", shipped(), device="cpu").fit(dataset.stimuli, train, subject="sim01")
    model = UniBrain("nano", shipped(), device="cpu")
    model.fit(dataset.stimuli, train, subject="sim01", alignment="off")
    ids = [str(name) for name in test.image_ids]
    found = labels_of(dataset.stimuli, ids, model.decode(test, what="captions", mode="only_z").captions)
    inside = [score.chance_interval.low <= score.value <= score.chance_interval.high for score in found.values()]
    assert sum(inside) >= 3  # of four 95 % intervals


def test_scenes_of_the_generator_are_refused(study):
    dataset = made("tiny", seed=7001, n_subjects=1)
    with pytest.raises(LeakageError, match="such as sim7001:"):
        UniBrain("nano", shipped()).fit(dataset.stimuli, dataset.pairs("sim01", "shared", "train"))
    with pytest.raises(LeakageError):
        study[1].check_unseen(study[0].pairs("sim01", "shared", "train").image_ids)


def test_a_model_takes_its_generator_along(study, tmp_path):
    dataset, model, test, _ = study
    model.save(tmp_path / "model")
    loaded = UniBrain.load(tmp_path / "model", device="cpu")
    options = {"what": "captions", "steps": 4}
    assert loaded.decode(test, **options).captions == model.decode(test, **options).captions
    assert isinstance(loaded.latents(test), Latents) and Path(tmp_path / "model" / "generator").is_dir()
    scored = loaded.score(dataset.stimuli, test)
    assert set(scored) == {"z_image", "z_text", "c_image", "c_text"} and scored["z_text"] > 0.2
