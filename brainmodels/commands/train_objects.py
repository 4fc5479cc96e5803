"""Training of systems that decode objects from EEG: what `veca brain train --model neuro3d` does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from veca.report.machine import describe_machine
from veca.train.parallel import join_world

from ..errors import BrainDataError
from ..systems import system
from ..training.run import lasting
from .opening import open_objects
from .train_settings import TrainSettings, chosen_recipe, refuse_changed, stage_lengths

__all__ = ["run_object_training"]

DATA = "objects:nano"
_OF_IMAGES = (
    "features", "generator", "stack", "held_out", "known", "new", "sessions", "label", "context", "normalizer",
    "cache", "grad_checkpointing", "allow_duplicates",
)  # fmt: skip


def run_object_training(settings: TrainSettings) -> Path:
    """Train a model of one subject and save it; under `torchrun`, on all its processes.

    Returns:
        Folder of the model.

    Raises:
        BrainDataError: Data, recipe or alignment are not what they should be, a setting is one of models of images, or
            `out` holds another run.
    """
    kind: Any = system(settings.model)  # its further arguments are its own
    refuse_changed(settings, _OF_IMAGES, f"{settings.model}, which learns objects")
    if len(settings.data) != 1:
        raise BrainDataError(f"expected one data set for {settings.model}, got {', '.join(settings.data) or 'none'}")
    if len(settings.subject) > 1:
        raise BrainDataError(f"expected one subject, which {settings.model} takes, got {', '.join(settings.subject)}")
    word = DATA if settings.data == ("simulated",) else settings.data[0]
    study = open_objects(word, settings.seed, settings.subject)
    subject = next(iter(settings.subject), study.subjects[0])
    split = study.split(settings.split)
    with join_world(settings.device) as world:
        model = kind(_recipe(kind, settings), device=world.device)
        model.fit(
            study,
            subject,
            split=settings.split,
            alignment=settings.check_alignment,
            out=settings.folder,
            save_every=settings.save_every,
            progress=settings.progress and world.rank == 0,
        )
        model.meta_["run"] = {
            "data": word,
            "subject": subject,
            "split": split.name,
            "split_hash": split.hash,
            "seed": settings.seed,
            "processes": world.size,
            "machine": describe_machine(world.device, torch.float32),
        }
        folder = settings.folder / "model"
        if world.rank == 0:
            model.save(folder)
    return folder


def _recipe(kind: Any, settings: TrainSettings) -> Any:
    """The recipe with what the settings change."""
    recipe = chosen_recipe(kind, settings.recipe)
    every = {"batch_size": settings.batch_size, "micro_batch": settings.micro_batch, "seed": settings.init_seed}
    every = {key: value for key, value in every.items() if value is not None}
    lengths = stage_lengths(kind, recipe, settings.steps)
    stages = {name: replace(lasting(getattr(recipe, name), steps), **every) for name, steps in lengths.items()}
    return replace(recipe, precision=settings.precision or recipe.precision, **stages)
