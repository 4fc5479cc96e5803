"""Losses of MindAligner: reconstruction, divergence over voxels, similarity of latents, and the frozen decoder.

    rec     mean squared error of the predicted responses, over voxels and trials
    kl      divergence of two softmaxes over voxels, mean over trials, nats
    latent  mean squared difference of two (B, B) tables of 1 - cosine: of images, and of embedded latents
    dec     loss of the known subject's frozen decoder on the aligned responses, without the mapper

All are computed in fp32 at least, whatever the autocast. Paper: MindAligner, arXiv 2502.05034.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...errors import AxisError, BrainDataError, check_choice
from .model import CrossStimulusMapper, FunctionalEmbedder, LowRankMap
from .pairing import stimulus_difference
from .recipes import KL_DIRECTIONS, MindAlignerRecipe

__all__ = ["AlignmentLoss", "LossWeights", "alignment_loss", "latent_loss", "reconstruction_loss", "voxel_divergence"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms beside the reconstruction, and how the divergence is measured.

    Attributes:
        kl, latent, dec: Weights; a term of weight 0 is not computed and is 0.
        temperature, direction: Arguments of `voxel_divergence`.
    """

    kl: float = 0.1
    latent: float = 1e-3
    dec: float = 0.1
    temperature: float = 1.0
    direction: str = "predicted"

    @classmethod
    def of(cls, recipe: MindAlignerRecipe) -> "LossWeights":
        """The weights of a recipe."""
        weights = recipe.kl_weight, recipe.latent_weight, recipe.dec_weight
        return cls(*weights, recipe.kl_temperature, recipe.kl_direction)


class AlignmentLoss(NamedTuple):
    """The loss of one batch and its parts, scalars; `total` alone is to be differentiated.

    Attributes:
        total: rec + kl weight * kl + latent weight * latent + dec weight * dec.
        rec, kl, latent, dec: The parts, without their weights.
    """

    total: Tensor
    rec: Tensor
    kl: Tensor
    latent: Tensor
    dec: Tensor


def alignment_loss(
    mapping: LowRankMap,
    mapper: CrossStimulusMapper,
    embedder: FunctionalEmbedder,
    *,
    new: Tensor,
    known: Tensor,
    new_image: Tensor,
    known_image: Tensor,
    weights: LossWeights,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> AlignmentLoss:
    """The loss of a batch of pairs of different images: i, which the new subject saw, and j, which the known one saw.

    Args:
        mapping, mapper, embedder: The networks that are trained.
        new: Responses (B, n) of the new subject to the images i.
        known: Responses (B, k) of the known subject to the images j.
        new_image, known_image: Embeddings (B, E) of the images i and j.
        weights: Weights of the terms.
        decode: Loss of the frozen decoder as a function of aligned responses (B, k) to the images i. None leaves the
            term out.

    Raises:
        AxisError: Shapes do not match.
        BrainDataError: There are fewer than 4 pairs, too few to compare with each other.
    """
    if len(new) < 4:
        raise BrainDataError(f"expected batches of at least 4 pairs, got {len(new)}")
    z_new = mapping.project(new)  # (B, h)
    z_known = mapper(z_new, stimulus_difference(known_image, new_image))
    predicted = mapping.read(z_known)  # (B, k)
    rec = reconstruction_loss(predicted, known)
    nothing = torch.zeros_like(rec)
    kl = voxel_divergence(predicted, known, weights.temperature, weights.direction) if weights.kl else nothing
    latent = nothing
    if weights.latent:
        latent = latent_loss(known_image, new_image, embedder(z_known), embedder(z_new))
    dec = decode(mapping.read(z_new)) if decode is not None and weights.dec else nothing
    total = rec + weights.kl * kl + weights.latent * latent + weights.dec * dec
    return AlignmentLoss(total, *(part.detach() for part in (rec, kl, latent, dec)))


def reconstruction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all numbers of predicted and measured responses (B, k), a scalar.

    Raises:
        AxisError: The shapes differ.
    """
    predicted, target = _wide(predicted, target)
    return (predicted - target).square().mean()


def voxel_divergence(
    predicted: Tensor, target: Tensor, temperature: float = 1.0, direction: str = "predicted"
) -> Tensor:
    """Divergence between softmaxes over the voxels of predicted and measured responses, mean over trials, nats.

        p_hat = softmax(predicted / T),  p = softmax(target / T)
        "predicted": sum_v p_hat (log p_hat - log p),    "measured": sum_v p (log p - log p_hat)

    Args:
        predicted, target: Responses (B, k).
        temperature: Temperature T.
        direction: Which of the two weighs the voxels: "predicted", as in the released code, or "measured".

    Returns:
        A scalar.

    Raises:
        AxisError: The shapes differ.
    """
    check_choice("direction", direction, KL_DIRECTIONS)
    with torch.autocast(predicted.device.type, enabled=False):
        logs = [(x / temperature).log_softmax(-1) for x in _wide(predicted, target)]
        first, second = logs if direction == "predicted" else reversed(logs)
        return (first.exp() * (first - second)).sum(-1).mean()


def latent_loss(known_image: Tensor, new_image: Tensor, known_latent: Tensor, new_latent: Tensor) -> Tensor:
    """Mean squared difference of two (B, B) tables of 1 - cosine, so that latents are as similar as their images.

    Row a of both tables belongs to the known subject's image j of pair a, column b to the new subject's i of pair b.

    Args:
        known_image, new_image: Embeddings (B, E) of the images j and i.
        known_latent, new_latent: Embedded latents (B, h): z_K, which is for image j, and z_N, which is for i.

    Returns:
        A scalar; no gradient reaches the images.

    Raises:
        AxisError: The shapes differ.
    """
    with torch.autocast(known_latent.device.type, enabled=False):
        images = _distances(known_image, new_image).detach()
        return (_distances(known_latent, new_latent) - images).square().mean()


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    rows, columns = (normalize(x, dim=-1) for x in _wide(rows, columns))
    return 1 - rows @ columns.T  # (B, B)


def _wide(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape in fp32 at least."""
    if first.shape != second.shape:
        raise AxisError(f"expected two tensors of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    dtype = torch.promote_types(first.dtype, torch.float32)
    return first.to(dtype), second.to(dtype)
