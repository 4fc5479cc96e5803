"""EEG-3D: people look at pictures and turning videos of coloured objects, whose point clouds are known.

    study = open_objects(root, "sub01")                  # both streams, clouds and features of the objects
    study.cloud("eeg3d:oil_lamp_08")                     # (8192, 6), xyz and rgb
    dataset = load(root, "sub01", kind="dynamic")        # one stream
    train = dataset.pairs("sub01", "eeg3d_objects", "train")

There are 72 classes of ten objects. Eight objects of each class are in the train part and two in the test part, so the
test is not zero-shot. The data set belongs to Neuro-3D (Guo et al., arXiv 2411.12248).
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from veca.data.names import entries, stem
from veca.hashes import file_digest

from ..data.dataset import BrainDataset, Split, Subject
from ..data.ids import Ids
from ..data.objects import ObjectStudy
from ..data.pickles import read_torch
from ..data.responses import Responses, TrialTable
from ..data.spaces import SensorSpace
from ..data.splits import holdout, split_from_ids
from ..data.stimuli import StimulusSet
from ..errors import AxisError, IdError, LayoutError, near_names
from ..features.arrays import ArrayFeatures
from ._files import check_finite, provenance, read_array, read_json, read_table, subject_number
from ._xlsx import read_sheet

__all__ = ["EEG3D_CHANNELS", "PointClouds", "clip_features", "describe", "detect", "load", "open_objects"]

_log = logging.getLogger(__name__)

EEG3D_CHANNELS = tuple(
    """FP1 FPZ FP2 AF3 AF4 F7 F5 F3 F1 FZ F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 T7 C5 C3 C1 CZ C2 C4 C6 T8 M1
    TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 M2 P7 P5 P3 P1 PZ P2 P4 P6 P8 PO7 PO5 PO3 POZ PO4 PO6 PO8 CB1 O1 OZ O2
    CB2""".split()
)
"""Names of the 64 channels in the order in which the published preprocessing stores them."""

_WINDOWS = {"static": (1.0, 250.0), "dynamic": (6.0, 100.0)}  # seconds, hertz
_ONSET = 0.2  # seconds from the start of a window to the stimulus
_TEST_OBJECTS = (8, 9)
_NAME = re.compile(r"(?P<number>\d+)_(?P<key>(?P<word>.+)_(?P<object>\d\d))")
_SESSIONS, _SESSION_TRIALS, _TEST_SESSIONS = 24, 72, 4
_HELD_OUT = 1 / 6  # of the classes, for eeg3d_classes
_FEATURES = {False: "clip_feature.pth", True: "clip_feature_gray.pth"}


class _Object(NamedTuple):
    """The parts of an object's name.

    Attributes:
        name: The whole name, such as `46_oil_lamp_08`.
        number: Number of the class, `46`.
        key: Name without that number, `oil_lamp_08`.
        word: Word for the class, `oil_lamp`.
        index: Number of the object in its class, 8.
    """

    name: str
    number: str
    key: str
    word: str
    index: int

    @property
    def id(self) -> str:
        return f"eeg3d:{self.key}"

    @property
    def folder(self) -> str:
        """Number and word of the class, `46_oil_lamp`, by which classes are sorted."""
        return f"{self.number}_{self.word}"


class PointClouds:
    """Point clouds by image id. As a source of images it draws each cloud from the front.

    The data set has no files of pictures.

    Args:
        ids: Image ids of the objects.
        paths: Paths of their `.npy` files. Each has an array (points, 6) of xyz, and of rgb in [0, 1].
        size: Side of a picture in pixels, where the caller names none.
    """

    def __init__(self, ids: Ids, paths: Sequence[Path], size: int = 128):
        self.paths, self.size = list(paths), size
        self._rows = {name: row for row, name in enumerate(ids)}

    def __len__(self) -> int:
        return len(self.paths)

    def cloud(self, image_id: str) -> np.ndarray:
        """The stored point cloud of an object, fp32 (points, 6): xyz, not centred or scaled, and rgb."""
        if image_id not in self._rows:
            raise IdError(f"expected an object of EEG-3D, got {image_id!r}{near_names(image_id, list(self._rows))}")
        return self._read(self._rows[image_id])

    def read(self, index: int, size: int | None) -> np.ndarray:
        """A picture of the points on white, uint8 (size, size, 3), seen along -z with y up and the nearest on top."""
        size, cloud = size or self.size, self._read(index)
        xyz = cloud[:, :3] - cloud[:, :3].mean(0)
        reach = np.linalg.norm(xyz, axis=1).max()
        across, up = (xyz[:, :2] / (reach or 1) * 0.5 + 0.5).T.clip(0, 1) * (size - 1)
        nearest_last = np.argsort(xyz[:, 2], kind="stable")
        image = np.full((size, size, 3), 255, np.uint8)
        rows, columns = size - 1 - up.round().astype(int), across.round().astype(int)
        image[rows[nearest_last], columns[nearest_last]] = (cloud[nearest_last, 3:] * 255).round()
        return image

    def _read(self, index: int) -> np.ndarray:
        path = self.paths[index]
        cloud = np.asarray(read_array(path), np.float32)
        if cloud.ndim != 2 or cloud.shape[1] != 6:
            raise AxisError(f"expected a point cloud (points, 6) in {path}, got {cloud.shape}")
        if not (cloud[:, 3:].min() >= 0 and cloud[:, 3:].max() <= 1):
            low, high = cloud[:, 3:].min(), cloud[:, 3:].max()
            raise LayoutError(f"expected colours in [0, 1] in columns 3 to 5 of {path}, got {low:.3g} to {high:.3g}")
        return cloud


def detect(root: str | Path) -> bool:
    """Whether a folder has arrays of this layout in `EEGdata/sub*/`."""
    patterns = ("process_data_*Hz.npy", "sub*_train_data_*Hz.npy")
    return any(entries(folder, name) for folder in entries(Path(root) / "EEGdata", "sub*") for name in patterns)


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """EEGdata/subXX/, either
    process_data_1s_250Hz.npy (1728, 64, 250), process_data_6s_100Hz.npy (1728, 64, 600) and name_label.npy (1728,), or
    subXX_train_data_1s_250Hz.npy (72, 8, 2, 64, 250), subXX_test_data_1s_250Hz.npy (72, 2, 4, 64, 250), and the same of
    6s_100Hz with 600 samples
video_new/NN_name_MM.mp4: only the names are used
point_cloud_simple/name_MM.npy (8192, 6): xyz, and rgb in [0, 1]
color_label.xlsx or .csv, optional: columns name (name_MM), label (0 to 5)
description.json, optional: name_MM to a text
clip_feature.pth and clip_feature_gray.pth, optional: name_MM to text (1024,), video (1024,), point (768,)"""


def load(
    root: str | Path,
    subject: str | int,
    *,
    kind: str = "static",
    window: float | None = None,
    sfreq: float | None = None,
    ch_names: Sequence[str] | None = None,
    allocate: Callable[..., np.ndarray] = np.empty,
) -> BrainDataset:
    """Load one participant's responses to pictures, or to turning videos.

    `process_data_*` is read where it exists, in the order of the recording. Otherwise the arrays that are already split
    are read. The stored values are standardised within each trial, so the subject's normalizer is "trial_z".

    Args:
        root: Folder with the files that `describe` lists.
        subject: Name or number of the participant, such as "sub01" or 1.
        kind: "static" for pictures, 1 s at 250 Hz, or "dynamic" for videos, 6 s at 100 Hz.
        window: Length of a trial in seconds, where the files have another one. The published code also writes 7 s.
        sfreq: Sampling rate in hertz, where the files have another one. Both numbers are part of the file names, and
            their product must be the length of the last axis.
        ch_names: Names of the channels. None means `EEG3D_CHANNELS`, which has 64 names.
        allocate: Function (shape, dtype) -> array for values that cannot be memory-mapped.

    Returns:
        A data set with these splits:

        | name | test part |
        |---|---|
        | eeg3d_objects | objects 08 and 09 of every class, as in the paper |
        | eeg3d_sessions | the same objects in the last 4 sessions; the other 20 are for training |
        | eeg3d_classes | all objects of a sixth of the classes, 12 of 72, for retrieval of unseen classes |

        "eeg3d_sessions" is there only where the session of every trial is known.

        The labels are "class" (its position among the sorted names), "name",
        "object", and "color" where there is a table of colours. Images are drawn from the point clouds, which
        `stimuli.source.cloud(id)` returns.

    Raises:
        LayoutError: A file is missing, or has another shape than its name says.
        IdError: An object is missing from its class, the trials, the clouds or the colours.
    """
    subject = f"sub{subject_number(subject):02d}"
    root, folder = Path(root), Path(root) / "EEGdata" / subject
    if kind not in _WINDOWS:
        raise LayoutError(f"expected kind {' or '.join(map(repr, _WINDOWS))}, got {kind!r}")
    window, sfreq = window or _WINDOWS[kind][0], sfreq or _WINDOWS[kind][1]
    suffix, num_times = f"{window:g}s_{sfreq:g}Hz.npy", round(window * sfreq)
    if not folder.is_dir():
        known = [path.name for path in entries(folder.parent, "sub*")]
        raise LayoutError(f"expected a folder {folder}, got none of this name{near_names(subject, known)}")
    objects = _objects(root)
    if (folder / f"process_data_{suffix}").is_file():
        values, trials, files = _read_recorded(folder, suffix, num_times, objects)
    else:
        values, trials, files = _read_split(folder, subject, suffix, num_times, objects, allocate)
    n_chans = values.shape[1]
    if ch_names is None and n_chans != len(EEG3D_CHANNELS):
        raise LayoutError(
            f"expected {len(EEG3D_CHANNELS)} channels in {files[0]}, got {n_chans}; pass ch_names= in their order"
        )
    names = EEG3D_CHANNELS if ch_names is None else tuple(ch_names)
    space = SensorSpace(names, sfreq, np.arange(num_times) / sfreq - _ONSET, unit="z")
    responses = Responses(values, trials, unit="z-scored per trial")
    facts = provenance("eeg3d", root, files, kind=kind)
    person = Subject(subject, responses, space, normalizer="trial_z", provenance=facts)
    splits = {split.name: split for split in _splits(objects, trials)}
    return BrainDataset([person], _stimuli(root, objects), splits)


def open_objects(
    root: str | Path,
    subject: str | int,
    *,
    ch_names: Sequence[str] | None = None,
    allocate: Callable[..., np.ndarray] = np.empty,
) -> ObjectStudy:
    """One participant's responses to pictures and videos, with the clouds and features of the objects.

    The targets are the "video" features of `clip_features`, and the grey targets those without colour. Both are None
    where there is no file. Their fingerprint has the hash of the file.

    Args:
        root: Folder with the files that `describe` lists.
        subject: Name or number of the participant, such as "sub01" or 1.
        ch_names: Names of the channels. None means `EEG3D_CHANNELS`.
        allocate: Function (shape, dtype) -> array for values that cannot be memory-mapped.

    Returns:
        A study with the splits and labels of `load`. A stream without files is None.

    Raises:
        LayoutError: Neither stream has files, or a file is missing or has another shape than its name says.
        IdError: An object is missing from its class, the trials, the clouds, the colours or the features.
    """
    name = f"sub{subject_number(subject):02d}"
    folder, streams = Path(root) / "EEGdata" / name, {}
    for kind, (window, sfreq) in _WINDOWS.items():
        suffix = f"{window:g}s_{sfreq:g}Hz.npy"
        if any((folder / file).is_file() for file in (f"process_data_{suffix}", f"{name}_train_data_{suffix}")):
            streams[kind] = load(root, subject, kind=kind, ch_names=ch_names, allocate=allocate)
    if not streams:
        load(root, subject, ch_names=ch_names)  # says which file is missing
    shared = next(iter(streams.values())).stimuli
    streams = {kind: BrainDataset(list(x.subjects.values()), shared, x.splits) for kind, x in streams.items()}
    targets = {gray: _targets(Path(root), gray) for gray in _FEATURES}
    return ObjectStudy(streams.get("static"), streams.get("dynamic"), targets[False], targets[True])


def clip_features(root: str | Path, gray: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """Precomputed CLIP features of the objects.

    Args:
        root: Folder with the files that `describe` lists.
        gray: Whether to load features of the objects without colour, from `clip_feature_gray.pth`.

    Returns:
        Features by image id, then by name: "text" (1024,), "video" (1024,) and "point" (768,), fp32.

    Raises:
        LayoutError: The file does not exist.
        UnsafePickleError: The file holds more than tensors, so it is not opened.
    """
    path = Path(root) / _FEATURES[gray]
    if not path.is_file():
        raise LayoutError(f"expected features at {path}, got no such file; it is optional")
    stored = read_torch(path)
    try:
        return {
            f"eeg3d:{key}": {name: feature.float().numpy() for name, feature in features.items()}
            for key, features in stored.items()
        }
    except AttributeError:
        raise LayoutError(f"expected tensors by object and name in {path}, got something else") from None


def _targets(root: Path, gray: bool) -> ArrayFeatures | None:
    """The "video" features of the objects, or None where there is no file."""
    path = root / _FEATURES[gray]
    if not path.is_file():
        return None
    found = clip_features(root, gray)
    try:
        values = np.stack([features["video"] for features in found.values()])
    except KeyError:
        raise LayoutError(f"expected features named 'video' of every object in {path}, got objects without") from None
    return ArrayFeatures(values, list(found), f"{path.name}:video:{file_digest(path)[:12]}", f"{path.stem}:video")


def _splits(objects: Sequence[_Object], trials: TrialTable) -> list[Split]:
    test = [item.id for item in objects if item.index in _TEST_OBJECTS]
    train = [item.id for item in objects if item.index not in _TEST_OBJECTS]
    splits = [split_from_ids("eeg3d_objects", train, test)]
    if (trials.session > 0).all():
        first = range(1, _SESSIONS - _TEST_SESSIONS + 1)
        sessions = {"train": first, "val": first, "test": range(first.stop, _SESSIONS + 1)}
        splits.append(split_from_ids("eeg3d_sessions", train, test, sessions=sessions))
    classes = {item.id: item.folder for item in objects}
    if len(set(classes.values())) > 1:
        split = holdout(trials, _HELD_OUT, by="concept", concepts=classes)
        splits.append(replace(split, name="eeg3d_classes"))
    return splits


def _objects(root: Path) -> list[_Object]:
    """All objects in the order of their sorted names `NN_name_MM`, which is the order of the split arrays.

    Sorting without the number `NN` would give another order.
    """
    names = sorted(stem(path, (".mp4",)) for path in entries(root / "video_new", "*.mp4"))
    if not names:
        raise LayoutError(
            f"expected files NN_name_MM.mp4 in {root / 'video_new'}, got none; their names give the classes"
        )
    objects = [_parse(name, root / "video_new") for name in names]
    classes: dict[str, set[int]] = {}
    for item in objects:
        classes.setdefault(item.folder, set()).add(item.index)
    if len({item.number for item in objects}) != len(classes):
        raise LayoutError(f"expected one name for each class number in {root / 'video_new'}, got {', '.join(classes)}")
    wanted = set().union(*classes.values())
    for folder, found in classes.items():
        if found != wanted:
            missing = min(wanted - found)
            raise IdError(
                f"expected {len(wanted)} objects of each class in {root / 'video_new'}, got {len(found)} of {folder}: "
                f"{folder}_{missing:02d} is missing"
            )
    return objects


def _parse(name: str, where: Path) -> _Object:
    match = _NAME.fullmatch(name)
    if match is None:
        raise LayoutError(f"expected names such as 46_oil_lamp_08 in {where}, got {name!r}")
    return _Object(name, match["number"], match["key"], match["word"], int(match["object"]))


def _read_recorded(
    folder: Path, suffix: str, num_times: int, objects: Sequence[_Object]
) -> tuple[np.ndarray, TrialTable, list[Path]]:
    """Values (trials, channels, times), memory-mapped, in the order of the recording."""
    path, labels = folder / f"process_data_{suffix}", folder / "name_label.npy"
    values, names = read_array(path), read_array(labels)
    _check_times(values, 3, num_times, path)
    if names.shape != (len(values),):
        raise LayoutError(f"expected {len(values)} names in {labels}, one for each trial of {path}, got {names.shape}")
    ids = {item.name: item.id for item in objects}
    unknown = [name for name in np.unique(names).tolist() if name not in ids]
    if unknown:
        raise IdError(
            f"expected names of video_new in {labels}, got {len(unknown)} others, such as {unknown[0]!r}"
            f"{near_names(unknown[0], list(ids))}"
        )
    absent = sorted(set(ids) - set(names.tolist()))
    if absent:
        raise IdError(f"expected trials of {len(ids)} objects in {labels}, got none of {len(absent)}: {absent[0]}")
    session = -1
    if len(values) == _SESSIONS * _SESSION_TRIALS:
        session = np.arange(len(values)) // _SESSION_TRIALS + 1
    check_finite(values, path)
    return values, TrialTable.of([ids[name] for name in names.tolist()], session=session), [path, labels]


def _read_split(
    folder: Path,
    subject: str,
    suffix: str,
    num_times: int,
    objects: Sequence[_Object],
    allocate: Callable[..., np.ndarray],
) -> tuple[np.ndarray, TrialTable, list[Path]]:
    """Values of the train and test arrays, one after the other, as fp32 (trials, channels, times).

    The arrays have shape (classes, objects, repeats, channels, times).
    """
    num_classes = len({item.folder for item in objects})
    parts, ids, files = [], [], []
    for part in ("train", "test"):
        path = folder / f"{subject}_{part}_data_{suffix}"
        array = read_array(path)
        _check_times(array, 5, num_times, path)
        of_part = [item.id for item in objects if (item.index in _TEST_OBJECTS) == (part == "test")]
        expected = (num_classes, len(of_part) // num_classes)
        if array.shape[:2] != expected:
            raise LayoutError(
                f"expected {expected[0]} classes and {expected[1]} objects of each in {path}, got shape {array.shape}"
            )
        parts.append(array)
        ids.append(np.repeat(of_part, array.shape[2]))
        files.append(path)
    if parts[0].shape[3] != parts[1].shape[3]:
        raise LayoutError(
            f"expected {parts[0].shape[3]} channels in {files[1]}, as in {files[0]}, got {parts[1].shape[3]}"
        )
    values = allocate((sum(map(len, ids)), *parts[0].shape[3:]), np.float32)
    start = 0
    for array, path in zip(parts, files, strict=True):
        for group in array:
            rows = group.reshape(-1, *group.shape[2:])
            check_finite(rows, path, first_row=start)
            values[start : start + len(rows)] = rows
            start += len(rows)
    return values, TrialTable.of(np.concatenate(ids), trial=-1), files


def _check_times(array: np.ndarray, ndim: int, num_times: int, path: Path) -> None:
    if array.ndim != ndim or array.shape[-1] != num_times:
        raise LayoutError(
            f"expected {ndim} axes in {path}, the last of round(window * sfreq) = {num_times} samples, got shape "
            f"{array.shape}; pass window= and sfreq= as the file has them"
        )


def _stimuli(root: Path, objects: Sequence[_Object]) -> StimulusSet:
    ids, paths = [item.id for item in objects], [root / "point_cloud_simple" / f"{item.key}.npy" for item in objects]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise IdError(
            f"expected point clouds of {len(paths)} objects, got none of {len(missing)}: {missing[0]} is missing"
        )
    classes = sorted({item.folder for item in objects})
    labels = {
        "class": [classes.index(item.folder) for item in objects],
        "name": [item.word for item in objects],
        "object": [item.index for item in objects],
    }
    colors = _color_labels(root)
    if colors is None:
        _log.info("no color_label.xlsx or color_label.csv in %s: images have no label 'color'", root)
    else:
        labels["color"] = [_of_object(colors, item, "a colour label") for item in objects]
    captions, path = {}, root / "description.json"
    if path.is_file():
        texts = read_json(path)
        found = {item.id: _of_object(texts, item, "a description") for item in objects}
        captions = {name: [text] if isinstance(text, str) else list(text) for name, text in found.items()}
    return StimulusSet(ids, PointClouds(ids, paths), captions, labels)


def _color_labels(root: Path) -> dict[str, int] | None:
    """Labels by name_MM, from the workbook or from the same table as text. None where there is neither."""
    for path, read in ((root / "color_label.xlsx", read_sheet), (root / "color_label.csv", read_table)):
        if path.is_file():
            table = read(path, ("name", "label"))
            try:
                return {name: _whole(label) for name, label in zip(table["name"], table["label"], strict=True)}
            except ValueError as error:
                raise LayoutError(f"expected whole numbers in column 'label' of {path}: {error}") from None
    return None


def _whole(text: str) -> int:
    if not float(text).is_integer():
        raise ValueError(f"got {text}")
    return int(float(text))


def _of_object(values: Mapping, item: _Object, what: str):
    if item.key not in values:
        raise IdError(f"expected {what} of every object, got none of {item.key}{near_names(item.key, list(values))}")
    return values[item.key]
