"""Betas, maps and labels of a BIDS subject at the vertices of the cortex, from GIFTI or CIFTI files.

    place = GiftiPlace.of(unit)                    # vertices of hemi-L, then of hemi-R
    place = CiftiPlace.of(unit)                    # vertices of both hemispheres, without the medial wall

Voxels of CIFTI files below the cortex are left out, and `left_out` counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from ..errors import AxisError, LayoutError, need
from ._bids_betas import Unit
from ._bids_volume import Betas
from ._volumes import open_volume, regions_of

__all__ = ["CiftiPlace", "GiftiPlace"]

_CORTEX = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")
_LEFT_RIGHT = ("left", "right")


@dataclass(frozen=True)
class _SurfacePlace:
    """Vertices of both hemispheres.

    Attributes:
        path: First file, for messages.
        index: Hemisphere (0 left, 1 right) and vertex, (V, 2).
        shape: Numbers of vertices (left, right).
        left_out: Text about what the files hold beside these vertices.
    """

    path: Path
    index: np.ndarray
    shape: tuple[int, ...]
    left_out: str = ""
    affine: None = None

    def read(self, unit: Unit, allow_pickle: bool) -> Betas:
        """The betas of a file, or of one for each hemisphere, (trials, vertices)."""
        return Betas(self.rows([name.path for name in unit.names]))

    def rows(self, paths: Sequence[Path]) -> np.ndarray:
        """All maps of the files, fp32 (maps, vertices)."""
        raise NotImplementedError

    def map(self, path: Path, *others: Path) -> np.ndarray:
        """One number for each vertex, (V,), from one file or from one for each hemisphere."""
        rows = self.rows([path, *others])
        if len(rows) != 1:
            raise AxisError(f"expected one map in {path}, got {len(rows)}")
        return rows[0]


class GiftiPlace(_SurfacePlace):
    """All vertices of two GIFTI files."""

    @classmethod
    def of(cls, unit: Unit) -> "GiftiPlace":
        """The vertices of a pair of files."""
        counts = [_gifti(name.path)[0].shape[1] for name in unit.names]
        sides = np.repeat(np.arange(2), counts)
        vertices = np.concatenate([np.arange(count) for count in counts])
        return cls(unit.path, np.stack([sides, vertices], 1), tuple(counts))

    def rows(self, paths: Sequence[Path]) -> np.ndarray:
        """All maps of a pair of files, fp32 (maps, vertices)."""
        return np.concatenate(self._sides(paths), 1).astype(np.float32)

    def regions(self, paths: Sequence[Path], name: str, table: Path | None) -> dict[str, np.ndarray]:
        """One region for each label of a pair of files. Regions of one name are joined over hemispheres."""
        sides = self._sides(paths)
        for path, side in zip(paths, sides, strict=True):
            if len(side) != 1:
                raise AxisError(f"expected one map of labels in {path}, got {len(side)}")
        found: dict[str, np.ndarray] = {}
        start = 0
        for path, side in zip(paths, sides, strict=True):
            labels, known = np.rint(side[0]).astype(int), _gifti(path)[1]
            for region, inside in _labelled(labels, known, name, path, table).items():
                whole = found.setdefault(region, np.zeros(len(self.index), bool))
                whole[start : start + len(labels)] |= inside
            start += len(labels)
        if not found:
            raise AxisError(f"expected vertices of {paths[0]} with a label above 0, got none")
        return found

    def _sides(self, paths: Sequence[Path]) -> list[np.ndarray]:
        sides = [_gifti(path)[0] for path in paths]
        if len({len(side) for side in sides}) != 1:
            raise AxisError(
                f"expected as many maps in {paths[1]} as in {paths[0]}, {len(sides[0])}, got {len(sides[1])}"
            )
        for path, side, count, word in zip(paths, sides, self.shape, _LEFT_RIGHT, strict=True):
            if side.shape[1] != count:
                raise AxisError(
                    f"expected {count} vertices of the {word} hemisphere in {path}, as in {self.path}, got "
                    f"{side.shape[1]}"
                )
        return sides


@dataclass(frozen=True)
class CiftiPlace(_SurfacePlace):
    """Vertices of both hemispheres in CIFTI files.

    Attributes:
        columns: Columns of the files that are these vertices, (V,).
    """

    columns: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of(cls, unit: Unit) -> "CiftiPlace":
        """The vertices of a file."""
        index, counts, columns, beside = _cortex(_cifti(unit.path), unit.path)
        return cls(unit.path, index, counts, beside, columns=columns)

    def rows(self, paths: Sequence[Path]) -> np.ndarray:
        """All maps of a file, fp32 (maps, vertices)."""
        (path,) = paths
        image = _cifti(path)
        self._check(image, path)
        return np.asarray(image.dataobj, np.float32)[:, self.columns]

    def regions(self, paths: Sequence[Path], name: str, table: Path | None) -> dict[str, np.ndarray]:
        """One region for each label of a `.dlabel.nii` file."""
        (labels,) = np.rint(self.rows(paths)).astype(int)
        axis = _cifti(paths[0]).header.get_axis(0)
        known = {key: text for key, (text, _) in axis.label[0].items()} if hasattr(axis, "label") else {}
        found = _labelled(labels, known, name, paths[0], table)
        if not found:
            raise AxisError(f"expected vertices of {paths[0]} with a label above 0, got none")
        return found

    def _check(self, image: Any, path: Path) -> None:
        index, counts, _, _ = _cortex(image, path)
        if counts != self.shape or not np.array_equal(index, self.index):
            raise AxisError(
                f"expected the {len(self.index)} vertices of {self.path} in {path}, of surfaces with {self.shape} "
                f"vertices, got {len(index)} of surfaces with {counts}"
            )


def _labelled(
    labels: np.ndarray, known: dict[int, str], name: str, path: Path, table: Path | None
) -> dict[str, np.ndarray]:
    """Regions by the table beside the file, or else by the labels that the file itself names."""
    present = np.unique(labels[labels > 0]).tolist()
    if table is not None or not known:
        return regions_of(labels, name, path, table) if present else {}
    for label in present:
        if label not in known:
            raise LayoutError(f"expected a name of every label in the label table of {path}, got {label} without one")
    return {known[label]: labels == label for label in present}


def _gifti(path: Path) -> tuple[np.ndarray, dict[int, str]]:
    """Maps (maps, vertices) of a GIFTI file, and names of its labels."""
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
    except ImportError as error:
        raise need("nibabel", f"reading {path.name}") from error
    if not path.is_file():
        raise LayoutError(f"expected a GIFTI file at {path}, got no such file")
    try:
        image: Any = nibabel.load(path)
        arrays = [np.asarray(array.data) for array in image.darrays]
    except (ImageFileError, ExpatError, EOFError, OSError, ValueError, AttributeError) as error:
        raise LayoutError(f"expected a GIFTI file at {path}, got: {error}; copy it again") from None
    if len(arrays) == 1 and arrays[0].ndim == 2:
        arrays = list(arrays[0].T)
    if not arrays or any(array.shape != arrays[0].shape or array.ndim != 1 for array in arrays):
        raise AxisError(
            f"expected maps (vertices,) of one length in {path}, got {[array.shape for array in arrays[:3]]}"
        )
    names = {label.key: label.label for label in image.labeltable.labels}
    return np.stack(arrays), names


def _cifti(path: Path) -> Any:
    from nibabel.cifti2.cifti2 import Cifti2Image

    image = open_volume(path)
    if not isinstance(image, Cifti2Image):
        raise LayoutError(f"expected a CIFTI file at {path}, got {type(image).__name__}")
    return image


def _cortex(image: Any, path: Path) -> tuple[np.ndarray, tuple[int, int], np.ndarray, str]:
    """Index of the vertices, vertices of the surfaces, columns of the vertices, and text about other columns."""
    axis = image.header.get_axis(1)
    if not hasattr(axis, "iter_structures"):
        raise LayoutError(f"expected columns of vertices and voxels in {path}, got an axis of {type(axis).__name__}")
    index, columns, counts, others = [], [], [0, 0], {}
    for name, part, model in axis.iter_structures():
        places = np.arange(len(axis))[part]
        if name not in _CORTEX:
            others[name.removeprefix("CIFTI_STRUCTURE_").lower()] = len(places)
            continue
        side = _CORTEX.index(name)
        counts[side] = int(axis.nvertices[name])
        index.append(np.stack([np.full(len(places), side), model.vertex], 1))
        columns.append(places)
    if not index:
        raise LayoutError(f"expected vertices of the cortex in {path}, got {', '.join(others) or 'nothing'}")
    beside = ", ".join(f"{name} {count}" for name, count in others.items())
    told = f"{sum(others.values())} voxels below the cortex ({beside})" if others else ""
    return np.concatenate(index), (counts[0], counts[1]), np.concatenate(columns), told
