"""Linear maps from tokens to responses and back, fitted by a baseline and kept as two arrays."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..data.moments import column_moments

__all__ = ["NUMBERS", "LinearMap", "flat"]

NUMBERS = 2**14  # of an image's tokens that a linear map takes; more are averaged over neighbours in their order


def flat(tokens: np.ndarray) -> np.ndarray:
    """Tokens (n, m, d) as rows (n, p). More than 16,384 numbers are averaged over groups of tokens of equal size."""
    count, tokens_each, width = tokens.shape
    groups = tokens_each
    while groups * width > NUMBERS and groups % 2 == 0:
        groups //= 2
    return tokens.reshape(count, groups, -1, width).mean(2).reshape(count, -1)


@dataclass(frozen=True)
class LinearMap:
    """y = x weight + bias.

    Attributes:
        weight: fp32 (p, q).
        bias: fp32 (q,).
    """

    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, estimator: Any, X: np.ndarray, Y: np.ndarray, scaled: bool = True) -> Self:
        """Fit a baseline to columns of X (n, p), `scaled` to their deviation: columns that hardly vary get weight 0.

        Features are scaled. Responses are not, because reliable voxels vary more in averages and should count more.
        """
        mean, std = column_moments(X)
        kept = std > 1e-3 * std.max()
        std = std if scaled else np.ones_like(std)
        fitted = estimator.fit(((X - mean) / np.where(kept, std, 1)).astype(np.float32)[:, kept], Y)
        weight, (slopes, bias) = np.zeros((X.shape[1], Y.shape[1]), np.float32), fitted.affine()
        weight[kept] = slopes / std[kept, None]
        return cls(weight, (bias - mean @ weight).astype(np.float32))

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Predictions fp32 (n, q) of rows (n, p)."""
        return X.astype(np.float32, copy=False) @ self.weight + self.bias

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """Predictions (n, q) of tokens (n, m, d), where they are."""
        return torch.from_numpy(self(flat(tokens.detach().cpu().numpy()))).to(tokens.device)

    def arrays(self, name: str) -> dict[str, Tensor]:
        """Both arrays for a file, under a name."""
        return {f"{name}.{key}": torch.from_numpy(getattr(self, key)).contiguous() for key in ("weight", "bias")}

    @classmethod
    def taken(cls, arrays: dict[str, Tensor], name: str) -> Self:
        """The map of that name, taken out of the arrays of a file; a missing one is a KeyError."""
        return cls(*(arrays.pop(f"{name}.{key}").numpy() for key in ("weight", "bias")))
