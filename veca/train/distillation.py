"""Distillation (arXiv 2605.12491): a VECA learns the features of a frozen teacher, without labels.

Both get the same image. The loss compares the student's global token and patches with the teacher's. No loss term
uses the cores beyond the first.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import ImageBatches
from .losses import distillation_terms
from .models import Tokens, freeze, largest_batch, tokens_of
from .schedules import ResolutionSchedule

__all__ = ["DistillationTask", "held_out_losses", "teacher_cosine"]


class DistillationTask(nn.Module):
    """A student and the loss against its teacher.

    Args:
        backbone: the student. It must have the teacher's width (see `output_dim` of `VECA`) and number of patches.
        teacher: a model that `tokens_of` takes. It is frozen, and is not in the parameters or the state dict.
        standardize: subtract from each target token its mean over the width, and divide by its deviation. False takes
            the raw features.
        teacher_pixels: number of pixels that the teacher takes at once, for large images; None takes the whole batch.
        patch_weight, mse_weight: weights of the terms, see `distillation_terms`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        teacher: nn.Module,
        standardize: bool = False,
        teacher_pixels: int | None = None,
        patch_weight: float = 1.0,
        mse_weight: float = 1.0,
    ):
        super().__init__()
        self.backbone = backbone
        self._outside = (freeze(teacher),)  # a tuple hides it from the optimiser, DDP and checkpoints
        self.standardize = standardize
        self.teacher_pixels = teacher_pixels
        self.patch_weight = patch_weight
        self.mse_weight = mse_weight

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher."""
        return self._outside[0]

    def forward(self, batch: dict[str, Tensor], num_cores: int | None = None) -> dict[str, Tensor]:
        """Loss terms of a batch. The loss is their sum.

        Args:
            batch: a dict with "image" (B, 3, height, width), normalised for student and teacher.
            num_cores: budget of the student.

        Returns:
            Scalars by name, as from `distillation_terms`.
        """
        targets = self.targets(batch["image"])
        features = tokens_of(self.backbone, batch["image"], num_cores)
        return distillation_terms(*features, *targets, self.patch_weight, self.mse_weight)

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tokens:
        """The teacher's tokens of images (B, 3, height, width), fp32."""
        chunks = images.split(largest_batch(images, self.teacher_pixels))
        parts = zip(*(tokens_of(self.teacher, chunk) for chunk in chunks), strict=True)
        targets = (torch.cat(part).float() for part in parts)
        return Tokens(*(F.layer_norm(x, x.shape[-1:]) if self.standardize else x for x in targets))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.teacher._apply(fn, recurse)  # .to(device) moves the teacher too
        return super()._apply(fn, recurse)


@torch.no_grad()
def held_out_losses(
    task: DistillationTask,
    images: str | Path | Sequence[Path],
    sizes: Sequence[int],
    budgets: Sequence[int | None],
    batch_size: int = 32,
) -> dict[str, float]:
    """Loss on images without augmentation, at every size and budget. The paper chooses its last weights by the mean.

    Args:
        task: the task. It runs in evaluation mode, and its mode is restored.
        images: images, as for `ImageBatches`.
        sizes: sides of the central crops in pixels.
        budgets: numbers of active cores; (None,) for a student without budgets.
        batch_size: number of images in a batch.

    Returns:
        Mean losses over the images by "<size> px, <budget> cores", or by "<size> px" without budgets. Their mean is
        "mean".
    """
    device = next(task.parameters()).device
    was_training = task.training
    task.eval()
    losses = {}
    for size in sizes:
        source = ImageBatches(images, ResolutionSchedule(((0, (size,), (1.0,)),)), augment=False)
        sums = dict.fromkeys(budgets, 0.0)
        for start in range(0, len(source), batch_size):
            indices = range(start, min(start + batch_size, len(source)))
            batch = {"image": source.batch(indices, 0)["image"].to(device)}
            for budget in budgets:
                loss: Any = sum(task(batch, budget).values())
                sums[budget] += len(indices) * loss.item()
        for budget, total in sums.items():
            losses[f"{size} px, {budget} cores" if budget else f"{size} px"] = total / len(source)
    task.train(was_training)
    return losses | {"mean": sum(losses.values()) / len(losses)}


@torch.no_grad()
def teacher_cosine(
    task: DistillationTask, images: str | Path | Sequence[Path], size: int, batch_size: int = 32
) -> float:
    """The mean cosine between the student's patches, with all cores, and the teacher's.

    Args:
        task: the task. It runs in evaluation mode, and its mode is restored.
        images, batch_size: as in `held_out_losses`.
        size: side of the central crops in pixels.
    """
    device = next(task.parameters()).device
    was_training = task.training
    task.eval()
    source = ImageBatches(images, ResolutionSchedule(((0, (size,), (1.0,)),)), augment=False)
    total = 0.0
    for start in range(0, len(source), batch_size):
        indices = range(start, min(start + batch_size, len(source)))
        batch = source.batch(indices, 0)["image"].to(device)
        cosines = F.cosine_similarity(tokens_of(task.backbone, batch).patches.float(), task.targets(batch).patches, -1)
        total += len(indices) * cosines.mean().item()
    task.train(was_training)
    return total / len(source)
