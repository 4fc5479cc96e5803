"""Sources of batches. A batch depends on its indices and its step alone, so that a run can resume anywhere.

A source is any object with

    len(source)                  number of images
    source.batch(indices, step)  dict of tensors with a batch dimension: "image", normalised, and labels if any
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from ..data import (
    COLORS,
    SHAPES,
    Images,
    Scenes,
    imagenet_normalize,
    inference_transform,
    load_image,
    patch_labels,
    training_transform,
)
from .schedules import ResolutionSchedule

__all__ = ["ImageBatches", "SceneBatches", "Source", "StepBatches", "batch_indices", "draw_seed"]


class Source(Protocol):
    """A source of batches, see the module."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]: ...


class SceneBatches:
    """Drawn scenes (see `veca.data.scenes`) with the classes of their main object and of every patch.

    Args:
        count: Number of scenes.
        size: Side of a scene in pixels.
        patch_size: Side of the backbone's patches in pixels.
        seed: Seed of the scenes; train and held-out sets take different ones.
        cells: Side of the grid of labels within a patch, a divisor of patch_size; see `PatchHead`.
    """

    def __init__(self, count: int, size: int, patch_size: int, seed: int = 0, cells: int = 1):
        if patch_size % cells:
            raise ValueError(f"expected cells to divide patch_size={patch_size}, got cells={cells}")
        self.scenes = Scenes(count, size, seed)
        self.patch_size = patch_size
        self.cells = cells
        self.classes = {"label": len(SHAPES), "color": len(COLORS)}
        self.patch_classes = 1 + len(SHAPES)

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Return "image" (B, 3, size, size), "label", "color" (B,), "patch_label" (B, P cells^2); no step differs."""
        samples = [self.scenes[index] for index in indices]
        cells = patch_labels(torch.stack([sample["mask"] for sample in samples]), self.patch_size // self.cells)
        return {
            "image": imagenet_normalize(torch.stack([sample["image"] for sample in samples])),
            "label": torch.tensor([sample["label"] for sample in samples]),
            "color": torch.tensor([sample["color"] for sample in samples]),
            "patch_label": rearrange(cells, "b (r i) (c j) -> b (r c i j)", i=self.cells, j=self.cells),
        }


class ImageBatches:
    """Image files without labels, augmented by `veca.data.training_transform`.

    Args:
        images: Paths of the files, or a folder or an index file, see `Images`.
        resolution: Side of the crops at each step.
        augment: Vary the images; False only resizes them and takes the central crop.
        seed: Seed of the variations; those of an image differ from step to step.
    """

    def __init__(
        self,
        images: str | Path | Sequence[Path],
        resolution: ResolutionSchedule,
        augment: bool = True,
        seed: int = 0,
    ):
        self.paths = Images(images).paths if isinstance(images, str | Path) else list(images)
        self.resolution = resolution
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Return "image" (B, 3, size, size), of the size of this step."""
        size = self.resolution(step)
        transform = training_transform(size) if self.augment else inference_transform(size, margin=1.125)
        images = []
        for index in indices:
            with torch.random.fork_rng(devices=[]):  # the transform draws from the global generator
                torch.manual_seed(draw_seed(self.seed, step, index))
                images.append(transform(load_image(self.paths[index])))
        return {"image": torch.stack(images)}


class StepBatches(Dataset):
    """The batches of a run as a data set. Item i is the i-th micro-batch of this rank.

    Args:
        source: Source of the images.
        batch_size: Number of images of a step, over all ranks and micro-batches.
        accumulate: Number of micro-batches of a step.
        seed: Seed of the order.
        rank, world_size: Number of this process, which tells its share of each batch, and number of processes.
    """

    def __init__(
        self, source: Source, batch_size: int, accumulate: int = 1, seed: int = 0, rank: int = 0, world_size: int = 1
    ):
        if batch_size % (accumulate * world_size):
            raise ValueError(
                f"expected batch_size in multiples of {accumulate} micro-batches x {world_size} ranks, got {batch_size}"
            )
        if batch_size > len(source):
            raise ValueError(f"expected batch_size of at most the {len(source)} images, got {batch_size}")
        self.source = source
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, part = divmod(index, self.accumulate)
        indices = batch_indices(len(self.source), self.batch_size, step, self.seed)
        share = self.batch_size // (self.accumulate * self.world_size)
        start = (part * self.world_size + self.rank) * share
        return self.source.batch(indices[start : start + share], step)


def batch_indices(count: int, batch_size: int, step: int, seed: int = 0) -> list[int]:
    """Return the images of a step. Every epoch has a new order, and leaves out images that do not fill a batch.

    Args:
        count: Number of images.
        batch_size: Number of images of a step, at most the count.
        step: Number of the step, from 0.
        seed: Seed of the orders.
    """
    epoch, within = divmod(step, count // batch_size)
    return _order(count, seed, epoch)[within * batch_size : (within + 1) * batch_size].tolist()


def draw_seed(*key: int) -> int:
    """Return a seed for a generator that depends on all numbers of the key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


@lru_cache(2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, 2)).permutation(count)
