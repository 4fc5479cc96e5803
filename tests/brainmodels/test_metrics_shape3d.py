"""Cloud distances, colours and N-way choice against plain loops, enumeration and golden values."""

from itertools import combinations

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, IdError
from brainmodels.metrics import metric
from brainmodels.metrics.nway import nway_draws, nway_scores, nway_topk
from brainmodels.metrics.shape3d import (
    chamfer_l1,
    chamfer_l2,
    cloud_scores,
    color_error,
    color_scores,
    fscore,
    majority_color,
    normalize_cloud,
    sphere_floor,
)

PALETTE = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])


def by_name(scores):
    return {score.metric.name: score for score in scores}


def cloud(seed, n=40, columns=6):
    return np.random.default_rng(seed).random((n, columns))


def logits_with(g, classes=72, true=7):
    """One row in which g wrong classes score above the true one."""
    row = np.zeros(classes)
    row[true] = 1
    row[[c for c in range(classes) if c != true][:g]] = 2
    return row[None], np.array([true])


def test_distances_against_loops():
    a, b = cloud(0, 30, 3), cloud(1, 45, 3)
    d = np.array([[np.sqrt(sum((x - y) ** 2)) for y in b] for x in a])
    near_a, near_b = d.min(1), d.min(0)
    assert chamfer_l2(a, b) == pytest.approx((near_a**2).mean() + (near_b**2).mean())
    assert chamfer_l1(a, b) == pytest.approx((near_a.mean() + near_b.mean()) / 2)
    for tau in (0.1, 0.2):
        p, r = (near_b < tau).mean(), (near_a < tau).mean()
        assert fscore(a, b, tau) == pytest.approx(2 * p * r / (p + r))
    assert fscore(a, b + 100, 0.1) == 0
    assert chamfer_l2(a, b) == pytest.approx(chamfer_l2(b, a))


def test_golden_floors():
    floor = sphere_floor(8192, normalized=False)
    assert floor["fscore@0.01"] == pytest.approx(0.18, abs=0.006)
    assert floor["fscore@0.05"] == pytest.approx(0.995, abs=0.003)
    assert floor["chamfer_l2"] == pytest.approx(0.00098, abs=0.00002)
    scored = sphere_floor(8192)  # the mean of the points is a noisy centre
    assert 0.07 < scored["fscore@0.01"] < 0.14 and scored["chamfer_l2"] > floor["chamfer_l2"]


def test_position_and_size_do_not_matter():
    points = cloud(2, columns=6)
    moved = points.copy()
    moved[:, :3] = 7 * points[:, :3] - [1, 2, 3]
    np.testing.assert_allclose(normalize_cloud(moved), normalize_cloud(points))
    assert np.linalg.norm(normalize_cloud(points)[:, :3], axis=1).max() == pytest.approx(1)
    found = by_name(cloud_scores({"a": points, "b": cloud(3)}, {"b": [cloud(3)], "a": [moved]}, resamples=20))
    for name, best in (("chamfer_l2", 0), ("chamfer_l1", 0), ("fscore@0.01", 1), ("fscore@0.05", 1)):
        assert found[name].value == pytest.approx(best, abs=1e-12)
        assert metric(name).better(found[name].value, found[name].ceiling)


def test_rms_scale_hardly_depends_on_outliers_and_on_the_number_of_points():
    rng = np.random.default_rng(8)
    points = rng.normal(size=(2048, 3)) * [1, 2, 3]
    far = points.copy()
    far[0] = [0, 0, 2 * np.abs(points).max()]
    for scale, close in (("rms", True), ("radius", False)):
        size = [np.abs(normalize_cloud(x, scale)[1:200]).mean() for x in (points, far, points[:256])]
        assert (abs(size[1] / size[0] - 1) < 0.02) == close and (abs(size[2] / size[0] - 1) < 0.08) == close
    assert np.square(normalize_cloud(points, "rms")).sum(1).mean() == pytest.approx(1)
    (score,) = [
        x
        for x in cloud_scores({"a": points, "b": far}, {"a": [far], "b": [far]}, scale="rms", resamples=20)
        if x.metric.name == "chamfer_l2[rms]"
    ]
    assert score.ceiling == sphere_floor(2048, 2048, scale="rms")["chamfer_l2"]
    assert "root mean square radius" in score.metric.protocol
    assert metric("fscore@0.01[rms,best_of_5]").direction == "up"
    with pytest.raises(BrainDataError, match="expected scale to be one of radius, rms, got 'max'"):
        normalize_cloud(points, "max")


def test_samples_have_two_columns_and_chance():
    rng = np.random.default_rng(4)
    true = {name: rng.normal(size=(60, 3)) * scale for name, scale in zip("abcd", np.eye(4, 3) * 5 + 1, strict=True)}
    decoded = {name: [x + 0.2 * rng.normal(size=x.shape) for _ in range(3)] for name, x in true.items()}
    found = by_name(cloud_scores(true, decoded, resamples=50, permutations=20))
    for name, pick in (("chamfer_l2", min), ("fscore@0.05", max)):
        score = {"chamfer_l2": chamfer_l2, "fscore@0.05": lambda a, b: fscore(a, b, 0.05)}[name]
        values = [[score(normalize_cloud(true[k]), normalize_cloud(x)) for x in decoded[k]] for k in true]
        assert found[f"{name}[mean_of_3]"].value == pytest.approx(np.mean(values))
        assert found[f"{name}[best_of_3]"].value == pytest.approx(np.mean([pick(x) for x in values]))
    score = found["chamfer_l2[mean_of_3]"]
    assert score.metric.better(score.value, score.chance) and score.value < score.chance_interval.high
    assert "60 and 60 points" in score.note and score.n_of == "objects"
    assert len(found) == 8 and "chamfer_l2" not in found


def test_bad_clouds():
    good = {"a": cloud(0), "b": cloud(1)}
    with pytest.raises(IdError, match="'b'"):
        cloud_scores(good, {"a": [cloud(0)]})
    with pytest.raises(AxisError, match="list of one"):
        cloud_scores(good, good)
    with pytest.raises(AxisError, match=r"\[1, 2\]"):
        cloud_scores(good, {"a": [cloud(0)], "b": [cloud(1), cloud(1)]})
    with pytest.raises(BrainDataError, match="1 that are not"):
        chamfer_l2(np.array([[0, 0, np.nan]]), cloud(0))
    with pytest.raises(BrainDataError, match="one place"):
        normalize_cloud(np.ones((5, 3)))


def test_color_error_is_not_signed():
    true, decoded = cloud(5), cloud(6, 25)
    total = 0.0
    for point in decoded:
        nearest = min(true, key=lambda x: ((x[:3] - point[:3]) ** 2).sum())
        total += np.abs(nearest[3:] - point[3:]).mean()
    assert color_error(true, decoded) == pytest.approx(total / 25)
    grey = np.c_[cloud(7)[:, :3], np.full((40, 3), 0.5)]
    striped = grey.copy()
    striped[:, 3:] += np.where(np.arange(40) % 2, 0.3, -0.3)[:, None]  # the signed mean is zero
    assert color_error(grey, striped) == pytest.approx(0.3)
    with pytest.raises(BrainDataError, match="colours"):
        color_error(grey * [1, 1, 1, 255, 255, 255], grey)


def test_majority_color():
    points = cloud(8)
    points[:, 3:] = PALETTE[1]
    points[:15, 3:] = [0.9, 0.1, 0.2]
    assert majority_color(points, PALETTE) == 1
    points[:25, 3:] = [0.9, 0.1, 0.2]
    assert majority_color(points, PALETTE) == 0
    true, decoded = {}, {}
    for row, name in enumerate("abcd"):
        true[name] = np.c_[cloud(row)[:, :3], np.tile(PALETTE[row % 3], (40, 1))]
        wrong = np.c_[cloud(row)[:, :3], np.tile(PALETTE[2 if name == "a" else row % 3], (40, 1))]
        decoded[name] = [true[name], wrong]
    found = by_name(color_scores(true, decoded, PALETTE, resamples=50))
    assert found["majority_color@3"].value == pytest.approx((0.5 + 3) / 4)
    assert found["majority_color@3"].chance == pytest.approx(1 / 3) and "0.500" in found["majority_color@3"].note
    assert found["color_error"].value == pytest.approx((2 / 3) / 2 / 4)


@pytest.mark.parametrize(
    ("ways", "k", "g", "expected"), [(2, 1, 5, 0.929577), (10, 3, 20, 0.507223), (10, 3, 35, 0.082178)]
)
def test_golden_nway(ways, k, g, expected):
    assert nway_topk(*logits_with(g), ways, k)[0] == pytest.approx(expected, abs=1e-6)


def test_nway_against_enumeration():
    rng = np.random.default_rng(9)
    for _ in range(20):
        scores, true = rng.integers(0, 5, 7).astype(float), int(rng.integers(7))  # with ties
        for ways, k in ((2, 1), (4, 2), (5, 3), (7, 2)):
            others = [scores[c] for c in range(7) if c != true]
            hits = [sum(x >= scores[true] for x in drawn) < k for drawn in combinations(others, ways - 1)]
            assert nway_topk(scores[None], np.array([true]), ways, k)[0] == pytest.approx(np.mean(hits))


def test_nway_draws_agree():
    rng = np.random.default_rng(10)
    logits, truth = rng.normal(size=(40, 20)), rng.integers(0, 20, 40)
    logits[np.arange(40), truth] += 1
    exact = nway_topk(logits, truth, 5, 2)
    drawn = nway_draws(logits, truth, 5, 2, draws=200, seed=1)
    assert abs(drawn.mean() - exact.mean()) < 4 * np.sqrt((exact * (1 - exact) / 200).sum()) / 40
    np.testing.assert_array_equal(drawn, nway_draws(logits, truth, 5, 2, draws=200, seed=1))


def test_nway_scores():
    rng = np.random.default_rng(11)
    labels = np.arange(30) % 12
    real, decoded = 8 * np.eye(12)[labels], 2 * np.eye(12)[labels] + rng.normal(size=(30, 12))
    real[0] = 8 * np.eye(12)[5]  # the classifier is wrong about one real object
    found = by_name(nway_scores(decoded, real, "point", labels, ((2, 1), (10, 3), (50, 1)), resamples=100))
    assert set(found) == {"2way_top1[point]", "10way_top3[point]"}
    two = found["2way_top1[point]"]
    assert (
        two.chance == 0.5 and not two.at_chance and two.value == pytest.approx(nway_topk(decoded, labels, 2, 1).mean())
    )
    assert f"{29 / 30:.3f}" in two.note and found["10way_top3[point]"].chance == 0.3
    own = by_name(nway_scores(real, real, "point", resamples=20))["2way_top1[point]"]
    assert own.value == 1 and "own label" in own.note
    shuffled = by_name(nway_scores(decoded[rng.permutation(30)], real, "point", labels, resamples=100))
    assert abs(shuffled["2way_top1[point]"].value - 0.5) < 0.2
    with pytest.raises(BrainDataError, match="k < ways"):
        nway_topk(real, labels, 2, 2)
