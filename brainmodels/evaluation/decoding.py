"""Decoding: from responses to features of the image, and from those to the image itself among others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..baselines import LinearDecoder
from ..metrics import Score
from ..metrics.retrieval import full_gallery, identification, similarity
from .encoding import SHUFFLED, Study, chance_band, standardized

__all__ = ["Decoded", "decode", "decode_shuffled", "shuffled_decodings"]

_COLUMNS = 2**14  # features that decoders of several shuffles are fitted to at once, to share what they decompose


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


def decode(study: Study, features: str, fingerprint: str, X: np.ndarray, X_test: np.ndarray, note: str = "") -> Decoded:
    """A linear decoder from the voxels that count to standardised features, and how well it tells test images apart.

    Args:
        study: Responses of train and test images.
        features: Name of the set of features.
        fingerprint: Fingerprint of its extractor.
        X, X_test: Features (n, p) of the train and test images.
        note: A caution about the features.
    """
    X, X_test = standardized(X, X_test)
    decoder = LinearDecoder().fit(study.measured_train[:, study.voxels], X)
    guess = decoder.predict(study.measured[:, study.voxels])
    return _found(study, features, fingerprint, guess, X_test, "ridge", note)


def decode_shuffled(
    study: Study, features: str, fingerprint: str, X: np.ndarray, X_test: np.ndarray, note: str = ""
) -> Decoded:
    """The chance band of `decode`: mean and range over decoders that were fitted to wrong pairs; arguments as there."""
    X, X_test = standardized(X, X_test)
    guesses = shuffled_decodings(study, X)
    runs = [_found(study, features, fingerprint, guess, X_test, SHUFFLED, note) for guess in guesses]
    return replace(runs[0], scores=chance_band([run.scores for run in runs]))


def shuffled_decodings(study: Study, X: np.ndarray) -> Iterator[np.ndarray]:
    """What linear decoders read from the test responses, each fitted to train images paired with wrong responses.

    Args:
        study: Responses of train and test images.
        X: Features (n, p) of the train images.

    Returns:
        Features (n_test, p) of the test images, for one shuffle after the other.
    """
    responses, test = study.measured_train[:, study.voxels], study.measured[:, study.voxels]
    orders, together = list(study.wrong_pairs()), max(1, _COLUMNS // X.shape[1])
    for start in range(0, len(orders), together):
        some = orders[start : start + together]
        decoder = LinearDecoder().fit(responses, np.concatenate([X[order] for order in some], axis=1))
        yield from np.split(decoder.predict(test), len(some), axis=1)


def _found(
    study: Study,
    features: str,
    fingerprint: str,
    guess: np.ndarray,
    X_test: np.ndarray,
    decoder: str,
    note: str,
) -> Decoded:
    """Scores of retrieval and identification of decoded features among those of the test images."""
    options: dict[str, Any] = {"resamples": study.resamples, "seed": study.seed, "decoder": decoder}
    options["mask"] = f"{int(study.voxels.sum())} of {len(study.voxels)} voxels"
    table = similarity(guess, X_test)
    scores = full_gallery(table, **options)
    scores.append(identification(X_test, guess, features, **options))
    said = [
        score.under(study.test, features=fingerprint, note="; ".join(filter(None, [score.note, note])))
        for score in scores
    ]
    return Decoded(features, said, table, note)
