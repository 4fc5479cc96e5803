"""Writes a simulated subject, or a study of objects, as a folder of EEG-3D, as `layouts.eeg3d` reads it."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import torch

from brainmodels.data.dataset import BrainDataset, Subject
from brainmodels.data.objects import ObjectStudy
from brainmodels.errors import BrainDataError
from brainmodels.simulated.scenes import parse_scene_id
from veca.data.scenes import COLORS, SHAPES, sample_scene

__all__ = ["scene_cloud", "write_eeg3d"]

_TRAIN_OBJECTS, _TEST_OBJECTS = 8, 2
_NAMES = {1.0: "1s_250Hz", 6.0: "6s_100Hz"}
_WORKBOOK = {
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/></Types>',
    "xl/workbook.xml": '<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"/>',
}


def write_eeg3d(
    dataset: BrainDataset | ObjectStudy,
    root: str | Path,
    subject: str = "sim01",
    split: str = "scenes",
    names: Sequence[str] = SHAPES,
    form: str = "process",
    labels: str = "xlsx",
    num_points: int = 256,
) -> dict[str, str]:
    """Write the objects, their clouds and colours, and one subject's responses.

    Of drawn scenes, a class is a shape. Its first 8 train images become objects 00 to 07, and its first 2 test images
    08 and 09. All train images must be shown equally often, and all test images too. A call for a second kind of
    responses to the same images adds files to the folder.

    A study is written as a whole: both streams, its own classes, objects, clouds and colours, and its targets as
    features named "video".

    Args:
        dataset: Data set of `simulate_eeg`, or a study of objects. "static" responses become 1s_250Hz, "dynamic" ones
            6s_100Hz.
        root: Folder to write to, which is created if it is missing.
        subject: Id of the subject. sim01 becomes sub01.
        split: Name of the split of a data set whose train, validation and test images are taken.
        names: Names of a data set's classes, for as many of `SHAPES`. Classes get numbers in this order.
        form: "process" writes trials as recorded, "split" writes arrays by class, object and repeat.
        labels: Format of the table of colours, "xlsx" or "csv".
        num_points: Number of points in each cloud of a data set.

    Returns:
        Ids that `layouts.eeg3d.load` gives to the images, by their ids in `dataset`.
    """
    root = Path(root)
    if isinstance(dataset, ObjectStudy):
        named = _name(dataset)
        clouds = {image_id: dataset.cloud(image_id) for image_id in named}
        colors = dataset.label("color", list(named)).tolist()
        people = [dataset.dataset(stream).subject(subject) for stream in dataset.streams]
        _write_features(root, dataset, named)
    else:
        named = _choose(dataset, split, names)
        clouds = {image_id: scene_cloud(image_id, num_points) for image_id in named}
        colors = [COLORS.index(color) for color in dataset.stimuli.label("color", list(named))]
        people = [dataset.subject(subject)]
    keys = {image_id: name.split("_", 1)[1] for image_id, name in named.items()}
    for path in (root / "video_new", root / "point_cloud_simple"):
        path.mkdir(parents=True, exist_ok=True)
    for image_id, name in named.items():
        (root / "video_new" / f"{name}.mp4").touch()
        np.save(root / "point_cloud_simple" / f"{keys[image_id]}.npy", clouds[image_id])
    _write_labels(root, labels, dict(zip(keys.values(), colors, strict=True)))
    for person in people:
        _write_responses(root / "EEGdata" / f"sub{subject[-2:]}", person, named, form)
    return {image_id: f"eeg3d:{key}" for image_id, key in keys.items()}


def _write_responses(folder: Path, person: Subject, named: Mapping[str, str], form: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    suffix = _NAMES[round(len(person.space.times) / person.space.sfreq, 6)]
    trials = np.flatnonzero(np.isin(person.responses.trials.image_id, list(named)))
    if form == "process":
        np.save(folder / f"process_data_{suffix}.npy", person.responses.batch(trials).astype(np.float64))
        shown = person.responses.trials.image_id[trials]
        np.save(folder / "name_label.npy", np.array([named[image_id] for image_id in shown]))
        return
    for part, count in {"train": _TRAIN_OBJECTS, "test": _TEST_OBJECTS}.items():
        ids = [i for i, name in named.items() if (int(name[-2:]) < _TRAIN_OBJECTS) == (part == "train")]
        values = np.stack([person.responses.batch(rows) for rows in person.responses.rows_of(ids)])
        path = folder / f"{folder.name}_{part}_data_{suffix}.npy"
        np.save(path, values.reshape(-1, count, *values.shape[1:]).astype(np.float64))


def _write_features(root: Path, study: ObjectStudy, named: Mapping[str, str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, targets in (("clip_feature", study.targets), ("clip_feature_gray", study.grey_targets)):
        if targets is not None:
            values = torch.from_numpy(targets.get(list(named)))
            keys = [written.split("_", 1)[1] for written in named.values()]
            features = {key: {"video": value.clone()} for key, value in zip(keys, values, strict=True)}
            torch.save(features, root / f"{name}.pth")


def _name(study: ObjectStudy) -> dict[str, str]:
    """Names such as 03_oil_lamp_08 by object id, in sorted order of the names."""
    ids = study.stimuli.ids.tolist()
    columns = (study.label(name, ids).tolist() for name in ("class", "name", "object"))
    names = {i: f"{cls + 1:02d}_{word}_{number:02d}" for i, cls, word, number in zip(ids, *columns, strict=True)}
    return dict(sorted(names.items(), key=lambda item: item[1]))


def scene_cloud(image_id: str, num_points: int) -> np.ndarray:
    """A point cloud for a drawn scene, fp32 (num_points, 6): its main object as a slab, in the colours of the picture.

    Args:
        image_id: Id of the scene, which is also the seed of the draw.
        num_points: Number of points to draw from the pixels of the object.
    """
    seed, index = parse_scene_id(image_id)
    scene = sample_scene(index, seed)
    image, mask = scene.render(128)
    rows, columns = np.nonzero(mask.numpy() == 1 + scene.label)
    rng = np.random.default_rng((seed, index, 3))
    chosen = rng.integers(0, len(rows), num_points)
    y, x = 1 - (rows[chosen] + 0.5) / 64, (columns[chosen] + 0.5) / 64 - 1
    depth = rng.uniform(-0.1, 0.1, num_points)
    colors = image.numpy()[:, rows[chosen], columns[chosen]].T
    return np.column_stack([x, y, depth, colors]).astype(np.float32)


def _choose(dataset: BrainDataset, split: str, names: Sequence[str]) -> dict[str, str]:
    """Names such as 03_oil_lamp_08 by image id, in sorted order of the names."""
    chosen, parts = {}, dataset.split(split)
    first = 0
    for of_part, count in ((parts.train | parts.val, _TRAIN_OBJECTS), (parts.test, _TEST_OBJECTS)):
        ids = [image_id for image_id in dataset.stimuli.ids.tolist() if image_id in of_part]
        shapes = dataset.stimuli.label("shape", ids)
        for number, (shape, word) in enumerate(zip(SHAPES, names, strict=False), 1):
            of_shape = [image_id for image_id, found in zip(ids, shapes, strict=True) if found == shape][:count]
            if len(of_shape) < count:
                raise BrainDataError(
                    f"expected {count} images of a {shape} in a part of split {split!r}, got {len(of_shape)}; "
                    "simulate more"
                )
            chosen |= {i: f"{number:02d}_{word}_{first + index:02d}" for index, i in enumerate(of_shape)}
        first = count
    return dict(sorted(chosen.items(), key=lambda item: item[1]))


def _write_labels(root: Path, form: str, table: Mapping[str, int]) -> None:
    rows = [("name", "label"), *((name, str(label)) for name, label in table.items())]
    if form == "csv":
        (root / "color_label.csv").write_text("".join(f"{name},{label}\n" for name, label in rows), encoding="utf-8")
        return
    lines = []
    for number, (name, label) in enumerate(rows, 1):
        text = f'<c r="A{number}" t="inlineStr"><is><t>{escape(name)}</t></is></c>'
        value = (
            f'<c r="B{number}"><v>{label}</v></c>'
            if number > 1
            else f'<c r="B1" t="inlineStr"><is><t>{label}</t></is></c>'
        )
        lines.append(f'<row r="{number}">{text}{value}</row>')
    namespace = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    sheet = f'<worksheet xmlns="{namespace}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in {**_WORKBOOK, "xl/worksheets/sheet1.xml": sheet}.items():
            archive.writestr(member, content)
    (root / "color_label.xlsx").write_bytes(buffer.getvalue())
