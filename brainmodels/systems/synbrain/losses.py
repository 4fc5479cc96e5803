"""Losses of SynBrain in their units: sums over what one trial holds, means over the trials of a batch.

stage 1   MSE + kl_weight * KL + contrast_weight * SoftCLIP      (the BrainVAE)
stage 2   mean squared error over all entries of the latent      (the mapper)

All are computed in fp32 whatever the autocast, in fp64 where the arguments are fp64. Paper: arXiv 2508.10298.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import BrainDataError
from ...nn import softclip, softclip_floor, squared_error
from .model import BrainVAEOutput

__all__ = ["StageOneLoss", "mapper_loss", "stage_one_loss"]


@dataclass(frozen=True)
class StageOneLoss:
    """The loss of a BrainVAE on one batch, and what it is made of; scalars.

    Attributes:
        total: mse + kl_weight * kl + contrast_weight * soft_clip; the others carry no gradient.
        mse: squared error summed over voxels, mean over trials, in squared units of the responses.
        kl: divergence of the posterior from N(0, I), summed over the latent, mean over trials, nats.
        soft_clip: contrast of sampled latents with image tokens, nats; not comparable over group sizes.
        soft_clip_floor: the same of the image tokens with themselves, the least that can be reached.
        sigma: mean standard deviation of the posterior; near 0 the VAE has become a plain autoencoder.
    """

    total: Tensor
    mse: Tensor
    kl: Tensor
    soft_clip: Tensor
    soft_clip_floor: Tensor
    sigma: Tensor


def stage_one_loss(
    output: BrainVAEOutput,
    responses: Tensor,
    tokens: Tensor,
    kl_weight: float,
    contrast_weight: float,
    temperature: float = 0.125,
    contrast_group: int | None = None,
) -> StageOneLoss:
    """The loss of a BrainVAE on one batch.

    Args:
        output: Output of the BrainVAE in training mode, whose latents are samples.
        responses: Responses (B, V) or (B, 1, V) that were encoded.
        tokens: Tokens (B, m, d) of the images that were seen.
        kl_weight, contrast_weight: Weights of the terms; `StageOneLoss` states their units.
        temperature: Temperature of SoftCLIP.
        contrast_group: Number of consecutive trials that SoftCLIP compares with each other; the last group may be
            smaller, and the loss is the mean over trials. None is the whole batch.

    Raises:
        AxisError: shapes do not match.
        BrainDataError: a group of less than two trials.
    """
    mse = squared_error(output.reconstruction, responses.squeeze(1) if responses.ndim == 3 else responses)
    kl = output.posterior.kl()
    contrast, floor = _grouped_contrast(output.latents, tokens, temperature, contrast_group)
    total = mse + kl_weight * kl + contrast_weight * contrast
    parts = (mse, kl, contrast, floor, output.posterior.std.mean())
    return StageOneLoss(total, *(part.detach() for part in parts))


def mapper_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all entries of latents (B, m, d); the target is a posterior mean and gets no gradient.

    Raises:
        AxisError: shapes differ.
    """
    return squared_error(predicted, target.detach()) / target[0].numel()


def _grouped_contrast(latents: Tensor, tokens: Tensor, temperature: float, group: int | None) -> tuple[Tensor, Tensor]:
    count = len(tokens)
    group = count if group is None else group
    if group < 2 and count > 1:
        raise BrainDataError(f"expected contrast_group of at least 2 trials, got {group}")
    pairs = list(zip(latents.split(group), tokens.split(group), strict=True))
    loss: Any = sum(softclip(z, x, temperature) * (len(x) / count) for z, x in pairs)
    with torch.no_grad():
        floor: Any = sum(softclip_floor(x, temperature) * (len(x) / count) for _, x in pairs)
    return loss, floor
