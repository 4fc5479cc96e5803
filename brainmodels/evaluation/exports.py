"""Scores of voxels as files for other programs: NIfTI and GIFTI maps with names of BIDS, and a CSV table.

    paths = export_scores("out/study", "out/maps")
    # out/maps/sub-01_task-scenes_space-T1w_stat-r_desc-ridgeVeca_statmap.nii.gz
    # out/maps/sub-01_task-scenes_space-T1w_desc-scores_voxels.csv

Voxels that were not measured are NaN in maps, so that they differ from a score of 0.
"""

import csv
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veca.files import read_json, read_members

from ..data.dataset import BrainDataset, Subject
from ..data.prepared import load_prepared
from ..data.spaces import VoxelSpace
from ..errors import AxisError, BrainDataError, LayoutError, check_choice, need
from ..records import plain

if TYPE_CHECKING:
    from .run import Evaluation

__all__ = ["FORMATS", "export_scores"]

FORMATS = ("nifti", "gifti", "csv")
_COMMON = ("ceiling", "ceiling_low", "ceiling_high")  # arrays of voxels.npz that belong to no model
_OF_ROWS = re.compile(r"(.+)_(\d+)")
_HEMISPHERES = (("L", "CortexLeft"), ("R", "CortexRight"))
_MEANINGS = {
    "r": "Correlation of predicted and measured responses over test images",
    "p": "p value of r by permutation of the test images",
    "p_max": "p value of r, corrected over voxels by the largest r of each permutation",
    "q": "p value of r, corrected by the false discovery rate",
    "ceiling": "Largest share of variance that the noise allows a model to explain",
    "ceiling_low": "Lower end of the interval of the ceiling",
    "ceiling_high": "Upper end of the interval of the ceiling",
    "ncsnr": "Standard deviation of the signal over that of the noise, for one presentation",
}


def export_scores(
    evaluation: "str | Path | Evaluation",
    out: str | Path,
    formats: Sequence[str] | None = None,
    data: str | Path | BrainDataset | None = None,
) -> list[Path]:
    """Write the scores of all voxels of an evaluation.

    Args:
        evaluation: Folder that `veca brain evaluate` has written, with record.json and voxels.npz, or what `evaluate`
            has returned.
        out: Folder to write to. Files of the same names are replaced.
        formats: Some of "nifti", "gifti" and "csv". None takes what the space allows: NIfTI for volumes with an
            affine, GIFTI for surfaces, and CSV for all.
        data: Prepared folder, or data set, of the subject. None takes the folder that the record names.

    Returns:
        The paths of the written files: maps with their JSON files, then the table.

    Raises:
        LayoutError: A file of the evaluation is missing or damaged.
        BrainDataError: The data are not known, or a format does not fit the space.
        AxisError: Scores and voxels differ in number.
    """
    folder = Path(evaluation) if isinstance(evaluation, str | Path) else None
    names, arrays, record = _of_object(evaluation) if folder is None else _of_folder(folder)
    subject = _subject(evaluation, record, data)
    space = subject.space
    if not isinstance(space, VoxelSpace):
        raise BrainDataError(f"expected scores of voxels for maps, got those of {type(space).__name__}")
    for name, array in arrays.items():
        if array.shape != (len(space),):
            raise AxisError(f"expected {name} of {len(space)} voxels, as {subject.id} has, got {array.shape}")
    if space.ncsnr is not None:
        arrays = {**arrays, "ncsnr": space.ncsnr}
    wanted = _formats(space, formats)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    prefix, labels, written = _prefix(subject), _labels(names), []
    for name, array in arrays.items():
        stat, row = _parted(name)
        entities = f"stat-{_alphanumeric(stat)}" + ("" if row is None else f"_desc-{labels[row]}")
        model = {} if row is None else {"Model": names[row]}
        told: dict[str, Any] = {**model, "Statistic": stat, "Description": _MEANINGS.get(stat, stat)}
        told |= {"Subject": subject.id, "Evaluation": None if folder is None else str(folder)}
        paths = _write_maps(out, prefix, entities, space, array, wanted)
        if paths:
            written += [*paths, _write_json(out / f"{_join(prefix)}_{entities}_statmap.json", told)]
    if "csv" in wanted:
        written.append(_write_csv(out / f"{_join(prefix)}_desc-scores_voxels.csv", space, arrays, labels))
    return written


def _of_folder(folder: Path) -> tuple[list[str], dict[str, np.ndarray], Mapping[str, Any]]:
    """Names of the rows, arrays (V,) by name, and the record."""
    path = folder / "voxels.npz"
    for needed in (folder / "record.json", path):
        if not needed.is_file():
            raise LayoutError(f"expected the folder of an evaluation with {needed.name} at {folder}, got none")
    if not zipfile.is_zipfile(path):
        raise LayoutError(f"expected a complete .npz file at {path}, got something else; evaluate again")
    with zipfile.ZipFile(path) as archive:
        known = [name.removesuffix(".npy") for name in archive.namelist()]
    arrays = read_members(path, known, LayoutError)
    if "names" not in arrays:
        raise LayoutError(f"expected an array 'names' in {path}, got {', '.join(known) or 'nothing'}")
    names = arrays.pop("names").tolist()
    for name, array in arrays.items():
        row = _parted(name)[1]
        if row is not None and row >= len(names):
            raise LayoutError(f"expected arrays of {len(names)} models in {path}, got {name!r} of {array.shape}")
    return names, arrays, read_json(folder / "record.json", LayoutError)


def _of_object(evaluation: Any) -> tuple[list[str], dict[str, np.ndarray], Mapping[str, Any]]:
    """The same of what `evaluate` has returned."""
    names = [f"{item.model}, {item.features}" for item in evaluation.encoded]
    arrays = {f"r_{number}": np.asarray(item.r) for number, item in enumerate(evaluation.encoded)}
    if evaluation.study.ceiling is not None:
        arrays["ceiling"] = np.asarray(evaluation.study.ceiling)
    significance = getattr(evaluation, "significance", None)
    return names, arrays | dict(significance.arrays() if significance is not None else {}), evaluation.record


def _subject(evaluation: Any, record: Mapping[str, Any], data: str | Path | BrainDataset | None) -> Subject:
    """The subject of an evaluation."""
    if data is None and not isinstance(evaluation, str | Path):
        return evaluation.study.test.subject
    name = record["data"]["subject"]
    if isinstance(data, BrainDataset):
        return data.subject(name)
    folders = [data] if data is not None else list(record["settings"].get("data", []))
    missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
    if missing or not folders:
        raise BrainDataError(
            f"expected the prepared folder of {name}, which has the places of its voxels, got "
            f"{missing[0] if missing else 'none'!r}; pass data=FOLDER (--data FOLDER)"
        )
    found = [subject for folder in folders for subject in load_prepared(folder, verify=False).subjects.values()]
    for subject in found:
        if subject.id == name:
            return subject
    raise BrainDataError(f"expected {name} in {', '.join(map(str, folders))}, got {', '.join(x.id for x in found)}")


def _formats(space: VoxelSpace, formats: Sequence[str] | None) -> list[str]:
    surface = space.index.shape[1] == 2
    able = (["gifti"] if surface else ["nifti"] if space.affine is not None else []) + ["csv"]
    for name in formats or ():
        check_choice("formats", name, FORMATS)
        if name not in able:
            kind = "a surface" if surface else "a volume" + ("" if space.affine is not None else " without an affine")
            raise BrainDataError(f"expected formats {', '.join(able)} of {space.name}, which is {kind}, got {name!r}")
    return able if formats is None else list(formats)


def _prefix(subject: Subject) -> dict[str, str]:
    """Entities of all files of a subject, in the order of BIDS."""
    source = subject.provenance
    entities = {"sub": subject.id.removeprefix("sub-")}
    entities |= {key: str(source[key]) for key in ("task", "space") if source.get(key)}
    return {key: _alphanumeric(value) for key, value in entities.items()}


def _join(entities: Mapping[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in entities.items())


def _alphanumeric(text: str) -> str:
    """A label of BIDS: letters and digits, with a capital where a word began."""
    first, *words = re.findall(r"[A-Za-z0-9]+", text) or ["x"]
    return first + "".join(word[0].upper() + word[1:] for word in words)


def _labels(names: Sequence[str]) -> list[str]:
    """A label for each row, all different."""
    labels: list[str] = []
    for name in names:
        label = _alphanumeric(name)
        again = sum(other == label or re.fullmatch(rf"{label}x\d+", other) is not None for other in labels)
        labels.append(f"{label}x{again + 1}" if again else label)
    return labels


def _parted(name: str) -> tuple[str, int | None]:
    """Statistic and row of an array: ("r", 0) of "r_0"."""
    match = None if name in _COMMON else _OF_ROWS.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def _write_maps(
    out: Path, prefix: Mapping[str, str], entities: str, space: VoxelSpace, values: np.ndarray, formats: Sequence[str]
) -> list[Path]:
    """A NIfTI file, or a GIFTI file for each hemisphere."""
    written = []
    if "nifti" in formats:
        path = out / f"{_join(prefix)}_{entities}_statmap.nii.gz"
        space.to_image(values, fill=np.nan).to_filename(path)
        written.append(path)
    if "gifti" in formats:
        for side, (hemisphere, structure) in enumerate(_HEMISPHERES):
            named = {key: prefix[key] for key in prefix if key != "space"} | {"hemi": hemisphere}
            named |= {"space": prefix["space"]} if "space" in prefix else {}
            path = out / f"{_join(named)}_{entities}_statmap.shape.gii"
            whole = np.full(space.shape[side], np.nan, np.float32)
            inside = space.index[:, 0] == side
            whole[space.index[inside, 1]] = values[inside]
            _write_gifti(path, whole, structure)
            written.append(path)
    return written


def _write_gifti(path: Path, values: np.ndarray, structure: str) -> None:
    try:
        import nibabel
        from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiMetaData
    except ImportError as error:
        raise need("nibabel", "a GIFTI file") from error
    array = GiftiDataArray(values, intent="NIFTI_INTENT_NONE", datatype="NIFTI_TYPE_FLOAT32")
    image = GiftiImage(darrays=[array], meta=GiftiMetaData({"AnatomicalStructurePrimary": structure}))
    nibabel.save(image, path)


def _write_json(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(plain(content), indent=1) + "\n", encoding="utf-8")
    return path


def _write_csv(path: Path, space: VoxelSpace, arrays: Mapping[str, np.ndarray], labels: Sequence[str]) -> Path:
    """A line for each voxel: its place, regions and scores. "n/a" stands for values that are not defined."""
    surface = space.index.shape[1] == 2
    columns: dict[str, Sequence[Any]] = {"voxel": range(len(space))}
    columns |= dict(zip(("hemisphere", "vertex") if surface else ("i", "j", "k"), space.index.T.tolist(), strict=True))
    if surface:
        columns["hemisphere"] = ["LR"[side] for side in columns["hemisphere"]]
    if space.affine is not None:
        places = space.index @ space.affine[:3, :3].T + space.affine[:3, 3]
        columns |= {f"{axis}_mm": [_text(x) for x in column] for axis, column in zip("xyz", places.T, strict=True)}
    members = [[name for name, inside in space.rois.items() if inside[voxel]] for voxel in range(len(space))]
    columns["regions"] = [";".join(names) for names in members]
    for name, array in arrays.items():
        stat, row = _parted(name)
        columns[stat if row is None else f"{stat}_{labels[row]}"] = [_text(x) for x in array]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def _text(value: Any) -> str:
    return f"{value:.7g}" if np.isfinite(value) else "n/a"
