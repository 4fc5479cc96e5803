"""Losses that several systems use. Each states what it sums and what it averages, because its weight depends on that.

loss = squared_error(predicted, target) + weight * softclip(brain_tokens, image_tokens)
"""

import torch
from torch import Tensor

from ..errors import AxisError

__all__ = ["TEMPERATURE", "info_nce", "softclip", "softclip_floor", "squared_error"]

TEMPERATURE = 0.125  # SoftCLIP temperature of SynBrain and NeuroFlow


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over all axes but the first and averaged over the batch, in fp32 at least.

    Args:
        predicted, target: (B, ...) Tensors of one shape.

    Returns:
        A scalar.

    Raises:
        AxisError: The shapes differ.
    """
    if predicted.shape != target.shape:
        raise AxisError(f"expected a prediction {tuple(target.shape)}, as the target, got {tuple(predicted.shape)}")
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    return (predicted.to(dtype) - target.to(dtype)).square().flatten(1).sum(1).mean()


def softclip(brain: Tensor, image: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Contrastive loss of brain and image tokens with soft targets, so that similar images are not pushed apart.

        p_i = softmax_j c(image_i, image_j) / T
        loss = mean_i of 1/2 CE(p_i, softmax_j c(brain_i, image_j) / T) + 1/2 CE(p_i, softmax_j c(image_i, brain_j) / T)

    Here c is the cosine of flattened tokens and CE the cross-entropy. The smallest possible loss is the entropy of the
    targets. It is above zero and grows with the batch, so subtract `softclip_floor` before you compare losses, and
    never compare different batch sizes.

    Args:
        brain: (B, m, d) or (B, n) Brain tokens.
        image: Image tokens of the same shape. No gradient reaches the targets.
        temperature: Temperature T.

    Returns:
        A scalar, computed in fp32 at least, also under autocast.

    Raises:
        AxisError: The shapes differ.
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
    """Smallest possible `softclip`: the loss of the image tokens against themselves.

    Args:
        image: (B, m, d) or (B, n) Image tokens.
        temperature: Temperature T.

    Returns:
        A scalar.
    """
    return softclip(image.detach(), image.detach(), temperature)


def info_nce(a: Tensor, b: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """Contrastive loss of pairs, in which every other row of the batch is a negative (van den Oord et al., 2018).

        loss = mean_i of 1/2 CE(i, softmax_j c(a_i, b_j) / T) + 1/2 CE(i, softmax_j c(b_i, a_j) / T)

    Here c is the cosine and CE the cross-entropy. A batch that shows an image twice would push its own pair apart, so
    rows with equal labels are no negatives of each other.

    Args:
        a, b: (B, ...) Tensors of one shape, whose rows are pairs. They are flattened and scaled to length 1.
        temperature: Temperature T.
        same: (B,) Labels, such as numbers of images. None means that all rows differ.

    Returns:
        A scalar, computed in fp32 at least, also under autocast.

    Raises:
        AxisError: The shapes differ, or there is not one label a row.
    """
    if a.shape != b.shape:
        raise AxisError(f"expected pairs of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if same is not None and same.shape != a.shape[:1]:
        raise AxisError(f"expected one label for each of {len(a)} rows, got shape {tuple(same.shape)}")
    with torch.autocast(a.device.type, enabled=False):
        logits = _unit_rows(a) @ _unit_rows(b).T / temperature  # (B, B), rows are a
        if same is not None:
            equal = (same[:, None] == same).fill_diagonal_(False)
            logits = logits.masked_fill(equal, float("-inf"))
        rows = [-x.log_softmax(-1).diagonal() for x in (logits, logits.T)]
        return (rows[0] + rows[1]).mean() / 2


def _unit_rows(tokens: Tensor) -> Tensor:
    rows = tokens.flatten(1).to(torch.promote_types(tokens.dtype, torch.float32))  # (B, m d)
    return torch.nn.functional.normalize(rows, dim=-1)
