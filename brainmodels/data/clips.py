"""Clips of talking people: head coefficients, sound and pictures on one clock, and sets of clips with their parts.

    clip = TalkingClip("m03_01", "m03", "01", 25, exp, jaw, audio, 16000, emotion="happy", level=2)
    clip.alpha                                   # (T,) fp32, 2/3 in every frame
    clips = ClipSet("mine", tuple(found), split_clips(found))
    clips.of("train")                            # clips whose identities and sentences are not in the test part

`clip_files.read_manifest` reads clips from files. Frame k of a clip covers the time from k / fps to (k + 1) / fps.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from veca.data.images import load_image
from veca.data.names import composed, entries
from veca.hashes import json_digest

from ..errors import (
    AlignmentError,
    AxisError,
    BrainDataError,
    IdError,
    LayoutError,
    LeakageError,
    check_choice,
    near_names,
)
from .dataset import PARTS
from .media import read_video
from .sound import check_rate, check_sound
from .splits import hashed

__all__ = [
    "EMOTIONS",
    "ClipSet",
    "TalkingClip",
    "alpha_of_level",
    "emotion_name",
    "frame_count",
    "picture_files",
    "split_clips",
]

EMOTIONS = ("neutral", "angry", "contempt", "disgust", "fear", "happy", "sad", "surprise")
LEVELS = (1, 2, 3)

_ALIASES = {
    "neutral": ("neu", "calm"),
    "angry": ("ang", "anger"),
    "contempt": ("con", "contemptuous"),
    "disgust": ("dis", "disgusted"),
    "fear": ("fea", "afraid", "fearful"),
    "happy": ("hap", "happiness", "joy"),
    "sad": ("sadness",),
    "surprise": ("sur", "surprised"),
}
_NAMES = {word: name for name, others in _ALIASES.items() for word in (name, *others)}
_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SAME_RATE = 1e-3  # relative difference of frame rates that are equal: 29.97 and 30000 / 1001

_log = logging.getLogger(__name__)


def emotion_name(word: str) -> str:
    """One of `EMOTIONS`, from its name or another word for it, such as "anger", "ang" or "Surprised".

    Raises:
        BrainDataError: An unknown word. The message names the nearest known ones.
    """
    key = str(word).strip().lower()
    if key not in _NAMES:
        raise BrainDataError(
            f"expected an emotion, one of {', '.join(EMOTIONS)}, got {word!r}{near_names(key, list(_NAMES))}"
        )
    return _NAMES[key]


def alpha_of_level(level: int | None, emotion: str | None) -> float | None:
    """Intensity of an emotion from its level: 1/3, 2/3 and 1 for levels 1, 2 and 3.

    Args:
        level: 1, 2 or 3. None if the data set has no levels, which counts as 3.
        emotion: Emotion, see `emotion_name`. Neutral has intensity 0 at every level.

    Returns:
        The intensity, 0 to 1. None if the emotion is not known.

    Raises:
        BrainDataError: Another level, or an unknown emotion.
    """
    if level is not None:
        check_choice("level", level, LEVELS)
    if emotion is None:
        return None
    return 0.0 if emotion_name(emotion) == EMOTIONS[0] else (LEVELS[-1] if level is None else level) / LEVELS[-1]


def frame_count(samples: int, sample_rate: float, fps: float) -> int:
    """Number of frames of a video with this many samples of sound: max(1, floor(samples * fps / sample_rate + 1/2)).

    Args:
        samples: Number of samples.
        sample_rate: Samples a second.
        fps: Frames a second.
    """
    return max(1, floor(samples * fps / sample_rate + 0.5))


@dataclass(frozen=True, eq=False)
class TalkingClip:
    """One person who says one sentence. Arrays are kept as fp32.

    Args:
        id: Id of the clip.
        identity: Id of the person.
        sentence: Id of what is said. Give the clip's own id if no other clip has the same words.
        fps: Frames a second.
        exp: (T, E) Expression coefficients of a head model.
        jaw: (T, 3) Rotation of the jaw, axis-angle in radians; (T, 0) if the jaw is part of `exp`.
        audio: (n,) Mono sound. It is cut, or filled with zeros, to round(T * sample_rate / fps) samples.
        sample_rate: Samples of sound a second.
        frames: Pictures: uint8 (T, H, W, 3), a function that returns them, or a video file or folder of pictures.
        emotion: Emotion, see `emotion_name`. None if it is not known.
        level: Level 1, 2 or 3 of the emotion. None if it has none.
        alpha: (T,) Intensity of the emotion in each frame, 0 or more. None takes that of the level.
        pose: (T, 3) Rotation of the head, axis-angle in radians.
        mouth_box: (T, 4) Left, top, right and bottom of the mouth in pixels. Zeros where it is not known.
        estimator: Name of what fitted the coefficients.
        licence: Licence of the clip.

    Raises:
        AlignmentError: Sound and coefficients differ in length by more than one frame.
        AxisError: An array of another shape.
        BrainDataError: An empty id, a bad rate, values that are not finite, or an unknown emotion or level.
    """

    id: str
    identity: str
    sentence: str
    fps: float
    exp: np.ndarray
    jaw: np.ndarray
    audio: np.ndarray
    sample_rate: int
    frames: np.ndarray | Callable[[], np.ndarray] | Path | None = None
    emotion: str | None = None
    level: int | None = None
    alpha: np.ndarray | None = None
    pose: np.ndarray | None = None
    mouth_box: np.ndarray | None = None
    estimator: str = "unknown"
    licence: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "identity", "sentence"):
            self._set(name, composed(str(getattr(self, name))))
            if not getattr(self, name):
                raise BrainDataError(f"expected text as {name} of a clip, got '' in clip {self.id!r}")
        if not (isfinite(self.fps) and self.fps > 0):
            raise BrainDataError(f"expected more than 0 frames a second in clip {self.id!r}, got {self.fps}")
        exp = np.asarray(self.exp)
        if exp.ndim != 2 or 0 in exp.shape:
            raise AxisError(f"expected exp (T, E) of clip {self.id!r}, got {exp.shape}")
        self._set("exp", self._series("exp", (exp.shape[1],)))
        self._set("jaw", self._series("jaw", (0, 3)))
        self._set("sample_rate", check_rate(self.sample_rate))
        self._set("audio", self._fitting(self._sound()))
        self._set("emotion", None if self.emotion is None else emotion_name(self.emotion))
        self._set("alpha", self._intensity())
        if self.pose is not None:
            self._set("pose", self._series("pose", (3,)))
        if self.mouth_box is not None:
            box = self._series("mouth_box", (4,))
            if (box[:, 2:] < box[:, :2]).any():
                raise BrainDataError(
                    f"expected left, top, right and bottom as mouth_box of clip {self.id!r}, got a right or bottom "
                    "that is smaller than the left or top"
                )
            self._set("mouth_box", box)
        if isinstance(self.frames, str):
            self._set("frames", Path(self.frames))
        if isinstance(self.frames, np.ndarray):
            self._check_pictures(self.frames)

    def __repr__(self) -> str:
        feeling = f"{self.emotion or 'no emotion'}{'' if self.level is None else f' {self.level}'}"
        return (
            f"TalkingClip({self.id}, {self.num_frames} frames at {self.fps:g} fps, {feeling}, {self.exp.shape[1]} exp)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pictures"}

    @property
    def num_frames(self) -> int:
        """Number of frames, T."""
        return len(self.exp)

    def pictures(self) -> np.ndarray:
        """The pictures, uint8 (T, H, W, 3). They stay in memory after the first call.

        A video or folder may have one picture more or less than T. The last one is then left out or shown twice.

        Raises:
            BrainDataError: The clip has no pictures.
            AlignmentError: Another number of pictures, or a video of another frame rate.
            AxisError: Pictures of another shape or type, or of several sizes.
            LayoutError: The file or folder is missing, or a folder has no pictures.
        """
        kept = self.__dict__.get("_pictures")
        if kept is None:
            kept = self._read()
            self._check_pictures(kept)
            self._set("_pictures", kept)
        return kept

    def _read(self) -> np.ndarray:
        if self.frames is None:
            raise BrainDataError(f"expected a clip with pictures, got {self.id!r} without")
        if isinstance(self.frames, np.ndarray):
            return self.frames
        if not isinstance(self.frames, Path):
            return np.asarray(self.frames())
        if self.frames.is_dir():
            found = _read_folder(self.frames)
        elif self.frames.is_file():
            found, fps = read_video(self.frames)
            if abs(fps / self.fps - 1) > _SAME_RATE:
                raise AlignmentError(f"expected {self.fps:g} frames a second in {self.frames}, got {fps:g}")
        else:
            raise LayoutError(f"expected pictures of clip {self.id!r} at {self.frames}, got no such file or folder")
        found = found[: self.num_frames] if len(found) == self.num_frames + 1 else found
        return np.concatenate((found, found[-1:])) if len(found) == self.num_frames - 1 else found

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _series(self, name: str, widths: Sequence[int]) -> np.ndarray:
        """A series as fp32 (T, width), with one of these widths."""
        values, frames = np.asarray(getattr(self, name)), len(self.exp)
        if values.ndim != 2 or len(values) != frames or values.shape[1] not in widths:
            shape = f"({frames}, {' or '.join(map(str, widths))})"
            raise AxisError(f"expected {name} {shape} of clip {self.id!r}, got {values.shape}")
        values = values.astype(np.float32)
        bad = int((~np.isfinite(values)).any(1).sum())
        if bad:
            raise BrainDataError(f"expected finite {name} of clip {self.id!r}, got other values in {bad} frames")
        return values

    def _sound(self) -> np.ndarray:
        try:
            return check_sound(self.audio)
        except BrainDataError as error:
            raise type(error)(f"the audio of clip {self.id!r}: {error}") from None

    def _fitting(self, audio: np.ndarray) -> np.ndarray:
        """The sound with the length of the frames, if it differs by one frame at most."""
        seconds, video = len(audio) / self.sample_rate, len(self.exp) / self.fps
        if abs(seconds - video) > 1 / self.fps + 1e-9:
            raise AlignmentError(
                f"expected audio of {video:.3f} s for the {len(self.exp)} frames of clip {self.id!r} at {self.fps:g} "
                f"fps, within one frame, got {seconds:.3f} s"
            )
        samples = max(1, round(len(self.exp) * self.sample_rate / self.fps))
        return np.pad(audio[:samples], (0, max(0, samples - len(audio))))

    def _intensity(self) -> np.ndarray | None:
        alpha = alpha_of_level(self.level, self.emotion)
        if self.alpha is None:
            return None if alpha is None else np.full(self.num_frames, alpha, np.float32)
        values = np.asarray(self.alpha, dtype=np.float32)
        if values.shape != (self.num_frames,):
            raise AxisError(f"expected alpha ({self.num_frames},) of clip {self.id!r}, got {values.shape}")
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise BrainDataError(f"expected finite alpha of 0 or more of clip {self.id!r}, got other values")
        if self.emotion == EMOTIONS[0] and values.any():
            raise BrainDataError(f"expected alpha 0 of the neutral clip {self.id!r}, got up to {values.max():g}")
        return values

    def _check_pictures(self, pictures: np.ndarray) -> None:
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
            raise AxisError(
                f"expected pictures of clip {self.id!r} as uint8 (T, H, W, 3), got {pictures.dtype} {pictures.shape}"
            )
        if len(pictures) != self.num_frames:
            raise AlignmentError(f"expected {self.num_frames} pictures of clip {self.id!r}, got {len(pictures)}")


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips and the parts that they are in. Train and test parts share no identity and no sentence.

    Args:
        name: Name of the set.
        clips: The clips. Those in no part are not used.
        parts: Ids of the clips of "train", "val" and "test". A part that is left out is empty.

    Raises:
        IdError: Clips have the same id, or a part names an unknown clip.
        LeakageError: A clip is in two parts, or a test clip has an identity or sentence that occurs in train or val.
        AxisError: Clips have different numbers of coefficients.
        BrainDataError: An unknown part.
    """

    name: str
    clips: tuple[TalkingClip, ...]
    parts: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "clips", tuple(self.clips))
        rows: dict[str, int] = {}
        for row, clip in enumerate(self.clips):
            if rows.setdefault(clip.id, row) != row:
                raise IdError(f"expected clips with ids of their own in {self.name!r}, got {clip.id!r} twice")
        object.__setattr__(self, "_rows", rows)
        for part in self.parts:
            check_choice("part", part, PARTS)
        parts = {part: tuple(composed(str(name)) for name in self.parts.get(part, ())) for part in PARTS}
        object.__setattr__(self, "parts", parts)
        self._check_parts()
        widths = {(clip.exp.shape[1], clip.jaw.shape[1]) for clip in self.clips}
        if len(widths) > 1:
            raise AxisError(f"expected clips of one number of coefficients (E, J), got {sorted(widths)}")
        if len(estimators := sorted({clip.estimator for clip in self.clips})) > 1:
            _log.warning("%s has coefficients of several estimators: %s", self.name, ", ".join(estimators))

    def __len__(self) -> int:
        return len(self.clips)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(names)} {part}" for part, names in self.parts.items())
        return f"{type(self).__name__}({self.name}, {len(self)} clips: {counts})"

    @property
    def split_hash(self) -> str:
        """Twelve hexadecimal digits that change with any id of any part."""
        return json_digest({part: sorted(names) for part, names in self.parts.items()})

    def clip(self, clip_id: str) -> TalkingClip:
        """The clip with this id. An unknown id is an `IdError`."""
        rows: dict[str, int] = self.__dict__["_rows"]
        row = rows.get(composed(str(clip_id)))
        if row is None:
            raise IdError(f"expected the id of a clip of {self.name!r}, got {clip_id!r}{near_names(clip_id, [*rows])}")
        return self.clips[row]

    def of(self, part: str) -> list[TalkingClip]:
        """The clips of "train", "val", "test" or "train+val". An unknown part is a `BrainDataError`."""
        check_choice("part", part, (*PARTS, "train+val"))
        return [self.clip(name) for key in part.split("+") for name in self.parts[key]]

    def _check_parts(self) -> None:
        seen: dict[str, str] = {}
        for part, names in self.parts.items():
            for name in names:
                self.clip(name)
                if name in seen:
                    raise LeakageError(f"expected each clip in one part, got {name!r} in {seen[name]} and {part}")
                seen[name] = part
        for what in ("identity", "sentence"):
            known, tested = ({getattr(clip, what) for clip in self.of(part)} for part in ("train+val", "test"))
            if common := known & tested:
                raise LeakageError(
                    f"expected no {what} in both train and test of {self.name!r}, got {len(common)}, such as "
                    f"{min(common)!r}; split_clips makes such parts"
                )


def split_clips(clips: Iterable[TalkingClip], test: float = 0.2, seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Parts that share no identity and no sentence.

    Some identities are held out. A sentence that only they say is held out with them. Of the sentences that both they
    and others say, a share is held out. A clip of a held-out identity with another sentence, or of another identity
    with a held-out sentence, is in no part. The log counts such clips.

    Args:
        clips: The clips.
        test: Share of the identities, and of the sentences they have in common with others, to hold out.
        seed: Seed of the choice.

    Returns:
        Ids of the clips of "train", "val" and "test", in the order of `clips`. The validation part is empty.

    Raises:
        BrainDataError: The share is not between 0 and 1, or no clip is left to train or to test on.
    """
    if not 0 < test < 1:
        raise BrainDataError(f"expected a share between 0 and 1 to test on, got {test}")
    clips = list(clips)
    people = _chosen({clip.identity for clip in clips}, test, f"{seed}:identity")
    held = {clip.sentence for clip in clips if clip.identity in people}
    common = held & {clip.sentence for clip in clips if clip.identity not in people}
    own = held - common
    sentences = own | _chosen(common, test, f"{seed}:sentence", at_least=0 if own else 1)
    places = {clip.id: (clip.identity in people, clip.sentence in sentences) for clip in clips}
    train, tested = (tuple(name for name, place in places.items() if place == (x, x)) for x in (False, True))
    if not train or not tested:
        counts = [len({getattr(clip, what) for clip in clips}) for what in ("identity", "sentence")]
        raise BrainDataError(
            f"expected clips of two identities and two sentences or more to split, got {counts[0]} and {counts[1]}: "
            f"{len(train)} clips would train and {len(tested)} would test"
        )
    if mixed := len(clips) - len(train) - len(tested):
        text = "%d of %d clips are in no part: their identity or their sentence is held out, but not both"
        _log.info(text, mixed, len(clips))
    return {"train": train, "val": (), "test": tested}


def _chosen(names: set[str], share: float, seed: str, at_least: int = 1) -> set[str]:
    order = sorted(names, key=lambda name: (hashed(seed, name), name))
    return set(order[: max(at_least, min(round(share * len(order)), len(order) - 1))])


def picture_files(folder: Path) -> list[Path]:
    """Pictures of a folder in natural order: frame2.png comes before frame10.png."""
    return [path for path in entries(folder) if path.suffix.lower() in _PICTURES]


def _read_folder(folder: Path) -> np.ndarray:
    """All pictures of a folder, uint8 (T, H, W, 3)."""
    files, found = picture_files(folder), []
    for path in files:
        try:
            found.append(np.asarray(load_image(path)))
        except ValueError as error:
            raise LayoutError(str(error)) from error
        if found[-1].shape != found[0].shape:
            raise AxisError(
                f"expected pictures of one size in {folder}, got {found[0].shape[1::-1]} and {found[-1].shape[1::-1]} "
                f"in {path.name}"
            )
    if not found:
        raise LayoutError(f"expected pictures ({', '.join(_PICTURES)}) in {folder}, got none")
    return np.stack(found)
