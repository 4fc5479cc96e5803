"""Results of epochs: options, features of the images, and what encoding and decoding over time return."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics import Metric, Score
from .encoding import standardized
from .epoch_statistics import Course

__all__ = [
    "EPOCH_NR2",
    "EPOCH_R",
    "TIMED",
    "DecodedEpochs",
    "EncodedEpochs",
    "EpochOptions",
    "Generalization",
    "Targets",
]

EPOCH_R = Metric(
    "epoch_r", "temporal", "up", 0.0, None, "correlation over test images, mean over channels and bins after the onset"
)
EPOCH_NR2 = Metric(
    "epoch_nr2",
    "temporal",
    "up",
    0.0,
    None,
    "sum of r |r| over sum of noise ceilings, channels and bins after the onset whose ceiling is above the threshold",
)
TIMED = Metric(
    "two_way_over_time",
    "temporal",
    "up",
    0.5,
    None,
    "two-way identification at each bin, mean after the onset",
)
COMPONENTS = 100
"""Largest number of principal components of features that are decoded."""


@dataclass(frozen=True)
class EpochOptions:
    """How epochs are evaluated.

    Attributes:
        resamples: Number of bootstrap samples, and of permutations.
        shuffles: Number of fits to wrong pairs.
        threshold: Smallest noise ceiling (r^2) of a channel and bin that counts for `epoch_nr2`.
        seed: Seed of all random choices.
    """

    resamples: int = 1000
    shuffles: int = 20
    threshold: float = 0.1
    seed: int = 0

    def orders(self, count: int) -> Iterator[np.ndarray]:
        """Orders (count,) in which train images do not belong to their responses, one for each shuffle."""
        rng = np.random.default_rng(self.seed)
        return (rng.permutation(count) for _ in range(self.shuffles))


@dataclass(frozen=True, eq=False)
class Targets:
    """Features of the images of one set.

    Attributes:
        name: Name of the set.
        fingerprint: Fingerprint of its extractor.
        inputs, test_inputs: Standardised features, fp32 (n, p) and (m, p).
        parts, test_parts: Their first principal components in train images, fp32 (n, k) and (m, k).
        note: A caution that belongs to the numbers.
    """

    name: str
    fingerprint: str
    inputs: np.ndarray
    test_inputs: np.ndarray
    parts: np.ndarray
    test_parts: np.ndarray
    note: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        fingerprint: str,
        X: np.ndarray,
        X_test: np.ndarray,
        note: str = "",
        components: int = COMPONENTS,
    ) -> "Targets":
        """Standardise features, and find their principal components.

        Args:
            name, fingerprint, note: See the attributes.
            X, X_test: Features (n, p) and (m, p), in the order of the responses.
            components: Largest number k of components.
        """
        inputs, test_inputs = standardized(X, X_test)
        gram = inputs @ inputs.T if len(inputs) < inputs.shape[1] else inputs.T @ inputs
        squares, vectors = np.linalg.eigh(gram.astype(np.float64))
        count = min(components, len(inputs) - 1, int((squares > 1e-6 * squares[-1]).sum()))
        first = vectors[:, ::-1][:, :count]
        axes = inputs.T @ first / np.sqrt(squares[::-1][:count]) if len(inputs) < inputs.shape[1] else first
        axes = axes.astype(np.float32)
        return cls(name, fingerprint, inputs, test_inputs, inputs @ axes, test_inputs @ axes, note)

    @property
    def gallery(self) -> np.ndarray:
        """Components of the test images with length 1, (m, k). A dot product with a prediction orders images."""
        return self.test_parts / np.maximum(np.linalg.norm(self.test_parts, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True, eq=False)
class EncodedEpochs:
    """How well features predict the responses.

    Attributes:
        features: Name of the set of features.
        signal: Name of the responses, such as "amplitude".
        r: Correlation over test images of each channel and bin, (C, L). NaN where a channel is constant.
        cell_threshold: Value of `r` that the largest of all channels and bins exceeds in 5 % of permutations of test
            images, and of fits to wrong pairs.
        course: Mean over channels at each bin, with its chance band and ceiling.
        scores: `epoch_r` and `epoch_nr2`.
        chance: The same scores of fits to wrong pairs: means, and intervals from least to most.
    """

    features: str
    signal: str
    r: np.ndarray
    cell_threshold: float
    course: Course
    scores: Sequence[Score]
    chance: Sequence[Score]

    def score(self, name: str) -> Score | None:
        """One of the scores by the name of its metric, or None."""
        return next((score for score in self.scores if score.metric.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """The course and the scores as JSON types. `r` goes into a file of arrays."""
        return {
            "features": self.features,
            "signal": self.signal,
            "cell_threshold": self.cell_threshold,
            "course": self.course.to_json(),
            "scores": [score.to_json() for score in self.scores],
            "chance": [score.to_json() for score in self.chance],
        }


@dataclass(frozen=True, eq=False)
class Generalization:
    """Decoders of one time applied to another (King and Dehaene, 2014).

    Attributes:
        times: Times of the rows (training) and of the columns (test), (G,).
        values: Two-way identification, (G, G).
        threshold: Value that the largest of all cells exceeds in 5 % of permutations of the test images, and of fits to
            wrong pairs.
    """

    times: np.ndarray
    values: np.ndarray
    threshold: float

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {"times": self.times.tolist(), "values": self.values.tolist(), "threshold": self.threshold}


@dataclass(frozen=True, eq=False)
class DecodedEpochs:
    """Images found again from the responses to them.

    Attributes:
        features: Name of the set of features in which images are compared.
        signal: Name of the responses.
        course: Two-way identification at each bin.
        scores: Of the whole window: retrieval among all test images both ways and two-way identification. Of single
            bins: `two_way_over_time`.
        chance: The same scores of decoders fitted to wrong pairs: means, and intervals from least to most.
        similarities: Of the whole window, (m, m): decoded features in rows, those of the images in columns.
    """

    features: str
    signal: str
    course: Course
    scores: Sequence[Score]
    chance: Sequence[Score]
    similarities: np.ndarray

    def score(self, start: str) -> Score | None:
        """The first score whose name starts so, or None."""
        return next((score for score in self.scores if score.metric.name.startswith(start)), None)

    def by_chance(self, start: str) -> Score | None:
        """The first score of wrong pairs whose name starts so, or None."""
        return next((score for score in self.chance if score.metric.name.startswith(start)), None)

    @property
    def ranks(self) -> np.ndarray:
        """Rank (m,) of the right image among all test images. 1 is the best."""
        return 1 + (self.similarities > np.diagonal(self.similarities)[:, None]).sum(1)

    def to_json(self) -> dict[str, Any]:
        """The course and the scores as JSON types."""
        return {
            "features": self.features,
            "signal": self.signal,
            "course": self.course.to_json(),
            "scores": [score.to_json() for score in self.scores],
            "chance": [score.to_json() for score in self.chance],
        }
