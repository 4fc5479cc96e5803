"""Frames as files: timing, sound, metadata and the mark that says that they are synthetic."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from brainmodels.data.animation import SUFFIXES, Frames, Motion
from brainmodels.data.media import read_audio, read_metadata, read_video
from brainmodels.data.synthetic import mark_synthetic
from brainmodels.errors import AxisError, BrainDataError

CONSENT = "The person shown agreed to this film on 2 May."
PROVENANCE = {
    "model": "a1b2c3d4e5f6",
    "seed": 7,
    "emotion": "happy",
    "intensity": np.float32(0.75),
    "versions": {"veca": "0.1"},
    "note": "fröhlich",
}
METADATA = {
    "model": "a1b2c3d4e5f6",
    "seed": "7",
    "emotion": "happy",
    "intensity": "0.75",
    "versions": '{"veca": "0.1"}',
    "note": "fröhlich",
    "synthetic": "true",
}
LETTERS = {  # of the mark, drawn here once more
    "S": (".####", "#....", "#....", ".###.", "....#", "....#", "####."),
    "Y": ("#...#", "#...#", ".#.#.", "..#..", "..#..", "..#..", "..#.."),
    "N": ("#...#", "##..#", "##..#", "#.#.#", "#..##", "#..##", "#...#"),
    "T": ("#####", "..#..", "..#..", "..#..", "..#..", "..#..", "..#.."),
    "H": ("#...#", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"),
    "E": ("#####", "#....", "#....", "####.", "#....", "#....", "#####"),
    "I": (".###.", "..#..", "..#..", "..#..", "..#..", "..#..", ".###."),
    "C": (".###.", "#...#", "#....", "#....", "#....", "#...#", ".###."),
}


def numbered(frames, size=32, width=None):
    """Black pictures with a grey dot in the first row, whose column is the number of the frame."""
    video = np.zeros((frames, size, width or size, 3), np.uint8)
    video[np.arange(frames), 0, np.arange(frames)] = 200
    return video


def frames_of(video=None, fps=25, **more):
    return Frames(numbered(5) if video is None else video, fps, more.pop("motion", None), PROVENANCE, **more)


def motion_of(frames, fps=25):
    values = np.random.default_rng(0).normal(size=(frames, 15)).astype(np.float32)
    return Motion(values[:, :12], values[:, 12:], np.arange(frames) / fps, fps)


def words_in(picture):
    """Rows of the mark's letters that are found in a picture (H, W, 3), read from left to right."""
    tiles = np.lib.stride_tricks.sliding_window_view((picture == 255).all(-1), (7, 5))
    found = {}
    for letter, rows in LETTERS.items():
        shape = np.array([list(row) for row in rows]) == "#"
        found |= {tuple(place): letter for place in np.argwhere((tiles == shape).all((2, 3))).tolist()}
    tops = sorted({top for top, _ in found})
    return ["".join(found[place] for place in sorted(found) if place[0] == top) for top in tops]


def delays_of(path):
    with Image.open(path) as picture:
        delays = []
        for number in range(picture.n_frames):
            picture.seek(number)
            delays.append(picture.info["duration"])
    return delays


def saved(frames, path, **more):
    if path.suffix == ".mp4":
        pytest.importorskip("av")
    return frames.save(path, **more)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ""])
def test_metadata_are_in_every_file(tmp_path, suffix):
    path = saved(frames_of(), tmp_path / "new" / f"happy{suffix}")
    assert path == tmp_path / "new" / f"happy{suffix}" and [*(tmp_path / "new").iterdir()] == [path]
    found = read_metadata(path)
    if not suffix:
        assert found.pop("fps") == "25.0"
        for number in range(5):
            assert read_metadata(path / f"{number:05d}.png") == METADATA
    assert found == METADATA
    plain = saved(frames_of(), tmp_path / f"plain{suffix}", mark=False, consent=f" {CONSENT} ")
    assert {**METADATA, "consent": CONSENT}.items() <= read_metadata(plain).items()


@pytest.mark.parametrize("suffix", [*SUFFIXES, ""])
def test_the_mark_is_absent_only_with_consent(tmp_path, suffix):
    """Exact pictures for the formats without loss. White on black is read from the others too."""
    path, frames = tmp_path / f"happy{suffix}", frames_of(numbered(5, 128))
    for consent in (None, "", "   ", "yes", True):
        with pytest.raises(BrainDataError, match="expected consent"):
            frames.save(path, mark=False, consent=consent)
    assert not list(tmp_path.iterdir())
    plain = tmp_path / f"plain{suffix}"
    for where, more, words in ((path, {}, ["SYNTHETIC"]), (plain, {"mark": False, "consent": CONSENT}, [])):
        shown = pictures_in(saved(frames, where, **more))
        assert len(shown) in (1, 5)
        for picture in shown:
            sharp = np.where(picture > 128, 255, 0) if suffix in (".mp4", ".gif") else picture
            assert words_in(sharp[-16:, -60:] if suffix != ".png" else sharp[100:128, :128]) == words


def pictures_in(path):
    """The pictures of a saved file, (T, H, W, 3)."""
    if path.suffix == ".mp4":
        return read_video(path)[0]
    if path.suffix == ".npz":
        return np.load(path)["video"]
    if path.is_dir():
        return np.stack([np.array(Image.open(file)) for file in sorted(path.glob("*.png"))])
    shown = []
    with Image.open(path) as picture:
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            shown.append(np.array(picture.convert("RGB")))
    return np.stack(shown)


def test_synthetic_cannot_be_denied(tmp_path):
    frames = Frames(numbered(2), 25, None, {"synthetic": False, "consent": "everybody, always"})
    assert frames.save(tmp_path / "a.png") and read_metadata(tmp_path / "a.png")["synthetic"] == "true"
    with pytest.raises(BrainDataError, match="expected consent"):
        frames.save(tmp_path / "b.png", mark=False)
    with pytest.raises(BrainDataError, match="differ in more than capitals, got Synthetic and synthetic"):
        Frames(numbered(2), 25, None, {"Synthetic": False})  # mp4 would keep only one of them


def test_a_folder_tells_its_own_rate(tmp_path):
    frames = Frames(numbered(2), 12.5, None, {"fps": 25})
    assert read_metadata(frames.save(tmp_path / "happy"))["fps"] == "12.5"


def test_marked_pictures_under_128_px_keep_every_pixel():
    rng = np.random.default_rng(0)
    for height, width in ((64, 64), (127, 127), (32, 32), (16, 16), (127, 300), (300, 127), (40, 55), (40, 54), (9, 7)):
        video = rng.integers(0, 255, (2, height, width, 3), dtype=np.uint8)  # without white
        frames = Frames(video, 25, None, {})
        marked = frames.marked()
        np.testing.assert_array_equal(marked[:, :height], video)
        np.testing.assert_array_equal(frames.video, video)
        assert marked.shape[2] == width and len(np.unique(marked[:, height:])) == 2
        lines = words_in(marked[1])
        assert "".join(lines) == "SYNTHETIC"
        assert len(lines) == {64: 1, 127: 1, 32: 2, 16: 5, 300: 1, 55: 1, 54: 2, 7: 9}[width]
    with pytest.raises(BrainDataError, match="pictures 7 or more px wide, which have room for the mark, got 6 px"):
        mark_synthetic(np.zeros((1, 6, 6, 3), np.uint8))


def test_larger_pictures_are_marked_in_the_corner():
    rng = np.random.default_rng(0)
    for height, width, scale in (
        (128, 128, 1),
        (255, 255, 1),
        (256, 256, 2),
        (128, 1280, 1),
        (1280, 128, 1),
        (500, 400, 3),
    ):
        video = rng.integers(0, 255, (2, height, width, 3), dtype=np.uint8)
        before = video.copy()
        marked = mark_synthetic(video)
        np.testing.assert_array_equal(video, before)
        corner = np.zeros((height, width), bool)
        corner[height - 9 * scale :, width - 55 * scale :] = True
        np.testing.assert_array_equal(marked[:, ~corner], video[:, ~corner])
        assert words_in(marked[1, height - 9 * scale :: scale, width - 55 * scale :: scale]) == ["SYNTHETIC"]


@pytest.mark.parametrize("fps", [25, 30, 29.97, 24, 60, 50, 20, 15, 12.5, 10, 5])
def test_gif_lasts_as_long_as_the_video(tmp_path, caplog, fps):
    frames = frames_of(numbered(100, 32, 100), fps)
    with caplog.at_level(logging.INFO, "brainmodels"):
        path = frames.save(tmp_path / "happy.gif")
    delays = np.array(delays_of(path)) / 1000
    assert delays.sum() == pytest.approx(100 / fps, rel=0.01)
    rate = min((25, 20, 12.5, 10), key=lambda rate: abs(np.log(rate / fps)))
    told = [text for text in caplog.messages if text.startswith("writing happy.gif at")]
    if rate == fps:
        assert not told
    else:
        assert told == [
            f"writing happy.gif at {rate:g} frames per second instead of {fps:.4g}: factor {rate / fps:.4g}"
        ]
    assert delays[:-1] == pytest.approx(np.round(delays[:-1] * rate) / rate, abs=1e-9), "Pillow joins equal frames"
    assert delays.min() >= 0.02
    # at each moment the frame of that moment is shown, to one frame of the slower of both rates
    numbers = pictures_in(path)[:, 0, :, 0].argmax(-1)
    starts = np.concatenate(([0], np.cumsum(delays)[:-1]))
    np.testing.assert_allclose(numbers, starts * fps, atol=max(1, fps / rate) + 0.01)


@pytest.mark.parametrize("frames", [1, 8, 32])
def test_short_gifs(tmp_path, frames):
    for fps in (25, 30):
        path = frames_of(numbered(frames), fps).save(tmp_path / "short.gif")
        total = sum(delays_of(path)) / 1000
        assert total == pytest.approx(frames / fps, abs=0.0051), "a hundredth is the unit of GIF"
        if frames == 32:
            assert total == pytest.approx(frames / fps, rel=0.01)


def test_gif_shows_colors_of_all_pictures(tmp_path):
    """Each picture has colours of its own, and still parts stay still."""
    video = np.zeros((24, 32, 32, 3), np.uint8)
    video[..., :16, :] = np.random.default_rng(0).integers(0, 256, (24, 1, 1, 3))
    video[..., 16:, :] = np.arange(0, 256, 16)[:, None]
    frames = frames_of(video)
    found = pictures_in(frames.save(tmp_path / "happy.gif")).astype(int)
    assert np.abs(found - frames.marked()).max() <= 8
    assert (found[:, :, 16:] == found[:1, :, 16:]).all()


def test_gif_does_not_flicker_below_what_moves(tmp_path):
    """The still part has more colours than a GIF, so that dithering would carry differences into it."""
    rng = np.random.default_rng(0)
    video = np.empty((6, 32, 32, 3), np.uint8)
    video[:, :8] = rng.integers(0, 256, (6, 8, 32, 3))
    video[:, 8:] = rng.integers(0, 256, (24, 32, 3))
    found = pictures_in(frames_of(video).save(tmp_path / "happy.gif"))
    assert (found[:, 8:] == found[:1, 8:]).all() and not (found[:, :8] == found[:1, :8]).all()


def test_sheet_has_the_pictures_in_order(tmp_path, caplog):
    frames = frames_of(numbered(7, 30, 64))
    sheet = pictures_in(frames.save(tmp_path / "sheet.png"))[0]
    high, wide = frames.marked().shape[1:3]
    assert sheet.shape == (3 * high + 4, 3 * wide + 4, 3)
    for number, picture in enumerate(frames.marked()):
        top, left = number // 3 * (high + 2), number % 3 * (wide + 2)
        np.testing.assert_array_equal(sheet[top : top + high, left : left + wide], picture)
    assert (sheet[2 * high + 4 :, wide + 2 :] == 255).all() and (sheet[high : high + 2] == 255).all()
    with caplog.at_level(logging.INFO, "brainmodels"):
        sheet = pictures_in(frames_of(numbered(127, 128)).save(tmp_path / "long.png"))[0]
    assert "long.png shows 64 of 127 pictures" in caplog.text
    numbers = [np.flatnonzero(row[:, 0] == 200) % 130 for row in sheet[::130]]
    np.testing.assert_array_equal(np.concatenate(numbers), np.linspace(0, 126, 64))
    one = pictures_in(frames_of(numbered(1, 128)).save(tmp_path / "one.png"))
    np.testing.assert_array_equal(one, frames_of(numbered(1, 128)).marked())


def test_npz_has_everything(tmp_path):
    motion, audio = motion_of(5), np.random.default_rng(1).uniform(-1, 1, 3200).astype(np.float32)
    frames = frames_of(motion=motion, audio=audio, sample_rate=16000)
    with np.load(frames.save(tmp_path / "happy.npz"), allow_pickle=False) as found:
        expected = {
            "video": frames.marked(),
            "exp": motion.exp,
            "jaw": motion.jaw,
            "times": motion.times,
            "audio": audio,
        }
        assert set(found.files) == {*expected, "fps", "sample_rate", "provenance"}
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
        assert (found["fps"], found["sample_rate"]) == (25, 16000)
        assert json.loads(str(found["provenance"])) == METADATA
    with np.load(frames_of().save(tmp_path / "bare.npz"), allow_pickle=False) as found:
        assert set(found.files) == {"video", "fps", "provenance"}
    exact = frames.save(tmp_path / "exact.npz", mark=False, consent=CONSENT)
    np.testing.assert_array_equal(np.load(exact)["video"], frames.video)


def test_folder_has_the_pictures_and_is_never_replaced(tmp_path):
    frames = frames_of(numbered(3, 128))
    path = frames.save(tmp_path / "happy")
    assert sorted(file.name for file in path.iterdir()) == ["00000.png", "00001.png", "00002.png", "provenance.json"]
    np.testing.assert_array_equal(pictures_in(path), frames.marked())
    for taken in (path, tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(FileExistsError, match="expected a new folder for the pictures, got"):
            frames_of().save(taken)
    np.testing.assert_array_equal(pictures_in(path), frames.marked())
    (tmp_path / "empty").mkdir()
    assert len(pictures_in(frames.save(tmp_path / "empty"))) == 3


def test_mp4_has_pictures_sound_and_mark_in_sync(tmp_path):
    pytest.importorskip("av")
    video = np.full((25, 128, 128, 3), 30, np.uint8)
    video[10:] = 220
    audio = np.zeros(16000, np.float32)
    audio[6400] = 0.9  # the start of frame 10
    frames = frames_of(video, audio=audio, sample_rate=16000)
    path = frames.save(tmp_path / "happy.mp4")
    found, fps = read_video(path)
    assert fps == 25 and np.abs(found - frames.marked().astype(float)).mean() < 2
    assert np.argmax(found[:, :64].mean((1, 2, 3)) > 125) == 10
    assert np.abs(read_audio(path)).argmax() == pytest.approx(6400, abs=32)


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    for name in ("happy.avi", "happy.jpg", "happy.mp"):
        with pytest.raises(BrainDataError, match=rf"to be one of .mp4, .gif, .png, .npz, .* got '\{name[5:]}'"):
            frames_of().save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    assert frames_of().save(tmp_path / "HAPPY.PNG").is_file()


@pytest.mark.parametrize("suffix", [".gif", ".png", ".npz", ""])
def test_a_file_that_fails_leaves_the_older_one(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"happy{suffix}"
    before = None
    if suffix:
        before = frames_of().save(path).read_bytes()

    def fails(self, path, *_, **__):
        path.write_bytes(b"half") if hasattr(path, "write_bytes") else path.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("PIL.Image.Image.save", fails)
    monkeypatch.setattr("numpy.savez_compressed", lambda file, **_: fails(None, file))
    with pytest.raises(OSError, match="no space left"):
        frames_of(numbered(9)).save(path)
    assert [*tmp_path.iterdir()] == ([path] if suffix else []) and (not suffix or path.read_bytes() == before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"video": np.zeros((2, 4, 4))}, AxisError, r"video of shape \(T, H, W, 3\), got \(2, 4, 4\)"),
        ({"video": np.zeros((2, 8, 8, 3))}, BrainDataError, "video of dtype uint8, got float64"),
        ({"fps": 0}, BrainDataError, "a positive number of frames per second, got 0"),
        ({"fps": np.inf}, BrainDataError, "got inf"),
        ({"motion": motion_of(4)}, AxisError, "a motion of 5 frames, as the video has, got 4"),
        ({"audio": np.zeros(9)}, BrainDataError, "audio together with its sample_rate"),
        ({"audio": np.zeros((9, 2)), "sample_rate": 16000}, AxisError, r"got \(9, 2\)"),
        ({"audio": np.zeros(9), "sample_rate": 0}, BrainDataError, "positive sample rate"),
        ({"provenance": {"a b": 1}}, BrainDataError, "got 'a b'"),
        ({"provenance": {"model": object()}}, BrainDataError, "provenance that JSON can hold, got model = <object"),
    ],
)
def test_frames_that_are_refused(change, error, message):
    good = {"video": numbered(5), "fps": 25, "motion": motion_of(5), "provenance": PROVENANCE}
    assert len(Frames(**good)) == 5
    with pytest.raises(error, match=message):
        Frames(**{**good, **change})


def test_motions_that_are_refused():
    exp, jaw, times = np.zeros((4, 12)), np.zeros((4, 0)), np.arange(4) / 25
    assert len(Motion(exp, jaw, times, 25)) == 4
    for parts in (
        (exp[:3], jaw, times),
        (exp, jaw[:, 0:0].ravel(), times),
        (exp, jaw, times[:3]),
        (exp[0], jaw, times),
    ):
        with pytest.raises(AxisError, match=r"expected exp \(T, E\), jaw \(T, J\) and times \(T,\), got"):
            Motion(*parts, 25)
    with pytest.raises(BrainDataError, match="finite exp of the motion"):
        Motion(exp * np.nan, jaw, times, 25)
    with pytest.raises(BrainDataError, match="positive number of frames per second"):
        Motion(exp, jaw, times, -1)
