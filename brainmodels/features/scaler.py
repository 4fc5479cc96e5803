"""Scale features to zero mean and unit variance, with statistics from the train images alone.

    scaler = TokenScaler("tokens", reduce=(4, 32)).fit(cache, train.image_ids)
    z = scaler.transform(cache.get(test.image_ids, "tokens"))  # (n, 16, 32)
    scaler.check_unseen(test.image_ids)                        # LeakageError if a test image took part

A scaler remembers the images it was fitted on and the fingerprint of their features, and checks both.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..data.ids import Ids
from ..data.moments import Moments
from ..errors import AxisError, BrainDataError, LeakageError, NormalizationError, check_choice
from .arrays import FeatureSource
from .reduction import Array, TokenReduction, matched

__all__ = ["TokenScaler"]

_PREFIX = "reduction."  # prefix of the entries of the reduction in a state


class TokenScaler:
    """Standardised features: z = (r(x) - mean) / std for each feature, with the population std over the fitted images.

    r reduces tokens if you ask for it, because tokens of full size make small models slow. A feature that is constant
    over the fitted images has std 1. It becomes 0, and the inverse restores it; `num_constant` counts such features.

    Args:
        what: "tokens" or "pooled".
        per: "feature" has one mean and std for each of the d features of a token, over images and tokens. "element" has
            one for each of the m x d numbers. For pooled features the two agree.
        reduce: Pair (side, width) of reduced tokens: means over the cells of a side x side grid, then `width` principal
            components (see `TokenReduction`). None for either leaves it as it is. Only for tokens scaled per feature.

    Attributes:
        mean_, std_: fp32 (d,), or (m, d) with `per="element"`: mean and std of reduced tokens.
        num_tokens: Number of tokens after the transformation. None for pooled features, and if an older state did not
            record it.
        reduction: The `TokenReduction`. None if nothing is reduced.
        fitted_ids: Ids of the images whose statistics these are.
        fingerprint: Fingerprint of the features' extractor.
        num_constant: Number of features that are constant over the fitted images.

    Raises:
        BrainDataError: An unknown choice, or `reduce` for features that cannot be reduced.
    """

    def __init__(self, what: str = "tokens", per: str = "feature", reduce: tuple[int | None, int | None] | None = None):
        self.what = check_choice("what", what, ("tokens", "pooled"))
        self.per = check_choice("per", per, ("feature", "element"))
        self.reduction = None
        if reduce is not None:
            if what != "tokens" or per != "feature" or len(reduce) != 2:
                raise BrainDataError(
                    "expected reduce=(side, width) of tokens that are scaled per feature, or None, got "
                    f"{reduce!r} with what={what!r} and per={per!r}"
                )
            self.reduction = None if tuple(reduce) == (None, None) else TokenReduction(*reduce)
        self.num_tokens: int | None = None
        self.fitted_ids: frozenset[str] = frozenset()
        self.fingerprint = ""

    @property
    def token_width(self) -> int:
        """Length of a token, or of a pooled vector, after the transformation."""
        self._check_fitted()
        return self.mean_.shape[-1]

    @property
    def explained_(self) -> float:
        """Share of the variance of the averaged train tokens that their principal components keep."""
        self._check_fitted()
        return 1.0 if self.reduction is None else self.reduction.explained_

    def fit(self, source: FeatureSource, ids: Iterable[str], batch_size: int = 64) -> "TokenScaler":
        """Learn the reduction and the statistics from the features of some images, each counted once, batch by batch.

        Args:
            source: Source of the features. It is read twice if there are principal components.
            ids: Ids of the train images.
            batch_size: Number of images in memory at a time.

        Raises:
            BrainDataError: No images, or more components than directions in which the tokens vary.
            AxisError: Tokens that do not fit the reduction.
        """
        names = sorted(set(map(str, ids)))
        if not names:
            raise BrainDataError("expected ids of at least one image to fit on, got none")
        self.fitted_ids = frozenset()  # so that a failed fit does not mix two sets of statistics
        if self.reduction is not None:
            self.reduction.fit(self._batches(source, names, batch_size))
        found = Moments.of(self._reduced_rows(source, names, batch_size))
        mean, std = found.mean, np.sqrt(found.variance)
        constant = std <= 1e-7 * np.maximum(np.abs(mean), 1e-7)
        self.mean_, self.std_ = mean.astype(np.float32), np.where(constant, 1, std).astype(np.float32)
        self.num_constant = int(constant.sum())
        if self.what == "tokens":
            full = source.get(names[:1], "tokens").shape[1]
            self.num_tokens = full if self.reduction is None else self.reduction.shape[0]
        self.fitted_ids, self.fingerprint = frozenset(names), source.fingerprint
        return self

    def transform(self, values: Array) -> Array:
        """Reduced and scaled features.

        Args:
            values: Features (..., d) or (..., m, d), an array or a tensor.

        Returns:
            Scaled features of the same kind.

        Raises:
            AxisError: Values of another shape, or a tensor of integers.
            BrainDataError: The scaler was not fitted.
        """
        self._check_values(values)
        if self.reduction is not None:
            values = self.reduction.transform(values)
        mean, std = self._statistics(values)
        return (values - mean) / std

    def inverse_transform(self, values: Array) -> Array:
        """Features from scaled ones. If they were reduced, the result is approximate (see `reduction_error`).

        Args:
            values: Scaled features (..., d) or (..., m, d), an array or a tensor.

        Returns:
            Features of the same kind.

        Raises:
            AxisError: Values of another shape, or a tensor of integers.
            BrainDataError: The scaler was not fitted.
        """
        self._check_values(values)
        mean, std = self._statistics(values)
        values = values * std + mean
        return values if self.reduction is None else self.reduction.inverse_transform(values)

    def reduction_error(self, source: FeatureSource, ids: Ids, batch_size: int = 64) -> float:
        """Relative error that the reduction alone has: |inverse(transform(x)) - x| / |x - mean|.

        The norms run over all numbers of all images, and the mean is that of the train images. 0 means no loss. The
        mean token in place of every token would have error 1. Even a perfect model of reduced tokens is this far from
        the features.

        Args:
            source: Source of the same features as those it was fitted on.
            ids: Ids of the images, such as the test images.
            batch_size: Number of images in memory at a time.

        Raises:
            NormalizationError: Features of another extractor.
            BrainDataError: No images, or images that all equal the mean.
        """
        self.check_features(source.fingerprint)
        lost, varied = 0.0, 0.0
        for values in self._batches(source, list(ids), batch_size):
            scaled = self.transform(values)
            mean = self.inverse_transform(np.zeros_like(scaled[:1]))
            lost += np.square(self.inverse_transform(scaled) - values, dtype=np.float64).sum()
            varied += np.square(values - mean, dtype=np.float64).sum()
        if varied == 0:
            raise BrainDataError(f"expected images whose {self.what} vary, got {len(ids)} that equal the mean")
        return float(np.sqrt(lost / varied))

    def check_unseen(self, test_ids: Iterable[str]) -> None:
        """Check that no test image took part in the statistics.

        Raises:
            LeakageError: A test image took part.
            BrainDataError: The scaler was not fitted.
        """
        self._check_fitted()
        common = self.fitted_ids & {str(name) for name in test_ids}
        if common:
            raise LeakageError(
                f"expected a scaler fitted on train images, got one fitted on {len(common)} that are tested on, "
                f"such as {min(common)}"
            )

    def check_features(self, fingerprint: str) -> None:
        """Check that features come from the extractor that the scaler was fitted on.

        Args:
            fingerprint: Fingerprint of the features.

        Raises:
            NormalizationError: Another extractor.
            BrainDataError: The scaler was not fitted.
        """
        self._check_fitted()
        if fingerprint != self.fingerprint:
            fitted, given = self.fingerprint or "without a fingerprint", fingerprint or "one without"
            raise NormalizationError(
                f"expected features of the extractor {fitted}, on which this scaler was fitted, got those of {given}"
            )

    def state_dict(self) -> dict[str, np.ndarray]:
        """The scaler as arrays, for `np.savez`."""
        self._check_fitted()
        texts = {"what": self.what, "per": self.per, "fingerprint": self.fingerprint}
        return {
            "mean": self.mean_,
            "std": self.std_,
            "num_constant": np.asarray(self.num_constant),
            "fitted_ids": np.array(sorted(self.fitted_ids), dtype=str),
            **{name: np.asarray(text) for name, text in texts.items()},
            **({} if self.num_tokens is None else {"num_tokens": np.asarray(self.num_tokens)}),
            **({} if self.reduction is None else {_PREFIX + k: v for k, v in self.reduction.state_dict().items()}),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "TokenScaler":
        """The scaler that has this `state_dict`, given as a dict or an opened npz file."""
        scaler = cls(str(state["what"]), str(state["per"]))
        reduced = {key.removeprefix(_PREFIX): state[key] for key in state if key.startswith(_PREFIX)}
        scaler.reduction = TokenReduction.from_state_dict(reduced) if reduced else None
        scaler.mean_, scaler.std_ = np.array(state["mean"]), np.array(state["std"])
        scaler.num_constant = int(state["num_constant"])
        scaler.num_tokens = int(state["num_tokens"]) if "num_tokens" in state else None
        scaler.fitted_ids = frozenset(np.asarray(state["fitted_ids"]).tolist())
        scaler.fingerprint = str(state["fingerprint"])
        return scaler

    def _batches(self, source: FeatureSource, names: Sequence[str], batch_size: int) -> Iterator[np.ndarray]:
        return (source.get(names[at : at + batch_size], self.what) for at in range(0, len(names), batch_size))

    def _reduced_rows(self, source: FeatureSource, names: Sequence[str], batch_size: int) -> Iterator[np.ndarray]:
        """(rows, d) reduced, or (images, m, d) with `per="element"`: what the statistics are computed over."""
        for values in self._batches(source, names, batch_size):
            if self.reduction is not None:
                values = self.reduction.transform(values)
            yield values.reshape(-1, values.shape[-1]) if self.per == "feature" else values

    def _statistics(self, values: Array) -> tuple[Array, Array]:
        shape = self.mean_.shape
        if tuple(values.shape[-len(shape) :]) != shape:
            raise AxisError(f"expected {self.what} (..., {', '.join(map(str, shape))}), got {tuple(values.shape)}")
        return matched(self.mean_, values), matched(self.std_, values)

    def _check_values(self, values: Array) -> None:
        self._check_fitted()
        if isinstance(values, torch.Tensor) and not values.is_floating_point():
            raise AxisError(f"expected {self.what} as a tensor of floats, got {values.dtype}")

    def _check_fitted(self) -> None:
        if not self.fitted_ids:
            raise BrainDataError("expected a fitted scaler, got one that was not; call fit(source, train_ids)")
