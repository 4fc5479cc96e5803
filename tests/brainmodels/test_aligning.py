"""A new subject aligned with a known one, from the command line to the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from brainmodels.cli import main
from brainmodels.commands.aligning import classes_of, known_subject, of_sessions
from brainmodels.commands.train import TrainSettings, run_training
from brainmodels.errors import BrainDataError
from brainmodels.systems import load_model
from brainmodels.systems.mindaligner import tiny
from tests.brainmodels.simulations import made
from tests.brainmodels.test_train import QUICK, recipe_file

COMMON = {"data": "simulated:tiny", "features": "grid", "seed": 1, "progress": False, "check_alignment": "off"}


def short(folder: Path, **changes) -> str:
    """A recipe of few steps as a file."""
    recipe = replace(tiny(), embed_width=8, pairs="random", **changes)
    recipe = replace(recipe, align=replace(recipe.align, steps=40))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "short.json"
    path.write_text(json.dumps(recipe.to_json()))
    return str(path)


def evaluate(model: Path, out: Path, *more: str) -> None:
    """The page of a model of sim02."""
    words = "--data simulated:tiny --subject sim02 --features grid --seed 1 --no-progress --check-alignment off"
    few = "--resamples 20 --shuffles 2 --curve"
    main(["evaluate", "--models", str(model), *words.split(), *few.split(), *more, "--out", str(out)])


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """sim02, two sessions of it, aligned with sim01."""
    out = tmp_path_factory.mktemp("aligned")
    settings = TrainSettings(
        model="mindaligner", new="sim02", known="sim01", sessions=(1, 2), recipe=short(out), out=out, **COMMON
    )
    run_training(settings)
    return out


def test_few_sessions_of_the_new_subject_and_all_of_the_known_one_are_trained_on(aligned):
    model, study = load_model(aligned), made("tiny", seed=1, n_subjects=2)
    trials, split = study.subject("sim02").responses.trials, study.split("shared")
    ids = split.ids("train", "sim02") | split.ids("val", "sim02")
    shown = [x in ids and session in (1, 2) for x, session in zip(trials.image_id, trials.session, strict=True)]
    assert model.subjects_ == ("sim02", "sim01") and (model.new_, model.known_) == ("sim02", "sim01")
    held_out = sum(shown) - model.meta_["new_trials"]
    assert 0 < held_out < 0.3 * sum(shown)  # some images validate
    assert model.meta_["run"]["sessions"] == [1, 2] and model.meta_["run"]["known"] == "sim01"
    assert model.meta_["subjects"]["sim01"]["images"] != model.meta_["subjects"]["sim02"]["images"]


def test_the_page_has_the_closed_forms_beside_the_map(aligned, tmp_path):
    evaluate(aligned, tmp_path)
    record = json.loads((tmp_path / "record.json").read_text())
    rows = {row["scores"][0]["decoder"] for row in record["models"][0]["decoding"]}
    expected = ("encode_align, same decoder", "encode_invert_encode, same decoder", "ridge without alignment")
    assert {f"MindAligner: {name}" for name in expected} | {"MindAligner", "ridge, same tokens"} <= rows
    assert "encode_align" in (tmp_path / "report.html").read_text()


def test_a_model_of_the_known_subject_decodes(tmp_path):
    recipe = recipe_file(tmp_path, validation=0.0, stack=None)
    run_training(TrainSettings(**{**QUICK, **COMMON, "out": tmp_path / "known", "recipe": recipe}, steps=(6, 4)))
    settings = {
        "model": "mindaligner",
        "new": "sim02",
        "known": tmp_path / "known",
        "recipe": short(tmp_path / "short"),
    }
    model = load_model(run_training(TrainSettings(**settings, **COMMON, out=tmp_path / "aligned")))
    assert model.known_model_.meta_["system"] == "NeuroFlow" and model.meta_["decoder"] == "NeuroFlow"
    evaluate(tmp_path / "aligned", tmp_path / "page", "--pictures", "nearest")
    record = json.loads((tmp_path / "page" / "record.json").read_text())
    assert record["models"][0]["tokens"] == list(model.known_model_.token_shape_)
    assert {"MindAligner", "ridge, same tokens"} <= {row["source"] for row in record["pictures"][0]["drawn"]}
    with pytest.raises(
        BrainDataError, match="decoder can be frozen, such as a NeuroFlow, got MindAligner of sim02, sim01"
    ):
        known_subject(tmp_path / "aligned", "cpu")


def test_what_cannot_be_aligned_is_named(tmp_path):
    with pytest.raises(BrainDataError, match="expected known and new, the two subjects that mindaligner aligns"):
        run_training(TrainSettings(model="mindaligner", recipe=short(tmp_path), out=tmp_path, **COMMON))
    with pytest.raises(BrainDataError, match="expected sessions with new"):
        TrainSettings(sessions=(1,))
    settings = {"model": "mindaligner", "new": "sim02", "known": "sim02", "recipe": short(tmp_path), "out": tmp_path}
    with pytest.raises(BrainDataError, match="expected a known subject beside sim02, got it again"):
        run_training(TrainSettings(**settings, **COMMON))


def test_sessions_and_classes_are_taken_from_the_study():
    study = made("tiny", seed=1, n_subjects=2)
    split, trials = study.split("shared"), study.subject("sim02").responses.trials
    few = of_sessions(split, (3,))
    assert set(trials.session[few.rows(trials, "train", "sim02")]) == {3} and of_sessions(split, ()) is split
    assert set(trials.session[few.rows(trials, "test", "sim02")]) == set(trials.session)
    classes = classes_of(study.stimuli, "shape")
    image = trials.image_id[5]
    assert classes[image] == study.stimuli.label("shape", [image])[0] and classes_of(study.stimuli, None) is None
