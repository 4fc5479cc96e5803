"""ICT-FaceKit light: a face of named shapes, from a folder of `.obj` files.

head = IctFile("ICT-FaceKit/FaceXModel")
print(head.exp_names[26])  # jawOpen
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from veca.files import read_json

from ..errors import AxisError, LayoutError
from ._files import HeadFile, check_faces, lips_of, split_lips
from .model import Coefficients, rotations

__all__ = ["IctFile"]

_NEUTRAL, _NAMES, _FIRST = "generic_neutral_mesh.obj", "vertex_indices.json", "identity000.obj"
_SOURCE = (
    "ICT-FaceKit light (MIT) comes from https://github.com/ICT-VGL/ICT-FaceKit as the folder FaceXModel; expected "
    f"files: {_NEUTRAL}, {_NAMES} with the key expressions, one .obj for each expression, and {_FIRST} and on"
)
_FACE = 9409  # first vertices of the mesh, which are the face without the neck
# the last 20 of the 68 landmarks that the README of ICT-FaceKit lists: 12 outside, 8 inside
_OUTER = (5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841)
_CORNERS, _UPPER, _LOWER = (5702, 6207), (5711, 5533, 6216), (6470, 5517, 5966)


class IctFile(HeadFile):
    """ICT-FaceKit light. Vertices are linear in all coefficients; there are no joints, and `jawOpen` is an expression.

    The basis of a shape is its mesh minus the neutral mesh. `pose` turns the mesh about the origin of its coordinates.

    Args:
        path: Folder with the `.obj` files.
        mouth_vertices: Vertex numbers of the lips. Default: the 20 landmarks of the lips.

    Raises:
        LayoutError: No folder, a missing or damaged file, a missing key.
        AxisError: A mesh has another number of vertices than the neutral one.
    """

    def __init__(self, path: str | Path, mouth_vertices: Sequence[int] | np.ndarray | None = None):
        path = Path(path)
        if not path.is_dir():
            got = "a file" if path.is_file() else "nothing there"
            raise LayoutError(f"expected a folder of ICT-FaceKit at {path}, got {got}; {_SOURCE}")
        names = _expressions(_existing(path / _NAMES))
        neutral, faces = _mesh(_existing(path / _NEUTRAL))
        check_faces(faces, len(neutral), path / _NEUTRAL)
        expressions = [_shape(path / f"{name}.obj", neutral) for name in names]
        identities = [_shape(file, neutral) for file in _identity_files(path)]
        self.name, self.licence = "ict", "MIT"
        self.n_exp, self.n_identity, self.n_jaw = len(names), len(identities), 0
        self.exp_names = names
        self._exp_rows = [Coefficients(f"exp:{name}", row, row + 1, "1", (0.0, 1.0)) for row, name in enumerate(names)]
        self._set_mesh(neutral, faces, np.arange(len(neutral)) < _FACE)
        self._set_lips(*_lips(neutral, mouth_vertices, path))
        arrays = {
            "neutral": neutral,
            "faces": faces,
            "expressions": np.stack(expressions, 2),
            "identities": np.stack(identities, 2),
            "names": np.array(names),
        }
        self._set_fingerprint(arrays)
        self._basis = torch.tensor(arrays["expressions"], dtype=torch.float32)
        self._identity_basis = torch.tensor(arrays["identities"], dtype=torch.float32)

    def exp_basis(self) -> Tensor:
        """Displacement of each vertex in units of the mesh for each expression coefficient, (V, 3, E)."""
        return self._basis

    def _posed(self, exp: Tensor, jaw: Tensor | None, pose: Tensor | None, identity: Tensor | None) -> Tensor:
        vertices = self._template + torch.einsum("vde,te->tvd", self._basis, exp)
        if identity is not None:
            vertices = vertices + torch.einsum("vdi,ti->tvd", self._identity_basis, identity)
        return vertices if pose is None else torch.einsum("tij,tvj->tvi", rotations(pose), vertices)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise LayoutError(f"expected a file {path.name} in {path.parent}, got none; {_SOURCE}")
    return path


def _expressions(path: Path) -> tuple[str, ...]:
    content = read_json(path, LayoutError)
    names = content.get("expressions") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(x, str) and x == Path(x).name for x in names):
        raise LayoutError(f"expected names of shapes under 'expressions' in {path}, got {names!r}; {_SOURCE}")
    return tuple(names)


def _identity_files(path: Path) -> list[Path]:
    """`identity000.obj` and on, without a gap."""
    count = len(list(path.glob("identity[0-9][0-9][0-9].obj")))
    return [_existing(path / f"identity{number:03d}.obj") for number in range(max(count, 1))]


def _shape(path: Path, neutral: np.ndarray) -> np.ndarray:
    """A mesh minus the neutral one, (V, 3)."""
    vertices, _ = _mesh(_existing(path), faces=False)
    if vertices.shape != neutral.shape:
        raise AxisError(f"expected {len(neutral)} vertices in {path}, got {len(vertices)}")
    return vertices - neutral


def _mesh(path: Path, faces: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) in fp64 and triangles (Nf, 3) of an `.obj` file. A polygon becomes a fan of triangles."""
    lines = path.read_bytes().splitlines()
    corners = [line[2:].split() for line in lines if line.startswith(b"v ")]
    polygons = [line[2:].split() for line in lines if line.startswith(b"f ")] if faces else []
    try:
        vertices = np.array(corners, np.float64)
        numbers = [[int(corner.split(b"/")[0]) for corner in polygon] for polygon in polygons]
    except ValueError as error:
        raise LayoutError(f"expected numbers in the v and f lines of {path}, got: {error}") from None
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not np.isfinite(vertices).all():
        raise LayoutError(f"expected lines 'v x y z' of finite numbers in {path}, got shape {vertices.shape}")
    fans = [(polygon[0], *pair) for polygon in numbers for pair in pairwise(polygon[1:])]
    return vertices, np.array(fans, np.int64).reshape(-1, 3) - 1


def _lips(
    neutral: np.ndarray, given: Sequence[int] | np.ndarray | None, path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertex numbers of the lips, of the inner upper lip and of the inner lower lip."""
    if given is None:
        lips = np.array(_OUTER + _CORNERS + _UPPER + _LOWER)
        if lips.max() >= len(neutral):
            raise LayoutError(
                f"expected the 26719 vertices of ICT-FaceKit in {path}, got {len(neutral)}; pass mouth_vertices="
            )
        return lips, np.array(_UPPER), np.array(_LOWER)
    lips = lips_of(given, len(neutral))
    return lips, *split_lips(neutral, lips, -neutral[lips, 1], "heights", path)
