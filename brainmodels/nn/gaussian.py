"""The posterior of a variational autoencoder, and its distance to the prior."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LOGVAR_LIMITS", "Posterior"]

LOGVAR_LIMITS = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """Independent Gaussians, one for each number of a latent.

    Attributes:
        mean: (B, m, d).
        logvar: log of the variance, same shape, already within `LOGVAR_LIMITS`.
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, mean: Tensor, logvar: Tensor) -> "Posterior":
        """From what a network returned; the log variance is clamped to `LOGVAR_LIMITS`."""
        return cls(mean, logvar.clamp(*LOGVAR_LIMITS))

    @property
    def std(self) -> Tensor:
        """Standard deviations, (B, m, d)."""
        return (0.5 * self.logvar).exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * noise, one draw, (B, m, d), differentiable in both."""
        noise = torch.randn(self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence to N(0, I), summed over the m * d numbers, mean over the batch; at least fp32."""
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        mean, logvar = self.mean.to(dtype), self.logvar.to(dtype)
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()
