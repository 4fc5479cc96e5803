"""Which trials a step takes, as a function of the numbers of trials, the seed and the step."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batch", "RowNumbers", "Sizes", "Source", "in_order", "shuffled"]

Sizes = tuple[tuple[str, int], ...]  # number of trials by subject


class Batch(NamedTuple):
    """Trials of one subject with the tokens of their images.

    Attributes:
        subject: Name of the subject.
        rows: (B,) positions among the subject's trials of this part.
        responses: (B, V) fp32 in model units.
        tokens: (B, m, d) fp32 in model units.
    """

    subject: str
    rows: np.ndarray
    responses: Tensor
    tokens: Tensor


class Source(Protocol):
    """A source of batches. Parts are "train" and "val", and a batch depends on the arguments alone.

    A batch is a named tuple of the subject, the rows and any tensors whose first axis is the rows, such as `Batch`. All
    calls of `batch` come from one thread, which is not the one that trains.
    """

    def sizes(self, part: str) -> Mapping[str, int]:
        """Return the number of trials by subject."""
        ...

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Any:
        """Return trials, on the CPU."""
        ...

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """Describe trials for messages."""
        ...


class RowNumbers:
    """A source of row numbers alone, for a task that holds its own tables.

    Args:
        name: What the rows are, for messages; it stands for the subject.
        count: Number of rows, all of them to train on.
    """

    def __init__(self, name: str, count: int):
        self.name, self.count = name, count

    def sizes(self, part: str) -> Mapping[str, int]:
        """Return the number of rows by name."""
        return {self.name: self.count if part == "train" else 0}

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Batch:
        """Return row numbers with empty responses and tokens."""
        return Batch(subject, rows, torch.empty(len(rows), 0), torch.empty(len(rows), 0, 0))

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """Describe rows for messages."""
        return f"{self.name} {', '.join(map(str, rows[:8]))}"


def in_order(sizes: Sizes, batch_size: int) -> list[tuple[str, np.ndarray]]:
    """Return (subject, rows) of batches of at most this size. Sizes of a subject's batches differ by at most one."""
    cut = [(subject, np.array_split(np.arange(n), -(-n // batch_size))) for subject, n in sizes if n]
    return [(subject, rows) for subject, batches in cut for rows in batches]


@lru_cache(2)
def shuffled(sizes: Sizes, batch_size: int, seed: int, epoch: int) -> list[tuple[str, np.ndarray]]:
    """Return the batches of an epoch: each subject's trials in a new order, and the batches of all subjects mixed."""
    rng = np.random.default_rng((seed, epoch))
    orders = {subject: rng.permutation(n) for subject, n in sizes}
    batches = [(subject, orders[subject][rows]) for subject, rows in in_order(sizes, batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]
