"""Distillation: a VECA learns the features of a frozen teacher, without labels.

Both see the same image. The student's global token and patches are drawn to the teacher's; its cores beyond the
first have no loss of their own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

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
        backbone: the student; of the teacher's width, see `output_dim` of `VECA`, and of its number of patches.
        teacher: anything `tokens_of` takes. It is frozen, and is no part of the parameters or the state dict.
        standardize: subtract from each target token its mean over the width and divide by its deviation; the raw
            features otherwise.
        teacher_pixels: how many pixels the teacher takes at once, for large images; None takes the whole batch.
        patch_weight, mse_weight: of `distillation_terms`.
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
        self._outside = (freeze(teacher),)  # in a tuple, where neither optimiser nor DDP nor checkpoints look
        self.standardize = standardize
        self.teacher_pixels = teacher_pixels
        self.patch_weight = patch_weight
        self.mse_weight = mse_weight

    @property
    def teacher(self) -> nn.Module:
        return self._outside[0]

    def forward(self, batch: dict[str, Tensor], num_cores: int | None = None) -> dict[str, Tensor]:
        """Loss terms of a batch; the loss is their sum.

        Args:
            batch: "image" (B, 3, height, width), normalised for both.
            num_cores: budget of the student.
        """
        targets = self.targets(batch["image"])
        features = tokens_of(self.backbone, batch["image"], num_cores)
        return distillation_terms(*features, *targets, self.patch_weight, self.mse_weight)

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tokens:
        """What the teacher gives for images (B, 3, height, width)."""
        chunks = images.split(largest_batch(images, self.teacher_pixels))
        parts = zip(*(tokens_of(self.teacher, chunk) for chunk in chunks), strict=True)
        targets = (torch.cat(part).float() for part in parts)
        return Tokens(*(F.layer_norm(x, x.shape[-1:]) if self.standardize else x for x in targets))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.teacher._apply(fn, recurse)  # so that .to(device) moves it too
        return super()._apply(fn, recurse)


@torch.no_grad()
def held_out_losses(
    task: DistillationTask,
    images: str | Path | Sequence[Path],
    sizes: Sequence[int],
    budgets: Sequence[int | None],
    batch_size: int = 32,
) -> dict[str, float]:
    """Loss on images that are not varied, at every size and budget. The paper chooses its last weights by the mean.

    Args:
        task: is evaluated in evaluation mode, and left as it was.
        images: as `ImageBatches` takes them.
        sizes: sides of the central crops, pixels.
        budgets: numbers of cores; (None,) for a student without budgets.
        batch_size: images at once.

    Returns:
        The mean over the images by "<size> px, <budget> cores", or "<size> px" without budgets, and the mean of these
        as "mean".
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
                sums[budget] += len(indices) * sum(task(batch, budget).values()).item()
        for budget, total in sums.items():
            losses[f"{size} px, {budget} cores" if budget else f"{size} px"] = total / len(source)
    task.train(was_training)
    return losses | {"mean": sum(losses.values()) / len(losses)}


@torch.no_grad()
def teacher_cosine(
    task: DistillationTask, images: str | Path | Sequence[Path], size: int, batch_size: int = 32
) -> float:
    """How far the student has come: the mean cosine between its patches and the teacher's, with all cores.

    Args:
        task: is evaluated in evaluation mode, and left as it was.
        images, batch_size: as in `held_out_losses`.
        size: side of the central crops, pixels.
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
