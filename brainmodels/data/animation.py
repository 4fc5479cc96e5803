"""Animated heads: the motion of a head model, and pictures with sound, saved as files that say that they are synthetic.

    frames = Frames(video, 25, motion, {"model": "a1b2", "seed": 0, "emotion": "happy", "intensity": 0.8}, audio, 16000)
    frames.save("happy.mp4")                                 # .mp4 .gif .png .npz or a folder
    frames.save("plain.mp4", mark=False, consent="The person shown agreed to this film on 2 May.")
    read_metadata("happy.mp4")                               # {"synthetic": "true", "model": "a1b2", "seed": "0", ...}

| file | pictures | sound | motion |
|---|---|---|---|
| `.mp4` | all, H.264 | AAC | no |
| `.gif` | at 25, 20, 12.5 or 10 a second, in 256 colours | no | no |
| `.png` | a sheet of up to 64 | no | no |
| `.npz` | all, exact | yes | yes |
| folder | all, exact, as PNG files | no | no |

All of them have the metadata, which cannot be switched off.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from veca.files import whole_file, whole_folder

from ..errors import AxisError, BrainDataError, check_choice
from ..records import plain
from .mp4 import check_text, load_av, write_mp4
from .sound import check_rate, check_sound
from .synthetic import check_pictures, mark_synthetic

__all__ = ["SUFFIXES", "Frames", "Motion", "check_saving"]

_log = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".gif", ".png", ".npz")
_GIF_DELAYS = (4, 5, 8, 10)  # hundredths of a second, the unit of GIF
_SHORTEST = 2  # hundredths; viewers show shorter delays as ten
_PALETTE_PIXELS = 1 << 18  # from which the colours of a GIF are chosen, spread over all pictures
_SHEET = 64  # pictures of a contact sheet at most
_LINE = 2  # px of white between the pictures of a sheet
_FEWEST_LETTERS = 10  # of a sentence about consent


@dataclass(frozen=True, eq=False)
class Motion:
    """Coefficients of a head model over time.

    Attributes:
        exp: Expression coefficients (T, E), fp32.
        jaw: Jaw coefficients (T, J), fp32. J is 0 where the head has no jaw.
        times: Time of each frame in seconds, (T,).
        fps: Frames per second.

    Raises:
        AxisError: The series have unequal lengths or other shapes.
        BrainDataError: A value is not finite, or `fps` is not positive.
    """

    exp: np.ndarray
    jaw: np.ndarray
    times: np.ndarray
    fps: float

    def __post_init__(self) -> None:
        shapes = [np.shape(series) for series in (self.exp, self.jaw, self.times)]
        if [len(shape) for shape in shapes] != [2, 2, 1] or len({shape[0] for shape in shapes}) > 1:
            raise AxisError(f"expected exp (T, E), jaw (T, J) and times (T,), got {', '.join(map(str, shapes))}")
        for name in ("exp", "jaw", "times"):
            if not np.isfinite(getattr(self, name)).all():
                raise BrainDataError(f"expected finite {name} of the motion, got values that are not")
        _check_fps(self.fps)

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, eq=False)
class Frames:
    """Pictures of an animated head, with their sound and their origin.

    Attributes:
        video: Pictures without a mark, as metrics take them, uint8 (T, H, W, 3).
        fps: Pictures per second.
        motion: Coefficients of the same frames, or None where they are not known.
        provenance: How the pictures were made, such as fingerprint of the model, seed, emotion, intensity and versions.
            Names are of ASCII letters, digits and . _ -. Values other than text are stored as JSON.
        audio: Mono sound (n,), floating, full scale is 1. None without sound.
        sample_rate: Samples per second of `audio`, in hertz.

    Raises:
        AxisError: Arrays of another shape, or a motion of another length.
        BrainDataError: Another dtype, range or rate, sound without its rate, or a provenance that cannot be stored.
    """

    video: np.ndarray
    fps: float
    motion: Motion | None
    provenance: Mapping[str, Any]
    audio: np.ndarray | None = None
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        check_pictures(self.video, "video")
        _check_fps(self.fps)
        if self.motion is not None and len(self.motion) != len(self.video):
            raise AxisError(f"expected a motion of {len(self.video)} frames, as the video has, got {len(self.motion)}")
        if (self.audio is None) != (self.sample_rate is None):
            raise BrainDataError("expected audio together with its sample_rate, got one of them")
        if self.audio is not None:
            check_sound(self.audio)
            check_rate(self.sample_rate)
        self._metadata(None)

    def __len__(self) -> int:
        return len(self.video)

    def marked(self) -> np.ndarray:
        """The pictures with the visible word SYNTHETIC, uint8 (T, H + h, W, 3).

        Pictures of 128 px or more have it in the lower right corner, and h is 0. Smaller ones are untouched and have it
        on a strip of h px below.
        """
        return mark_synthetic(self.video)

    def save(self, path: str | Path, mark: bool = True, consent: str | None = None) -> Path:
        """Write the pictures as a file, or as a folder of PNG files with `provenance.json`.

        The file appears whole or not at all. An older file of this name is replaced, an older folder is not.

        Args:
            path: Path that ends with .mp4, .gif, .png or .npz, or that has no suffix, which makes a folder. Parents are
                made where they do not exist.
            mark: Whether the pictures have the visible word SYNTHETIC.
            consent: Sentence about who agreed to what is shown. It is stored in the metadata. Needed without the mark.

        Returns:
            The path.

        Raises:
            BrainDataError: Another suffix, `mark=False` without a sentence about consent, or an mp4 file at fewer than
                1 or more than 240 pictures per second.
            FileExistsError: The path of a folder is taken.
            ImportError: PyAV is not installed, which mp4 files need.
        """
        path = Path(path)
        suffix = check_saving(path, mark, consent)
        metadata, video = self._metadata(consent), self.marked() if mark else self.video
        if not suffix:
            return _write_folder(path, video, self.fps, metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".mp4":
            return write_mp4(path, video, self.fps, self.audio, self.sample_rate, metadata)
        if suffix == ".npz":
            return _write(path, lambda partial: self._write_npz(partial, video, metadata))
        write = _write_sheet if suffix == ".png" else _write_gif
        return _write(path, lambda partial: write(partial, video, self.fps, metadata))

    def _metadata(self, consent: str | None) -> dict[str, str]:
        """The provenance as text. What says that the pictures are synthetic stands above it."""
        texts = {key: _as_text(key, value) for key, value in self.provenance.items()}
        texts["synthetic"] = "true"
        if consent is not None:
            texts["consent"] = consent.strip()
        return check_text(texts)

    def _write_npz(self, path: Path, video: np.ndarray, metadata: Mapping[str, str]) -> None:
        arrays = {"video": video, "fps": np.float64(self.fps), "provenance": np.array(json.dumps(metadata))}
        if self.motion is not None:
            arrays |= {"exp": self.motion.exp, "jaw": self.motion.jaw, "times": self.motion.times}
        if self.audio is not None and self.sample_rate is not None:
            arrays |= {"audio": self.audio, "sample_rate": np.int64(self.sample_rate)}
        with path.open("wb") as file:  # given a path, NumPy would add a suffix
            np.savez_compressed(file, **arrays)


def check_saving(path: str | Path, mark: bool = True, consent: str | None = None) -> str:
    """Refuse what `Frames.save` would refuse, before there are frames.

    Args:
        path, mark, consent: As in `Frames.save`.

    Returns:
        The suffix of the file, in small letters; "" for a folder.

    Raises:
        BrainDataError: Another suffix, or `mark=False` without a sentence about consent.
        FileExistsError: The path of a folder is taken.
        ImportError: PyAV is not installed, which mp4 files need.
    """
    path = Path(path)
    suffix = check_choice("the suffix of saved frames", path.suffix.lower(), (*SUFFIXES, ""))
    if consent is not None and (not isinstance(consent, str) or len(consent.strip()) < _FEWEST_LETTERS):
        raise BrainDataError(f"expected consent as a sentence about who agreed, got {consent!r}")
    if not mark and consent is None:
        raise BrainDataError(
            'expected consent="..." together with mark=False, a sentence about who agreed to pictures without the '
            "mark, got none"
        )
    if not suffix and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"expected a new folder for the pictures, got {path}, which exists")
    if suffix == ".mp4":
        load_av("writing mp4")
    return suffix


def _check_fps(fps: float) -> None:
    if not (isfinite(fps) and fps > 0):
        raise BrainDataError(f"expected a positive number of frames per second, got {fps}")


def _as_text(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(plain(value), ensure_ascii=False)
    except TypeError as error:
        raise BrainDataError(f"expected provenance that JSON can hold, got {key} = {value!r}: {error}") from None


def _write(path: Path, write: Callable[[Path], None]) -> Path:
    with whole_file(path) as partial:
        write(partial)
    return path


def _write_gif(path: Path, video: np.ndarray, fps: float, metadata: Mapping[str, str]) -> None:
    """An endless GIF at the nearest possible rate. All pictures share one palette, so that still parts stay still."""
    shown, delays = _gif_timing(len(video), fps)
    if not np.array_equal(shown, np.arange(len(video))):
        rate = 100 / delays[0]
        _log.info("writing %s at %g frames per second instead of %.4g: factor %.4g", path.stem, rate, fps, rate / fps)
    pictures = [Image.fromarray(video[number]) for number in shown]
    pixels = video[shown].reshape(1, -1, 3)
    palette = Image.fromarray(pixels[:, :: 1 + pixels.shape[1] // _PALETTE_PIXELS]).quantize(256)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    indexed[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=[10 * delay for delay in delays],  # ms
        loop=0,
        comment=json.dumps(metadata).encode(),
    )


def _gif_timing(frames: int, fps: float) -> tuple[np.ndarray, list[int]]:
    """Which frames to show, and for how many hundredths of a second each; they add up to the duration of the video."""
    total = max(_SHORTEST, round(100 * frames / fps))
    delay = min(_GIF_DELAYS, key=lambda delay: abs(log(delay * fps / 100)))
    count = max(1, total // delay)
    middles = (np.arange(count) + 0.5) * delay / 100  # s
    shown = np.minimum((middles * fps).astype(int), frames - 1)
    return shown, [delay] * (count - 1) + [total - (count - 1) * delay]


def _write_sheet(path: Path, video: np.ndarray, fps: float, metadata: Mapping[str, str]) -> None:
    """A contact sheet of up to 64 pictures, evenly spaced in time, in rows from left to right."""
    shown = np.linspace(0, len(video) - 1, min(len(video), _SHEET)).round().astype(int)
    if len(shown) < len(video):
        _log.info("%s shows %d of %d pictures", path.stem, len(shown), len(video))
    columns = ceil(sqrt(len(shown)))
    rows = ceil(len(shown) / columns)
    height, width = video.shape[1] + _LINE, video.shape[2] + _LINE
    sheet = np.full((rows * height - _LINE, columns * width - _LINE, 3), 255, np.uint8)
    for place, number in enumerate(shown):
        top, left = place // columns * height, place % columns * width
        sheet[top : top + height - _LINE, left : left + width - _LINE] = video[number]
    _write_png(path, sheet, metadata)


def _write_png(path: Path, picture: np.ndarray, metadata: Mapping[str, str]) -> None:
    info = PngInfo()
    for key, text in metadata.items():
        info.add_itxt(key, text)
    Image.fromarray(picture).save(path, format="PNG", pnginfo=info)


def _write_folder(path: Path, video: np.ndarray, fps: float, metadata: Mapping[str, str]) -> Path:
    """Pictures as 00000.png, 00001.png and so on, with their rate in `provenance.json`."""
    with whole_folder(path) as partial:
        for number, picture in enumerate(video):
            _write_png(partial / f"{number:05d}.png", picture, metadata)
        text = json.dumps({**metadata, "fps": json.dumps(float(fps))}, indent=1, ensure_ascii=False)
        (partial / "provenance.json").write_text(text + "\n", encoding="utf-8")
    return path
