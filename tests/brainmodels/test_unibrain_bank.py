"""Pictures that UniBrain finds by both contexts and the image latent, with the shipped generator and some scenes."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.errors import BrainDataError, LeakageError
from brainmodels.simulated import scene_stimuli, simulate
from brainmodels.systems.unibrain import UniBrain
from brainmodels.systems.unibrain.bank import shipped_bank
from tests.brainmodels.unibrain_small import shipped

COUNT = 600


@pytest.fixture(scope="module")
def bank():
    return shipped_bank(shipped(), count=COUNT)


@pytest.fixture(scope="module")
def scenes():
    """New scenes with their latents and labels, and the labels of the bank."""
    new, known = scene_stimuli(71, 60), scene_stimuli(7100, COUNT)
    texts = [new.captions(str(name))[1] for name in new.ids]
    labels = {name: (new.label(name, new.ids), known.label(name, known.ids)) for name in ("shape", "color", "size")}
    return shipped().latents(new.images(new.ids, 64), texts), labels


def found(labels, rows, name):
    wanted, known = labels[name]
    return float(np.mean([known[row] == x for row, x in zip(rows, wanted, strict=True)]))


def test_a_scene_of_the_bank_finds_itself(bank):
    known = scene_stimuli(7100, 20)
    texts = [known.captions(str(name))[1] for name in known.ids]
    true = shipped().latents(known.images(known.ids, 64), texts)
    assert bank.rows_of(true.z_image, true.c_image, true.c_text, 0.5).tolist() == list(range(20))
    assert np.array_equal(bank(true.z_image, true.c_image, true.c_text, 0.5) * 255, bank_pictures(known))


def bank_pictures(known):
    return known.images(known.ids, 64).transpose(0, 3, 1, 2).astype(np.float32)


def test_each_context_brings_what_it_knows(bank, scenes):
    """Both know the object. With weight 1 the text context counts for nothing, with weight 0 the image context."""
    true, labels = scenes
    both = bank.rows_of(None, true.c_image, true.c_text, 0.4)
    assert all(found(labels, both, name) >= least for name, least in (("shape", 0.9), ("color", 0.9), ("size", 0.8)))
    other = np.roll(np.arange(60), 1)
    image = bank.rows_of(None, true.c_image, true.c_text[other], 1.0)
    assert np.array_equal(image, bank.rows_of(None, true.c_image, None, 1.0))
    assert found(labels, image, "shape") >= 0.8
    text = bank.rows_of(None, true.c_image[other], true.c_text, 0.0)
    assert np.array_equal(text, bank.rows_of(None, None, true.c_text, 0.0)) and found(labels, text, "shape") >= 0.8
    swapped = bank.rows_of(None, true.c_image, true.c_text[other], 0.4)
    assert found(labels, swapped, "size") < found(labels, both, "size") - 0.2
    with pytest.raises(BrainDataError, match="a latent or a context to find a picture by"):
        bank.rows_of(None, None, None, 0.4)


def test_a_subject_draws_from_the_bank_and_never_its_own_images(bank):
    dataset = simulate("tiny", seed=1, n_subjects=1)
    train = dataset.pairs("sim01", "shared", "train")
    test = dataset.pairs("sim01", "shared", "test", average="repeats")
    model = UniBrain("nano", shipped(), device="cpu").fit(dataset.stimuli, train, subject="sim01", alignment="off")
    model._found = bank
    made, known = model.decode(test, what="images"), scene_stimuli(7100, COUNT)
    true = bank_pictures(known).reshape(COUNT, -1)
    rows = [int(np.abs(true - picture.ravel() * 255).sum(1).argmin()) for picture in made.images]
    labels = {"color": (dataset.stimuli.label("color", made.ids), known.label("color", known.ids))}
    assert found(labels, rows, "color") >= 0.6 and made.settings["drawer"] == f"nearest_of_{COUNT}"
    smooth = model.decode(test, what="images", drawer="denoised")
    assert smooth.settings["drawer"] == "denoised" and not np.array_equal(smooth.images, made.images)
    latents = model.latents(test)
    with pytest.raises(LeakageError, match="not in the bank"):
        model.reconstruct(replace(latents.take([0]), ids=["sim7100:000003"]))
    with pytest.raises(BrainDataError, match="expected drawer to be one of denoised, nearest, got 'drawn'"):
        model.decode(test, what="images", drawer="drawn")
