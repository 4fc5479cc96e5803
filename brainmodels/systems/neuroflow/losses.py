"""Losses of NeuroFlow in their units: sums over what one trial holds, means over the trials of a batch.

    stage 1   MSE + kl_weight * KL + contrast_weight * SoftCLIP + cycle_weight * cycle      (the NeuroVAE)
    stage 2   mean squared error of the flow's velocity over all numbers                    (the flow)

All are computed in fp32 at least, whatever the autocast.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import BrainDataError, check_choice
from ...nn.flow import flow_matching_loss
from ...nn.gaussian import Posterior
from ...nn.losses import TEMPERATURE, softclip, softclip_floor, squared_error
from .model import XFM, Encoding, NeuroVAE
from .recipes import NeuroFlowRecipe

__all__ = ["LossWeights", "StageOneLoss", "stage_one_loss", "stage_two_loss"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms beside the squared error, and the temperature of the contrasts; the paper's by default."""

    kl: float = 0.001
    contrast: float = 1000.0
    cycle: float = 1000.0
    temperature: float = TEMPERATURE

    @classmethod
    def of(cls, recipe: NeuroFlowRecipe, total_variance: float) -> "LossWeights":
        """The weights of a recipe; a weight of None is its share times the total variance.

        Args:
            recipe: The recipe.
            total_variance: Variance of the training responses in model units, summed over voxels; V where z-scored.

        Raises:
            BrainDataError: The variance is not positive and finite.
        """
        if not 0 < total_variance < float("inf"):
            raise BrainDataError(f"expected a positive, finite total variance of the responses, got {total_variance}")
        cycle = recipe.cycle_share * total_variance if recipe.cycle_weight is None else recipe.cycle_weight
        return cls(recipe.kl_weight, recipe.contrast_weight_for(total_variance), cycle, recipe.temperature)


@dataclass(frozen=True)
class StageOneLoss:
    """The loss of a NeuroVAE on one batch and its parts, scalars; `total` alone is to be differentiated.

    Attributes:
        total: mse + kl weight * kl + contrast weight * contrast + cycle weight * cycle.
        mse: squared error summed over voxels, mean over trials.
        kl: divergence from N(0, I) summed over the latent, mean over trials, nats.
        contrast: SoftCLIP of a posterior sample with the image tokens, nats; with a retrieval head, plus that of its
            output.
        cycle: the same of what the encoder makes of the reconstruction, with the posterior's mean.
        floor: the least that `contrast` and `cycle` can be on this batch; subtract it before looking at them.
        sigma: mean standard deviation of the posterior; near 0 the VAE has become a plain autoencoder.
    """

    total: Tensor
    mse: Tensor
    kl: Tensor
    contrast: Tensor
    cycle: Tensor
    floor: Tensor
    sigma: Tensor


def stage_one_loss(
    vae: NeuroVAE,
    responses: Tensor,
    tokens: Tensor,
    weights: LossWeights,
    subject: str | None = None,
    generator: torch.Generator | None = None,
) -> StageOneLoss:
    """The loss of one batch of one subject: reconstruction, divergence, contrast and cycle.

    The cycle encodes the reconstruction with the same encoder and contrasts the result with the image tokens. It is no
    error of voxels or latents, and its gradient reaches decoder and encoder.

    Args:
        vae: The model.
        responses: Responses (B, V) in model units.
        tokens: Tokens (B, m, d) of the images of these trials, in model units.
        weights: Weights of the terms; a cycle weight of 0 leaves the cycle out, which is then 0.
        subject: The subject; None where the model has one.
        generator: Generator of the posterior sample, on the device of `responses`.
    """
    encoding = vae.encode(responses, subject)
    sample = encoding.posterior.sample(generator)
    reconstruction = vae.decode(sample, subject)
    mse, kl = squared_error(reconstruction, responses), encoding.posterior.kl()
    contrast = _contrast(sample, encoding, tokens, weights.temperature)
    if weights.cycle:
        again = vae.encode(reconstruction, subject)
        cycle = _contrast(again.posterior.mean, again, tokens, weights.temperature)
    else:
        cycle = torch.zeros_like(contrast)
    total = mse + weights.kl * kl + weights.contrast * contrast + weights.cycle * cycle
    with torch.no_grad():
        terms = 1 if encoding.retrieval is None else 2
        floor = terms * softclip_floor(tokens, weights.temperature)
        sigma = encoding.posterior.std.float().mean()
    return StageOneLoss(total, mse, kl, contrast, cycle, floor, sigma)


def _contrast(latents: Tensor, encoding: Encoding, tokens: Tensor, temperature: float) -> Tensor:
    loss = softclip(latents, tokens, temperature)
    return loss if encoding.retrieval is None else loss + softclip(encoding.retrieval, tokens, temperature)


def stage_two_loss(
    flow: XFM,
    tokens: Tensor,
    posterior: Posterior,
    target: str = "sample",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Flow-matching loss from image tokens to latents of the frozen NeuroVAE, a scalar.

    Args:
        flow: The network.
        tokens: Image tokens (B, m, d) in model units, at time 0.
        posterior: Posterior of the responses to these images; no gradient reaches it.
        target: Where the flow ends at time 1: a new "sample" of the posterior each time, or its "mean".
        generator: Generator of the sample and the times, on the device of `tokens`.
    """
    check_choice("target", target, ("sample", "mean"))
    latents = posterior.mean if target == "mean" else posterior.sample(generator)
    return flow_matching_loss(flow, flow.path, tokens, latents.detach(), generator)
