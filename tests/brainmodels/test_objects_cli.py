"""`veca brain train | evaluate | demo` with a system that decodes objects, end to end."""

import functools
import json

import pytest

from brainmodels.cli import main
from brainmodels.evaluation.objects import ObjectSettings
from brainmodels.systems import load_model, system
from tests.brainmodels.object_fits import FEW

QUIET = "--no-progress"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "few.json"
    path.write_text(json.dumps(FEW.to_json()))
    return str(path)


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("neuro3d")
    words = ["--data", "objects:tiny", "--seed", "4", "--recipe", recipe, "--steps", "8", "4", "4", "--init-seed", "2"]
    main(["train", "--model", "neuro3d", *words, "--out", str(out), QUIET])
    return out


def test_a_model_is_trained_as_the_words_say(trained, capsys):
    model = load_model(trained, "cpu")
    assert [stage["steps"] for stage in model.meta_["stages"]] == [8, 4, 4]
    assert {getattr(model.recipe, name).seed for name in model.stages} == {2}
    run = model.meta_["run"]
    assert (run["data"], run["seed"], run["subject"], run["split"]) == ("objects:tiny", 4, "sim01", "objects")


def test_a_trained_model_is_evaluated_on_its_own_data(trained, tmp_path, capsys, monkeypatch):
    short = functools.partial(ObjectSettings, sensors=False, judge_steps=5, emd_points=32, noise=1)
    monkeypatch.setattr("brainmodels.commands.objects.ObjectSettings", short)
    main(["evaluate", "--models", str(trained), "--resamples", "20", "--shuffles", "2", "--out", str(tmp_path), QUIET])
    printed = capsys.readouterr().out
    assert "retrieval" in printed.splitlines()[0] and "Neuro3D, class:" in printed
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["settings"]["data"] == "objects:tiny" and record["data"]["subject"] == "sim01"
    assert list((tmp_path / "clouds").glob("*.ply")) and (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stack", "ridge"], "expected no stack with neuro3d, which learns objects, got ridge"),
        (["--features", "grid"], "expected no features with neuro3d"),
        (["--data", "simulated:tiny"], "expected objects:PRESET or eeg3d:FOLDER"),
        (["--data", "objects:tiny", "objects:nano"], "expected one data set for neuro3d"),
        (["--data", "objects:large"], "large"),
        (["--subject", "sim01", "sim02"], "expected one subject, which neuro3d takes"),
        (["--steps", "3"], r"expected steps of 3 stages \(encoder, shape, color\), got 1 numbers"),
    ],
)
def test_words_that_do_not_fit(words, message, recipe, tmp_path):
    words = words if "--data" in words else ["--data", "objects:tiny", *words]
    with pytest.raises(SystemExit, match=f"veca brain train: .*{message}"):
        main(["train", "--model", "neuro3d", "--recipe", recipe, *words, "--out", str(tmp_path), QUIET])


def test_data_of_images_are_refused_for_a_model_of_objects(trained, tmp_path):
    with pytest.raises(SystemExit, match="expected a study of objects"):
        main(["evaluate", "--models", str(trained), "--data", "simulated:tiny", "--out", str(tmp_path), QUIET])


def test_the_demo_trains_and_reports(recipe, tmp_path, monkeypatch, capsys):
    short, evaluated = {"data": "objects:tiny", "recipe": recipe, "steps": (4, 3, 3)}, []
    monkeypatch.setattr(system("neuro3d"), "demo", short)
    monkeypatch.setattr("brainmodels.commands.demo.run_evaluations", evaluated.append)
    main(["demo", "--model", "neuro3d", "--out", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report" / "report.html")
    assert evaluated[0].models == (tmp_path,) and evaluated[0].out == tmp_path / "report"
    assert load_model(tmp_path, "cpu").meta_["run"]["data"] == "objects:tiny"
    with pytest.raises(SystemExit, match=r"expected a system with a demo \(neuro3d\), got synbrain"):
        main(["demo", "--model", "synbrain", "--out", str(tmp_path / "other")])
