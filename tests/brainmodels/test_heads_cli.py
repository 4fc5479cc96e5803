"""`veca brain train | evaluate | animate` with a system that learns clips of talking heads, end to end."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from brainmodels.cli import main
from brainmodels.commands import opening
from brainmodels.data.clips import EMOTIONS
from brainmodels.data.media import read_metadata
from brainmodels.evaluation.heads import HeadSettings
from brainmodels.heads import ToyHead
from brainmodels.simulated.talking_head import drawn_face, simulate_clips
from brainmodels.systems import load_model, system
from brainmodels.systems.emodiffhead import EmoDiffHead
from tests.brainmodels.head_fits import SMALL

QUIET = "--no-progress"


@pytest.fixture(scope="module", autouse=True)
def few_clips():
    """The clips of `clips:toy`, but few and short ones."""
    few = functools.partial(simulate_clips, train=12, test=3, frames=13)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "simulate_clips", few)
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.json"
    path.write_text(json.dumps(SMALL.to_json()))
    return str(path)


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "head"
    words = ["--data", "clips:toy", "--seed", "4", "--recipe", recipe, "--steps", "2", "2", "--init-seed", "3"]
    main(["train", "--model", "emodiffhead", *words, "--out", str(out), QUIET])
    return out


def folder_of(name, place):
    """A folder that says it holds a model of a system; nothing of it is read but this."""
    place.mkdir()
    for part in ("weights.safetensors", "stats.safetensors", "config.json"):
        (place / part).touch()
    (place / "meta.json").write_text(json.dumps({"system": system(name).__name__}))
    return place


def animate(trained, out, *words):
    given = {"--image": "toy:5", "--audio": "toy:2:0.4", "--model": str(trained)}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    main(["animate", *(word for pair in given.items() for word in pair), "--out", str(out)])


def test_a_model_is_trained_as_the_words_say(trained):
    model = load_model(trained, "cpu")
    assert [(stage["name"], stage["steps"]) for stage in model.meta_["stages"]] == [("expression", 2), ("render", 2)]
    assert (model.recipe.expression.seed, model.recipe.render.seed) == (3, 3)
    run = model.meta_["run"]
    clips = opening.open_clips("clips:toy", opening.open_head("toy"), SMALL.size, 4)
    assert (run["data"], run["head"], run["seed"], run["split_hash"]) == ("clips:toy", "toy", 4, clips.split_hash)
    assert model.meta_["train_clips"] == sorted(clip.id for clip in clips.of("train"))
    assert model.head.fingerprint == clips.head.fingerprint


def test_a_run_goes_on_only_with_its_own_words(trained, recipe):
    words = ["--model", "emodiffhead", "--data", "clips:toy", "--seed", "4", "--recipe", recipe, "--init-seed", "3"]
    with pytest.raises(SystemExit, match=r"expected the recipe with which the run in .* began"):
        main(["train", *words, "--steps", "2", "3", "--out", str(trained), QUIET])


def test_a_trained_model_is_evaluated_on_its_own_data(trained, tmp_path, capsys, monkeypatch):
    short = {"partners": 1, "alphas": (0.0, 0.5, 1.0), "probe_pictures": 128, "probe_steps": 8, "grid_frames": 0}
    monkeypatch.setattr("brainmodels.evaluation.head_probes._LEAST_CLIPS", 1)
    monkeypatch.setattr("brainmodels.commands.clips.HeadSettings", functools.partial(HeadSettings, steps=1, **short))
    main(["evaluate", "--models", str(trained), "--resamples", "20", "--out", str(tmp_path), QUIET])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("EmoDiffHead ") and "copying the reference frame" in lines[0]
    assert any(line.startswith("EmoDiffHead: swap_leak") for line in lines)
    assert lines[-1] == str(tmp_path / "report.html")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["settings"]["data"] == "clips:toy" and record["data"]["name"] == "clips_toy_4"
    assert record["models"]["EmoDiffHead"]["meta"]["run"]["split_hash"] == record["data"]["split_hash"]


def test_other_train_clips_are_a_leak(trained, tmp_path, monkeypatch):
    more = functools.partial(simulate_clips, train=13, test=3, frames=13)
    monkeypatch.setattr(opening, "simulate_clips", more)
    with pytest.raises(SystemExit, match=r"expected the split [0-9a-f]{12} with which EmoDiffHead was trained, got"):
        main(["evaluate", "--models", str(trained), "--out", str(tmp_path), QUIET])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "clips:toy", "clips:toy"], "expected one data set for emodiffhead, got clips:toy, clips:toy"),
        (["--subject", "sim01"], "expected no subject with emodiffhead, which learns clips"),
        (["--features", "grid"], "expected no features with emodiffhead, which learns clips"),
        (["--data", "objects:tiny"], "expected clips:toy or clips:MANIFEST, got 'objects:tiny'"),
        (["--data", "simulated:tiny"], "expected clips:toy or clips:MANIFEST, got 'simulated:tiny'"),
        (["--data", "clips:none.csv"], "none.csv"),
        (["--head", "smpl"], "expected toy, flame:PATH, gnm:PATH, ict:PATH, got 'smpl'"),
        (["--steps", "3"], r"expected steps of 2 stages \(expression, render\), got 1 numbers"),
    ],
)
def test_words_that_do_not_fit_the_training(words, message, recipe, tmp_path):
    with pytest.raises(SystemExit, match=f"veca brain train: .*{message}"):
        main(["train", "--model", "emodiffhead", "--recipe", recipe, *words, "--out", str(tmp_path), QUIET])


def test_a_head_is_refused_by_systems_of_images_and_objects(tmp_path):
    for name, data, learnt in (("neuroflow", "simulated:tiny", "images"), ("neuro3d", "objects:tiny", "objects")):
        with pytest.raises(SystemExit, match=f"expected no head with {name}, which learns {learnt}, got ict:a"):
            main(["train", "--model", name, "--data", data, "--head", "ict:a", "--out", str(tmp_path), QUIET])


def test_words_that_do_not_fit_the_evaluation(trained, tmp_path):
    words = ["--out", str(tmp_path / "study"), QUIET]
    of_images = folder_of("neuroflow", tmp_path / "images")
    with pytest.raises(SystemExit, match="expected clips:toy or clips:MANIFEST for talking heads, got simulated:tiny"):
        main(["evaluate", "--models", str(trained), "--data", "simulated:tiny", *words])
    with pytest.raises(SystemExit, match="expected no subject with talking heads"):
        main(["evaluate", "--models", str(trained), "--subject", "sim01", *words])
    with pytest.raises(SystemExit, match=r"expected models of one kind of data, got .* of clips and .* of images"):
        main(["evaluate", "--models", str(trained), str(of_images), *words])
    with pytest.raises(SystemExit, match="folders with names of their own, got EmoDiffHead head twice"):
        main(["evaluate", "--models", str(trained), str(trained / "model"), *words])
    with pytest.raises(SystemExit, match="expected models of clips, such as emodiffhead, for clips:toy, got no model"):
        main(["evaluate", "--data", "clips:toy", *words])


def test_a_picture_talks_as_gif_and_as_arrays(trained, tmp_path, capsys, caplog):
    animate(trained, tmp_path / "a.npz", "--emotion", "joy", "--intensity", "0.8", "--seed", "7")
    assert "rendering on" in caplog.text and "s a step, about" in caplog.text
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert found["video"].shape[0] == 10 and found["fps"] == 25 and found["exp"].shape == (10, 12)
        video = found["video"]
    told = read_metadata(tmp_path / "a.npz")
    assert (told["synthetic"], told["seed"], told["intensity"]) == ("true", "7", "0.8")
    assert json.loads(told["emotion"]) == {"source": "label", "emotion": "happy", "alpha": 1.0}
    assert told["model"] == load_model(trained, "cpu").fingerprint
    animate(trained, tmp_path / "a.gif", "--emotion", "happy", "--intensity", "0.8", "--seed", "7")
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 10 and picture.size == video.shape[2:0:-1]
    assert read_metadata(tmp_path / "a.gif") == told


def test_a_mixture_weighs_the_emotions(trained, tmp_path):
    for name, word in (("both", "happy=0.5,surprise=0.3"), ("happy", "happy=0.5"), ("other", "surprise=0.3")):
        animate(trained, tmp_path / f"{name}.npz", "--emotion", word)
    animate(trained, tmp_path / "neutral.npz", "--emotion", EMOTIONS[0])
    both, happy, other, neutral = (
        np.load(tmp_path / f"{name}.npz")["exp"] for name in ("both", "happy", "other", "neutral")
    )
    np.testing.assert_allclose(both, happy + other - neutral, atol=1e-5)
    assert np.abs(both - happy).max() > 1e-3
    assert json.loads(read_metadata(tmp_path / "both.npz")["emotion"])["weights"] == {"happy": 0.5, "surprise": 0.3}


def test_the_mark_is_left_out_with_consent_alone(trained, tmp_path):
    animate(trained, tmp_path / "marked.npz")
    animate(trained, tmp_path / "plain.npz", "--consent", "This face is drawn, nobody is shown.")
    marked, plain = (np.load(tmp_path / f"{name}.npz")["video"] for name in ("marked", "plain"))
    assert plain.shape == (10, 16, 16, 3) and marked.shape[1] > 16
    assert read_metadata(tmp_path / "plain.npz")["consent"] == "This face is drawn, nobody is shown."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--emotion", "bored"], "bored"),
        (["--emotion", "happy=0.5,bored=0.3"], "bored"),
        (["--emotion", "happy=much"], "expected a number in 'happy=much', got 'much'"),
        (["--emotion", "happy=nan"], "expected a number in 'happy=nan', got 'nan'"),
        (["--emotion", "happy=0.5,happy=0.3"], "expected each emotion once"),
        (["--emotion", "happy=0.8,sad=0.8"], "expected intensities from 0 to 1, the largest trained sum, got 1.6"),
        (["--intensity", "1.5"], "expected intensities from 0 to 1, the largest trained sum, got 1.5"),
        (["--audio", "nothing.wav"], "expected a media file, got nothing at nothing.wav"),
        (["--audio", "toy:one"], "expected a whole number of 0 or more in 'toy:one', got 'one'"),
        (["--audio", "toy:1:inf"], "expected a number in 'toy:1:inf', got 'inf'"),
        (["--image", "toy:1.5"], "expected a whole number of 0 or more in 'toy:1.5', got '1.5'"),
        (["--image", "nothing.png"], "nothing.png"),
        (["--head", "smpl"], "expected toy, flame:PATH, gnm:PATH, ict:PATH, got 'smpl'"),
        (["--consent", "yes"], "expected consent as a sentence about who agreed, got 'yes'"),
    ],
)
def test_words_that_do_not_fit_the_animation(words, message, trained, tmp_path):
    with pytest.raises(SystemExit, match=f"veca brain animate: .*{message}"):
        animate(trained, tmp_path / "a.gif", *words)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_is_not_square_is_cropped_as_the_user_says(trained, tmp_path):
    face = tmp_path / "face.png"
    Image.fromarray(np.pad(drawn_face(1, 32), ((0, 0), (4, 12), (0, 0)))).save(face)
    with pytest.raises(SystemExit, match=r"expected a square picture of one face, got 48 x 32 px; .* crop=\(8, 0, 40"):
        animate(trained, tmp_path / "a.gif", "--image", str(face))
    words = ["--image", str(face), "--audio", "toy:2:0.4", "--model", str(trained), "--crop", "4", "0", "36", "32"]
    main(["animate", *words, "--out", str(tmp_path / "a.npz")])
    Image.fromarray(drawn_face(1, 32)).save(face)
    animate(trained, tmp_path / "b.npz", "--image", str(face))
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["video"] for name in "ab"))


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(SystemExit, match=r"expected the suffix of saved frames to be one of .*, got '\.avi'"):
        animate("no model", tmp_path / "a.avi")


def test_a_model_makes_its_own_drawn_head_again(tmp_path):
    head = ToyHead(mixing=None)
    clips = simulate_clips(head, train=2, test=0, frames=13, size=SMALL.size).of("train")
    short = replace(SMALL, expression=replace(SMALL.expression, steps=1), render=replace(SMALL.render, steps=1))
    EmoDiffHead(short, "cpu", head).fit(clips).save(tmp_path / "model")
    animate(tmp_path / "model", tmp_path / "a.npz")
    assert load_model(tmp_path / "model", "cpu").head.fingerprint == head.fingerprint


@pytest.mark.parametrize(("name", "kind"), [("neuro3d", "objects"), ("neuroflow", "images")])
def test_models_of_other_kinds_do_not_animate(name, kind, tmp_path):
    folder = folder_of(name, tmp_path / "model of another kind")
    with pytest.raises(SystemExit, match=f"expected a model of clips, such as emodiffhead, got one of {kind} in"):
        animate(folder, tmp_path / "a.gif")
