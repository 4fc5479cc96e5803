"""The pictures of a bank: drawn scenes, which need no file, or those that lie beside its keys.

A bank of 8,000 drawn scenes ships as ids and keys, and a generator of such scenes. `veca brain drawer` made the
generator. With `--kind nearest` it made the bank.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from veca.files import read_json, whole_file

from ..errors import AxisError, LayoutError
from ..features import Extractor
from ..features.arrays import Ids
from ..simulated.scenes import scene_pictures
from .generator import Generator
from .keyed_nearest import KeyedNearest
from .patch_code import pixels_of

__all__ = ["PIXELS", "SHIPPED", "bank_pictures", "save_pictures", "shipped_generator", "shipped_ids", "shipped_nearest"]

_log = logging.getLogger(__name__)
SHIPPED = Path(__file__).parent / "weights"
PIXELS = 64
PROBES = 4  # scenes whose keys are computed again, to see that the bank belongs to an extractor
DEVIATION = 0.05  # largest mean deviation of their scores, in standard deviations; int8 alone makes about 0.01


def save_pictures(folder: Path, images: np.ndarray) -> None:
    """Write the pictures (N, H, W, 3) uint8 of the bank that `KeyedNearest.save` wrote there."""
    with whole_file(folder / "pictures.npy", shared=True) as partial, open(partial, "wb") as file:
        np.save(file, images)


def bank_pictures(folder: Path) -> tuple[Callable[[Ids, int], np.ndarray], int]:
    """A function from ids and a side in pixels to the pictures of the bank in a folder, and their side.

    Without a file of pictures they are drawn scenes, which can have any side.

    Raises:
        LayoutError: The folder is not of `KeyedNearest.save`, or its pictures are of another bank.
    """
    if not (folder / "pictures.npy").is_file():
        return scene_pictures, PIXELS
    try:
        ids, kept = read_json(folder / "nearest.json")["ids"], np.load(folder / "pictures.npy", mmap_mode="r")
    except (KeyError, OSError, ValueError) as error:
        raise LayoutError(f"expected a bank and its pictures in {folder}, got {error}") from error
    if len(ids) != len(kept):
        raise LayoutError(f"expected pictures of the {len(ids)} ids in {folder}, got {len(kept)}")
    rows, side = {name: row for row, name in enumerate(ids)}, kept.shape[1]

    def pictures(names: Ids, size: int) -> np.ndarray:
        if size != side:
            raise AxisError(f"expected {side} pixels a side, as in {folder}, got {size}")
        return np.array(kept[[rows[str(name)] for name in names]])

    return pictures, side


def shipped_ids() -> np.ndarray:
    """Ids of the scenes of the bank that ships."""
    return np.array(read_json(SHIPPED / "nearest.json")["ids"], dtype=str)


def shipped_nearest(extractor: Extractor, device: str | torch.device = "cpu") -> KeyedNearest | None:
    """The bank of drawn scenes that ships with the package, where its keys are those of this extractor; else None.

    The features of four scenes are computed and compared. Other weights, cores or sizes give other features; another
    version of a library rarely does.
    """
    nearest = KeyedNearest.load(SHIPPED, lambda ids: scene_pictures(ids, PIXELS), device)
    size, probes = nearest.components.size, scene_pictures(nearest.bank.ids[:PROBES], extractor.input_size)
    with torch.no_grad():
        seen = extractor.to(device).encode(pixels_of(probes).to(device))
    if seen.tokens is None or seen.tokens.shape[1:] != (size.num_tokens, size.token_width):
        return None
    apart = float((nearest.components(seen.tokens) - nearest.bank.scores[:PROBES]).abs().mean())
    if apart > DEVIATION:
        _log.info("the bank of scenes belongs to another extractor: keys are %.2f apart", apart)
        return None
    return nearest


def shipped_generator(extractor: Extractor, device: str | torch.device = "cpu") -> Generator | None:
    """The generator of drawn scenes that ships with the package, under the same condition; else None.

    `veca brain drawer --out DIR` trained it beside the bank that ships.
    """
    return None if shipped_nearest(extractor) is None else Generator.load(SHIPPED, scene_pictures, device)
