"""Baselines without regression: the mean response, and the response to the most similar train image.

    MeanMap().fit(X_train, Y_train, groups=train.image_ids).predict(X_test)          # (n, V), the same row n times
    NearestNeighbor().fit(X_train, Y_train, groups=train.image_ids).predict(X_test)  # (n, V)

A model that does not beat both has learned little about the images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BrainDataError
from ._base import Baseline, Samples

__all__ = ["MeanMap", "NearestNeighbor"]

_QUERIES = 1024  # number of rows that are compared with all train images at a time


class MeanMap(Baseline):
    """A map that predicts the mean train response for every image.

    Its R^2 over images is at most 0. Its correlations over voxels are high if voxels have different means, so a model
    must beat this map there to have learned anything about images.

    Attributes:
        Y_mean_: (V,) Mean train response, fp32.
        n_features_in_: Number of features, which are not used.
        feature_names_in_: Names of the columns, if X was a DataFrame. `predict` refuses another order.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags

    def fit(self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None) -> "MeanMap":
        """Compute the mean response.

        Args:
            X: (n, p) Features; only their number is used.
            Y: (n, V) Responses.
            groups: (n,) Labels such as image ids. With them every image counts once, however often it was shown.

        Raises:
            AxisError: Shapes do not match.
            BrainDataError: Values that are not finite.
        """
        _, Y, labels = self._pairs(X, Y, groups)
        Y = Y if labels is None else _group_means(Y.astype(np.float32), labels)
        self.Y_mean_ = Y.mean(0, dtype=np.float64).astype(np.float32)
        return self

    def predict(self, X: Samples) -> np.ndarray:
        """Predicted responses fp32 (n, V): the mean map, once for each row of X."""
        count = len(self._samples(X))
        return np.tile(self.Y_mean_, (count, 1))


class NearestNeighbor(Baseline):
    """Response to the train image whose features have the largest cosine with those of the image.

    Equal cosines go to the train image that comes first. Features that share a large mean all have nearly the same
    direction, so centre them first (`make_pipeline(StandardScaler(), NearestNeighbor())`).

    Attributes:
        X_fit_: (m, p) Features of the train images, scaled to length 1.
        Y_fit_: (m, V) Responses of the train images.
        n_features_in_: Number p of features.
        feature_names_in_: Names of the columns, if X was a DataFrame. `predict` refuses another order.
    """

    def fit(self, X: Samples, Y: Samples, groups: Sequence | np.ndarray | None = None) -> "NearestNeighbor":
        """Store the train images.

        Args:
            X: (n, p) Features.
            Y: (n, V) Responses.
            groups: (n,) Labels such as image ids. Samples of one group are averaged, which leaves m of them, in the
                order of their first samples. None keeps all n.

        Raises:
            AxisError: Shapes do not match.
            BrainDataError: Values that are not finite, or features that are all 0 and so have no direction.
        """
        X, Y, labels = self._pairs(X, Y, groups)
        X, Y = X.astype(np.float32), Y.astype(np.float32)
        if labels is not None:
            X, Y = _group_means(X, labels), _group_means(Y, labels)
        self.X_fit_, self.Y_fit_ = _unit(X), Y
        return self

    def predict(self, X: Samples) -> np.ndarray:
        """Responses of the nearest train images to features X (n, p): fp32 (n, V)."""
        rows = self.neighbors(X)
        return self.Y_fit_[rows]

    def neighbors(self, X: Samples) -> np.ndarray:
        """Rows (n,) of `X_fit_` that are nearest to each row of X (n, p)."""
        X = _unit(self._samples(X))
        starts = range(0, len(X), _QUERIES)
        return np.concatenate([(X[i : i + _QUERIES] @ self.X_fit_.T).argmax(1) for i in starts])


def _unit(X: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    if not lengths.all():
        raise BrainDataError(f"expected features with a direction, got only zeros in sample {int(lengths.argmin())}")
    return X / lengths


def _group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean rows of each group, in the order in which groups first appear."""
    _, first, index = np.unique(groups, return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    order = np.argsort(place[index], kind="stable")
    counts = np.bincount(place[index])
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return np.add.reduceat(values[order], starts, axis=0) / counts[:, None].astype(np.float32)
