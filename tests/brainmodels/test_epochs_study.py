"""Studies of epochs from the command line: pages, records, refusals, and the words of a recipe."""

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from brainmodels import cli
from brainmodels.commands.epochs import OF_EPOCHS, run_epoch_evaluations
from brainmodels.commands.evaluate import run_evaluation, run_evaluations, score_lines
from brainmodels.data import load_prepared, save_prepared
from brainmodels.errors import BrainDataError
from brainmodels.evaluation import EvaluationSettings
from brainmodels.layouts import prepare, raw_eeg, things_eeg2
from brainmodels.layouts._recipes import codes_of, recipe_of, with_recipe
from brainmodels.layouts.raw_eeg import EpochRecipe
from brainmodels.simulated import simulate_eeg
from tests.brainmodels.planted_epochs import planted
from tests.brainmodels.written.raw_eeg import write_raw_eeg
from tests.brainmodels.written.things_eeg2 import write_things_eeg2, write_things_eeg2_raw

pytest.importorskip("mne")
QUICK = {"features": ("grid",), "resamples": 100, "shuffles": 3, "progress": False}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("planted") / "me"
    save_prepared(planted(), "me", out, image_size=32)
    return out


@pytest.fixture(scope="module")
def study(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    settings = EvaluationSettings(data=str(prepared), out=out, bands=("alpha=8-12",), **QUICK)
    return run_evaluation(settings), out


def test_a_prepared_folder_gives_a_page_with_everything(study):
    evaluation, out = study
    record = json.loads((out / "record.json").read_text())
    assert record["kind"] == "epochs" and record["data"]["channels"][-1] == "O2"
    assert record["data"]["bin_seconds"] == 0.02
    assert [row["signal"] for row in record["decoding"]] == ["amplitude", "alpha 8–12 Hz"]
    assert record["decoding"][0]["course"]["onset"] == pytest.approx(0.1)
    score = record["decoding"][0]["scores"][0]
    assert score["n"] == 50 and score["chance"] == 0.02 and score["interval"] and score["subject"] == "me"
    assert record["encoding"][0]["scores"][0]["ceiling"] > 0.2 and len(record["occlusion"]) == 5
    arrays = np.load(out / "epochs.npz")
    assert arrays["encoding_r"].shape == (2, 10, 50) and arrays["generalization"].shape == (50, 50)
    np.testing.assert_allclose(arrays["decoding"][0], evaluation.decoded[0].course.values)
    page = (out / "report.html").read_text()
    assert "above chance from 100 ms" in page
    for name in ("decoding", "encoding", "generalization", "topography", "ceiling", "retrieved", "bands"):
        assert (out / f"{name}.png").stat().st_size > 5000 and f'src="{name}.png"' in page
    assert evaluation.at_chance is None
    assert score_lines(evaluation)[1].startswith("encoding of alpha") and "from 100 ms" in score_lines(evaluation)[0]


def test_the_same_settings_give_the_same_numbers(study, prepared, tmp_path):
    again = run_evaluation(EvaluationSettings(data=str(prepared), out=tmp_path, **QUICK)).record
    for name in ("generalization", "classification", "occlusion"):
        assert again[name] == study[0].record[name]
    for name in ("encoding", "decoding"):  # bands come after
        assert again[name] == study[0].record[name][:1]


def test_noise_is_told_to_be_at_chance(tmp_path):
    save_prepared(planted(0.0), "me", tmp_path / "me", image_size=32)
    settings = EvaluationSettings(data=str(tmp_path / "me"), out=tmp_path / "out", **QUICK)
    evaluation = run_evaluation(settings)
    assert evaluation.at_chance and evaluation.at_chance[:40] in (tmp_path / "out/report.html").read_text()
    assert "At no single time is decoding above chance" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bands": ("alpha",)}, "expected a band as NAME=LOW-HIGH in hertz"),
        ({"time_bin": 9.0}, "expected bins of 0.02 to 1 s"),
    ],
)
def test_settings_of_other_studies_are_refused(prepared, tmp_path, changed, message):
    with pytest.raises(BrainDataError, match=message):
        run_evaluation(EvaluationSettings(data=str(prepared), out=tmp_path, **(QUICK | changed)))
    assert not (tmp_path / "report.html").exists()


OF_VOXELS = {
    "models": (Path("model"),),
    "pictures": "nearest",
    "weights": ("clip=clip.pt",),
    "protocol": ("mindeye",),
    "anatomy": Path("t1.nii.gz"),
    "to_mni": "identity",
    "ablations": True,
    "partition": True,
    "published": True,
    "context": (5,),
    "draws": 2,
    "curve": (50,),
    "check_alignment": "off",
    "normalizer": "none",
}
OF_ALL = "data features out subject split threshold allow_duplicates resamples shuffles seed device progress"


@pytest.mark.parametrize("name", OF_VOXELS)
def test_settings_without_a_meaning_for_epochs_are_refused_by_name(tmp_path, name):
    settings = EvaluationSettings(out=tmp_path, **(QUICK | {name: OF_VOXELS[name]}))
    with pytest.raises(BrainDataError, match=f"expected no {name} with epochs of sensors, which do not have it, got"):
        run_epoch_evaluations(settings, planted(), [])
    assert not list(tmp_path.iterdir())


def test_every_setting_is_used_or_refused():
    known = {*OF_VOXELS, *OF_ALL.split(), *OF_EPOCHS}
    assert {field.name for field in fields(EvaluationSettings)} == known


def test_voxels_have_no_bands(tmp_path):
    settings = EvaluationSettings(data="simulated:tiny", out=tmp_path, bands=("alpha=8-12",), **QUICK)
    with pytest.raises(BrainDataError, match=r"expected no bands with responses without times"):
        run_evaluation(settings)


def test_simulated_eeg_is_a_word_of_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "brainmodels.commands.opening.EEG_STUDY", {"n_chans": 8, "snr_db": 0.0, "n_train": 24, "n_test": 8}
    )
    words = "evaluate --data simulated:eeg --features grid --no-progress --resamples 50 --shuffles 2 --time-bin 0.1"
    cli.main([*words.split(), "--out", str(tmp_path / "out"), "--subject", "sim01", "sim02"])
    assert "decoding of amplitude into grid: image_given_brain_top1@8" in capsys.readouterr().out
    assert all((tmp_path / "out" / name / "report.html").is_file() for name in ("sim01", "sim02"))
    with pytest.raises(SystemExit, match=r"expected a preset of tiny"):
        cli.main(["evaluate", "--data", "simulated:eegg", "--out", str(tmp_path / "none")])


def test_subjects_of_two_kinds_are_not_mixed():
    from brainmodels.commands.epochs import epochs_are_chosen

    dataset = planted()
    flat = SimpleNamespace(space=None, responses=SimpleNamespace(values=np.zeros((2, 2))))
    mixed = SimpleNamespace(subject=lambda name: dataset.subject("me") if name == "me" else flat)
    with pytest.raises(BrainDataError, match=r"me has epochs, you has one value a channel or voxel"):
        epochs_are_chosen(mixed, ("me", "you"))


def test_a_recording_becomes_a_prepared_folder_by_plain_words(tmp_path):
    source = simulate_eeg(n_subjects=1, n_chans=5, snr_db=0, n_train=30, n_test=12, repeats=1, test_repeats=4, seed=6)
    ids = write_raw_eeg(source, tmp_path / "study")
    words = "prepare --layout raw_eeg --subject sim01 --image-size 32 --options event_id=onset:100 tmin=-0.2 tmax=0.796"
    more = ["baseline=-0.2,0", "lowpass=40", "sfreq=125"]
    cli.main([*words.split(), *more, "--root", str(tmp_path / "study"), "--out", str(tmp_path / "out")])
    loaded = load_prepared(tmp_path / "out")
    subject = loaded.subject("sim01")
    recipe = EpochRecipe(-0.2, 0.796, 125.0, h_freq=40.0, baseline=(-0.2, 0.0))
    direct = raw_eeg.load(tmp_path / "study", "sim01", event_id={"onset": 100}, epochs=recipe).subject("sim01")
    np.testing.assert_array_equal(subject.responses.values, direct.responses.values)
    np.testing.assert_array_equal(subject.space.times, direct.space.times)
    assert subject.space.unit == "V" and len(subject.space.times) == 124
    test = {ids[name] for name in source.split("scenes").test}
    assert loaded.split("repeated").test == test  # the images that were shown 4 times


def test_test_images_can_be_named_or_drawn(tmp_path):
    source = simulate_eeg(n_subjects=1, n_chans=4, snr_db=0, n_train=12, n_test=3, repeats=1, test_repeats=1, seed=2)
    ids = sorted(write_raw_eeg(source, tmp_path).values())
    (tmp_path / "test.txt").write_text("".join(f"{name.removeprefix('raw:')}\n" for name in ids[:4]))
    given = {"event_id": {"onset": 100}, "epochs": EpochRecipe(-0.2, 0.5)}
    assert raw_eeg.load(tmp_path, "sim01", test="test.txt", **given).split("given").test == set(ids[:4])
    assert len(raw_eeg.load(tmp_path, "sim01", holdout=0.4, **given).split("holdout_image").test) == 6
    assert len(raw_eeg.load(tmp_path, "sim01", **given).split("holdout_image").test) == 3
    with pytest.raises(BrainDataError, match=r"expected test= or holdout=, got 4 test images and a share of 0.1"):
        raw_eeg.load(tmp_path, "sim01", test="test.txt", holdout=0.1, **given)
    with pytest.raises(BrainDataError, match=r"'raw:nothing'"):
        raw_eeg.load(tmp_path, "sim01", test=["nothing"], **given)
    with pytest.raises(BrainDataError, match=r"one a line, in .*none.txt, got no such file"):
        raw_eeg.load(tmp_path, "sim01", test="none.txt", **given)


def test_words_make_recipes():
    assert recipe_of({"tmin": -0.2, "tmax": 1, "highpass": 0.1, "lowpass": 40, "baseline": "start,0"}) == EpochRecipe(
        -0.2, 1.0, l_freq=0.1, h_freq=40.0, baseline=(None, 0.0)
    )
    lists = {"channels": "Oz, O1", "reference": "average", "drop_codes": 255, "mask": "0xFF"}
    listed = recipe_of({"tmin": 0, "tmax": 1, **lists})
    assert (listed.channels, listed.reference, listed.drop_codes, listed.mask) == (("Oz", "O1"), "average", (255,), 255)
    assert with_recipe(things_eeg2, {"sfreq": 100})["epochs"] == EpochRecipe(-0.2, 0.8, 100.0, baseline=(None, 0.0))
    assert with_recipe(raw_eeg, {"epochs": {"tmin": 0, "tmax": 1}, "files": "a.fif,b.fif"}) == {
        "epochs": EpochRecipe(0.0, 1.0),
        "files": ["a.fif", "b.fif"],
    }
    assert codes_of("onset:100, a:b:5") == {"onset": 100, "a:b": 5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"tmin": 0}, "expected tmax of the epochs in seconds, such as tmin=-0.2 tmax=0.8, got none"),
        ({"tmin": "x", "tmax": 1}, "expected a number as tmin, got 'x'"),
        ({"tmin": 1, "tmax": 0}, "expected tmin before tmax, got 1 and 0 s"),
        ({"tmin": 0, "tmax": 1, "baseline": "a,b"}, "expected two ends in seconds"),
        ({"tmin": 0, "tmax": 1, "phase": "twice"}, "expected zero or zero-double as phase, got 'twice'"),
        ({"tmin": 0, "tmax": 1, "kind": "meg"}, "expected one of eeg, mag, grad as kind, got 'meg'"),
        ({"tmin": 0, "tmax": 1, "mask": "ff"}, "expected whole numbers as mask, got 'ff'"),
        ({"tmin": 0, "tmax": 1, "highpass": 1, "l_freq": 2}, "expected l_freq once"),
        ({"tminn": 0}, "near: tmin"),
    ],
)
def test_other_words_are_refused(words, message):
    with pytest.raises(BrainDataError, match=message):
        recipe_of(words)


def test_missing_and_contradicting_options_are_named(tmp_path):
    (tmp_path / "study").mkdir()

    def stopped(**options):
        with pytest.raises(BrainDataError) as error:
            prepare("raw_eeg", tmp_path / "study", "a", tmp_path / "out", **options)
        return str(error.value)

    assert (
        "expected event_id and epochs of 'raw_eeg', got none; pass them as options: event_id=onset:100 tmin"
        in stopped()
    )
    assert "expected epochs= or single words of a recipe, got epochs and tmin" in stopped(epochs={}, tmin=0)
    assert "expected epochs as an EpochRecipe or" in stopped(epochs="short")
    assert "expected codes as NAME:CODE" in stopped(event_id="onset=100", tmin=0, tmax=1)
    assert "near: tmin" in stopped(tmn=0)


def test_several_subjects_are_asked_for_one_by_one():
    with pytest.raises(BrainDataError, match=r"expected one subject, got sim01, sim02"):
        run_evaluation(EvaluationSettings(data="simulated:eeg", subject=("sim01", "sim02")))
    assert callable(run_evaluations)


@pytest.mark.parametrize("form", ["preprocessed", "raw"])
def test_things_eeg2_ends_in_the_same_page(tmp_path, form):
    source = simulate_eeg(n_subjects=1, n_chans=5, snr_db=5, n_train=60, n_test=8, repeats=2, test_repeats=4, seed=8)
    write = {"preprocessed": write_things_eeg2, "raw": write_things_eeg2_raw}[form]
    write(source, tmp_path / "study", encoding="npz", images_per_concept=4, image_size=16)
    words = ["--root", str(tmp_path / "study"), "--out", str(tmp_path / "prepared"), "--image-size", "16"]
    options = ["form=raw", "sfreq=50", "tmax=0.79"] if form == "raw" else []
    cli.main(["prepare", "--layout", "things_eeg2", *words, *(["--options", *options] if options else [])])
    settings = EvaluationSettings(data=str(tmp_path / "prepared"), out=tmp_path / "out", **QUICK)
    record = run_evaluation(settings).record
    assert record["data"]["name"] == "things_eeg2" and record["data"]["test_images"] == 8
    assert record["data"]["sfreq"] == (50.0 if form == "raw" else 250.0) and len(record["data"]["bins"]) <= 100
    assert (tmp_path / "out/report.html").is_file()
