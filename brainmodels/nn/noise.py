"""Variation between predicted trials: noise in a latent, or noise fitted to the differences of measured trials.

    residual = ResidualNoise.fit(train_responses, train_ids)
    trials = draw_responses(decode, latents, num_trials=3, noise="residual", residual=residual)  # (n, 3, V)

Noise in the latent differs from the noise of trials. It changes responses far less than repeats differ, and without
their pattern over voxels. Choose "residual" if the variance of trials must be right.

Shapes: n images, m tokens, d token width, V voxels, r rank.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AxisError, BrainDataError, near_names, need
from ..features.arrays import Ids
from .gaussian import Posterior

__all__ = ["NOISES", "ResidualNoise", "draw_responses", "mean_sigma"]

NOISES = ("none", "unit", "posterior", "residual")


@torch.no_grad()
def mean_sigma(posteriors: Iterable[Posterior]) -> Tensor:
    """Mean standard deviation of the posteriors of training trials: the scale of "posterior" noise.

    Args:
        posteriors: Posteriors of batches of any size. Every trial counts the same.

    Returns:
        (m, d) fp32.

    Raises:
        AxisError: There is no trial.
    """
    total: Any = 0.0
    count = 0
    for posterior in posteriors:
        total = total + posterior.std.double().sum(0).cpu()
        count += len(posterior.mean)
    if not count:
        raise AxisError("expected responses of at least one trial, got none")
    return (total / count).float()


@dataclass(frozen=True)
class ResidualNoise:
    """Gaussian model of the variation between trials: covariance = factors.T @ factors + diag(spread^2).

    Attributes:
        factors: (r, V) Patterns that voxels share, fp32.
        spread: (V,) Standard deviation of the rest, which each voxel has alone, fp32.
        around: "repeats" if it was fitted around the mean response to an image. "predictions" if no image was repeated.
            The model's errors are then part of the noise, which a report must say.
    """

    factors: Tensor
    spread: Tensor
    around: str

    @classmethod
    def fit(
        cls,
        responses: np.ndarray,
        image_ids: Ids,
        predictions: np.ndarray | None = None,
        rank: int = 10,
        seed: int = 0,
    ) -> "ResidualNoise":
        """Estimate the noise from training trials.

        Residuals of an image with k > 1 trials are taken around their mean and scaled by sqrt(k / (k - 1)). That makes
        their variance unbiased. Images with one trial count only if there are no others. The factors are those of
        probabilistic PCA (Tipping and Bishop 1999, eq. 7 and 8) on voxels scaled to variance 1. The variance of each
        voxel is kept exactly.

        Args:
            responses: (n, V) Responses in the units of the predictions.
            image_ids: (n,) Ids of the images.
            predictions: (n, V) Predictions without noise. Used if no image is repeated.
            rank: Number r of factors.
            seed: Seed of the randomised decomposition.

        Raises:
            AxisError: Shapes do not match, or `rank` is not below the number of residuals and of voxels.
            BrainDataError: Neither repeats nor predictions.
            ImportError: scikit-learn is not installed.
        """
        try:
            from sklearn.utils.extmath import randomized_svd
        except ImportError as error:
            raise need("scikit-learn", "noise fitted to residuals") from error
        residuals, around = _residuals(responses, image_ids, predictions)
        count, voxels = residuals.shape
        if not 0 < rank < min(count, voxels):
            raise AxisError(f"expected rank of 1 to below {min(count, voxels)} ({count} residuals), got {rank}")
        deviation = np.sqrt(np.square(residuals).mean(0, dtype=np.float64))  # (V,)
        residuals /= np.where(deviation > 0, deviation, 1).astype(np.float32)
        _, singular, patterns = randomized_svd(residuals, rank, random_state=seed)  # (r,), (r, V)
        eigenvalues = singular.astype(np.float64) ** 2 / count
        floor = (np.count_nonzero(deviation) - eigenvalues.sum()) / (voxels - rank)
        factors = np.sqrt(np.maximum(eigenvalues - floor, 0))[:, None] * patterns * deviation
        spread = np.sqrt(np.maximum(deviation**2 - np.square(factors).sum(0), 0))
        return cls(torch.tensor(factors, dtype=torch.float32), torch.tensor(spread, dtype=torch.float32), around)

    def sample(self, predicted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw of the noise, to be added to predicted responses.

        Args:
            predicted: (n, V) Predicted responses.
            generator: Random generator of the noise, on any device.

        Returns:
            (n, V).

        Raises:
            AxisError: Another number of voxels.
        """
        if predicted.ndim != 2 or predicted.shape[1] != len(self.spread):
            expected = f"(n, {len(self.spread)}), the voxels of the fitted noise"
            raise AxisError(f"expected predicted responses {expected}, got {tuple(predicted.shape)}")
        shared = _normal(predicted.new_empty(len(predicted), len(self.factors)), generator)  # (n, r)
        own = _normal(predicted, generator)  # (n, V)
        return shared @ self.factors.to(predicted) + own * self.spread.to(predicted)


@torch.no_grad()
def draw_responses(
    decode: Callable[[Tensor], Tensor],
    latents: Tensor,
    num_trials: int = 1,
    noise: str = "none",
    noise_scale: float = 1.0,
    sigma: Tensor | None = None,
    residual: ResidualNoise | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noisy responses for latents. All draws are returned, never their mean.

    | noise | adds |
    |---|---|
    | "none" | nothing |
    | "unit" | N(0, I) to the latent; sensible only if sigma is near 1 |
    | "posterior" | sigma * N(0, I) to the latent |
    | "residual" | a draw of `residual` to the responses |

    Args:
        decode: Function from latents (n, m, d) to responses (n, V).
        latents: (n, m, d) Latents.
        num_trials: Number of draws for each image. The first draws stay the same if you ask for more.
        noise: Kind of the noise, one of the above.
        noise_scale: Factor of the noise.
        sigma: (m, d) Result of `mean_sigma`.
        residual: Result of `ResidualNoise.fit`.
        generator: Random generator of all noise, on any device.

    Returns:
        (n, num_trials, V).

    Raises:
        BrainDataError: Several trials without noise, an unknown noise, or one whose scale is missing.
        AxisError: Shapes do not match.
    """
    if noise not in NOISES:
        raise BrainDataError(f"expected noise of {', '.join(NOISES)}, got {noise!r}{near_names(noise, NOISES)}")
    if num_trials < 1 or (num_trials > 1 and noise == "none"):
        allowed = "exactly one trial without noise" if noise == "none" else "at least one trial"
        raise BrainDataError(f"expected {allowed}, got num_trials={num_trials} and noise={noise!r}")
    for wanted, name, value in (("posterior", "sigma", sigma), ("residual", "residual", residual)):
        if noise == wanted and value is None:
            raise BrainDataError(f"expected {name}, fitted to training trials, for noise={noise!r}, got None")
    if noise in ("unit", "posterior"):
        spread = torch.ones_like(latents[0]) if noise == "unit" or sigma is None else sigma.to(latents)  # (m, d)
        if spread.shape != latents.shape[1:]:
            raise AxisError(f"expected sigma {tuple(latents.shape[1:])}, got {tuple(spread.shape)}")
        drawn = (latents + noise_scale * spread * _normal(latents, generator) for _ in range(num_trials))
        return torch.stack([decode(draw) for draw in drawn], 1)  # (n, num_trials, V)
    predicted = decode(latents)  # (n, V)
    if noise == "none" or residual is None:
        return predicted.unsqueeze(1)  # (n, 1, V)
    draws = [residual.sample(predicted, generator) for _ in range(num_trials)]
    return torch.stack([predicted + noise_scale * draw for draw in draws], 1)  # (n, num_trials, V)


def _residuals(responses: np.ndarray, image_ids: Ids, predictions: np.ndarray | None) -> tuple[np.ndarray, str]:
    """Responses (n, V) minus their image's part, (n', V), and the name of what was subtracted."""
    responses = np.asarray(responses, np.float32)
    if responses.ndim != 2 or len(responses) != len(image_ids):
        raise AxisError(f"expected responses ({len(image_ids)}, V), a row for each id, got {tuple(responses.shape)}")
    _, image, counts = np.unique(np.asarray(image_ids, str), return_inverse=True, return_counts=True)
    trials = counts[image]  # (n,) number of trials of each row's image
    if (trials > 1).any():
        sums = np.zeros((len(counts), responses.shape[1]))
        np.add.at(sums, image, responses)
        means = (sums / counts[:, None]).astype(np.float32)
        scale = np.sqrt(trials / np.maximum(trials - 1, 1)).astype(np.float32)
        return ((responses - means[image]) * scale[:, None])[trials > 1], "repeats"
    if predictions is None:
        raise BrainDataError("expected images with repeats, or predictions to take residuals around, got neither")
    if predictions.shape != responses.shape:
        raise AxisError(f"expected predictions {responses.shape}, as the responses, got {predictions.shape}")
    return responses - predictions, "predictions"


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, I) like a tensor, drawn on the generator's device, so that one seed gives the same noise everywhere."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
