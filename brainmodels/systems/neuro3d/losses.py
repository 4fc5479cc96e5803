"""What the three networks of Neuro-3D minimise.

    terms = encoder_loss(encoder(trials), goal, weights)  # {"loss": ..., "contrast": ..., "top1": ...}

"ours" compares directions: targets are standardised over the train objects and scaled to length 1. "paper" compares the
features as they are, with its published weights.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import check_choice
from ...nn.losses import softclip
from .model import Encoded

__all__ = ["ClassWeights", "Goal", "balanced", "encoder_loss", "paint_loss"]

CLASS_WEIGHT = 0.5  # of both cross-entropies in "ours"
PAPER_MSE, PAPER_REST = 9.9, 0.1  # of squared errors, and of contrasts and cross-entropies in "paper"


class Goal(NamedTuple):
    """What an encoder should say of trials.

    Attributes:
        geometry, appearance: (B, d) Features of the objects.
        label: (B,) Classes, integers.
        color: (B,) Colours, integers; all -1 without labels of colours.
    """

    geometry: Tensor
    appearance: Tensor
    label: Tensor
    color: Tensor


class ClassWeights(NamedTuple):
    """Weights of the classes (K,) and of the colours (Q,) in the cross-entropies; see `balanced`."""

    label: Tensor
    color: Tensor


def encoder_loss(
    found: Encoded,
    goal: Goal,
    weights: ClassWeights,
    kind: str = "ours",
    logit_scale: Tensor | None = None,
    raw_scale: bool = False,
) -> dict[str, Tensor]:
    """The loss of an encoder, with its parts.

        ours:   sum over both heads of SoftCLIP(f, v) + mean (1 - cos(f, v)), + 0.5 (CE class + CE colour)
        paper:  9.9 sum over both heads of MSE(f, v) + 0.1 (contrasts of both heads + CE class + CE colour)

    SoftCLIP has soft targets, so presentations of one object do not repel each other. The contrast of "paper" takes
    them for different objects.

    Args:
        found: What the encoder says of B trials.
        goal: What it should say.
        weights: Weights of classes and colours.
        kind: "ours" or "paper".
        logit_scale: Parameter of the contrast of "paper".
        raw_scale: Multiply products of the features as they are by the parameter itself, as the released code does.
            Otherwise cosines are multiplied by its exponential.

    Returns:
        Scalars: "loss"; "features", "contrast" and "classes", its parts; "top1" and "color", the shares of trials
        whose class and colour have the highest logit ("color" is 0 without labels).
    """
    check_choice("kind", kind, ("ours", "paper"))
    heads = ((found.geometry, goal.geometry), (found.appearance, goal.appearance))
    classes = F.cross_entropy(found.shape, goal.label, weights.label)
    color = classes.new_zeros(())
    if found.color.shape[1]:
        classes = classes + F.cross_entropy(found.color, goal.color, weights.color)
        color = (found.color.argmax(1) == goal.color).float().mean()
    if kind == "ours":
        features = sum((1 - F.cosine_similarity(f, v)).mean() for f, v in heads)
        contrast = sum(softclip(f, v) for f, v in heads)
        loss = features + contrast + CLASS_WEIGHT * classes
    else:
        assert logit_scale is not None  # of the official encoder
        features = sum(F.mse_loss(f, v) for f, v in heads)
        contrast = sum(_contrast(f, v, logit_scale, raw_scale) for f, v in heads)
        loss = PAPER_MSE * features + PAPER_REST * (contrast + classes)
    top1 = (found.shape.argmax(1) == goal.label).float().mean()
    parts = {"features": features, "contrast": contrast, "classes": classes, "top1": top1, "color": color}
    return {"loss": loss, **parts}


def _contrast(f: Tensor, v: Tensor, scale: Tensor, raw: bool) -> Tensor:
    """CLIP's loss, in which every other row is a negative."""
    f, v, scale = (f, v, scale) if raw else (F.normalize(f), F.normalize(v), scale.exp())
    logits = scale * f @ v.T  # (B, B)
    own = torch.arange(len(f), device=f.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def paint_loss(painted: Tensor, colors: Tensor, kind: str) -> Tensor:
    """Mean absolute ("l1") or squared ("mse") error of colours (B, N, 3) in [-1, 1]."""
    return F.l1_loss(painted, colors) if kind == "l1" else F.mse_loss(painted, colors)


def balanced(labels: Tensor, count: int) -> Tensor:
    """Weights (count,) of classes in inverse proportion to their frequency, mean 1 over trials; 0 of absent ones."""
    frequency = torch.bincount(labels[labels >= 0], minlength=count).float()
    return torch.where(frequency > 0, len(labels) / ((frequency > 0).sum() * frequency.clamp_min(1)), 0.0)
