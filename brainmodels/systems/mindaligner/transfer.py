"""How much of a map's weight each voxel and each region has.

    weights = weight_blocks(A, B)             # |A B|, one block of rows after the other
    patterns = pattern_blocks(new, aligned)   # activation patterns instead, from responses and aligned responses
    quantity = transfer_quantity(weights)     # .new (n,), .known (k,)
    flow = region_flow(weight_blocks(A, B), {"V1": mask}, {"V1": other})

Weights are those of a filter, which also has to cancel noise. Patterns say where the signal is (Haufe et al., 2014).
Shapes: n voxels of the new subject, k voxels of the known one, h rank, m images.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ...data.moments import column_moments
from ...errors import AxisError, BrainDataError

__all__ = ["TransferQuantity", "pattern_blocks", "region_flow", "transfer_quantity", "weight_blocks"]

ROWS = 1024  # of the map in a block


class TransferQuantity(NamedTuple):
    """Sums of a map's absolute values.

    Attributes:
        new: fp64 (n,) Sum over the known subject's voxels, for each voxel of the new subject.
        known: fp64 (k,) Sum over the new subject's voxels, for each voxel of the known subject.
    """

    new: np.ndarray
    known: np.ndarray


def weight_blocks(left: np.ndarray, right: np.ndarray | None = None, rows: int = ROWS) -> Iterator[np.ndarray]:
    """Absolute weights |left right| of a map, block by block, fp64.

    Args:
        left: Weights A (n, h), or the whole map (n, k).
        right: Weights B (h, k); None where `left` is the whole map.
        rows: Number of rows of a block.
    """
    for start in range(0, len(left), rows):
        part = np.asarray(left[start : start + rows], np.float64)
        yield np.abs(part if right is None else part @ right)


def pattern_blocks(new: np.ndarray, aligned: np.ndarray, rows: int = ROWS) -> Iterator[np.ndarray]:
    """Absolute activation patterns |cov(new, aligned)| / sd(aligned) of a map, block by block, fp64.

    Args:
        new: Responses (m, n) of the new subject.
        aligned: The same responses (m, k) after the map.
        rows: Number of voxels of the new subject in a block.

    Raises:
        AxisError: The numbers of rows differ.
        BrainDataError: An aligned voxel does not vary.
    """
    if len(new) != len(aligned):
        raise AxisError(f"expected as many aligned responses as responses, got {len(aligned)} and {len(new)}")
    mean, std = column_moments(aligned)
    if not (std > 0).all():
        raise BrainDataError(f"expected aligned voxels that vary, got {int((std == 0).sum())} that are constant")
    scaled = (aligned - mean) / std / len(aligned)
    for start in range(0, new.shape[1], rows):
        part = np.asarray(new[:, start : start + rows], np.float64)
        yield np.abs((part - part.mean(0)).T @ scaled)


def transfer_quantity(blocks: Iterable[np.ndarray]) -> TransferQuantity:
    """Sums over rows and columns of the absolute values of a map.

    Args:
        blocks: Blocks (rows, k) from `weight_blocks` or `pattern_blocks`.
    """
    new, known = [], 0.0
    for block in blocks:
        new.append(block.sum(1))
        known = known + block.sum(0)
    return TransferQuantity(np.concatenate(new), np.asarray(known))


def region_flow(
    blocks: Iterable[np.ndarray], new: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Share of a map's absolute values from each region of the new to each region of the known subject.

    It is divided by the share that permuted voxels would have, which is the product of the two regions' shares of all
    voxels. So 1 is chance.

    Args:
        blocks: Blocks (rows, k) from `weight_blocks` or `pattern_blocks`.
        new: Masks (n,) of the new subject's regions by name.
        known: Masks (k,) of the known subject's regions by name.

    Returns:
        fp64 (new regions, known regions), in the order of the mappings.

    Raises:
        AxisError: Masks do not fit the blocks.
        BrainDataError: A region has no voxels, or the map is 0.
    """
    rows, columns = (np.stack([np.asarray(mask, np.float64) for mask in side.values()]) for side in (new, known))
    for name, mask in [*new.items(), *known.items()]:
        if not np.any(mask):
            raise BrainDataError(f"expected regions with voxels, got none in {name}")
    mass, total, start = np.zeros((len(rows), len(columns))), 0.0, 0
    for block in blocks:
        inside = rows[:, start : start + len(block)]
        if block.shape[1] != columns.shape[1] or inside.shape[1] != len(block):
            raise AxisError(
                f"expected a map of {rows.shape[1]} to {columns.shape[1]} voxels, as the masks have, got a block of "
                f"{block.shape} at row {start}"
            )
        mass, total, start = mass + inside @ block @ columns.T, total + block.sum(), start + len(block)
    if start != rows.shape[1]:
        raise AxisError(f"expected a map of {rows.shape[1]} rows, as the masks have, got {start}")
    if total == 0:
        raise BrainDataError("expected a map with weights, got only zeros")
    return mass / total / np.outer(rows.mean(1), columns.mean(1))
