"""Pictures and sound as mp4 files with H.264 and AAC, written through PyAV.

write_mp4("out.mp4", frames, 25, audio, 16000, {"synthetic": "true"})
"""

import logging
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from veca.files import whole_file

from ..errors import BrainDataError, need
from .sound import check_rate, check_sound, to_rate
from .synthetic import check_pictures

__all__ = ["WRITERS_OWN", "check_text", "load_av", "write_mp4"]

WRITERS_OWN = ("major_brand", "minor_version", "compatible_brands", "encoder")
"""Tags that FFmpeg writes in every mp4 file."""

_log = logging.getLogger(__name__)

_AAC_RATES = (16000, 22050, 24000, 32000, 44100, 48000)  # Hz
_AAC_BITS = 128_000  # a second
_BT709 = 1  # number of the colour space of HD video, of its primaries and of its curve
_NARROW = 1  # number of the range of luma from 16 to 235


def write_mp4(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    audio: np.ndarray | None = None,
    sample_rate: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write pictures and sound as an mp4 file with H.264 (yuv420p, BT.709) and AAC.

    Odd sizes are padded on the right and below by the pixels at the edge, which the log says. Rates that AAC lacks are
    resampled to the next one. The file appears whole or not at all.

    Args:
        path: File to write. Its folder is made where it does not exist.
        frames: Pictures, uint8 (T, H, W, 3).
        fps: Pictures per second, 1 to 240.
        audio: Mono samples (n,), floating, full scale is 1. Peaks beyond it are clipped, which the log says.
        sample_rate: Samples per second of `audio`, in hertz. Needed with `audio`.
        metadata: Text by name, stored in the file.

    Returns:
        The path.

    Raises:
        AxisError: Pictures or sound of another shape.
        BrainDataError: Another dtype, range or rate, sound without its rate, or metadata that are no text.
        ImportError: PyAV is not installed, or scipy, which resampling needs.
    """
    av = load_av("writing mp4")
    path, metadata = Path(path), check_text(metadata or {})
    check_pictures(frames)
    if not 1 <= fps <= 240:
        raise BrainDataError(f"expected 1 to 240 pictures per second, got {fps}")
    if (audio is None) != (sample_rate is None):
        raise BrainDataError("expected audio together with its sample_rate, got one of them")
    sound, sound_rate = (None, 0) if audio is None else _for_aac(audio, sample_rate)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        _log.info("padding pictures of %d x %d px to even sizes by the pixels at the edge, for %s", width, height, path)
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    rate = Fraction(fps).limit_denominator(1001)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole_file(path) as partial,
        av.open(str(partial), "w", format="mp4", options={"movflags": "use_metadata_tags"}) as file,
    ):
        file.metadata.update(metadata)
        pictures = file.add_stream("libx264", rate=rate, options={"crf": "17"})
        pictures.height, pictures.width, pictures.pix_fmt = *frames.shape[1:3], "yuv420p"
        coder = pictures.codec_context
        coder.colorspace = coder.color_primaries = coder.color_trc = _BT709
        coder.color_range = _NARROW
        voice = None if sound is None else file.add_stream("aac", rate=sound_rate, layout="mono")
        if voice is not None:
            voice.codec_context.bit_rate = _AAC_BITS
        written = 0
        for number, picture in enumerate(frames):
            file.mux(pictures.encode(_video_frame(av, picture, number, rate)))
            # in turn, since the writer keeps packets until both streams have some
            if voice is not None and sound is not None:
                last = number + 1 == len(frames)
                end = len(sound) if last else min(len(sound), int((number + 1) * sound_rate / rate))
                if end > written:
                    file.mux(voice.encode(_audio_frame(av, sound[written:end], written, sound_rate)))
                    written = end
        for stream in (pictures, voice):
            if stream is not None:
                file.mux(stream.encode(None))
    return path


def check_text(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata that all file types can hold: text by a name of ASCII letters, digits and . _ -, up to 79 of them.

    Raises:
        BrainDataError: Another name, one of `WRITERS_OWN`, two names that differ in capitals only, of which mp4 keeps
            one, or a value that is no text.
    """
    seen: dict[str, str] = {}
    for key, text in metadata.items():
        bare = key.replace(".", "").replace("_", "").replace("-", "") if isinstance(key, str) else ""
        if not (bare.isalnum() and key.isascii() and len(key) < 80):
            raise BrainDataError(f"expected metadata under a name of ASCII letters, digits and . _ -, got {key!r}")
        if key.lower() in WRITERS_OWN:
            raise BrainDataError(f"expected metadata under other names than those of mp4 itself, got {key}")
        if (other := seen.setdefault(key.lower(), key)) != key:
            raise BrainDataError(f"expected names of metadata that differ in more than capitals, got {other} and {key}")
        if not isinstance(text, str) or "\0" in text:
            raise BrainDataError(f"expected text as metadata {key}, got {text!r}")
    return dict(metadata)


def load_av(why: str) -> Any:
    """The module of PyAV; an `ImportError` says what needs it and how to install it."""
    try:
        import av
    except ImportError as error:
        raise need("av", why, extra="face") from error
    return av


def _for_aac(audio: np.ndarray, sample_rate: Any) -> tuple[np.ndarray, int]:
    """The samples within full scale, at a rate of AAC, and that rate."""
    audio, rate = check_sound(audio), check_rate(sample_rate)
    peak = float(np.abs(audio).max())
    if peak > 1:
        _log.info("clipping sound with a peak of %.3g at full scale, 1", peak)
    new_rate = next((known for known in _AAC_RATES if known >= rate), _AAC_RATES[-1])
    return to_rate(audio, rate, new_rate).clip(-1, 1), new_rate


def _video_frame(av: Any, picture: np.ndarray, number: int, rate: Fraction) -> Any:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
    frame.pts, frame.time_base = number, 1 / rate
    return frame


def _audio_frame(av: Any, samples: np.ndarray, start: int, rate: int) -> Any:
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")  # (1, n)
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame
