"""What the stages of a Neuro3D read and minimise.

| stage | rows | task |
|---|---|---|
| encoder | train trials; a validation row is the mean of an object's presentations | `EncoderTask` |
| shape | train objects | `ShapeTask` |
| color | train objects | `ColorTask` |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...data.objects import ObjectTrials
from ...nn.point_pairs import paired_noise, renewed
from ...nn.points import PointTransformer, points_loss
from ...training.batches import Batch
from .losses import ClassWeights, Goal, balanced, encoder_loss, paint_loss
from .model import FusionEncoder, OfficialEncoder
from .recipes import Neuro3DRecipe
from .targets import Goals

__all__ = [
    "ColorTask",
    "Conditions",
    "EncoderTask",
    "ShapeTask",
    "TrialBatch",
    "TrialRows",
    "condition_of",
    "unit_clouds",
]

_NEW = 0.2  # share of new noise in that of `paired_noise`


class TrialBatch(NamedTuple):
    """Trials with the goals of their objects. Streams that the encoder does not see are empty, (B, 0).

    Attributes:
        subject, rows: As in `Batch`.
        static, dynamic: (B, C, T) Trials.
        static_mean, dynamic_mean: (B, C, T) Means of all presentations of the same objects.
        spread: (B, 1, 1) Factor that gives the distance from this mean the variance of a trial's noise.
        geometry, appearance, label, color: See `Goal`.
    """

    subject: str
    rows: np.ndarray
    static: Tensor
    dynamic: Tensor
    static_mean: Tensor
    dynamic_mean: Tensor
    spread: Tensor
    geometry: Tensor
    appearance: Tensor
    label: Tensor
    color: Tensor

    @property
    def goal(self) -> Goal:
        return Goal(self.geometry, self.appearance, self.label, self.color)

    def trials(self, suffix: str = "") -> dict[str, Tensor]:
        """Trials, or their means, by stream."""
        found = {name: getattr(self, name + suffix) for name in ("static", "dynamic")}
        return {name: values for name, values in found.items() if values.ndim == 3}


class TrialRows:
    """A source whose rows are trials; see `brainmodels.training.batches.Source`.

    Args:
        train: Single trials.
        val: Single trials of objects that validate, which are averaged; None has none.
        goals: Goals of all objects.
    """

    def __init__(self, train: ObjectTrials, val: ObjectTrials | None, goals: Goals):
        self.trials = {"train": train} | ({} if val is None or not len(val) else {"val": val.averaged()})
        self.goals = goals
        self.means = {part: trials.averaged() for part, trials in self.trials.items()}
        self.mean_of: dict[str, np.ndarray] = {}
        for part, means in self.means.items():
            places = {name: row for row, name in enumerate(means.ids.tolist())}
            self.mean_of[part] = np.array([places[name] for name in self.trials[part].ids.tolist()])

    def sizes(self, part: str) -> dict[str, int]:
        """Number of trials by subject."""
        return {self.trials[part].subject: len(self.trials[part])} if part in self.trials else {}

    def batch(self, part: str, subject: str, rows: np.ndarray) -> TrialBatch:
        """Trials, on the CPU."""
        trials, empty = self.trials[part], torch.empty(len(rows), 0)
        single, mean = trials.batch(rows), self.means[part].batch(self.mean_of[part][rows])
        columns = (("static", single), ("dynamic", single), ("static", mean), ("dynamic", mean))
        values = [torch.from_numpy(found[name]) if name in found else empty for name, found in columns]
        count = self.means[part].repeats[self.mean_of[part][rows]] / trials.repeats[rows]
        spread = torch.from_numpy(np.sqrt(count / np.maximum(count - 1, 1))).float()[:, None, None]
        return TrialBatch(*(subject, rows, *values, spread, *self.goals.of(trials.ids[rows])))

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """Trials in words."""
        return f"trials of {', '.join(self.trials[part].ids[rows[:8]].tolist())}"


class EncoderTask(nn.Module):
    """The loss of the encoder on trials, some of which are replaced by means or get noise.

    Args:
        encoder: The network.
        recipe: Recipe of the model.
        goals: Goals of the train trials' objects, one row a trial, whose frequencies weigh the classes.
    """

    label_weights: Tensor
    color_weights: Tensor

    def __init__(self, encoder: FusionEncoder | OfficialEncoder, recipe: Neuro3DRecipe, goals: Goal):
        super().__init__()
        self.encoder, self.recipe = encoder, recipe
        counts = encoder.shape.out_features, getattr(encoder.color, "out_features", 0)
        self.register_buffer("label_weights", balanced(goals.label, counts[0]))
        self.register_buffer("color_weights", balanced(goals.color, counts[1]))

    def forward(self, batch: TrialBatch, generator: torch.Generator) -> dict[str, Tensor]:
        trials = self._varied(batch, generator) if self.training else batch.trials()
        with _drawing_from(generator):  # dropout draws from the global generator
            found = self.encoder(trials)
        weights = ClassWeights(self.label_weights, self.color_weights)
        scale = getattr(self.encoder, "logit_scale", None)
        return encoder_loss(found, batch.goal, weights, self.recipe.loss, scale, self.recipe.raw_logit_scale)

    def _varied(self, batch: TrialBatch, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, varied = self.recipe, {}
        strength, rate = recipe.noise
        means, singles = batch.trials("_mean"), batch.trials()
        options: Any = {"device": generator.device, "generator": generator}
        other = torch.randperm(len(batch.rows), **options)
        for name, x in singles.items():
            draws = torch.rand(3, len(x), 1, 1, **options)
            varied[name] = torch.where(draws[0] < recipe.mean_rate, means[name], x)
            if rate:
                varied[name] = varied[name] + strength * (draws[1] < rate) * torch.randn(x.shape, **options)
            if recipe.residual_noise is not None:
                factor = recipe.residual_noise * (2 * draws[2] - 1)  # of either sign
                varied[name] = varied[name] + factor * (batch.spread * (x - means[name]))[other]
        return varied


def condition_of(feature: Tensor, probable: Tensor | None = None, level: Tensor | None = None) -> Tensor:
    """What a network of points is told (B, k): a direction, probabilities or labels, and an error level.

    Each part has a length of about 1, which the networks' first layers expect.

    Args:
        feature: (B, d) Features of any length.
        probable: (B, K) Probabilities, or one-hot labels.
        level: (B, 1) Error level of the features.
    """
    parts = [nn.functional.normalize(feature)]
    parts += [] if probable is None else [probable]
    parts += [] if level is None else [level]
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class Conditions:
    """What shape and colour train on: features of objects as an encoder reads them, several draws an object.

    Attributes:
        geometry, appearance: (n, draws, d) unit features.
        shape, color: (n, draws, K) and (n, draws, Q) probabilities, or one-hot labels.
        strength: Largest standard deviation of the noise that is added to the features, relative to their length. Its
            draw is told to the networks. None adds none.
    """

    geometry: Tensor
    appearance: Tensor
    shape: Tensor
    color: Tensor
    strength: float | None = None

    def draw(self, rows: np.ndarray, kind: str, generator: torch.Generator, classes: bool) -> Tensor:
        """Conditions (B, k) of some objects for "shape" or "color", from one draw each."""
        device = generator.device
        rows_t = torch.from_numpy(rows)
        which = torch.randint(self.geometry.shape[1], (len(rows),), device=device, generator=generator).cpu()
        feature = (self.geometry if kind == "shape" else self.appearance)[rows_t, which].to(device)
        probable = (self.shape if kind == "shape" else self.color)[rows_t, which].to(device) if classes else None
        if self.strength is None:
            return condition_of(feature, probable)
        level = self.strength * torch.rand(len(rows), 1, device=device, generator=generator)
        noise = torch.randn(feature.shape, device=device, generator=generator) / feature.shape[1] ** 0.5
        return condition_of(feature + level * noise, probable, level)


class ShapeTask(nn.Module):
    """The loss of the denoiser on clouds of the train objects.

    Args:
        denoiser: The network.
        recipe: Recipe of the model.
        clouds: (n, N, 3) Points of the objects in model units.
        conditions: Conditions of the same objects.
    """

    def __init__(self, denoiser: PointTransformer, recipe: Neuro3DRecipe, clouds: Tensor, conditions: Conditions):
        super().__init__()
        self.denoiser, self.recipe, self.conditions = denoiser, recipe, conditions
        paired = recipe.pair_noise is not None
        noise = paired_noise(clouds, recipe.shape.seed, recipe.pair_noise or 1) if paired else clouds[..., :0]
        self.clouds = torch.cat((clouds, noise), 2)  # (n, N, 6), or (n, N, 3)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        recipe = self.recipe
        both = _some_points(self.clouds[torch.from_numpy(batch.rows)], recipe.points, generator)
        points, noise = both[..., :3].contiguous(), both[..., 3:]
        condition = self.conditions.draw(batch.rows, "shape", generator, recipe.classes is not None)
        options = {"objective": recipe.objective, "generator": generator, "dropout": recipe.condition_dropout}
        known = None if recipe.pair_noise is None else renewed(noise, _NEW, generator)
        return {"loss": points_loss(self.denoiser, points, condition, noise=known, **options)}


class ColorTask(nn.Module):
    """The loss of the painter on true clouds of the train objects, whose points are moved a little.

    Args:
        painter: The network.
        recipe: Recipe of the model.
        clouds: (n, N, 6) Points of the objects in model units, and colours in [-1, 1].
        conditions: Conditions of the same objects.
    """

    def __init__(self, painter: PointTransformer, recipe: Neuro3DRecipe, clouds: Tensor, conditions: Conditions):
        super().__init__()
        self.painter, self.recipe, self.clouds, self.conditions = painter, recipe, clouds, conditions

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        recipe = self.recipe
        cloud = _some_points(self.clouds[torch.from_numpy(batch.rows)], recipe.points, generator)
        condition = self.conditions.draw(batch.rows, "color", generator, recipe.classes is not None)
        moved = torch.randn(cloud[..., :3].shape, device=cloud.device, generator=generator)
        painted = self.painter(cloud[..., :3] + recipe.jitter * moved, None, condition)
        return {"loss": paint_loss(painted, cloud[..., 3:], recipe.color_loss)}


def unit_clouds(clouds: Mapping[str, np.ndarray], ids: np.ndarray) -> Tensor:
    """Clouds as the networks see them: fp32 (n, N, 6), centred, coordinates of unit variance, colours in [-1, 1].

    Clouds of unequal numbers of points are cut to the smallest number by an even choice.
    """
    count = min(len(clouds[name]) for name in ids.tolist())
    found = np.empty((len(ids), count, 6), np.float32)
    for row, name in enumerate(ids.tolist()):
        cloud = clouds[name][np.linspace(0, len(clouds[name]) - 1, count).round().astype(int)]
        xyz = cloud[:, :3] - cloud[:, :3].mean(0)
        found[row, :, :3], found[row, :, 3:] = xyz / np.sqrt(np.square(xyz).mean()), 2 * cloud[:, 3:6] - 1
    return torch.from_numpy(found)


def _some_points(clouds: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A new choice of `count` points of each cloud (B, N, k), without repeats, on the device of the generator."""
    order = torch.rand(clouds.shape[:2], device=generator.device, generator=generator).topk(count, 1).indices
    return clouds.to(generator.device).take_along_dim(order.unsqueeze(-1), 1)  # (B, count, k)


class _drawing_from:
    """Within it, torch's global generators draw what a generator decides, and afterwards go on as before."""

    def __init__(self, generator: torch.Generator):
        seed = int(torch.randint(2**31, (), device=generator.device, generator=generator))
        devices = [generator.device] if generator.device.type == "cuda" else []
        self._seed, self._fork = seed, torch.random.fork_rng(devices)

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)
