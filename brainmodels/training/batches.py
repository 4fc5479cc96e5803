"""Which trials a step takes. All is a function of the numbers of trials, the seed and the step."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

__all__ = ["Batch", "Sizes", "Source", "in_order", "shuffled"]

Sizes = tuple[tuple[str, int], ...]  # number of trials by subject


class Batch(NamedTuple):
    """Trials of one subject with the tokens of their images.

    Attributes:
        subject: whose.
        rows: (B,) positions among the subject's trials of this part.
        responses: (B, V) fp32 in model units.
        tokens: (B, m, d) fp32 in model units.
    """

    subject: str
    rows: np.ndarray
    responses: Tensor
    tokens: Tensor


class Source(Protocol):
    """Where batches come from. Parts are "train" and "val"; a batch depends on the arguments alone.

    All calls of `batch` come from one thread, which is not the one that trains.
    """

    def sizes(self, part: str) -> Mapping[str, int]:
        """Number of trials by subject."""

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Batch:
        """These trials, on the CPU."""

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """These trials in words, for messages."""


def in_order(sizes: Sizes, batch_size: int) -> list[tuple[str, np.ndarray]]:
    """(subject, rows) of batches over all trials, of at most this size, those of a subject as equal as can be."""
    cut = [(subject, np.array_split(np.arange(n), -(-n // batch_size))) for subject, n in sizes if n]
    return [(subject, rows) for subject, batches in cut for rows in batches]


@lru_cache(2)
def shuffled(sizes: Sizes, batch_size: int, seed: int, epoch: int) -> list[tuple[str, np.ndarray]]:
    """The batches of an epoch: the trials of each subject in a new order, batches of all subjects mixed."""
    rng = np.random.default_rng((seed, epoch))
    orders = {subject: rng.permutation(n) for subject, n in sizes}
    batches = [(subject, orders[subject][rows]) for subject, rows in in_order(sizes, batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]
