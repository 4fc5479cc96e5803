"""Several prepared folders as one study, subjects held out, and models adapted to a subject from few images."""

import json
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.cli import main
from brainmodels.commands.opening import open_data
from brainmodels.commands.train import TrainSettings, run_training
from brainmodels.data import ArrayImages, BrainDataset, StimulusSet, context_split, join_datasets, save_prepared
from brainmodels.errors import BrainDataError, IdError, LeakageError
from brainmodels.systems import load_model
from tests.brainmodels.simulations import made
from tests.brainmodels.test_train import QUICK, recipe_file


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two subjects of one study, prepared one by one."""
    base, dataset = tmp_path_factory.mktemp("prepared"), made("tiny", seed=1, n_subjects=2)
    for name in dataset.subjects:
        save_prepared(dataset, name, base / name, image_size=48)
    return [str(base / name) for name in dataset.subjects]


def test_folders_are_joined_by_image_id(folders):
    joined, whole = open_data(folders), made("tiny", seed=1, n_subjects=2)
    assert list(joined.subjects) == ["sim01", "sim02"]
    assert set(joined.stimuli.ids.tolist()) == {
        str(x) for person in whole.subjects.values() for x in person.responses.trials.image_id
    }
    split, original = joined.split("shared"), whole.split("shared")
    assert split.test == original.test
    for name in joined.subjects:
        found, expected = (d.pairs(name, "shared", "train", "none") for d in (joined, whole))
        assert dict(zip(found.image_ids, found.array()[:, 0], strict=True)) == dict(
            zip(expected.image_ids, expected.array()[:, 0], strict=True)
        )
        image = found.image_ids[0]
        np.testing.assert_array_equal(joined.stimuli.image(image, 48), whole.stimuli.image(image, 48))


def test_what_cannot_be_joined_is_named(folders):
    first, second = (open_data(folder) for folder in folders)
    with pytest.raises(IdError, match="expected subjects of different names, got sim01, sim01"):
        join_datasets([first, first])
    ids = second.stimuli.ids
    black = StimulusSet(ids, ArrayImages(np.zeros((len(ids), 8, 8, 3), np.uint8)))
    with pytest.raises(BrainDataError, match=r"expected one picture under 'sim1:.*got two that differ"):
        join_datasets([first, BrainDataset(list(second.subjects.values()), black, second.splits)])
    split = second.split("shared")
    moved = next(iter(first.split("shared").test))
    leaking = replace(split, train=split.train | {moved}, test=split.test - {moved}, train_of=None)
    with pytest.raises(LeakageError, match="train and test of split 'shared' to share no image"):
        join_datasets([first, BrainDataset(list(second.subjects.values()), second.stimuli, {"shared": leaking})])
    with pytest.raises(BrainDataError, match="the folder of a prepared subject, got 'simulated'"):
        open_data([folders[0], "simulated"])


def test_context_images_are_nested_and_draws_disjoint():
    dataset = made("tiny", seed=1, n_subjects=2)
    test = dataset.split("shared")
    draws = [context_split(dataset, "sim01", test, 20, 3, draw, 4).ids("train", "sim01") for draw in range(4)]
    assert [len(ids) for ids in draws] == [20] * 4 and len(frozenset().union(*draws)) == 80
    few = context_split(dataset, "sim01", test, 8, 3, 2, 4)
    assert few.ids("train", "sim01") < draws[2] and few.ids("train", "sim02") == test.ids("train", "sim02")
    assert few.test == test.test and not few.ids("val", "sim01")
    assert frozenset().union(*draws) <= test.ids("train", "sim01") | test.ids("val", "sim01")
    with pytest.raises(IdError, match="expected 4 x 200 train images of sim01 for disjoint draws"):
        context_split(dataset, "sim01", test, 200, 0, 0, 4)


@pytest.fixture(scope="module")
def known(folders, tmp_path_factory):
    """A model of the first subject, trained while the second was held out."""
    out = tmp_path_factory.mktemp("known")
    settings = {**QUICK, "data": tuple(folders), "out": out, "recipe": recipe_file(out, validation=0.0, stack=None)}
    run_training(TrainSettings(**settings, steps=(12, 8), held_out=("sim02",)))
    return out


def test_held_out_subjects_are_not_seen(known):
    model = load_model(known)
    assert model.subjects_ == ("sim01",) and model.meta_["run"]["held_out"] == ["sim02"]


@pytest.mark.slow
def test_a_known_model_is_adapted_with_few_images_and_evaluated(folders, known, tmp_path, capsys):
    shared = ["--data", *folders, "--features", "grid", "--no-progress", "--check-alignment", "off", "--seed", "1"]
    new = ["--known", str(known), "--new", "sim02", "--context", "24", "--steps", "4", "4"]
    main(["train", *shared, *new, "--out", str(tmp_path / "adapted")])
    model = load_model(tmp_path / "adapted")
    assert model.subjects_ == ("sim01", "sim02") and model.meta_["run"]["context"] == 24
    assert model.meta_["subjects"]["sim02"]["trials"] == 3 * 24
    assert model.meta_["run"]["normalizer"] == "session_z_unlabelled"
    capsys.readouterr()
    report = [
        "--subject",
        "sim02",
        "--context",
        "12",
        "24",
        "--draws",
        "2",
        "--resamples",
        "20",
        "--shuffles",
        "2",
        "--curve",
    ]
    main(["evaluate", *shared, *report, "--models", str(known), "--out", str(tmp_path / "report")])
    printed = capsys.readouterr().out
    assert "NeuroFlow, nr2 against context: 12 images" in printed
    record = json.loads((tmp_path / "report" / "record.json").read_text())
    (curve,) = record["context"]["curves"]
    points = curve["points"]
    assert curve["metric"] == "nr2" and record["context"]["draws"] == 2
    assert set(points) == {"NeuroFlow", "ridge, same tokens as NeuroFlow"} and record["data"]["train_images"] == 24
    assert all(len(values) == 2 for row in points.values() for values in row.values())
    ridge = points["ridge, same tokens as NeuroFlow"]
    assert np.mean(ridge["24"]) > np.mean(ridge["12"]) - 0.02


def test_several_subjects_have_a_report_each(folders, tmp_path, capsys):
    words = [
        "--data",
        *folders,
        "--subject",
        "sim01",
        "sim02",
        "--features",
        "grid",
        "--resamples",
        "20",
        "--shuffles",
        "2",
        "--curve",
    ]
    main(["evaluate", *words, "--no-progress", "--check-alignment", "off", "--out", str(tmp_path)])
    reports = [line for line in capsys.readouterr().out.splitlines() if line.endswith("report.html")]
    assert reports == [str(tmp_path / name / "report.html") for name in ("sim01", "sim02", ".")]
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("sim01", "sim02")]
    assert [x["data"]["subject"] for x in records] == ["sim01", "sim02"]
    assert records[0]["data"]["voxels"] != records[1]["data"]["voxels"]
    group = json.loads((tmp_path / "group.json").read_text())
    assert group["subjects"] == ["sim01", "sim02"] and (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new": "sim02"}, "expected both known and new, or neither"),
        ({"context": 20}, "expected context with new"),
        ({"held_out": ("sim01",), "subject": ("sim01",)}, "got sim01 as both"),
    ],
)
def test_contradictions_are_named(change, message):
    with pytest.raises(BrainDataError, match=message):
        TrainSettings(**{**QUICK, **change})
