"""The scaler and its reduction: statistics of train images alone, streamed, and what they were taken of."""

import numpy as np
import pytest
import torch

from brainmodels.data import ArrayImages, StimulusSet
from brainmodels.errors import AxisError, BrainDataError, LeakageError, NormalizationError
from brainmodels.features import ArrayFeatures, FeatureCache, RandomConv, TokenScaler


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


def _features(values, fingerprint=""):
    return ArrayFeatures(values, [f"x:{row:03d}" for row in range(len(values))], fingerprint)


def _correlated(num=30, tokens=16, width=6, seed=3):
    """fp32 tokens about a mean far from 0, whose features are correlated and differ in size."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) * np.geomspace(3, 0.3, width)[:, None]
    return (rng.standard_normal((num, tokens, width)) @ mixing + rng.uniform(-20, 20, width)).astype(np.float32)


def _cell_means(values, side):
    """By definition: a loop over cells, and over the tokens of each."""
    root = int(values.shape[1] ** 0.5)
    cell = root // side
    out = np.zeros((len(values), side * side, values.shape[2]))
    for row in range(root):
        for col in range(root):
            place = row // cell * side + col // cell
            out[:, place] += values[:, row * root + col].astype(np.float64) / cell**2
    return out


@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_cells_are_means_over_the_grid(side):
    values = _correlated(tokens=36)
    features = _features(values)
    scaler = TokenScaler(reduce=(side, None)).fit(features, features.ids)
    assert (scaler.num_tokens, scaler.token_width, scaler.explained_) == (side**2, 6, 1)
    means = _cell_means(values, side)
    rows = means.reshape(-1, 6)
    expected = (means - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(scaler.transform(values), expected, atol=2e-5)
    back = scaler.inverse_transform(scaler.transform(values))
    np.testing.assert_allclose(_cell_means(back, side), means, atol=2e-5)
    grid = back.reshape(30, side, 6 // side, side, 6 // side, 6)
    np.testing.assert_array_equal(grid, np.broadcast_to(grid[:, :, :1, :, :1], grid.shape))  # the same within a cell


def test_components_are_those_of_an_svd():
    values = _correlated()
    features = _features(values)
    scaler = TokenScaler(reduce=(2, 3)).fit(features, features.ids)
    rows = _cell_means(values, 2).reshape(-1, 6)
    scores, singular, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    sign = np.sign([axis[np.abs(axis).argmax()] for axis in axes[:3]])
    np.testing.assert_allclose(scaler.reduction.components_, axes[:3] * sign[:, None], atol=1e-6)
    np.testing.assert_allclose(scaler.std_, singular[:3] / np.sqrt(len(rows)), rtol=1e-5)
    assert scaler.explained_ == pytest.approx((singular[:3] ** 2).sum() / (singular**2).sum(), rel=1e-8)
    whitened = (scores[:, :3] * sign * np.sqrt(len(rows))).reshape(30, 4, 3)  # mean 0, variance 1
    np.testing.assert_allclose(scaler.transform(values), whitened, atol=1e-4)


def test_nothing_is_lost_at_full_size():
    values = _correlated()
    features = _features(values)
    for reduce in ((4, 6), (None, 6), (4, None), (None, None), None):
        scaler = TokenScaler(reduce=reduce).fit(features, features.ids)
        assert (scaler.num_tokens, scaler.token_width) == (16, 6)
        scaled = scaler.transform(values)
        np.testing.assert_allclose(scaler.inverse_transform(scaled), values, atol=5e-5)
        rows = scaled.reshape(-1, 6).astype(np.float64)
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(rows.std(0), 1, atol=1e-5)
        assert scaler.reduction_error(features, features.ids) < 1e-6


def test_a_planted_low_rank_is_kept_whole():
    """Tokens that are constant within cells and of rank 3 beside their mean: also of images that were not fitted on."""
    rng = np.random.default_rng(4)
    coarse = rng.standard_normal((40, 4, 3)) @ rng.standard_normal((3, 12)) + rng.uniform(-5, 5, 12)
    line = np.array([0, 0, 1, 1])
    values = coarse[:, (line[:, None] * 2 + line).ravel()].astype(np.float32)
    features = _features(values)
    train, test = features.ids[:20], features.ids[20:]
    scaler = TokenScaler(reduce=(2, 3)).fit(features, train)
    assert scaler.explained_ == pytest.approx(1, abs=1e-9)
    assert scaler.reduction_error(features, test) < 1e-5
    narrower = TokenScaler(reduce=(2, 2)).fit(features, train)
    assert narrower.reduction_error(features, test) > 0.05
    with pytest.raises(BrainDataError, match="at most 3, the number of directions in which these tokens vary, got 4"):
        TokenScaler(reduce=(2, 4)).fit(features, train)


@pytest.mark.parametrize("reduce", [(2, 3), (2, None), (None, 3)])
def test_the_error_of_the_reduction_is_the_variance_lost(reduce):
    """Cell means and components are orthogonal projections, so that error^2 of train images is the share left out."""
    values = _correlated()
    features = _features(values)
    scaler = TokenScaler(reduce=reduce).fit(features, features.ids)
    rows = values.astype(np.float64).reshape(-1, 6)
    side, width = reduce
    averaged = rows if side is None else _cell_means(values, side).repeat(4, 1).reshape(-1, 6)
    kept = np.sort(np.linalg.eigvalsh(np.cov(averaged.T, bias=True)))[::-1][:width].sum() / rows.var(0).sum()
    for batch_size in (7, 64):
        assert scaler.reduction_error(features, features.ids, batch_size) == pytest.approx(np.sqrt(1 - kept), rel=1e-5)
    back = scaler.inverse_transform(scaler.transform(values[:5]))
    by_definition = np.linalg.norm(back - values[:5]) / np.linalg.norm(values[:5] - rows.mean(0))
    assert scaler.reduction_error(features, features.ids[:5]) == pytest.approx(by_definition, rel=1e-5)


def test_reduction_sees_train_images_alone():
    values, other = _correlated(), _correlated(seed=5)
    other[:20] = values[:20]
    train = _features(values).ids[:20]
    states = [TokenScaler(reduce=(2, 3)).fit(_features(x), train).state_dict() for x in (values, other)]
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)
    everything = TokenScaler(reduce=(2, 3)).fit(_features(other), _features(other).ids)
    assert np.abs(everything.reduction.components_ - states[0]["reduction.components"]).max() > 0.05


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_reduction_does_not_depend_on_batches_nor_on_the_order_of_rows(batch_size):
    values = _correlated()
    features = _features(values)
    order = np.random.default_rng(6).permutation(30)
    permuted = ArrayFeatures(values[order], features.ids[order])
    whole = TokenScaler(reduce=(2, 3)).fit(features, features.ids)
    scaler = TokenScaler(reduce=(2, 3)).fit(permuted, features.ids[order], batch_size)
    np.testing.assert_allclose(scaler.reduction.components_, whole.reduction.components_, atol=1e-6)
    np.testing.assert_allclose(scaler.reduction.center_, whole.reduction.center_, rtol=1e-6)
    np.testing.assert_allclose(scaler.std_, whole.std_, rtol=1e-5)


def test_reduction_of_a_half_precision_map(tmp_path):
    half = _correlated().astype(np.float16)
    np.save(tmp_path / "tokens.npy", half)
    mapped = _features(np.load(tmp_path / "tokens.npy", mmap_mode="r"))
    scaler = TokenScaler(reduce=(2, 3)).fit(mapped, mapped.ids, 7)
    rows = _cell_means(half, 2).reshape(-1, 6)
    _, singular, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(scaler.std_, singular[:3] / np.sqrt(len(rows)), rtol=1e-5)
    np.testing.assert_allclose(np.abs((scaler.reduction.components_ * axes[:3]).sum(1)), 1, atol=1e-6)


def test_reduced_tensors_equal_arrays_and_carry_gradients():
    values = _correlated()
    features = _features(values)
    scaler = TokenScaler(reduce=(2, 3)).fit(features, features.ids)
    as_array = scaler.transform(values)
    as_tensor = scaler.transform(torch.from_numpy(values))
    np.testing.assert_allclose(as_tensor.numpy(), as_array, atol=1e-5)
    back = scaler.inverse_transform(as_tensor)
    np.testing.assert_allclose(back.numpy(), scaler.inverse_transform(as_array), atol=1e-4)
    stacked = scaler.inverse_transform(as_tensor.unflatten(0, (5, 6)))  # draws x images
    np.testing.assert_array_equal(stacked.flatten(0, 1).numpy(), back.numpy())
    leaf = torch.from_numpy(values).double().requires_grad_()
    scaler.transform(leaf)[..., 0].sum().backward()
    slope = scaler.reduction.components_[0] / scaler.std_[0] / 4  # each of four tokens of a cell
    np.testing.assert_allclose(leaf.grad.numpy(), np.broadcast_to(slope, leaf.shape), rtol=1e-5)


def test_state_of_a_reduction_survives_a_file(tmp_path):
    values = _correlated()
    features = _features(values, "0123456789ab")
    for number, reduce in enumerate(((2, 3), (2, None), (None, 3))):
        scaler = TokenScaler(reduce=reduce).fit(features, features.ids)
        np.savez(tmp_path / f"{number}.npz", **scaler.state_dict())
        with np.load(tmp_path / f"{number}.npz", allow_pickle=False) as state:
            again = TokenScaler.from_state_dict(state)
        scaled = scaler.transform(values)
        np.testing.assert_array_equal(again.transform(values), scaled)
        np.testing.assert_array_equal(again.inverse_transform(scaled), scaler.inverse_transform(scaled))
        for name in ("num_tokens", "token_width", "explained_", "fingerprint"):
            assert getattr(again, name) == getattr(scaler, name)
        assert (again.reduction.side, again.reduction.width) == reduce
        with pytest.raises(AxisError, match="expected tokens"):
            again.transform(values[:, :9])


def test_a_state_from_before_reductions_still_loads(cache):
    ids = cache.stimuli.ids[:10]
    scaler = TokenScaler().fit(cache, ids)
    state = scaler.state_dict()
    del state["num_tokens"]
    again = TokenScaler.from_state_dict(state)
    values = cache.get(ids, "tokens")
    np.testing.assert_array_equal(again.transform(values), scaler.transform(values))
    assert (again.num_tokens, again.token_width, again.explained_) == (None, values.shape[2], 1)


@pytest.mark.parametrize(
    ("reduce", "tokens", "message"),
    [
        ((3, None), 16, r"a side that divides the 4 x 4 grid \(1, 2, 4\), got 3"),
        ((8, None), 16, r"a side that divides the 4 x 4 grid \(1, 2, 4\), got 8"),
        ((2, None), 17, "tokens that form a square grid, got 17; side=None"),
        ((2, 7), 16, "a width of at most 6, that of the tokens, got 7"),
    ],
)
def test_reductions_that_do_not_fit_are_refused(reduce, tokens, message):
    features = _features(_correlated(tokens=tokens))
    with pytest.raises(AxisError, match=message):
        TokenScaler(reduce=reduce).fit(features, features.ids)


def test_misuse_of_reductions_is_named():
    for options in ({"what": "pooled"}, {"per": "element"}):
        with pytest.raises(BrainDataError, match=r"reduce=\(side, width\) of tokens that are scaled per feature"):
            TokenScaler(**options, reduce=(2, 3))
    with pytest.raises(BrainDataError, match=r"reduce=\(side, width\)"):
        TokenScaler(reduce=(2,))
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(BrainDataError, match="side of reduced tokens of at least 1, or None, got"):
            TokenScaler(reduce=(wrong, 3))
    with pytest.raises(BrainDataError, match="fit"):
        TokenScaler(reduce=(2, 3)).transform(np.zeros((1, 16, 6)))
    features = _features(_correlated())
    scaler = TokenScaler(reduce=(2, 3)).fit(features, features.ids)
    with pytest.raises(AxisError, match=r"expected tokens \(\.\.\., 16, 6\), got \(2, 4, 6\)"):
        scaler.transform(np.zeros((2, 4, 6)))
    with pytest.raises(AxisError, match=r"expected tokens \(\.\.\., 4, 3\), got \(2, 1, 3\)"):
        scaler.inverse_transform(np.zeros((2, 1, 3)))
    with pytest.raises(AxisError, match=r"a tensor of floats, got torch\.int64"):
        scaler.transform(torch.zeros(2, 16, 6, dtype=torch.int64))
    with pytest.raises(NormalizationError, match=r"without a fingerprint, on which this .* got those of 0123456789ab"):
        scaler.reduction_error(_features(_correlated(), "0123456789ab"), features.ids)
    with pytest.raises(BrainDataError, match="images whose tokens vary, got 0"):
        scaler.reduction_error(features, [])
    with pytest.raises(AxisError, match="square grid, got 15"):
        scaler.fit(_features(_correlated(tokens=15)), features.ids)
    with pytest.raises(BrainDataError, match="fitted"):  # nothing of the fit before is left
        scaler.inverse_transform(np.zeros((2, 4, 3)))
