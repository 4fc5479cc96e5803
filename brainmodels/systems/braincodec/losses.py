"""The loss of stage 2: cosine and contrast between decoded and true embeddings."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...nn.losses import info_nce

__all__ = ["decoding_loss"]


def decoding_loss(
    decoded: Tensor, target: Tensor, images: Tensor, weight: float, temperature: float
) -> dict[str, Tensor]:
    """1 - cos(decoded, target) + weight * InfoNCE, means over the images of a batch (arXiv 2604.08537).

    Args:
        decoded: (B, E) Decoded embeddings, of any length.
        target: (B, E) True embeddings.
        images: (B,) Number of each image. Rows of one image are no negatives of each other.
        weight, temperature: Weight and temperature of the contrast.

    Returns:
        "loss", "cosine" and "contrast".
    """
    with torch.autocast(decoded.device.type, enabled=False):
        cosine = F.cosine_similarity(decoded.float(), target.float()).mean()
    contrast = info_nce(decoded, target, temperature, images)
    return {"loss": 1 - cosine + weight * contrast, "cosine": cosine, "contrast": contrast}
