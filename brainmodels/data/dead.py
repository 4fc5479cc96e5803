"""Voxels without a signal: constant in a session, or with values that are not finite.

    dead = find_dead(values, [slice(0, 750), slice(750, 1500)])
    print(dead)                      # "40 of 14320 voxels are dead: 38 constant, 2 not finite"
    values = values[:, dead.alive]

Such voxels lie outside the field of view or in a dropout. No scaling by session is defined for them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DeadVoxels", "find_dead"]

_BLOCK = 64 << 20  # bytes
_SHOWN = 20  # dead voxels whose positions go into the record


@dataclass(frozen=True)
class DeadVoxels:
    """Which voxels have a signal.

    Attributes:
        alive: Booleans (V,).
        not_finite: Number of voxels with NaN or infinite values.
        constant: Number of further voxels that are constant in a session or file.
        first: Columns of the first dead voxels, 20 at most.
    """

    alive: np.ndarray
    not_finite: int
    constant: int
    first: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of dead voxels."""
        return self.not_finite + self.constant

    def __str__(self) -> str:
        return (
            f"{self.count} of {len(self.alive)} voxels are dead: {self.constant} constant, {self.not_finite} not finite"
        )

    def to_json(self, index: np.ndarray) -> dict[str, Any]:
        """Numbers and the first positions as JSON values.

        Args:
            index: Positions of all voxels, (V, 3) or (V, 2).
        """
        places = index[list(self.first)].tolist()
        return {"of": len(self.alive), "constant": self.constant, "not_finite": self.not_finite, "first": places}


def find_dead(values: np.ndarray, parts: Iterable[slice], not_finite: np.ndarray | None = None) -> DeadVoxels:
    """Find voxels without a signal.

    Args:
        values: Responses (trials, voxels). They may be memory-mapped.
        parts: Rows of each session or file. A voxel must vary within each of them that has two rows or more.
        not_finite: Booleans (V,) of voxels that had values that are not finite, before a program replaced them. None
            means that there were none.
    """
    finite = np.ones(values.shape[1], bool) if not_finite is None else ~not_finite
    constant = np.zeros(values.shape[1], bool)
    step = max(1, _BLOCK // max(1, values[:1].nbytes))
    for part in parts:
        start, stop, _ = part.indices(len(values))
        same = np.full(values.shape[1], stop - start > 1)
        for row in range(start, stop, step):
            block = np.asarray(values[row : min(row + step, stop)])
            same &= (block == values[start]).all(0)
            if block.dtype.kind == "f":
                finite &= np.isfinite(block).all(0)
        constant |= same
    constant &= finite
    alive = finite & ~constant
    return DeadVoxels(alive, int((~finite).sum()), int(constant.sum()), tuple(np.flatnonzero(~alive)[:_SHOWN].tolist()))
