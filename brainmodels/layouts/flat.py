"""Your own data: an array of responses, the image id of each row, and the images.

    dataset = load("study", "sub-01", images="stimuli", mask="mask.nii.gz", scale=1 / 300)

Arrays of any size are memory-mapped and never copied.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from veca.files import read_json

from ..data.dataset import BrainDataset, Split, Subject
from ..data.responses import Responses, TrialTable
from ..data.spaces import VoxelSpace
from ..data.splits import holdout as hold_out
from ..data.splits import split_from_ids
from ..data.stimuli import ArrayImages, ImageFiles, StimulusSet
from ..errors import AxisError, IdError, LayoutError, near_names
from ._files import (
    check_finite,
    find_images,
    provenance,
    read_array,
    read_table,
    read_volume,
    roi_in_mask,
    voxels_in_a_row,
)

__all__ = ["describe", "detect", "load"]

_COLUMNS = ("session", "run", "repeat", "trial")
_LISTS = (".npy", ".txt", ".csv", ".json")


def detect(root: Path) -> bool:
    """Whether a folder, or one of its sub-folders, has a `Y.npy`."""
    root = Path(root)
    return (root / "Y.npy").is_file() or any(root.glob("*/Y.npy"))


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """Y.npy: (trials, voxels) int16, fp16, fp32 or fp64
ids.npy, .txt, .csv or .json: the image id of each trial; a .csv has a column image_id and perhaps session, run, repeat,
trial
images/: a folder of pictures whose stems are the ids; or X.npy: (images, height, width, 3) with image_ids.npy
Optional: sessions.npy, runs.npy: (trials,) integers; test_ids.npy, .txt, .csv, .json; mask.nii.gz: (x, y, z), > 0 in
the voxels of the columns; rois/: NIfTI volumes or .npy (voxels,) of 0 and 1, named by region; ncsnr.npy: (voxels,)
All names are options. A file is looked for in a sub-folder named after the subject first."""


def load(
    root: str | Path,
    subject: str = "subj01",
    *,
    allocate: Callable = np.empty,
    responses: str | Path = "Y.npy",
    ids: str | Path | None = None,
    images: str | Path | None = None,
    image_ids: str | Path | None = None,
    namespace: str | None = None,
    sessions: str | Path | None = None,
    runs: str | Path | None = None,
    test: str | Path | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    mask: str | Path | None = None,
    rois: str | Path | None = None,
    ncsnr: str | Path | None = None,
    scale: float = 1.0,
    unit: str = "unknown",
    normalizer: str = "none",
) -> BrainDataset:
    """Load one subject.

    Args:
        root: Folder of the study. All other paths are relative to its sub-folder with the subject's name, or to `root`.
        subject: Name of the subject.
        allocate: Not used, because nothing is copied.
        responses: Array (trials, voxels), with a row for each trial.
        ids: Image ids of the rows, as text or whole numbers. None looks for ids.npy, ids.txt, ids.csv, ids.json.
        images: Folder of pictures whose stems are the ids, or an array of pictures. None looks for images and X.npy.
        image_ids: Ids of the pictures of an array. None takes the ids of the rows, which must then all differ.
        namespace: Text to put before every id, with a colon, so that ids of several studies differ.
        sessions: Session of each row, whole numbers, unless `ids` is a table with that column.
        runs: Run of each row, whole numbers, unless `ids` is a table with that column.
        test: Ids of the test images of the split "given". None looks for test_ids.npy and so on.
        holdout: Share of the images that the split "holdout_image" tests on, where there is no list of test images.
        seed: Seed of the choice of held-out images and of validation images.
        mask: NIfTI volume whose voxels > 0, in C order of (x, y, z), are the columns of the responses.
        rois: Folder of region masks.
        ncsnr: Array (voxels,) of the standard deviation of the signal over that of the noise, for one presentation.
        scale: Physical units of one stored unit, such as 1 / 300 for the int16 of NSD.
        unit: Physical unit of the responses after scaling.
        normalizer: Name of the scaling that was applied before the responses were saved.

    Returns:
        A data set with the subject, its images and one split.

    Raises:
        LayoutError: A file is missing, truncated or of another kind, or a value is not finite.
        IdError: Ids and rows differ in number, or a picture has no file.
        AxisError: Arrays, masks and responses differ in length.
    """
    root = Path(root)
    if not root.is_dir():
        raise LayoutError(f"expected a folder at {root}, got no such folder")
    here = _Folder(root, subject)
    path = here.needed(responses, "responses")
    values = read_array(path)
    if values.ndim != 2:
        remedy = "; put repeats into rows, one each, and list their ids" if values.ndim == 3 else ""
        raise AxisError(f"expected (trials, voxels) in {path}, got shape {values.shape}{remedy}")
    trials, ids_path = _trials(here, ids, sessions, runs, namespace, values.shape, path)
    check_finite(values, path, trials.image_id)
    space, more = _space(here, mask, rois, ncsnr, values.shape[1], f"{subject}-flat")
    source = provenance("flat", root, [path, ids_path, *more])
    person = Subject(subject, Responses(values, trials, scale, unit=unit), space, normalizer, provenance=source)
    stimuli = _stimuli(here, images, image_ids, namespace, trials.image_id)
    split = _split(here, test, holdout, seed, namespace, trials)
    return BrainDataset([person], stimuli, {split.name: split})


class _Folder:
    """Paths of one subject. They are looked for in the subject's folder first, then in the root."""

    def __init__(self, root: Path, subject: str):
        self.roots = [root / subject, root]

    def needed(self, name: str | Path, what: str) -> Path:
        """An existing path. A missing one is a `LayoutError` that names similar paths."""
        found = self.optional(name)
        if found is None:
            names = sorted({path.name for root in self.roots if root.is_dir() for path in root.iterdir()})
            raise LayoutError(
                f"expected {what} at {self.roots[-1] / name}, got no such path{near_names(str(name), names)}"
            )
        return found

    def optional(self, *names: str | Path) -> Path | None:
        """The one of these paths that exists, or None. Several are a `LayoutError`."""
        for root in self.roots:
            found = [root / name for name in names if (root / name).exists()]
            if len(found) > 1:
                raise LayoutError(
                    f"expected one of {', '.join(map(str, found))}, got all of them; name the one you mean"
                )
            if found:
                return found[0]
        return None

    def given_or(self, given: str | Path | None, what: str, *names: str) -> Path | None:
        """The path `given`, which must exist. Where that is None, one of the usual names, or None."""
        return self.optional(*names) if given is None else self.needed(given, what)


def _read_list(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Ids in a .npy, .txt, .csv or .json file, and the further columns of a .csv."""
    if path.suffix == ".csv":
        table = read_table(path, ("image_id",))
        return table["image_id"], {key: table[key] for key in _COLUMNS if key in table}
    if path.suffix == ".txt":
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    elif path.suffix == ".json":
        names = read_json(path, LayoutError)
    elif path.suffix == ".npy":
        array = read_array(path)
        if array.ndim != 1 or array.dtype.kind not in "USiu":
            raise LayoutError(f"expected a list of text or whole numbers in {path}, got {array.dtype} {array.shape}")
        names = [name.decode() if isinstance(name, bytes) else name for name in array.tolist()]
    else:
        raise LayoutError(f"expected a list in a file of {', '.join(_LISTS)}, got {path}")
    if not isinstance(names, list) or not all(isinstance(name, str | int) and name != "" for name in names):
        raise LayoutError(f"expected a list of ids without gaps in {path}, got something else or an empty line")
    return [str(name) for name in names], {}


def _named(namespace: str | None, names: Sequence[str]) -> list[str]:
    return list(names) if namespace is None else [f"{namespace}:{name}" for name in names]


def _trials(
    here: _Folder,
    ids: str | Path | None,
    sessions: str | Path | None,
    runs: str | Path | None,
    namespace: str | None,
    shape: tuple[int, int],
    path: Path,
) -> tuple[TrialTable, Path]:
    """The table of trials and the file that it comes from."""
    found = here.given_or(ids, "ids of the rows", *(f"ids{suffix}" for suffix in _LISTS))
    if found is None:
        raise IdError(
            f"expected the image of each row of {path}, got none: row order unknown; pass ids= or write ids.csv"
        )
    names, columns = _read_list(found)
    if len(names) != shape[0]:
        turned = "; the responses look transposed, their rows must be trials" if len(names) == shape[1] else ""
        raise IdError(f"expected {shape[0]} ids in {found}, one for each row of {path}, got {len(names)}{turned}")
    numbers = {key: _integers(found, key, values) for key, values in columns.items()}
    for key, given in (("session", sessions), ("run", runs)):
        file = here.given_or(given, f"{key}s of the rows", *(f"{key}s{suffix}" for suffix in (".npy", ".txt")))
        if file is not None and key in numbers:
            raise LayoutError(f"expected one source of {key}, got a column of {found} and {file}")
        if file is not None:
            numbers[key] = _integers(file, key, _read_list(file)[0])
            if len(numbers[key]) != shape[0]:
                raise AxisError(f"expected {shape[0]} numbers in {file}, one for each row, got {len(numbers[key])}")
    return TrialTable.of(_named(namespace, names), **numbers), found


def _integers(path: Path, name: str, values: Sequence[str]) -> np.ndarray:
    try:
        return np.array([int(value) for value in values], np.int64)
    except ValueError as error:
        raise LayoutError(f"expected whole numbers of {name} in {path}, got: {error}") from None


def _space(
    here: _Folder,
    mask: str | Path | None,
    rois: str | Path | None,
    ncsnr: str | Path | None,
    count: int,
    name: str,
) -> tuple[VoxelSpace, list[Path]]:
    """Positions, regions and reliability of the columns, and the files that were read."""
    files, volume, affine = [], None, None
    path = here.given_or(mask, "the mask", "mask.nii.gz", "mask.nii")
    if path is None:
        index, shape = voxels_in_a_row(count)
    else:
        stored, affine = read_volume(path)
        volume = _mask(stored, count, path)
        index, shape = np.argwhere(volume), volume.shape
        files.append(path)
    folder, regions = here.given_or(rois, "the folder of regions", "rois"), {}
    for file in sorted(folder.iterdir()) if folder is not None else []:
        if file.name.endswith((".npy", ".nii", ".nii.gz")):
            regions[file.name.split(".")[0]] = _region(file, volume, count)
            files.append(file)
    path, ratio = here.given_or(ncsnr, "ncsnr", "ncsnr.npy"), None
    if path is not None:
        ratio = np.asarray(read_array(path), np.float32)
        files.append(path)
        if ratio.shape != (count,):
            raise AxisError(f"expected ncsnr of {count} voxels in {path}, got shape {ratio.shape}")
    return VoxelSpace(name, index, shape, affine, regions, ratio), files


def _mask(stored: np.ndarray, count: int, path: Path) -> np.ndarray:
    """The voxels > 0 of a mask. Where their number is not that of the columns, the message says what may be wrong."""
    if stored.ndim != 3:
        raise AxisError(f"expected a volume (x, y, z) in {path}, got shape {stored.shape}")
    inside = stored > 0
    if inside.sum() == count:
        return inside
    remedy = ""
    if (stored <= 0).sum() == count:
        remedy = "; as many lie outside: the mask is inverted, save its complement"
    elif (stored != -1).sum() == count:
        remedy = "; as many are not -1: did you use != -1 to cut out the responses? 0 is outside as well"
    elif (stored != 0).sum() == count:
        remedy = "; as many are not 0: did you take negative labels in as well?"
    raise AxisError(f"expected {count} voxels > 0 in {path}, as many as columns, got {inside.sum()}{remedy}")


def _region(path: Path, volume: np.ndarray | None, count: int) -> np.ndarray:
    if path.suffix != ".npy":
        if volume is None:
            raise LayoutError(f"expected a mask beside the volume {path}, got none; pass mask=")
        return roi_in_mask(read_volume(path)[0], volume, path)
    region = read_array(path)
    if region.shape != (count,) or not np.isin(region, (0, 1)).all():
        raise AxisError(
            f"expected {count} zeros and ones in {path}, as many as voxels, got {region.dtype} {region.shape}"
        )
    return np.asarray(region) == 1


def _stimuli(
    here: _Folder,
    images: str | Path | None,
    image_ids: str | Path | None,
    namespace: str | None,
    shown: np.ndarray,
) -> StimulusSet:
    path = here.given_or(images, "images", "images", "X.npy")
    if path is None:
        raise LayoutError(f"expected images or X.npy in {here.roots[-1]}, got neither; pass images=")
    if path.is_dir():
        ids = sorted(set(shown.tolist()))
        prefix = "" if namespace is None else f"{namespace}:"
        return StimulusSet(ids, ImageFiles(find_images(path, [name.removeprefix(prefix) for name in ids])))
    array = read_array(path)
    listed = here.given_or(image_ids, "ids of the images", *(f"image_ids{suffix}" for suffix in _LISTS))
    ids = list(shown) if listed is None else _named(namespace, _read_list(listed)[0])
    if listed is None and len(set(ids)) != len(ids):
        raise IdError(f"expected ids of the {len(array)} images of {path}, got trials that repeat; pass image_ids=")
    if len(ids) != len(array):
        raise IdError(f"expected {len(array)} ids, one for each image of {path}, got {len(ids)} in {listed or 'ids'}")
    return StimulusSet(ids, ArrayImages(array))


def _split(
    here: _Folder, test: str | Path | None, holdout: float, seed: int, namespace: str | None, trials: TrialTable
) -> Split:
    path = here.given_or(test, "ids of the test images", *(f"test_ids{suffix}" for suffix in _LISTS))
    if path is not None:
        ids, shown = _named(namespace, _read_list(path)[0]), sorted(set(trials.image_id.tolist()))
        unknown = sorted(set(ids) - set(shown))
        if unknown:
            raise IdError(
                f"expected test images that were shown in {path}, got {unknown[0]!r} and {len(unknown) - 1} more "
                f"that were not{near_names(unknown[0], shown)}"
            )
        return split_from_ids("given", set(shown) - set(ids), ids, seed=seed)
    return hold_out(trials, holdout, seed)
