"""Flow matching between two paired sets of points: paths, the training loss, and solvers that run both ways.

A path joins z_0 at time 0 to z_1 at time 1, z_t = a(t) z_0 + b(t) z_1. A network learns its velocity, and solving the
ordinary differential equation dz/dt = v(z, t) from 0 to 1 turns points of the first set into points of the second;
from 1 to 0, back. (Lipman et al., arXiv 2210.02747; Albergo and Vanden-Eijnden, arXiv 2209.15571.)

path = FlowPath("linear")
loss = flow_matching_loss(net, path, z_0, z_1, generator)
there = integrate(net, z_0, start=0, end=1, steps=20, solver="heun")
back = integrate(net, there, start=1, end=0, steps=20, solver="heun")
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
    """Of a path at some times: z_t = a z_0 + b z_1, dz_t/dt = da z_0 + db z_1. Tensors shaped as the times."""

    a: Tensor
    b: Tensor
    da: Tensor
    db: Tensor

    @property
    def det(self) -> Tensor:
        """a db - b da: where it is zero, a point and its velocity do not tell the ends of the path."""
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
    """How z_0 becomes z_1.

    | name      | a               | b               |                                                          |
    |-----------|-----------------|-----------------|----------------------------------------------------------|
    | linear    | 1 - t           | t               | the straight line at constant speed                      |
    | cos_sin   | cos(pi t / 2)   | sin(pi t / 2)   | an arc; longer than both ends halfway where they align   |
    | cos2_sin2 | cos^2(pi t / 2) | sin^2(pi t / 2) | the straight line, at rest at both ends                  |

    Losses of different paths are not comparable, since their velocities differ in size.
    """

    name: str

    def __post_init__(self):
        if self.name not in PATHS:
            raise BrainDataError(f"expected a path of {', '.join(PATHS)}, got {self.name!r}")

    def coefficients(self, time: Tensor) -> Coefficients:
        """a, b and their derivatives at times of any shape, in 0..1."""
        return PATHS[self.name](time)

    def point(self, z_0: Tensor, z_1: Tensor, time: Tensor) -> Tensor:
        """z_t, (B, ...), of pairs of that shape at times (B,)."""
        c = self._at(z_0, z_1, time)
        return c.a * z_0 + c.b * z_1

    def velocity(self, z_0: Tensor, z_1: Tensor, time: Tensor) -> Tensor:
        """dz_t/dt, (B, ...), of pairs of that shape at times (B,)."""
        c = self._at(z_0, z_1, time)
        return c.da * z_0 + c.db * z_1

    def endpoints(self, z_t: Tensor, velocity: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(z_0, z_1) from points on the path and their velocities, (B, ...), at times (B,).

        Raises:
            BrainDataError: the path stands still there (|a db - b da| < 1e-3), as cos2_sin2 does at both ends.
        """
        c = self._at(z_t, velocity, time)
        smallest = float(c.det.abs().min())
        if smallest < 1e-3:
            raise BrainDataError(
                f"expected times at which path {self.name!r} moves, |a db - b da| >= 1e-3, got {smallest:.2g}; "
                "stay away from its ends or take another path"
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
    """Mean over all numbers of (field(z_t, t) - dz_t/dt)^2, one time a pair drawn uniformly from 0..1; fp32 at least.

    Args:
        field: the network, of points (B, ...) and times (B,).
        path: between the ends.
        z_0, z_1: pairs, (B, ...) both.
        generator: of the times, on the device of `z_0`.
    """
    dtype = torch.promote_types(z_0.dtype, torch.float32)
    z_0, z_1 = z_0.to(dtype), z_1.to(dtype)
    time = torch.rand(len(z_0), dtype=dtype, device=z_0.device, generator=generator)
    predicted = field(path.point(z_0, z_1, time), time)
    return (predicted.to(dtype) - path.velocity(z_0, z_1, time)).square().mean()


class _Tableau(NamedTuple):
    """An explicit Runge-Kutta method (Butcher): stage i sees time t + nodes[i] h and z + h sum_j stages[i][j] k_j."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


_EULER = _Tableau((0,), ((),), (1,))
_HEUN = _Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2))
_MIDPOINT = _Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1))
_RK4 = _Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
_METHODS = {  # of all steps but the last, of the last
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

    Orders of the error: euler 1, heun and midpoint 2, rk4 4. "heun_euler_last" ends with a step of Euler, as the code
    that NeuroFlow released does: the way back is then not the mirror image of the way there. The equation is
    reversible, none of the solvers is exactly: a round trip errs too, the less the more steps it has.

    Args:
        field: velocities (B, ...) of points (B, ...) in the dtype of `z` and times (B,), in fp32 at least.
        z: points at time `start`, (B, ...). The state is kept in float64 (float32 on devices that lack it).
        start, end: times; going down is going back.
        steps: of equal length, at least 1.
        solver: one of `SOLVERS`.

    Returns:
        Points at time `end`, shape and dtype of `z`.

    Raises:
        BrainDataError: unknown solver, or less than one step.
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
    """How often `integrate` calls the field."""
    first, last = _method(solver, steps)
    return (steps - 1) * len(first.nodes) + len(last.nodes)


def _method(solver: str, steps: int) -> tuple[_Tableau, _Tableau]:
    if solver not in _METHODS:
        raise BrainDataError(f"expected a solver of {', '.join(SOLVERS)}, got {solver!r}")
    if steps < 1:
        raise BrainDataError(f"expected at least one step, got {steps}")
    return _METHODS[solver]
