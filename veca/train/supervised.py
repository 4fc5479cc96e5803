"""Supervised training: one backbone predicts classes of the image and a class for every patch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.heads import LinearHead, PatchHead
from .losses import cross_entropy
from .models import tokens_of

__all__ = ["SupervisedTask", "evaluate"]


class SupervisedTask(nn.Module):
    """A backbone with linear heads, and their loss.

        task = SupervisedTask(veca.create_model("veca_nano_patch16"), {"label": 10}, patch_classes=11)
        terms = task({"image": images, "label": labels, "patch_label": patch_labels}, num_cores=16)

    Args:
        backbone: a VECA, or another model that `tokens_of` takes and that has `num_features`.
        classes: number of classes of each image label, by name.
        patch_classes: number of classes of a patch; 0 has no head for patches.
        patch_weight: weight of the patches' term.
        cells: side of the grid of labels within a patch; see `PatchHead`.

    Raises:
        ValueError: no classes of images and none of patches.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: Mapping[str, int],
        patch_classes: int = 0,
        patch_weight: float = 1.0,
        cells: int = 1,
    ):
        super().__init__()
        if not classes and not patch_classes:
            raise ValueError("expected classes of images or of patches, got neither")
        self.backbone = backbone
        width: Any = backbone.num_features
        self.heads = nn.ModuleDict({name: LinearHead(width, count) for name, count in classes.items()})
        self.patch_head = PatchHead(width, patch_classes, cells=cells) if patch_classes else None
        self.patch_weight = patch_weight

    def predict(self, images: Tensor, num_cores: int | None = None) -> dict[str, Tensor]:
        """Logits (B, classes) by the name of the label, and "patch_label" (B, P cells^2, classes)."""
        tokens = tokens_of(self.backbone, images, num_cores)
        logits = {name: head(tokens.global_token) for name, head in self.heads.items()}
        if self.patch_head is not None:
            logits["patch_label"] = self.patch_head(tokens.patches)
        return logits

    def forward(self, batch: dict[str, Tensor], num_cores: int | None = None) -> dict[str, Tensor]:
        """Loss terms of a batch, by the name of the label. The loss is their sum.

        Args:
            batch: a dict with "image" (B, 3, height, width), normalised, each image label (B,), and "patch_label"
                (B, P cells^2). -100 means no label.
            num_cores: budget of a VECA.
        """
        logits = self.predict(batch["image"], num_cores)
        terms = {name: cross_entropy(scores, batch[name]) for name, scores in logits.items()}
        if self.patch_head is not None:
            terms["patch_label"] = self.patch_weight * terms["patch_label"]
        return terms


@torch.no_grad()
def evaluate(
    task: SupervisedTask, batches: Iterable[dict[str, Tensor]], budgets: Sequence[int | None] = (None,)
) -> dict[int | None, dict[str, float]]:
    """Accuracies, and the mean intersection over union of the patches, at each budget.

    Args:
        task: the task. It runs in evaluation mode, and its mode is restored.
        batches: batches as for `SupervisedTask.forward`, on any device. They are read once.
        budgets: numbers of active cores; None means the backbone's budget.

    Returns:
        Scores by budget: the accuracy of each label ("patch_label" over all patches), and "patch_iou", the mean over
        the classes that occur in the patches or their predictions.
    """
    device = next(task.parameters()).device
    was_training = task.training
    task.eval()
    right: dict[int | None, dict[str, list[Tensor]]] = {budget: {} for budget in budgets}
    confusion: dict[int | None, Tensor] = {}
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        for budget in budgets:
            for name, logits in task.predict(batch["image"], budget).items():
                guess, truth = logits.argmax(-1).flatten(), batch[name].flatten().long()
                known = truth >= 0
                right[budget].setdefault(name, []).append((guess[known] == truth[known]).double().cpu())
                if name == "patch_label":
                    count = logits.shape[-1]
                    pairs = truth[known] * count + guess[known]
                    counts = pairs.bincount(minlength=count**2).reshape(count, count)
                    confusion[budget] = confusion.get(budget, 0) + counts
    task.train(was_training)
    scores = {budget: {name: torch.cat(hits).mean().item() for name, hits in right[budget].items()} for budget in right}
    if task.patch_head is not None:
        for budget in budgets:
            scores[budget]["patch_iou"] = _mean_iou(confusion[budget])
    return scores


def _mean_iou(confusion: Tensor) -> float:
    """Mean intersection over union from confusion counts (classes, classes): rows are the truth, columns the guess."""
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    return (both[either > 0] / either[either > 0]).double().mean().item()
