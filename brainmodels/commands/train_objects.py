"""Training of systems that decode objects from EEG: what `veca brain train --model neuro3d` does."""

from pathlib import Path
from typing import Any

from veca.train.parallel import join_world

from ..errors import BrainDataError
from ..evaluation.checks import refuse_changed
from ..systems import system
from .opening import open_objects
from .train_settings import OF_IMAGES, TrainSettings, changed_recipe, one_word, save_run

__all__ = ["run_object_training"]

DATA = "objects:nano"


def run_object_training(settings: TrainSettings) -> Path:
    """Train a model of one subject and save it; under `torchrun`, on all its processes.

    Returns:
        Folder of the model.

    Raises:
        BrainDataError: Data, recipe or alignment are not what they should be, a setting is one of models of images, or
            `out` holds another run.
    """
    kind: Any = system(settings.model)  # its further arguments are its own
    refuse_changed(settings, (*OF_IMAGES, "head"), f"{settings.model}, which learns objects")
    if len(settings.subject) > 1:
        raise BrainDataError(f"expected one subject, which {settings.model} takes, got {', '.join(settings.subject)}")
    word = one_word(settings, DATA)
    study = open_objects(word, settings.seed, settings.subject)
    subject = next(iter(settings.subject), study.subjects[0])
    split = study.split(settings.split)
    with join_world(settings.device) as world:
        model = kind(changed_recipe(kind, settings), device=world.device)
        model.fit(
            study,
            subject,
            split=settings.split,
            alignment=settings.check_alignment,
            out=settings.folder,
            save_every=settings.save_every,
            progress=settings.progress and world.rank == 0,
        )
        told = {"data": word, "subject": subject, "split": split.name, "split_hash": split.hash}
        return save_run(model, settings, world, **told)
