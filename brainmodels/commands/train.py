"""From data and a word for features to a trained model in a folder: what `veca brain train` does.

folder = run_training(TrainSettings(model="neuroflow", data="prepared/subj01", out=Path("out/neuroflow")))
model = brainmodels.load_model(folder)
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from veca.report.machine import describe_machine
from veca.train.parallel import World, join_world

from ..data import BrainDataset, Pairs, Split, Subject, VoxelSpace
from ..data.align import check_alignment
from ..data.leakage import duplicates_of
from ..data.normalize import fit_normalizer
from ..errors import BrainDataError
from ..evaluation.checks import refuse_changed
from ..evaluation.opened import hash_of_test_images
from ..evaluation.run import normalizer_name
from ..features import FeatureCache
from ..features.sets import FeatureSet
from ..systems import load_model, system
from ..training.estimator import BrainModel
from ..training.recipe import ModelRecipe, TrainingStage
from ..training.run import lasting
from ..training.stacked import Stacked
from .aligning import classes_of, known_subject, of_sessions
from .opening import choose_split, open_data
from .train_clips import run_clip_training
from .train_objects import run_object_training
from .train_settings import TrainSettings, chosen_recipe, stage_lengths

__all__ = ["TrainSettings", "run_training", "stage_lines"]

_log = logging.getLogger(__name__)


def run_training(settings: TrainSettings) -> Path:
    """Train a model, or adapt a known one, and save it; under `torchrun`, on all its processes.

    Returns:
        Folder of the model.

    Raises:
        BrainDataError: Data, features, recipe or alignment are not what they should be, or `out` holds another run.
        LeakageError: A test picture is also a train picture, under another id.
    """
    others = {"objects": run_object_training, "clips": run_clip_training}
    if (study := system(settings.model).study) in others:
        return others[study](settings)
    refuse_changed(settings, ("head",), f"{settings.model}, which learns images")
    partner = _partner(settings)
    recipe = _recipe(settings) if settings.known is None or partner else None
    item = FeatureSet.parse(settings.features)
    others = [name for name in (settings.new, partner and partner[0]) if name]
    wanted = (*settings.subject, *settings.held_out, *others)
    dataset = open_data(settings.data, settings.seed, wanted, everyone=bool(settings.held_out))
    names = (*_subjects(settings, dataset), *((partner[0],) if partner else ()))
    for name in names:
        _check_kind(settings.model, dataset.subject(name))
    split = choose_split(dataset, settings.split, names[0], settings.context, seed=settings.seed)
    people = [dataset.subject(name) for name in names]
    duplicates = duplicates_of(dataset.stimuli, split, settings.allow_duplicates, people)
    with join_world(settings.device) as world:
        aligned = {name: str(check_alignment(dataset, name, split, settings.check_alignment)) for name in names}
        validates = recipe is not None and recipe.validation > 0
        choices = {person.id: normalizer_name(settings.normalizer, person, bool(settings.context)) for person in people}
        few = of_sessions(split, settings.sessions)
        splits = {name: few if name == settings.new else split for name in names}
        pairs = {name: _pairs(dataset, name, splits[name], choices[name], validates) for name in names}
        shown = settings.progress and world.rank == 0
        if recipe is None:
            cache = _features(item, dataset, pairs, settings, world)
            model = _adapted(settings, cache, pairs, world, shown)
        else:
            model = _fitted(settings, recipe, item, dataset, pairs, world, shown, partner)
        model.meta_["run"] = {
            "data": " ".join(settings.data),
            **_features_of(model, settings, item),
            "split": split.name,
            "split_hash": split.hash,
            "test_hash": hash_of_test_images(split),
            "normalizer": pairs[names[0]].normalizer,
            "seed": settings.seed,
            "alignment": aligned,
            "duplicates": duplicates,
            "processes": world.size,
            "machine": describe_machine(world.device, torch.float32),
            **_further(settings),
        }
        folder = settings.folder / "model"
        if world.rank == 0:
            model.save(folder)
    return folder


def _fitted(
    settings: TrainSettings,
    recipe: ModelRecipe,
    item: FeatureSet,
    dataset: BrainDataset,
    pairs: Mapping[str, Pairs],
    world: World,
    progress: bool,
    partner: tuple[str, Any] | None,
) -> BrainModel | Stacked:
    """A new model, fitted to what its system takes: features of the images, or the images themselves."""
    kind: Any = system(settings.model)  # its further arguments are its own
    given = {} if settings.generator is None else {"generator": settings.generator}
    for name in given:
        if name not in kind.options:
            raise BrainDataError(f"expected no {name} with {settings.model}, which takes none, got {given[name]}")
    single = kind(recipe, device=world.device, **given)
    model = single if recipe.stack is None else Stacked(single, recipe.stack)
    options: dict[str, Any] = {"alignment": "off", "progress": progress}
    source: Any  # features, or the images of a system that takes these
    if kind.stages:
        options |= {"out": settings.folder, "save_every": settings.save_every}
    if kind.inputs == "stimuli":
        source = dataset.stimuli
        options["cache"] = settings.cache or settings.folder / "features"
    else:
        source = _features(item, dataset, pairs, settings, world)
    if partner:
        labels = classes_of(dataset.stimuli, settings.label)
        options |= {"new": settings.new, "decoder": partner[1], "labels": labels}
    model.fit(source, pairs, **options)
    return model


def _partner(settings: TrainSettings) -> tuple[str, Any] | None:
    """The known subject and its decoder, of a system that aligns two subjects; None of the others."""
    if not system(settings.model).aligns:
        return None
    if settings.known is None:
        raise BrainDataError(f"expected known and new, the two subjects that {settings.model} aligns, got none")
    found = known_subject(settings.known, settings.device)
    if found[0] == settings.new:
        raise BrainDataError(f"expected a known subject beside {settings.new}, got it again")
    return found


def _features_of(model: BrainModel | Stacked, settings: TrainSettings, item: FeatureSet) -> dict[str, Any]:
    """What the facts say of the features; nothing of a model that takes images."""
    if model.inputs == "stimuli":
        return {}
    return {"features": settings.features, "features_note": item.extractor.note}


def _further(settings: TrainSettings) -> dict[str, Any]:
    """What the facts say of a run that leaves subjects out, or begins with a known model."""
    told = {"held_out": list(settings.held_out), "context": settings.context, "sessions": list(settings.sessions)}
    told["known"] = None if settings.known is None else str(settings.known)
    return {name: value for name, value in told.items() if value}


def _subjects(settings: TrainSettings, dataset: BrainDataset) -> tuple[str, ...]:
    """Subjects that are trained on."""
    for name in settings.held_out:
        dataset.subject(name)
    if settings.new is not None:
        return (dataset.subject(settings.new).id,)
    if settings.subject:
        return settings.subject
    left = [name for name in dataset.subjects if name not in settings.held_out]
    if not left:
        raise BrainDataError(f"expected subjects beside those held out, got {', '.join(settings.held_out)} alone")
    return tuple(left) if settings.held_out else (left[0],)


def _check_kind(name: str, subject: Subject) -> None:
    """Refuse responses of a kind that the system does not take."""
    kind = "voxels" if isinstance(subject.space, VoxelSpace) else "sensors"
    wanted = system(name).responses
    if kind not in wanted:
        raise BrainDataError(
            f"expected responses of {' or '.join(wanted)}, which {name} takes, got {kind} of {subject.id}"
        )


def _recipe(settings: TrainSettings) -> ModelRecipe:
    """The recipe with what the settings change."""
    kind = system(settings.model)
    recipe = chosen_recipe(kind, settings.recipe)
    lengths = stage_lengths(kind, recipe, settings.steps)
    stack = {"recipe": recipe.stack, "none": None}.get(settings.stack, settings.stack)
    return replace(_changed(recipe, settings, lengths), stack=stack)


def _changed(recipe: ModelRecipe, settings: TrainSettings, lengths: Mapping[str, int | None]) -> ModelRecipe:
    """A recipe, and the recipes within it, with what the settings say of every stage and of the precision.

    Args:
        recipe: The recipe.
        settings: Batches, seed, precision, and whether activations are computed again.
        lengths: Steps by the name of the stages that change; None leaves the recipe's.
    """
    every = {"batch_size": settings.batch_size, "micro_batch": settings.micro_batch, "seed": settings.init_seed}
    every = {key: value for key, value in every.items() if value is not None}
    changes: dict[str, Any] = {
        "precision": settings.precision or recipe.precision,
        "grad_checkpointing": settings.grad_checkpointing or recipe.grad_checkpointing,
    }
    changes |= {name: replace(lasting(getattr(recipe, name), steps), **every) for name, steps in lengths.items()}
    for field in fields(recipe):
        within = getattr(recipe, field.name)
        if isinstance(within, ModelRecipe):
            parts = [part.name for part in fields(within) if isinstance(getattr(within, part.name), TrainingStage)]
            changes[field.name] = _changed(within, settings, dict.fromkeys(parts))
    return replace(recipe, **changes)


def _adapted(
    settings: TrainSettings, cache: FeatureCache, pairs: Mapping[str, Pairs], world: World, progress: bool
) -> BrainModel | Stacked:
    """The known model adapted to the trials of the new subject."""
    if settings.known is None or settings.new is None:
        raise BrainDataError(f"expected known and new to adapt a model, got {settings.known} and {settings.new}")
    model = load_model(settings.known, world.device)
    if not model.adapts:
        raise BrainDataError(f"expected a known model that adapts to a new subject, got a {type(model).__name__}")
    options: dict[str, Any] = {} if not settings.steps else {"steps": settings.steps}
    return model.adapt(cache, pairs[settings.new], subject=settings.new, alignment="off", progress=progress, **options)


def _pairs(dataset: BrainDataset, subject: str, split: Split, normalizer: str, validate: bool) -> Pairs:
    """Single training trials of a subject; those of the validation images among them where the model validates.

    The model holds out validation images by the rule of the splits, so that those of a 5 % split are the same.
    """
    scale = None if normalizer == "none" else fit_normalizer(normalizer, dataset.subject(subject), split)
    if validate:
        own = {key: split.ids("train", key) | split.ids("val", key) for key in dataset.subjects}
        split = replace(split, train=split.train | split.val, val=frozenset(), train_of=own, val_of=None)
    return dataset.pairs(subject, split, "train", "none", scale)


def _features(
    item: FeatureSet, dataset: BrainDataset, pairs: Mapping[str, Pairs], settings: TrainSettings, world: World
) -> FeatureCache:
    """The cache with the training images; every process extracts its share."""
    cache = FeatureCache(settings.cache or settings.folder / "features", item.extractor, dataset.stimuli)
    ids = sorted({str(name) for part in pairs.values() for name in np.unique(part.image_ids)})
    cache.extract(ids[world.rank :: world.size], device=world.device, progress=settings.progress and world.rank == 0)
    if world.size > 1:
        torch.distributed.barrier()
        cache.refresh()
    return cache


def stage_lines(meta: Mapping[str, Any]) -> Sequence[str]:
    """A line for each stage of a fitted model, and one for the weights of each subject where it is stacked."""
    lines = []
    for stage in meta["stages"]:
        last = {key: value for key, value in stage["log"][-1].items() if key not in ("epoch", "step")}
        terms = ", ".join(f"{key} {value:.4g}" for key, value in last.items())
        memory = "" if stage["peak_memory"] is None else f", {stage['peak_memory'] / 2**30:.1f} GB"
        lines.append(f"{stage['name']}: {stage['steps']} steps, {stage['seconds']:.0f} s{memory}; {terms}")
    stack = meta.get("stack", {"base": "", "weights": {}})
    for subject, weights in stack["weights"].items():
        every = weights.get("encode", {}) | ({"decoding": weights["decode"]} if "decode" in weights else {})
        told = ", ".join(f"{region} {weight:.2f}" for region, weight in every.items())
        lines.append(f"{subject}, stacked with {stack['base'].replace('_', ' ')}: weights of the model {told}")
    return lines
