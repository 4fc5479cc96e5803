"""Scaling of features to zero mean and unit variance, with statistics of the train images alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import AxisError, BrainDataError, LeakageError, NormalizationError
from .base import check_choice
from .cache import FeatureCache

__all__ = ["TokenScaler"]

Array = TypeVar("Array", np.ndarray, torch.Tensor)


class TokenScaler:
    """z = (x - mean) / std for each feature; population std over the images it was fitted on.

    A feature that is constant there has std 1, so that it becomes 0 and comes back as it was; `num_constant` counts
    those.

    Args:
        what: "tokens" or "pooled".
        per: "feature", one mean and std for each of the d features of a token, over images and tokens; "element", one
            for each of the m x d numbers. The same for pooled features.

    Attributes:
        mean_, std_: fp32 (d,), or (m, d) with `per="element"`.
        fitted_ids: of the images whose statistics these are.
        fingerprint: of the extractor whose features these are.
        num_constant: see above.
    """

    def __init__(self, what: str = "tokens", per: str = "feature"):
        self.what = check_choice("what", what, ("tokens", "pooled"))
        self.per = check_choice("per", per, ("feature", "element"))
        self.fitted_ids: frozenset[str] = frozenset()
        self.fingerprint = ""

    def fit(self, cache: FeatureCache, ids: Iterable[str], batch_size: int = 64) -> "TokenScaler":
        """Statistics over the features of these images, each counted once, read batch by batch.

        Args:
            cache: of the features.
            ids: of the train images.
            batch_size: images in memory at a time.
        """
        names = sorted(set(map(str, ids)))
        if not names:
            raise BrainDataError("expected ids of at least one image to fit on, got none")
        count, mean, squares = 0, 0.0, 0.0  # of squared deviations from the mean
        for start in range(0, len(names), batch_size):
            values = cache.get(names[start : start + batch_size], self.what).astype(np.float64)
            if self.per == "feature":
                values = values.reshape(-1, values.shape[-1])
            size, here = len(values), values.mean(0)
            shift = here - mean
            squares = squares + ((values - here) ** 2).sum(0) + shift**2 * (count * size / (count + size))
            mean = mean + shift * (size / (count + size))
            count += size
        std = np.sqrt(squares / count)
        constant = std <= 1e-7 * np.maximum(np.abs(mean), 1e-7)
        self.mean_, self.std_ = mean.astype(np.float32), np.where(constant, 1, std).astype(np.float32)
        self.num_constant = int(constant.sum())
        self.fitted_ids, self.fingerprint = frozenset(names), cache.fingerprint
        return self

    def transform(self, values: Array) -> Array:
        """Scaled features; `values` (..., d) or (..., m, d), an array or a tensor, which keeps its kind."""
        mean, std = self._statistics(values)
        return (values - mean) / std

    def inverse_transform(self, values: Array) -> Array:
        """Features from scaled ones."""
        mean, std = self._statistics(values)
        return values * std + mean

    def check_unseen(self, test_ids: Iterable[str]) -> None:
        """Raise a `LeakageError` where an image that is tested on took part in the statistics."""
        self._check_fitted()
        common = self.fitted_ids & {str(name) for name in test_ids}
        if common:
            raise LeakageError(
                f"expected a scaler fitted on train images, got one fitted on {len(common)} that are tested on, "
                f"such as {min(common)}"
            )

    def check_features(self, fingerprint: str) -> None:
        """Raise a `NormalizationError` where features are of another extractor than those it was fitted on."""
        self._check_fitted()
        if fingerprint != self.fingerprint:
            raise NormalizationError(
                f"expected features of the extractor {self.fingerprint}, on which this scaler was fitted, got those of "
                f"{fingerprint}"
            )

    def state_dict(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for `np.savez`."""
        self._check_fitted()
        texts = {"what": self.what, "per": self.per, "fingerprint": self.fingerprint}
        return {
            "mean": self.mean_,
            "std": self.std_,
            "num_constant": np.asarray(self.num_constant),
            "fitted_ids": np.array(sorted(self.fitted_ids), dtype=str),
            **{name: np.asarray(text) for name, text in texts.items()},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "TokenScaler":
        """The scaler whose `state_dict` this is, or an opened npz of it."""
        scaler = cls(str(state["what"]), str(state["per"]))
        scaler.mean_, scaler.std_ = np.asarray(state["mean"]), np.asarray(state["std"])
        scaler.num_constant = int(state["num_constant"])
        scaler.fitted_ids = frozenset(np.asarray(state["fitted_ids"]).tolist())
        scaler.fingerprint = str(state["fingerprint"])
        return scaler

    def _statistics(self, values: Array) -> Sequence[Array]:
        self._check_fitted()
        shape = self.mean_.shape
        if tuple(values.shape[-len(shape) :]) != shape:
            raise AxisError(f"expected {self.what} (..., {', '.join(map(str, shape))}), got {tuple(values.shape)}")
        if isinstance(values, torch.Tensor):
            return [torch.from_numpy(x).to(values.device, values.dtype) for x in (self.mean_, self.std_)]
        return self.mean_, self.std_

    def _check_fitted(self) -> None:
        if not self.fitted_ids:
            raise BrainDataError("expected a fitted scaler, got one that was not; call fit(cache, train_ids)")
