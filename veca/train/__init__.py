"""Training: nested budgets, distillation, supervised tasks, and one loop for all of them."""

from .bank import RowSlices
from .batches import ImageBatches, SceneBatches, Source
from .budgets import BudgetSampler
from .checkpoints import load_backbone
from .distillation import DistillationTask, held_out_losses, teacher_cosine
from .loop import train
from .models import Tokens, load_teacher, tokens_of
from .normuon import NorMuon
from .optimizers import ElasticOptimizer, parameter_groups
from .recipes import DistillationRecipe, Recipe, ScenesRecipe, nano_scenes, paper_stage1, paper_stage2, tiny
from .runs import distill, scenes_task, train_scenes
from .schedules import ResolutionSchedule, warmup_cosine
from .supervised import SupervisedTask, evaluate

__all__ = [
    "BudgetSampler",
    "DistillationRecipe",
    "DistillationTask",
    "ElasticOptimizer",
    "ImageBatches",
    "NorMuon",
    "Recipe",
    "ResolutionSchedule",
    "RowSlices",
    "SceneBatches",
    "ScenesRecipe",
    "Source",
    "SupervisedTask",
    "Tokens",
    "distill",
    "evaluate",
    "held_out_losses",
    "load_backbone",
    "load_teacher",
    "nano_scenes",
    "paper_stage1",
    "paper_stage2",
    "parameter_groups",
    "scenes_task",
    "teacher_cosine",
    "tiny",
    "tokens_of",
    "train",
    "train_scenes",
    "warmup_cosine",
]
