"""Whole runs, as of the commands `veca train` and `veca distill`."""

import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import nn

from ..model.backbone import VECA
from ..zoo.convert import convert_vit
from ..zoo.plain_vit import equal_vit
from ..zoo.registry import create_model
from .batches import ImageBatches, SceneBatches, Source
from .budgets import BudgetSampler
from .checkpoints import load_backbone
from .distillation import DistillationTask, held_out_losses, teacher_cosine
from .loop import train
from .models import tokens_of
from .recipes import DistillationRecipe, Recipe, ScenesRecipe
from .supervised import SupervisedTask, evaluate

__all__ = ["distill", "scenes_task", "train_scenes"]

_log = logging.getLogger(__name__)
_EVALUATED_AT_ONCE = 50


def scenes_task(recipe: ScenesRecipe) -> tuple[SupervisedTask, SceneBatches, SceneBatches]:
    """Return the task of a scenes recipe, the scenes to train on, and the held-out scenes."""
    torch.manual_seed(recipe.seed)
    model = create_model(
        recipe.model,
        img_size=recipe.size,
        num_cores=recipe.num_cores,
        trained_budgets=_budgets(recipe).budgets,
        drop_path_rate=recipe.drop_path_rate,
    )
    patch_size = model.patch_embed.patch_size[0]
    source = SceneBatches(recipe.scenes, recipe.size, patch_size, recipe.seed, recipe.cells)
    held_out = SceneBatches(recipe.held_out, recipe.size, patch_size, recipe.seed + 1, recipe.cells)
    backbone = equal_vit(model, recipe.size) if recipe.baseline else model
    task = SupervisedTask(backbone, source.classes, source.patch_classes, recipe.patch_weight, recipe.cells)
    return task, source, held_out


def train_scenes(recipe: ScenesRecipe, out: str | Path, device: str | None = None) -> Path:
    """Train on drawn scenes, and evaluate at every budget with each checkpoint.

    Args:
        recipe: Recipe such as `nano_scenes()`.
        out: Folder of the run. In the end `out/model` is the trained VECA, for `VECA.from_pretrained`.
        device: Device to train on, see `train`.

    Returns:
        The folder of the last checkpoint.
    """
    task, source, held_out = scenes_task(recipe)
    budgets = (None,) if recipe.baseline else _budgets(recipe).budgets
    if len(budgets) > 8:
        budgets = BudgetSampler(recipe.num_cores).budgets

    def validate(task: SupervisedTask) -> dict[str, Any]:
        starts = range(0, len(held_out), _EVALUATED_AT_ONCE)
        ranges = (range(start, min(start + _EVALUATED_AT_ONCE, len(held_out))) for start in starts)
        scores = evaluate(task, (held_out.batch(indices, 0) for indices in ranges), budgets)
        return {str(budget or "all"): values for budget, values in scores.items()}

    path = train(task, source, recipe, out, device, validate)
    if isinstance(task.backbone, VECA) and _first_process():
        _publish(VECA(**task.backbone.config), path, Path(out), recipe)
    return path


def distill(
    recipe: DistillationRecipe,
    teacher: nn.Module,
    data: str | Path | Sequence[Path] | Source,
    out: str | Path,
    start_from: str | Path | None = None,
    held_out: str | Path | Sequence[Path] | None = None,
    device: str | None = None,
) -> Path:
    """Train a student on the features of a teacher.

    Args:
        recipe: Recipe such as `tiny()`.
        teacher: Model that `tokens_of` takes; see `load_teacher`.
        data: Images as `ImageBatches` takes them, or a `Source`.
        out: Folder of the run. In the end `out/model` is the student, for `VECA.from_pretrained`. Of a converted
            student it has the weights, and `convert_vit` says how to load them.
        start_from: Run or checkpoint whose backbone the student starts with, for a second stage.
        held_out: Other images. Their `held_out_losses` join the log with each checkpoint, and their `teacher_cosine`
            before and after the run is written to `out/cosine.json`.
        device: Device to train on, see `train`.

    Returns:
        The folder of the last checkpoint.
    """
    source = data
    if isinstance(source, str | Path | Sequence):
        source = ImageBatches(source, recipe.resolution_schedule(), recipe.augment, recipe.seed)
    torch.manual_seed(recipe.seed)
    student = _student(recipe, teacher)
    if start_from is not None:
        load_backbone(student, start_from)
    elif recipe.copy_patch_embedding and isinstance(student, VECA):
        _copy_patch_embedding(student, teacher)
    task = DistillationTask(student, teacher, recipe.standardize, recipe.teacher_pixels)
    sizes = sorted({size for _, phase, _ in recipe.resolutions for size in phase})
    budgets = BudgetSampler(recipe.num_cores).budgets if isinstance(student, VECA) else (None,)
    validate = partial(held_out_losses, images=held_out, sizes=sizes, budgets=budgets) if held_out else None
    before = teacher_cosine(task, held_out, sizes[-1]) if held_out else None
    path = train(task, source, recipe, out, device, validate)
    if _first_process():  # a new model, because the student may be sharded and is not averaged
        trained = _publish(_student(recipe, teacher), path, Path(out), recipe)
        if held_out:
            task = DistillationTask(trained.to(next(teacher.parameters()).device), teacher, recipe.standardize)
            report = {"size": sizes[-1], "before": before, "after": teacher_cosine(task, held_out, sizes[-1])}
            (Path(out) / "cosine.json").write_text(json.dumps(report) + "\n")
    return path


def _student(recipe: DistillationRecipe, teacher: nn.Module) -> nn.Module:
    if recipe.model == "converted":
        return convert_vit(cast(VisionTransformer, teacher), recipe.num_cores).requires_grad_(True)
    return create_model(
        recipe.model,
        num_cores=recipe.num_cores,
        trained_budgets=_budgets(recipe).budgets,
        rope_shift=recipe.rope_shift,
        rope_scale=recipe.rope_scale,
        output_dim=_width(teacher, recipe.resolutions[0][1][0]),
    )


def _publish(model: nn.Module, path: Path, out: Path, recipe: Recipe) -> nn.Module:
    """Load a checkpoint into a model of the trained shape, with averaged weights if the run kept them, and save it."""
    load_backbone(model, path, recipe.ema_decay is not None)
    if isinstance(model, VECA):
        model.save_pretrained(out / "model")
    else:
        (out / "model").mkdir(exist_ok=True)
        weights = {name: x.contiguous().cpu() for name, x in model.state_dict().items()}
        save_file(weights, out / "model" / "model.safetensors")
    return model


def _first_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _copy_patch_embedding(student: VECA, teacher: nn.Module) -> None:
    """Copy the teacher's patch embedding to the student if both have the same shape."""
    embedding = getattr(teacher, "patch_embed", None)
    weights = embedding.state_dict() if embedding is not None else {}
    own = student.patch_embed.state_dict()
    if {name: x.shape for name, x in weights.items()} == {name: x.shape for name, x in own.items()}:
        student.patch_embed.load_state_dict(weights)
    else:
        _log.warning("the teacher has no patch embedding of the student's shape; the student keeps its random one")


def _budgets(recipe: DistillationRecipe | ScenesRecipe) -> BudgetSampler:
    return BudgetSampler(recipe.num_cores, recipe.budgets, recipe.budgets_per_step, recipe.seed)


@torch.no_grad()
def _width(teacher: nn.Module, size: int) -> int:
    """Return the width of the teacher's features, which a forward pass of one image tells."""
    parameter = next(teacher.parameters(), torch.zeros(()))
    return tokens_of(teacher.eval(), parameter.new_zeros(1, 3, size, size)).patches.shape[-1]
