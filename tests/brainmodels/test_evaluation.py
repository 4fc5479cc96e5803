"""Evaluation against what was planted: who must win, where the ceiling is, and what noise alone may give."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from brainmodels.baselines import LinearDecoder
from brainmodels.commands.evaluate import run_evaluation
from brainmodels.data import ArrayImages, BrainDataset, Responses, SensorSpace, StimulusSet
from brainmodels.data.align import check_alignment
from brainmodels.errors import AlignmentError, BrainDataError
from brainmodels.evaluation import EvaluationSettings
from brainmodels.evaluation.decoding import shuffled_decodings
from brainmodels.evaluation.encoding import SHUFFLED, Study, _mean_of, judge, standardized
from brainmodels.features import Extractor, FeatureCache, FeatureOutput, Pixels
from brainmodels.features.sets import FeatureSet, feature_rows
from brainmodels.metrics import Score
from brainmodels.simulated import simulate
from tests.brainmodels.evaluated import evaluation_of, made_subject, simulated_evaluation
from tests.models import tiny_veca


@pytest.fixture(scope="module")
def evaluation():
    return simulated_evaluation()


@pytest.fixture(scope="module")
def by_model(evaluation):
    return {(item.model, item.features): item for item in evaluation.encoded}


def test_grid_features_beat_pixels_and_both_controls_in_v1(by_model):
    grid = by_model["ridge", "grid"].rois["V1"]
    others = [("ridge", "pixels"), ("nearest neighbour", "grid"), (SHUFFLED, "grid")]
    for other in others:
        assert grid[1] > by_model[other].rois["V1"][2], other  # intervals apart
    assert grid[0] > 0.8  # V1 was planted in these features


def test_the_planted_signal_is_at_the_ceiling_and_above_every_model(by_model):
    oracle = by_model["planted signal", "truth"]
    assert 0.9 <= oracle.score("nr2").value <= 1.06
    for name, item in by_model.items():
        assert oracle.score("nr2").value >= item.score("nr2").value, name
        assert oracle.score("mse").value <= item.score("mse").value, name
        for region, (value, *_) in item.rois.items():
            assert value <= oracle.rois[region][2], (name, region)


def test_the_mean_map_predicts_no_voxel(by_model):
    scores = by_model["mean map", "none"]
    assert scores.score("voxel_r").value == 0 and abs(scores.score("sample_r").value) < 0.1


def test_decoding_finds_images_and_a_shuffled_decoder_does_not(evaluation):
    grid, pixels, shuffled = evaluation.decoded
    top = grid.score("image_given_brain_top1")
    assert top.value > 10 * top.chance == 10 / 60
    assert grid.score("two_way").value > 0.9 and grid.score("two_way").value > pixels.score("two_way").value
    assert shuffled.scores[0].decoder == SHUFFLED
    for name in ("image_given_brain_top1", "brain_given_image_top1", "two_way"):
        right, wrong = grid.score(name), shuffled.score(name)
        assert wrong.interval.low <= right.chance <= wrong.interval.high < right.interval.low, name
        assert "mean of 6 shuffles" in wrong.note and wrong.interval.low <= wrong.value <= wrong.interval.high


def test_shuffled_decoders_are_separate_fits_to_the_orders_of_the_study(evaluation, monkeypatch):
    """However many are fitted at once, each is the decoder of its own order."""
    study, X = evaluation.study, evaluation.study.train.array()[:, :7] + 3.0
    monkeypatch.setattr("brainmodels.evaluation.decoding._COLUMNS", 30)  # four at once, then two
    found = list(shuffled_decodings(study, X))
    orders = list(study.wrong_pairs())
    assert len(found) == len(orders) == 6 and (np.sort(orders, axis=1) == np.arange(len(X))).all()
    for order, guess in zip(orders, found, strict=True):
        alone = LinearDecoder().fit(study.measured_train[:, study.voxels], X[order])
        np.testing.assert_allclose(guess, alone.predict(study.measured[:, study.voxels]), rtol=1e-4, atol=1e-4)


def test_ranks_are_those_of_the_scores(evaluation):
    decoded = evaluation.decoded[0]
    for k in (1, 5, 10):
        assert np.mean(decoded.ranks <= k) == pytest.approx(decoded.score(f"image_given_brain_top{k}@").value)
    nearest = decoded.similarities.argmax(1) == np.arange(60)
    np.testing.assert_array_equal(nearest, decoded.ranks == 1)


def test_regions_and_the_curve_are_the_share_of_explainable_variance_by_its_definition(evaluation):
    study = evaluation.study
    for item in evaluation.encoded:
        for region, (value, low, high) in item.rois.items():
            r, ceiling = item.r[study.rois[region]], study.ceiling[study.rois[region]]
            if item.model != SHUFFLED:  # the mean of several fits, of which r is a mean too
                assert value == pytest.approx(sum(x * abs(x) for x in r) / sum(ceiling), abs=1e-9)
            assert low <= value <= high
    last = evaluation.record["learning_curve"]["points"]["232"]
    score = evaluation.encoded[0].score("nr2")  # the same fit and the same resamples
    assert last == pytest.approx([score.value, score.interval.low, score.interval.high], abs=1e-6)
    assert evaluation.record["learning_curve"]["points"]["60"][0] < score.value


def test_shuffled_fits_are_averaged_and_span_their_interval(evaluation):
    runs = []
    for value in (0.2, -0.1, 0.05):
        score = dataclasses.replace(evaluation.encoded[0].scores[0], value=value)
        runs.append(
            dataclasses.replace(evaluation.encoded[0], scores=[score], r=np.full(3, value), rois={"V1": (value, -1, 1)})
        )
    mean = _mean_of(runs)
    assert mean.scores[0].value == pytest.approx(0.05) and mean.r == pytest.approx([0.05] * 3)
    assert mean.scores[0].interval[:2] == (-0.1, 0.2) and mean.rois["V1"] == (pytest.approx(0.05), -0.1, 0.2)
    shuffled = next(item for item in evaluation.encoded if item.model == SHUFFLED)
    assert "mean of 6 shuffles" in shuffled.scores[0].note
    assert abs(shuffled.score("nr2").value) < 0.1  # one scatters by 0.06, voxels together


def test_the_record_is_json_and_its_scores_come_back(evaluation):
    record = json.loads(json.dumps(evaluation.record, allow_nan=False))
    for name, items in (("encoding", evaluation.encoded), ("decoding", evaluation.decoded)):
        assert len(record[name]) == len(items)
        for stored, item in zip(record[name], items, strict=True):
            assert [Score.from_json(score) for score in stored["scores"]] == list(item.scores)
    assert record["fingerprints"]["grid"] == FeatureSet.parse("grid").extractor.fingerprint()
    assert record["data"]["normalizer"] == "session_z_train"


def test_every_score_says_under_which_conditions(evaluation):
    for item in [*evaluation.encoded, *evaluation.decoded]:
        for score in item.scores:
            given = (score.subject, score.split, score.part, score.normalizer, score.repeats, score.seed)
            assert given == ("sim01", "shared", "test", "session_z_train", "avg_voxels", 0)
            assert score.decoder and score.mask and score.split_hash
            assert (score.features is None) == (item.features in ("none", "truth"))


def test_a_threshold_of_the_ceiling_holds_for_every_number(evaluation):
    old = evaluation.study
    study = Study.of(old.train, old.test, old.ncsnr, 0.5, 50, 0)
    np.testing.assert_array_equal(study.voxels, old.ceiling >= 0.5)
    assert 0 < study.voxels.sum() < old.voxels.sum()
    judged = judge(study, study.measured + 1, "itself", "none")
    np.testing.assert_array_equal(np.isfinite(judged.r), study.voxels)
    assert f"NC >= 0.5: {study.voxels.sum()} of 210" in judged.score("voxel_r").mask
    assert judged.score("voxel_r").value == pytest.approx(1, abs=1e-6)
    with pytest.raises(BrainDataError, match="none of 210"):
        Study.of(old.train, old.test, old.ncsnr, 0.99, 50, 0)


def test_without_signal_alignment_refuses_and_all_scores_are_at_chance(evaluation):
    dataset = simulate("tiny", n_subjects=1, snr_scale=0)
    subject = dataset.subject("sim01")  # whose published ncsnr would say so at once
    dataset = dataset.with_subject(dataclasses.replace(subject, space=dataclasses.replace(subject.space, ncsnr=None)))
    with pytest.raises(AlignmentError, match="at chance"):
        check_alignment(dataset, "sim01", "shared")
    noise = evaluation_of(dataset, ["grid"], check_alignment="off", resamples=200, curve=())
    assert "not tested" in noise.record["alignment"]
    names = ("image_given_brain_top1", "brain_given_image_top1", "two_way")
    judged = [score for score in noise.encoded[0].scores if score.chance_interval]
    judged += [noise.decoded[0].score(name) for name in names]
    assert len(judged) >= 9 and all(score.at_chance for score in judged)
    true = [score for score in evaluation.encoded[0].scores if score.chance_interval]
    assert not any(score.at_chance for score in true)


class Tokens(Extractor):
    """Random tokens on a square of `side` cells, from the mean colour of the picture, and a pooled vector."""

    def __init__(self, side):
        super().__init__("tokens", 8)
        self.side = side

    def settings(self):
        return {"side": self.side}

    def _encode(self, images):
        mean = images.mean((2, 3))
        wave = torch.arange(1, self.side**2 + 1).sin()[None, :, None]
        return FeatureOutput(wave * mean[:, None] + wave**2, mean)


def cache_of(extractor, folder, num=5):
    images = np.random.default_rng(0).integers(0, 256, (num, 16, 16, 3), np.uint8)
    cache = FeatureCache(folder, extractor, StimulusSet([f"x:{i}" for i in range(num)], ArrayImages(images)))
    cache.extract(progress=False)
    return cache


@pytest.mark.parametrize("side", [16, 6])
def test_tokens_are_averaged_over_a_grid_of_four_by_four(side, tmp_path):
    cache = cache_of(Tokens(side), tmp_path)
    ids = ["x:3", "x:0", "x:3"]
    rows, tokens = feature_rows(cache, ids), cache.get(ids, "tokens").astype(np.float64)
    assert rows.shape == (3, 3 + 16 * 3)
    np.testing.assert_array_equal(rows[:, :3], cache.get(ids, "pooled"))
    starts = [side * i // 4 for i in range(4)]
    ends = [-(-side * (i + 1) // 4) for i in range(4)]  # cells share tokens where 4 does not divide
    for row in range(3):
        for down in range(4):
            for across in range(4):
                places = [
                    side * i + j for i in range(starts[down], ends[down]) for j in range(starts[across], ends[across])
                ]
                cell = 3 + 3 * (4 * down + across)
                expected = sum(tokens[row, place] for place in places) / len(places)
                np.testing.assert_allclose(rows[row, cell : cell + 3], expected, rtol=1e-5)


def test_few_tokens_are_kept_and_those_that_pooled_holds_are_not_repeated(tmp_path):
    cache = cache_of(Tokens(3), tmp_path)
    expected = np.concatenate((cache.get(cache.ids), cache.get(cache.ids, "tokens").reshape(5, -1)), 1)
    np.testing.assert_array_equal(feature_rows(cache, cache.ids), expected)
    cache = cache_of(Pixels(8), tmp_path)
    np.testing.assert_array_equal(feature_rows(cache, cache.ids), cache.get(cache.ids))


def test_features_are_in_units_of_their_deviation_and_silent_ones_are_left_out():
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(5, 2, (200, 4)).astype(np.float32), rng.normal(5, 2, (3, 4)).astype(np.float32)
    X[:, 1], X[:, 2] = 7, 0
    X[0, 2] = 1e-3  # silent for all images but one
    found, found_test = standardized(X, X_test)
    for column, source in enumerate((0, 3)):
        mean = sum(map(float, X[:, source])) / 200
        deviation = (sum((float(x) - mean) ** 2 for x in X[:, source]) / 200) ** 0.5
        np.testing.assert_allclose(found_test[:, column], (X_test[:, source] - mean) / deviation, rtol=1e-4, atol=1e-5)
    assert found.shape == (200, 2)
    with pytest.raises(BrainDataError, match="2 that are constant"):
        standardized(np.ones((5, 2), np.float32), X_test)


def test_words_name_features(tmp_path):
    tiny_veca(img_size=32).save_pretrained(tmp_path / "model")
    item = FeatureSet.parse(f"veca@4={tmp_path / 'model'}")
    assert item.name == "veca@4" and item.extractor.num_cores == 4 and item.extractor.note == ""
    drawn = FeatureSet.parse("veca_nano_patch16=random")
    assert drawn.name == "veca_nano_patch16, random weights" and "not comparable" in drawn.extractor.note
    with pytest.raises(BrainDataError, match="number of cores"):
        FeatureSet.parse("veca@many")
    with pytest.raises(BrainDataError, match="near: pixels"):
        FeatureSet.parse("pixel")


def test_random_weights_are_said_with_every_score_of_them():
    evaluation = evaluation_of(made_subject(), ["random_conv", "grid"], check_alignment="off", resamples=20, curve=())
    for item in [*evaluation.encoded, *evaluation.decoded]:
        said = {"not comparable" in score.note for score in item.scores}
        assert said == {item.features == "random_conv"}, item.features


def test_responses_without_repeats_have_no_ceiling():
    settings = {"check_alignment": "off", "normalizer": "train_z", "resamples": 20, "curve": (20,)}
    evaluation = evaluation_of(made_subject(repeats=1), ["grid"], **settings)
    first = evaluation.encoded[0]
    assert evaluation.study.ceiling is None and first.score("nr2") is None
    assert "no noise ceiling" in first.score("voxel_r").note
    value, low, high = first.rois["V1"]
    assert value == pytest.approx(first.r[evaluation.study.rois["V1"]].mean(), abs=1e-9) and low <= value <= high


@pytest.mark.parametrize(
    "applied, known, used", [("none", True, "session_z_train"), ("none", False, "train_z"), ("session_z", True, "none")]
)
def test_the_normalizer_suits_what_is_stored(applied, known, used):
    dataset = made_subject(normalizer=applied)
    subject = dataset.subject("subj01")
    trials = subject.responses.trials
    if not known:
        trials = dataclasses.replace(trials, session=np.full(len(trials), -1))
    responses = Responses(subject.responses.values, trials)
    dataset = dataset.with_subject(dataclasses.replace(subject, responses=responses))
    evaluation = evaluation_of(dataset, ["grid"], check_alignment="off", resamples=20, curve=())
    transform = evaluation.study.test.transform
    assert (transform.name if transform else "none") == used
    assert evaluation.record["data"]["normalizer"] == (applied if used == "none" else used)


def test_mistakes_are_named():
    dataset = made_subject()
    with pytest.raises(BrainDataError, match="names of their own"):
        evaluation_of(dataset, ["grid", "grid"])
    with pytest.raises(BrainDataError, match="expected a split of this data set"):
        evaluation_of(dataset, ["grid"], split="shared")
    with pytest.raises(BrainDataError, match=r"10 train images or more .* got 7"):
        evaluation_of(made_subject(num_images=12), ["grid"])
    with pytest.raises(BrainDataError, match="veca brain prepare"):
        run_evaluation(EvaluationSettings(data="nowhere", features=("grid",), progress=False))
    person = dataset.subject("subj01")
    values = np.zeros((len(person.responses), 2, 5), np.float32)
    waves = Responses(values, person.responses.trials)
    space = SensorSpace(["Oz", "Pz"], 100.0, np.arange(5) / 100)
    eeg = BrainDataset([dataclasses.replace(person, responses=waves, space=space)], dataset.stimuli, dataset.splits)
    with pytest.raises(BrainDataError, match="evaluated by evaluate_epochs"):
        evaluation_of(eeg, ["grid"])
