"""The scaler: statistics of train images alone, streamed, and what they were taken of."""

import numpy as np
import pytest
import torch

from brainmodels.data import ArrayImages, StimulusSet
from brainmodels.errors import AxisError, BrainDataError, LeakageError, NormalizationError
from brainmodels.features import FeatureCache, RandomConv, TokenScaler


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Twenty pictures whose last ten are brighter, so that they would move any statistics."""
    pixels = np.random.default_rng(0).integers(0, 100, (20, 16, 16, 3), np.uint8)
    pixels[10:] += 150
    stimuli = StimulusSet([f"sim:{number:02d}" for number in range(20)], ArrayImages(pixels))
    cache = FeatureCache(tmp_path_factory.mktemp("features"), RandomConv(size=16), stimuli)
    cache.extract(progress=False)
    return cache


@pytest.mark.parametrize(("what", "per"), [("tokens", "feature"), ("tokens", "element"), ("pooled", "feature")])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_streamed_statistics_equal_those_of_all_rows(cache, what, per, batch_size):
    ids = cache.stimuli.ids[:10]
    values = cache.get(ids, what).astype(np.float64)
    rows = values.reshape(-1, values.shape[-1]) if per == "feature" else values
    scaler = TokenScaler(what, per).fit(cache, [*ids[::-1], ids[0]], batch_size)
    std = rows.std(0)
    np.testing.assert_allclose(scaler.mean_, rows.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scaler.std_, np.where(std == 0, 1, std), rtol=1e-5)
    assert scaler.num_constant == (std == 0).sum()
    scaled = scaler.transform(cache.get(ids, what))
    np.testing.assert_allclose(scaled, (values - rows.mean(0)) / np.where(std == 0, 1, std), atol=1e-4)
    np.testing.assert_allclose(scaler.inverse_transform(scaled), values, atol=1e-5)
    as_tensor = scaler.transform(torch.from_numpy(cache.get(ids, what)))
    np.testing.assert_allclose(as_tensor.numpy(), scaled, atol=1e-6)


def test_a_large_offset_does_not_lose_the_deviation(cache):
    """The naive E[x^2] - E[x]^2 in single precision would give noise here."""

    class Offset:
        fingerprint = "offset"

        def get(self, ids, what):
            return cache.get(ids, what) + np.float32(1000)

    ids = cache.stimuli.ids[:10]
    truth = (cache.get(ids) + np.float32(1000)).astype(np.float64).std(0)
    scaler = TokenScaler("pooled").fit(Offset(), ids, 3)
    varied = truth > 1e-3
    assert varied.sum() > 20
    np.testing.assert_allclose(scaler.std_[varied], truth[varied], rtol=1e-5)


def test_constant_features_become_zero_and_come_back(cache):
    scaler = TokenScaler("pooled").fit(cache, cache.stimuli.ids[:1])
    values = cache.get(cache.stimuli.ids[:1])
    assert scaler.num_constant == values.shape[1]
    scaled = scaler.transform(values)
    assert not scaled.any()
    np.testing.assert_array_equal(scaler.inverse_transform(scaled), values)


def test_only_train_images_count_and_they_are_remembered(cache):
    train, test = cache.stimuli.ids[:10], cache.stimuli.ids[10:]
    scaler = TokenScaler().fit(cache, train)
    assert scaler.fitted_ids == frozenset(train.tolist())
    both = TokenScaler().fit(cache, cache.stimuli.ids)
    assert np.abs(both.mean_ - scaler.mean_).max() > 0.05  # test images would have been seen
    scaler.check_unseen(test)
    with pytest.raises(LeakageError, match="fitted on 1 that are tested on, such as sim:03"):
        scaler.check_unseen([*test, "sim:03"])
    scaler.check_features(cache.fingerprint)
    with pytest.raises(NormalizationError, match=cache.fingerprint):
        scaler.check_features("0123456789ab")


def test_state_survives_a_file(cache, tmp_path):
    scaler = TokenScaler(per="element").fit(cache, cache.stimuli.ids[:10])
    np.savez(tmp_path / "scaler.npz", **scaler.state_dict())
    with np.load(tmp_path / "scaler.npz", allow_pickle=False) as state:
        again = TokenScaler.from_state_dict(state)
    values = cache.get(cache.stimuli.ids, "tokens")
    np.testing.assert_array_equal(again.transform(values), scaler.transform(values))
    names = ("what", "per", "fitted_ids", "fingerprint", "num_constant")
    assert all(getattr(again, name) == getattr(scaler, name) for name in names)


def test_misuse_is_named(cache):
    with pytest.raises(BrainDataError, match="fit"):
        TokenScaler().transform(np.zeros((2, 4, 128)))
    with pytest.raises(BrainDataError, match="at least one image"):
        TokenScaler().fit(cache, [])
    scaler = TokenScaler(per="element").fit(cache, cache.stimuli.ids)
    with pytest.raises(AxisError, match=r"\(\.\.\., 4, 128\), got \(2, 1, 128\)"):  # would broadcast
        scaler.transform(np.zeros((2, 1, 128)))
