"""The nearest image of a bank against brute force."""

import re

import numpy as np
import pytest
import torch

from brainmodels.errors import AxisError, BrainDataError, IdError
from brainmodels.nn import tokens_to_image
from brainmodels.nn.tokens_to_image import NearestImage
from tests.brainmodels.pictured import as_tensor, normal, pictures


def bank(count: int = 40, **options) -> NearestImage:
    ids = [f"b:{row}" for row in range(count)]
    return NearestImage((normal(count, 3, 5) + 10).astype(np.float16), pictures(count), ids, **options)


# the nearest image of a bank


@pytest.mark.parametrize("centre", [True, False])
def test_tokens_of_the_bank_find_their_own_picture(centre):
    near = bank(centre=centre)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    tokens = torch.from_numpy(near.tokens)[order]
    assert near.ids_of(tokens) == [f"b:{row}" for row in order.tolist()]
    assert torch.equal(near(tokens), as_tensor(near.images[order.numpy()]))


@pytest.mark.parametrize("centre", [True, False])
def test_nearest_by_brute_force_over_a_bank_on_disk(tmp_path, monkeypatch, centre):
    monkeypatch.setattr(tokens_to_image, "BLOCK", 7 * 15)  # blocks of 7, the last of 5
    whole = bank(centre=centre)
    np.save(tmp_path / "tokens.npy", whole.tokens)
    near = NearestImage(np.load(tmp_path / "tokens.npy", mmap_mode="r"), whole.images, whole.ids, centre)
    tokens, stored = normal(200, 3, 5, seed=3) + 10, whole.tokens.astype(np.float64).reshape(40, -1)
    middle = stored.mean(0) if centre else 0.0
    expected = []
    for token in tokens.astype(np.float64).reshape(200, -1):
        cosines = [
            np.dot(token - middle, row - middle) / np.linalg.norm(token - middle) / np.linalg.norm(row - middle)
            for row in stored
        ]
        expected.append(f"b:{int(np.argmax(cosines))}")
    assert near.ids_of(torch.from_numpy(tokens)) == expected
    assert len(set(expected)) > 20
    assert near.fingerprint == whole.fingerprint


def test_without_a_common_part_removed_another_image_is_nearest():
    tokens = np.array([[[10.0, 0.5]], [[10.0, -0.4]], [[20.0, 0.0]]], np.float32)
    query = torch.tensor([[[40.0, 1.0]]])  # its own excess points along the third, its whole along the third and first
    assert NearestImage(tokens, pictures(3), ["a", "b", "c"], centre=True).ids_of(query) == ["c"]
    query = torch.tensor([[[11.0, 0.3]]])
    assert NearestImage(tokens, pictures(3), ["a", "b", "c"], centre=True).ids_of(query) == ["a"]
    assert NearestImage(tokens, pictures(3), ["a", "b", "c"], centre=False).ids_of(query) == ["a"]
    query = torch.tensor([[[13.0, -0.1]]])
    assert NearestImage(tokens, pictures(3), ["a", "b", "c"], centre=True).ids_of(query) == ["b"]
    assert NearestImage(tokens, pictures(3), ["a", "b", "c"], centre=False).ids_of(query) == ["c"]


def test_of_equally_near_images_the_first_is_taken():
    tokens = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]], np.float32)
    near = NearestImage(tokens, pictures(3), ["a", "b", "c"], centre=False)
    assert near.ids_of(torch.tensor([[[0.0, 5.0]], [[3.0, 3.0]]])) == ["b", "a"]


def test_what_a_bank_refuses():
    tokens, images, ids = normal(3, 2, 2), pictures(3), ["a", "b", "c"]
    with pytest.raises(AxisError, match=r"same N images, got \(3, 2, 2\), \(3, 4, 4, 3\) and 2 ids"):
        NearestImage(tokens, images, ids[:2])
    with pytest.raises(IdError, match="unique ids, got 1 that repeat"):
        NearestImage(tokens, images, ["a", "b", "a"])
    with pytest.raises(AxisError, match=r"\(n, height, width, 3\) uint8, got float32"):
        NearestImage(tokens, images.astype(np.float32), ids)
    with pytest.raises(
        BrainDataError, match=r"differ from their mean, got a distance of 0 for a \(1 of 1 images fail\); a bank"
    ):
        NearestImage(tokens[:1], images[:1], ids[:1])
    tokens[1, 0, 0] = np.nan
    with pytest.raises(
        BrainDataError, match=r"finite tokens .* from zero, got a distance of nan for b \(1 of 3 images fail\)$"
    ):
        NearestImage(tokens, images, ids, centre=False)
    with pytest.raises(AxisError, match=r"tokens of nearest_image@40 \(n, 3, 5\), got \(2, 5, 3\)"):
        bank()(torch.zeros(2, 5, 3))
    with pytest.raises(BrainDataError, match="finite tokens, got NaN"):
        bank()(torch.full((1, 3, 5), torch.nan))


def test_a_bank_changes_its_fingerprint_with_everything_in_it():
    tokens, images, ids = normal(3, 2, 2), pictures(3), ["a", "b", "c"]
    changed_tokens, changed_images = tokens.copy(), images.copy()
    changed_tokens[2, 1, 1] += 1e-3
    changed_images[2, 3, 3, 2] ^= 1
    made = [
        NearestImage(tokens, images, ids),
        NearestImage(tokens, images, ids, centre=False),
        NearestImage(changed_tokens, images, ids),
        NearestImage(tokens, changed_images, ids),
        NearestImage(tokens, images, ["a", "b", "d"]),
        NearestImage(tokens[[1, 0, 2]], images[[1, 0, 2]], ["b", "a", "c"]),
    ]
    assert len({near.fingerprint for near in made}) == len(made)
    assert NearestImage(torch.from_numpy(tokens), images, ids).fingerprint == made[0].fingerprint
    assert re.fullmatch("[0-9a-f]{12}", made[0].fingerprint)
