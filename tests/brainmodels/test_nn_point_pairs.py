"""Noise by optimal transport: still noise, and exactly the best assignment."""

from itertools import permutations

import pytest
import torch

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn.point_pairs import paired_noise, renewed


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_assignment_is_the_best_of_all():
    clouds, noise = drawn(2, 6, 3, seed=1), drawn(2, 6, 3, seed=4)
    for cloud, own, before in zip(clouds, paired_noise(clouds, 4, 6), noise, strict=True):
        costs = [(cloud - before[list(order)]).square().sum() for order in permutations(range(6))]
        torch.testing.assert_close((cloud - own).square().sum(), min(costs))


def test_each_block_of_a_cloud_keeps_its_noise():
    clouds, noise = drawn(3, 50, 3, seed=1), drawn(3, 50, 3, seed=4)
    found = paired_noise(clouds, 4, 20)
    for start in range(0, 50, 20):
        block = slice(start, start + 20)
        for own, before in zip(found[:, block], noise[:, block], strict=True):
            assert sorted(own[:, 0].tolist()) == sorted(before[:, 0].tolist())
    assert torch.equal(found, paired_noise(clouds, 4, 20))
    assert (clouds - found).square().mean() < 0.5 * (clouds - noise).square().mean()


def test_renewed_noise_keeps_the_variance():
    noise = drawn(20_000, seed=0)
    mixed = renewed(noise, 0.6, torch.Generator().manual_seed(1))
    assert mixed.var().item() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(torch.stack((noise, mixed)))[0, 1].item() == pytest.approx(0.8, abs=0.02)
    assert torch.equal(renewed(noise, 0.0), noise)


def test_mistakes():
    with pytest.raises(AxisError, match=r"clouds \(n, N, 3\), got \(5, 3\)"):
        paired_noise(torch.zeros(5, 3), 0)
    with pytest.raises(BrainDataError, match="at least 1 point, got 0"):
        paired_noise(torch.zeros(1, 5, 3), 0, 0)
