"""Training of talking heads on clips: what `veca brain train --model emodiffhead` does."""

from pathlib import Path
from typing import Any

from veca.train.parallel import join_world

from ..evaluation.checks import refuse_changed
from ..systems import system
from .opening import open_clips, open_head
from .train_settings import OF_IMAGES, TrainSettings, changed_recipe, one_word, save_run

__all__ = ["run_clip_training"]

DATA = "clips:toy"
_OF_SUBJECTS = (*OF_IMAGES, "subject", "split", "check_alignment")


def run_clip_training(settings: TrainSettings) -> Path:
    """Train a model on the train clips of a data set and save it; under `torchrun`, on all its processes.

    Returns:
        Folder of the model.

    Raises:
        BrainDataError: Data or recipe are not what they should be, a setting is one of other systems, or `out` holds
            another run.
        LeakageError: Train and test clips share an identity or a sentence.
    """
    kind: Any = system(settings.model)  # its further arguments are its own
    refuse_changed(settings, _OF_SUBJECTS, f"{settings.model}, which learns clips")
    word = one_word(settings, DATA)
    recipe, head = changed_recipe(kind, settings), open_head(settings.head)
    clips = open_clips(word, head, recipe.size, settings.seed)
    with join_world(settings.device) as world:
        model = kind(recipe, device=world.device, head=head)
        shown = settings.progress and world.rank == 0
        model.fit(clips.of("train+val"), out=settings.folder, save_every=settings.save_every, progress=shown)
        return save_run(model, settings, world, data=word, head=settings.head, split_hash=clips.split_hash)
