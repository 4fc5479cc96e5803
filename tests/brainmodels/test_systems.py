"""Systems are known through one table: a new one goes through every command with one folder and one line."""

import json

import numpy as np
import pytest
from sklearn.base import clone

import brainmodels
from brainmodels.cli import main
from brainmodels.errors import BrainDataError
from brainmodels.systems import SYSTEMS, load_model, system


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "toy", "tests.brainmodels.toy.estimator:ToyRidge")


def test_a_new_system_goes_through_train_evaluate_and_report(toy, tmp_path, capsys):
    data = ["--data", "simulated:tiny", "--seed", "1", "--no-progress"]
    main(["train", "--model", "toy", "--recipe", "toy", "--features", "grid", "--out", str(tmp_path / "toy"), *data])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "toy" / "model")
    words = [
        "--features",
        "grid",
        "--models",
        str(tmp_path / "toy"),
        "--resamples",
        "50",
        "--shuffles",
        "2",
        "--curve",
        "50",
    ]
    main(["evaluate", *words, "--pictures", "nearest", "--out", str(tmp_path / "report"), *data])
    printed = capsys.readouterr().out
    assert "ToyRidge, grid tokens: nr2" in printed and "ToyRidge, found in grid tokens" in printed
    record = json.loads((tmp_path / "report" / "record.json").read_text())
    found = record["models"][0]
    own, ridge = (
        {s["metric"]["name"]: s["value"] for s in row["scores"]}
        for row in (found["encoding"][0], found["encoding"][-1])
    )
    assert own["nr2"] == pytest.approx(ridge["nr2"], abs=0.1) and own["nr2"] > 0.2  # both are ridge
    page = (tmp_path / "report" / "report.html").read_text()
    assert "ToyRidge" in page and "by two linear maps" in page


def test_a_saved_model_of_a_new_system_predicts_the_same(toy, tmp_path):
    from tests.brainmodels.fitted import features, pairs

    model = system("toy")("toy").fit(features(), pairs(), subject="sim01")
    assert model.device is None  # the argument stays as it was given
    loaded = load_model(model.save(tmp_path / "model"))
    ids, measured = pairs("test").image_ids, pairs("test").array()
    np.testing.assert_array_equal(model.predict(features(), image_ids=ids), loaded.predict(features(), image_ids=ids))
    np.testing.assert_array_equal(model.decode(measured), loaded.decode(measured))
    assert model.score(features(), pairs("test"), image_ids=ids).mean() > 0.2
    assert brainmodels.ToyRidge is type(model)
    with pytest.raises(BrainDataError, match="expected a fitted ToyRidge, got one before fit"):
        clone(model).predict(features(), image_ids=ids)
    assert not hasattr(model.set_params(config="toy"), "meta_")


def test_unknown_names_are_told_with_the_near_ones(tmp_path):
    with pytest.raises(BrainDataError, match=r"expected a system of .*neuroflow, .*, got 'neuroflo'; near: neuroflow"):
        system("neuroflo")
    with pytest.raises(SystemExit, match="veca brain train: expected a system of"):
        main(["train", "--model", "toy", "--out", str(tmp_path)])


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_says_what_it_is(name):
    kind = system(name)
    assert kind.study in ("images", "objects", "clips") and kind.about
    recipe = kind.named("nano")
    assert all(hasattr(recipe, stage) for stage in kind.stages)
    assert getattr(brainmodels, kind.__name__) is kind and kind.__name__ in dir(brainmodels)
    if kind.study == "images":
        assert kind.direction in ("encode", "decode", "both") and kind.responses
        assert kind.adapts == hasattr(kind, "adapt") and kind.reversible == hasattr(kind, "round_trip")


@pytest.mark.parametrize("name", SYSTEMS)
def test_models_are_cloned_and_changed_as_scikit_learn_does(name):
    kind = system(name)
    of_images = {"pairing": "rows" if kind.inputs == "features" else "ids"} if kind.study == "images" else {}
    model = kind("nano", **of_images)
    twin = clone(model)
    params = {"config": "nano", "device": None, **of_images, **dict.fromkeys(kind.options)}
    assert twin.get_params() == model.get_params() == params
    assert repr(kind("tiny")) == f"{kind.__name__}(config='tiny')"
    assert twin.set_params(config=model.named("tiny"), device="cpu").recipe == model.named("tiny")
    assert twin.device == "cpu" and model.recipe == model.named("nano") and clone(twin).recipe == twin.recipe
    if of_images:
        with pytest.raises(BrainDataError, match="expected pairing to be one of ids, rows, got 'names'"):
            twin.set_params(pairing="names")
    with pytest.raises(BrainDataError, match="Recipe, or the name of one, got int"):
        system(name)(7)


def test_a_package_that_is_missing_is_named(toy, monkeypatch):
    monkeypatch.setattr(system("toy"), "needs", ("no_such_package",))
    with pytest.raises(ImportError, match="the system toy needs no_such_package"):
        system("toy")


def test_a_kind_of_responses_that_a_system_does_not_take_is_refused(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(system("toy"), "responses", ("sensors",))
    words = ["--model", "toy", "--recipe", "toy", "--features", "grid", "--data", "simulated:tiny"]
    with pytest.raises(SystemExit, match="expected responses of sensors, which toy takes, got voxels of sim01"):
        main(["train", *words, "--no-progress", "--out", str(tmp_path)])
