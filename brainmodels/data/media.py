"""Sound, video and pictures as arrays: any media file through PyAV, and mp4 with H.264 and AAC.

    audio = read_audio("speech.mp3")                      # (n,) fp32 mono at 16 kHz
    frames, fps = read_video("clip.mp4")                  # uint8 (T, H, W, 3), 29.97
    write_mp4("out.mp4", frames, fps, audio, 16000, {"synthetic": "true"})
    read_metadata("out.mp4")                              # {"synthetic": "true"}
    face = square_picture("face.jpg", crop=(40, 0, 296, 256))

| mistake | error |
|---|---|
| no such file, a damaged file, a file without sound or pictures | `LayoutError` |
| an array of another shape | `AxisError` |
| samples or pixels of another dtype or range, not finite | `BrainDataError` |
| pictures at a varying rate | `AlignmentError` |
| PyAV is not installed | `ImportError` |
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from veca.data.images import load_image, upright_rgb
from veca.files import read_json, read_members

from ..errors import AlignmentError, AxisError, BrainDataError, LayoutError, check_choice
from .mp4 import WRITERS_OWN, load_av, write_mp4
from .sound import check_rate, check_sound, to_rate

__all__ = ["read_audio", "read_metadata", "read_video", "sound_of", "square_picture", "to_rate", "write_mp4"]

_FULL_SCALE = 2.0**31
_MISSING = 0.1  # seconds at the end of the sound that a decoder may lack


def read_audio(path: str | Path, sample_rate: int = 16000) -> np.ndarray:
    """The first audio stream of a media file, mixed to mono and resampled.

    Channels are mixed with weights that keep the result within full scale. In a file with a video stream, sample 0 is
    heard with the first picture. Sound that starts later gets silence in front, and earlier sound is cut. Padding that
    the encoder added at the end is cut where the file states the duration of its sound, as mp4 does.

    Args:
        path: Any audio or video file that PyAV opens.
        sample_rate: Samples per second of the result, in hertz.

    Returns:
        Samples (n,), fp32, from -1 to 1.

    Raises:
        LayoutError: No such file, a file without sound, or a damaged one.
        BrainDataError: `sample_rate` is no positive integer.
        ImportError: PyAV is not installed.
    """
    sample_rate = check_rate(sample_rate)
    with _opened(path, "reading sound") as (av, file):
        if not file.streams.audio:
            raise LayoutError(f"expected sound in {path}, got a file without an audio stream")
        stream, pictures = file.streams.audio[0], _pictures(av, file)
        # FFmpeg mixes floats without keeping them within full scale, integers with it
        resampler = av.AudioResampler(format="s32", layout="mono", rate=sample_rate)
        parts, first = [], None
        for frame in file.decode(stream):
            first = frame.time if first is None and frame.time is not None else first
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        parts += [part.to_ndarray()[0] for part in resampler.resample(None)] if parts else []
        length = _duration(file, stream)
        start = _start(pictures) if pictures is not None else first
    if not parts:
        raise LayoutError(f"expected sound in {path}, got an audio stream without samples")
    audio = np.concatenate(parts)
    if length is not None:
        if len(audio) < (length - _MISSING) * sample_rate:
            raise LayoutError(
                f"expected {length:.2f} s of sound in {path}, got {len(audio) / sample_rate:.2f} s; it is truncated"
            )
        audio = audio[: round(length * sample_rate)]
    late = 0 if first is None or start is None else round((first - start) * sample_rate)
    audio = np.pad(audio, (late, 0)) if late > 0 else audio[-late:]
    return (audio / _FULL_SCALE).astype(np.float32)


def sound_of(audio: np.ndarray | str | Path, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Sound and its rate, from what a user gives.

    Args:
        audio: Mono sound (n,), or a file, which is read at 16 kHz.
        sample_rate: Samples of an array per second, in hertz. It is not read with a file.

    Returns:
        Samples (n,), and their number per second.

    Raises:
        BrainDataError: An array without its rate, or samples that are not sound.
        LayoutError: See `read_audio`.
    """
    if isinstance(audio, str | Path):
        return read_audio(audio), 16_000
    if sample_rate is None:
        raise BrainDataError("expected sample_rate= in hertz with an array of sound, got none")
    return check_sound(audio), check_rate(sample_rate)


def read_video(path: str | Path) -> tuple[np.ndarray, float]:
    """All pictures of a video file and their rate.

    Pictures are turned upright as the file says. Cover art of audio files is no video.

    Args:
        path: Any video file that PyAV opens.

    Returns:
        Pictures, uint8 (T, H, W, 3), and their number per second.

    Raises:
        LayoutError: No such file, a file without pictures, or a damaged one.
        AlignmentError: The rate varies: a picture is more than half a frame away from its place.
        ImportError: PyAV is not installed.
    """
    with _opened(path, "reading video") as (av, file):
        stream = _pictures(av, file)
        if stream is None:
            raise LayoutError(f"expected pictures in {path}, got a file without a video stream")
        frames, times = [], []
        for frame in file.decode(stream):
            picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            if frames and picture.shape != frames[0].shape:
                raise LayoutError(
                    f"expected pictures of one size in {path}, got {picture.shape} after {frames[0].shape}"
                )
            frames.append(picture)
            times.append(frame.time)
        rates = [float(rate) for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate) if rate]
        length = _duration(file, stream)
    if not frames or not rates or None in times:
        raise LayoutError(f"expected pictures with times in {path}, got {len(frames)} pictures")
    expected = 0 if length is None else length * rates[0]
    if len(frames) + 1.5 < expected:
        raise LayoutError(
            f"expected {expected:.0f} pictures in {path}, as its duration says, got {len(frames)}; it is truncated"
        )
    fps = _frame_rate(np.array(times), rates, path)
    return np.stack(frames), fps


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a file says about itself, such as who made it: the metadata that `Frames.save` writes.

    Args:
        path: File that ends with .mp4, .gif, .png or .npz, or a folder with `provenance.json`.

    Returns:
        Text by name. Tags that FFmpeg adds to every mp4 file are left out. A GIF of other programs has its comment
        under "comment".

    Raises:
        LayoutError: No such file, or a damaged one.
        BrainDataError: Another suffix.
        ImportError: PyAV is not installed, which mp4 files need.
    """
    path = Path(path)
    if path.is_dir():
        return _texts(read_json(path / "provenance.json", LayoutError))
    if not path.is_file():
        raise LayoutError(f"expected a file, got nothing at {path}")
    suffix = check_choice("the suffix of a file with metadata", path.suffix.lower(), (".mp4", ".gif", ".png", ".npz"))
    if suffix == ".mp4":
        with _opened(path, "reading metadata of mp4") as (_, file):
            return {key: text for key, text in file.metadata.items() if key not in WRITERS_OWN}
    if suffix == ".npz":
        found = read_members(path, ("provenance",), LayoutError)
        return _texts(json.loads(str(found["provenance"]))) if found else {}
    try:
        with Image.open(path, formats=(suffix[1:],)) as picture:
            if suffix == ".png":
                picture.load()
                return {key: str(text) for key, text in getattr(picture, "text", {}).items()}
            comment = picture.info.get("comment", b"").decode("utf-8", "replace")
    except (OSError, SyntaxError, ValueError) as error:
        raise LayoutError(f"expected a complete {suffix} file at {path}, got: {error}") from None
    try:
        return _texts(json.loads(comment)) if comment else {}
    except (ValueError, AttributeError):  # of another program
        return {"comment": comment}


def square_picture(image: Any, crop: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """A square picture of 8-bit colours, such as a portrait.

    Grey pictures get three equal channels. Transparent pixels are laid over white. Files and PIL images are turned
    upright as their EXIF tag says, before the crop.

    Args:
        image: Array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, or of floats in [0, 1]; a PIL image; or the
            path of an image file.
        crop: Left, top, right and bottom of the square to take, in pixels. None takes the whole picture.

    Returns:
        Picture, uint8 (H, H, 3).

    Raises:
        AxisError: An array of another shape.
        BrainDataError: The picture or the crop is not square, the crop exceeds the picture, pixels of another dtype,
            range or not finite, or a file that is no image.
        FileNotFoundError: No such file.
    """
    try:
        if isinstance(image, str | Path):
            image = load_image(image)
        image = image if isinstance(image, Image.Image) else Image.fromarray(_bytes(image))
        picture = np.array(upright_rgb(image))
    except BrainDataError:
        raise
    except ValueError as error:
        raise BrainDataError(str(error)) from None
    height, width, _ = picture.shape
    if crop is not None:
        if len(crop) != 4 or not all(isinstance(edge, Integral) for edge in crop):
            raise BrainDataError(f"expected crop=(left, top, right, bottom) as integers, got {crop!r}")
        left, top, right, bottom = crop
        if not (0 <= left < right <= width and 0 <= top < bottom <= height and right - left == bottom - top):
            raise BrainDataError(
                f"expected a square crop=(left, top, right, bottom) within {width} x {height} px, got {tuple(crop)}"
            )
        return picture[top:bottom, left:right].copy()
    if height != width:
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        raise BrainDataError(
            f"expected a square picture of one face, got {width} x {height} px; choose the square around the face by "
            f"crop=(left, top, right, bottom), such as the middle, crop=({left}, {top}, {left + side}, {top + side})"
        )
    return picture


@contextmanager
def _opened(path: str | Path, why: str) -> Iterator[tuple[Any, Any]]:
    """PyAV and a file that it has opened. What PyAV raises in the block becomes a `LayoutError`."""
    av = load_av(why)
    if not Path(path).is_file():
        raise LayoutError(f"expected a media file, got nothing at {path}")
    try:
        with av.open(str(path), metadata_errors="replace") as file:
            yield av, file
    except av.error.FFmpegError as error:
        raise LayoutError(f"expected a complete media file at {path}, got: {error.strerror}") from None


def _pictures(av: Any, file: Any) -> Any:
    """The first video stream that is no cover art, or None."""
    cover = av.stream.Disposition.attached_pic
    return next((stream for stream in file.streams.video if not stream.disposition & cover), None)


def _start(stream: Any) -> float | None:
    """Time of the start of a stream in seconds, where the file says it."""
    return None if stream.start_time is None else float(stream.start_time * stream.time_base)


def _duration(file: Any, stream: Any) -> float | None:
    """Duration of a stream in seconds where it is exact, as in mp4. In other files it is often an estimate."""
    exact = "mp4" in file.format.name.split(",") and stream.duration
    return float(stream.duration * stream.time_base) if exact else None


def _frame_rate(times: np.ndarray, rates: list[float], path: str | Path) -> float:
    """The rate that fits the times (T,) in seconds best, if all of them are within half a frame of their places."""
    numbers, shown = np.arange(len(times)), times - times[0]
    away = [np.abs(shown * rate - numbers).max() for rate in rates]
    best = int(np.argmin(away))
    if away[best] > 0.5:
        raise AlignmentError(
            f"expected pictures at a constant rate in {path}, got one {away[best]:.1f} frames from its place at "
            f"{rates[best]:.4g} per second; convert it with: ffmpeg -i {Path(path).name} -fps_mode cfr -r 25 out.mp4"
        )
    return rates[best]


def _texts(content: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in content.items()}


def _bytes(image: Any) -> np.ndarray:
    """Pixels as uint8 (H, W), (H, W, 3) or (H, W, 4)."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if 0 in pixels.shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise AxisError(f"expected a picture of shape (H, W), (H, W, 3) or (H, W, 4), got {pixels.shape}")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype.kind != "f":
        raise BrainDataError(f"expected pixels as uint8, or as floats in [0, 1], got {pixels.dtype}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # also of NaN
        raise BrainDataError(f"expected floating pixels in [0, 1], got {low:.4g} to {high:.4g}")
    return (255 * pixels.astype(np.float64)).round().astype(np.uint8)
