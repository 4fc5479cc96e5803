"""Losses that more than one system uses. Each says what it sums and what it averages: their weights depend on it."""

import torch
from torch import Tensor

from ..errors import AxisError

__all__ = ["TEMPERATURE", "softclip", "softclip_floor", "squared_error"]

TEMPERATURE = 0.125  # of SoftCLIP in SynBrain and NeuroFlow


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error summed over all but the first axis, mean over the batch; at least fp32.

    Raises:
        AxisError: the shapes differ.
    """
    if predicted.shape != target.shape:
        raise AxisError(f"expected a prediction {tuple(target.shape)}, as the target, got {tuple(predicted.shape)}")
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    return (predicted.to(dtype) - target.to(dtype)).square().flatten(1).sum(1).mean()


def softclip(brain: Tensor, image: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Contrast of brain with image tokens whose targets are soft: images that look alike are not pushed apart.

    With cosines c of flattened tokens, the target of row i is p_i = softmax_j c(image_i, image_j) / T, and the loss is
    the mean of the cross-entropies of p_i with softmax_j c(brain_i, image_j) / T and with softmax_j c(image_i, brain_j)
    / T, over rows. Its least value is the entropy of the targets, not zero, and grows with the batch: subtract
    `softclip_floor` before comparing, and never compare over batch sizes.

    Args:
        brain: (B, m, d) or (B, n).
        image: the same shape; no gradient reaches the targets.
        temperature: T.

    Returns:
        A scalar, computed in fp32 at least, also under autocast.

    Raises:
        AxisError: the shapes differ.
    """
    if brain.shape != image.shape:
        raise AxisError(f"expected brain tokens {tuple(image.shape)}, as the image tokens, got {tuple(brain.shape)}")
    with torch.autocast(brain.device.type, enabled=False):
        brain, image = _unit_rows(brain), _unit_rows(image)
        logits = brain @ image.T / temperature  # (B, B), rows are brains
        targets = (image.detach() @ image.detach().T / temperature).softmax(-1)
        rows = [-(targets * x.log_softmax(-1)).sum(-1) for x in (logits, logits.T)]
        return (rows[0] + rows[1]).mean() / 2


def softclip_floor(image: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The SoftCLIP loss of the image tokens against themselves, (B, m, d) or (B, n): the least it can be."""
    return softclip(image.detach(), image.detach(), temperature)


def _unit_rows(tokens: Tensor) -> Tensor:
    rows = tokens.flatten(1).to(torch.promote_types(tokens.dtype, torch.float32))
    return torch.nn.functional.normalize(rows, dim=-1)
