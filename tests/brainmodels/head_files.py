"""Writers of made head files in the layouts of FLAME, GNM Head v3 and ICT-FaceKit light, with their truth in fp64."""

import json
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

VERTICES = 60
UPPER, LOWER = np.arange(10, 14), np.arange(20, 24)  # the slit of the made heads, 2 mm apart
PARENTS = (-1, 0, 1, 1, 1)  # of FLAME's joints
REGIONS = ("left_eye_region", "right_eye_region", "lower_face_region")


def template(rng: np.random.Generator, vertices: int = VERTICES) -> np.ndarray:
    """Vertices in metres, far from each other except for the lips."""
    points = np.linspace((-0.1, 0.03, -0.05), (0.1, 0.2, 0.05), vertices)
    points += rng.uniform(-0.0005, 0.0005, points.shape)
    across = np.linspace(-0.02, 0.02, len(UPPER))[:, None]
    points[UPPER] = across * (1, 0, 0) + (0, 0.001, 0.09)
    points[LOWER] = across * (1, 0, 0) + (0, -0.001, 0.09)
    return points


def flame_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a made FLAME file."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(5), VERTICES)
    weights[UPPER], weights[LOWER] = (0, 1, 0, 0, 0), (0, 0, 1, 0, 0)
    faces = rng.permuted(np.tile(np.arange(VERTICES), (40, 1)), axis=1)[:, :3]
    return {
        "v_template": template(rng),
        "f": faces.astype(np.uint32),
        "shapedirs": rng.normal(0, 0.002, (VERTICES, 3, 400)),
        "posedirs": rng.normal(0, 0.001, (VERTICES, 3, 36)),
        "weights": weights,
        "J_regressor": rng.dirichlet(np.ones(VERTICES), 5) * (rng.random((5, VERTICES)) < 0.5),
        "kintree_table": np.array([(2**32 - 1, *PARENTS[1:]), range(5)], np.uint32),
    }


def posed(
    rest: np.ndarray, joints: np.ndarray, parents: tuple[int, ...], turns: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Linear blend skinning (V, 3): each joint turns what hangs on it about its place at rest."""
    worlds: list[np.ndarray] = []
    for joint, parent in enumerate(parents):
        local = np.eye(4)
        local[:3, :3] = turns[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if parent >= 0 else 0)
        worlds.append(local if parent < 0 else worlds[parent] @ local)
    relative = []
    for joint, world in enumerate(worlds):
        back = np.eye(4)
        back[:3, 3] = -joints[joint]
        relative.append(world @ back)
    ones = np.concatenate((rest, np.ones((len(rest), 1))), 1)
    return np.einsum("vj,jab,vb->va", weights, np.array(relative), ones)[:, :3]


def flame_vertices(
    arrays: Mapping[str, np.ndarray], exp: np.ndarray, jaw: np.ndarray, pose: np.ndarray, identity: np.ndarray
) -> np.ndarray:
    """Vertices (T, V, 3) by the definition of FLAME."""
    directions, frames = arrays["shapedirs"], []
    for e, j, p, i in zip(exp, jaw, pose, identity, strict=True):
        rest = arrays["v_template"] + np.einsum("vdi,i->vd", directions[:, :, :300], i)
        rest = rest + np.einsum("vde,e->vd", directions[:, :, 300 : 300 + len(e)], e)
        joints = arrays["J_regressor"] @ rest
        turns = Rotation.from_rotvec([p, np.zeros(3), j, np.zeros(3), np.zeros(3)]).as_matrix()
        corrected = rest + np.einsum("vdc,c->vd", arrays["posedirs"], (turns[1:] - np.eye(3)).ravel())
        frames.append(posed(corrected, joints, PARENTS, turns, arrays["weights"]))
    return np.stack(frames)


class _Ch:
    """What chumpy writes: an array and the book-keeping beside it."""

    def __init__(self, x: np.ndarray):
        self.x, self._dirty_vars, self._itr = x, {"x"}, None


class _Csc:
    def __init__(self, dense: np.ndarray):
        columns, rows = np.nonzero(dense.T)
        self._shape, self.maxprint = dense.shape, 50
        self.indptr = np.r_[0, np.bincount(columns, minlength=dense.shape[1]).cumsum()].astype(np.int32)
        self.indices, self.data = rows.astype(np.int32), dense[rows, columns]


@contextmanager
def _pretended(sparse_module: str) -> Iterator[None]:
    """Let the classes above be written under the names of chumpy and scipy, neither of which is loaded for that."""
    places = {"chumpy": ("", None), "chumpy.ch": ("Ch", _Ch), sparse_module: ("csc_matrix", _Csc)}
    before = {name: sys.modules.get(name) for name in places}
    for module, (name, kind) in places.items():
        sys.modules[module] = ModuleType(module)
        if kind is not None:
            setattr(sys.modules[module], name, kind)
            kind.__module__, kind.__qualname__, kind.__name__ = module, name, name
    try:
        yield
    finally:
        for module, old in before.items():
            if old is None:
                del sys.modules[module]
            else:
                sys.modules[module] = old


def flame_pickle(arrays: Mapping[str, np.ndarray], protocol: int, sparse_module: str = "scipy.sparse.csc") -> bytes:
    """A FLAME file as it is released: directions of chumpy, a sparse regressor, and more than is needed."""
    content = {**arrays, "bs_style": "lbs", "J": np.zeros((5, 3))}
    with _pretended(sparse_module):
        content["shapedirs"], content["v_template"] = _Ch(arrays["shapedirs"]), _Ch(arrays["v_template"])
        content["J_regressor"] = _Csc(arrays["J_regressor"])
        return pickle.dumps(content, protocol=protocol)


def gnm_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a made GNM file: 7 identity and 12 expression coefficients in 3 regions."""
    rng = np.random.default_rng(seed)
    groups = np.zeros((3, VERTICES))
    groups[0, UPPER], groups[1, LOWER], groups[2, 5:50] = 1, 1, 1
    return {
        "version": np.array("3.0"),
        "variant": np.array("head"),
        "template_vertex_positions": template(rng),
        "vertex_identity_basis": rng.normal(0, 0.002, (7, VERTICES, 3)),
        "expression_basis": rng.normal(0, 0.002, (12, VERTICES, 3)),
        "expression_names": np.array([f"{region}_{number:03d}" for region in REGIONS for number in range(4)]),
        "identity_names": np.array([f"head_{number:03d}" for number in range(7)]),
        "triangles": rng.permuted(np.tile(np.arange(VERTICES), (40, 1)), axis=1)[:, :3],
        "skinning_weights": rng.dirichlet(np.ones(4), VERTICES).T,
        "template_joint_positions": rng.normal(0, 0.05, (4, 3)),
        "joint_identity_basis": rng.normal(0, 0.002, (7, 4, 3)),
        "joint_parent_indices": np.array([-1, 0, 1, 1]),
        "joint_names": np.array(["neck", "head", "left_eye", "right_eye"]),
        "pose_correctives_regressor": rng.normal(0, 0.001, (36, 3 * VERTICES)),
        "vertex_groups": groups,
        "vertex_group_names": np.array(["upper_lip", "lower_lip", "hockey_mask"]),
    }


def gnm_vertices(
    arrays: Mapping[str, np.ndarray], exp: np.ndarray, pose: np.ndarray, identity: np.ndarray
) -> np.ndarray:
    """Vertices (T, V, 3) by the definition of GNM, with the first joint turned."""
    frames = []
    for e, p, i in zip(exp, pose, identity, strict=True):
        rest = arrays["template_vertex_positions"] + np.einsum("ivd,i->vd", arrays["vertex_identity_basis"], i)
        rest = rest + np.einsum("evd,e->vd", arrays["expression_basis"], e)
        joints = arrays["template_joint_positions"] + np.einsum("ijd,i->jd", arrays["joint_identity_basis"], i)
        turns = Rotation.from_rotvec([p, np.zeros(3), np.zeros(3), np.zeros(3)]).as_matrix()
        shift = (turns - np.eye(3)).ravel() @ arrays["pose_correctives_regressor"]
        weights = arrays["skinning_weights"].T
        frames.append(posed(rest + shift.reshape(-1, 3), joints, (-1, 0, 1, 1), turns, weights))
    return np.stack(frames)


def write_ict(
    folder: Path, names: tuple[str, ...] = ("browDown_L", "jawOpen"), identities: int = 3, vertices: int = VERTICES
) -> dict[str, np.ndarray]:
    """Write a made folder of ICT-FaceKit. Returns the neutral vertices and the bases (V, 3, n)."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    neutral = template(rng, vertices)
    bases = {"expressions": rng.normal(size=(vertices, 3, len(names)))}
    bases["identities"] = rng.normal(size=(vertices, 3, identities))
    (folder / "vertex_indices.json").write_text(json.dumps({"expressions": names, "fitting_expressions": []}))
    write_obj(folder / "generic_neutral_mesh.obj", neutral)
    for row, name in enumerate(names):
        write_obj(folder / f"{name}.obj", neutral + bases["expressions"][:, :, row])
    for row in range(identities):
        write_obj(folder / f"identity{row:03d}.obj", neutral + bases["identities"][:, :, row])
    return {"neutral": neutral, **bases}


def write_obj(path: Path, vertices: np.ndarray) -> None:
    """Write vertices, one texture coordinate, a quad and a triangle."""
    lines = ["# made", "mtllib none.mtl", *("v " + " ".join(map(repr, row)) for row in vertices.tolist())]
    lines += ["vt 0.5 0.5", "usemtl skin", "f 1/1 2/1 3/1 4/1", "f 5/1/1 6/1/1 7/1/1"]
    path.write_text("\n".join(lines) + "\n")


def drawn(*shape: int, scale: float = 1.0, seed: int = 1) -> torch.Tensor:
    """Normal numbers in fp32."""
    return torch.tensor(np.random.default_rng(seed).normal(0, scale, shape), dtype=torch.float32)


def write_archive(path: Path, arrays: Mapping[str, Any], **others: Any) -> Path:
    """A `.npz` file of these arrays, where None removes one."""
    kept = {key: value for key, value in {**arrays, **others}.items() if value is not None}
    np.savez(path, **kept)
    return path
