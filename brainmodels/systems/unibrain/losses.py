"""Losses of the generator's stages. Each returns its terms as means over the samples of a batch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .model import CaptionVAE, FourFlow, TextTower

__all__ = ["caption_loss", "contrast_loss", "kl_divergence", "noise_loss"]


def kl_divergence(mean: Tensor, logvar: Tensor, free_bits: float = 0.0) -> Tensor:
    """KL of N(mean, exp(logvar)) from N(0, 1), summed over dimensions: (n,), in nats.

    Args:
        mean, logvar: (n, d) Parameters of the posterior.
        free_bits: Least KL that a dimension counts with, so that none is pushed to carry less.
    """
    return (0.5 * (mean.square() + logvar.exp() - 1 - logvar)).clamp_min(free_bits).sum(-1)


def caption_loss(vae: CaptionVAE, ids: Tensor, noise: Tensor, kl_weight: float, free_bits: float) -> dict[str, Tensor]:
    """Cross-entropy of the words of each caption plus kl_weight times its KL.

    Args:
        vae: The autoencoder.
        ids: (n, t) Captions as rows of `Vocabulary.encode`.
        noise: (n, latent) Standard normal draws.
        kl_weight: Weight of the KL. .05 makes the latent collapse, .003 does not (captions of drawn scenes).
        free_bits: As in `kl_divergence`.

    Returns:
        "loss"; "words", the cross-entropy summed over the words of a caption, in nats; "kl".
    """
    mean, logvar = vae.encode(ids)
    logits = vae(mean + (0.5 * logvar).exp() * noise, ids[:, :-1])
    words = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0, reduction="sum") / len(ids)
    kl = kl_divergence(mean, logvar, free_bits).mean()
    return {"loss": words + kl_weight * kl, "words": words, "kl": kl}


def contrast_loss(tower: TextTower, ids: Tensor, swapped: Tensor, features: Tensor) -> dict[str, Tensor]:
    """Symmetric InfoNCE of captions and images, with captions of one wrong word among the wrong texts of each image.

    Args:
        tower: The text tower.
        ids: (n, t) Captions.
        swapped: (n, k, t) The caption of each image with one word replaced; k may be 0.
        features: (n, image_width) Image features.

    Returns:
        "loss"; "top1", the share of images whose caption scores above all other texts.
    """
    images, count = tower.images(features), swapped.shape[1]
    texts = tower(ids)[1]
    scale = tower.log_scale.clamp(max=4.6).exp()
    logits = scale * images @ texts.T  # (n, n)
    wide = logits
    if count:
        wrong = tower(swapped.flatten(0, 1))[1].unflatten(0, (-1, count))  # (n, k, d)
        wide = torch.cat([logits, scale * (images[:, None] * wrong).sum(-1)], 1)
    target = torch.arange(len(ids), device=ids.device)
    loss = 0.5 * (F.cross_entropy(wide, target) + F.cross_entropy(logits.T, target))
    return {"loss": loss, "top1": wide.argmax(1).eq(target).float().mean()}


def noise_loss(
    flow: FourFlow,
    kind: str,
    z: Tensor,
    noise: Tensor,
    time: Tensor,
    kept: Tensor,
    contexts: tuple[Tensor, Tensor],
    image_weight: float,
) -> Tensor:
    """Mean squared error of the predicted noise, a scalar.

        z_t = sqrt(kept) z + sqrt(1 - kept) noise

    Args:
        flow: The denoiser.
        kind: "image" or "text".
        z: (n, m, width) Clean latents.
        noise: Standard normal draws, shaped as z.
        time: (n,) Times of the schedule.
        kept: (n,) Share of the signal's variance that is left at these times.
        contexts: Image and text context.
        image_weight: Weight of the image context.
    """
    share = kept[:, None, None]
    noisy = share.sqrt() * z + (1 - share).sqrt() * noise
    return F.mse_loss(flow(kind, noisy, time, *contexts, image_weight), noise)
