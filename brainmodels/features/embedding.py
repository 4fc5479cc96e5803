"""Unit vectors from pooled features: principal components of the train images, then length 1.

    space = EmbeddingSpace(width=16).fit(cache, train.image_ids)
    e = space.transform(cache.get(test.image_ids))  # (n, 16), each of length 1
    space.check_unseen(test.image_ids)              # LeakageError if a test image took part

Models hold it in the place of a `TokenScaler`, whose interface it has.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ..errors import AxisError, BrainDataError
from .arrays import FeatureSource
from .reduction import Array, TokenReduction
from .scaler import TokenScaler

__all__ = ["EmbeddingSpace"]

_LEAST = 1e-6  # ratio to the mean length below which a projection consists of fp32 rounding errors


class EmbeddingSpace(TokenScaler):
    """Pooled features as unit vectors: e = P (x - mean) / |P (x - mean)|, or e = x / |x| without components.

    The rows of P are the principal components of the fitted images. The length of a feature vector is lost, so the
    inverse gives every image the mean length. `reduction_error` counts this loss too.

    Args:
        width: Number of principal components E. None keeps all features and does not subtract the mean.

    Attributes:
        width: As given.
        reduction: The components, as a `TokenReduction` of one token an image. None without components.
        full_width_: Number of features d before the transformation.
        length_: Mean length of the fitted images' projections, or of their features without components.
        fitted_ids, fingerprint, num_tokens, token_width, explained_: As in `TokenScaler`.

    Raises:
        BrainDataError: A width below 1.
    """

    def __init__(self, width: int | None = None):
        super().__init__("pooled")
        self.width = width
        self.reduction = None if width is None else TokenReduction(width=width)

    @property
    def token_width(self) -> int:
        """Length E of an embedding."""
        self._check_fitted()
        return self.full_width_ if self.width is None else self.width

    def fit(self, source: FeatureSource, ids: Iterable[str], batch_size: int = 64) -> "EmbeddingSpace":
        """Learn the components and the mean length from some images, each counted once, batch by batch.

        Args:
            source: Source of the features. It is read twice if there are components.
            ids: Ids of the train images.
            batch_size: Number of images in memory at a time.

        Raises:
            AxisError: More components than features.
            BrainDataError: No images, more components than directions in which they vary, or an image without a
                direction.
        """
        names = sorted(set(map(str, ids)))
        if not names:
            raise BrainDataError("expected ids of at least one image to fit on, got none")
        self.fitted_ids = frozenset()  # so that a failed fit does not mix two sets of statistics
        self.full_width_ = source.get(names[:1], self.what).shape[-1]
        if self.reduction is not None:
            self.reduction.fit(values[:, None] for values in self._batches(source, names, batch_size))
        batches = (self._projected(values) for values in self._batches(source, names, batch_size))
        lengths = np.concatenate([np.linalg.norm(values.astype(np.float64), axis=-1) for values in batches])
        self.length_ = float(lengths.mean())
        if not (lengths > self._least()).all():
            raise BrainDataError(
                f"expected {self.what} features with a direction, got none of {names[int(lengths.argmin())]}"
            )
        self.fitted_ids, self.fingerprint = frozenset(names), source.fingerprint
        return self

    def transform(self, values: Array) -> Array:
        """Unit vectors.

        Args:
            values: Features (..., d), an array or a tensor of floats.

        Returns:
            Embeddings (..., E) of the same kind.

        Raises:
            AxisError: Another number of features, or no floats.
            BrainDataError: The space was not fitted, or a row has no direction: zeros, the mean, or infinite values.
        """
        self._check_fitted()
        self._check_width(values, self.full_width_)
        values = self._projected(values)
        length: Any = (values * values).sum(-1)[..., None] ** 0.5
        bad = ~((length > self._least()) & (length < float("inf")))
        if bad.any():
            row = int(torch.as_tensor(bad).flatten().nonzero()[0, 0])
            raise BrainDataError(
                f"expected {self.what} features with a direction, got length {float(length.reshape(-1)[row])} in row "
                f"{row}"
            )
        return values / length

    def inverse_transform(self, values: Array) -> Array:
        """Features of mean length: mean + length_ e P, or length_ e without components.

        The embedding of the result of a unit vector is that vector again.

        Args:
            values: Embeddings (..., E), an array or a tensor of floats.

        Returns:
            Features (..., d) of the same kind.

        Raises:
            AxisError: Another number of entries, or no floats.
            BrainDataError: The space was not fitted.
        """
        self._check_width(values, self.token_width)
        values = values * self.length_
        return values if self.reduction is None else self.reduction.inverse_transform(values[..., None, :])[..., 0, :]

    def state_dict(self) -> dict[str, np.ndarray]:
        """The space as arrays, for `np.savez`. A `width` of 0 stands for None."""
        self._check_fitted()
        return {
            "width": np.asarray(self.width or 0),
            "full_width": np.asarray(self.full_width_),
            "length": np.asarray(self.length_),
            "fitted_ids": np.array(sorted(self.fitted_ids), dtype=str),
            "fingerprint": np.asarray(self.fingerprint),
            **({} if self.reduction is None else {f"reduction.{k}": v for k, v in self.reduction.state_dict().items()}),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "EmbeddingSpace":
        """The space that has this `state_dict`, given as a dict or an opened npz file."""
        space = cls(int(state["width"]) or None)
        reduced = {key.removeprefix("reduction."): state[key] for key in state if key.startswith("reduction.")}
        space.reduction = TokenReduction.from_state_dict(reduced) if reduced else None
        space.full_width_, space.length_ = int(state["full_width"]), float(state["length"])
        space.fitted_ids = frozenset(np.asarray(state["fitted_ids"]).tolist())
        space.fingerprint = str(state["fingerprint"])
        return space

    def _projected(self, values: Array) -> Array:
        return values if self.reduction is None else self.reduction.transform(values[..., None, :])[..., 0, :]

    def _least(self) -> float:
        """Length above which a projection has a direction."""
        return 0.0 if self.reduction is None else _LEAST * self.length_

    def _check_width(self, values: Array, width: int) -> None:
        self._check_values(values)
        if not isinstance(values, torch.Tensor) and not np.issubdtype(values.dtype, np.floating):
            raise AxisError(f"expected {self.what} as an array of floats, got {values.dtype}")
        if values.shape[-1] != width:
            raise AxisError(f"expected {self.what} (..., {width}), got {tuple(values.shape)}")
