"""What every head model offers: vertices from coefficients, and a table of its coefficients.

    head = ToyHead()
    vertices = head.vertices(exp, jaw)  # (T, V, 3)
    opening = head.mouth_opening(vertices)  # (T,)
    for row in head.describe():
        print(row.name, row.start, row.stop, row.unit, row.usual)

At rest jaw and fixed pose, vertices are exactly linear in the expression coefficients. The jaw turns about a hinge, so
its effect is not linear, and its numbers are kept in a separate array.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Coefficients", "HeadModel", "rotations"]


class Coefficients(NamedTuple):
    """A range of the numbers that drive a head.

    Attributes:
        name: Name of the range, such as "exp:corner_up" or "jaw".
        start: First number of the range in its array.
        stop: Number after the last one of the range.
        unit: Unit of the numbers, such as "1" or "rad".
        usual: Smallest and largest value in usual motion.
    """

    name: str
    start: int
    stop: int
    unit: str
    usual: tuple[float, float]


@runtime_checkable
class HeadModel(Protocol):
    """A head whose vertices follow from expression, jaw, pose and identity.

    Attributes:
        name: Name of the head model.
        licence: Licence of its arrays.
        fingerprint: SHA-256 of its arrays. It changes when any of them changes.
        exp_names: Names of the expression coefficients.
        n_exp: Number of expression coefficients, E.
        n_identity: Number of identity coefficients.
        n_jaw: Number of jaw coefficients, J. 3 is an axis-angle in radians; 0 means that opening is an expression.
        faces: (Nf, 3) Vertex numbers of the triangles.
        mouth_vertices: (Vm,) Vertex numbers of the lips.
    """

    name: str
    licence: str
    fingerprint: str
    exp_names: tuple[str, ...]
    n_exp: int
    n_identity: int
    n_jaw: int
    faces: Tensor
    mouth_vertices: Tensor

    def exp_basis(self) -> Tensor:
        """Displacement of each vertex for each expression coefficient at rest, (V, 3, E)."""
        ...

    def vertices(
        self, exp: Tensor, jaw: Tensor | None = None, pose: Tensor | None = None, identity: Tensor | None = None
    ) -> Tensor:
        """Vertices of each frame.

        Args:
            exp: (T, E) Expression coefficients.
            jaw: (T, J) Jaw coefficients. None is the rest jaw.
            pose: (T, 3) Axis-angle of the head in radians. None looks straight ahead.
            identity: (I,) or (T, I) Identity coefficients. None is the mean face.

        Returns:
            (T, V, 3) Vertices.

        Raises:
            AxisError: An array has another width or number of frames than expected.
        """
        ...

    def mouth_opening(self, vertices: Tensor) -> Tensor:
        """Gap of the inner lips divided by the height of the face.

        Args:
            vertices: (T, V, 3) Vertices of this head.

        Returns:
            (T,) Openings, 0 where the lips touch.
        """
        ...

    def describe(self) -> list[Coefficients]:
        """Table of all coefficients. Each expression, jaw, pose and identity number is in exactly one row."""
        ...


def rotations(turns: Tensor) -> Tensor:
    """Rotation matrices (T, 3, 3) of axis-angles (T, 3), smooth at zero."""
    x, y, z = turns.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), 1).view(-1, 3, 3)
    return torch.linalg.matrix_exp(cross)
