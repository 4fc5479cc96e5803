"""`ToyHead`: a drawn head with a linear expression basis, a jaw on a hinge, and exact pictures of any size.

    head = ToyHead()
    exp, jaw = head.emotion("happy")
    picture = head.pictures(0.8 * exp[None], 0.8 * jaw[None], size=256)[0]  # uint8 (256, 256, 3)

It is made without human data. Expressions are sums of twelve named components. With `mixing="orthogonal"` the
coefficients are a fixed rotation of the components, so that every coefficient moves the lips a little, as in head
models fitted to scans. Pictures are differentiable in expression, jaw, pose and identity.
"""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from veca.hashes import hex_digest

from ..errors import AxisError, BrainDataError, check_choice
from .face import HINGE, IDENTITY, NAMED, NECK, build_face
from .model import Coefficients, rotations
from .painting import MIDDLE, SPAN, paint_face

__all__ = ["EMOTION_DIRECTIONS", "NAMED", "VISEME_SHAPES", "ToyHead"]

Array = TypeVar("Array", np.ndarray, Tensor)

EMOTION_DIRECTIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "angry": {"brow_furrow": 1.0, "brow_raise": -0.35, "lid_wide": 0.1, "nose_wrinkle": 0.3, "corner_down": 0.6,
              "press": 0.7},
    "contempt": {"brow_raise": -0.1, "lid_wide": -0.42, "corner_up": 0.2, "upper_raise": 0.8, "press": 0.9},
    "disgust": {"brow_furrow": 0.55, "brow_raise": -0.3, "lid_wide": -0.25, "cheek_raise": 0.7, "nose_wrinkle": 1.0,
                "upper_raise": 1.0, "corner_down": 0.7, "lower_drop": 0.35},
    "fear": {"brow_raise": 0.7, "brow_furrow": -0.7, "lid_wide": 0.7, "stretch": 0.8, "corner_down": 0.5,
             "lower_drop": 0.5, "jaw": 0.06},
    "happy": {"brow_raise": 0.15, "lid_wide": -0.05, "cheek_raise": 0.8, "corner_up": 1.0, "stretch": 0.35,
              "lower_drop": 0.9},
    "sad": {"brow_raise": 0.1, "brow_furrow": -0.9, "lid_wide": -0.3, "corner_down": 1.0, "press": 0.2},
    "surprise": {"brow_raise": 1.0, "lid_wide": 0.6, "round": 0.55, "lower_drop": 0.3, "jaw": 0.24},
}  # fmt: skip
"""Components of each emotion at intensity 1. "jaw" is the turn of the jaw in radians."""

_VISEMES: dict[str, dict[str, float]] = {
    "rest": {},
    "closed": {"press": 0.9},
    "lip_teeth": {"lower_drop": -0.3, "press": -0.7, "stretch": 0.25, "jaw": 0.05},
    "spread": {"stretch": 0.7, "lower_drop": 0.3, "jaw": 0.07},
    "open": {"lower_drop": 0.35, "jaw": 0.28},
    "round": {"round": 1.0, "jaw": 0.07},
}


def _shape(table: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    named = np.array([table.get(name, 0.0) for name in NAMED], np.float32)
    return named, np.array([table.get("jaw", 0.0), 0, 0], np.float32)


VISEME_SHAPES: dict[str, tuple[np.ndarray, np.ndarray]] = {name: _shape(table) for name, table in _VISEMES.items()}
"""Named components (12,) and jaw (3,) of the mouth shapes of speech."""


class ToyHead:
    """A drawn head.

    `exp` are 12 coefficients. `jaw` is an axis-angle in radians whose first number opens the mouth, 0 to about 0.35.
    `pose` is an axis-angle in radians: positive numbers nod down, turn to the viewer's right, and tilt to the viewer's
    left. `identity` are 8 numbers in [-1, 1] with the names of `heads.face.IDENTITY`. Of the named components,
    `lid_wide` closes the eyes at -1 and is usually at most 0.7.

    Args:
        mixing: "orthogonal" rotates the coefficients against the named components. None uses the components themselves.
        seed: Seed of the rotation.

    Raises:
        BrainDataError: The mixing is unknown.
    """

    name = "toy"
    licence = "Apache-2.0"
    n_exp = len(NAMED)
    n_jaw = 3
    n_identity = len(IDENTITY)

    def __init__(self, mixing: str | None = "orthogonal", seed: int = 0) -> None:
        check_choice("mixing", mixing, ("orthogonal", None))
        self.mixing, self.seed = mixing, seed
        face = build_face()
        self._groups = face.groups
        self._mixing = _rotation(seed) if mixing else np.eye(self.n_exp)
        self._template, self._exp, self._identity, self._jaw, self._pose = (
            torch.from_numpy(array).float() for array in (face.template, face.exp @ self._mixing.T, *face[2:5])
        )
        self.exp_names = NAMED if mixing is None else tuple(f"mixed_{i:02d}" for i in range(self.n_exp))
        self.mouth_vertices = torch.tensor(face.of("lips"))
        self.faces = torch.tensor([
            (rows.start, row, row + 1)
            for rows in face.groups.values()
            for row in range(rows.start + 1, rows.stop - 1)
        ])  # fmt: skip
        arrays = (face.template, face.exp, face.identity, face.jaw, face.pose, self._mixing)
        self.fingerprint = hex_digest(array.astype("<f4") for array in arrays)

    def mix(self, named: Array) -> Array:
        """Coefficients (..., 12) of named components (..., 12). Arrays give fp32 arrays, tensors give tensors."""
        return _turn(named, self._mixing.T)

    def unmix(self, exp: Array) -> Array:
        """Named components (..., 12) of coefficients (..., 12). Arrays give fp32 arrays, tensors give tensors."""
        return _turn(exp, self._mixing)

    def emotion(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Expression (12,) and jaw (3,) of an emotion at intensity 1, fp32.

        Raises:
            BrainDataError: The emotion is unknown.
        """
        named, jaw = _shape(EMOTION_DIRECTIONS[check_choice("emotion", name, tuple(EMOTION_DIRECTIONS))])
        return self.mix(named), jaw

    def draw_identity(self, rng: np.random.Generator) -> np.ndarray:
        """A random identity, (8,) fp32."""
        return rng.uniform(-1, 1, self.n_identity).astype(np.float32)

    def exp_basis(self) -> Tensor:
        """Displacement of each vertex for each expression coefficient at rest, (V, 3, 12)."""
        return self._exp.clone()

    def vertices(
        self,
        exp: Tensor | np.ndarray,
        jaw: Tensor | np.ndarray | None = None,
        pose: Tensor | np.ndarray | None = None,
        identity: Tensor | np.ndarray | None = None,
    ) -> Tensor:
        """Vertices of each frame, (T, V, 3).

        Args:
            exp: (T, 12) Expression coefficients.
            jaw: (T, 3) Axis-angle of the jaw in radians. None is the rest jaw.
            pose: (T, 3) Axis-angle of the head in radians. None looks straight ahead.
            identity: (8,) or (T, 8) Identity numbers. None is the mean face.

        Raises:
            AxisError: An array has another width or number of frames than expected.
        """
        exp, jaw, pose, identity = self._checked(exp, jaw, pose, identity)
        points = self._template + torch.einsum("ti,vdi->tvd", identity, self._identity)
        points = points + torch.einsum("te,vde->tvd", exp, self._exp)
        return self._turned(self._turned(points, jaw, HINGE, self._jaw), pose, NECK, self._pose)

    def mouth_opening(self, vertices: Tensor) -> Tensor:
        """Gap of the inner lips in the middle of the mouth, divided by the distance from crown to chin, (T,)."""
        head = self._groups["head"]
        crown, chin = vertices[:, head.start], vertices[:, head.start + 11]
        axis = crown - chin
        height = axis.norm(dim=-1)
        upper, lower = (vertices[:, self._groups[f"lips_{side}_inner"].start + 2] for side in ("upper", "lower"))
        return (((upper - lower) * axis).sum(-1) / height.square()).clamp(min=0)

    def describe(self) -> list[Coefficients]:
        """Table of all coefficients: expression, jaw, pose and identity."""
        usual = (-1.0, 1.0)
        rows = [Coefficients(f"exp:{name}", i, i + 1, "1", usual) for i, name in enumerate(self.exp_names)]
        rows += [
            Coefficients("jaw:open", 0, 1, "rad", (0.0, 0.35)),
            Coefficients("jaw:other", 1, 3, "rad", (-0.05, 0.05)),
        ]
        rows += [Coefficients("pose", 0, 3, "rad", (-0.25, 0.25))]
        return rows + [Coefficients(f"identity:{name}", i, i + 1, "1", usual) for i, name in enumerate(IDENTITY)]

    def render(
        self,
        exp: Tensor | np.ndarray,
        jaw: Tensor | np.ndarray | None = None,
        pose: Tensor | np.ndarray | None = None,
        identity: Tensor | np.ndarray | None = None,
        size: int = 64,
    ) -> Tensor:
        """Pictures of each frame, differentiable in all arguments.

        Args:
            exp, jaw, pose, identity: As in `vertices`.
            size: Height and width in pixels, 8 at least.

        Returns:
            (T, 3, size, size) RGB in [0, 1].

        Raises:
            AxisError: An array has another width or number of frames than expected, or the size is under 8.
        """
        if size < 8:
            raise AxisError(f"expected pictures of 8 pixels or more, got {size}")
        if size < 24:  # eyes of two pixels need a finer look than one distance for each pixel
            return F.avg_pool2d(self.render(exp, jaw, pose, identity, 2 * size), 2)
        exp, jaw, pose, identity = self._checked(exp, jaw, pose, identity)
        pixels = self._project(self.vertices(exp, jaw, pose, identity), size)
        if len(identity) > 1 and not identity.requires_grad and bool((identity == identity[:1]).all()):
            identity = identity[:1]
        points = {name: pixels[:, rows] for name, rows in self._groups.items()}
        frames = paint_face(points, self.unmix(exp), identity, size)
        return frames.expand(len(exp), -1, -1, -1)

    @torch.no_grad()
    def pictures(
        self,
        exp: Tensor | np.ndarray,
        jaw: Tensor | np.ndarray | None = None,
        pose: Tensor | np.ndarray | None = None,
        identity: Tensor | np.ndarray | None = None,
        size: int = 64,
    ) -> np.ndarray:
        """Pictures as `render` gives them, rounded, uint8 (T, size, size, 3). Long clips are rendered in chunks."""
        exp, jaw, pose, identity = self._checked(exp, jaw, pose, identity)
        frames = np.empty((len(exp), size, size, 3), np.uint8)
        step = max(4, 64 * 64 * 64 // max(size, 32) ** 2)
        for start in range(0, len(exp), step):
            part = slice(start, start + step)
            chunk = self.render(exp[part], jaw[part], pose[part], identity[part], size)
            frames[part] = (chunk * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return frames

    @torch.no_grad()
    def mouth_box(
        self,
        exp: Tensor | np.ndarray,
        jaw: Tensor | np.ndarray | None = None,
        pose: Tensor | np.ndarray | None = None,
        identity: Tensor | np.ndarray | None = None,
        size: int = 64,
    ) -> np.ndarray:
        """Box around the lips of each frame with a margin, cut to the picture.

        Returns:
            (T, 4) fp32: left, top, right and bottom in pixels.
        """
        lips = self._project(self.vertices(exp, jaw, pose, identity), size)[:, self.mouth_vertices]
        margin = 0.06 * size / SPAN
        return torch.cat([lips.amin(1) - margin, lips.amax(1) + margin], 1).clamp(0, size).numpy()

    def _project(self, vertices: Tensor, size: int) -> Tensor:
        """Pixels (T, V, 2) of vertices. Far points are kept near the picture."""
        x = (vertices[..., 0] - MIDDLE[0]) / SPAN + 0.5
        y = 0.5 - (vertices[..., 1] - MIDDLE[1]) / SPAN
        return torch.stack([x, y], -1).clamp(-1, 2) * size

    @staticmethod
    def _turned(points: Tensor, angles: Tensor, center: tuple[float, float, float], share: Tensor) -> Tensor:
        """Points after a turn about a centre, blended with the points before it."""
        if not angles.requires_grad and not bool(angles.any()):
            return points
        middle = torch.tensor(center, dtype=points.dtype)
        turned = torch.einsum("tij,tvj->tvi", rotations(angles), points - middle) + middle
        return points + share[:, None] * (turned - points)

    def _checked(self, exp, jaw, pose, identity) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exp = torch.as_tensor(exp, dtype=torch.float32)
        if exp.ndim != 2 or exp.shape[1] != self.n_exp or not len(exp):
            raise AxisError(f"expected exp of shape (T, {self.n_exp}), got {tuple(exp.shape)}")
        frames, found = len(exp), []
        for name, array, width in (("jaw", jaw, 3), ("pose", pose, 3), ("identity", identity, self.n_identity)):
            array = torch.zeros(frames, width) if array is None else torch.as_tensor(array, dtype=torch.float32)
            if name == "identity" and array.shape == (width,):
                array = array.expand(frames, -1)
            if array.shape != (frames, width):
                raise AxisError(f"expected {name} of shape ({frames}, {width}), got {tuple(array.shape)}")
            found.append(array)
        if not all(bool(torch.isfinite(array).all()) for array in (exp, *found)):
            raise BrainDataError("expected finite numbers for the head, got NaN or infinity")
        return exp, found[0], found[1], found[2]


def _rotation(seed: int) -> np.ndarray:
    """A random rotation (12, 12), fp64."""
    q, r = np.linalg.qr(np.random.default_rng([seed, 12]).normal(size=(len(NAMED), len(NAMED))))
    return q * np.sign(np.diag(r))


def _turn(array: Array, matrix: np.ndarray) -> Array:
    if isinstance(array, Tensor):
        return array @ torch.from_numpy(matrix).to(array)
    return (np.asarray(array, np.float64) @ matrix).astype(np.float32)
