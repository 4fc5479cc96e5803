"""Decoding: from responses to features of the image, and from those to the image itself among others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..baselines import LinearDecoder
from ..metrics import Score
from ..metrics.retrieval import full_gallery, identification, similarity
from .encoding import SHUFFLED, Study, standardized

__all__ = ["Decoded", "decode"]


@dataclass(frozen=True)
class Decoded:
    """Images found again from the responses to them.

    Attributes:
        features: Name of the set in which images are compared.
        scores: Scores of retrieval among all test images, both ways, and of two-way identification.
        similarities: Cosines (n, n): decoded features in rows, those of the images in columns.
        note: A caution that belongs to the numbers.
    """

    features: str
    scores: Sequence[Score]
    similarities: np.ndarray
    note: str = ""

    def score(self, start: str) -> Score | None:
        """The first score whose name starts so."""
        return next((score for score in self.scores if score.metric.name.startswith(start)), None)

    @property
    def ranks(self) -> np.ndarray:
        """Rank (n,) of the right image among all images; 1 is the best."""
        own = np.diagonal(self.similarities)[:, None]
        return 1 + (self.similarities > own).sum(1)

    def to_json(self) -> dict[str, Any]:
        return {"features": self.features, "note": self.note, "scores": [score.to_json() for score in self.scores]}


def decode(
    study: Study,
    features: str,
    fingerprint: str,
    X: np.ndarray,
    X_test: np.ndarray,
    note: str = "",
    shuffled: bool = False,
) -> Decoded:
    """A linear decoder from the voxels that count to standardised features, and how well it tells test images apart.

    Args:
        study: Responses of train and test images.
        features: Name of the set of features.
        fingerprint: Fingerprint of its extractor.
        X, X_test: Features (n, p) of the train and test images.
        note: A caution about the features.
        shuffled: Whether train images are paired with responses at random, as a control.
    """
    X, X_test = standardized(X, X_test)
    if shuffled:
        X = X[np.random.default_rng(study.seed).permutation(len(X))]
    decoder = LinearDecoder().fit(study.measured_train[:, study.voxels], X)
    guess = decoder.predict(study.measured[:, study.voxels])
    conditions = {
        "decoder": SHUFFLED if shuffled else "ridge",
        "mask": f"{int(study.voxels.sum())} of {len(study.voxels)} voxels",
    }
    table = similarity(guess, X_test)
    options = {"resamples": study.resamples, "seed": study.seed}
    scores = full_gallery(table, **options, **conditions)
    scores.append(identification(X_test, guess, features, **options, **conditions))
    said = [
        score.under(study.test, features=fingerprint, note="; ".join(filter(None, [score.note, note])))
        for score in scores
    ]
    return Decoded(features, said, table, note)
