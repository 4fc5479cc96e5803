"""Corrections for many voxels on 50 untidy simulated subjects, whose voxels without signal are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from brainmodels.data import fit_normalizer
from brainmodels.metrics.encoding import voxel_r
from brainmodels.metrics.protocols import resampled_scores
from brainmodels.metrics.significance import voxel_test
from brainmodels.metrics.statistics import bootstrap_weights, resampled_difference
from brainmodels.simulated import FEATURE_GROUPS, planted_features, simulate

SIMULATIONS, DRAWS, LEVEL, ALLOWED = 50, 400, 0.05, 0.07


def ridge(X, Y, X_test, penalty=60.0):
    """Predictions by ridge with a fixed penalty: nothing is chosen on test images."""
    X, X_test = ((x - X.mean(0)) / (X.std(0) + 1e-9) for x in (X, X_test))
    mean = Y.mean(0)
    return X_test @ X.T @ np.linalg.solve(X @ X.T + penalty * np.eye(len(X)), Y - mean) + mean


def difference(case, first, second, seed):
    """Difference in the share of the explainable variance between two predictions."""
    use = case.ceiling >= 0.1
    total = case.ceiling[use].sum()
    weights, values, drawn = bootstrap_weights(len(case.measured), DRAWS, seed), [], []
    for guess in (first, second):
        y, p = case.measured[:, use], guess[:, use]
        for out, r in ((values, voxel_r(y, p)), (drawn, resampled_scores(y, p, weights)["voxel_r"])):
            out.append(np.nansum(r * np.abs(r), -1) / total)
    return resampled_difference(*drawn, float(values[0] - values[1]), len(case.measured))


def simulated(seed, **options):
    """Responses of the voxels that are not dead, and the planted features of their images."""
    dataset = simulate("lab", seed=seed, n_subjects=1, **options)
    split, subject, truth = dataset.split("shared"), dataset.subject("sim01"), dataset.truth["sim01"]
    scale = fit_normalizer("session_z_train", subject, split)
    train, test = (dataset.pairs("sim01", split, part, "repeats", scale) for part in ("train", "test"))
    alive = ~truth.dead
    X, X_test = (planted_features(dataset, pairs.image_ids).astype(np.float64) for pairs in (train, test))
    return SimpleNamespace(
        X=X,
        X_test=X_test,
        Y=train.array()[:, alive],
        measured=test.array()[:, alive],
        reliable=truth.reliable[alive],
        ceiling=truth.ceiling()[alive],
    )


@pytest.fixture(scope="module")
def found():
    """What 50 studies find: shares of false and of right discoveries, and differences of two feature sets."""
    rows = []
    for seed in range(SIMULATIONS):
        case = simulated(seed)
        full = ridge(case.X, case.Y, case.X_test)
        test = voxel_test(case.measured, full, DRAWS, seed)
        found, strict = test.fdr(LEVEL), test.max_statistic(LEVEL)
        blind = np.ones(case.X.shape[1], bool)
        blind[FEATURE_GROUPS["edges"]] = False
        without = ridge(case.X[:, blind], case.Y, case.X_test[:, blind])
        rng = np.random.default_rng(seed)
        noisy = [[x + rng.normal(size=x.shape) for x in (case.X, case.X_test)] for _ in range(2)]
        equal = [ridge(X, case.Y, X_test) for X, X_test in noisy]
        rows.append(
            SimpleNamespace(
                false=(found & ~case.reliable).sum() / max(1, found.sum()),
                right=found[case.reliable].mean(),
                any_false=(strict & ~case.reliable).any(),
                right_strict=strict[case.reliable].mean(),
                planted=difference(case, full, without, seed),
                null=difference(case, *equal, seed),
            )
        )
    return rows


def test_false_discovery_rate(found):
    assert np.mean([row.false for row in found]) <= ALLOWED
    assert np.mean([row.right for row in found]) > 0.6


def test_family_wise_error(found):
    assert np.mean([row.any_false for row in found]) <= ALLOWED
    assert np.mean([row.right_strict for row in found]) > 0.2


def test_a_planted_difference_is_found_with_its_sign_and_none_where_there_is_none(found):
    """Voxels of V1 and V4 see edges: features without them are worse."""
    assert all(row.planted.p <= 0.05 and row.planted.interval.low > 0 for row in found)
    assert np.mean([row.null.p <= 0.05 for row in found]) <= ALLOWED
    assert np.mean([0 not in row.null.interval for row in found]) <= ALLOWED


def test_noise_alone_gives_uniform_p():
    case = simulated(3, snr_scale=0)
    test = voxel_test(case.measured, ridge(case.X, case.Y, case.X_test), DRAWS)
    assert (test.p <= 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert not test.fdr().any() and not test.max_statistic().any()
