"""Flow matching between two paired sets of points: paths, the training loss, and solvers that run both ways.

    path = FlowPath("linear")
    loss = flow_matching_loss(net, path, z_0, z_1, generator)
    there = integrate(net, z_0, start=0, end=1, steps=20, solver="heun")
    back = integrate(net, there, start=1, end=0, steps=20, solver="heun")

A path z_t = a(t) z_0 + b(t) z_1 starts at z_0 (time 0) and ends at z_1 (time 1). A network learns its velocity. Solving
the ordinary differential equation dz/dt = v(z, t) from 0 to 1 turns points of the first set into points of the second.
Solving it from 1 to 0 turns them back. (Lipman et al., arXiv 2210.02747; Albergo and Vanden-Eijnden, arXiv 2209.15571.)

Shapes: B pairs of points, "..." the axes of a point.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import AxisError, BrainDataError

__all__ = ["PATHS", "SOLVERS", "Coefficients", "FlowPath", "flow_matching_loss", "function_evaluations", "integrate"]

Field = Callable[[Tensor, Tensor], Tensor]  # points (B, ...), times (B,) -> velocities (B, ...)


class Coefficients(NamedTuple):
    """Coefficients of a path at some times: z_t = a z_0 + b z_1 and dz_t/dt = da z_0 + db z_1.

    Attributes:
        a, b: Weights of the two ends, shaped as the times.
        da, db: Derivatives of the weights, shaped as the times.
    """

    a: Tensor
    b: Tensor
    da: Tensor
    db: Tensor

    @property
    def det(self) -> Tensor:
        """a db - b da. Where it is zero, a point and its velocity do not determine the ends of the path."""
        return self.a * self.db - self.b * self.da


def _linear(t: Tensor) -> Coefficients:
    one = torch.ones_like(t)
    return Coefficients(1 - t, t, -one, one)


def _cos_sin(t: Tensor) -> Coefficients:
    rate = math.pi / 2
    a, b = (rate * t).cos(), (rate * t).sin()
    return Coefficients(a, b, -rate * b, rate * a)


def _cos2_sin2(t: Tensor) -> Coefficients:
    rate = math.pi / 2
    speed = rate * (math.pi * t).sin()
    return Coefficients((rate * t).cos() ** 2, (rate * t).sin() ** 2, -speed, speed)


PATHS = {"linear": _linear, "cos_sin": _cos_sin, "cos2_sin2": _cos2_sin2}


@dataclass(frozen=True)
class FlowPath:
    """A path from z_0 to z_1.

    | name      | a               | b               |                                                          |
    |-----------|-----------------|-----------------|----------------------------------------------------------|
    | linear    | 1 - t           | t               | the straight line at constant speed                      |
    | cos_sin   | cos(pi t / 2)   | sin(pi t / 2)   | an arc; longer than both ends halfway where they align   |
    | cos2_sin2 | cos^2(pi t / 2) | sin^2(pi t / 2) | the straight line, at rest at both ends                  |

    Do not compare losses of different paths, because their velocities differ in size.

    Attributes:
        name: Name of the path, one of `PATHS`.

    Raises:
        BrainDataError: An unknown name.
    """

    name: str

    def __post_init__(self):
        if self.name not in PATHS:
            raise BrainDataError(f"expected a path of {', '.join(PATHS)}, got {self.name!r}")

    def coefficients(self, time: Tensor) -> Coefficients:
        """Coefficients a, b and their derivatives at times of any shape, from 0 to 1."""
        return PATHS[self.name](time)

    def point(self, z_0: Tensor, z_1: Tensor, time: Tensor) -> Tensor:
        """Points on the path.

        Args:
            z_0, z_1: (B, ...) Ends of the path.
            time: (B,) Times from 0 to 1.

        Returns:
            z_t (B, ...).

        Raises:
            AxisError: Shapes do not match.
        """
        c = self._at(z_0, z_1, time)
        return c.a * z_0 + c.b * z_1

    def velocity(self, z_0: Tensor, z_1: Tensor, time: Tensor) -> Tensor:
        """Velocities on the path.

        Args:
            z_0, z_1: (B, ...) Ends of the path.
            time: (B,) Times from 0 to 1.

        Returns:
            dz_t/dt (B, ...).

        Raises:
            AxisError: Shapes do not match.
        """
        c = self._at(z_0, z_1, time)
        return c.da * z_0 + c.db * z_1

    def endpoints(self, z_t: Tensor, velocity: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the path, from points on it and their velocities.

        Args:
            z_t: (B, ...) Points.
            velocity: (B, ...) Velocities at these points.
            time: (B,) Times from 0 to 1.

        Returns:
            (z_0, z_1), both (B, ...).

        Raises:
            BrainDataError: The path stands still (|a db - b da| < 1e-3), as cos2_sin2 does at both ends.
            AxisError: Shapes do not match.
        """
        c = self._at(z_t, velocity, time)
        smallest = float(c.det.abs().min())
        if smallest < 1e-3:
            raise BrainDataError(
                f"expected times at which path {self.name!r} moves, |a db - b da| >= 1e-3, got {smallest:.2g}; "
                "choose times away from its ends, or another path"
            )
        return (c.db * z_t - c.b * velocity) / c.det, (c.a * velocity - c.da * z_t) / c.det

    def _at(self, first: Tensor, second: Tensor, time: Tensor) -> Coefficients:
        """Coefficients (B, 1, ...) that broadcast over the points."""
        if first.shape != second.shape or time.shape != first.shape[:1]:
            raise AxisError(
                f"expected two tensors of one shape (B, ...) and times (B,), got {tuple(first.shape)}, "
                f"{tuple(second.shape)} and {tuple(time.shape)}"
            )
        return self.coefficients(time.reshape(-1, *[1] * (first.ndim - 1)))


def flow_matching_loss(
    field: Field, path: FlowPath, z_0: Tensor, z_1: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Flow matching loss: the mean over all numbers of (field(z_t, t) - dz_t/dt)^2, computed in fp32 at least.

    Each pair has one time, drawn uniformly from 0 to 1. (Lipman et al., arXiv 2210.02747.)

    Args:
        field: Network from points (B, ...) and times (B,) to velocities (B, ...).
        path: Path between the ends.
        z_0, z_1: (B, ...) Ends of the path.
        generator: Random generator of the times, on the device of `z_0`.

    Returns:
        A scalar.

    Raises:
        AxisError: Shapes do not match.
    """
    dtype = torch.promote_types(z_0.dtype, torch.float32)
    z_0, z_1 = z_0.to(dtype), z_1.to(dtype)
    time = torch.rand(len(z_0), dtype=dtype, device=z_0.device, generator=generator)
    predicted = field(path.point(z_0, z_1, time), time)
    return (predicted.to(dtype) - path.velocity(z_0, z_1, time)).square().mean()


class _Tableau(NamedTuple):
    """Explicit Runge-Kutta method (Butcher): stage i sees time t + nodes[i] h and z + h sum_j stages[i][j] k_j."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


_EULER = _Tableau((0,), ((),), (1,))
_HEUN = _Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2))
_MIDPOINT = _Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1))
_RK4 = _Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
_METHODS = {  # methods of all steps but the last, and of the last
    "euler": (_EULER, _EULER),
    "heun": (_HEUN, _HEUN),
    "heun_euler_last": (_HEUN, _EULER),
    "midpoint": (_MIDPOINT, _MIDPOINT),
    "rk4": (_RK4, _RK4),
}
SOLVERS = tuple(_METHODS)


def integrate(
    field: Field, z: Tensor, *, start: float = 0.0, end: float = 1.0, steps: int = 20, solver: str = "heun"
) -> Tensor:
    """Solve dz/dt = field(z, t) from time `start` to time `end`, in either direction, in uniform steps.

    | solver | order of the error |
    |---|---|
    | euler | 1 |
    | heun, midpoint | 2 |
    | rk4 | 4 |
    | heun_euler_last | heun, but the last step is euler's, as in the code that NeuroFlow released |

    With "heun_euler_last" the way back is not the mirror image of the way there. The equation is reversible, but none
    of the solvers is exactly reversible. A round trip therefore has an error, which falls with the number of steps.

    Args:
        field: Network from points (B, ...), in the dtype of `z`, and times (B,), fp32 at least, to velocities (B, ...).
        z: (B, ...) Points at time `start`. The state is kept in float64 (float32 on devices that lack it).
        start, end: Times of start and end. `end` may be smaller, which solves backwards.
        steps: Number of steps of equal length, at least 1.
        solver: Name of the solver, one of `SOLVERS`.

    Returns:
        Points at time `end`, with the shape and dtype of `z`.

    Raises:
        BrainDataError: An unknown solver, or less than one step.
    """
    first, last = _method(solver, steps)
    state = z.to(torch.float32 if z.device.type == "mps" else torch.float64)
    clock = torch.promote_types(z.dtype, torch.float32)
    size = (end - start) / steps

    def velocity(state: Tensor, t: float) -> Tensor:
        return field(state.to(z.dtype), torch.full((len(z),), t, dtype=clock, device=z.device)).to(state.dtype)

    for step in range(steps):
        tableau = last if step == steps - 1 else first
        slopes = []
        for node, row in zip(tableau.nodes, tableau.stages, strict=True):
            at = state + size * sum(w * k for w, k in zip(row, slopes, strict=True) if w)
            slopes.append(velocity(at, start + (step + node) * size))
        state = state + size * sum(w * k for w, k in zip(tableau.weights, slopes, strict=True) if w)
    return state.to(z.dtype)


def function_evaluations(solver: str, steps: int) -> int:
    """Number of times that `integrate` calls the field.

    Raises:
        BrainDataError: An unknown solver, or less than one step.
    """
    first, last = _method(solver, steps)
    return (steps - 1) * len(first.nodes) + len(last.nodes)


def _method(solver: str, steps: int) -> tuple[_Tableau, _Tableau]:
    if solver not in _METHODS:
        raise BrainDataError(f"expected a solver of {', '.join(SOLVERS)}, got {solver!r}")
    if steps < 1:
        raise BrainDataError(f"expected at least one step, got {steps}")
    return _METHODS[solver]
