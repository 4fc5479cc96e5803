"""Earth mover's distance, scores of sets of clouds and the nearest-cloud judge against plain loops and enumeration."""

import sys
from itertools import combinations, permutations

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, IdError
from brainmodels.metrics import list_metrics, metric
from brainmodels.metrics.cloud_judge import NearestCloudJudge, identification_scores
from brainmodels.metrics.cloud_sets import (
    chamfer_table,
    draw_points,
    emd,
    emd_floor,
    emd_scores,
    selection_chance,
    set_scores,
)
from brainmodels.metrics.shape3d import chamfer_l2, normalize_cloud, sphere_floor


def by_name(scores):
    return {score.metric.name: score for score in scores}


def cloud(seed, n=40, axes=(1, 1, 1)):
    return np.random.default_rng(seed).normal(size=(n, 3)) * axes


def shapes(seed, count=6, n=60):
    """Clouds of two classes, rods and discs, in turns."""
    return [cloud(100 * seed + i, n, (4, 1, 1) if i % 2 else (3, 3, 0.3)) for i in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_emd_is_the_best_of_all_assignments(seed):
    a, b = cloud(seed, 6), cloud(seed + 50, 6)
    lengths = [[np.sqrt(sum((x - y) ** 2)) for y in b] for x in a]
    best = min(sum(lengths[i][j] for i, j in enumerate(order)) / 6 for order in permutations(range(6)))
    assert emd(a, b) == pytest.approx(best, rel=1e-12)
    assert emd(b, a[::-1]) == pytest.approx(best, rel=1e-12)


def test_emd_of_a_moved_cloud_is_the_way_it_moved():
    """No assignment is shorter than the way between the two means."""
    a = np.c_[cloud(0, 300), np.full((300, 3), 0.5)]  # columns after the third do not count
    b = a[::-1] + np.array([0.3, -0.4, 1.2, 0.1, 0.1, 0.1])
    assert emd(a, b) == pytest.approx(1.3, rel=1e-9)
    assert emd(a, a[::-1]) == 0


def test_bad_clouds_have_no_emd(monkeypatch):
    with pytest.raises(AxisError, match="equally many points, got 40 and 30"):
        emd(cloud(0), cloud(0, 30))
    with pytest.raises(AxisError, match="expected points"):
        emd(cloud(0)[:, :2], cloud(0))
    with pytest.raises(BrainDataError, match="1 that are not"):
        emd(cloud(0), np.where(np.arange(40)[:, None] == 3, np.nan, cloud(0)))
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="earth mover's distance needs scipy"):
        emd(cloud(0), cloud(0))


def test_emd_scores_of_samples():
    true = {name: cloud(i, axes=(3, 2, 1)) for i, name in enumerate("abcd")}
    rng = np.random.default_rng(9)
    decoded = {name: [x + 0.3 * rng.normal(size=x.shape) for _ in range(3)] for name, x in true.items()}
    for scale, word in (("rms", "rms,"), ("radius", "")):
        found = by_name(emd_scores(true, decoded, points=40, resamples=50, scale=scale))
        values = np.array(
            [
                [emd(normalize_cloud(true[k], scale), normalize_cloud(sample, scale)) for sample in decoded[k]]
                for k in true
            ]
        )
        assert set(found) == {f"emd@40[{word}mean_of_3]", f"emd@40[{word}best_of_3]"}
        score = found[f"emd@40[{word}mean_of_3]"]
        assert score.value == pytest.approx(values.mean())
        assert found[f"emd@40[{word}best_of_3]"].value == pytest.approx(values.min(1).mean())
        assert score.ceiling == emd_floor(40, scale=scale) and score.n_of == "objects" and score.n == 4
        assert score.interval.low < score.value < score.interval.high
        assert score.metric.better(score.value, cloud_of_another(true, decoded, scale))


def cloud_of_another(true, decoded, scale):
    """Mean distance where every object got the sample of the next one."""
    names = list(true)
    pairs = zip(names, names[1:] + names[:1], strict=True)
    return np.mean([emd(normalize_cloud(true[a], scale), normalize_cloud(decoded[b][0], scale)) for a, b in pairs])


def test_points_of_the_emd_are_drawn_independently():
    """One cloud twice: two draws from it differ as two samplings do. With all points there is nothing to draw."""
    points = cloud(3, 400)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    clouds, again = {"a": points, "b": points}, {"a": [points], "b": [points]}
    (score,) = emd_scores(clouds, again, points=100, resamples=20)
    assert score.metric.name == "emd@100[rms]"
    assert 0.6 < score.value / score.ceiling < 1.4
    assert emd_scores(clouds, again, points=100, resamples=20)[0].value == score.value
    assert emd_scores(clouds, again, points=100, resamples=20, seed=1)[0].value != score.value
    assert emd_scores(clouds, again, points=400, resamples=20)[0].value == 0
    drawn = draw_points(np.arange(30).reshape(10, 3), 7, np.random.default_rng(0))
    assert len(np.unique(drawn, axis=0)) == 7
    with pytest.raises(AxisError, match="expected clouds of 512 points or more, got 400 of 'a'"):
        emd_scores(clouds, again)
    with pytest.raises(IdError, match="'b'"):
        emd_scores(clouds, {"a": [points]}, points=100)


def test_chamfer_table_against_single_pairs():
    first, second = [cloud(i, 20 + i) for i in range(3)], [cloud(10 + i, 30 + 2 * i) for i in range(4)]
    expected = [[chamfer_l2(a, b) for b in second] for a in first]
    np.testing.assert_allclose(chamfer_table(first, second), expected, rtol=1e-12)


def test_set_scores_are_as_defined():
    real, made = shapes(1), [x + 0.2 * cloud(70 + i, 60) for i, x in enumerate(shapes(2))]
    found = by_name(set_scores(real, made, resamples=50))
    a, b = [normalize_cloud(x, "rms") for x in real], [normalize_cloud(x, "rms") for x in made]
    across = [[chamfer_l2(x, y) for y in b] for x in a]
    assert found["mmd_cd[rms]"].value == pytest.approx(np.mean([min(row) for row in across]))
    matched = {min(range(6), key=lambda i, j=j: across[i][j]) for j in range(6)}
    assert found["cov_cd[rms]"].value == pytest.approx(len(matched) / 6)
    right, everything = 0, a + b
    for i, x in enumerate(everything):
        others = [j for j in range(12) if j != i]
        nearest = min(others, key=lambda j, x=x: chamfer_l2(x, everything[j]))
        right += (i < 6) == (nearest < 6)
    assert found["1nna_cd[rms]"].value == pytest.approx(right / 12)
    assert found["1nna_cd[rms]"].n == 12 and found["cov_cd[rms]"].n == 6
    assert found["mmd_cd[rms]"].ceiling == sphere_floor(60, scale="rms")["chamfer_l2"]
    assert "60 points" in found["mmd_cd[rms]"].note


def test_sets_that_are_equal_apart_or_collapsed():
    real = shapes(3)
    same = by_name(set_scores(real, [5 * x + 1 for x in reversed(real)], resamples=20))
    assert same["mmd_cd[rms]"].value == pytest.approx(0, abs=1e-20)
    assert same["cov_cd[rms]"].value == 1 and same["1nna_cd[rms]"].value == 0
    apart = by_name(set_scores(real, [cloud(i, 60, (1, 1, 1)) for i in range(6)], resamples=20, scale="radius"))
    assert apart["1nna_cd"].value == 1 and apart["mmd_cd"].value > 0.01
    collapsed = by_name(set_scores(real, [real[2]] * 6, resamples=20))
    assert collapsed["cov_cd[rms]"].value == pytest.approx(1 / 6)


def test_other_real_clouds_are_the_ceiling():
    real, made, others = shapes(4, 20), shapes(5, 20), shapes(6, 30)
    found = by_name(set_scores(real, made, others, resamples=20))
    assert all("ceiling: 20 other real clouds" in score.note for score in found.values())
    for name, score in found.items():  # three draws of one distribution
        assert score.ceiling == pytest.approx(score.value, abs=0.3 if name != "mmd_cd[rms]" else 0.02), name
    assert 0.25 < found["1nna_cd[rms]"].value < 0.75 and 0.3 < found["cov_cd[rms]"].value < 1
    without = by_name(set_scores(real, made, resamples=20))
    assert without["1nna_cd[rms]"].ceiling == 0.5 and without["cov_cd[rms]"].ceiling is None
    with pytest.raises(AxisError, match="at least 20 other clouds, as many as real ones, got 19"):
        set_scores(real, made, others[:19])
    with pytest.raises(AxisError, match="as many made clouds as real ones, two or more, got 19 and 20"):
        set_scores(real, made[:19])


def test_metrics_are_registered():
    assert metric("emd@512[rms,best_of_5]").direction == metric("emd@512").direction == "down"
    assert "root mean square radius" in metric("mmd_cd[rms]").protocol and "largest" in metric("mmd_cd").protocol
    assert metric("cov_cd[rms]").direction == "up" and metric("1nna_cd").direction == "none"
    assert metric("10way_top3[chamfer_nn,rms]").chance == pytest.approx(0.3)
    assert {"emd@{points:d}[rms]", "cov_cd", "1nna_cd[rms]"} <= set(list_metrics(level="shape", offline=True))


def test_judge_measures_the_nearest_cloud_of_each_class():
    known, labels = [*shapes(7), cloud(5, 80)], np.array([0, 1, 0, 1, 0, 1, 2])
    made = [cloud(40 + i, 50, (1, 2, 1)) for i in range(5)]
    for scale, name in (("rms", "chamfer_nn,rms"), ("radius", "chamfer_nn")):
        judge = NearestCloudJudge(known, labels, scale=scale)
        assert judge.name == name
        ready = [normalize_cloud(x, scale) for x in known]
        expected = [
            [
                -min(chamfer_l2(normalize_cloud(x, scale), y) for y, of in zip(ready, labels, strict=True) if of == k)
                for k in range(3)
            ]
            for x in made
        ]
        np.testing.assert_allclose(judge.scores(made), expected, rtol=1e-12)
        np.testing.assert_array_equal(judge.nearest(made), np.argmax(expected, 1))


def test_judge_names_known_shapes():
    """Position, size, colours and the number of points do not matter."""
    judge = NearestCloudJudge(shapes(8), [0, 1] * 3, num_points=50)
    new = [np.c_[7 * x - 3, np.full((200, 3), 0.2)] for x in shapes(9, 8, 200)]
    assert judge.nearest(new).tolist() == [0, 1] * 4
    np.testing.assert_array_equal(judge.scores(new), judge.scores(new))
    own = NearestCloudJudge(shapes(8), [0, 1] * 3).scores(shapes(8))
    np.testing.assert_allclose(own[np.arange(6), [0, 1] * 3], 0, atol=1e-20)


def test_bad_judges():
    with pytest.raises(AxisError, match="an integer class for each of 6 clouds"):
        NearestCloudJudge(shapes(0), [0, 1])
    with pytest.raises(AxisError, match="an integer class"):
        NearestCloudJudge(shapes(0), [0.0, 1.0] * 3)
    with pytest.raises(BrainDataError, match="every class from 0 to 2, got none of 1"):
        NearestCloudJudge(shapes(0), [0, 2] * 3)
    with pytest.raises(BrainDataError, match="classes from 0, got -1"):
        NearestCloudJudge(shapes(0), [0, -1] * 3)
    with pytest.raises(BrainDataError, match="one of radius, rms, got 'max'"):
        NearestCloudJudge(shapes(0), [0, 1] * 3, scale="max")
    with pytest.raises(AxisError, match="one or more clouds, got none"):
        NearestCloudJudge(shapes(0), [0, 1] * 3).scores([])


def enumerated(row, true, ways, k):
    """Share of all choices of ways - 1 wrong classes under which the true one ranks within k; ties fail."""
    wrong = [score for label, score in enumerate(row) if label != true]
    drawn = list(combinations(wrong, ways - 1))
    return np.mean([sum(score >= row[true] for score in choice) < k for choice in drawn])


def test_identification_by_enumeration():
    rng = np.random.default_rng(3)
    decoded, labels = rng.normal(size=(9, 2, 7)).round(1), rng.integers(7, size=9)
    real = rng.normal(size=(9, 7))
    real[np.arange(6), labels[:6]] += 9
    protocols = ((2, 1), (4, 2), (7, 1), (10, 3))
    found = identification_scores(decoded, real, labels, "chamfer_nn,rms", protocols, resamples=50, subject="sub01")
    assert [score.metric.name for score in found] == [f"{n}way_top{k}[chamfer_nn,rms]" for n, k in protocols[:3]]
    for score, (ways, k) in zip(found, protocols, strict=False):
        shares = [
            [enumerated(row, label, ways, k) for row in rows] for rows, label in zip(decoded, labels, strict=True)
        ]
        assert score.value == pytest.approx(np.mean(shares))
        true = [enumerated(row, label, ways, k) for row, label in zip(real, labels, strict=True)]
        assert score.ceiling == pytest.approx(np.mean(true)) and score.chance == pytest.approx(k / ways)
        assert score.n == 9 and score.n_of == "objects" and score.subject == "sub01"
        assert "accuracy of the judge on true clouds" in score.note and "mean over 2 samples" in score.note
    named = (decoded.argmax(2) == labels[:, None]) & ((decoded == decoded.max(2, keepdims=True)).sum(2) == 1)
    assert found[2].value == pytest.approx(named.mean())
    single = identification_scores(decoded[:, 0], real, labels, "chamfer_nn,rms", resamples=50)
    assert single[0].value == pytest.approx(
        np.mean([enumerated(r, t, 2, 1) for r, t in zip(decoded[:, 0], labels, strict=True)])
    )


def test_identification_without_information_is_at_chance():
    rng = np.random.default_rng(5)
    labels = np.arange(60) % 12
    scores = identification_scores(rng.normal(size=(60, 12)), rng.normal(size=(60, 12)), labels, "j", resamples=200)
    assert all(score.at_chance for score in scores)
    told = rng.normal(size=(60, 12)) + 3 * np.eye(12)[labels]
    assert not identification_scores(told, told, labels, "j", resamples=200)[0].at_chance


def test_bad_identification():
    rows = np.zeros((4, 3))
    with pytest.raises(AxisError, match=r"got \(4, 1, 3\), \(5, 3\) and \(4,\)"):
        identification_scores(rows, np.zeros((5, 3)), np.zeros(4, int), "j")
    with pytest.raises(BrainDataError, match="finite logits"):
        identification_scores(rows + np.nan, rows, np.zeros(4, int), "j")
    with pytest.raises(AxisError, match="integer classes"):
        identification_scores(rows, rows, np.zeros(4), "j")


def test_chance_of_a_selected_epoch():
    rng = np.random.default_rng(0)
    for n, p, epochs in ((144, 1 / 72, 20), (30, 0.2, 5), (10, 0.5, 50)):
        drawn = rng.binomial(n, p, size=(20_000, epochs)).max(1) / n
        assert selection_chance(n, p, epochs) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / np.sqrt(20_000))
    assert selection_chance(144, 1 / 72, 20) == pytest.approx(0.0346, abs=5e-5)
    assert selection_chance(144, 1 / 72, 1) == pytest.approx(1 / 72)
    assert selection_chance(144, 1 / 6, 200) == pytest.approx(0.257, abs=5e-4)
    for words in ((0, 0.5, 1), (5, 1.5, 1), (5, 0.5, 0)):
        with pytest.raises(BrainDataError, match="n and epochs of 1 or more"):
            selection_chance(*words)
