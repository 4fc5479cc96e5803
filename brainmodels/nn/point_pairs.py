"""Noise for each point of a cloud, by optimal transport: straight paths from it to the points hardly cross.

    pairs = paired_noise(clouds, seed=0)                        # (n, N, 3), once
    noise = renewed(pairs[rows], 0.2, generator)                # in every step
    loss = points_loss(net, clouds[rows], condition, noise=noise)

Independent noise makes a network predict the mean of many crossing paths. Points of a cloud have no order, so its noise
may be permuted. The assignment here has the smallest sum of squared distances. The distribution of the noise of a cloud
stays the same. This is equivariant flow matching (Klein et al., arXiv 2306.15030; Song et al., arXiv 2312.07168).
"""

import numpy as np
import torch
from torch import Tensor

from ..errors import AxisError, BrainDataError, need

__all__ = ["paired_noise", "renewed"]


def paired_noise(clouds: Tensor, seed: int, block: int = 512) -> Tensor:
    """Standard normal noise for every point, assigned exactly within blocks of points of a cloud.

    Args:
        clouds: (n, N, 3) Clouds, centred and about of unit variance.
        seed: Seed of the noise.
        block: Number of points of an assignment. Its time grows with the cube. 192 clouds of 2,048 points took 36
            CPU-seconds in blocks of 512 (one core of an AMD EPYC, 2026-11-30).

    Returns:
        (n, N, 3) on the CPU.

    Raises:
        AxisError: Clouds of another shape.
        BrainDataError: A block of no points.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise need("scipy", "noise by optimal transport") from error
    if clouds.ndim != 3:
        raise AxisError(f"expected clouds (n, N, 3), got {tuple(clouds.shape)}")
    if block < 1:
        raise BrainDataError(f"expected blocks of at least 1 point, got {block}")
    noise = torch.randn(clouds.shape, generator=torch.Generator().manual_seed(seed))
    for cloud, own in zip(clouds.cpu(), noise, strict=True):
        for points, some in zip(cloud.split(block), own.split(block), strict=True):
            cost = torch.cdist(points, some).square().numpy().astype(np.float64)
            some.copy_(some[torch.from_numpy(linear_sum_assignment(cost)[1])])
    return noise


def renewed(noise: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Noise with a `share` of new noise in its standard deviation: sqrt(1 - share^2) noise + share e."""
    new = torch.randn(noise.shape, dtype=noise.dtype, device=noise.device, generator=generator)
    return (1 - share**2) ** 0.5 * noise + share * new
