"""Encoders that did not see an object, and what they say of it.

Features of objects that an encoder was trained on are better than those of new objects. A decoder that is trained on
the former meets another distribution in use. So K encoders are trained, each without 1/K of the objects of every class.
The features of an object come from the encoder that did not see it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...baselines.courses import SignalFilters
from ...baselines.sensors import SensorFeatures
from ...data.align import alignment_of
from ...data.objects import ObjectTrials
from ...data.splits import hashed
from ...errors import BrainDataError
from ...training.loop import StageResult
from ...training.run import Run
from .batches import Conditions, EncoderTask, TrialRows
from .model import Encoded, FusionEncoder, OfficialEncoder
from .recipes import EncoderSize, Neuro3DRecipe
from .targets import Goals

__all__ = [
    "Encoder",
    "Fold",
    "averaged",
    "conditions_of",
    "encode",
    "error_level",
    "errors_of",
    "filters_of",
    "folds_of",
    "tested",
    "train_encoder",
    "train_folds",
]

Encoder = FusionEncoder | OfficialEncoder
_BLOCK = 64  # trials that are encoded together
_STRENGTH = 2.0  # largest noise on true features, relative to their length
_NEVER = 1_000_000  # epochs of patience: the training goes to its end and keeps the best weights


@dataclass(frozen=True)
class Fold:
    """One of the encoders of the folds.

    Attributes:
        encoder: The network.
        held: (n,) Objects that it did not see.
        best_step: Step of the best validation on these, or the last step where they choose nothing.
    """

    encoder: Encoder
    held: np.ndarray
    best_step: int


def folds_of(ids: np.ndarray, labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Objects in folds, equally many of every class where that is possible, by the hashes of their ids.

    Args:
        ids: (n,) Objects.
        labels: (n,) Their classes.
        count: Number of folds.

    Raises:
        BrainDataError: A class has fewer than 3 objects, or fewer than folds.
    """
    members: list[list[str]] = [[] for _ in range(count)]
    for label in np.unique(labels):
        names = sorted(ids[labels == label].tolist(), key=lambda name: (hashed("0:fold", name), name))
        if len(names) < max(3, count):
            raise BrainDataError(
                f"expected {max(3, count)} train objects or more of every class for {count} folds, got {len(names)} of "
                f"class {label}"
            )
        for place, name in enumerate(names):
            members[place % count].append(name)
    return [np.array(sorted(names)) for names in members]


def filters_of(size: EncoderSize, trials: ObjectTrials, goals: Goals) -> dict[str, SignalFilters]:
    """Fixed filters of an encoder, from its train trials."""
    goal = goals.of(trials.ids)
    labels = [goal.label.numpy(), *([goal.color.numpy()] if goal.color.min() >= 0 else [])]
    bins = {name: size.token(name) for name in trials.streams}
    return SignalFilters.fit(trials, labels, bins, size.components or 1)


def train_encoder(
    run: Run,
    name: str,
    build: Callable[[ObjectTrials], Encoder],
    recipe: Neuro3DRecipe,
    train: ObjectTrials,
    val: ObjectTrials | None,
    goals: Goals,
    steps: int | None = None,
) -> tuple[Encoder, StageResult]:
    """Train one encoder; with validation trials it ends with the weights that are best on them.

    Args:
        run: What the stages of the fit share.
        name: Name of the stage.
        build: Makes the network, with filters from the train trials.
        recipe: Recipe of the model.
        train, val: Single trials.
        goals: Goals of all objects.
        steps: Length; None is the recipe's.
    """
    stage = recipe.encoder if steps is None else replace(recipe.encoder, steps=steps, epochs=None)
    stage = stage if val is None else replace(stage, patience=_NEVER)
    task = EncoderTask(build(train), recipe, goals.of(train.ids))
    result = run.stage(name, task, TrialRows(train, val, goals), stage)
    return task.encoder.eval(), result


def train_folds(
    run: Run, build: Callable[[ObjectTrials], Encoder], recipe: Neuro3DRecipe, trials: ObjectTrials, goals: Goals
) -> tuple[list[Fold], list[StageResult]]:
    """Train an encoder for each fold of the train objects.

    With `selection="folds"` each keeps the weights that are best on the objects that it did not train on.
    """
    assert recipe.folds is not None  # of a recipe with folds
    found, results = [], []
    for number, held in enumerate(folds_of(goals.ids, goals.label, recipe.folds)):
        out = np.isin(trials.ids, held)
        parts = trials.take(~out), trials.take(out)
        train, val = parts if recipe.selection == "folds" else (parts[0], None)
        encoder, result = train_encoder(run, f"encoder_fold{number}", build, recipe, train, val, goals)
        rows = [row for row in result.log if "val_loss" in row]
        best = min(rows, key=lambda row: row["val_loss"])["step"] if rows else result.steps
        found.append(Fold(encoder, held, int(best)))
        results.append(result)
    return found, results


@torch.no_grad()
def encode(encoder: Encoder, trials: ObjectTrials, device: torch.device) -> Encoded:
    """What an encoder says of trials, on the CPU: unit features, and probabilities in the place of logits."""
    encoder = encoder.to(device).eval()
    parts: list[Encoded] = []
    for start in range(0, len(trials), _BLOCK):
        values = trials.batch(np.arange(start, min(start + _BLOCK, len(trials))))
        parts.append(encoder({name: torch.tensor(x).to(device) for name, x in values.items()}))
    geometry, appearance, shape, color = (torch.cat(columns).cpu() for columns in zip(*parts, strict=True))
    return Encoded(F.normalize(geometry), F.normalize(appearance), shape.softmax(1), color.softmax(1))


def conditions_of(
    recipe: Neuro3DRecipe,
    trials: ObjectTrials,
    goals: Goals,
    encoders: Mapping[str, Encoder],
    sizes: tuple[int, int],
    device: torch.device,
) -> Conditions:
    """What shape and colour train on, for the objects of `goals` in their order.

    An object has as many draws as it has presentations, and their mean. True labels take the place of probabilities
    where the recipe says so.

    Args:
        recipe: Recipe of the model.
        trials: Single train trials.
        goals: Goals of the train objects.
        encoders: Encoder of each object, by id; unused for `condition_from="targets"`.
        sizes: K and Q.
        device: Where to encode.
    """
    pairs = zip((goals.label, goals.color), sizes, strict=True)
    true_shape, true_color = (
        F.one_hot(torch.from_numpy(x), n)[:, None].float() if n else torch.empty(len(x), 1, 0) for x, n in pairs
    )
    if recipe.condition_from == "targets":
        geometry, appearance = (torch.from_numpy(x)[:, None] for x in (goals.geometry, goals.appearance))
        return Conditions(geometry, appearance, true_shape, true_color, strength=_STRENGTH)
    found: dict[str, list[Any]] = {}
    for encoder in {id(x): x for x in encoders.values()}.values():
        mine = np.array([encoders[name] is encoder for name in trials.ids.tolist()])
        single = trials.take(mine)
        for part in (single.averaged(), single):
            said = encode(encoder, part, device)
            for row, name in enumerate(part.ids.tolist()):
                found.setdefault(name, []).append([x[row] for x in said])
    draws = min(map(len, found.values()))
    said = [found[name][:draws] for name in goals.ids.tolist()]
    geometry, appearance, shape, color = (
        torch.stack([torch.stack([draw[part] for draw in one]) for one in said]) for part in range(4)
    )
    if recipe.classes == "label":
        shape, color = (x.expand(-1, draws, -1) for x in (true_shape, true_color))
    return Conditions(geometry, appearance, shape, color)


def error_level(features: Tensor, targets: Tensor) -> float:
    """Standard deviation of the noise, relative to a feature's length, that explains the mean cosine of unit rows.

    A feature of length 1 with noise of length s has the cosine 1 / sqrt(1 + s^2) with itself without noise.
    """
    cosine = float(F.cosine_similarity(features, targets).mean().clamp(0.05, 1))
    return (1 / cosine**2 - 1) ** 0.5


def errors_of(
    trials: ObjectTrials, goals: Goals, encoders: Mapping[str, Encoder], device: torch.device
) -> dict[str, float]:
    """Error level of both features of each object's mean trial, as the encoder of the object reads it."""
    means, parts = trials.averaged(), []
    for encoder in {id(x): x for x in encoders.values()}.values():
        part = means.take(np.array([encoders[name] is encoder for name in means.ids.tolist()]))
        goal, said = goals.of(part.ids), encode(encoder, part, device)
        parts.append((said.geometry, goal.geometry, said.appearance, goal.appearance))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return {"geometry": error_level(*columns[:2]), "appearance": error_level(*columns[2:])}


def tested(trials: ObjectTrials, goals: Goals) -> str:
    """The test that trials identify their objects, on means over bins of time."""
    means = trials.averaged()
    rows = goals.rows(means.ids)
    values = SensorFeatures().fit(trials, goals.label[goals.rows(trials.ids)]).transform(means)
    features = np.concatenate((goals.geometry[rows], goals.appearance[rows]), 1)
    return str(alignment_of(trials.subject, values, features, trials.split_hash))


def averaged(said: Encoded, ids: np.ndarray) -> tuple[Encoded, np.ndarray]:
    """Means over the rows of each object, in the order in which objects first occur; unit features again."""
    names = list(dict.fromkeys(ids.tolist()))
    geometry, appearance, shape, color = (
        torch.stack([x[torch.from_numpy(ids == name)].mean(0) for name in names]) for x in said
    )
    return Encoded(F.normalize(geometry), F.normalize(appearance), shape, color), np.array(names)
