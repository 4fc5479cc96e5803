"""Talking clips: what they check, how they are split, and the table and files they are read from."""

import logging
import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from brainmodels.data.clip_files import _converted, expressions_from_mediapipe, read_manifest
from brainmodels.data.clips import (
    EMOTIONS,
    ClipSet,
    TalkingClip,
    alpha_of_level,
    emotion_name,
    frame_count,
    split_clips,
)
from brainmodels.data.media import write_mp4
from brainmodels.errors import AlignmentError, AxisError, BrainDataError, IdError, LayoutError, LeakageError

RATE = 16000
HEADER = "id,identity,sentence,video,audio,emotion,level,expressions"


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


def pictures(folder, count, size=8, names="f{}.png"):
    """A folder of pictures: number k is grey of level 10 k."""
    folder.mkdir(parents=True)
    for k in range(count):
        Image.new("RGB", (size, size), (10 * k,) * 3).save(folder / names.format(k))
    return folder


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


# files


def table(folder, *lines, header=HEADER):
    """A table of clips; the coefficients and the sound of 5 frames beside it."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {"exp": rng.normal(size=(5, 4)), "jaw": rng.normal(size=(5, 3)), "fps": 25, "estimator": "deca"}
    np.savez(folder / "exp.npz", **arrays)
    np.savez(folder / "sound.npz", audio=rng.uniform(-0.5, 0.5, 3200), sample_rate=RATE)
    path = folder / "clips.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_a_table_of_folders_and_arrays(tmp_path):
    pictures(tmp_path / "frames", 5)
    path = table(
        tmp_path,
        "a,ann,s1,frames,sound.npz,surprised,2,exp.npz,train,CC0",
        "b,ben,s2,,sound.npz,,,exp.npz,test,",
        "c,cy,s1,,sound.npz,neutral,,exp.npz,,",
        header=HEADER + ",part,licence",
    )
    found = read_manifest(path)
    assert found.name == "clips" and found.parts == {"train": ("a",), "val": (), "test": ("b",)}
    first, second, third = found.clips
    assert (first.emotion, first.level, first.estimator, first.licence) == ("surprise", 2, "deca", "CC0")
    assert (
        (first.alpha == np.float32(2 / 3)).all() and np.array_equal(third.alpha, np.zeros(5)) and second.alpha is None
    )
    with np.load(tmp_path / "exp.npz") as arrays, np.load(tmp_path / "sound.npz") as sound:
        assert (first.exp == arrays["exp"].astype(np.float32)).all() and first.fps == 25
        assert (first.jaw == arrays["jaw"].astype(np.float32)).all()
        assert (first.audio == sound["audio"].astype(np.float32)).all() and first.sample_rate == RATE
    assert first.pictures()[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40] and second.frames is None


def test_a_table_without_parts_is_split(tmp_path):
    lines = [f"{p}{s},{p},{s},,sound.npz,,,exp.npz" for p in "abcd" for s in "wxyz"]
    found = read_manifest(table(tmp_path, *lines), test=0.25, seed=1)
    assert found.parts == split_clips(found.clips, 0.25, 1)
    assert (len(found.of("train")), len(found.of("test"))) == (9, 1)


def test_optional_arrays_of_coefficients(tmp_path):
    path = table(tmp_path, "a,ann,s1,,sound.npz,,,exp.npz,,", header=HEADER + ",part,licence")
    boxes = np.tile([1, 2, 3, 4], (5, 1))
    np.savez(
        tmp_path / "exp.npz", exp=np.ones((5, 4)), fps=25.0, estimator="mine", pose=np.ones((5, 3)), mouth_box=boxes
    )
    found = read_manifest(path).clips[0]
    assert found.jaw.shape == (5, 0) and (found.pose == 1).all() and (found.mouth_box == boxes).all()


def test_jitter_is_smoothed_where_that_is_asked_for(tmp_path):
    path = table(tmp_path, "a,ann,s1,,sound.npz,sad,1,exp.npz,", header=HEADER + ",part")
    raw, smooth = (read_manifest(path, smooth=frames).clips[0] for frames in (0, 1))
    weights = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    for name in ("exp", "jaw"):
        held = np.pad(getattr(raw, name), ((4, 4), (0, 0)), "edge")
        expected = sum(w * held[k : k + 5] for k, w in enumerate(weights / weights.sum()))
        np.testing.assert_allclose(getattr(smooth, name), expected, atol=1e-5)
    assert (smooth.audio == raw.audio).all() and smooth.level == 1 and smooth.pose is None
    with pytest.raises(BrainDataError, match="smooth of 0 frames or more, got -1"):
        read_manifest(path, smooth=-1)


@pytest.mark.parametrize(
    ("line", "error", "match"),
    [
        ("a,ann,s1,none.mp4,sound.npz,,,exp.npz", LayoutError, "line 2 of .*a video or a folder.*none.mp4"),
        ("a,ann,s1,,none.wav,,,exp.npz", LayoutError, "expected sound at .*none.wav"),
        ("a,ann,s1,,sound.npz,,,", LayoutError, "an empty field"),
        ("a,ann,s1,,,,,exp.npz", LayoutError, "empty field audio and no video file"),
        ("a,ann,s1,five,,,,exp.npz", LayoutError, "empty field audio and no video file"),
        ("a,ann,s1,frames,sound.npz,,,exp.npz", AlignmentError, "5 pictures .* within one frame, got 7"),
        ("a,ann,s1,,sound.npz,bored,,exp.npz", BrainDataError, "line 2 of .*expected an emotion"),
        ("a,ann,s1,,sound.npz,sad,4,exp.npz", BrainDataError, "level 1, 2, 3 or nothing, got '4'"),
        ("a,ann,s1,,sound.npz,sad,1,sound.npz", LayoutError, "expected the array 'exp' in .*sound.npz"),
        ("a,ann,s1,,exp.npz,sad,1,exp.npz", LayoutError, "expected the array 'audio' in .*exp.npz"),
        ("a,ann,s1,,long.npz,sad,1,exp.npz", AlignmentError, "line 2 of .*audio of 0.200 s for the 5 frames"),
        ("a,ann,s1,,sound.npz,sad,1", LayoutError, "8 fields in line 2"),
        ("a,ann,s1,,sound.npz,sad,1,exp.npz,more", LayoutError, "8 fields in line 2"),
        (",ann,s1,,sound.npz,sad,1,exp.npz", BrainDataError, "text as id"),
    ],
)
def test_refused_lines(line, error, match, tmp_path):
    path = table(tmp_path, line)
    pictures(tmp_path / "five", 5)
    pictures(tmp_path / "frames", 7)
    np.savez(tmp_path / "long.npz", audio=np.zeros(3200 + 641), sample_rate=RATE)
    with pytest.raises(error, match=match):
        read_manifest(path)


def test_refused_tables(tmp_path):
    with pytest.raises(LayoutError, match="got none"):
        read_manifest(tmp_path / "clips.csv")
    with pytest.raises(LayoutError, match=r"a column 'emotion' .*; near: emotions"):
        read_manifest(table(tmp_path, header=HEADER.replace("emotion", "emotions")))
    with pytest.raises(LayoutError, match="got 'mood'"):
        read_manifest(table(tmp_path, header=HEADER + ",mood"))
    with pytest.raises(LayoutError, match="a header alone"):
        read_manifest(table(tmp_path))
    line = "a,ann,s1,,sound.npz,,,exp.npz,holdout"
    with pytest.raises(BrainDataError, match=r"line 2 of .*part to be one of train, val, test, got 'holdout'"):
        read_manifest(table(tmp_path, line, header=HEADER + ",part"))
    lines = ["a,ann,s1,,sound.npz,,,exp.npz,train", "b,ben,s1,,sound.npz,,,exp.npz,test"]
    with pytest.raises(LeakageError, match="sentence"):
        read_manifest(table(tmp_path, *lines, header=HEADER + ",part"))


@pytest.mark.parametrize("fps", [25, 30000 / 1001])
def test_a_table_of_videos_with_sound(fps, tmp_path):
    pytest.importorskip("av")
    frames = np.zeros((40, 32, 32, 3), np.uint8)
    frames[20:] = 200
    times = np.arange(round(40 * RATE / fps)) / RATE
    sound = (0.5 * np.sin(2 * np.pi * 440 * times) * (times > 20 / fps)).astype(np.float32)
    path = table(tmp_path, "a,ann,s1,a.mp4,,,,exp.npz,", header=HEADER + ",part")
    write_mp4(tmp_path / "a.mp4", frames, fps, sound, RATE)
    np.savez(tmp_path / "exp.npz", exp=np.ones((40, 4)), fps=round(fps, 2), estimator="mine")
    found = read_manifest(path).clips[0]
    assert found.audio.shape == (round(40 * RATE / round(fps, 2)),)
    half = len(found.audio) // 2
    assert np.abs(found.audio[: half - 800]).max() < 0.02 and np.abs(found.audio[half + 800 :]).max() > 0.3
    grey = found.pictures().mean((1, 2, 3))
    assert len(grey) == 40 and grey[:20].max() < 30 and grey[20:].min() > 170
    with pytest.raises(AlignmentError, match=r"24 frames a second in .*a.mp4, got"):
        replace(found, fps=24, audio=np.zeros(40 * RATE // 24 + 1)).pictures()
    np.savez(tmp_path / "exp.npz", exp=np.ones((37, 4)), fps=round(fps, 2), estimator="mine")
    with pytest.raises(AlignmentError, match="for the 37 frames"):
        read_manifest(path)


@pytest.mark.parametrize(("suffix", "surplus", "fits"), [("m4a", 768, True), ("m4a", 1665, False), ("wav", 768, False)])
def test_what_a_codec_adds_to_sound_is_cut(suffix, surplus, fits, tmp_path, monkeypatch):
    path = table(tmp_path, f"a,ann,s1,,sound.{suffix},,,exp.npz,", header=HEADER + ",part")
    (tmp_path / f"sound.{suffix}").touch()
    sound = np.linspace(0, 0.5, 3200 + surplus).astype(np.float32)  # a frame has 640 samples
    monkeypatch.setattr("brainmodels.data.clip_files.read_audio", lambda path, rate: sound)
    if fits:
        assert (read_manifest(path).clips[0].audio == sound[:3200]).all()
    else:
        with pytest.raises(AlignmentError, match=r"audio of 0\.200 s"):
            read_manifest(path)


# MediaPipe


def landmarker_result(frame):
    """What the Face Landmarker returns, as far as it is read: the mouth moves right by one pixel a frame."""
    scores = {"_neutral": 0.0, "browDownLeft": 0.1 * frame, "browInnerUp": 0.5, "jawOpen": 0.02 * frame}
    points = [SimpleNamespace(x=0.9, y=0.9) for _ in range(478)]
    for number, (x, y) in {61: (10, 50), 291: (30, 50), 0: (20, 45), 17: (20, 60)}.items():
        points[number] = SimpleNamespace(x=(x + frame) / 100, y=y / 80)
    for number in (146, 91, 181, 84, 314, 405, 321, 375, 291, 185, 40, 39, 37, 267, 269, 270, 409):
        points[number] = points[number] if number == 291 else SimpleNamespace(x=(20 + frame) / 100, y=50 / 80)
    shapes = [SimpleNamespace(category_name=name, score=score) for name, score in scores.items()]
    return SimpleNamespace(face_blendshapes=[shapes], face_landmarks=[points])


def test_scores_become_coefficients(tmp_path):
    found = _converted(landmarker_result, 3, 25, (100, 80), None)
    assert found.names == ("_neutral", "browDownLeft", "browInnerUp", "jawOpen") and found.fps == 25
    np.testing.assert_allclose(found.exp[:, 1], [0, 0.1, 0.2], atol=1e-6)
    np.testing.assert_allclose(found.mouth_box, [[10 + k, 45, 30 + k, 60] for k in range(3)], atol=1e-4)
    names = ("jawOpen", "browInnerUp_L", "browInnerUp_R", "browDown_L", "tongueOut")
    named = _converted(landmarker_result, 3, 25, (100, 80), names)
    np.testing.assert_allclose(named.exp[2], [0.04, 0.5, 0.5, 0.2, 0], atol=1e-6)
    with pytest.raises(BrainDataError, match="that MediaPipe scores, got 'jawOpening'; near: jawOpen"):
        _converted(landmarker_result, 3, 25, (100, 80), ["jawOpening"])
    path = table(tmp_path, "a,ann,s1,,sound.npz,,,exp.npz,", header=HEADER + ",part")
    _converted(landmarker_result, 5, 25, (100, 80), names).save(tmp_path / "exp.npz")
    read = read_manifest(path).clips[0]
    assert read.estimator == "mediapipe" and read.jaw.shape == (5, 0)
    assert read.mouth_box is not None and (read.mouth_box[:3] == named.mouth_box).all()


def test_frames_without_a_face_are_named():
    empty = SimpleNamespace(face_blendshapes=[], face_landmarks=[])
    with pytest.raises(BrainDataError, match="a face in all 4 frames, got none in 2: 1, 3"):
        _converted(lambda k: empty if k % 2 else landmarker_result(k), 4, 25, (100, 80), None)


def test_without_mediapipe(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ImportError, match=r"pip install mediapipe, and fetch https://.*face_landmarker.task"):
        expressions_from_mediapipe(tmp_path / "a.mp4", tmp_path / "face_landmarker.task")
