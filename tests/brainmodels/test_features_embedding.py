"""Embeddings of unit length: components of the train images against an SVD, the way back, and what it refuses."""

import numpy as np
import pytest
import torch

from brainmodels.errors import AxisError, BrainDataError, LeakageError, NormalizationError
from brainmodels.features import ArrayFeatures, EmbeddingSpace, TokenScaler
from brainmodels.training.files import scale_arrays

WIDTHS = pytest.mark.parametrize("width", [None, 4], ids=["all", "components"])


def made(count=40, width=9, seed=0, fingerprint="0123456789ab"):
    """Correlated pooled features about a mean far from 0, of unequal sizes."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) * np.geomspace(3, 0.3, width)[:, None]
    values = (rng.standard_normal((count, width)) @ mixing + rng.uniform(-20, 20, width)).astype(np.float32)
    return ArrayFeatures(values, [f"x:{row:03d}" for row in range(count)], fingerprint)


def by_svd(values, train, width):
    """Unit vectors of the first components of the train rows; the largest entry of each component is positive."""
    values = values.astype(np.float64)
    mean = values[train].mean(0)
    axes = np.linalg.svd(values[train] - mean, full_matrices=False)[2][:width]
    axes *= np.sign([axis[np.abs(axis).argmax()] for axis in axes])[:, None]
    projected = (values - mean) @ axes.T
    return projected / np.linalg.norm(projected, axis=1, keepdims=True)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_embeddings_are_those_of_an_svd_of_the_train_images(batch_size):
    features = made()
    train, values = features.ids[:30], features.get(features.ids)
    space = EmbeddingSpace(4).fit(features, [*train[::-1], train[0]], batch_size)
    np.testing.assert_allclose(space.transform(values), by_svd(values, range(30), 4), atol=1e-5)
    spread = np.linalg.svd(values[:30].astype(np.float64) - values[:30].mean(0), compute_uv=False) ** 2
    assert space.explained_ == pytest.approx(spread[:4].sum() / spread.sum(), rel=1e-6)
    assert (space.token_width, space.num_tokens, space.what) == (4, None, "pooled")


def test_without_components_features_are_divided_by_their_length():
    features = made()
    values = features.get(features.ids)
    space = EmbeddingSpace().fit(features, features.ids[:30])
    length = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(space.transform(values), values / length, rtol=1e-5)
    np.testing.assert_allclose(
        space.inverse_transform(space.transform(values)), values / length * length[:30].mean(), rtol=1e-5
    )
    assert (space.token_width, space.explained_) == (9, 1.0)


@WIDTHS
def test_the_way_back_and_forth_keeps_every_unit_vector(width):
    space = EmbeddingSpace(width).fit(made(), made().ids)
    e = np.random.default_rng(1).standard_normal((2, 50, space.token_width))
    e /= np.linalg.norm(e, axis=-1, keepdims=True)
    back = space.inverse_transform(e)
    np.testing.assert_allclose(space.transform(back), e, atol=1e-6)
    center = 0 if width is None else made().get(made().ids).astype(np.float64).mean(0)
    np.testing.assert_allclose(np.linalg.norm(back - center, axis=-1), space.length_, rtol=1e-5)


@WIDTHS
def test_the_way_back_has_the_mean_length_and_the_error_counts_it(width):
    features = made()
    values, space = features.get(features.ids).astype(np.float64), EmbeddingSpace(width).fit(features, features.ids)
    deviation = values if width is None else values - values.mean(0)
    axes = np.eye(9) if width is None else space.reduction.components_.astype(np.float64)
    lengths = np.linalg.norm(deviation @ axes.T, axis=1)
    assert space.length_ == pytest.approx(lengths.mean(), rel=1e-5)
    back = deviation @ axes.T @ axes * (lengths.mean() / lengths)[:, None]
    expected = np.linalg.norm(back - deviation) / np.linalg.norm(deviation)
    assert space.reduction_error(features, features.ids, 7) == pytest.approx(expected, rel=1e-5)


@WIDTHS
def test_tensors_equal_arrays_and_carry_gradients(width):
    features = made()
    values, space = features.get(features.ids), EmbeddingSpace(width).fit(features, features.ids)
    as_tensor = space.transform(torch.from_numpy(values))
    np.testing.assert_allclose(as_tensor.numpy(), space.transform(values), atol=1e-6)
    stacked = space.transform(torch.from_numpy(values).unflatten(0, (4, 10)))
    np.testing.assert_array_equal(stacked.flatten(0, 1).numpy(), as_tensor.numpy())
    back = space.inverse_transform(as_tensor)
    np.testing.assert_allclose(back.numpy(), space.inverse_transform(space.transform(values)), rtol=1e-4, atol=1e-4)
    leaf = torch.from_numpy(values[:3]).double().requires_grad_()
    assert torch.autograd.gradcheck(space.transform, leaf)


def test_only_train_images_count_and_they_are_remembered():
    features, other = made(), made(seed=5)
    other.values[:30] = features.values[:30]
    train = features.ids[:30]
    states = [EmbeddingSpace(4).fit(x, train).state_dict() for x in (features, other)]
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)
    space = EmbeddingSpace(4).fit(features, train)
    space.check_unseen(features.ids[30:])
    with pytest.raises(LeakageError, match="fitted on 1 that are tested on, such as x:003"):
        space.check_unseen(["x:035", "x:003"])
    space.check_features("0123456789ab")
    with pytest.raises(NormalizationError, match=r"of the extractor 0123456789ab, .* got those of other"):
        space.check_features("other")


@WIDTHS
def test_state_survives_a_file_and_a_models_folder(width, tmp_path):
    features = made()
    values, space = features.get(features.ids), EmbeddingSpace(width).fit(features, features.ids[:30])
    np.savez(tmp_path / "space.npz", **space.state_dict())
    arrays, texts = scale_arrays({}, space)
    as_saved = {key.removeprefix("scaler."): value.numpy() for key, value in arrays.items()} | texts["scaler"]
    with np.load(tmp_path / "space.npz", allow_pickle=False) as state:
        for again in (EmbeddingSpace.from_state_dict(state), EmbeddingSpace.from_state_dict(as_saved)):
            e = space.transform(values)
            np.testing.assert_array_equal(again.transform(values), e)
            np.testing.assert_array_equal(again.inverse_transform(e), space.inverse_transform(e))
            names = ("width", "fitted_ids", "fingerprint", "token_width", "explained_", "length_", "full_width_")
            assert all(getattr(again, name) == getattr(space, name) for name in names)
    assert (
        "width" in space.state_dict() and "width" not in TokenScaler("pooled").fit(features, features.ids).state_dict()
    )


def test_features_without_a_direction_are_refused():
    features = made()
    values = features.get(features.ids)
    plain, space = (EmbeddingSpace(width).fit(features, features.ids) for width in (None, 4))
    broken = values.copy()
    broken[7] = 0
    with pytest.raises(BrainDataError, match=r"with a direction, got length 0\.0 in row 7"):
        plain.transform(broken)
    broken[5] = space.reduction.center_
    for kind in (np.asarray, torch.from_numpy):
        with pytest.raises(BrainDataError, match=r"with a direction, got length .* in row 5"):
            space.transform(kind(broken))
    broken[2] = np.nan
    with pytest.raises(BrainDataError, match="with a direction, got length nan in row 2"):
        plain.transform(broken)
    zero = ArrayFeatures(np.vstack([values, np.zeros((1, 9), np.float32)]), [*features.ids, "x:zero"])
    with pytest.raises(BrainDataError, match="with a direction, got none of x:zero"):
        EmbeddingSpace().fit(zero, zero.ids)


def test_misuse_is_named():
    features = made()
    flat = ArrayFeatures(features.values[:, :3] @ np.ones((3, 9), np.float32), features.ids)
    with pytest.raises(BrainDataError, match=r"a width of at most 1, the number of directions .* vary, got 2"):
        EmbeddingSpace(2).fit(flat, flat.ids)
    with pytest.raises(BrainDataError, match="a width of at most 2, the number of directions"):
        EmbeddingSpace(3).fit(features, features.ids[:3])
    with pytest.raises(AxisError, match="a width of at most 9, that of the tokens, got 10"):
        EmbeddingSpace(10).fit(features, features.ids)
    for wrong in (0, True, 2.0):
        with pytest.raises(BrainDataError, match="of at least 1, or None, got"):
            EmbeddingSpace(wrong)
    with pytest.raises(BrainDataError, match="at least one image"):
        EmbeddingSpace(2).fit(features, [])
    with pytest.raises(BrainDataError, match="fitted"):
        EmbeddingSpace(2).transform(np.ones((2, 9)))
    space = EmbeddingSpace(4).fit(features, features.ids)
    with pytest.raises(AxisError, match=r"expected pooled \(\.\.\., 9\), got \(2, 8\)"):
        space.transform(np.ones((2, 8)))
    with pytest.raises(AxisError, match=r"expected pooled \(\.\.\., 4\), got \(2, 9\)"):
        space.inverse_transform(np.ones((2, 9)))
    for whole in (np.ones((2, 9), int), torch.ones(2, 9, dtype=torch.int64)):
        with pytest.raises(AxisError, match="of floats, got"):
            space.transform(whole)
