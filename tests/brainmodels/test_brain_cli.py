"""`veca brain ...` as users type it: from files to a report, and mistakes in one line."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from brainmodels.commands.evaluate import run_evaluation
from brainmodels.data import BrainDataset, Responses, load_prepared
from brainmodels.data.prepared import save_prepared
from brainmodels.evaluation import EvaluationSettings
from brainmodels.metrics import Score
from brainmodels.simulated import simulate
from veca import cli


@pytest.fixture(scope="module")
def dataset():
    return simulate("tiny", n_subjects=1)


@pytest.fixture
def mine(dataset, tmp_path):
    """A folder as anybody may have it: Y.npy, ids.txt, and images/ with a picture for each id."""
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    responses = dataset.subject("sim01").responses
    names = [name.split(":")[1] for name in responses.trials.image_id]
    np.save(folder / "Y.npy", responses.values)
    (folder / "ids.txt").write_text("\n".join(names) + "\n")
    for name in dataset.stimuli.ids:
        Image.fromarray(dataset.stimuli.image(name, 64)).save(folder / "images" / f"{name.split(':')[1]}.png")
    return folder


def stopped(words):
    """The message with which a command ended."""
    with pytest.raises(SystemExit) as error:
        cli.main(["brain", *map(str, words)])
    assert isinstance(error.value.code, str), "expected words, not a status"
    return error.value.code


def test_from_anybodys_files_to_a_report(mine, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main("brain prepare --layout flat --root mine --out prepared".split())
    capsys.readouterr()
    cli.main(
        "brain evaluate --data prepared --features grid --out report --no-progress --resamples 100 --shuffles 2".split()
    )
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "report/report.html" and (tmp_path / last).is_file()
    assert lines[0].startswith("ridge, grid: nr2 ↑") and "decoder ridge" in lines[0]
    record = json.loads((tmp_path / "report/record.json").read_text())
    assert record["data"]["name"] == "flat" and not record["data"]["simulated"]
    assert record["data"]["normalizer"] == "train_z"  # sessions are unknown
    assert record["data"]["train_images"] + record["data"]["test_images"] < 300  # others validate
    encoding = [Score.from_json(score) for score in record["encoding"][0]["scores"]]
    found = {score.metric.name: score for score in encoding}
    assert found["nr2"].value > 0.3 and found["voxel_r"].at_chance is False
    top = Score.from_json(record["decoding"][0]["scores"][0])
    assert top.metric.name == f"image_given_brain_top1@{record['data']['test_images']}" and top.value > 10 * top.chance


def test_the_same_in_python(mine, tmp_path):
    from brainmodels.layouts import prepare

    out = str(tmp_path / "report")
    prepare("flat", mine, "me", tmp_path / "prepared")
    settings = EvaluationSettings(
        data=str(tmp_path / "prepared"), features=("grid",), out=out, resamples=20, shuffles=2, curve=()
    )
    evaluation = run_evaluation(dataclasses.replace(settings, progress=False))
    assert evaluation.encoded[0].score("nr2").value > 0.3
    assert (tmp_path / "report/report.html").is_file()
    loaded = load_prepared(tmp_path / "prepared").subject("me").responses
    np.testing.assert_array_equal(loaded.values, np.load(mine / "Y.npy"))


def test_rows_that_are_rolled_by_one_stop_in_words(dataset, tmp_path):
    subject = dataset.subject("sim01")
    rolled = Responses(np.roll(subject.responses.values, 1, 0), subject.responses.trials)
    wrong = BrainDataset([dataclasses.replace(subject, responses=rolled)], dataset.stimuli, dataset.splits)
    save_prepared(wrong, "sim01", tmp_path / "rolled", image_size=64)
    words = [
        "evaluate",
        "--data",
        tmp_path / "rolled",
        "--features",
        "grid",
        "--out",
        tmp_path / "out",
        "--no-progress",
    ]
    message = stopped(words)
    assert message.startswith("veca brain evaluate: raw responses of sim01 identify their images at chance")
    assert "probably misaligned" in message
    assert not (tmp_path / "out" / "report.html").exists()


def test_mistakes_end_in_one_line(mine, tmp_path):
    out = ["--out", tmp_path / "out", "--no-progress"]
    assert "got 'nowhere'" in stopped(["evaluate", "--data", "nowhere", "--features", "grid", *out])
    assert "near: pixels" in stopped(["evaluate", "--data", "simulated:tiny", "--features", "pixel", *out])
    assert "tiny, small, nsd_like" in stopped(["evaluate", "--data", "simulated:huge", "--features", "grid", *out])
    prepare = ["prepare", "--root", mine, "--out", tmp_path / "prepared"]
    assert "near: flat" in stopped([*prepare, "--layout", "flatt"])
    assert "NAME=VALUE" in stopped([*prepare, "--layout", "flat", "--options", "holdout"])
    assert "got no such path" in stopped([*prepare, "--layout", "flat", "--options", "responses=Z.npy"])
    assert "nonsense" in stopped([*prepare, "--layout", "flat", "--options", "nonsense=1"])
    assert not (tmp_path / "prepared").exists()
    (mine / "images" / "000007.png").unlink()
    assert "000007" in stopped([*prepare, "--layout", "flat"])


def test_options_reach_the_layout(mine, tmp_path):
    words = ["brain", "prepare", "--layout", "flat", "--root", mine, "--out", tmp_path / "out", "--image-size", 32]
    options = ["holdout=0.3", "unit=psc", "namespace=me", "scale=0.5"]
    cli.main([*map(str, words), "--subject", "sub-07", "--options", *options])
    loaded = load_prepared(tmp_path / "out")
    (subject,), (split,) = loaded.subjects.values(), loaded.splits.values()
    assert subject.id == "sub-07" and subject.responses.unit == "psc" and len(split.test) == 90
    assert loaded.stimuli.image("me:000007").shape == (32, 32, 3)
    np.testing.assert_array_equal(subject.responses.batch([3])[0], np.load(mine / "Y.npy")[3] / 2)


def test_layouts_are_listed_and_described(capsys):
    from brainmodels.layouts import LAYOUTS

    cli.main(["brain", "layouts"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(LAYOUTS)
    cli.main(["brain", "layouts", "flat"])
    assert "ids.npy, .txt, .csv or .json: the image id of each trial" in capsys.readouterr().out
    assert "near: mindeye2" in stopped(["layouts", "mindeye"])


def test_a_pickle_is_converted_when_asked(tmp_path, capsys):
    content = {
        "preprocessed_eeg_data": np.arange(24.0).reshape(2, 1, 3, 4),
        "ch_names": ["a", "b", "c"],
        "times": [0.0] * 4,
    }
    np.save(tmp_path / "eeg.npy", content)
    words = ["convert", "--file", tmp_path / "eeg.npy", "--out", tmp_path / "eeg.npz"]
    cli.main(["brain", *map(str, words)])
    with np.load(tmp_path / "eeg.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["preprocessed_eeg_data"], content["preprocessed_eeg_data"])
    assert "absent.npy" in stopped(["convert", "--file", tmp_path / "absent.npy", "--out", tmp_path / "x.npz"])
