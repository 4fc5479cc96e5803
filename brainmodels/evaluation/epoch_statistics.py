"""When a score over time is above chance: permuted pairs, fits to wrong pairs, and the maximum over time.

    course = course_of("two-way", times, tables, refits, level=0.5)
    course.onset        # seconds of the first bin above chance, or None
    course.significant  # mask (L,), family-wise error at most 5 % over all bins

A table holds the score of test image j if image i were the right one. Every statistic here is a mean over j of entries
[i, j], so permuted pairs need no new predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import AxisError
from ..metrics.statistics import bootstrap_weights
from ..records import to_json

__all__ = ["ERROR", "Course", "course_of", "identification_tables", "permuted_means", "spans_of"]

ERROR = 0.05
"""Family-wise error: the probability that any bin of a course without information is called above chance."""


@dataclass(frozen=True, eq=False)
class Course:
    """A score over time.

    Attributes:
        name: Name of the score.
        times: Middles of the bins in seconds, (L,).
        values: Scores, (L,).
        low, high: Ends of the 95 % intervals over test images, (L,).
        level: Score without information.
        p: p of each bin, corrected over all bins by the maximum statistic of permuted pairs, (L,).
        threshold: Value that a bin must exceed. It is the larger of two: the 95 % quantile of the maximum over bins
            under permuted pairs, and that of fits to wrong pairs.
        chance_low, chance_high: Least and greatest value of each bin among fits to wrong pairs, (L,). None without such
            fits.
        refits: Number of fits to wrong pairs.
        n: Number of test images.
        ceiling: Best score that the noise allows, (L,). None where it is not known.
    """

    name: str
    times: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    p: np.ndarray
    threshold: float
    chance_low: np.ndarray | None
    chance_high: np.ndarray | None
    refits: int
    n: int
    ceiling: np.ndarray | None = None

    @property
    def significant(self) -> np.ndarray:
        """Mask (L,) of the bins above chance: corrected p at most 0.05, and a value above the threshold."""
        return (self.p <= ERROR) & (self.values > self.threshold)

    @property
    def onset(self) -> float | None:
        """Time in seconds of the first bin above chance, or None."""
        found = np.flatnonzero(self.significant)
        return float(self.times[found[0]]) if len(found) else None

    @property
    def peak(self) -> tuple[float, float]:
        """Time in seconds and score of the best bin. It is chosen on the test images, so the score is optimistic."""
        best = int(np.argmax(self.values))
        return float(self.times[best]), float(self.values[best])

    @property
    def spans(self) -> list[tuple[float, float]]:
        """First and last time of each run of bins above chance, in seconds."""
        return spans_of(self.times, self.significant)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types, with onset, peak and spans."""
        return to_json(self) | {"onset": self.onset, "peak": list(self.peak), "spans": [list(x) for x in self.spans]}


def course_of(
    name: str,
    times: np.ndarray,
    tables: np.ndarray,
    refits: Sequence[np.ndarray] = (),
    level: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    intervals: tuple[np.ndarray, np.ndarray] | None = None,
    ceiling: np.ndarray | None = None,
) -> Course:
    """A course with intervals, corrected p values, and a chance band.

    Args:
        name: Name of the score.
        times: Middles of the bins in seconds, (L,).
        tables: Score of image j if image i were the right one, (L, m, m). Means over i = j are the values.
        refits: Values (L,) of fits to wrong pairs.
        level: Score without information.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of both.
        intervals: Ends of the intervals, (L,) each. None resamples the diagonals of the tables.
        ceiling: Best score that the noise allows, (L,).

    Raises:
        AxisError: The tables are not (L, m, m).
    """
    if tables.ndim != 3 or tables.shape[1] != tables.shape[2] or len(tables) != len(times):
        raise AxisError(f"expected tables ({len(times)}, m, m), got {tables.shape}")
    own = np.diagonal(tables, axis1=1, axis2=2)  # (L, m)
    values = own.mean(1)
    if intervals is None:
        weights = bootstrap_weights(own.shape[1], resamples, seed)
        intervals = _ends(weights @ own.T / weights.sum(1, keepdims=True))
    most = permuted_means(tables, resamples, seed).max(1)
    p = (1 + (most[:, None] >= values).sum(0)) / (1 + len(most))
    limits = [float(np.quantile(most, 1 - ERROR))]
    band = np.stack(list(refits)) if len(refits) else None
    if band is not None:
        limits.append(float(np.quantile(band.max(1), 1 - ERROR)))
    return Course(
        name,
        np.asarray(times),
        values,
        *intervals,
        level,
        p,
        max(limits),
        None if band is None else band.min(0),
        None if band is None else band.max(0),
        len(refits),
        own.shape[1],
        ceiling,
    )


def permuted_means(tables: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """Mean of entries [order[j], j] of tables (L, m, m) for random orders, (permutations, L)."""
    rng = np.random.default_rng(seed)
    columns = np.arange(tables.shape[2])
    return np.stack([tables[:, rng.permutation(len(columns)), columns].mean(1) for _ in range(permutations)])


def identification_tables(similarities: np.ndarray) -> np.ndarray:
    """Two-way identification of every pair at each time, as `metrics.retrieval.two_way_pairs` defines it.

    Args:
        similarities: Similarities (L, m, m), rows real images, columns decoded images.

    Returns:
        fp32 (L, m, m): the share of other images that are less similar to decoded image j than image i is.
    """
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(table, "min", axis=0) for table in similarities])
    return ((ranks - 1) / (similarities.shape[1] - 1)).astype(np.float32)


def spans_of(times: np.ndarray, mask: np.ndarray) -> list[tuple[float, float]]:
    """First and last time of each run of True in a mask (L,)."""
    edges = np.diff(np.concatenate(([False], mask, [False])).astype(np.int8))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    return [(float(times[a]), float(times[b])) for a, b in zip(starts, stops, strict=True)]


def _ends(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low, high
