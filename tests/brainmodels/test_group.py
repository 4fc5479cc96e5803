"""Several subjects together: summaries against scipy, closed forms and planted differences, and the page of a group."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.evaluation.group import group_of
from brainmodels.metrics.subjects import bootstrap_subjects, random_effects, t_summary
from brainmodels.report.group import write_group
from tests.brainmodels.evaluated import evaluation_of
from tests.brainmodels.simulations import made


def test_t_summary_is_that_of_scipy():
    values = np.array([0.41, 0.36, 0.44, 0.30])
    found = t_summary(values)
    expected = stats.ttest_1samp(values, 0)
    assert (found.mean, found.p, found.n) == (pytest.approx(values.mean()), pytest.approx(expected.pvalue), 4)
    np.testing.assert_allclose(found.interval[:2], expected.confidence_interval())
    assert found.sd == pytest.approx(values.std(ddof=1))
    equal = t_summary([0.2, 0.2])
    assert equal.interval[:2] == (0.2, 0.2) and equal.p == 0


def test_random_effects_follow_their_formulas():
    values, noise = np.array([0.1, 0.5, 0.3]), np.array([0.01, 0.04, 0.02])
    w = 1 / noise
    fixed = (w * values).sum() / w.sum()
    q = sum(weight * (value - fixed) ** 2 for weight, value in zip(w, values, strict=True))
    between = max(0, (q - 2) / (w.sum() - (w**2).sum() / w.sum()))
    assert between > 0
    weights = 1 / (noise + between)
    found = random_effects(values, noise)
    assert found.mean == pytest.approx((weights * values).sum() / weights.sum()) and found.sd == pytest.approx(
        between**0.5
    )
    scatter = max(1, (weights * (values - found.mean) ** 2).sum() / 2)
    half = stats.t.ppf(0.975, 2) * (scatter / weights.sum()) ** 0.5
    np.testing.assert_allclose(found.interval[:2], [found.mean - half, found.mean + half])
    same = random_effects([0.3, 0.3, 0.3], noise)  # no spread: the most certain subject weighs most
    assert same.mean == pytest.approx(0.3) and same.sd == 0


def test_random_effects_cover_the_true_mean_and_weigh_noisy_subjects_less():
    rng, inside, errors = np.random.default_rng(0), [], {"t": [], "random": []}
    for _ in range(400):
        noise = np.array([0.01, 0.01, 0.02, 0.02, 0.4, 0.5]) ** 2
        values = 0.3 + rng.normal(0, 0.03, 6) + rng.normal(0, 1, 6) * noise**0.5
        found = random_effects(values, noise)
        inside.append(0.3 in found.interval)
        errors["t"].append(abs(t_summary(values).mean - 0.3))
        errors["random"].append(abs(found.mean - 0.3))
    assert 0.92 < np.mean(inside) <= 1
    assert np.mean(errors["random"]) < 0.4 * np.mean(errors["t"])


def test_the_bootstrap_resamples_subjects_and_their_images():
    rng = np.random.default_rng(0)
    between, images = rng.normal(0, 0.2, 40), rng.normal(0, 0.3, 4000)
    draws = between[:, None] + images  # all subjects saw the same images
    crossed, nested = bootstrap_subjects(draws, True), bootstrap_subjects(draws, False)

    def width(interval):
        return (interval.high - interval.low) / (2 * stats.norm.ppf(0.975))

    assert width(crossed) == pytest.approx((0.3**2 + between.var() / 40) ** 0.5, rel=0.08)
    assert width(nested) == pytest.approx(((0.3**2 + between.var()) / 40) ** 0.5, rel=0.08)


def test_wrong_numbers_are_named():
    with pytest.raises(BrainDataError, match="two or more subjects, got"):
        t_summary([0.3])
    with pytest.raises(AxisError, match=r"a variance for each of 2 subjects, got shape \(3,\)"):
        random_effects([0.1, 0.2], [1, 1, 1])
    with pytest.raises(BrainDataError, match="expected variances above 0, got"):
        random_effects([0.1, 0.2], [1, 0])
    with pytest.raises(AxisError, match=r"expected draws \(subjects, resamples\)"):
        bootstrap_subjects(np.zeros(3), True)


@pytest.fixture(scope="module")
def evaluations():
    dataset = made("lab")
    settings = {"resamples": 100, "curve": (), "check_alignment": "off"}
    return [evaluation_of(dataset, ["grid", "pixels"], subject=(name,), **settings) for name in dataset.subjects]


def test_rows_of_a_group_are_those_of_its_subjects(evaluations):
    group = group_of(evaluations)
    assert group.subjects == ["sim01", "sim02"] and group.measure == "nr2" and group.crossed
    grid, pixels = group.rows
    assert (grid.features, grid.against, pixels.against) == ("grid", "", "ridge, grid")
    for row, key in ((grid, "variance"), (pixels, "variance"), (pixels, "variance_change"), (pixels, "top_change")):
        number = group.rows.index(row)
        verdicts = [item.verdict[number] for item in evaluations]
        found = [getattr(verdict, key).value for verdict in verdicts]
        np.testing.assert_allclose(list(row.scores[key].values.values()), found, atol=1e-6)
        assert row.scores[key].over_subjects.mean == pytest.approx(np.mean(found), abs=1e-6)
        assert np.mean(found) in row.scores[key].bootstrap
    change = pixels.scores["variance_change"]
    assert change.bootstrap.high < 0 and change.random.mean < 0  # grid features were planted


def test_the_page_of_a_group_links_its_subjects_and_tells_its_numbers(evaluations, tmp_path):
    path = write_group(evaluations, tmp_path / "study")
    text, record = path.read_text(), json.loads((tmp_path / "study/group.json").read_text())
    assert path == tmp_path / "study/report.html"
    assert 'href="sim01/report.html"' in text and 'href="sim02/report.html"' in text
    change = record["rows"][1]["scores"]["variance_change"]
    assert f"{change['over_subjects']['mean']:+.3f}" in text and f"{change['bootstrap'][0]:.3f}" in text
    assert "Ridge on pixels differs from ridge, grid by" in text and "2 subjects are few" in text
    assert list(change["values"]) == ["sim01", "sim02"]


def _renamed(evaluation, name):
    """The evaluation of a subject under another name."""
    pairs = copy.copy(evaluation.study.test)
    pairs.subject = dataclasses.replace(pairs.subject, id=name)
    return dataclasses.replace(evaluation, study=dataclasses.replace(evaluation.study, test=pairs))


def _bare(evaluation):
    """The evaluation of a subject that has no noise ceiling."""
    return dataclasses.replace(evaluation, study=dataclasses.replace(evaluation.study, ceiling=None))


def test_nr2_does_not_apply_to_subjects_without_a_ceiling(evaluations, tmp_path):
    """Its summaries are those of the other subjects alone, and the page says so."""
    bare = _bare(_renamed(evaluations[1], "sim03"))
    mixed, whole = group_of([*evaluations, bare]), group_of(evaluations)
    assert mixed.measure == "nr2" and mixed.without == ["sim03"] and whole.without == []
    for row, expected in zip(mixed.rows, whole.rows, strict=True):
        for name in ("variance", "variance_change"):
            if name in expected.scores:
                score, alone = row.scores[name], expected.scores[name]
                assert score.values == {**alone.values, "sim03": None}
                assert (score.over_subjects, score.random, score.bootstrap) == (
                    alone.over_subjects,
                    alone.random,
                    alone.bootstrap,
                )
        assert row.scores["top"].over_subjects.n == 3 and row.scores["top"].values["sim03"] is not None
    text = write_group([*evaluations, bare], tmp_path).read_text()
    assert "It does not apply to sim03, for want of a noise ceiling." in text and "<td>–</td>" in text
    record = json.loads((tmp_path / "group.json").read_text())
    assert record["without_ceiling"] == ["sim03"] and record["rows"][0]["scores"]["variance"]["values"]["sim03"] is None


def test_one_subject_with_a_ceiling_leaves_the_scores_of_decoding(evaluations, tmp_path):
    group = group_of([evaluations[0], _bare(evaluations[1])])
    assert {name for row in group.rows for name in row.scores} == {"top", "top_change"}
    assert "reaches" in write_group([evaluations[0], _bare(evaluations[1])], tmp_path).read_text()
    neither = group_of([_bare(item) for item in evaluations])
    assert neither.measure == "voxel_r" and neither.without == [] and "variance" in neither.rows[0].scores


def test_what_is_no_group_is_refused(evaluations):
    with pytest.raises(BrainDataError, match="two or more different subjects, got sim01, sim01"):
        group_of([evaluations[0], evaluations[0]])
    empty = dataclasses.replace(evaluations[1], verdict=())
    with pytest.raises(BrainDataError, match="that all of sim01, sim02 have, got none"):
        group_of([evaluations[0], empty])
