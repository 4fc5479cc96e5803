"""Your own data: an array of responses, the image id of each row, and the images.

    dataset = load("study", "sub-01", images="stimuli", mask="mask.nii.gz", scale=1 / 300)

Arrays of any size are memory-mapped and never copied.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from veca.data.names import entries

from ..data.dataset import BrainDataset, Split, Subject
from ..data.responses import Responses, TrialTable
from ..data.spaces import VoxelSpace
from ..data.stimuli import ArrayImages, ImageFiles, StimulusSet
from ..errors import AxisError, IdError, LayoutError, near_names
from ._files import (
    LISTS,
    TABLES,
    by_name,
    check_finite,
    find_images,
    provenance,
    read_array,
    read_ids,
    voxels_in_a_row,
)
from ._held_out import given_split, held_out
from ._volumes import VOLUME_SUFFIXES, Volume, read_labels, regions_of, roi_in_mask

__all__ = ["describe", "detect", "load"]

_REGIONS = (".npy", *VOLUME_SUFFIXES)


def detect(root: Path) -> bool:
    """Whether a folder, or one of its sub-folders, has a `Y.npy`."""
    root = Path(root)
    return any((folder / "Y.npy").is_file() for folder in (root, *entries(root)))


def describe() -> str:
    """The files that are needed, with their shapes."""
    return """Y.npy: (trials, voxels) int16, fp16, fp32 or fp64
ids.npy, .txt, .csv or .json: the image id of each trial; a .csv or .tsv has a column image_id and perhaps session, run,
repeat, trial
images/: a folder of pictures whose stems are the ids; or X.npy: (images, height, width, 3) with image_ids.npy
Optional: sessions.npy, runs.npy: (trials,) integers; test_ids.npy, .txt, .csv, .tsv, .json; mask.nii.gz: (x, y, z), > 0
in the voxels of the columns; rois/: .npy (voxels,) of 0 and 1 or NIfTI volumes, named by region; a volume of several
labels is an atlas, one region for each label, with names in ATLAS.tsv or .csv (index, name); ncsnr.npy: (voxels,)
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
    by: str = "image",
    seed: int = 0,
    mask: str | Path | None = None,
    rois: str | Path | None = None,
    affines: str = "compare",
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
        ids: Image ids of the rows, as text or whole numbers. None looks for ids.npy, ids.txt, ids.csv
            and so on.
        images: Folder of pictures whose stems are the ids, or an array of pictures. None looks for images and X.npy.
        image_ids: Ids of the pictures of an array. None takes the ids of the rows, which must then all differ.
        namespace: Text to put before every id, with a colon, so that ids of several studies differ.
        sessions: Session of each row, whole numbers, unless `ids` is a table with that column.
        runs: Run of each row, whole numbers, unless `ids` is a table with that column.
        test: Ids of the test images of the split "given". None looks for test_ids.npy and so on.
        holdout: Share of the images that the split "holdout_image" tests on, where there is no list of test images.
        by: What is held out together: "image", "concept" or "session". The concept of an image is the folder of its
            picture below `images`, so that no picture of a test concept is trained on.
        seed: Seed of the choice of held-out images and of validation images.
        mask: NIfTI volume whose voxels > 0, in C order of (x, y, z), are the columns of the responses.
        rois: Folder of region masks. A file without its suffix names a region: `lh.V1.npy` is "lh.V1". A volume with
            several labels above 0 is an atlas, and each label is a region. `wang15.tsv` or `wang15.csv` beside
            `wang15.nii.gz` names them in the columns index and name. Without it they are "wang15:1" and so on.
        affines: "compare" checks that the volumes of regions lie on the grid of the mask. "ignore" compares their
            shapes only, for files with a wrong header.
        ncsnr: Array (voxels,) of the standard deviation of the signal over that of the noise, for one presentation.
        scale: Physical units of one stored unit, such as 1 / 300 for the int16 of NSD.
        unit: Physical unit of the responses after scaling.
        normalizer: Name of the scaling that was applied before the responses were saved.

    Returns:
        A data set with the subject, its images and one split.

    Raises:
        LayoutError: A file is missing, truncated or of another kind, or a value is not finite.
        IdError: Ids and rows differ in number, or a picture has no file.
        AxisError: Arrays, masks and responses differ in length, or regions lie elsewhere than the mask.
        BrainDataError: `holdout` or `by` is out of range.
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
    space, more = _space(here, mask, rois, affines, ncsnr, values.shape[1], f"{subject}-flat")
    source = provenance("flat", root, [path, ids_path, *more])
    person = Subject(subject, Responses(values, trials, scale, unit=unit), space, normalizer, provenance=source)
    stimuli = _stimuli(here, images, image_ids, namespace, trials.image_id)
    concepts = _concepts(here, images, stimuli) if by == "concept" else None
    split = _split(here, test, (holdout, by, seed), namespace, trials, concepts)
    return BrainDataset([person], stimuli, {split.name: split})


class _Folder:
    """Paths of one subject. They are looked for in the subject's folder first, then in the root."""

    def __init__(self, root: Path, subject: str):
        self.roots = [root / subject, root]

    def needed(self, name: str | Path, what: str) -> Path:
        """An existing path. A missing one is a `LayoutError` that names similar paths."""
        found = self.optional(name)
        if found is None:
            names = [path.name for root in self.roots for path in entries(root)]
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
    found = here.given_or(ids, "ids of the rows", *(f"ids{suffix}" for suffix in LISTS))
    if found is None:
        raise IdError(
            f"expected the image of each row of {path}, got none: row order unknown; pass ids= or write ids.csv"
        )
    names, columns = read_ids(found)
    if len(names) != shape[0]:
        turned = "; the responses look transposed, their rows must be trials" if len(names) == shape[1] else ""
        raise IdError(f"expected {shape[0]} ids in {found}, one for each row of {path}, got {len(names)}{turned}")
    numbers = {key: _integers(found, key, values) for key, values in columns.items()}
    for key, given in (("session", sessions), ("run", runs)):
        file = here.given_or(given, f"{key}s of the rows", *(f"{key}s{suffix}" for suffix in (".npy", ".txt")))
        if file is not None and key in numbers:
            raise LayoutError(f"expected one source of {key}, got a column of {found} and {file}")
        if file is not None:
            numbers[key] = _integers(file, key, read_ids(file)[0])
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
    affines: str,
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
        volume = _mask(path, count)
        index, shape, affine = np.argwhere(volume.values > 0), volume.values.shape, volume.affine
        files.append(path)
    folder, regions = here.given_or(rois, "the folder of regions", "rois"), {}
    of_regions = [] if folder is None else [file for file in entries(folder) if file.name.endswith(_REGIONS)]
    for name_of_file, file in by_name(of_regions, _REGIONS).items():
        for region, inside in _regions(name_of_file, file, volume, count, affines).items():
            if region in regions:
                raise LayoutError(f"expected regions of different names in {folder}, got {region!r} again in {file}")
            regions[region] = inside
        files.append(file)
    path, ratio = here.given_or(ncsnr, "ncsnr", "ncsnr.npy"), None
    if path is not None:
        ratio = np.asarray(read_array(path), np.float32)
        files.append(path)
        if ratio.shape != (count,):
            raise AxisError(f"expected ncsnr of {count} voxels in {path}, got shape {ratio.shape}")
    return VoxelSpace(name, index, shape, affine, regions, ratio), files


def _mask(path: Path, count: int) -> Volume:
    """The mask in a file. Where its voxels > 0 are not as many as the columns, the message says what may be wrong."""
    volume = read_labels(path)
    stored, inside = volume.values, volume.values > 0
    if inside.sum() == count:
        return volume
    remedy = ""
    if (stored <= 0).sum() == count:
        remedy = "; as many lie outside: the mask is inverted, save its complement"
    elif (stored != -1).sum() == count:
        remedy = "; as many are not -1: did you use != -1 to cut out the responses? 0 is outside as well"
    elif (stored != 0).sum() == count:
        remedy = "; as many are not 0: did you take negative labels in as well?"
    raise AxisError(f"expected {count} voxels > 0 in {path}, as many as columns, got {inside.sum()}{remedy}")


def _regions(name: str, path: Path, volume: Volume | None, count: int, affines: str) -> dict[str, np.ndarray]:
    """The region of a mask, or the regions of an atlas."""
    if path.suffix != ".npy":
        if volume is None:
            raise LayoutError(f"expected a mask beside the volume {path}, got none; pass mask=")
        labels = read_labels(path)
        inside = roi_in_mask(labels, volume, affines)
        table = next((file for suffix in TABLES if (file := path.with_name(name + suffix)).is_file()), None)
        found = labels.values[volume.values > 0]
        return regions_of(found, name, path, table) if table or len(np.unique(found[inside])) > 1 else {name: inside}
    region = read_array(path)
    if region.shape != (count,) or not np.isin(region, (0, 1)).all():
        raise AxisError(
            f"expected {count} zeros and ones in {path}, as many as voxels, got {region.dtype} {region.shape}"
        )
    return {name: np.asarray(region) == 1}


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
    listed = here.given_or(image_ids, "ids of the images", *(f"image_ids{suffix}" for suffix in LISTS))
    ids = list(shown) if listed is None else _named(namespace, read_ids(listed)[0])
    if listed is None and len(set(ids)) != len(ids):
        raise IdError(f"expected ids of the {len(array)} images of {path}, got trials that repeat; pass image_ids=")
    if len(ids) != len(array):
        raise IdError(f"expected {len(array)} ids, one for each image of {path}, got {len(ids)} in {listed or 'ids'}")
    return StimulusSet(ids, ArrayImages(array))


def _split(
    here: _Folder,
    test: str | Path | None,
    share: tuple[float, str, int],
    namespace: str | None,
    trials: TrialTable,
    concepts: Mapping[str, str] | None,
) -> Split:
    """The split of given test images, or of a share of the images by (share, what is held out together, seed)."""
    path = here.given_or(test, "ids of the test images", *(f"test_ids{suffix}" for suffix in LISTS))
    holdout, by, seed = share
    if path is not None:
        return given_split(trials, _named(namespace, read_ids(path)[0]), path, seed)
    return held_out(trials, holdout, by, concepts, seed)


def _concepts(here: _Folder, images: str | Path | None, stimuli: StimulusSet) -> dict[str, str]:
    """The folder of each picture by image id, relative to the folder of all pictures."""
    folder = here.given_or(images, "images", "images", "X.npy")
    if folder is None or not isinstance(stimuli.source, ImageFiles):
        raise LayoutError(f"expected pictures in folders by concept for by='concept', got the array {folder}")
    places = [path.parent.relative_to(folder).as_posix() for path in stimuli.source.paths]
    return dict(zip(stimuli.ids.tolist(), places, strict=True))
