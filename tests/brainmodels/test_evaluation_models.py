"""Trained models evaluated: every number against what the models say, computed another way; who is refused, and why."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from brainmodels.baselines import LinearDecoder
from brainmodels.cli import main
from brainmodels.drawing import KeyedNearest
from brainmodels.drawing.scenes import SHIPPED
from brainmodels.errors import BrainDataError, LayoutError, LeakageError, NormalizationError
from brainmodels.evaluation import EvaluationSettings, drawers
from brainmodels.evaluation.encoding import SHUFFLED
from brainmodels.evaluation.models import EXTERNAL, SAME_TOKENS, evaluate_model, other_images
from brainmodels.evaluation.opened import OpenedModel, open_models
from brainmodels.evaluation.pictures import ANOTHER, MEAN, REDUCED, TRUE, draw_pictures
from brainmodels.evaluation.run import evaluate
from brainmodels.features import FeatureCache
from brainmodels.features.sets import FeatureSet
from brainmodels.metrics import Score
from tests.brainmodels.evaluated import evaluation_of_models, opened_models, trained_models


@pytest.fixture(scope="module")
def evaluation():
    return evaluation_of_models()


@pytest.fixture(scope="module")
def neuroflow(evaluation):
    return evaluation.models[0]


@pytest.fixture(scope="module")
def cache(evaluation, tmp_path_factory):
    """Features of all images of the study."""
    item = evaluation.models[0].opened.features
    cache = FeatureCache(tmp_path_factory.mktemp("features"), item.extractor, evaluation.dataset.stimuli)
    cache.extract(progress=False)
    return cache


def tokens_of(model, features):
    """Reduced and scaled by definition: means over 2 x 2 places, principal components, z-scores."""
    scaler, grid = model.scaler_, features.astype(np.float64).reshape(-1, 4, 2, 4, 2, features.shape[-1])
    cells = grid.mean((2, 4)).reshape(len(features), 16, -1)
    reduced = (cells - scaler.reduction.center_) @ scaler.reduction.components_.T
    return (reduced - scaler.mean_) / scaler.std_


def cosines(first, second):
    first, second = (x.reshape(len(x), -1).astype(np.float64) for x in (first, second))
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in second] for a in first])


def top1(table):
    return np.mean([row.argmax() == i for i, row in enumerate(table)])


def two_way(real, guess):
    """Share of wrong images that correlate less with what was decoded than the right one."""
    real, guess = (x.reshape(len(x), -1) for x in (real, guess))
    r = np.array([[np.corrcoef(a, b)[0, 1] for b in guess] for a in real])
    return np.mean([(r[:, j] < r[j, j]).sum() / (len(r) - 1) for j in range(len(r))])


def rows_of(item):
    return {row.scores[0].decoder: row for row in item.decoded}


def test_encoding_rows_are_the_predictions_of_the_models(evaluation, cache):
    study, ids = evaluation.study, evaluation.study.test.image_ids
    found = {(item.model, item.features): item for item in evaluation.encoded}
    assert sum(model == SAME_TOKENS for model, _ in found) == 1  # both models see the same tokens
    for item in evaluation.models:
        model = item.opened.model
        predicted = model.predict(cache, image_ids=ids)
        r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(study.measured.T, predicted.T, strict=True)])
        row = found[item.opened.name, "random_conv tokens"]
        np.testing.assert_allclose(row.r[study.voxels], r[study.voxels], atol=1e-5)
        share = (r * abs(r))[study.voxels].sum() / study.ceiling[study.voxels].sum()
        assert row.score("nr2").value == pytest.approx(share, abs=1e-5)
        assert row.score("nr2").features == model.fingerprint_ and row.score("nr2").decoder == item.opened.name
    assert found[SAME_TOKENS, "random_conv tokens"].score("nr2").value > found["mean map", "none"].score("nr2").value


def test_ridge_sees_the_tokens_of_the_model(evaluation, neuroflow, cache):
    study, model = evaluation.study, neuroflow.opened.model
    for pairs, tokens in ((study.train, neuroflow.space.train), (study.test, neuroflow.space.test)):
        np.testing.assert_allclose(tokens, tokens_of(model, cache.get(pairs.image_ids, "tokens")), atol=1e-3)
    X, X_test = (x.reshape(len(x), -1).astype(np.float64) for x in (neuroflow.space.train, neuroflow.space.test))
    mean, std = X.mean(0), X.std(0)
    X, X_test, Y = (X - mean) / std, (X_test - mean) / std, study.measured_train.astype(np.float64)
    voxel = int(np.flatnonzero(study.voxels)[0])
    errors = []  # some penalty gives the prediction of this voxel, by the normal equations
    for alpha in 10.0 ** np.arange(-2, 8):
        weights = np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ (Y[:, voxel] - Y[:, voxel].mean()))
        errors.append(np.abs(X_test @ weights + Y[:, voxel].mean() - neuroflow.space.predicted[:, voxel]).max())
    assert min(errors) < 1e-3 < sorted(errors)[1]


def test_decoding_rows_are_what_the_model_decodes(evaluation, neuroflow):
    study, model = evaluation.study, neuroflow.opened.model
    true, rows = neuroflow.space.test, rows_of(neuroflow)
    guesses = {
        "NeuroFlow": tokens_of(model, model.decode(study.test)),
        "NeuroFlow raw_posterior": model.latents(study.test),
        "NeuroFlow syn_posterior": model.latents(neuroflow.answers.predicted),
        SAME_TOKENS: LinearDecoder()
        .fit(study.measured_train[:, study.voxels], neuroflow.space.train.reshape(len(study.train), -1))
        .predict(study.measured[:, study.voxels])
        .reshape(true.shape),
    }
    for name, guess in guesses.items():
        table, row = cosines(guess, true), rows[name]
        assert row.score("image_given_brain_top1").value == pytest.approx(top1(table), abs=0.02), name
        assert row.score("brain_given_image_top1").value == pytest.approx(top1(table.T), abs=0.02), name
        assert row.score("two_way").value == pytest.approx(two_way(true, guess), abs=1e-3), name
        assert row.score("token_cosine").value == pytest.approx(np.diagonal(table).mean(), abs=1e-3), name
    raw = rows_of(evaluation.models[1])["SynBrain raw_posterior"]
    table = cosines(evaluation.models[1].opened.model.latents(study.test), true)
    assert raw.score("token_cosine").value == pytest.approx(np.diagonal(table).mean(), abs=1e-3)


def test_controls_are_at_chance_and_models_are_not(evaluation, neuroflow):
    rows = rows_of(neuroflow)
    shuffled, mean = rows[f"NeuroFlow, {ANOTHER}"], rows["mean of train tokens"]
    for name in ("two_way", "token_cosine"):
        assert shuffled.score(name).at_chance, name
        assert not rows["NeuroFlow"].score(name).at_chance, name
        assert not rows[SAME_TOKENS].score(name).at_chance, name
    band, told = rows[SHUFFLED], "mean of 3 shuffles, the interval from least to most"
    for name in ("two_way", "image_given_brain_top1"):
        assert band.score(name).interval.low <= band.score(name).value <= band.score(name).interval.high
        assert band.score(name).note == f"{rows[SAME_TOKENS].score(name).note}; {told}"  # cautions are kept
        assert rows["NeuroFlow"].score(name).value > band.score(name).interval.high, name
    assert mean.score("two_way").value == pytest.approx(0.5)
    assert mean.score("image_given_brain_top1").value <= 1 / len(evaluation.study.test)
    order = other_images(evaluation.study)
    assert sorted(order) == list(range(60)) and (order != np.arange(60)).all()


def test_semantics_name_their_decoder_and_never_share_a_column(evaluation, neuroflow):
    study, model, true = evaluation.study, neuroflow.opened.model, neuroflow.space.test
    found = {(row.responses, row.decoder): row for row in neuroflow.semantics}
    assert set(found) == {
        ("measured", "self"),
        ("NeuroFlow", "self"),
        ("measured", EXTERNAL),
        ("NeuroFlow", EXTERNAL),
        (SAME_TOKENS, EXTERNAL),
    }
    own = tokens_of(model, model.decode(neuroflow.answers.predicted))
    decoder = LinearDecoder().fit(
        study.measured_train[:, study.voxels], neuroflow.space.train.reshape(len(study.train), -1)
    )
    judged = decoder.predict(neuroflow.answers.predicted[:, study.voxels])
    for key, guess in ((("NeuroFlow", "self"), own), (("NeuroFlow", EXTERNAL), judged)):
        first = found[key].scores[0]
        assert first.metric.name == f"semantic_after_decoding[{key[1]}]" and key[1] in first.decoder
        assert first.value == pytest.approx(two_way(true, guess), abs=1e-3)
        top = found[key].score("image_given_brain_top1").value
        assert top == pytest.approx(top1(cosines(guess, true.reshape(60, -1))), abs=0.02)
    assert {row.decoder for row in evaluation.models[1].semantics} == {EXTERNAL}  # SynBrain decodes nothing


def test_round_trips_err_as_the_networks_do(neuroflow):
    model, tokens = neuroflow.opened.model, torch.from_numpy(neuroflow.space.test)
    found = {(trip.start, trip.through): trip for trip in neuroflow.trips}
    there = model.flow_.encode(tokens, "heun", 6)
    back = model.flow_.decode(there, "heun", 6)
    error = float((back - tokens).norm() / tokens.norm())
    assert found["images", "latent"].relative_error == pytest.approx(error, rel=1e-2)
    with torch.no_grad():
        latents = model.vae_.encode(model.vae_.decode(there, "sim01"), "sim01").posterior.mean
    error = float((model.flow_.decode(latents, "heun", 6) - tokens).norm() / tokens.norm())
    assert found["images", "response"].relative_error == pytest.approx(error, rel=1e-2)
    assert found["images", "latent"].relative_error < 0.05 < found["images", "response"].relative_error
    assert {trip.function_evaluations for trip in neuroflow.trips} == {24}  # two a step, six steps, there and back
    assert not evaluation_of_models().models[1].trips


def test_the_bottleneck_is_of_ridge_and_narrows(evaluation, neuroflow):
    study, runs = evaluation.study, neuroflow.bottleneck
    assert runs.settings == (1, 2, 5, 10, 20, 50, 100, "full")
    values = dict(zip(runs.settings, runs.values["two_way"], strict=True))
    assert values["full"] == pytest.approx(rows_of(neuroflow)[SAME_TOKENS].score("two_way").value, abs=1e-6)
    assert values[1] < values[10] < values["full"]
    train, test = (x[:, study.voxels].astype(np.float64) for x in (study.measured_train, study.measured))
    axis = np.linalg.svd(train - train.mean(0), full_matrices=False)[2][0]
    squeezed = [((x - train.mean(0)) @ axis)[:, None] * axis + train.mean(0) for x in (train, test)]
    flat = neuroflow.space.train.reshape(len(train), -1)
    guess = LinearDecoder().fit(squeezed[0].astype(np.float32), flat).predict(squeezed[1].astype(np.float32))
    assert values[1] == pytest.approx(two_way(neuroflow.space.test, guess), abs=0.01)
    assert neuroflow.to_json()["bottleneck"]["decoder"] == SAME_TOKENS


def test_pictures_lie_between_the_ceiling_and_those_of_another_image(evaluation):
    (made,) = evaluation.pictures  # SynBrain decodes nothing: its responses are read by the external decoder
    drawn = {item.source: item for item in made.drawn}
    assert {f"{EXTERNAL}, responses of SynBrain", "NeuroFlow, its own responses", REDUCED} < set(drawn)
    own = drawn["NeuroFlow"].score("two_way[grid]")
    assert drawn[TRUE].score("two_way[grid]").value > own.value > own.interval.low > 0.55
    for source in (ANOTHER, MEAN):
        assert drawn[source].score("two_way[grid]").value < own.interval.low, source
    wrong = drawn[ANOTHER].score("two_way[grid]")
    assert wrong.value in own.chance_interval or wrong.at_chance
    assert len(np.unique(drawn[MEAN].images.reshape(60, -1), axis=0)) == 1  # one picture for all
    assert drawn[SHUFFLED].score("two_way[grid]").interval.high < own.interval.low
    real, mine = (x.reshape(60, -1).astype(np.float64) for x in (made.shown, drawn["NeuroFlow"].images))
    expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(real, mine, strict=True)])
    assert drawn["NeuroFlow"].score("pixcorr").value == pytest.approx(expected, abs=2e-3)
    absent = [score.metric.name for score in made.drawn[0].scores if not score.available]
    assert set(absent) == {"alexnet2", "alexnet5", "inception", "clip", "effnet_b1", "swav"}
    cosine = np.diagonal(evaluation.models[0].decoded[0].similarities)
    others = [row for row in range(60) if row not in made.chosen["random"]]
    assert made.chosen["best"].tolist() == [max(others, key=lambda row: cosine[row])] and len(others) == 52
    assert made.chosen["worst"].tolist() == [min(others, key=lambda row: cosine[row])]


def test_without_the_shipped_features_nearest_pictures_are_train_images(evaluation):
    (made,), stimuli = evaluation.pictures, evaluation.dataset.stimuli
    known = {stimuli.image(name, 64).tobytes() for name in evaluation.study.train.image_ids}
    assert made.bank == "230 train images" and made.calibration == (230, "folds")  # there are 10 validation images
    for item in made.drawn:
        assert item.drawer.startswith("nearest_of_230 ") and {x.tobytes() for x in item.images} <= known


def test_ridge_is_calibrated_on_images_that_each_fold_left_out(evaluation):
    study, space = evaluation.study, evaluation.models[0].space
    responses = study.measured_train[:, study.voxels]
    guess = drawers._in_folds(responses, space.train, 3)
    fold = np.random.default_rng(3).permutation(230) % 5
    fit = LinearDecoder().fit(responses[fold != 2], space.train[fold != 2].reshape((fold != 2).sum(), -1))
    expected = fit.predict(responses[fold == 2]).reshape(-1, *space.train.shape[1:])
    np.testing.assert_allclose(guess[fold == 2], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["nearest", "generator"])
def test_what_the_command_makes_of_a_folder_of_pictures_draws_in_an_evaluation(evaluation, cache, kind, tmp_path):
    study, item = evaluation.study, evaluation.models[0]
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / ("deep" if number % 2 else ".") / f"{number}.png")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"no picture")
    words = ["--kind", kind, "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--no-progress"]
    main(["drawer", *words, "--features", "random_conv", "--recipe", "tiny", "--steps", "2"])
    folder = tmp_path / "out" / kind
    made = draw_pictures(item, study, evaluation.dataset, cache, folder)
    assert made.bank == f"12 pictures of {folder}" and made.shown.shape == (60, 16, 16, 3)
    found = [x for x in made.drawn if x.drawer.startswith("nearest_of_12 ")]
    known = {x.tobytes() for x in np.load(folder / "pictures.npy")}
    assert len(known) == 12 and {x.tobytes() for row in found for x in row.images} <= known
    drawn = {x.source for x in made.drawn if x not in found}
    every = {"NeuroFlow", SAME_TOKENS, ANOTHER, MEAN, REDUCED, TRUE}
    assert drawn > every if kind == "generator" else not drawn
    assert {"NeuroFlow", SAME_TOKENS, TRUE} <= {x.source for x in found}
    np.save(folder / "pictures.npy", np.load(folder / "pictures.npy")[:5])
    with pytest.raises(LayoutError, match=r"pictures of the 12 ids .* got 5"):
        draw_pictures(item, study, evaluation.dataset, cache, folder)


def test_the_generator_that_ships_draws_from_its_own_features_alone(evaluation, cache):
    with pytest.raises(BrainDataError, match=r"VECA that ships with all its cores, .* got random_conv"):
        draw_pictures(evaluation.models[0], evaluation.study, evaluation.dataset, cache, SHIPPED)


def test_a_folder_that_is_no_drawer_is_refused_at_once(evaluation, tmp_path):
    with pytest.raises(BrainDataError, match=r"that `veca brain drawer` wrote, or a function as .*, got 'conv'"):
        evaluate(evaluation.dataset, [], EvaluationSettings(pictures="conv", out=tmp_path))


def test_a_bank_with_a_test_picture_is_refused(evaluation, cache, tmp_path):
    item, study = evaluation.models[0], evaluation.study
    ids = [*study.train.image_ids[:20], study.test.image_ids[0]]
    pictures = np.zeros((21, 8, 8, 3), np.uint8)
    nearest = KeyedNearest.fit(cache.get(ids, "tokens"), cache.get(ids, "pooled"), pictures, ids, steps=2)
    nearest.save(tmp_path)
    with pytest.raises(LeakageError, match="bank without test images, got one with 1"):
        drawers.Drawers.of(item, study, evaluation.dataset, cache, tmp_path, "cpu", False)


def test_the_record_is_json_and_holds_every_row(evaluation):
    record = json.loads(json.dumps(evaluation.record, allow_nan=False))
    assert [item["name"] for item in record["models"]] == ["NeuroFlow", "SynBrain"]
    for stored, item in zip(record["models"], evaluation.models, strict=True):
        for name, rows in (("decoding", item.decoded), ("semantics", item.semantics)):
            kept = [[Score.from_json(score) for score in row["scores"]] for row in stored[name]]
            assert kept == [list(row.scores) for row in rows]
        assert stored["recipe"] == json.loads(json.dumps(item.opened.model.recipe.to_json()))
    drawn = record["pictures"][0]["drawn"]
    assert [row["source"] for row in drawn] == [row.source for row in evaluation.pictures[0].drawn]
    assert len(record["encoding"]) == len(evaluation.encoded) and record["settings"]["models"] == []
    for row in [*evaluation.models[0].decoded, *evaluation.models[0].semantics]:
        for score in row.scores:
            given = (score.subject, score.split, score.part, score.normalizer, score.seed)
            assert given == ("sim01", "shared", "test", "session_z_train", 1) and score.decoder and score.features


@pytest.mark.parametrize(
    "run, error, match",
    [
        ({"split_hash": "other", "data": "elsewhere"}, LeakageError, "got one trained on other .*elsewhere"),
        ({}, None, None),  # the scaler knows the training images
    ],
)
def test_another_split_is_refused(evaluation, run, error, match):
    opened = dataclasses.replace(opened_models()[0], run=run)
    if error is None:
        opened.check(evaluation.study)
        return
    with pytest.raises(error, match=match):
        opened.check(evaluation.study)


def altered(meta=None, **attributes):
    """The NeuroFlow with attributes changed; the model that others look at stays."""
    opened = opened_models()[0]
    model = object.__new__(type(opened.model))
    model.__dict__.update(opened.model.__dict__ | attributes)
    model.meta_ = opened.model.meta_ | (meta or {})
    return dataclasses.replace(opened, model=model, run={})


def test_models_of_other_data_are_refused(evaluation, cache):
    study, scaler = evaluation.study, opened_models()[0].model.scaler_
    seen = type(scaler).from_state_dict(scaler.state_dict())
    seen.fitted_ids = scaler.fitted_ids | {study.test.image_ids[0]}
    with pytest.raises(LeakageError, match="fitted on 1 that are tested on"):
        altered(scaler_=seen).check(study)
    with pytest.raises(LeakageError, match="got neither"):
        altered(scaler_=None).check(study)
    known = opened_models()[0].model.meta_["subjects"]["sim01"]
    with pytest.raises(NormalizationError, match="'session_z_train', as here, got 'train_z'"):
        altered({"subjects": {"sim01": known | {"normalizer": "train_z"}}}).check(study)
    with pytest.raises(BrainDataError, match="sim01 among the subjects of NeuroFlow, got sim02; near: sim02"):
        altered(subjects_=("sim02",)).check(study)
    assert altered(subjects_=("default",)).subject_in(study) == "default"
    other = altered({"subjects": {"sim01": known | {"voxels": "0" * 12}}})
    with pytest.raises(BrainDataError, match="voxels of sim01 in the order of the fit"):
        evaluate_model(other, study, cache, [evaluation.models[0].space])


def test_saved_models_are_opened_with_the_features_of_their_training(tmp_path):
    model = opened_models()[0].model
    for name in ("a", "b"):
        model.save(tmp_path / name / "model")  # as `veca brain train` leaves them
    opened = open_models([tmp_path / "a", tmp_path / "b" / "model"], [], "cpu")
    assert [item.name for item in opened] == ["NeuroFlow a", "NeuroFlow b"]
    assert opened[0].features.extractor.fingerprint() == model.fingerprint_
    given = FeatureSet.parse("random_conv")
    assert open_models([tmp_path / "a"], [given], "cpu")[0].features is given
    meta = tmp_path / "a" / "model" / "meta.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps(content | {"run": {"features": "gabor"}}))
    with pytest.raises(NormalizationError, match="of gabor, which NeuroFlow was fitted to, got"):
        open_models([tmp_path / "a"], [], "cpu")
    meta.write_text(json.dumps(content | {"run": {}}))
    with pytest.raises(NormalizationError, match=r"got pixels .*; name them among the features"):
        open_models([tmp_path / "a"], [FeatureSet.parse("pixels")], "cpu")
    with pytest.raises(LayoutError):
        open_models([tmp_path / "nothing"], [], "cpu")
    with pytest.raises(BrainDataError, match="names of their own"):
        open_models([tmp_path / "b", tmp_path / "b" / "model"], [given], "cpu")


def test_published_numbers_never_stand_beside_simulated_ones(tmp_path):
    settings = EvaluationSettings(features=("grid",), published=True, out=tmp_path, progress=False, curve=())
    with pytest.raises(BrainDataError, match="simulated data, whose scores share no table with real ones"):
        evaluate(trained_models()[0], [FeatureSet.parse("grid")], settings)
    assert isinstance(opened_models()[0], OpenedModel)
