"""Voxels and averaged images as items of a training: averages by definition, in memory and in a file."""

import itertools

import numpy as np
import pytest

from brainmodels.systems.synbrain import SynBrain
from brainmodels.training import voxels
from brainmodels.training.voxels import ImageRows, VoxelRows, voxels_of
from tests.brainmodels.fitted import SYNBRAIN, features, pairs

SUBJECTS = ("sim01", "sim02")


def joined(validation=0.2):
    """Train and validation trials of two subjects with two repeats of each image."""
    return SynBrain(SYNBRAIN)._join(
        features(), {name: pairs(subject=name) for name in SUBJECTS}, "", None, None, validation, False
    )


def average(data, subject, image):
    """Mean response to an image, trial by trial."""
    given, scale = pairs(subject=subject), data.scales[subject]
    rows = [row for row, name in enumerate(given.image_ids) if name == image]
    return sum((given.batch([row])[0].astype(np.float64) - scale.mean) / scale.std for row in rows) / len(rows)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_images_and_means_by_a_loop(subject):
    data = joined()
    shown = {part: data.images(subject, part).tolist() for part in ("train", "val")}
    for part, rows in ((part, data.rows[part][subject]) for part in shown):
        assert shown[part] == sorted({str(pairs(subject=subject).image_ids[row]) for row in rows})
    asked = shown["train"][40:3:-9] + shown["val"][:2]  # any order, both parts
    found = data.means(subject, asked)
    np.testing.assert_allclose(found, [average(data, subject, image) for image in asked], atol=1e-5)
    assert np.abs(found - data.means(subject, asked[::-1])).max() > 0.1
    np.testing.assert_array_equal(found[::-1], data.means(subject, asked[::-1]))


def test_images_of_a_subject_without_a_part_are_none():
    data = joined(validation=0.0)
    assert not len(data.images("sim01", "val"))
    assert data.images("sim01", "train").tolist() == sorted({*pairs().image_ids.tolist()})
    assert VoxelRows(voxels_of(data)).sizes("val") == ImageRows(voxels_of(data)).sizes("val") == {}


@pytest.mark.parametrize("block", [512, 7])
def test_responses_are_stored_by_voxel_train_images_first(block, monkeypatch):
    monkeypatch.setattr(voxels, "_IMAGES", block)
    data = joined()
    for name, item in voxels_of(data).items():
        train, val = (data.images(name, part) for part in ("train", "val"))
        assert item.ids.tolist() == [*train, *val] and item.num_train == len(train) and len(val) > 10
        assert item.responses.dtype == np.float32 and item.folder is None
        expected = [average(data, name, image) for image in item.ids]
        np.testing.assert_allclose(item.responses.T, expected, atol=1e-5)
        np.testing.assert_array_equal(item.embeddings, data.tokens.get(item.ids)[:, 0])
        x, y = item.train
        np.testing.assert_array_equal(x, item.embeddings[: len(train)])
        np.testing.assert_array_equal(y, item.responses[:, : len(train)].T)


def test_a_file_holds_the_same_numbers_as_memory(monkeypatch):
    data = joined()
    held = voxels_of(data)
    monkeypatch.setattr(voxels, "IN_MEMORY", 0)
    filed = voxels_of(data)
    folder = filed["sim01"].folder
    for name in SUBJECTS:
        assert isinstance(filed[name].responses, np.memmap) and not isinstance(held[name].responses, np.memmap)
        assert filed[name].folder is folder
        np.testing.assert_array_equal(filed[name].responses, held[name].responses)
        for source, part in itertools.product((VoxelRows, ImageRows), ("train", "val")):
            rows = np.array([5, 0, 11])
            first, second = (source(items).batch(part, name, rows) for items in (held, filed))
            for a, b in zip(first[1:], second[1:], strict=True):
                np.testing.assert_array_equal(a, b)
    path = folder.name
    del filed, folder, first, second
    assert not voxels.Path(path).exists()


def test_a_batch_of_voxels_has_their_responses_to_all_images():
    items = voxels_of(joined())
    source = VoxelRows(items)
    assert source.sizes("train") == source.sizes("val") == {"sim01": 24, "sim02": 30}
    rows = np.array([3, 17, 0])
    for part in ("train", "val"):
        batch = source.batch(part, "sim02", rows)
        np.testing.assert_array_equal(batch.responses, [items["sim02"].responses[row] for row in rows])
        np.testing.assert_array_equal(batch.rows, rows)
        assert batch.tokens.shape[0] == 3 and not batch.tokens.numel()
    assert source.describe("val", "sim02", rows) == "voxels 3, 17, 0 of sim02"


def test_a_batch_of_images_has_responses_and_embeddings_of_its_part():
    items = voxels_of(joined())
    source, item = ImageRows(items), items["sim01"]
    assert source.sizes("train") == {name: x.num_train for name, x in items.items()}
    assert source.sizes("val") == {name: len(x.ids) - x.num_train for name, x in items.items()}
    rows = np.array([7, 0, 3])
    for part, first in (("train", 0), ("val", item.num_train)):
        batch = source.batch(part, "sim01", rows)
        np.testing.assert_array_equal(batch.rows, rows)
        np.testing.assert_array_equal(batch.responses, [item.responses[:, first + row] for row in rows])
        np.testing.assert_array_equal(batch.tokens[:, 0], [item.embeddings[first + row] for row in rows])
        named = ", ".join(item.ids[first + row] for row in rows)
        assert source.describe(part, "sim01", rows) == f"images {named} of sim01"
