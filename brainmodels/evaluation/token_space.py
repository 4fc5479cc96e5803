"""Image tokens as a model sees them, and what linear models make of the same numbers.

space = TokenSpace.of(study, model.tokens(cache, train_ids), model.tokens(cache, test_ids))
space.decode(study, study.measured)  # tokens (n, m, d) that ridge reads from responses
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..baselines import LinearDecoder, Ridge
from ..metrics import Metric, register
from ..metrics.controls import Runs, bottleneck_curve
from ..metrics.retrieval import correlation_matrix, similarity, two_way
from .decoding import shuffled_decodings
from .encoding import SHRUNK, Study, ridge_prediction

__all__ = ["TokenSpace", "bottleneck"]

_SQUEEZED = (1, 2, 5, 10, 20, 50, 100, "full")

register(
    Metric(
        "token_cosine[{features}]",
        "feature",
        "up",
        None,
        None,
        "cosine of the decoded with the true tokens of each image, all tokens as one vector; mean over images",
    )
)


@dataclass(frozen=True)
class TokenSpace:
    """Image tokens as a model sees them, and what linear models make of the same numbers.

    Attributes:
        train, test: Tokens of the images in model units, fp32 (n, m, d).
        predicted: Test responses (n, V) that ridge predicts from the flattened tokens.
        decoder: `LinearDecoder` from the voxels that count to the flattened tokens.
        shrunk: Responses (n, V) and tokens (n, m, d) of the test images by the names of further linear models.
    """

    train: np.ndarray
    test: np.ndarray
    predicted: np.ndarray
    decoder: LinearDecoder
    shrunk: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(
        cls, study: Study, train: np.ndarray, test: np.ndarray, kinds: Mapping[str, type[Ridge]] = SHRUNK
    ) -> "TokenSpace":
        """Fit the linear models of one study to tokens.

        Args:
            study: Responses to the images.
            train, test: Tokens of the train and test images (n, m, d).
            kinds: Further linear models by name.
        """
        X, X_test = train.reshape(len(train), -1), test.reshape(len(test), -1)
        responses, measured = study.measured_train[:, study.voxels], study.measured[:, study.voxels]
        decoder, shrunk = LinearDecoder().fit(responses, X), {}
        for name, kind in kinds.items():
            read = kind().fit(responses, X).predict(measured).reshape(test.shape)
            shrunk[name] = ridge_prediction(study, X, X_test, kind=kind), read
        return cls(train, test, ridge_prediction(study, X, X_test), decoder, shrunk)

    def decode(self, study: Study, responses: np.ndarray) -> np.ndarray:
        """Tokens (n, m, d) that ridge reads from responses (n, V)."""
        return self.decoder.predict(responses[:, study.voxels]).reshape(-1, *self.test.shape[1:])

    def shuffled(self, study: Study) -> Iterator[np.ndarray]:
        """Tokens (n, m, d) that ridge reads from the test responses after each fit to wrong pairs."""
        for guess in shuffled_decodings(study, self.train.reshape(len(self.train), -1)):
            yield guess.reshape(self.test.shape)


def bottleneck(study: Study, space: TokenSpace) -> Runs:
    """Scores of ridge into the tokens as its input is squeezed through principal components of the train responses."""
    X = space.train.reshape(len(space.train), -1)

    def refit(train: np.ndarray, test: np.ndarray) -> dict[str, float]:
        guess = LinearDecoder().fit(train, X).predict(test)
        found = two_way(correlation_matrix(space.test, guess)).mean()
        return {"two_way": float(found), "token_cosine": float(np.diagonal(similarity(guess, space.test)).mean())}

    return bottleneck_curve(
        refit, study.measured_train[:, study.voxels], study.measured[:, study.voxels], _SQUEEZED, study.seed
    )
