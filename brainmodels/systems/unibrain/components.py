"""Principal components of the last axis, as a module with fixed numbers."""

from typing import Self

import torch
from torch import Tensor, nn

from ...errors import BrainDataError

__all__ = ["Components"]


class Components(nn.Module):
    """Projection of vectors on their first principal components, and the way back.

        forward(x) = ((x - mean) / scale) basis / spread

    Args:
        width: Width of the vectors.
        count: Number of components.

    Attributes:
        mean, scale: (width,) Subtracted and divided by first.
        basis: (width, count) Orthonormal columns.
        spread: (count,) Divided by last.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor
    spread: Tensor

    def __init__(self, width: int, count: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("basis", torch.eye(width, count))
        self.register_buffer("spread", torch.ones(count))

    @classmethod
    def fit(cls, values: Tensor, count: int, standardise: bool, whiten: bool) -> Self:
        """Components of values (n, width).

        Args:
            values: The vectors.
            count: Number of components to keep.
            standardise: Divide each column by its standard deviation first.
            whiten: Give every component variance 1. Otherwise all are divided by one number, so that their mean
                variance is 1 and the first ones stay the largest.

        Raises:
            BrainDataError: There are fewer vectors or columns than components.
        """
        if min(values.shape) < count or not values.isfinite().all():
            raise BrainDataError(f"expected {count} or more finite vectors and columns, got {tuple(values.shape)}")
        model, x = cls(values.shape[1], count), values.double()
        mean = x.mean(0)
        x = x - mean
        if standardise:
            sd = x.square().mean(0).sqrt()
            model.scale.copy_(torch.where(sd > 1e-6 * sd.max(), sd, 1.0))
            x = x / model.scale
        _, vectors = torch.linalg.eigh(x.T @ x)
        basis = vectors.flip(1)[:, :count]
        basis = basis * basis.abs().argmax(0).eq(torch.arange(len(basis))[:, None]).mul(basis).sum(0).sign()
        variance = (x @ basis).square().mean(0)
        model.mean.copy_(mean)
        model.basis.copy_(basis)
        model.spread.copy_((variance if whiten else variance.mean().expand(count)).sqrt())
        return model

    def forward(self, values: Tensor) -> Tensor:
        """Components (..., count) of values (..., width)."""
        return (values - self.mean) / self.scale @ self.basis / self.spread

    def inverse(self, components: Tensor) -> Tensor:
        """Values (..., width) of components (..., count); what the other components held is their mean."""
        return (components * self.spread) @ self.basis.T * self.scale + self.mean
