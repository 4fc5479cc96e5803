"""The verdict table and the tests of voxels that an evaluation records."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from brainmodels.evaluation.encoding import WHOLE, judge
from brainmodels.evaluation.significance import ceiling_of, exchangeable_blocks, significance_of
from brainmodels.evaluation.verdict import seed_spread, verdicts
from brainmodels.metrics.significance import voxel_test
from brainmodels.metrics.statistics import bootstrap_weights
from brainmodels.report import write_report
from tests.brainmodels.evaluated import evaluation_of, made_subject
from tests.brainmodels.simulations import made


@pytest.fixture(scope="module")
def evaluation():
    return evaluation_of(made("lab"), ["grid", "pixels"], resamples=200, curve=(), check_alignment="off")


def test_voxels_are_tested_as_their_predictions_say(evaluation):
    study, tests = evaluation.study, evaluation.significance.tests
    assert len(tests) == len(evaluation.encoded)
    for item, test in zip(evaluation.encoded, tests, strict=True):
        assert (test is None) == ("shuffled" in item.model)
    regions = {name: mask[study.voxels] for name, mask in study.rois.items()}
    predicted = evaluation.encoded[0].predicted
    again = voxel_test(study.measured[:, study.voxels], predicted, 200, study.seed, None, regions)
    np.testing.assert_allclose(tests[0].p[study.voxels], again.p)
    assert np.isnan(tests[0].p[~study.voxels]).all() and tests[0].regions == again.regions
    np.testing.assert_allclose(tests[0].r, evaluation.encoded[0].r, atol=1e-6)


def test_false_discoveries_are_few_and_the_planted_signal_is_found(evaluation):
    truth = made("lab").truth["sim01"]
    rows = {(x.model, x.features): t for x, t in zip(evaluation.encoded, evaluation.significance.tests, strict=True)}
    found = rows["planted signal", "truth"].fdr()
    assert (found & ~truth.reliable).sum() <= 0.1 * found.sum()
    assert found[truth.reliable & evaluation.study.voxels].mean() > 0.7
    assert not rows["mean map", "none"].fdr().any()


def test_the_record_counts_the_significant_voxels(evaluation):
    told, study = evaluation.record["significance"], evaluation.study
    json.dumps(evaluation.record, allow_nan=False)
    assert told["permutations"] == 200 and "freely" in told["blocks"]
    first, test = told["rows"][0], evaluation.significance.tests[0]
    assert (first["model"], first["features"]) == ("ridge", "grid")
    assert first["fdr"] == test.fdr().sum() > first["max"] == test.max_statistic().sum() > 0
    for name, region in first["regions"].items():
        assert region["fdr"] == test.fdr()[study.rois[name]].sum() and region["voxels"] == study.rois[name].sum()
    mean, low, high = told["ceiling"][WHOLE]
    assert mean == pytest.approx(study.ceiling[study.voxels].mean()) and low < mean < high


def test_the_difference_of_two_feature_sets_is_paired(evaluation):
    grid, pixels = evaluation.verdict
    assert (grid.against, pixels.against) == ("", "ridge, grid") and grid.variance_change is None
    score, other = (item.score("nr2") for item in evaluation.encoded[:2])
    change = pixels.variance_change
    assert change.value == pytest.approx(other.value - score.value, abs=1e-6)
    assert change.interval.high < 0 and change.p < 0.02
    hits = [(item.ranks == 1).astype(float) for item in evaluation.decoded[:2]]
    assert pixels.top_change.value == pytest.approx(np.mean(hits[1]) - np.mean(hits[0]))
    assert pixels.worse > pixels.better and pixels.voxels.mean < 0
    weights = bootstrap_weights(len(hits[0]), 200, evaluation.study.seed)
    np.testing.assert_allclose(pixels.estimates["top"].draws, weights @ hits[1] / weights.sum(1))
    record = evaluation.record["verdict"][1]
    assert record["variance_change"]["p"] == change.p and record["voxels"]["worse"] == pixels.worse
    assert set(record["regions"]) == set(evaluation.study.rois)


def test_two_rows_with_equal_predictions_do_not_differ(evaluation):
    study, first = evaluation.study, evaluation.encoded[0]
    wide = np.zeros_like(study.measured)
    wide[:, study.voxels] = first.predicted
    again = judge(study, 3 * wide, "ridge", "tripled")  # correlations do not see the scale
    row = verdicts(study, [first, again], [])[1]
    assert row.variance_change.value == pytest.approx(0, abs=1e-6) and row.variance_change.p > 0.9
    assert row.better == row.worse == 0 and row.top_change is None and row.top is None


def stand_in(name, seed, value, **recipe):
    """A model that only predicts responses, as `seed_spread` sees it."""
    stages = {name: {"seed": seed, "steps": 5, **recipe} for name in ("stage1", "stage2")}
    made_by = SimpleNamespace(to_json=lambda: {"reduce": [4, 16], **stages})
    model = SimpleNamespace(recipe=made_by, meta_={"system": "synbrain"})
    opened = SimpleNamespace(
        name=name, model=model, tokens_of=SimpleNamespace(name="grid"), encodes=True, decodes=False
    )
    score = SimpleNamespace(value=value, metric=SimpleNamespace(name="nr2"))
    return SimpleNamespace(opened=opened, encoded=[SimpleNamespace(headline=score)])


def test_models_that_differ_in_the_seed_alone_are_one_spread():
    models = [stand_in("a", 0, 0.3), stand_in("b", 1, 0.5), stand_in("c", 2, 0.4), stand_in("long", 1, 0.9, steps=9)]
    (found,) = seed_spread(models)
    assert found["models"] == ["a", "b", "c"] and found["seeds"] == [[0, 0], [1, 1], [2, 2]]
    spread = found["scores"]["nr2"]
    assert spread["values"] == [0.3, 0.5, 0.4]
    assert spread["mean"] == pytest.approx(0.4) and spread["sd"] == pytest.approx(0.1)
    assert seed_spread([stand_in("a", 0, 0.3), stand_in("b", 0, 0.3)]) == []  # the same training twice


def study_of_trials(session, run, shown):
    trials = SimpleNamespace(session=np.array(session), run=np.array(run))
    subject = SimpleNamespace(responses=SimpleNamespace(trials=trials))
    return SimpleNamespace(test=SimpleNamespace(subject=subject, trials=[np.array(rows) for rows in shown]))


def test_blocks_are_runs_or_sessions_where_each_image_has_one():
    session, run = np.repeat([1, 2], 12), np.tile(np.repeat([1, 2], 6), 2)
    single = [[row] for row in range(24)]
    blocks, words = exchangeable_blocks(study_of_trials(session, run, single))
    np.testing.assert_array_equal(blocks, np.repeat([0, 1, 2, 3], 6))
    assert words == "test images within 4 runs"
    twice = [[row, row + 6] for row in [*range(6), *range(12, 18)]]  # in both runs of a session
    blocks, words = exchangeable_blocks(study_of_trials(session, run, twice))
    np.testing.assert_array_equal(blocks, np.repeat([0, 1], 6))
    assert words == "test images within 2 sessions"
    blocks, words = exchangeable_blocks(study_of_trials(session, np.full(24, -1), single))
    assert words == "test images within 2 sessions"
    for shown in ([[row, row + 12] for row in range(12)], [[0], [6], [12], [18]]):  # apart, and too few for an order
        blocks, words = exchangeable_blocks(study_of_trials(session, run, shown))
        assert blocks is None and "freely" in words


def test_too_few_images_and_published_ceilings_say_so():
    evaluation = evaluation_of(made_subject(), ["grid"], check_alignment="off", resamples=20, curve=())
    study = evaluation.study
    assert ceiling_of(evaluation.dataset, study) is not None or study.ceiling is None
    few = dataclasses.replace(study, test=_Short(study.test))
    found = significance_of(few, evaluation.encoded)
    assert found.blocks == "nothing: 3 test images are too few" and set(found.tests) == {None}
    assert found.to_json(evaluation.encoded, study)["rows"] == []


class _Short:
    """Test images of which only three are left."""

    def __init__(self, test):
        self.subject, self.trials = test.subject, test.trials[:3]

    def __len__(self):
        return 3


def test_the_page_opens_with_the_verdict_and_the_file_holds_p_values(evaluation, tmp_path):
    text = write_report(evaluation, tmp_path).read_text()
    change = evaluation.verdict[1].variance_change
    first = text.index(f"{change.value:+.3f}")
    assert first < text.index("<h2>Data</h2>") and f"p&nbsp;{change.p:.3f}" in text
    assert "We permuted all test images freely" in text and "Their mean and its 95" in text
    with np.load(tmp_path / "voxels.npz") as file:
        np.testing.assert_array_equal(file["p_0"], evaluation.significance.tests[0].p)
        np.testing.assert_array_equal(file["q_1"], evaluation.significance.tests[1].q)
        names = list(file["names"])
        assert f"p_{names.index('ridge, pairs shuffled, grid')}" not in file
        inside = evaluation.study.voxels
        assert (file["ceiling_low"][inside] <= file["ceiling"][inside]).mean() > 0.95
        assert (file["ceiling_high"] >= file["ceiling"])[inside].mean() > 0.95
