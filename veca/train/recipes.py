"""Recipes: all settings of a run, as frozen dataclasses that plain functions build.

    recipe = dataclasses.replace(nano_scenes(), steps=500)

Batch sizes are those of an optimiser step over all processes, so they do not depend on the number of processes.
"""

from dataclasses import dataclass

from .schedules import ResolutionSchedule

__all__ = ["DistillationRecipe", "Recipe", "ScenesRecipe", "nano_scenes", "paper_stage1", "paper_stage2", "tiny"]


@dataclass(frozen=True)
class Recipe:
    """Settings of the training loop.

    Attributes:
        steps: number of optimiser steps.
        batch_size: number of images in a step, over all processes and micro-batches.
        warmup_steps, lr_max, lr_min: arguments of `warmup_cosine`.
        optimizer: "adamw", "sgd" or "normuon".
        weight_decay, decay: arguments of `parameter_groups`.
        budgets, budgets_per_step: `kind` and `per_step` of `BudgetSampler`.
        clip_norm: largest norm of the gradient; None does not clip.
        ema_decay: decay of the averaged weights, such as 0.9999; None keeps no averages.
        accumulate: number of micro-batches in a step.
        precision: "fp32", or "bf16" for autocast with fp32 weights.
        grad_checkpointing: recompute blocks in the backward pass.
        parallel: "ddp" or "fsdp", for several processes.
        seed: seed of all random choices: order, budgets, sizes, augmentation, dropout.
        workers: number of processes that prepare batches; 0 prepares them in the loop.
        log_every, save_every: numbers of steps between rows of the log and between checkpoints.

    Raises:
        ValueError: an unknown precision, or a number out of range.
    """

    steps: int = 1000
    batch_size: int = 64
    warmup_steps: int = 100
    lr_max: float = 1e-3
    lr_min: float = 1e-5
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    decay: str = "default"
    budgets: str = "weighted"
    budgets_per_step: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    accumulate: int = 1
    precision: str = "fp32"
    grad_checkpointing: bool = False
    parallel: str = "ddp"
    seed: int = 0
    workers: int = 0
    log_every: int = 10
    save_every: int = 500

    def __post_init__(self):
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"expected precision 'fp32' or 'bf16', got {self.precision!r}")
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"expected warmup_steps from 0 to {self.steps}, the steps of the recipe, got {self.warmup_steps}"
            )


@dataclass(frozen=True)
class ScenesRecipe(Recipe):
    """Supervised training on drawn scenes: shape and colour of the main object, and the class of every patch.

    Attributes:
        model, num_cores, drop_path_rate: name of the VECA, and two of its arguments.
        baseline: train `equal_vit` of that VECA instead.
        size: side of the scenes in pixels.
        cells: side of the grid of labels within a patch, for the segmentation. The patch size labels pixels.
        patch_weight: weight of the segmentation in the loss.
        scenes: number of scenes to train on.
        held_out: number of other scenes to evaluate on, at each checkpoint.
    """

    model: str = "veca_nano_patch8"
    num_cores: int = 64
    drop_path_rate: float = 0.0
    baseline: bool = False
    size: int = 64
    cells: int = 8
    patch_weight: float = 3.0
    scenes: int = 20_000
    held_out: int = 500


@dataclass(frozen=True)
class DistillationRecipe(Recipe):
    """Distillation from a frozen teacher.

    Attributes:
        model, num_cores: name and cores of the student. "converted" is the teacher with its attention replaced by
            `veca.convert_vit`, a timm ViT without budgets.
        rope_shift, rope_scale: random shift and scale of the patch coordinates, arguments of `VECA`.
        resolutions: `phases` of `ResolutionSchedule`.
        standardize, teacher_pixels: arguments of `DistillationTask`.
        augment: argument of `ImageBatches`.
        copy_patch_embedding: start with the teacher's patch embedding if the shapes agree.
    """

    model: str = "veca_base_patch16"
    num_cores: int = 64
    rope_shift: float = 0.08
    rope_scale: float = 2.0
    resolutions: tuple[tuple[int, tuple[int, ...], tuple[float, ...]], ...] = ((0, (256,), (1.0,)),)
    standardize: bool = False
    teacher_pixels: int | None = None
    augment: bool = True
    copy_patch_embedding: bool = False

    def resolution_schedule(self) -> ResolutionSchedule:
        """Image size by step."""
        return ResolutionSchedule(self.resolutions, self.seed)


def nano_scenes() -> ScenesRecipe:
    """Train a VECA of 2.7 M parameters on 64-pixel scenes, each seen once. Takes an hour on one CPU core, no files."""
    return ScenesRecipe(
        steps=3000,
        batch_size=32,
        scenes=96_000,
        warmup_steps=100,
        lr_max=1e-3,
        lr_min=1e-5,
        weight_decay=0.05,
        optimizer="normuon",
        clip_norm=1.0,
        precision="bf16",
        save_every=1000,
    )


def tiny() -> DistillationRecipe:
    """Distil a student of 2.8 M parameters at 64 and 96 pixels, as a first look at a teacher on a CPU."""
    return DistillationRecipe(
        model="veca_nano_patch16",
        steps=300,
        batch_size=16,
        warmup_steps=30,
        lr_max=1e-3,
        lr_min=1e-5,
        weight_decay=0.015,
        resolutions=((0, (64, 96), (0.5, 0.5)),),
        save_every=100,
    )


def paper_stage1(num_images: int = 1_700_000) -> DistillationRecipe:
    """The paper's first stage: 135 epochs at 256 pixels, 25 of them warm-up, batches of 768.

    arXiv 2605.12491 trains on Objects365 with DINOv3 ViT-B/16 as the teacher. It decays all parameters, and uses
    NorMuon for the matrices. Hours and devices are not published, and we have not run it.

    Args:
        num_images: number of images in the data set, from which the steps follow; about 1.7 million in Objects365.
    """
    batch_size = 768
    return DistillationRecipe(
        steps=135 * (num_images // batch_size),
        batch_size=batch_size,
        warmup_steps=25 * (num_images // batch_size),
        lr_max=4e-4,
        lr_min=5e-5,
        optimizer="normuon",
        weight_decay=0.015,
        decay="paper",
        precision="bf16",
        copy_patch_embedding=True,
        workers=8,
        log_every=50,
        save_every=2000,
    )


def paper_stage2() -> DistillationRecipe:
    """The paper's second stage (arXiv 2605.12491): 50,000 steps, from the weights of the first.

        share of the steps at               256    384    512    768 pixels
        first 7,000 steps, the warm-up     35 %   35 %   30 %      -
        later steps                        15 %   25 %   30 %   30 %

    The teacher takes about 128 images of 256 pixels at once, or 14 of 768 pixels.
    """
    return DistillationRecipe(
        steps=50_000,
        batch_size=768,
        warmup_steps=7_000,
        lr_max=8e-5,
        lr_min=3e-5,
        optimizer="normuon",
        weight_decay=0.01,
        decay="paper",
        precision="bf16",
        grad_checkpointing=True,
        resolutions=(
            (0, (256, 384, 512), (0.35, 0.35, 0.30)),
            (7_000, (256, 384, 512, 768), (0.15, 0.25, 0.30, 0.30)),
        ),
        teacher_pixels=8 * 2**20,
        workers=8,
        log_every=50,
        save_every=1000,
    )
