"""Stored runs of stage 1: encoders of the training subjects from contexts of many sizes, which stage 2 learns to read.

runs = stored_runs({"sim01": encoder_without_sim01}, cohort.subjects, sizes=(8, 16), draws=3, seed=0)
runs["sim01"].tokens[2]   # (V, E + 2): weights, intercept and log noise of each voxel in run 2
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...baselines import VoxelModel
from ...training.trials import IN_MEMORY
from ...training.voxels import SubjectVoxels
from .model import ContextEncoder
from .reading import read_encoders

__all__ = ["StoredRuns", "encoder_rows", "stored_runs"]

_LEAST_VARIANCE = 1e-6  # of the noise of a voxel, so that its logarithm is finite
_OTHERS = 8  # images at least that a run leaves for targets


@dataclass(frozen=True)
class StoredRuns:
    """Encoders of one subject.

    Attributes:
        tokens: fp16 (R, V, E + 2), for each run and voxel the weights, the intercept and the logarithm of the standard
            deviation of its noise; an array or a memory-mapped file.
        seen: Booleans (R, images), whether an image is in the context of a run.
        folder: Temporary folder of the file, which lives as long as this object; None in memory.
    """

    tokens: np.ndarray
    seen: np.ndarray
    folder: tempfile.TemporaryDirectory | None = None


def stored_runs(
    encoders: Mapping[str, ContextEncoder],
    subjects: Mapping[str, SubjectVoxels],
    sizes: Sequence[int],
    draws: int,
    seed: int,
) -> dict[str, StoredRuns]:
    """Read the encoders of each subject from several contexts of its train images.

    A context leaves some train images as targets. A size that leaves too few is lowered, and equal sizes count once.

    Args:
        encoders: Network of each subject, which should not have seen its responses.
        subjects: Responses of the subjects.
        sizes: Numbers of context images.
        draws: Number of contexts of each size.
        seed: Seed of the choice of images.
    """
    limits = {name: max(item.num_train - max(_OTHERS, item.num_train // 4), 1) for name, item in subjects.items()}
    counts = {name: sorted({min(size, most) for size in sizes}) * draws for name, most in limits.items()}
    total = sum(
        2 * len(counts[name]) * item.responses.shape[0] * (item.embeddings.shape[1] + 2)
        for name, item in subjects.items()
    )
    folder = tempfile.TemporaryDirectory(prefix="runs-") if total > IN_MEMORY else None
    found = {}
    for number, (name, item) in enumerate(subjects.items()):
        shape = (len(counts[name]), len(item.responses), item.embeddings.shape[1] + 2)
        if folder is None:
            tokens = np.empty(shape, np.float16)
        else:
            tokens = np.lib.format.open_memmap(Path(folder.name) / f"{number}.npy", "w+", np.float16, shape)
        seen = np.zeros((len(counts[name]), len(item.ids)), bool)
        rng = np.random.default_rng((seed, number))
        x, y = item.train
        for run, count in enumerate(counts[name]):
            rows = np.sort(rng.permutation(item.num_train)[:count])
            model = read_encoders(encoders[name], x[rows], y[rows], item.ids[rows])
            tokens[run] = encoder_rows(model)
            seen[run, rows] = True
        found[name] = StoredRuns(tokens, seen, folder)
    return found


def encoder_rows(model: VoxelModel) -> np.ndarray:
    """Weights, intercept and logarithm of the standard deviation of the noise of each voxel, fp32 (V, E + 2)."""
    assert model.residual_var_ is not None  # encoders that are read have it
    noise = np.log(np.maximum(model.residual_var_, _LEAST_VARIANCE)) / 2
    return np.column_stack([model.coef_.T, model.intercept_, noise])
