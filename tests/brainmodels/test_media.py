"""Sound, video and pictures: written, read back, and refused."""

import io
import logging
import struct
import sys
import wave
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from brainmodels.data.media import read_audio, read_metadata, read_video, square_picture, to_rate, write_mp4
from brainmodels.errors import AlignmentError, AxisError, BrainDataError, LayoutError

RATE = 16000


def smooth_video(frames=10, height=48, width=64):
    """Pictures that change slowly in space, and from frame to frame."""
    t, y, x = np.ogrid[:frames, :height, :width]
    colors = 128 + 100 * np.sin(x / 20 + t / 3), 60 + 50 * np.cos(y / 15 - t), 200 * x / width
    return np.stack(np.broadcast_arrays(*colors), -1).round().astype(np.uint8)


def click_at(seconds, duration, rate):
    audio = np.zeros(round(duration * rate))
    audio[round(seconds * rate)] = 0.9
    return audio


def write_wav(path, channels, rate):
    """16-bit sound from (channels, n) in [-1, 1], through the standard library."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.transpose(channels) * 32767).round().astype("<i2").tobytes())
    return path


def changed(path, place, content):
    """The same file with other bytes at a place."""
    raw = bytearray(path.read_bytes())
    raw[place : place + len(content)] = content
    path.write_bytes(raw)


def test_a_resampled_tone_is_the_tone_at_the_other_rate():
    for rate, new_rate in ((44100, 16000), (8000, 16000), (22050, 16000), (16000, 12345)):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
        found = to_rate(tone, rate, new_rate)
        assert found.dtype == np.float32 and len(found) == -(-len(tone) * new_rate // rate)
        inner = slice(len(found) // 10, -len(found) // 10)
        expected = np.sin(2 * np.pi * 440 * np.arange(len(found)) / new_rate)
        np.testing.assert_allclose(found[inner], expected[inner], atol=2e-3)
    noise = np.random.default_rng(0).normal(size=100).astype(np.float32)
    np.testing.assert_array_equal(to_rate(noise, RATE, float(RATE)), noise)


@pytest.mark.parametrize(
    ("audio", "rate", "error", "message"),
    [
        (np.zeros((100, 2)), RATE, AxisError, r"mono samples of shape \(n,\), got \(100, 2\)"),
        (np.zeros(0), RATE, AxisError, r"got \(0,\)"),
        (np.zeros(9, np.int16), RATE, BrainDataError, "floating samples of full scale 1, got int16"),
        (np.full(9, 3000.0), RATE, BrainDataError, "a peak of 3000"),
        (np.array([0, np.nan]), RATE, BrainDataError, "expected finite samples, got 1 that"),
        (np.zeros(9), 0, BrainDataError, "positive sample rate"),
        (np.zeros(9), 16000.5, BrainDataError, "an integer, got 16000.5"),
        (np.zeros(9), np.inf, BrainDataError, "an integer, got inf"),
        (np.zeros(9), "16k", BrainDataError, "an integer, got '16k'"),
    ],
)
def test_sound_that_is_refused(audio, rate, error, message):
    with pytest.raises(error, match=message):
        to_rate(audio, rate, 8000)


def test_channels_are_mixed_within_full_scale(tmp_path):
    """FFmpeg's own mix of float channels is 3 dB too loud for two equal ones."""
    pytest.importorskip("av")
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    for channels in (1, 2, 6):
        found = read_audio(write_wav(tmp_path / "tone.wav", [tone] * channels, 44100))
        assert found.dtype == np.float32 and len(found) == RATE
        np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=1e-3)
    left = read_audio(write_wav(tmp_path / "left.wav", [tone, 0 * tone], 44100))
    np.testing.assert_allclose(left[200:-200], expected[200:-200] / 2, atol=1e-3)


def test_mp4_has_the_pictures_and_the_rate(tmp_path):
    pytest.importorskip("av")
    video = smooth_video(30)
    for fps in (25, 30, 29.97, 30000 / 1001, 23.976, 12.5):
        found, rate = read_video(write_mp4(tmp_path / "new" / "video.mp4", video, fps))
        assert found.shape == video.shape and found.dtype == np.uint8
        assert rate == pytest.approx(fps, rel=1e-6)
        errors = np.abs(found.astype(float) - video).mean((1, 2, 3))
        assert errors.max() < 3
    later = np.abs(found[:-1].astype(float) - video[1:]).mean()
    assert later > 10, "a lag of one frame would pass"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["video.mp4"]


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 44101, 48000, 96000])
def test_sound_of_any_rate_stays_in_sync(tmp_path, rate):
    """A click and a flash at 0.52 s, the start of frame 13 at 25 per second."""
    pytest.importorskip("av")
    video = np.full((50, 32, 32, 3), 30, np.uint8)
    video[13:] = 220
    path = write_mp4(tmp_path / "flash.mp4", video, 25, click_at(0.52, 2, rate), rate)
    found, fps = read_video(path)
    audio = read_audio(path, 48000)
    assert len(audio) == 2 * 48000, "the encoder's padding is cut"
    assert np.abs(audio).argmax() / 48000 == pytest.approx(0.52, abs=2e-3)
    assert np.argmax(found.mean((1, 2, 3)) > 125) / fps == 0.52


@pytest.mark.parametrize("seconds", [0.0001, 0.1, 3])
def test_sound_may_be_shorter_or_longer_than_the_video(tmp_path, seconds):
    pytest.importorskip("av")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, max(1, round(seconds * RATE)))
    path = write_mp4(tmp_path / "video.mp4", smooth_video(25), 25, noise, RATE)
    assert len(read_audio(path)) == pytest.approx(len(noise), abs=15)  # mp4 counts these in milliseconds
    assert len(read_video(path)[0]) == 25


def test_late_sound_and_early_sound_are_put_in_place(tmp_path):
    """A Matroska file whose sound starts 0.2 s after the pictures or before them."""
    av = pytest.importorskip("av")
    for sound, pictures in ((0.2, 0.0), (0.0, 0.2)):
        path = tmp_path / "shifted.mkv"
        with av.open(str(path), "w") as file:
            video, voice = file.add_stream("mpeg4", rate=25), file.add_stream("pcm_s16le", rate=RATE, layout="mono")
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for number in range(10):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = number + round(25 * pictures), Fraction(1, 25)
                file.mux(video.encode(frame))
            file.mux(video.encode(None))
            samples = (click_at(0.3, 0.6, RATE) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, round(sound * RATE), Fraction(1, RATE)
            file.mux(voice.encode(frame))
            file.mux(voice.encode(None))
        audio = read_audio(path)
        assert np.abs(audio).argmax() / RATE == pytest.approx(0.3 + sound - pictures, abs=1e-3)
        assert len(audio) / RATE == pytest.approx(0.6 + sound - pictures, abs=1e-3)


def test_odd_sizes_are_padded_by_the_edge(tmp_path, caplog):
    pytest.importorskip("av")
    video = smooth_video(3, 33, 17)
    with caplog.at_level(logging.INFO, "brainmodels"):
        found, _ = read_video(write_mp4(tmp_path / "odd.mp4", video, 25))
        assert "padding pictures of 17 x 33 px to even sizes" in caplog.text
        caplog.clear()
        read_video(write_mp4(tmp_path / "even.mp4", video[:, :32, :16], 25))
        assert not caplog.text
    assert found.shape == (3, 34, 18, 3)
    expected = np.pad(video, ((0, 0), (0, 1), (0, 1), (0, 0)), "edge").astype(float)
    assert np.abs(found - expected).mean() < 4
    assert np.abs(found[:, -1] - expected[:, -1]).mean() < 8 and np.abs(found[:, :, -1] - expected[:, :, -1]).mean() < 8


def test_peaks_beyond_full_scale_are_clipped_and_told(tmp_path, caplog):
    av = pytest.importorskip("av")
    loud = 1.5 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)
    with caplog.at_level(logging.INFO, "brainmodels"):
        path = write_mp4(tmp_path / "loud.mp4", smooth_video(25), 25, loud, RATE)
    assert "clipping sound with a peak of 1.5" in caplog.text
    with av.open(str(path)) as file:
        stored = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    assert 0.9 < np.abs(stored).max() < 1.2, "AAC overshoots a little"
    assert np.abs(read_audio(path)).max() <= 1


def test_metadata_of_mp4_are_text_by_name(tmp_path):
    pytest.importorskip("av")
    metadata = {
        "synthetic": "true",
        "Emotion": "fröhlich\n2",
        "title": "x",
        "empty": "",
        "versions": '{"numpy": "2.0"}',
    }
    path = write_mp4(tmp_path / "video.mp4", smooth_video(2), 25, metadata=metadata)
    assert read_metadata(path) == metadata
    for wrong, message in (({"a b": "x"}, "'a b'"), ({"": "x"}, "got ''"), ({"a": 1}, "metadata a, got 1")):
        with pytest.raises(BrainDataError, match=message):
            write_mp4(path, smooth_video(2), 25, metadata=wrong)
    for name in ("encoder", "Encoder"):
        with pytest.raises(BrainDataError, match=f"other names than those of mp4 itself, got {name}"):
            write_mp4(path, smooth_video(2), 25, metadata={name: "mine"})
    assert read_metadata(path) == metadata, "the older file is as it was"


def test_what_write_mp4_refuses(tmp_path):
    pytest.importorskip("av")
    video, path = smooth_video(2), tmp_path / "video.mp4"
    shapes = ((video[0], AxisError), (video[:0], AxisError), (video[..., :1], AxisError))
    for pictures, error in (*shapes, (video / 255, BrainDataError)):
        with pytest.raises(error, match="expected pictures of"):
            write_mp4(path, pictures, 25)
    for fps in (0, -25, np.nan, 1000):
        with pytest.raises(BrainDataError, match="expected 1 to 240 pictures per second"):
            write_mp4(path, video, fps)
    for sound in ({"audio": np.zeros(9)}, {"sample_rate": RATE}):
        with pytest.raises(BrainDataError, match="audio together with its sample_rate"):
            write_mp4(path, video, 25, **sound)
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_midway_is_not_there(tmp_path, monkeypatch):
    pytest.importorskip("av")

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr("brainmodels.data.mp4._video_frame", fails)
    with pytest.raises(OSError, match="no space left"):
        write_mp4(tmp_path / "video.mp4", smooth_video(2), 25)
    assert not list(tmp_path.iterdir())


def test_pictures_are_turned_upright(tmp_path):
    """The matrix of a phone that was held upright: a quarter turn clockwise."""
    pytest.importorskip("av")
    video = np.zeros((2, 32, 64, 3), np.uint8)
    video[:, :8, :16] = 255  # upper left
    path = write_mp4(tmp_path / "turned.mp4", video, 25)
    place = path.read_bytes().index(b"tkhd") + 44  # the matrix follows 40 bytes of times, layer and volume
    changed(path, place, struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30))
    found, _ = read_video(path)
    assert found.shape == (2, 64, 32, 3)
    assert found[:, :8, -8:].min() > 240 and found[:, :8, :8].max() < 15 and found[:, -8:].max() < 15


def test_pictures_at_a_varying_rate_are_refused(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "varying.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for place in (*range(10), *range(20, 30)):  # a phone that took no picture for 0.4 s
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(AlignmentError, match=r"constant rate in .*varying.mkv, got one [\d.]+ frames from its place"):
        read_video(path)


def test_files_that_are_no_media_are_named(tmp_path):
    av = pytest.importorskip("av")
    for read in (read_audio, read_video, read_metadata):
        with pytest.raises(LayoutError, match=r"got nothing at .*none.mp4"):
            read(tmp_path / "none.mp4")
    good = write_mp4(tmp_path / "good.mp4", smooth_video(50), 25, click_at(1, 2, RATE), RATE)
    for name, content in (("text.mp4", b"hello" * 99), ("empty.mp4", b""), ("cut.mp4", good.read_bytes()[:-500])):
        (tmp_path / name).write_bytes(content)
        for read in (read_audio, read_video, read_metadata):
            with pytest.raises(LayoutError, match=f"complete media file at .*{name}, got: "):
                read(tmp_path / name)
    silent = write_mp4(tmp_path / "silent.mp4", smooth_video(2), 25)
    with pytest.raises(LayoutError, match=r"expected sound in .*silent.mp4, got a file without an audio stream"):
        read_audio(silent)
    with pytest.raises(LayoutError, match=r"expected pictures in .*tone.wav, got a file without a video stream"):
        read_video(write_wav(tmp_path / "tone.wav", [np.zeros(99)], RATE))
    # with the index in front, a file that was cut opens without an error
    front, cut = tmp_path / "front.mp4", tmp_path / "cut_front.mp4"
    with av.open(str(good)) as source, av.open(str(front), "w", options={"movflags": "faststart"}) as copy:
        streams = {stream.index: copy.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                copy.mux(packet)
    with av.open(str(front)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.pos is not None]
    cut.write_bytes(front.read_bytes()[: places[len(places) // 2]])  # between two pictures
    with pytest.raises(LayoutError, match=r"expected 2.00 s of sound in .*cut_front.mp4, got .* it is truncated"):
        read_audio(cut)
    with pytest.raises(LayoutError, match=r"expected 50 pictures in .*cut_front.mp4, .* got \d+; it is truncated"):
        read_video(cut)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "video.mp4").write_bytes(b"hello")
    for read in (read_audio, read_video, read_metadata):
        with pytest.raises(ImportError, match=r"reading .* needs av; install it with: pip install 'veca\[face\]'"):
            read(tmp_path / "video.mp4")
    with pytest.raises(ImportError, match="writing mp4 needs av"):
        write_mp4(tmp_path / "video.mp4", smooth_video(2), 25)


def test_metadata_of_foreign_files(tmp_path):
    picture = Image.new("RGB", (4, 4))
    picture.save(tmp_path / "bare.png")
    picture.save(tmp_path / "bare.gif")
    picture.save(tmp_path / "told.gif", comment=b"by hand")
    np.savez(tmp_path / "bare.npz", x=np.zeros(2))
    assert [read_metadata(tmp_path / name) for name in ("bare.png", "bare.gif", "bare.npz")] == [{}, {}, {}]
    assert read_metadata(tmp_path / "told.gif") == {"comment": "by hand"}
    for suffix in ("png", "gif", "npz"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"hello")
        with pytest.raises(LayoutError, match=rf"bad.{suffix}, got"):
            read_metadata(tmp_path / f"bad.{suffix}")
    (tmp_path / "face.jpg").write_bytes(b"")
    with pytest.raises(BrainDataError, match=r"to be one of .mp4, .gif, .png, .npz, got '.jpg'"):
        read_metadata(tmp_path / "face.jpg")


def test_the_same_picture_in_all_forms(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "face.png")
    files = tmp_path / "face.png", str(tmp_path / "face.png")
    for form in (picture, picture / 255, (picture / 255).astype(np.float32), Image.fromarray(picture), *files):
        found = square_picture(form)
        np.testing.assert_array_equal(found, picture)
        assert found.dtype == np.uint8 and not np.shares_memory(found, picture)
    grey = picture[..., 0]
    for form in (grey, grey[..., None], grey / 255, Image.fromarray(grey)):
        np.testing.assert_array_equal(square_picture(form), np.stack([grey] * 3, -1))


def test_transparent_pixels_lie_over_white():
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[..., 0] = 200
    picture[:, :2, 3], picture[:, 2:, 3] = 255, 0
    for form in (picture, picture / 255, Image.fromarray(picture)):
        found = square_picture(form)
        assert (found[:, :2] == (200, 0, 0)).all() and (found[:, 2:] == 255).all()


def test_a_turned_photograph_is_upright_before_the_crop():
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:4, :4] = 255  # upper left, which a quarter turn clockwise brings to the upper right
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "PNG", exif=exif)
    found = square_picture(Image.open(stored), crop=(0, 0, 8, 8))
    assert (found[:4, 4:] == 255).all() and found.sum() == 16 * 3 * 255


def test_a_picture_that_is_not_square_offers_a_crop():
    picture = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    with pytest.raises(
        ValueError, match=r"got 20 x 10 px; .* crop=\(left, top, right, bottom\), .* crop=\(5, 0, 15, 10\)"
    ):
        square_picture(picture)
    np.testing.assert_array_equal(square_picture(picture, crop=(5, 0, 15, 10)), picture[:, 5:15])
    np.testing.assert_array_equal(square_picture(picture, crop=(1, 2, 4, 5)), picture[2:5, 1:4])
    for crop in ((0, 0, 11, 11), (5, 0, 16, 10), (-1, 0, 9, 10), (5, 5, 5, 5), (15, 0, 5, 10), (15, 0, 25, 10)):
        with pytest.raises(BrainDataError, match="expected a square crop"):
            square_picture(picture, crop=crop)
    for crop in ((0, 0, 10), (0.0, 0, 10, 10)):
        with pytest.raises(BrainDataError, match="as integers, got"):
            square_picture(picture, crop=crop)


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (np.full((4, 4, 3), np.nan), BrainDataError, "floating pixels in .0, 1., got nan"),
        (np.full((4, 4, 3), 1.01), BrainDataError, "got 1.01 to 1.01"),
        (np.full((4, 4, 3), -0.01), BrainDataError, "got -0.01"),
        (np.full((4, 4, 3), 200.0), BrainDataError, "got 200 to 200"),
        (np.zeros((4, 4, 3), np.int64), BrainDataError, "as floats in .0, 1., got int64"),
        (np.zeros((3, 8, 8)), AxisError, r"got \(3, 8, 8\)"),
        (np.zeros((1, 4, 4, 3)), AxisError, r"got \(1, 4, 4, 3\)"),
        (np.zeros((0, 0, 3)), AxisError, r"got \(0, 0, 3\)"),
    ],
)
def test_pictures_that_are_refused(picture, error, message):
    with pytest.raises(error, match=message):
        square_picture(picture)


def test_files_that_are_no_picture(tmp_path):
    (tmp_path / "face.png").write_bytes(b"hello")
    with pytest.raises(BrainDataError, match=r"a readable image, got .*face.png"):
        square_picture(tmp_path / "face.png")
    with pytest.raises(FileNotFoundError, match=r"nothing at .*none.png"):
        square_picture(tmp_path / "none.png")
