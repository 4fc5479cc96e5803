"""Features in memory: joined by id, shared and not copied, refused where they are not one finite row an image."""

import pickle

import numpy as np
import pytest
import torch

from brainmodels.data import ArrayImages, StimulusSet
from brainmodels.errors import AxisError, BrainDataError, IdError, NormalizationError
from brainmodels.features import ArrayFeatures, FeatureCache, RandomConv, TokenScaler

IDS = [f"sim:{number:02d}" for number in range(6)]


@pytest.fixture
def tokens():
    return np.random.default_rng(0).standard_normal((6, 4, 3))


def test_rows_are_found_by_id(tokens):
    order = np.array([3, 0, 5, 1, 4, 2])
    features, permuted = ArrayFeatures(tokens, IDS), ArrayFeatures(tokens[order], np.array(IDS)[order])
    wanted = [IDS[4], IDS[1], IDS[4]]
    for source in (features, permuted):
        got = source.get(wanted, "tokens")
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, tokens[[4, 1, 4]].astype(np.float32))
        assert source.ids.tolist() == IDS
        assert len(source) == 6 and IDS[2] in source and "sim:06" not in source
    assert features.get([], "tokens").shape == (0, 4, 3)


def test_kind_follows_from_the_axes(tokens):
    pooled = ArrayFeatures(tokens[:, 0], IDS, name="clip")
    assert (pooled.kinds, ArrayFeatures(tokens, IDS).kinds) == (("pooled",), ("tokens",))
    np.testing.assert_array_equal(pooled.get(IDS[:2]), tokens[:2, 0].astype(np.float32))
    with pytest.raises(AxisError, match=r"expected tokens of clip, got pooled \(6, 3\) only; values\[:, None\] makes"):
        pooled.get(IDS, "tokens")
    single = ArrayFeatures(tokens[:, 0][:, None], IDS)  # the remedy of the message
    np.testing.assert_array_equal(single.get(IDS, "tokens")[:, 0], pooled.get(IDS))
    with pytest.raises(AxisError, match=r"expected pooled of array, got tokens \(6, 4, 3\) only; values.mean\(1\)"):
        ArrayFeatures(tokens, IDS).get(IDS)
    with pytest.raises(BrainDataError, match="expected what to be one of tokens, pooled, got 'cores'"):
        pooled.get(IDS, "cores")


def test_the_same_scaler_comes_from_an_array_and_from_a_cache(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (6, 16, 16, 3), np.uint8)
    cache = FeatureCache(tmp_path, RandomConv(size=16), StimulusSet(IDS, ArrayImages(pixels)))
    cache.extract(progress=False)
    array = ArrayFeatures(cache.get(IDS[::-1], "tokens"), IDS[::-1], cache.fingerprint)
    np.testing.assert_array_equal(array.get(IDS, "tokens"), cache.get(IDS, "tokens"))
    one, other = (TokenScaler(reduce=(1, 2)).fit(source, IDS[:4]).state_dict() for source in (cache, array))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_unknown_ids_are_named_as_the_cache_names_them(tmp_path, tokens):
    cache = FeatureCache(tmp_path, RandomConv(size=16), StimulusSet(IDS, ArrayImages(np.zeros((6, 8, 8, 3), np.uint8))))
    cache.extract(progress=False)
    messages = []
    for source in (cache, ArrayFeatures(tokens, IDS)):
        with pytest.raises(IdError, match="sim:3") as caught:
            source.get(["sim:01", "sim:3"], "tokens")
        messages.append(str(caught.value))
    assert "; near: sim:" in messages[0]
    assert messages[0] == messages[1]


def test_arrays_tensors_and_maps_are_shared(tmp_path, tokens):
    assert ArrayFeatures(tokens, IDS).values is tokens
    tensor = torch.from_numpy(tokens).requires_grad_()
    assert np.shares_memory(ArrayFeatures(tensor, IDS).values, tokens)
    half = tokens.astype(np.float16)
    np.save(tmp_path / "tokens.npy", half)
    mapped = ArrayFeatures(np.load(tmp_path / "tokens.npy", mmap_mode="r"), IDS)
    assert isinstance(mapped.values, np.memmap)
    np.testing.assert_array_equal(mapped.get(IDS[2:4], "tokens"), half[2:4].astype(np.float32))
    rounded = torch.from_numpy(tokens).bfloat16()
    np.testing.assert_array_equal(ArrayFeatures(rounded, IDS).get(IDS, "tokens"), rounded.float().numpy())
    got = ArrayFeatures(tokens.astype(np.float32), IDS)
    got.get(IDS, "tokens")[:] = 0  # what is given out is a copy
    assert got.values.any()


def test_a_map_travels_as_its_file(tmp_path):
    values = np.random.default_rng(2).standard_normal((6, 100, 100)).astype(np.float16)
    np.save(tmp_path / "tokens.npy", values)
    features = ArrayFeatures(np.load(tmp_path / "tokens.npy", mmap_mode="r"), IDS, "0123456789ab")
    content = pickle.dumps(features)
    assert len(content) < values.nbytes / 50
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.get(IDS, "tokens"), features.get(IDS, "tokens"))
    assert again.fingerprint == "0123456789ab"


def test_one_row_an_image(tokens):
    twice = [*IDS[:5], IDS[1]]
    with pytest.raises(IdError, match="got unequal rows 1 and 5 of sim:01"):
        ArrayFeatures(tokens, twice)
    with pytest.raises(IdError, match="got equal rows 1 and 5 of sim:01"):
        ArrayFeatures(tokens[[0, 1, 2, 3, 4, 1]], twice)
    with pytest.raises(IdError, match=r"ids of the 6 rows of array, got ids of shape \(5,\)"):
        ArrayFeatures(tokens, IDS[:5])


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((6,), float, r"tokens \(n, m, d\) or of pooled features \(n, p\), got \(6,\)"),
        ((6, 2, 2, 3), float, r"got \(6, 2, 2, 3\)"),
        ((6, 0, 3), float, r"got \(6, 0, 3\)"),
        ((6, 3), complex, "real numbers, got complex128"),
        ((6, 3), bool, "real numbers, got bool"),
        ((6, 3), object, "real numbers, got object"),
    ],
)
def test_arrays_of_another_form_are_refused(shape, dtype, message):
    with pytest.raises(AxisError, match=message):
        ArrayFeatures(np.zeros(shape, dtype), IDS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_what_fp32_cannot_hold_is_refused_wherever_it_lies(tokens, bad, monkeypatch):
    monkeypatch.setattr("brainmodels.features.arrays._BLOCK", 24)  # two rows at a time
    tokens[3, 1, 2] = bad
    with pytest.raises(NormalizationError, match="row 3, sim:03"):
        ArrayFeatures(tokens, IDS)
