"""What needs no regression: the mean response, and the response to the most similar train image."""

from collections.abc import Sequence

import numpy as np

from ..errors import BrainDataError
from ._base import Baseline, Samples

__all__ = ["MeanMap", "NearestNeighbor"]

_QUERIES = 1024  # compared with all train images at a time


class MeanMap(Baseline):
    """The mean train response, whatever the image.

    R^2 over images is at most 0, but correlations over voxels are high wherever voxels have different means: a model
    that does not beat this map there has learnt nothing about images.

    Attributes:
        Y_mean_: (V,) fp32.
        n_features_in_: number of features, which are not used.
    """

    def fit(self, X: Samples, Y: Samples, groups: Sequence | None = None) -> "MeanMap":
        """Take the mean over responses Y (n, V); X (n, p) is only counted.

        Groups (n,), such as image ids, make images count once however often they were shown.
        """
        _, Y, groups = self._pairs(X, Y, groups)
        Y = Y if groups is None else _group_means(Y.astype(np.float32), groups)
        self.Y_mean_ = Y.mean(0, dtype=np.float64).astype(np.float32)
        return self

    def predict(self, X: Samples) -> np.ndarray:
        """The mean map once for each row of X: fp32 (n, V)."""
        count = len(self._samples(X))
        return np.tile(self.Y_mean_, (count, 1))


class NearestNeighbor(Baseline):
    """The response to the train image whose features have the largest cosine with those of the image.

    Equal cosines go to the train image that comes first. Features that share a large mean all point the same way:
    centre them before (`make_pipeline(StandardScaler(), NearestNeighbor())`).

    Attributes:
        X_fit_: (m, p) features of the train images, of length 1.
        Y_fit_: (m, V) their responses.
        n_features_in_: p.
    """

    def fit(self, X: Samples, Y: Samples, groups: Sequence | None = None) -> "NearestNeighbor":
        """Remember train images.

        Args:
            X: features (n, p).
            Y: responses (n, V).
            groups: (n,) such as image ids; the samples of one group are averaged, which leaves m of them, in the order
                of their first samples. None keeps all n.

        Raises:
            BrainDataError: features that are all 0 point nowhere.
        """
        X, Y, groups = self._pairs(X, Y, groups)
        X, Y = X.astype(np.float32), Y.astype(np.float32)
        if groups is not None:
            X, Y = _group_means(X, groups), _group_means(Y, groups)
        self.X_fit_, self.Y_fit_ = _unit(X), Y
        return self

    def predict(self, X: Samples) -> np.ndarray:
        """Responses of the closest train images: fp32 (n, V)."""
        rows = self.neighbors(X)
        return self.Y_fit_[rows]

    def neighbors(self, X: Samples) -> np.ndarray:
        """Which train image is closest to each row of X: (n,) rows of `X_fit_`."""
        X = _unit(self._samples(X))
        starts = range(0, len(X), _QUERIES)
        return np.concatenate([(X[i : i + _QUERIES] @ self.X_fit_.T).argmax(1) for i in starts])


def _unit(X: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    if not lengths.all():
        raise BrainDataError(f"expected features with a direction, got only zeros in sample {int(lengths.argmin())}")
    return X / lengths


def _group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean rows of each group, in the order in which groups appear."""
    _, first, index = np.unique(groups, return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    order = np.argsort(place[index], kind="stable")
    counts = np.bincount(place[index])
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return np.add.reduceat(values[order], starts, axis=0) / counts[:, None].astype(np.float32)
