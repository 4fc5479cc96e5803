"""The posterior of a variational autoencoder, and its divergence from the prior.

posterior = Posterior.of(mean, logvar)         # each (B, m, d)
latent, penalty = posterior.sample(), posterior.kl()
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LOGVAR_LIMITS", "Posterior"]

LOGVAR_LIMITS = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """Independent Gaussians, one for each number of a latent.

    Attributes:
        mean: (B, m, d) Means.
        logvar: (B, m, d) Log variances, already within `LOGVAR_LIMITS`.
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, mean: Tensor, logvar: Tensor) -> "Posterior":
        """Posterior from the outputs of a network. The log variance is clamped to `LOGVAR_LIMITS`.

        Args:
            mean: (B, m, d) Means.
            logvar: (B, m, d) Log variances.
        """
        return cls(mean, logvar.clamp(*LOGVAR_LIMITS))

    @property
    def std(self) -> Tensor:
        """Standard deviations, (B, m, d)."""
        return (0.5 * self.logvar).exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw from the Gaussians: mean + std * noise, differentiable in both.

        Args:
            generator: Random generator of the noise, on the device of the means.

        Returns:
            (B, m, d).
        """
        noise = torch.randn(self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence of the posterior from N(0, I), computed in fp32 at least.

            1/2 sum (mean^2 + exp(logvar) - 1 - logvar)

        Returns:
            A scalar: the sum over the m * d numbers, averaged over the batch.
        """
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        mean, logvar = self.mean.to(dtype), self.logvar.to(dtype)
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()
