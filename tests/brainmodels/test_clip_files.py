"""The table that talking clips are read from, and coefficients that are made from a video."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from brainmodels.data.clip_files import _converted, expressions_from_mediapipe, read_manifest
from brainmodels.data.clips import split_clips
from brainmodels.data.media import write_mp4
from brainmodels.errors import AlignmentError, BrainDataError, LayoutError, LeakageError
from tests.brainmodels.clip_pictures import pictures

RATE = 16000
HEADER = "id,identity,sentence,video,audio,emotion,level,expressions"


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
