"""Voxels, or averaged images, as the items of a training.

    subjects = voxels_of(data)
    VoxelRows(subjects).batch("train", "sim01", np.array([3, 17]))  # responses (2, images) of voxels 3 and 17
    ImageRows(subjects).batch("train", "sim01", np.array([3, 17]))  # responses (2, V) to images 3 and 17

Responses are averaged over repeats and stored by voxel, in memory where they fit and else in a file. For 8 subjects of
15,724 voxels and 9,000 images the files have 4.5 GB.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .batches import Batch
from .trials import IN_MEMORY, TrialData

__all__ = ["ImageRows", "SubjectVoxels", "VoxelRows", "voxels_of"]

_IMAGES = 512  # images whose responses are averaged at a time


@dataclass(frozen=True)
class SubjectVoxels:
    """Averaged responses of one subject by voxel, in model units.

    Attributes:
        ids: Ids of the images, the train images before the validation images.
        num_train: Number of train images.
        responses: fp32 (V, images), an array or a memory-mapped file.
        embeddings: fp32 (images, E), the embeddings of the images.
        folder: Temporary folder of the file, which lives as long as this object; None in memory.
    """

    ids: np.ndarray
    num_train: int
    responses: np.ndarray
    embeddings: np.ndarray
    folder: tempfile.TemporaryDirectory | None = None

    @property
    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (n, E) and responses (n, V) of the train images."""
        return self.embeddings[: self.num_train], self.responses[:, : self.num_train].T


def voxels_of(data: TrialData) -> dict[str, SubjectVoxels]:
    """The averaged responses of all subjects of a fit, read by blocks of images."""
    sizes = {name: int(scale.kept.sum()) for name, scale in data.scales.items()}
    images = {name: [data.images(name, part) for part in ("train", "val")] for name in sizes}
    total = sum(4 * sizes[name] * sum(map(len, parts)) for name, parts in images.items())
    folder = tempfile.TemporaryDirectory(prefix="voxels-") if total > IN_MEMORY else None
    found = {}
    for name, parts in images.items():
        ids = np.concatenate(parts)
        if folder is None:
            responses = np.empty((sizes[name], len(ids)), np.float32)
        else:
            path = Path(folder.name) / f"{len(found)}.npy"
            responses = np.lib.format.open_memmap(path, "w+", np.float32, (sizes[name], len(ids)))
        for start in range(0, len(ids), _IMAGES):
            block = ids[start : start + _IMAGES]
            responses[:, start : start + len(block)] = data.means(name, block).T
        found[name] = SubjectVoxels(ids, len(parts[0]), responses, data.tokens.get(ids)[:, 0], folder)
    return found


class VoxelRows:
    """A source whose items are voxels; see `brainmodels.training.batches.Source`.

    The rows of a batch are voxels, and its responses (B, images) are those to all images of the subject. The
    validation part has the same voxels, where there are validation images.

    Args:
        subjects: Responses by subject.
    """

    def __init__(self, subjects: Mapping[str, SubjectVoxels]):
        self.subjects = dict(subjects)

    def sizes(self, part: str) -> dict[str, int]:
        """Number of voxels by subject."""
        held = {name: part == "train" or item.num_train < len(item.ids) for name, item in self.subjects.items()}
        return {name: len(item.responses) for name, item in self.subjects.items() if held[name]}

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Batch:
        """Responses of some voxels to all images; there are no tokens."""
        values = np.ascontiguousarray(self.subjects[subject].responses[rows])
        return Batch(subject, rows, torch.from_numpy(values), torch.empty(len(rows), 0, 0))

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """Voxels in words."""
        return f"voxels {', '.join(map(str, rows[:8]))} of {subject}"


class ImageRows:
    """A source whose items are images; see `brainmodels.training.batches.Source`.

    The rows of a batch are positions among the images of its part. Its responses (B, V) are averages over repeats, and
    its tokens (B, 1, E) the embeddings.

    Args:
        subjects: Responses by subject.
    """

    def __init__(self, subjects: Mapping[str, SubjectVoxels]):
        self.subjects = dict(subjects)

    def sizes(self, part: str) -> dict[str, int]:
        """Number of images by subject."""
        counts = {
            name: item.num_train if part == "train" else len(item.ids) - item.num_train
            for name, item in self.subjects.items()
        }
        return {name: count for name, count in counts.items() if count}

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Batch:
        """Responses to some images, and their embeddings."""
        item = self.subjects[subject]
        images = rows if part == "train" else rows + item.num_train
        responses = torch.from_numpy(np.ascontiguousarray(item.responses[:, images].T))
        return Batch(subject, rows, responses, torch.from_numpy(item.embeddings[images])[:, None])

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """Images in words."""
        first = 0 if part == "train" else self.subjects[subject].num_train
        return f"images {', '.join(self.subjects[subject].ids[rows[:8] + first])} of {subject}"
