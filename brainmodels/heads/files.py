"""Head models of files that you downloaded: FLAME, GNM and ICT-FaceKit. None of them is part of this package.

    convert_head("generic_model.pkl", "flame.npz")     # once; the command is `veca brain convert`
    head = FlameFile("flame.npz")                      # 50 expression coefficients and a jaw
    head = GnmFile("gnm_head.npz")                     # 383 expression coefficients; the jaw is among them
    head = IctFile("ICT-FaceKit/FaceXModel")           # 53 named shapes; the jaw is among them
    vertices = head.vertices(exp, jaw)                 # (T, V, 3)

| file | site | licence |
|---|---|---|
| FLAME | https://flame.is.tue.mpg.de | after registration, for research; FLAME 2023 Open has its own, check it there |
| GNM Head v3 | https://github.com/google/GNM | Apache-2.0 |
| ICT-FaceKit light | https://github.com/ICT-VGL/ICT-FaceKit | MIT |

FLAME and GNM are posed by the package body-models, which always gets a path, so that it never downloads. No class here
reads an environment variable or uses the network.

| mistake | error |
|---|---|
| no file, a missing key, an array of Python objects | `LayoutError` |
| an array of another shape, coefficients of another width | `AxisError` |
| a pickle without `allow_pickle=True`, or one that asks for a forbidden name | `UnsafePickleError` |
"""

import logging
import tempfile
import zipfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veca.files import whole_file

from ..errors import BrainDataError, LayoutError, UnsafePickleError, need
from ._files import (
    HeadFile,
    check_faces,
    check_numbers,
    check_shapes,
    inner_lips,
    lips_of,
    need_keys,
    read_arrays,
    split_lips,
)
from .ict import IctFile
from .model import Coefficients
from .restricted import read_head_pickle

__all__ = ["FLAME_KEYS", "FlameFile", "GnmFile", "IctFile", "convert_head"]

_log = logging.getLogger(__name__)

# axes of the arrays: V vertices, F faces
_FLAME: dict[str, tuple[int | str, ...]] = {
    "v_template": ("V", 3),
    "f": ("F", 3),
    "shapedirs": ("V", 3, 400),
    "posedirs": ("V", 3, 36),
    "weights": ("V", 5),
    "J_regressor": (5, "V"),
    "kintree_table": (2, 5),
}
FLAME_KEYS = tuple(_FLAME)
_FLAME_SOURCE = (
    "FLAME files come from https://flame.is.tue.mpg.de after registration and may not be passed on "
    f"(FLAME 2023 Open has its own licence); expected keys: {', '.join(FLAME_KEYS)}"
)
_IDENTITIES = 300  # first columns of FLAME's shapedirs
_JAW = 2  # joint of FLAME: root, neck, jaw, left eye, right eye
_SLIT_METRES, _SLIT_WEIGHT = 0.005, 0.5

# axes of the arrays: V vertices, I identities, E expressions, F faces, G groups
_GNM: dict[str, tuple[int | str, ...]] = {
    "template_vertex_positions": ("V", 3),
    "vertex_identity_basis": ("I", "V", 3),
    "expression_basis": ("E", "V", 3),
    "expression_names": ("E",),
    "identity_names": ("I",),
    "triangles": ("F", 3),
    "skinning_weights": (4, "V"),
    "template_joint_positions": (4, 3),
    "joint_identity_basis": ("I", 4, 3),
    "joint_parent_indices": (4,),
    "joint_names": (4,),
    "pose_correctives_regressor": (36, "3V"),
}
_GNM_LIPS = ("vertex_groups", "vertex_group_names")
_GNM_TEXT = ("expression_names", "identity_names", "joint_names")
_GNM_SOURCE = (
    "GNM Head v3 (Apache-2.0) comes from https://github.com/google/GNM as gnm_head.npz; expected keys: "
    f"version, variant, {', '.join(_GNM)}, {', '.join(_GNM_LIPS)}"
)


class FlameFile(HeadFile):
    """FLAME: a head with expressions and a jaw joint, posed by body-models.

    Expression coefficients are the first of the 100 in the file, as DECA and EMOCA export them; the others are zero.
    `jaw` is the axis-angle of the jaw joint. `pose` is that of the root joint, which is the global rotation of DECA.

    The file does not say where the lips are. Without `mouth_vertices` they are found by the slit between them: two
    vertices are on it if they are closer than 5 mm and their jaw weights differ by more than 0.5. The number found is
    in the log. This rule has been tried on made files only.

    Args:
        path: `.npz` file that `convert_head` wrote, or the released pickle.
        n_exp: Number of expression coefficients, 1 to 100.
        mouth_vertices: Vertex numbers of the lips. Default: the slit rule.
        allow_pickle: Open a pickle as well. It is read by a reader that refuses everything but arrays.

    Raises:
        LayoutError: No file, a missing key, an array of Python objects, or no lips were found.
        AxisError: An array has another shape than in FLAME.
        BrainDataError: `n_exp` or `mouth_vertices` is out of range.
        UnsafePickleError: The file is a pickle that is not allowed or asks for a forbidden name.
        ImportError: body-models is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        n_exp: int = 50,
        mouth_vertices: Sequence[int] | np.ndarray | None = None,
        allow_pickle: bool = False,
    ):
        path = Path(path)
        arrays = _flame_arrays(path, allow_pickle)
        most = arrays["shapedirs"].shape[2] - _IDENTITIES
        if not 1 <= n_exp <= most:
            raise BrainDataError(f"expected n_exp from 1 to {most} in {path}, got {n_exp}")
        self.name, self.licence = "flame", "FLAME: licence of your download, see https://flame.is.tue.mpg.de"
        self.n_exp, self.n_identity, self.n_jaw = n_exp, _IDENTITIES, 3
        self.exp_names = tuple(f"expression_{row:03d}" for row in range(n_exp))
        self._exp_rows = [Coefficients("exp", 0, n_exp, "standard deviations", (-3.0, 3.0))]
        self._set_mesh(arrays["v_template"], arrays["f"])
        self._set_lips(*_flame_lips(arrays, mouth_vertices, path))
        self._set_fingerprint(arrays)
        self._model = _flame_model(arrays)
        first = arrays["shapedirs"][:, :, _IDENTITIES : _IDENTITIES + n_exp]
        self._basis = torch.tensor(np.ascontiguousarray(first), dtype=torch.float32)

    def exp_basis(self) -> Tensor:
        """Displacement of each vertex in metres for each expression coefficient at rest, (V, 3, E)."""
        return self._basis

    def _posed(self, exp: Tensor, jaw: Tensor | None, pose: Tensor | None, identity: Tensor | None) -> Tensor:
        still = exp.new_zeros(len(exp), 3)
        neck_jaw_eyes = torch.stack((still, still if jaw is None else jaw, still, still), 1)  # (T, 4, 3)
        shape = exp.new_zeros(len(exp), 1) if identity is None else identity  # missing coefficients are zero
        return self._model.forward_vertices(neck_jaw_eyes, head_rotation=pose, shape=shape, expression=exp)


class GnmFile(HeadFile):
    """Google's GNM Head v3, posed by body-models. Its joints turn neck and eyes, so that opening is an expression.

    `pose` is the axis-angle of the first joint, the neck.

    Args:
        path: The released `gnm_head.npz`.
        mouth_vertices: Vertex numbers of the lips. Default: the groups `upper_lip` and `lower_lip` of the file.

    Raises:
        LayoutError: No file, a missing key, another version, an array of Python objects, or no lips.
        AxisError: Arrays whose shapes do not fit together.
        ImportError: body-models is not installed.
    """

    def __init__(self, path: str | Path, mouth_vertices: Sequence[int] | np.ndarray | None = None):
        path = Path(path)
        _need_file(path, "a GNM file", _GNM_SOURCE)
        content = read_arrays(path)
        lips = () if mouth_vertices is not None else _GNM_LIPS
        need_keys(content, ("version", "variant", *_GNM, *lips), path, _GNM_SOURCE)
        version = f"{content['variant']} {content['version']}"
        if version != "head 3.0":
            raise LayoutError(f"expected variant and version head 3.0 in {path}, got {version}; {_GNM_SOURCE}")
        arrays = {key: content[key] for key in _GNM}
        width = 3 * len(arrays["template_vertex_positions"])
        axes = {key: tuple(width if axis == "3V" else axis for axis in of) for key, of in _GNM.items()}
        sizes = check_shapes(arrays, axes, path)
        check_numbers({key: array for key, array in arrays.items() if key not in _GNM_TEXT}, path)
        check_faces(arrays["triangles"], sizes["V"], path)
        self.name, self.licence = "gnm", "Apache-2.0"
        self.n_exp, self.n_identity, self.n_jaw = sizes["E"], sizes["I"], 0
        self.exp_names = tuple(map(str, arrays["expression_names"]))
        self._exp_rows = _regions(self.exp_names)
        groups = _groups(content, sizes["V"], path)
        self._set_mesh(arrays["template_vertex_positions"], arrays["triangles"], groups.get("hockey_mask"))
        self._set_lips(*_gnm_lips(arrays["template_vertex_positions"], groups, mouth_vertices, path))
        self._set_fingerprint(arrays)
        self._model = _gnm_model(path)
        self._basis = torch.tensor(np.moveaxis(arrays["expression_basis"], 0, -1).copy(), dtype=torch.float32)

    def exp_basis(self) -> Tensor:
        """Displacement of each vertex in metres for each expression coefficient at rest, (V, 3, E)."""
        return self._basis

    def _posed(self, exp: Tensor, jaw: Tensor | None, pose: Tensor | None, identity: Tensor | None) -> Tensor:
        shape = exp.new_zeros(len(exp), self.n_identity) if identity is None else identity
        joints = exp.new_zeros(len(exp), 3, 3)
        return self._model.forward_vertices(joints, head_rotation=pose, shape=shape, expression=exp)


def convert_head(path: str | Path, out: str | Path) -> Path:
    """Write the arrays of a pickled FLAME file as `.npz`, which opens without running code.

    Only the arrays that `FlameFile` needs are written. The names of all others are in the log.

    Args:
        path: Released pickle, such as `generic_model.pkl`.
        out: New file ending in .npz, in an existing folder.

    Returns:
        `out`.

    Raises:
        LayoutError: `out` exists or does not end in .npz; a key is missing; an array holds Python objects.
        AxisError: An array has another shape than in FLAME.
        UnsafePickleError: The pickle asks for a forbidden name.
    """
    path, out = Path(path), Path(out)
    if out.suffix != ".npz" or out.exists():
        raise LayoutError(f"expected a new file ending in .npz, got {out}{' which exists' if out.exists() else ''}")
    content = read_head_pickle(path)
    arrays: dict[str, Any] = _checked_flame(content, path)
    left = sorted(set(content) - set(arrays))
    if left:
        _log.info("%s: left out %s", path, ", ".join(left))
    with whole_file(out) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    return out


def _need_file(path: Path, what: str, source: str) -> None:
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        raise LayoutError(f"expected {what} at {path}, got {got}; {source}")


def _flame_arrays(path: Path, allow_pickle: bool) -> dict[str, np.ndarray]:
    _need_file(path, "a FLAME file", _FLAME_SOURCE)
    if zipfile.is_zipfile(path):
        return _checked_flame(read_arrays(path), path)
    if not allow_pickle:
        raise UnsafePickleError(
            f"expected a .npz file at {path}, got another one; a pickle can run code when it is opened; convert it "
            f"once with: veca brain convert --file {path} --out {path.stem}.npz, or pass allow_pickle=True"
        )
    return _checked_flame(read_head_pickle(path), path)


def _checked_flame(content: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    need_keys(content, FLAME_KEYS, path, _FLAME_SOURCE)
    arrays = {key: content[key] for key in FLAME_KEYS}
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise LayoutError(f"expected an array under {key!r} in {path}, got {type(array).__name__}")
    sizes = check_shapes(arrays, _FLAME, path)
    check_numbers(arrays, path)
    check_faces(arrays["f"], sizes["V"], path)
    return arrays


def _flame_model(arrays: dict[str, Any]) -> Any:
    """The model of body-models, from a file with these arrays and nothing else.

    The package opens `.npz` files with `allow_pickle=True`. It therefore never gets the user's file.
    """
    try:
        from body_models.flame.torch import FLAME
    except ImportError as error:
        raise need("body-models", "FlameFile", extra="face") from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "flame.npz"
        np.savez(file, **arrays)
        return FLAME(model_path=file).float()


def _gnm_model(path: Path) -> Any:
    try:
        from body_models.gnm.torch import GNM
    except ImportError as error:
        raise need("body-models", "GnmFile", extra="face") from error
    return GNM(model_path=path).float()


def _flame_lips(
    arrays: dict[str, np.ndarray], given: Sequence[int] | np.ndarray | None, path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertex numbers of the lips, of the inner upper lip and of the inner lower lip."""
    template, weights = arrays["v_template"], arrays["weights"][:, _JAW]
    if given is not None:
        lips = lips_of(given, len(template))
        return lips, *split_lips(template, lips, weights[lips], "jaw weights", path)
    upper, lower = np.flatnonzero(weights < _SLIT_WEIGHT), np.flatnonzero(weights > _SLIT_WEIGHT)
    apart = torch.cdist(torch.tensor(template[upper]), torch.tensor(template[lower])).numpy()
    differ = weights[lower][None] - weights[upper][:, None]
    pairs = np.argwhere((apart < _SLIT_METRES) & (differ > _SLIT_WEIGHT))
    upper, lower = np.unique(upper[pairs[:, 0]]), np.unique(lower[pairs[:, 1]])
    _log.info(
        "%s: %d pairs of vertices are on the slit between the lips, %d above and %d below",
        *(path, len(pairs), len(upper), len(lower)),
    )
    if not len(pairs):
        raise LayoutError(
            f"expected vertices closer than {_SLIT_METRES * 1000:g} mm with jaw weights that differ by more than "
            f"{_SLIT_WEIGHT} in {path}, got none; pass mouth_vertices="
        )
    return np.concatenate((upper, lower)), upper, lower


def _groups(content: dict[str, np.ndarray], vertices: int, path: Path) -> dict[str, np.ndarray]:
    """Masks of the vertices of each group of a GNM file, by name."""
    if any(key not in content for key in _GNM_LIPS):
        return {}
    check_shapes(
        {"template": np.empty(vertices), **content},
        {"template": ("V",), "vertex_groups": ("G", "V"), "vertex_group_names": ("G",)},
        path,
    )
    names = map(str, content["vertex_group_names"])
    return {name: weights > 0.5 for name, weights in zip(names, content["vertex_groups"], strict=True)}


def _gnm_lips(
    template: np.ndarray,
    groups: dict[str, np.ndarray],
    given: Sequence[int] | np.ndarray | None,
    path: Path,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if given is not None:
        lips = lips_of(given, len(template))
        return lips, *split_lips(template, lips, -template[lips, 1], "heights", path)
    for name in ("upper_lip", "lower_lip"):
        if name not in groups or not groups[name].any():
            raise LayoutError(f"expected a group {name!r} of vertices in {path}, got {', '.join(groups)}")
    upper = np.flatnonzero(groups["upper_lip"] & ~groups["lower_lip"])
    lower = np.flatnonzero(groups["lower_lip"] & ~groups["upper_lip"])
    return np.flatnonzero(groups["upper_lip"] | groups["lower_lip"]), *inner_lips(template, upper, lower)


def _regions(names: Sequence[str]) -> list[Coefficients]:
    """One row for each run of names that differ in their number only."""
    rows, start = [], 0
    for region, members in groupby(names, key=lambda name: name.rstrip("0123456789").rstrip("_")):
        stop = start + len(list(members))
        rows.append(Coefficients(f"exp:{region}", start, stop, "standard deviations", (-3.0, 3.0)))
        start = stop
    return rows
