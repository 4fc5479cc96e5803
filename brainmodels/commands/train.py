"""From a data set and a word for features to a trained model in a folder: what `veca brain train` does.

folder = run_training(TrainSettings(model="neuroflow", data="prepared/subj01", out=Path("out/neuroflow")))
model = brainmodels.load_model(folder)
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from veca.report.machine import describe_machine
from veca.train.parallel import World, join_world

from ..data import BrainDataset, Pairs, Split
from ..data.align import check_alignment
from ..data.normalize import default_normalizer, fit_normalizer
from ..errors import BrainDataError
from ..features import FeatureCache
from ..features.sets import FeatureSet
from ..systems import system
from ..training.recipe import ModelRecipe
from ..training.run import lasting
from .opening import open_data

__all__ = ["TrainSettings", "run_training", "stage_lines"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSettings:
    """What `veca brain train` does.

    Attributes:
        model: the system.
        data: as of `veca brain evaluate`: "simulated", "simulated:PRESET", or the folder of a prepared subject.
        features: one set of features, see `FeatureSet.parse`; its tokens are what the model sees.
        out: folder of the run; started again with the same settings, it goes on. The model is in `out/model`.
        recipe: nano, tiny, veca, veca_cores, paper, or a JSON file of a recipe.
        subjects: ids; none is the first of the data set. Several are trained together.
        split: its name; None takes the first. Its validation images stop the training early where the recipe has
            patience.
        normalizer: of the responses, as of `veca brain evaluate`.
        cache: folder of features; None is `out/features`.
        steps: of the two stages; none is the recipe's.
        batch_size, micro_batch: of both stages; None is the recipe's. A micro-batch bounds memory.
        grad_checkpointing: compute activations again in the backward pass, which saves memory.
        precision: auto, fp32, bf16 or fp16; None is the recipe's.
        init_seed: of weights, order and noise; None is the recipe's.
        save_every: steps between checkpoints.
        check_alignment: "auto", or "off", which the model then says.
        seed: of the simulation.
        device: None is a GPU where there is one.
        progress: show bars.
    """

    model: Literal["neuroflow", "synbrain"] = "neuroflow"
    data: str = "simulated"
    features: str = "veca"
    out: Path = Path("out/neuroflow")
    recipe: str = "nano"
    subjects: tuple[str, ...] = ()
    split: str | None = None
    normalizer: str = "auto"
    cache: Path | None = None
    steps: tuple[int, ...] = ()
    batch_size: int | None = None
    micro_batch: int | None = None
    grad_checkpointing: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    init_seed: int | None = None
    save_every: int = 500
    check_alignment: Literal["auto", "off"] = "auto"
    seed: int = 0
    device: str | None = None
    progress: bool = True


def run_training(settings: TrainSettings) -> Path:
    """Train a model and save it; under `torchrun`, on all its processes.

    Returns:
        The folder of the model.

    Raises:
        BrainDataError: data, features, recipe or alignment are not what they should be, or `out` holds another run.
    """
    recipe = _recipe(settings)
    item = FeatureSet.parse(settings.features)
    dataset = open_data(settings.data, settings.seed, settings.subjects)
    split = dataset.split(settings.split or next(iter(dataset.splits), "none"))
    names = settings.subjects or (next(iter(dataset.subjects)),)
    with join_world(settings.device) as world:
        aligned = {name: str(check_alignment(dataset, name, split, settings.check_alignment)) for name in names}
        pairs = {name: _pairs(dataset, name, split, settings.normalizer, recipe.validation > 0) for name in names}
        cache = _features(item, dataset, pairs, settings, world)
        model = system(settings.model)(recipe, device=world.device)
        options = {"alignment": "off", "out": settings.out, "save_every": settings.save_every}
        model.fit(cache, pairs, progress=settings.progress and world.rank == 0, **options)
        model.meta_["run"] = {
            "data": settings.data,
            "features": settings.features,
            "features_note": item.extractor.note,
            "split": split.name,
            "split_hash": split.hash,
            "normalizer": pairs[names[0]].normalizer,
            "seed": settings.seed,
            "alignment": aligned,
            "processes": world.size,
            "machine": describe_machine(world.device, torch.float32),
        }
        folder = Path(settings.out) / "model"
        if world.rank == 0:
            model.save(folder)
    return folder


def _recipe(settings: TrainSettings) -> ModelRecipe:
    """The recipe with what the settings change."""
    kind, path = system(settings.model), Path(settings.recipe)
    if path.suffix == ".json":
        recipe = kind.recipe_type.from_json(json.loads(path.read_text()))
    else:
        recipe = kind.named(settings.recipe)
    if settings.steps and len(settings.steps) != 2:
        raise BrainDataError(f"expected steps of the two stages, got {len(settings.steps)} numbers")
    both = {"batch_size": settings.batch_size, "micro_batch": settings.micro_batch, "seed": settings.init_seed}
    both = {key: value for key, value in both.items() if value is not None}
    stages = {
        name: replace(lasting(getattr(recipe, name), steps), **both)
        for name, steps in zip(("stage1", "stage2"), settings.steps or (None, None), strict=True)
    }
    precision = settings.precision or recipe.precision
    checkpointing = settings.grad_checkpointing or recipe.grad_checkpointing
    return replace(recipe, precision=precision, grad_checkpointing=checkpointing, **stages)


def _pairs(dataset: BrainDataset, subject: str, split: Split, normalizer: str, validate: bool) -> Pairs:
    """Single training trials of a subject; those of the validation images among them where the model validates.

    The model holds out validation images by the rule of the splits, so that those of a 5 % split are the same.
    """
    person = dataset.subject(subject)
    name = default_normalizer(person) if normalizer == "auto" else normalizer
    scale = None if name == "none" else fit_normalizer(name, person, split)
    if validate:
        own = {key: split.ids("train", key) | split.ids("val", key) for key in dataset.subjects}
        split = replace(split, train=split.train | split.val, val=frozenset(), train_of=own, val_of=None)
    return dataset.pairs(subject, split, "train", "none", scale)


def _features(
    item: FeatureSet, dataset: BrainDataset, pairs: dict[str, Pairs], settings: TrainSettings, world: World
) -> FeatureCache:
    """The cache with the training images; every process extracts its share."""
    cache = FeatureCache(settings.cache or Path(settings.out) / "features", item.extractor, dataset.stimuli)
    ids = sorted({str(name) for part in pairs.values() for name in np.unique(part.image_ids)})
    cache.extract(ids[world.rank :: world.size], device=world.device, progress=settings.progress and world.rank == 0)
    if world.size > 1:
        torch.distributed.barrier()
        cache.refresh()
    return cache


def stage_lines(meta: dict[str, Any]) -> Sequence[str]:
    """A line for each stage of a fitted model."""
    lines = []
    for stage in meta["stages"]:
        last = {key: value for key, value in stage["log"][-1].items() if key not in ("epoch", "step")}
        terms = ", ".join(f"{key} {value:.4g}" for key, value in last.items())
        memory = "" if stage["peak_memory"] is None else f", {stage['peak_memory'] / 2**30:.1f} GB"
        lines.append(f"{stage['name']}: {stage['steps']} steps, {stage['seconds']:.0f} s{memory}; {terms}")
    return lines
