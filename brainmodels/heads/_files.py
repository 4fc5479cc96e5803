"""What the head models of files share: checks of arrays and of coefficients, and the gap of the lips."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from veca.hashes import hex_digest

from ..errors import AxisError, BrainDataError, LayoutError, near_names
from .model import Coefficients

__all__ = [
    "HeadFile",
    "check_faces",
    "check_numbers",
    "check_shapes",
    "inner_lips",
    "lips_of",
    "need_keys",
    "read_arrays",
    "split_lips",
]

_POSE_RADIANS = 0.6


class HeadFile:
    """A head model of a file. Subclasses read the file, set the attributes of `HeadModel` and pose the vertices."""

    name: str
    licence: str
    fingerprint: str
    exp_names: tuple[str, ...]
    n_exp: int
    n_identity: int
    n_jaw: int
    faces: Tensor
    mouth_vertices: Tensor
    _template: Tensor  # (V, 3)
    _upper: Tensor  # inner vertices of the upper lip
    _lower: Tensor  # inner vertices of the lower lip
    _height: float  # of the face
    _exp_rows: Sequence[Coefficients]

    def exp_basis(self) -> Tensor:
        """Displacement of each vertex for each expression coefficient at rest, (V, 3, E)."""
        raise NotImplementedError

    def vertices(
        self, exp: Tensor, jaw: Tensor | None = None, pose: Tensor | None = None, identity: Tensor | None = None
    ) -> Tensor:
        """Vertices of each frame in fp32, see `HeadModel.vertices`."""
        exp = self._series("exp", exp, self.n_exp)
        frames = len(exp)
        jaw = None if jaw is None else self._series("jaw", jaw, self.n_jaw, frames)
        pose = None if pose is None else self._series("pose", pose, 3, frames)
        if identity is not None:
            identity = torch.as_tensor(identity)
            identity = identity[None] if identity.ndim == 1 else identity
            identity = self._series("identity", identity, self.n_identity, frames, allow_one=True)
            identity = identity.expand(frames, -1)
        return self._posed(exp, jaw, pose, identity)

    def mouth_opening(self, vertices: Tensor) -> Tensor:
        """Gap of the inner lips divided by the height of the neutral face.

        The gap is the distance of the mean inner vertex of the upper lip from that of the lower lip.

        Args:
            vertices: (T, V, 3) Vertices of this head.

        Returns:
            (T,) Openings.

        Raises:
            AxisError: Another shape.
        """
        if vertices.ndim != 3 or vertices.shape[1:] != self._template.shape:
            expected = f"(T, {len(self._template)}, 3)"
            raise AxisError(f"expected vertices {expected} of {self.name}, got {tuple(vertices.shape)}")
        gap = vertices[:, self._upper].mean(1) - vertices[:, self._lower].mean(1)
        return gap.norm(dim=1) / self._height

    def describe(self) -> list[Coefficients]:
        """Table of all coefficients. Each expression, jaw, pose and identity number is in exactly one row."""
        rows = list(self._exp_rows)
        if self.n_jaw:
            rows.append(Coefficients("jaw", 0, self.n_jaw, "rad", (-_POSE_RADIANS, _POSE_RADIANS)))
        rows.append(Coefficients("pose", 0, 3, "rad", (-_POSE_RADIANS, _POSE_RADIANS)))
        if self.n_identity:
            rows.append(self._identity_row())
        return rows

    def _identity_row(self) -> Coefficients:
        return Coefficients("identity", 0, self.n_identity, "standard deviations", (-3.0, 3.0))

    def _posed(self, exp: Tensor, jaw: Tensor | None, pose: Tensor | None, identity: Tensor | None) -> Tensor:
        """Vertices (T, V, 3) from checked coefficients of T frames each."""
        raise NotImplementedError

    def _series(
        self, what: str, values: Tensor, width: int, frames: int | None = None, allow_one: bool = False
    ) -> Tensor:
        values = torch.as_tensor(values)
        fits = values.ndim == 2 and values.shape[1] == width
        if not fits or not (frames is None or len(values) == frames or (allow_one and len(values) == 1)):
            count = "T" if frames is None else frames
            raise AxisError(f"expected {what} ({count}, {width}) of {self.name}, got {tuple(values.shape)}")
        if not values.isfinite().all():
            raise BrainDataError(f"expected finite numbers in {what} of {self.name}, got some that are not")
        return values.to(torch.float32)

    def _set_mesh(self, template: np.ndarray, faces: np.ndarray, face: np.ndarray | None = None) -> None:
        """Keep the mesh. `face` is a mask of the vertices of the face; None takes all, the neck included."""
        self._template = torch.tensor(template, dtype=torch.float32)
        self.faces = torch.tensor(np.asarray(faces, np.int64))
        heights = template[:, 1] if face is None else template[face, 1]
        self._height = float(heights.max() - heights.min())

    def _set_lips(self, mouth: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> None:
        self.mouth_vertices, self._upper, self._lower = (
            torch.tensor(np.unique(np.asarray(x, np.int64))) for x in (mouth, upper, lower)
        )

    def _set_fingerprint(self, arrays: Mapping[str, np.ndarray]) -> None:
        """SHA-256 of the kind of head, of arrays that its file holds, and of what was chosen when it was opened.

        Numbers are digested in fp32, as they are used. A converted file and its source therefore agree.
        """
        parts: list[str | np.ndarray] = [f"{self.name} {self.n_exp};"]
        for key, array in {**arrays, "mouth_vertices": self.mouth_vertices.numpy()}.items():
            if array.dtype.kind in "US":
                parts.append(f"{key} {array.tolist()};")
                continue
            array = np.asarray(array, np.float32 if array.dtype.kind == "f" else np.int64)
            parts += [f"{key} {array.dtype} {array.shape};", array]
        self.fingerprint = hex_digest(parts)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file.

    Raises:
        LayoutError: The file is damaged or holds an array of Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return {key: _array(content, key, path) for key in content.files}
    except (zipfile.BadZipFile, zlib.error, AttributeError, EOFError, TypeError, ValueError) as error:
        if isinstance(error, BrainDataError):
            raise
        raise LayoutError(f"expected a complete .npz file at {path}, got: {error}; copy it again") from None


def _array(content: Mapping[str, np.ndarray], key: str, path: Path) -> np.ndarray:
    try:
        return content[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise LayoutError(f"expected numbers under {key!r} in {path}, got an array of Python objects") from None


def need_keys(found: Mapping[str, object], keys: Sequence[str], path: Path, source: str) -> None:
    """Raise a `LayoutError` that says where files come from if a key is missing."""
    for key in keys:
        if key not in found:
            near = near_names(key, list(found))
            raise LayoutError(f"expected a key {key!r} in {path}, got {', '.join(map(str, found))}{near}; {source}")


def check_faces(faces: np.ndarray, vertices: int, path: Path) -> None:
    """Raise a `LayoutError` if there are no faces, or if they are not of vertices of the mesh, numbered from 0."""
    if faces.dtype.kind not in "iu" or not faces.size or faces.min() < 0 or faces.max() >= vertices:
        got = f"{faces.dtype} from {faces.min()} to {faces.max()}" if faces.size else "none"
        raise LayoutError(f"expected faces of vertices 0 to {vertices - 1} in {path}, got {got}")


def check_numbers(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise a `LayoutError` if an array holds no numbers, or numbers that are not finite."""
    for key, array in arrays.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            got = array.dtype if array.dtype.kind not in "fiu" else "some that are not"
            raise LayoutError(f"expected finite numbers under {key!r} in {path}, got {got}")


def check_shapes(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int | str, ...]], path: Path
) -> dict[str, int]:
    """Lengths of the axes that have letters, after a check of all shapes.

    Args:
        arrays: Arrays by key.
        expected: Axes of each array. A letter has the length with which it comes first.
        path: File, for the message.

    Raises:
        AxisError: An array has another shape.
    """
    sizes: dict[str, int] = {}
    for key, axes in expected.items():
        shape = arrays[key].shape
        wanted = [sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in axes]
        if len(shape) != len(axes) or any(isinstance(w, int) and w != n for w, n in zip(wanted, shape, strict=True)):
            raise AxisError(f"expected {key!r} ({', '.join(map(str, wanted))}) in {path}, got {shape}")
        sizes |= {axis: n for axis, n in zip(axes, shape, strict=True) if isinstance(axis, str)}
    return sizes


def lips_of(given: Sequence[int] | np.ndarray, vertices: int) -> np.ndarray:
    """Vertex numbers of the lips as the caller gave them, sorted.

    Raises:
        BrainDataError: Fewer than two, or a number outside the mesh.
    """
    lips = np.unique(np.asarray(given))
    if lips.dtype.kind not in "iu" or len(lips) < 2 or lips[0] < 0 or lips[-1] >= vertices:
        got = f"{lips[:3].tolist()} ... {lips[-1:].tolist()}"
        raise BrainDataError(f"expected two or more mouth_vertices from 0 to {vertices - 1}, got {got}")
    return lips


def inner_lips(template: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inner half of each lip: vertices that are not farther from the other lip than the median vertex.

    Args:
        template: (V, 3) Neutral vertices.
        upper: Vertex numbers of the upper lip.
        lower: Vertex numbers of the lower lip.
    """
    apart = np.linalg.norm(template[upper][:, None] - template[lower][None], axis=2)
    inner = []
    for lip, nearest in ((upper, apart.min(1)), (lower, apart.min(0))):
        inner.append(lip[nearest <= np.median(nearest)])
    return inner[0], inner[1]


def split_lips(
    template: np.ndarray, lips: np.ndarray, score: np.ndarray, what: str, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Inner vertices of the upper lip, and those of the lower lip.

    Args:
        template: (V, 3) Neutral vertices.
        lips: Vertex numbers of both lips.
        score: Number of each of `lips`. Those above the middle of all are of the lower lip.
        what: What the scores are, for the message.
        path: File, for the message.

    Raises:
        LayoutError: All scores are equal.
    """
    below = score > (score.min() + score.max()) / 2
    if not below.any():
        raise LayoutError(f"expected mouth_vertices on both lips in {path}, got equal {what}")
    return inner_lips(template, lips[~below], lips[below])
