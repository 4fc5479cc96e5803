"""Scores under the protocols of papers, as `veca brain evaluate --protocol` adds them."""

import json
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

from brainmodels.data import fit_normalizer
from brainmodels.errors import BrainDataError, NormalizationError
from brainmodels.evaluation import protocol_rows
from brainmodels.evaluation.decoding import Decoded
from brainmodels.evaluation.encoding import Study, ridge_prediction
from brainmodels.evaluation.protocol_rows import PROTOCOLS, check_protocols, protocol_scores
from brainmodels.metrics.published import scores_as_in_neuroflow
from brainmodels.metrics.retrieval import full_gallery, galleries_of_300
from brainmodels.report import write_report
from brainmodels.simulated import simulate
from tests.brainmodels.evaluated import evaluation_of
from tests.brainmodels.made import made_dataset

NAMES = ("algonauts", "synbrain", "neuroflow")


@cache
def subject():
    return simulate("tiny", n_subjects=1)


@pytest.fixture(scope="module")
def evaluation():
    settings = {"protocol": NAMES, "resamples": 30, "shuffles": 2, "curve": (), "check_alignment": "off"}
    return evaluation_of(subject(), ["grid"], **settings)


@pytest.fixture(scope="module")
def protocols(evaluation):
    return {item.name: item for item in evaluation.protocols}


def test_every_number_is_in_the_record_and_on_the_page(evaluation, tmp_path):
    record = json.loads(json.dumps(evaluation.record))
    assert [item["protocol"] for item in record["protocols"]] == list(NAMES)
    assert record["settings"]["protocol"] == list(NAMES)
    page = write_report(evaluation, tmp_path).read_text()
    assert "Protocols of papers" in page
    for item in record["protocols"]:
        assert item["differs"] and all(sentence in page for sentence in item["differs"] if "'" not in sentence)
        for row in item["rows"]:
            for score in row["scores"]:
                assert f"{score['value']:.3f}" in page and score["n"] and score["chance_interval"]


def test_the_challenge_scores_all_vertices_by_their_ceiling(evaluation, protocols):
    study, (row,) = evaluation.study, protocols["algonauts"].rows
    X, X_test = rows_of(evaluation)
    guess = ridge_prediction(study, X, X_test)
    ratios = []
    for voxel in range(guess.shape[1]):  # brute force
        r = np.corrcoef(study.measured[:, voxel], guess[:, voxel])[0, 1]
        ratios.append(min(max(r, 0) ** 2 / study.ceiling[voxel], 1))
    (score,) = row.scores
    assert score.value == pytest.approx(np.median(ratios), rel=5e-3)  # features of the cache are fp16
    assert score.value in score.interval and score.chance < 0.05 < score.value
    assert "100 permutations" in score.chance_interval.method
    assert any("voxels of a volume" in sentence for sentence in protocols["algonauts"].differs)


def rows_of(evaluation):
    from brainmodels.data.grid import grid_features

    stimuli, study = evaluation.dataset.stimuli, evaluation.study
    return [grid_features(stimuli.images(x.image_ids, 96)).astype(np.float32) for x in (study.train, study.test)]


def test_synbrain_compares_with_every_trial_and_shows_the_mean_map(evaluation, protocols):
    rows = {row.model: row for row in protocols["synbrain"].rows}
    trials = evaluation.dataset.pairs("sim01", evaluation.study.test.split, "test", "none")
    assert {score.n for row in rows.values() for score in row.scores} == {len(trials)}
    assert all(score.normalizer == "div2000" and score.repeats == "single" for score in rows["ridge"].scores)
    mean = rows["mean map"].score("sample_r")
    assert mean.value > 0.5 and mean.value == pytest.approx(mean.chance)  # the scale alone
    assert rows["ridge"].score("sample_r").value > mean.value
    unit = fit_normalizer("div2000", evaluation.dataset.subject("sim01"), evaluation.study.test.split)
    test = evaluation.dataset.pairs("sim01", evaluation.study.test.split, "test", "none", unit).array()
    train = evaluation.dataset.pairs("sim01", evaluation.study.test.split, "train", "repeats", unit).array()
    assert rows["mean map"].score("mse").value == pytest.approx(((test - train.mean(0)) ** 2).mean(), rel=1e-4)


def test_neuroflow_maps_z_scores_back(evaluation, protocols):
    rows = {row.model: row for row in protocols["neuroflow"].rows}
    study, dataset = evaluation.study, evaluation.dataset
    unit = fit_normalizer("div2000", dataset.subject("sim01"), study.test.split)
    test, train = (dataset.pairs("sim01", study.test.split, part, "repeats", unit) for part in ("test", "train"))
    guess = ridge_prediction(study, *rows_of(evaluation))
    direct = scores_as_in_neuroflow(test, guess, study.test.image_ids, train, resamples=30)
    for one, other in zip(direct, rows["ridge"].scores, strict=True):
        assert other.value == pytest.approx(one.value, rel=1e-3)
    assert rows["mean map"].score("mse").value > rows["ridge"].score("mse").value
    assert any("session_z_train" in sentence for sentence in protocols["neuroflow"].differs)


@pytest.fixture(scope="module")
def large():
    """A study with 320 test images, of which nothing is fitted."""
    dataset = made_dataset(num_images=960, repeats=1, sessions=1, box=(2, 2, 2))
    pairs = [dataset.pairs("subj01", dataset.split("made"), part, "repeats") for part in ("train", "test")]
    return dataset, Study.of(*pairs, None, 0.1, 20, 0, 2)


def test_mindeye_draws_galleries_of_300(large, monkeypatch):
    monkeypatch.setattr(protocol_rows, "galleries_of_300", partial(galleries_of_300, permutations=20))
    dataset, study = large
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(study.test),) * 2)
    decoded = []
    for name, table in (
        ("right", noise + 100 * np.eye(len(noise))),
        ("half", noise + 3 * np.eye(len(noise))),
        ("none", noise),
    ):
        decoded.append(Decoded(name, full_gallery(table, resamples=5, decoder="ridge"), table))
    (found,) = protocol_scores(("mindeye", "mindeye"), study, dataset, {}, decoded)
    rows = {row.features: row.scores for row in found.rows}
    for score in [score for scores in rows.values() for score in scores]:
        assert score.metric.name.endswith("_top1@300") and score.n == 300 and score.chance == pytest.approx(1 / 300)
        assert "300x30 from 320 images" in score.note and "20 permutations" in score.chance_interval.method
    assert [score.value for score in rows["right"]] == [1, 1]
    assert all(score.value < 0.03 for score in rows["none"])
    whole = decoded[1].score("image_given_brain_top1").value
    assert rows["half"][0].value == pytest.approx(whole, abs=0.05)
    assert any("bigG" in sentence for sentence in found.differs)


def test_what_data_cannot_follow_is_refused_before_anything_is_fitted(large, evaluation):
    with pytest.raises(BrainDataError, match="protocol mindeye, got 60 in split 'shared'"):
        evaluation_of(subject(), ["grid"], protocol=("mindeye",), check_alignment="off")
    _, study = large
    with pytest.raises(BrainDataError, match="noise ceiling for protocol algonauts"):
        check_protocols(["algonauts"], study)
    with pytest.raises(BrainDataError, match="near: mindeye"):
        check_protocols(["mindey"], study)
    with pytest.raises(NormalizationError, match=r"z-scored responses for protocol neuroflow.*'none'"):
        check_protocols(["neuroflow"], study_as_measured())
    dataset = subject()
    scaled = dataset.with_subject(replace(dataset.subject("sim01"), normalizer="session_z"))
    with pytest.raises(NormalizationError, match="protocol synbrain compares betas as measured"):
        evaluation_of(scaled, ["grid"], protocol=("synbrain",), check_alignment="off")
    assert set(NAMES) | {"mindeye"} == set(PROTOCOLS)


def study_as_measured():
    dataset = subject()
    pairs = [dataset.pairs("sim01", dataset.split("shared"), part, "repeats") for part in ("train", "test")]
    return Study.of(*pairs, None, 0.1, 20, 0, 2)
