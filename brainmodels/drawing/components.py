"""Tokens as few whitened numbers, and how far those that a decoder reads from a brain can be trusted.

    components = TokenComponents.fit(tokens, count=256)      # tokens (n, m, d) of images
    trust = Reliability.measured(components(decoded), components(true))  # on validation images
    scores = trust.calibrated(components(decoded_test))      # variance 1, correlation trust.r with the true ones

Shapes: n images, m tokens, d token width, K components.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import AxisError, BrainDataError
from ..features.reduction import TokenReduction
from ..nn.token_map import Tokens, check_shape, read

__all__ = ["ComponentsSize", "Reliability", "TokenComponents", "damaged", "drawn_reliabilities"]

BLOCK = 256  # images at a time, in loops over a whole set
CELLS = 4  # cells a side of the grid that tokens are averaged to, where they form one
SMOOTHING = 0.25  # width of the kernel over log(component number), in which reliabilities are averaged
LARGEST = 0.9999


@dataclass(frozen=True)
class ComponentsSize:
    """Sizes of `TokenComponents`.

    Attributes:
        num_tokens, token_width: Shape (m, d) of the tokens.
        side: Cells a side of the grid that the tokens are averaged to; None for tokens without a grid.
        width: Number of features that are kept of each cell or token.
        count: Number K of components.
    """

    num_tokens: int
    token_width: int
    side: int | None
    width: int
    count: int

    @property
    def cells(self) -> int:
        """Number of cells, or of tokens without a grid."""
        return self.num_tokens if self.side is None else self.side**2


class TokenComponents(nn.Module):
    """Principal components of all tokens of an image together, the most varying first, each with variance 1.

    Tokens of a grid are first averaged to `CELLS` x `CELLS` cells, or to the next finer grid that divides theirs. Of
    each cell the principal features are kept, each with variance 1: what is decoded well is not what varies most.

    Args:
        size: Sizes.
    """

    center: Tensor
    features: Tensor
    mean: Tensor
    axes: Tensor
    std: Tensor

    def __init__(self, size: ComponentsSize):
        super().__init__()
        self.size = size
        numbers = size.cells * size.width
        self.register_buffer("center", torch.zeros(size.token_width))
        self.register_buffer("features", torch.zeros(size.width, size.token_width))
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("axes", torch.zeros(numbers, size.count))
        self.register_buffer("std", torch.ones(size.count))

    @classmethod
    def fit(cls, tokens: Tokens, count: int = 256, width: int = 32) -> Self:
        """Learn the components from the tokens of images.

        Args:
            tokens: (n, m, d) Tokens. An array may be memory-mapped.
            count: Largest number K of components; fewer images, or tokens of fewer numbers, have fewer.
            width: Largest number of features that are kept of each cell.

        Raises:
            AxisError: Another shape.
            BrainDataError: Fewer than two images, or images that are all alike.
        """
        if tokens.ndim != 3 or len(tokens) < 2:
            raise AxisError(f"expected tokens (n, m, d) of two images or more, got {tuple(tokens.shape)}")
        num_tokens, token_width = tokens.shape[1:]
        side, width = _side(num_tokens), min(width, token_width)
        blocks = (read(tokens, slice(at, at + BLOCK)).numpy() for at in range(0, len(tokens), BLOCK))
        reduction = TokenReduction(side, width).fit(blocks)
        parts = range(0, len(tokens), BLOCK)
        rows = [reduction.transform(read(tokens, slice(at, at + BLOCK)).numpy()) for at in parts]
        cells = np.concatenate(rows).astype(np.float64)
        spread = np.maximum(cells.std((0, 1)), 1e-6 * cells.std())[:, None]  # of each feature
        flat = (cells / spread[:, 0]).reshape(len(tokens), -1)
        mean = flat.mean(0)
        variances, axes = np.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
        rank = int((variances > 1e-6 * variances[-1]).sum()) if variances[-1] > 0 else 0
        if not rank:
            raise BrainDataError(f"expected images whose tokens differ, got {len(tokens)} that are alike")
        kept = np.argsort(-variances)[: min(count, rank, len(tokens) - 1)]
        made = cls(ComponentsSize(num_tokens, token_width, side, width, len(kept)))
        arrays = (reduction.center_, reduction.components_ / spread, mean, axes[:, kept], np.sqrt(variances[kept]))
        for buffer, array in zip((made.center, made.features, made.mean, made.axes, made.std), arrays, strict=True):
            buffer.copy_(torch.from_numpy(np.ascontiguousarray(array)))
        return made

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (n, K) of tokens (n, m, d), with variance 1 over the images of the fit.

        Raises:
            AxisError: Tokens of another shape.
        """
        check_shape(tokens, (self.size.num_tokens, self.size.token_width), "these components")
        return (self.reduced(tokens).flatten(1) - self.mean) @ self.axes / self.std

    def reduced(self, tokens: Tensor) -> Tensor:
        """Cells with their principal features (n, cells, width)."""
        cells, side = tokens.to(self.center.device, torch.float32), self.size.side
        if side is not None:
            cell = math.isqrt(self.size.num_tokens) // side
            cells = cells.unflatten(1, (side, cell, side, cell)).mean((2, 4)).flatten(1, 2)
        return (cells - self.center) @ self.features.T

    def cells(self, scores: Tensor) -> Tensor:
        """The cells (n, cells, width) that scores (n, K) stand for."""
        return ((scores * self.std) @ self.axes.T + self.mean).unflatten(1, (self.size.cells, self.size.width))


@dataclass(frozen=True)
class Reliability:
    """How scores that were decoded relate to the true ones, by component.

    Attributes:
        mean, std: (K,) Mean and standard deviation of decoded scores.
        r: (K,) Correlation of decoded and true scores, 0 to `LARGEST`.
    """

    mean: Tensor
    std: Tensor
    r: Tensor

    @classmethod
    def exact(cls, count: int) -> "Reliability":
        """That of true tokens."""
        return cls(torch.zeros(count), torch.ones(count), torch.full((count,), LARGEST))

    @classmethod
    def measured(cls, decoded: Tensor, true: Tensor) -> "Reliability":
        """That of a decoder, on images that it was not trained on.

        Standard deviations and correlations are averaged over neighbouring components, on a logarithmic scale, since
        there are few validation images.

        Args:
            decoded, true: (n, K) Scores of the same images.

        Raises:
            AxisError: Different shapes, or fewer than three images.
        """
        if decoded.shape != true.shape or decoded.ndim != 2 or len(decoded) < 3:
            raise AxisError(
                "expected decoded and true scores (n, K) of three images or more, got "
                f"{tuple(decoded.shape)} and {tuple(true.shape)}"
            )
        mean = decoded.mean(0)
        apart, truth = (decoded - mean).double(), (true - true.mean(0)).double()
        variance = apart.square().mean(0)
        r = (apart * truth).mean(0) / (variance * truth.square().mean(0)).sqrt().clamp(min=1e-12)
        std = _smoothed(variance).sqrt().clamp(min=1e-6)
        return cls(mean.float(), std.float(), _smoothed(r).clamp(0, LARGEST).float())

    def calibrated(self, scores: Tensor) -> Tensor:
        """Decoded scores (n, K) with mean 0 and variance 1; times `r` they are the best guess of the true ones."""
        return (scores - self.mean.to(scores.device)) / self.std.to(scores.device)


def drawn_reliabilities(count: int, components: int, rng: torch.Generator, usual: Tensor | None = None) -> Tensor:
    """Correlations (count, K) of decoders of all kinds, at random: a / (1 + (j / j0)^p) for component j.

    | | from | to | |
    |---|---|---|---|
    | a | 0.4 | 1 | uniform |
    | j0 | 4 | 1,500 | uniform logarithm |
    | p | 0.8 | 3 | uniform |

    One in twelve is exact, and one in twelve knows nothing.

    Args:
        count, components: Numbers of decoders and of components K.
        rng: Source of the draws.
        usual: (K,) Correlations of one decoder, which nearly half of the rows then have, times a factor near 1.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=rng, device=rng.device)

    j = torch.arange(1, components + 1, device=rng.device)
    r = uniform(0.4, 1) / (1 + (j / uniform(math.log(4), math.log(1500)).exp()) ** uniform(0.8, 3))
    kind = uniform(0, 1)
    if usual is not None:
        factor = (0.15 * torch.randn(count, 1, generator=rng, device=rng.device)).exp()
        r = torch.where(kind < 0.45, usual.to(rng.device) * factor, r)
    return torch.where(kind > 11 / 12, 0.0, torch.where(kind > 10 / 12, LARGEST, r)).clamp(max=LARGEST)


def damaged(scores: Tensor, r: Tensor, rng: torch.Generator) -> Tensor:
    """True scores (n, K) as a decoder with correlations r (n, K) would give them, calibrated to variance 1."""
    noise = torch.randn(scores.shape, generator=rng, device=rng.device).to(scores.device)
    return r * scores + (1 - r.square()).sqrt() * noise


def _side(num_tokens: int) -> int | None:
    """Cells a side: the smallest divisor of the grid's side from `CELLS` on; None where the tokens form no square."""
    root = math.isqrt(num_tokens)
    if root**2 != num_tokens:
        return None
    return next((side for side in range(min(CELLS, root), root) if root % side == 0), root)


def _smoothed(values: Tensor) -> Tensor:
    place = torch.arange(1, len(values) + 1, dtype=torch.float64).log()
    weights = (-0.5 * ((place[:, None] - place) / SMOOTHING).square()).exp()
    return weights @ values.double().cpu() / weights.sum(1)
