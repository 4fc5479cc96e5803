"""The talking head that ships: its size, where it comes from, and that it shows emotions on faces it never saw."""

import numpy as np
import pytest

from brainmodels.cli import main
from brainmodels.data.media import read_metadata
from brainmodels.errors import BrainDataError
from brainmodels.evaluation.head_case import psnr, recomposed
from brainmodels.heads import ToyHead
from brainmodels.simulated.talking_head import simulate_clips
from brainmodels.systems import load_model, shipped_model

FOLDER = shipped_model("toy")
SEED = 77  # not that of the training


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER, "cpu")


def test_it_is_small_and_says_how_it_was_made(model):
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 8e6
    assert model.recipe.name == "nano" and model.recipe.size == 64
    assert model.meta_["run"]["data"] == "clips:toy" and model.meta_["head"]["fingerprint"] == ToyHead().fingerprint
    for stage in model.meta_["stages"]:
        assert stage["log"][-1]["step"] == stage["steps"] == getattr(model.recipe, stage["name"]).steps


def test_no_other_name_ships():
    with pytest.raises(BrainDataError, match="expected a model that ships, toy, got 'nano'"):
        shipped_model("nano")


@pytest.mark.parametrize("emotion", ["happy", "surprise", "angry"])
def test_it_shows_the_emotion_that_was_asked_for(model, emotion):
    """The change against a neutral face, along the exact one: 1 is exact, and 0 is the reference repeated."""
    head = ToyHead()
    clips = simulate_clips(head, train=1, test=2, size=64, frames=16, seed=SEED)
    reference, clip = clips.of("test")
    drawn, exact = [], []
    for name, alpha in ((emotion, 1.0), ("neutral", 0.0)):
        exp, jaw = recomposed(clips, clip.id, name, alpha)
        exact.append(clips.render(clip.id, exp, jaw) / 255.0)
        sound = {"sample_rate": clip.sample_rate, "every": 4}
        drawn.append(model.render(reference.pictures()[8], clip.audio, exp, jaw, **sound).video / 255.0)
    wanted, found = (exact[0] - exact[1])[::4], drawn[0] - drawn[1]
    assert (found * wanted).sum() / np.square(wanted).sum() > 0.5


def test_its_pictures_are_nearer_to_the_truth_than_the_reference(model):
    clips = simulate_clips(ToyHead(), train=1, test=4, size=64, frames=16, seed=SEED)
    reference, *others = clips.of("test")
    for clip in others:
        picture = reference.pictures()[8]
        found = model.render(picture, clip.audio, clip.exp, clip.jaw, sample_rate=clip.sample_rate).video
        truth = clip.pictures()
        assert psnr(found, truth) > psnr(np.repeat(picture[None], len(truth), 0), truth) + 2


def test_the_reference_gives_the_face_and_hardly_its_expression(model):
    """Of what two references of a person differ in by expression, a tenth stays; of what two people differ in, most."""
    clips = simulate_clips(ToyHead(), train=1, test=16, size=64, frames=16, seed=SEED)
    people = {clip.identity: clip for clip in clips.of("test")}.values()
    spoken = clips.of("test")[0]
    exp, jaw = recomposed(clips, spoken.id, "surprise", 0.6)

    def drawn(picture):
        options = {"sample_rate": spoken.sample_rate, "every": 4}
        return model.render(picture, spoken.audio, exp, jaw, **options).video.mean(0)

    def reference(clip, emotion):
        exp, jaw = recomposed(clips, clip.id, emotion, float(emotion != "neutral"))
        return clips.render(clip.id, exp, jaw)[8].astype(float)

    def kept(first, second):
        found = drawn(first.astype(np.uint8)) - drawn(second.astype(np.uint8))
        return (found * (first - second)).sum() / np.square(first - second).sum()

    pairs = [(reference(x, emotion), reference(x, "neutral")) for x in people for emotion in ("happy", "sad")]
    neutral = [second for _, second in pairs[::2]]
    assert np.mean([kept(*pair) for pair in pairs]) < 0.1
    assert np.mean([kept(neutral[0], other) for other in neutral[1:]]) > 0.8


def test_a_picture_talks_by_one_command(tmp_path):
    out = tmp_path / "happy.gif"
    main(
        [
            "animate",
            "--model",
            "toy",
            "--image",
            "toy:3",
            "--audio",
            "toy:5:0.5",
            "--emotion",
            "happy",
            "--out",
            str(out),
        ]
    )
    told = read_metadata(out)
    assert told["synthetic"] == "true" and '"emotion": "happy"' in told["emotion"]
