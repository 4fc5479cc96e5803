"""How much of a map each voxel and region has: dense sums, any block size, permuted voxels, and silent voxels."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.systems.mindaligner.closed_forms import encode_align
from brainmodels.systems.mindaligner.transfer import pattern_blocks, region_flow, transfer_quantity, weight_blocks
from tests.brainmodels.aligned import AlignedWorld, apply, train

SIZES = pytest.mark.parametrize(("n", "k"), [(23, 11), (11, 23)])


@SIZES
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_weights_are_dense_sums_for_every_block_size(n, k, rows):
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(n, 5)), rng.normal(size=(5, k))
    dense = np.abs(A @ B)
    for blocks in (weight_blocks(A, B, rows), weight_blocks(A @ B, rows=rows)):
        found = transfer_quantity(blocks)
        np.testing.assert_allclose(found.new, dense.sum(1), rtol=1e-12)
        np.testing.assert_allclose(found.known, dense.sum(0), rtol=1e-12)


@SIZES
@pytest.mark.parametrize("rows", [4, 100])
def test_patterns_are_covariances_by_deviation(n, k, rows):
    rng = np.random.default_rng(0)
    new = rng.normal(size=(40, n)) + 3
    aligned = new @ rng.normal(size=(n, k)) + 7
    dense = np.zeros((n, k))
    for i in range(n):
        for j in range(k):
            dense[i, j] = abs(np.cov(new[:, i], aligned[:, j], ddof=0)[0, 1]) / aligned[:, j].std()
    found = transfer_quantity(pattern_blocks(new, aligned, rows))
    np.testing.assert_allclose(found.new, dense.sum(1), rtol=1e-10)
    np.testing.assert_allclose(found.known, dense.sum(0), rtol=1e-10)


def test_flow_is_divided_by_that_of_permuted_voxels():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(12, 9)) * rng.uniform(0.1, 3, size=(12, 1))
    new = {"V1": np.arange(12) < 5, "SEM": np.arange(12) >= 9}
    known = {"V1": np.arange(9) < 3, "LO": np.arange(9) >= 4}

    def shares(values):
        total = np.abs(values).sum()
        return np.array([[np.abs(values[a][:, b]).sum() / total for b in known.values()] for a in new.values()])

    permuted = [shares(matrix[rng.permutation(12)][:, rng.permutation(9)]) for _ in range(4_000)]
    found = region_flow(weight_blocks(matrix, rows=5), new, known)
    np.testing.assert_allclose(found, shares(matrix) / np.mean(permuted, 0), rtol=0.03)
    np.testing.assert_allclose(region_flow(weight_blocks(np.ones((12, 9))), new, known), 1)


def test_flow_of_a_map_within_regions():
    halves = {"a": np.arange(8) < 4, "b": np.arange(8) >= 4}
    matrix = np.kron(np.eye(2), np.ones((4, 4)))
    np.testing.assert_allclose(region_flow(weight_blocks(matrix), halves, halves), [[2, 0], [0, 2]])


def test_silent_voxels_have_little_of_a_map():
    """Half of the voxels are noise, 60 % of which is common to all voxels: a filter uses some, a pattern hardly any."""
    world = AlignedWorld(1, silent=0.5, shared_noise=0.6)
    signal = world.snr_new > 0
    mapping, closed = train(world), encode_align(world.new, world.known)
    weights = weight_blocks(mapping.A.detach().numpy(), mapping.B.detach().numpy())
    patterns = pattern_blocks(world.new.responses, apply(mapping, world.new.responses))
    assert roc_auc_score(signal, transfer_quantity(weights).new) >= 0.7
    assert roc_auc_score(signal, transfer_quantity(patterns).new) >= 0.85
    assert roc_auc_score(signal, transfer_quantity(weight_blocks(closed.matrix)).new) >= 0.88


def test_mistakes():
    with pytest.raises(AxisError, match="as many aligned responses as responses, got 3 and 4"):
        list(pattern_blocks(np.ones((4, 2)), np.ones((3, 2))))
    with pytest.raises(BrainDataError, match="aligned voxels that vary, got 2 that are constant"):
        list(pattern_blocks(np.ones((4, 2)), np.ones((4, 2))))
    region = {"V1": np.array([True, False])}
    with pytest.raises(AxisError, match=r"map of 2 to 2 voxels, as the masks have, got a block of \(3, 2\) at row 0"):
        region_flow(weight_blocks(np.ones((3, 2))), region, region)
    with pytest.raises(AxisError, match="map of 2 rows, as the masks have, got 1"):
        region_flow(weight_blocks(np.ones((1, 2))), region, region)
    with pytest.raises(BrainDataError, match="regions with voxels, got none in FFA"):
        region_flow(weight_blocks(np.ones((2, 2))), region, {"FFA": np.zeros(2, bool)})
    with pytest.raises(BrainDataError, match="a map with weights, got only zeros"):
        region_flow(weight_blocks(np.zeros((2, 2))), region, region)
