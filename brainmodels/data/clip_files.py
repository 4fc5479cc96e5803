"""Clips of talking people from files: a table of clips, and coefficients from a video by MediaPipe.

    clips = read_manifest("mead/clips.csv")
    found = expressions_from_mediapipe("m03_01.mp4", "face_landmarker.task", names=head.exp_names)
    found.save("m03_01.npz")                     # what the column `expressions` of the table names

`clips.csv` is in UTF-8 and has a line for each clip. Paths are relative to the folder of the table.

| column | content |
|---|---|
| id, identity, sentence | ids of the clip, of the person, and of what is said |
| video | video file or folder of pictures; may be empty |
| audio | file with sound, or `.npz` with `audio` (n,) and `sample_rate`; empty takes the sound of the video |
| emotion, level | one of `EMOTIONS` or an alias, and 1, 2 or 3; may be empty |
| expressions | `.npz` with `exp` (T, E), `fps`, `estimator`, maybe `jaw` (T, 3), `pose` (T, 3), `mouth_box` (T, 4) |
| part, licence | "train", "val", "test" or "", and a text; both columns may be left out |
"""

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from veca.data.names import existing, read_text
from veca.files import read_members, whole_file

from ..errors import AlignmentError, AxisError, BrainDataError, LayoutError, check_choice, near_names, need
from .clips import LEVELS, ClipSet, TalkingClip, picture_files, split_clips
from .dataset import PARTS
from .media import read_audio, read_video

__all__ = ["Expressions", "expressions_from_mediapipe", "read_manifest"]

COLUMNS = ("id", "identity", "sentence", "video", "audio", "emotion", "level", "expressions")
OPTIONAL = ("part", "licence")
_SAMPLE_RATE = 16000  # of sound that is read from media files, Hz
_EXACT = (".aif", ".aiff", ".flac", ".npz", ".wav")  # sound that is as long as what was recorded
_CODEC = 1024  # samples that a codec may add to fill its last block

_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409)  # outer contour
_TASK = "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/latest/"

_log = logging.getLogger(__name__)


def read_manifest(path: str | Path, test: float = 0.2, seed: int = 0, smooth: float = 0.0) -> ClipSet:
    """Clips of a table, see the columns above. Sound is read now, and pictures when a clip is asked for them.

    Args:
        path: The `.csv` file. The set is named after its stem.
        test: Share to hold out, see `split_clips`, where the table has no column `part`.
        seed: Seed of that choice.
        smooth: Standard deviation of a Gaussian in frames that smooths `exp`, `jaw` and `pose`, which jitter where they
            were fitted to single frames. 1 is usual. Default: none.

    Raises:
        LayoutError: A file, column or key is missing or damaged.
        AlignmentError: Coefficients, sound and pictures differ in length by more than one frame. Videos are checked
            when their pictures are read.
        LeakageError: Parts share an identity or a sentence.
        BrainDataError: Another mistake in a clip. The message names the line.
    """
    path = Path(path)
    clips, parts = [], {part: [] for part in PARTS}
    rows = _rows(path)
    for line, row in enumerate(rows, 2):
        try:
            clips.append(_smoothed(_clip(row, path.parent), smooth))
            if row.get("part"):
                parts[check_choice("part", row["part"], PARTS)].append(clips[-1].id)
        except BrainDataError as error:
            raise type(error)(f"line {line} of {path}: {error}") from error
    if "part" not in rows[0]:
        return ClipSet(path.stem, tuple(clips), split_clips(clips, test, seed))
    return ClipSet(path.stem, tuple(clips), {part: tuple(names) for part, names in parts.items()})


def _rows(path: Path) -> list[dict[str, str]]:
    """The lines of the table by column."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        raise LayoutError(f"expected a .csv file of clips at {path}, got {'another kind' if path.exists() else 'none'}")
    try:
        table = csv.DictReader(io.StringIO(read_text(path), newline=""), restkey="", restval=None)
    except ValueError as error:
        raise LayoutError(str(error)) from None
    header = list(table.fieldnames or ())
    for name in COLUMNS:
        if name not in header:
            raise LayoutError(
                f"expected a column {name!r} in {path}, got {', '.join(header)}{near_names(name, header)}"
            )
    for name in header:
        if name not in COLUMNS + OPTIONAL:
            raise LayoutError(f"expected columns {', '.join(COLUMNS + OPTIONAL)} in {path}, got {name!r}")
    rows = list(table)
    for line, row in enumerate(rows, 2):
        if "" in row or None in row.values():
            raise LayoutError(f"expected {len(header)} fields in line {line} of {path}, got more or fewer")
    if not rows:
        raise LayoutError(f"expected clips in {path}, got a header alone")
    return [{name: text.strip() for name, text in row.items()} for row in rows]


def _clip(row: dict[str, str], folder: Path) -> TalkingClip:
    level = row["level"]
    if level not in ("", *map(str, LEVELS)):
        raise BrainDataError(f"expected level 1, 2, 3 or nothing, got {level!r}")
    found = _expressions(_file(folder, row["expressions"], "expressions"))
    frames = len(found["exp"])
    video = _file(folder, row["video"], "a video or a folder of pictures") if row["video"] else None
    if video is not None and video.is_dir() and abs(len(picture_files(video)) - frames) > 1:
        raise AlignmentError(
            f"expected {frames} pictures in {video} for the coefficients, within one frame, got "
            f"{len(picture_files(video))}"
        )
    heard = _file(folder, row["audio"], "sound") if row["audio"] else video
    if heard is None or heard.is_dir():
        raise LayoutError("expected a file with sound, got an empty field audio and no video file")
    audio, sample_rate = _sound(heard, frames, found["fps"])
    return TalkingClip(
        row["id"],
        row["identity"],
        row["sentence"],
        audio=audio,
        sample_rate=sample_rate,
        frames=video,
        emotion=row["emotion"] or None,
        level=int(level) if level else None,
        licence=row.get("licence", ""),
        **found,
    )


def _smoothed(clip: TalkingClip, frames: float) -> TalkingClip:
    """The clip with series that a Gaussian of this standard deviation smooths. The ends are held."""
    if not 0 <= frames < np.inf:
        raise BrainDataError(f"expected smooth of 0 frames or more, got {frames}")
    if not frames:
        return clip
    try:
        from scipy.ndimage import gaussian_filter1d
    except ImportError as error:
        raise need("scipy", "smoothing coefficients") from error
    series = {name: getattr(clip, name) for name in ("exp", "jaw", "pose")}
    return replace(
        clip,
        **{
            name: gaussian_filter1d(values, frames, axis=0, mode="nearest")
            for name, values in series.items()
            if values is not None and values.size
        },
    )


def _file(folder: Path, name: str, what: str) -> Path:
    path = existing(folder / name)
    if not name or not path.exists():
        raise LayoutError(f"expected {what} at {path}, got {'no such file' if name else 'an empty field'}")
    return path


def _members(path: Path, names: Sequence[str], needed: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` file."""
    found = read_members(path, names, LayoutError)
    for name in needed:
        if name not in found:
            raise LayoutError(f"expected the array {name!r} in {path}, got {', '.join(found) or 'none that is known'}")
    return found


def _expressions(path: Path) -> dict[str, Any]:
    """Fields of a `TalkingClip` from a file of coefficients."""
    found: dict[str, Any] = dict(
        _members(path, ("exp", "jaw", "fps", "estimator", "pose", "mouth_box"), ("exp", "fps", "estimator"))
    )
    if found["exp"].ndim != 2:
        raise AxisError(f"expected exp (T, E) in {path}, got {found['exp'].shape}")
    if found["fps"].size != 1 or found["fps"].dtype.kind not in "fiu":
        raise AxisError(f"expected one number fps in {path}, got {found['fps'].dtype} {found['fps'].shape}")
    found["fps"], found["estimator"] = float(found["fps"].item()), str(found["estimator"])
    if not found["fps"] > 0:
        raise BrainDataError(f"expected fps above 0 in {path}, got {found['fps']}")
    found.setdefault("jaw", np.zeros((len(found["exp"]), 0), np.float32))
    return found


def _sound(path: Path, frames: int, fps: float) -> tuple[np.ndarray, int]:
    """Mono sound and its sample rate. What a codec added to fill its last block is cut."""
    if path.suffix.lower() == ".npz":
        found = _members(path, ("audio", "sample_rate"), ("audio", "sample_rate"))
        if found["sample_rate"].size != 1:
            raise AxisError(f"expected one number sample_rate in {path}, got {found['sample_rate'].shape}")
        return found["audio"], found["sample_rate"].item()
    audio = read_audio(path, _SAMPLE_RATE)
    surplus = len(audio) - frames * _SAMPLE_RATE / fps
    if path.suffix.lower() not in _EXACT and 0 < surplus <= _SAMPLE_RATE / fps + _CODEC:
        audio = audio[: max(1, round(frames * _SAMPLE_RATE / fps))]
    return audio, _SAMPLE_RATE


class Expressions(NamedTuple):
    """Coefficients of a video.

    Attributes:
        exp: (T, E) Scores of the blendshapes, 0 to 1.
        fps: Frames a second.
        names: Names of the E blendshapes.
        mouth_box: (T, 4) Left, top, right and bottom of the outer lips, in pixels.
        estimator: What fitted them.
    """

    exp: np.ndarray
    fps: float
    names: tuple[str, ...]
    mouth_box: np.ndarray
    estimator: str = "mediapipe"

    def save(self, path: str | Path) -> Path:
        """Write the `.npz` file that a table of clips names. Returns its path."""
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise BrainDataError(f"expected a file .npz to write, got {path.name}")
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **{**self._asdict(), "names": np.array(self.names)})
        return path


def expressions_from_mediapipe(video: str | Path, task: str | Path, names: Sequence[str] | None = None) -> Expressions:
    """Blendshape scores of a video by MediaPipe's Face Landmarker.

    The scores are those of the shapes of `IctFile`, which has a shape on each side for some of them. MediaPipe has no
    score for the tongue, which becomes 0.

    Args:
        video: Video file with one face.
        task: The file `face_landmarker.task`.
        names: Names of the coefficients to return, such as `IctFile.exp_names`. None returns all scores of MediaPipe.

    Raises:
        ImportError: mediapipe is not installed. It is in no extra, because it brings OpenCV and an audio driver.
        LayoutError: No such file.
        BrainDataError: A frame without a face, or a name that no score belongs to.
    """
    try:
        from mediapipe import Image, ImageFormat  # pyright: ignore[reportMissingImports]
        from mediapipe.tasks.python import BaseOptions, vision  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "coefficients from a video need mediapipe; install it with: pip install mediapipe, and fetch "
            f"{_TASK}face_landmarker.task"
        ) from error
    task = Path(task)
    if not task.is_file():
        raise LayoutError(
            f"expected the file of MediaPipe's Face Landmarker at {task}, got none; it comes from {_TASK}"
        )
    frames, fps = read_video(video)
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(task)),
        running_mode=vision.RunningMode.VIDEO,
        output_face_blendshapes=True,
        num_faces=1,
    )
    with vision.FaceLandmarker.create_from_options(options) as landmarker:

        def find(frame: int) -> Any:
            image = Image(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(frames[frame]))
            return landmarker.detect_for_video(image, round(1000 * frame / fps))

        return _converted(find, len(frames), fps, frames.shape[2:0:-1], names)


def _converted(
    find: Callable[[int], Any], count: int, fps: float, size: tuple[int, int], names: Sequence[str] | None
) -> Expressions:
    """Coefficients from the results of the Face Landmarker, for pictures of a size (width, height)."""
    scores, boxes, missing = [], [], []
    for frame in range(count):
        result = find(frame)
        if not result.face_blendshapes:
            missing.append(frame)
            continue
        scores.append({shape.category_name: shape.score for shape in result.face_blendshapes[0]})
        lips = np.array([(result.face_landmarks[0][i].x, result.face_landmarks[0][i].y) for i in _LIPS]) * size
        boxes.append(np.concatenate((lips.min(0), lips.max(0))))
    if missing:
        listed = ", ".join(map(str, missing[:8]))
        raise BrainDataError(f"expected a face in all {count} frames, got none in {len(missing)}: {listed}; cut them")
    known = {_plain(name): name for name in scores[0]}
    wanted = tuple(scores[0]) if names is None else tuple(names)
    exp = np.zeros((count, len(wanted)), np.float32)
    for column, name in enumerate(wanted):
        if (source := _source(name, known)) is not None:
            exp[:, column] = [found[source] for found in scores]
    return Expressions(exp, float(fps), wanted, np.array(boxes, np.float32))


def _plain(name: str) -> str:
    """A name of a shape in one spelling: browDown_L, browDownLeft and BrowDown_Left are one shape."""
    text = name.lower()
    for short, side in (("_l", "left"), ("_r", "right")):
        text = text.removesuffix(short) + side if text.endswith(short) else text
    return text.replace("_", "")


def _source(name: str, known: dict[str, str]) -> str | None:
    """The score that belongs to a shape. A shape of one side may share the score of both. None is the tongue."""
    plain = _plain(name)
    for key in (plain, plain.removesuffix("left"), plain.removesuffix("right")):
        if key in known:
            return known[key]
    if plain == "tongueout":
        return None
    raise BrainDataError(
        f"expected a shape that MediaPipe scores, got {name!r}{near_names(name, list(known.values()))}"
    )
