"""Synthetic voxels: linear encoders drawn from a prior, which answer to embeddings of real images.

voxels = SyntheticVoxels(bank, prior, noise)
embeddings, responses = voxels.draw(32, 96, generator)  # (96, E) and (32, 96)
"""

import torch
from torch import Tensor, nn

from ...baselines import WeightPrior

__all__ = ["SyntheticVoxels", "between", "choose"]

_NCSNR = (0.1, 1.0)  # range of the signal-to-noise ratio of voxels without a cohort


class SyntheticVoxels(nn.Module):
    """A distribution of voxels. It has no parameters.

    With a cohort, weights and intercept are drawn from its prior, and the variance of the noise from that of its
    voxels. Without one, weights are standard normal numbers. Such a voxel has unit variance in a single trial, and its
    signal-to-noise ratio is uniform from 0.1 to 1.

    Args:
        bank: Embeddings of real images, fp32 (N, E).
        prior: Prior of the weights and intercepts of a cohort, or None.
        noise: Variance of the noise of each voxel of the cohort (V,), or None.
        repeats: Number of trials in the average of a response; it counts without a cohort.
    """

    bank: Tensor
    mean: Tensor
    root: Tensor
    noise: Tensor

    def __init__(self, bank: Tensor, prior: WeightPrior | None, noise: Tensor | None, repeats: float = 1.0):
        super().__init__()
        self.cohort, self.repeats = prior is not None, repeats
        width = bank.shape[1] + 1
        mean, root = torch.zeros(width), torch.eye(width)
        if prior is not None:
            mean, root = (torch.from_numpy(x).float() for x in (prior.mean, prior.root))
        for name, value in {"bank": bank, "mean": mean, "root": root, "noise": noise}.items():
            self.register_buffer(name, torch.ones(1) if value is None else value, persistent=False)

    def draw(self, count: int, images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Embeddings (images, E) of different images, and responses (count, images) of new voxels to them."""
        x = self.bank[choose(len(self.bank), images, generator)]
        weights, scale = self.weights(count, generator)
        signal = x @ weights[:, :-1].T + weights[:, -1]  # (images, count)
        noise = torch.randn(signal.shape, generator=generator, device=signal.device)
        return x, (signal + noise * scale).T

    def weights(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Weights and intercepts (count, E + 1), and the standard deviations of the noise (count,)."""
        device = self.bank.device
        drawn = torch.randn(count, len(self.mean), generator=generator, device=device)
        if self.cohort:
            rows = torch.randint(len(self.noise), (count,), generator=generator, device=device)
            return self.mean + drawn @ self.root.T, self.noise[rows].sqrt()
        centre = self.bank.mean(0)
        signal = (self.bank - centre) @ drawn[:, :-1].T
        ratio = torch.empty(count, device=device).uniform_(*_NCSNR, generator=generator)
        unit = (1 + ratio**2).rsqrt()
        slopes = drawn[:, :-1] * (ratio * unit / signal.std(0, correction=0))[:, None]
        return torch.cat([slopes, -(slopes @ centre)[:, None]], 1), unit * self.repeats**-0.5


def choose(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Positions (wanted,) of different items among `count`."""
    return torch.randperm(count, generator=generator, device=generator.device)[:wanted]


def between(limits: tuple[int, int], generator: torch.Generator) -> int:
    """A number from the lowest to the highest, both included."""
    return int(torch.randint(limits[0], limits[1] + 1, (), generator=generator, device=generator.device))
