"""Kernel distance of two samples against double loops, its mean without a difference, and its growth with one."""

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.metrics import kid, metric
from brainmodels.metrics.kid import kid_score, mmd2


def kernel(a, b):
    return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3


def by_hand(x, y):
    """The definition in loops over single images."""
    own = [[kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j] for s in (x, y)]
    cross = [kernel(a, b) for a in x for b in y]
    return sum(own[0]) / len(own[0]) + sum(own[1]) / len(own[1]) - 2 * sum(cross) / len(cross)


def test_mmd_in_plain_loops():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 5)), rng.normal(size=(9, 5)) + 0.5
    assert mmd2(x, y) == pytest.approx(by_hand(x.tolist(), y.tolist()), rel=1e-12)
    assert mmd2(y, x) == pytest.approx(mmd2(x, y), rel=1e-12)


def test_mmd_of_two_numbers():
    """x = 0, 1 and y = 0, 2: k(x) = 1, k(y) = 1, cross 1, 1, 1, 27, so 1 + 1 - 2 * 7.5."""
    assert mmd2(np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])) == -13


def test_fp32_features_are_summed_in_fp64():
    """Features of about 30, cubed to 7e8: sums in fp32 would be off by far more than the difference."""
    rng = np.random.default_rng(1)
    x, y = ((rng.normal(size=(40, 8)) + 30).astype(np.float32) for _ in range(2))
    assert mmd2(x, y) == pytest.approx(by_hand(x.tolist(), y.tolist()), rel=1e-6)


def test_one_distribution_gives_zero_on_average():
    """400 pairs of samples: the mean within four standard errors of 0; one that keeps the diagonal is far above."""
    rng = np.random.default_rng(2)
    samples = [rng.normal(size=(2, 12, 6)) for _ in range(400)]
    values = np.array([mmd2(*pair) for pair in samples])
    error = values.std(ddof=1) / 20
    assert abs(values.mean()) < 4 * error and (values < 0).mean() > 0.3
    biased = np.array(
        [kid._kernel(x, x).mean() + kid._kernel(y, y).mean() - 2 * kid._kernel(x, y).mean() for x, y in samples]
    )
    assert biased.mean() > 20 * error


def test_a_planted_shift_has_its_distance():
    """One feature, N(0, 1) against N(s, 1): in (1 + x y)^3 the moments give 3 s^2 + 3 (E y^2 - 1)^2 + (E y^3)^2."""
    shift = 0.7
    expected = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    rng = np.random.default_rng(3)
    values = [mmd2(rng.normal(size=(100, 1)), rng.normal(size=(100, 1)) + shift) for _ in range(150)]
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(150))
    assert 4 * np.std(values) / np.sqrt(150) < 0.25 * expected


def test_exact_copies_are_below_zero_by_what_is_documented():
    x = np.random.default_rng(4).normal(size=(50, 4))
    table = kid._kernel(x, x)
    diagonal = np.trace(table) / 50
    others = (table.sum() - np.trace(table)) / (50 * 49)
    expected = 2 * (others - diagonal) / 50
    assert mmd2(x, x) == pytest.approx(expected, rel=1e-9)
    score = kid_score(x, x, "raw", subset_size=20, subsets=1500)
    error = 4 * np.sqrt(np.var(_subsets(x, x, 20, 300), ddof=1) / 1500)
    assert score.value == pytest.approx(expected, abs=error) and expected < -error


def _subsets(x, y, size, count, seed=0):
    rng = np.random.default_rng(seed)
    return [mmd2(x[rng.choice(len(x), size, False)], y[rng.choice(len(y), size, False)]) for _ in range(count)]


def test_score_carries_its_conditions():
    rng = np.random.default_rng(5)
    x, y, z = rng.normal(size=(80, 4)), rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) + 1
    score = kid_score(x, y, "grid", 25, 40, seed=6, features="0123456789ab", decoder="ridge", note="simulated")
    assert (score.metric.name, score.n, score.seed, score.features) == ("kid[grid]", 60, 6, "0123456789ab")
    assert score.decoder == "ridge" and score.chance is None and score.metric.direction == "down"
    assert score.interval.method == "40 subsets of 25 images" and score.value in score.interval and 0 in score.interval
    assert score.note == "mean over 40 subsets of 25 images; simulated"
    assert score.n_of == "decoded against 80 real images"
    assert score.value == kid_score(x, y, "grid", 25, 40, seed=6).value
    assert score.value != kid_score(x, y, "grid", 25, 40, seed=7).value
    far = kid_score(x, z, "grid", 25, 40, seed=6)
    assert metric("kid[grid]").better(score.value, far.value) and 0 not in far.interval


def test_subsets_have_no_image_twice():
    """Two values far apart, each once: k of a repeated image would be huge."""
    x = np.array([[0.0], [0.0], [100.0]])
    y = np.zeros((3, 1))
    score = kid_score(x, y, "raw", subset_size=2, subsets=30)
    assert score.value == 0  # k(0, 0) = k(0, 100) = 1, while k(100, 100) is 1e12


def test_bad_input():
    x = np.zeros((10, 3))
    with pytest.raises(BrainDataError, match=r"subsets of 2 to 9 images, .* got subset_size=10"):
        kid_score(x, x, "raw", subset_size=10)
    with pytest.raises(BrainDataError, match="two or more subsets"):
        kid_score(x, x, "raw", subset_size=5, subsets=1)
    with pytest.raises(AxisError, match="3 numbers for a real image and 2 for a decoded one"):
        mmd2(x, x[:, :2])
    with pytest.raises(AxisError, match=r"decoded features \(images, d\)"):
        mmd2(x, x[0])
    with pytest.raises(BrainDataError, match="finite real features of 10 images, got 1"):
        mmd2(np.where(np.arange(10)[:, None] == 3, np.nan, x), x)
