"""Features reduced and scaled to zero mean and unit variance, with statistics of the train images alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..data.moments import Moments
from ..errors import AxisError, BrainDataError, LeakageError, NormalizationError, check_choice
from .arrays import FeatureSource
from .reduction import Array, TokenReduction, matched

__all__ = ["TokenScaler"]

_PREFIX = "reduction."  # of the entries of the reduction in a state


class TokenScaler:
    """z = (r(x) - mean) / std for each feature; population std over the images it was fitted on.

    r reduces tokens where that is asked for: full-size tokens make small models slow. A feature that is constant over
    those images has std 1, so that it becomes 0 and comes back as it was; `num_constant` counts those.

    Args:
        what: "tokens" or "pooled".
        per: "feature", one mean and std for each of the d features of a token, over images and tokens; "element", one
            for each of the m x d numbers. The same for pooled features.
        reduce: (side, width) of reduced tokens: means over the cells of a side x side grid, then `width` principal
            components (see `TokenReduction`). None for either leaves it as it is. Only for tokens scaled per feature.

    Attributes:
        mean_, std_: fp32 (d,), or (m, d) with `per="element"`, of reduced tokens.
        num_tokens: m after the transformation; None for pooled features, and where an older state did not record it.
        reduction: the `TokenReduction`; None where nothing is reduced.
        fitted_ids: of the images whose statistics these are.
        fingerprint: of what made the features.
        num_constant: see above.
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
        """Numbers of a token, or of a pooled vector, after the transformation."""
        self._check_fitted()
        return self.mean_.shape[-1]

    @property
    def explained_(self) -> float:
        """Share of the variance of the averaged train tokens that their principal components keep."""
        self._check_fitted()
        return 1.0 if self.reduction is None else self.reduction.explained_

    def fit(self, source: FeatureSource, ids: Iterable[str], batch_size: int = 64) -> "TokenScaler":
        """Learn the reduction and statistics of the features of these images, each counted once, batch by batch.

        Args:
            source: of the features; read twice where principal components are asked for.
            ids: of the train images.
            batch_size: images in memory at a time.
        """
        names = sorted(set(map(str, ids)))
        if not names:
            raise BrainDataError("expected ids of at least one image to fit on, got none")
        self.fitted_ids = frozenset()  # a fit that fails leaves no mixture of two
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
        """Reduced and scaled features; `values` (..., d) or (..., m, d), an array or a tensor, which keeps its kind."""
        self._check_values(values)
        if self.reduction is not None:
            values = self.reduction.transform(values)
        mean, std = self._statistics(values)
        return (values - mean) / std

    def inverse_transform(self, values: Array) -> Array:
        """Features from scaled ones; where they were reduced, an approximation of them (see `reduction_error`)."""
        self._check_values(values)
        mean, std = self._statistics(values)
        values = values * std + mean
        return values if self.reduction is None else self.reduction.inverse_transform(values)

    def reduction_error(self, source: FeatureSource, ids: Sequence[str], batch_size: int = 64) -> float:
        """What the reduction alone loses of these images: |inverse(transform(x)) - x| / |x - mean|.

        The norms run over all numbers of all images, the mean is that of the train images. 0 is no loss; the mean in
        place of every token would have 1. Even a perfect model of reduced tokens is this far from the features.

        Args:
            source: of the same features as those it was fitted on.
            ids: of the images, such as the test images.
            batch_size: images in memory at a time.

        Raises:
            NormalizationError: features of another extractor.
            BrainDataError: no images, or all of them equal the mean.
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
            fitted, given = self.fingerprint or "without a fingerprint", fingerprint or "one without"
            raise NormalizationError(
                f"expected features of the extractor {fitted}, on which this scaler was fitted, got those of {given}"
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
            **({} if self.num_tokens is None else {"num_tokens": np.asarray(self.num_tokens)}),
            **({} if self.reduction is None else {_PREFIX + k: v for k, v in self.reduction.state_dict().items()}),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "TokenScaler":
        """The scaler whose `state_dict` this is, or an opened npz of it."""
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
        """(rows, d) reduced, or (images, m, d) with `per="element"`: what the statistics are taken over."""
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
