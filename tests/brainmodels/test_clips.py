"""Talking clips: what they check, their pictures, and how they are split."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from brainmodels.data.clips import (
    EMOTIONS,
    ClipSet,
    TalkingClip,
    alpha_of_level,
    emotion_name,
    frame_count,
    split_clips,
)
from brainmodels.errors import AlignmentError, AxisError, BrainDataError, IdError, LayoutError, LeakageError
from tests.brainmodels.clip_pictures import pictures

RATE = 16000


def clip(name="a", identity="ann", sentence="s1", count=5, fps: float = 25, samples=None, **fields):
    """A clip of noise."""
    rng = np.random.default_rng(len(name))
    given = {
        "exp": rng.normal(size=(count, 4)),
        "jaw": rng.normal(size=(count, 3)),
        "audio": rng.uniform(-0.5, 0.5, round(count * RATE / fps) if samples is None else samples),
        "sample_rate": RATE,
    }
    return TalkingClip(name, identity, sentence, fps, **{**given, **fields})


def crossed(people, sentences, own=0):
    """Every person says every sentence, and `own` sentences that nobody else says."""
    pairs = [(f"p{p}", f"s{s}") for p in range(people) for s in range(sentences)]
    pairs += [(f"p{p}", f"own{p}_{s}") for p in range(people) for s in range(own)]
    return [clip(f"{person}_{sentence}", person, sentence) for person, sentence in pairs]


# emotions and counts


def test_every_alias_leads_to_an_emotion():
    words = {"Anger": "angry", "ang": "angry", "happiness": "happy", "surprised": "surprise", " SAD ": "sad"}
    assert {word: emotion_name(word) for word in words} == words
    assert [emotion_name(name[:3]) for name in EMOTIONS] == list(EMOTIONS)
    for word, near in (("surprize", "; near: surprise"), ("none", "")):  # "none" is not known to be neutral
        with pytest.raises(BrainDataError, match=f"got '{word}'{near}"):
            emotion_name(word)


def test_alpha_of_levels():
    assert [alpha_of_level(level, "fear") for level in (1, 2, 3, None)] == [1 / 3, 2 / 3, 1, 1]
    assert alpha_of_level(3, "neutral") == 0 and alpha_of_level(2, None) is None
    with pytest.raises(BrainDataError, match="level to be one of 1, 2, 3, got 4"):
        alpha_of_level(4, "fear")


@pytest.mark.parametrize("fps", [24, 25, 29.97, 30])
@pytest.mark.parametrize("seconds", [0.001, 0.1, 0.2, 1, 2, 4, 10])
def test_frame_count_is_the_nearest_number(fps, seconds):
    count = frame_count(round(seconds * RATE), RATE, fps)
    counts = np.arange(1, 400)
    distance = np.abs(counts / fps - round(seconds * RATE) / RATE)
    assert distance[count - 1] == pytest.approx(distance.min())
    assert frame_count(1600, RATE, 25) == 3  # 2.5 is rounded up


# one clip


def test_sound_is_cut_or_filled_within_one_frame():
    exact = round(5 * RATE / 29.97)
    for samples in (exact - 533, exact - 1, exact, exact + 533):
        sound = np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)
        made = clip(fps=29.97, audio=sound)
        assert made.audio.shape == (exact,) and made.audio.dtype == np.float32
        kept = min(samples, exact)
        assert (made.audio[:kept] == sound[:kept]).all()
        assert not made.audio[kept:].any()
    for samples in (exact - 535, exact + 535):
        with pytest.raises(AlignmentError, match=r"audio of 0.167 s for the 5 frames of clip 'a' at 29.97 fps"):
            clip(fps=29.97, samples=samples)


def test_alpha_comes_from_the_level_or_is_given():
    assert (clip(emotion="anger", level=2).alpha == np.float32(2 / 3)).all()
    assert clip(emotion="anger", level=2).emotion == "angry"
    assert np.array_equal(clip(emotion="neutral", level=1).alpha, np.zeros(5))
    assert clip().alpha is None
    curve = np.linspace(0, 1, 5)
    assert (clip(emotion="sad", level=1, alpha=curve).alpha == curve.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"name": ""}, BrainDataError, "text as id"),
        ({"identity": ""}, BrainDataError, "text as identity"),
        ({"sentence": ""}, BrainDataError, "text as sentence"),
        ({"fps": float("nan"), "samples": 3200}, BrainDataError, "frames a second"),
        ({"exp": np.ones(5)}, AxisError, r"exp \(T, E\)"),
        ({"exp": np.ones((5, 0))}, AxisError, r"exp \(T, E\)"),
        ({"exp": np.full((5, 4), np.nan)}, BrainDataError, "finite exp of clip 'a', got other values in 5 frames"),
        ({"jaw": np.ones((4, 3))}, AxisError, r"jaw \(5, 0 or 3\) of clip 'a', got \(4, 3\)"),
        ({"jaw": np.ones((5, 1))}, AxisError, r"jaw \(5, 0 or 3\)"),
        ({"audio": np.zeros((3200, 2))}, AxisError, "clip 'a': .*mix channels"),
        ({"audio": np.zeros(0)}, AxisError, "the audio of clip 'a'"),
        ({"audio": np.zeros(3200, np.int16)}, BrainDataError, "int16"),
        ({"audio": np.full(3200, np.inf)}, BrainDataError, "finite"),
        ({"sample_rate": 0}, BrainDataError, "sample rate"),
        ({"emotion": "bored"}, BrainDataError, "expected an emotion"),
        ({"emotion": "sad", "level": 0}, BrainDataError, "level"),
        ({"emotion": "sad", "alpha": np.ones(4)}, AxisError, r"alpha \(5,\)"),
        ({"emotion": "sad", "alpha": -np.ones(5)}, BrainDataError, "0 or more"),
        ({"emotion": "neutral", "alpha": np.ones(5)}, BrainDataError, "neutral clip"),
        ({"pose": np.ones((5, 2))}, AxisError, "pose"),
        ({"mouth_box": np.ones((5, 3))}, AxisError, "mouth_box"),
        ({"mouth_box": np.tile([4, 1, 2, 3], (5, 1))}, BrainDataError, "smaller than the left"),
        ({"frames": np.zeros((5, 8, 8, 3))}, AxisError, r"uint8 \(T, H, W, 3\), got float64"),
        ({"frames": np.zeros((4, 8, 8, 3), np.uint8)}, AlignmentError, "5 pictures of clip 'a', got 4"),
    ],
)
def test_refused_clips(fields, error, match):
    with pytest.raises(error, match=match):
        clip(**fields)


def test_pictures_are_made_once():
    calls = []

    def draw():
        calls.append(1)
        return np.zeros((5, 8, 8, 3), np.uint8)

    made = clip(frames=draw)
    assert made.pictures() is made.pictures() and len(calls) == 1
    with pytest.raises(BrainDataError, match="got 'a' without"):
        clip().pictures()
    with pytest.raises(AlignmentError, match="5 pictures of clip 'a', got 4"):
        replace(made, frames=lambda: draw()[:4]).pictures()


def test_a_pickled_clip_leaves_pictures_behind(tmp_path):
    folder = pictures(tmp_path / "frames", 5)
    made = replace(clip(), frames=folder)
    before = len(pickle.dumps(made))
    made.pictures()
    again = pickle.loads(pickle.dumps(made))
    assert len(pickle.dumps(made)) == before and (again.pictures() == made.pictures()).all()


def test_folders_are_read_in_natural_order(tmp_path):
    folder = pictures(tmp_path / "frames", 12)
    (folder / "notes.txt").write_text("not a picture")
    found = replace(clip(count=12), frames=folder).pictures()
    assert found.shape == (12, 8, 8, 3) and found[:, 0, 0, 0].tolist() == list(range(0, 120, 10))
    assert replace(clip(count=11), frames=folder).pictures()[:, 0, 0, 0].tolist() == list(range(0, 110, 10))
    assert replace(clip(count=13), frames=folder).pictures()[:, 0, 0, 0].tolist() == [*range(0, 120, 10), 110]
    for frames in (10, 14):
        with pytest.raises(AlignmentError, match=f"{frames} pictures of clip 'a', got 12"):
            replace(clip(count=frames), frames=folder).pictures()


def test_refused_folders(tmp_path):
    with pytest.raises(LayoutError, match="no such file or folder"):
        replace(clip(), frames=tmp_path / "none").pictures()
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match=r"expected pictures .* in .*empty, got none"):
        replace(clip(), frames=tmp_path / "empty").pictures()
    folder = pictures(tmp_path / "sizes", 5)
    Image.new("RGB", (9, 8)).save(folder / "f3.png")
    with pytest.raises(AxisError, match=r"one size .* got \(8, 8\) and \(9, 8\) in f3.png"):
        replace(clip(), frames=folder).pictures()
    (folder / "f3.png").write_bytes(b"no picture")
    with pytest.raises(LayoutError, match=r"f3\.png"):
        replace(clip(), frames=folder).pictures()


# sets and splits


def test_parts_share_no_identity_and_no_sentence():
    clips = [clip("a", "ann", "s1"), clip("b", "ben", "s2"), clip("c", "cy", "s3"), clip("d", "dee", "s1")]
    made = ClipSet("x", tuple(clips), {"train": ("a",), "val": ("d",), "test": ("b",)})
    assert [x.id for x in made.of("train+val")] == ["a", "d"] and made.of("test") == [clips[1]]
    assert made.clip("c") is clips[2] and made.parts["val"] == ("d",)
    with pytest.raises(LeakageError, match="no sentence in both train and test of 'x', got 1, such as 's1'"):
        ClipSet("x", tuple(clips), {"train": ("a",), "test": ("b", "d")})
    with pytest.raises(LeakageError, match="no sentence"):
        ClipSet("x", tuple(clips), {"val": ("a",), "test": ("d",)})
    with pytest.raises(LeakageError, match="no identity in both"):
        ClipSet("x", (*clips, clip("e", "ann", "s5")), {"train": ("a",), "test": ("e",)})
    with pytest.raises(LeakageError, match="'a' in train and val"):
        ClipSet("x", tuple(clips), {"train": ("a",), "val": ("a",)})


def test_refused_sets(caplog):
    clips = (clip("a", "ann", "s1"), clip("b", "ben", "s2"))
    with pytest.raises(IdError, match="'a' twice"):
        ClipSet("x", (*clips, clip("a")), {})
    with pytest.raises(IdError, match="got 'bb'; near: b"):
        ClipSet("x", clips, {"test": ("bb",)})
    with pytest.raises(BrainDataError, match="part"):
        ClipSet("x", clips, {"held": ("a",)})
    with pytest.raises(BrainDataError, match="part"):
        ClipSet("x", clips, {}).of("all")
    with pytest.raises(AxisError, match=r"one number of coefficients \(E, J\), got \[\(4, 0\), \(4, 3\)\]"):
        ClipSet("x", (clips[0], clip("c", jaw=np.zeros((5, 0)))), {})
    with caplog.at_level(logging.WARNING):
        ClipSet("x", (clips[0], clip("c", estimator="deca")), {})
    assert "several estimators: deca, unknown" in caplog.text


def test_split_hash_depends_on_the_ids_of_the_parts():
    clips = (clip("a", "ann", "s1"), clip("b", "ben", "s2"), clip("c", "cy", "s3"))
    first = ClipSet("x", clips, {"train": ("a", "c"), "test": ("b",)})
    assert first.split_hash == ClipSet("y", clips, {"train": ("c", "a"), "test": ("b",)}).split_hash
    others = [{"train": ("a",), "test": ("b",)}, {"train": ("a",), "val": ("c",), "test": ("b",)}]
    assert len({first.split_hash, *(ClipSet("x", clips, parts).split_hash for parts in others)}) == 3


def test_split_holds_out_people_and_sentences(caplog):
    clips = crossed(10, 20)
    with caplog.at_level(logging.INFO):
        parts = split_clips(clips, 0.2, seed=3)
    made = ClipSet("x", tuple(clips), parts)  # raises where parts leak
    people, said = ({getattr(x, what) for x in made.of("test")} for what in ("identity", "sentence"))
    assert (len(people), len(said)) == (2, 4)
    assert len(made.of("test")) == 2 * 4 and len(made.of("train")) == 8 * 16 and not made.of("val")
    assert f"{200 - 8 - 128} of 200 clips are in no part" in caplog.text
    assert split_clips(clips[::-1], 0.2, seed=3)["test"] == parts["test"][::-1]
    assert split_clips(clips, 0.2, seed=4) != parts


def test_sentences_of_one_person_go_where_the_person_goes():
    parts = split_clips(crossed(5, 0, own=3), 0.2)
    assert (len(parts["train"]), len(parts["test"])) == (12, 3)
    both = crossed(5, 10, own=2)
    made = ClipSet("x", tuple(both), split_clips(both, 0.2))
    assert len(made.of("test")) == 2 + 2 and len(made.of("train")) == 4 * (2 + 8)


@pytest.mark.parametrize("clips", [crossed(1, 5), crossed(5, 1), []])
def test_what_cannot_be_split(clips):
    with pytest.raises(BrainDataError, match="two identities and two sentences"):
        split_clips(clips)


def test_a_split_keeps_clips_to_train_on():
    parts = split_clips(crossed(2, 2), 0.9)
    assert len(parts["train"]) == len(parts["test"]) == 1
    with pytest.raises(BrainDataError, match="between 0 and 1"):
        split_clips(crossed(2, 2), 1.0)
