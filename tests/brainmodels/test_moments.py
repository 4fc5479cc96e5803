import numpy as np
import pytest

from brainmodels.data.moments import Moments


def blocks(count=400, width=5, offset=1e6):
    rows = offset + np.random.default_rng(0).normal(size=(count, width)) @ np.diag(np.arange(1.0, width + 1))
    return rows, np.split(rows, [1, 8, 200])


def test_mean_and_variance_beside_a_large_mean():
    rows, parts = blocks()
    found = Moments.of(parts)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.variance, rows.var(0), rtol=1e-9)
    raw = np.square(rows).sum(0) / len(rows) - np.square(rows.mean(0))
    assert np.abs(raw / rows.var(0) - 1).max() > 1e-6  # what raw squares would give


def test_covariance():
    rows, parts = blocks(offset=3.0)
    found = Moments.of(parts, lambda x: x.T @ x)
    np.testing.assert_allclose(found.variance, np.cov(rows.T, ddof=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16])
def test_sums_are_in_fp64(dtype):
    rows = np.full((3000, 1), 100, dtype)
    rows[::2] = 101
    found = Moments.of([rows[:1000], rows[1000:]])
    assert found.mean == pytest.approx(100.5, rel=1e-12) and found.variance == pytest.approx(0.25, rel=1e-12)
