"""What the first stage minimises.

    L1 + 0.5 L1 of first differences + 0.1 cross-entropy of the emotion + 0.05 (hinge of frames + hinge of sequences)

All are means over the clips of a batch. The networks that judge learn in the same step as the generator. `frozen` calls
a network without gradients to its weights, and what it judges is detached where it learns.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["frozen", "generator_hinge", "hinge", "label_loss", "motion_loss"]


def motion_loss(found: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute errors of coefficients (B, T, W) and of their first differences; the second is 0 for one frame."""
    error = found - target
    steps = error.diff(dim=1)
    return error.abs().mean(), steps.abs().mean() if steps.shape[1] else error.sum() * 0


def label_loss(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of emotions, weighted by clip.

    Args:
        logits: (B, K).
        label: (B,) Places of emotions; -1 is unknown and counts 0.
        weight: (B,) Weights of the clips. The sum is divided by B, not by their sum.
    """
    known = label >= 0
    each = F.cross_entropy(logits.float(), label.clamp_min(0), reduction="none")  # (B,)
    return (each * weight * known).mean()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator minimises: mean max(0, 1 - real) + mean max(0, 1 + fake) of its scores."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_hinge(fake: Tensor) -> Tensor:
    """What the generator minimises: minus the mean score of what it made."""
    return -fake.mean()


def frozen(network: nn.Module, *inputs: Tensor) -> Any:
    """Call a network. Gradients flow to the inputs, and none to its weights."""
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return torch.func.functional_call(network, weights, inputs)
