"""Variation in predicted responses: noise in a latent, and noise fitted to how measured trials differ.

Noise in the latent is not trial noise: it moves responses far less than repeats differ, and without their pattern over
voxels. Where the variance of trials must be right take "residual".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import AxisError, BrainDataError, near_names, need
from .gaussian import Posterior

__all__ = ["NOISES", "ResidualNoise", "draw_responses", "mean_sigma"]

NOISES = ("none", "unit", "posterior", "residual")


@torch.no_grad()
def mean_sigma(posteriors: Iterable[Posterior]) -> Tensor:
    """Mean standard deviation of the posteriors of training trials, (m, d) fp32: the scale of "posterior" noise.

    Args:
        posteriors: of batches of any size; every trial counts the same.

    Raises:
        AxisError: there is no trial.
    """
    total, count = 0.0, 0
    for posterior in posteriors:
        total = total + posterior.std.double().sum(0).cpu()
        count += len(posterior.mean)
    if not count:
        raise AxisError("expected responses of at least one trial, got none")
    return (total / count).float()


@dataclass(frozen=True)
class ResidualNoise:
    """The variation of responses between trials as a Gaussian: covariance = factors.T @ factors + diag(spread^2).

    Attributes:
        factors: (r, V) fp32, patterns that voxels share.
        spread: (V,) fp32, standard deviation of what is left to each voxel alone.
        around: "repeats" where it was fitted around the mean response to an image; "predictions" where no image was
            repeated, so that the errors of the model are part of it, which a report must say.
    """

    factors: Tensor
    spread: Tensor
    around: str

    @classmethod
    def fit(
        cls,
        responses: np.ndarray,
        image_ids: Sequence[str],
        predictions: np.ndarray | None = None,
        rank: int = 10,
        seed: int = 0,
    ) -> "ResidualNoise":
        """Estimate it on training trials.

        Residuals of an image with k > 1 trials are taken around their mean and scaled by sqrt(k / (k - 1)), which makes
        their variance unbiased; images with one trial do not count, unless there are no others. The factors are those
        of probabilistic PCA (Tipping and Bishop 1999, eq. 7 and 8) on voxels scaled to variance 1; the variance of each
        voxel is kept exactly.

        Args:
            responses: (n, V), in the units of the predictions.
            image_ids: (n,).
            predictions: (n, V) without noise; used where no image is repeated.
            rank: r.
            seed: of the randomised decomposition.

        Raises:
            AxisError: shapes do not match, or `rank` is not below the number of residuals and of voxels.
            BrainDataError: neither repeats nor predictions.
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
        _, singular, patterns = randomized_svd(residuals, rank, random_state=seed)
        eigenvalues = singular.astype(np.float64) ** 2 / count
        floor = (np.count_nonzero(deviation) - eigenvalues.sum()) / (voxels - rank)
        factors = np.sqrt(np.maximum(eigenvalues - floor, 0))[:, None] * patterns * deviation
        spread = np.sqrt(np.maximum(deviation**2 - np.square(factors).sum(0), 0))
        return cls(torch.tensor(factors, dtype=torch.float32), torch.tensor(spread, dtype=torch.float32), around)

    def sample(self, predicted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw (n, V) for predicted responses (n, V), to be added to them."""
        if predicted.ndim != 2 or predicted.shape[1] != len(self.spread):
            expected = f"(n, {len(self.spread)}), the voxels of the fitted noise"
            raise AxisError(f"expected predicted responses {expected}, got {tuple(predicted.shape)}")
        shared = _normal(predicted.new_empty(len(predicted), len(self.factors)), generator)
        own = _normal(predicted, generator)
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
    """Responses of latents, with noise: the whole stack of draws, never their mean.

    Args:
        decode: latents (n, m, d) to responses (n, V).
        latents: (n, m, d).
        num_trials: draws of each image. The first draws do not change when more are asked for.
        noise: "none"; "unit" adds N(0, I) to the latent and "posterior" sigma * N(0, I); "residual" adds a draw of
            `residual` to the responses. Unit noise makes sense only where sigma is near 1.
        noise_scale: factor of the noise.
        sigma: (m, d), of `mean_sigma`.
        residual: of `ResidualNoise.fit`.
        generator: of all noise, on any device.

    Returns:
        (n, num_trials, V).

    Raises:
        BrainDataError: several trials without noise, an unknown noise, or one whose scale is missing.
        AxisError: shapes do not match.
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
        spread = torch.ones_like(latents[0]) if noise == "unit" else sigma.to(latents)
        if spread.shape != latents.shape[1:]:
            raise AxisError(f"expected sigma {tuple(latents.shape[1:])}, got {tuple(spread.shape)}")
        drawn = (latents + noise_scale * spread * _normal(latents, generator) for _ in range(num_trials))
        return torch.stack([decode(draw) for draw in drawn], 1)
    predicted = decode(latents)
    if noise == "none":
        return predicted.unsqueeze(1)
    draws = [residual.sample(predicted, generator) for _ in range(num_trials)]
    return torch.stack([predicted + noise_scale * draw for draw in draws], 1)


def _residuals(
    responses: np.ndarray, image_ids: Sequence[str], predictions: np.ndarray | None
) -> tuple[np.ndarray, str]:
    """What is left of responses (n, V) without their image, (n', V), and what was taken for it."""
    responses = np.asarray(responses, np.float32)
    if responses.ndim != 2 or len(responses) != len(image_ids):
        raise AxisError(f"expected responses ({len(image_ids)}, V), a row for each id, got {tuple(responses.shape)}")
    _, image, counts = np.unique(np.asarray(image_ids, str), return_inverse=True, return_counts=True)
    trials = counts[image]  # (n,) of the image of each row
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
    """N(0, I) of the shape, dtype and device of a tensor, drawn where the generator is: one seed, the same noise."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
