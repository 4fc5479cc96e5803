"""Settings of `veca brain train`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from veca.files import read_json
from veca.report.machine import describe_machine
from veca.train.parallel import World

from ..errors import BrainDataError
from ..training.run import lasting

__all__ = [
    "OF_IMAGES",
    "TrainSettings",
    "changed_recipe",
    "chosen_recipe",
    "one_word",
    "save_run",
    "stage_lengths",
]

OF_IMAGES = (
    "features", "generator", "stack", "held_out", "known", "new", "sessions", "label", "context", "normalizer",
    "cache", "grad_checkpointing", "allow_duplicates",
)  # fmt: skip
"""Settings that only systems of images have."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings of `veca brain train`.

    Attributes:
        model: System to train, see `brainmodels.systems.SYSTEMS`.
        data: "simulated", "simulated:PRESET", or one or several folders of prepared subjects. Systems that decode
            objects take "objects:PRESET" or "eeg3d:FOLDER", and talking heads "clips:toy" or "clips:MANIFEST".
        head: Head model of the clips: "toy", "flame:FILE", "gnm:FILE" or "ict:FOLDER".
        features: One set of features, see `FeatureSet.parse`; the model sees its tokens.
        out: Folder of the run; None is `out/MODEL`. Started again with the same settings, the run goes on. The model
            is in `model` below it.
        recipe: Name of a recipe of the system, such as nano, or a JSON file of a recipe.
        generator: Folder of the generator of a system that takes one; None is that of the recipe, which ships with the
            package or must be named.
        stack: Linear baseline that the model is stacked with: ridge, reduced_rank or prior; none trains the model
            alone. Default: the recipe's.
        subject: Subjects to train on together; none given is the first, or all but those held out.
        held_out: Subjects that no part of the training sees.
        known: Folder of a trained model that is adapted to the subject `new`. A system that aligns two subjects takes a
            model of the known subject whose decoder it uses, or the name of the known subject.
        new: Subject to adapt a known model to, or to align with a known subject.
        sessions: Sessions whose trials of the new subject are trained on; none given are all.
        label: Label of the images that is their class, for recipes of an aligning system that pair images by class.
        context: Number of train images of the new subject; None takes all.
        split: Name of the split; None takes the first. Its validation images stop the training early where the recipe
            has patience.
        normalizer: Normaliser of the responses, as in `veca brain evaluate`; "auto" depends on `context` there too.
        cache: Folder of features; None is `features` below `out`.
        steps: Steps of each stage that the recipe has, in the order of the system; none given are the recipe's.
        batch_size, micro_batch: Batch of every stage; None is the recipe's. A micro-batch bounds memory.
        grad_checkpointing: Compute activations again in the backward pass, which saves memory.
        precision: auto, fp32, bf16 or fp16; None is the recipe's.
        init_seed: Seed of weights, order and noise; None is the recipe's.
        save_every: Steps between checkpoints.
        check_alignment: "auto", or "off", which the model then says.
        allow_duplicates: Go on where equal pictures with different ids are in two parts of the split. The model then
            says so. Default: they are an error.
        seed: Seed of the simulation and of the context images.
        device: Device; None is a GPU where there is one.
        progress: Show bars.
    """

    model: str = "neuroflow"
    data: tuple[str, ...] = ("simulated",)
    head: str = "toy"
    features: str = "veca"
    out: Path | None = None
    recipe: str = "nano"
    generator: Path | None = None
    stack: Literal["recipe", "none", "ridge", "reduced_rank", "prior"] = "recipe"
    subject: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    known: Path | None = None
    new: str | None = None
    sessions: tuple[int, ...] = ()
    label: str | None = None
    context: int | None = None
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
    allow_duplicates: bool = False
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def __post_init__(self):
        if isinstance(self.known, str):
            object.__setattr__(self, "known", Path(self.known))
        for name in ("data", "subject", "held_out"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if (self.known is None) != (self.new is None):
            raise BrainDataError(f"expected both known and new, or neither, got {self.known} and {self.new}")
        for name in ("context", "sessions"):
            if getattr(self, name) and self.new is None:
                raise BrainDataError(f"expected {name} with new, the subject that has few images, got {name} alone")
        both = set(self.held_out) & {*self.subject, *([self.new] if self.new else [])}
        if both:
            raise BrainDataError(f"expected subjects that are trained on or held out, got {min(both)} as both")

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path("out") / self.model if self.out is None else Path(self.out)


def chosen_recipe(kind: Any, word: str) -> Any:
    """The recipe of a system that a word stands for: its name, or a JSON file.

    Raises:
        BrainDataError: The name is unknown, or the file is no recipe of the system.
    """
    if Path(word).suffix == ".json":
        return kind.recipe_type.from_json(read_json(Path(word), BrainDataError))
    return kind.named(word)


def changed_recipe(kind: Any, settings: TrainSettings) -> Any:
    """The recipe of a system that does not learn images, with what the settings change."""
    recipe = chosen_recipe(kind, settings.recipe)
    every = {"batch_size": settings.batch_size, "micro_batch": settings.micro_batch, "seed": settings.init_seed}
    every = {key: value for key, value in every.items() if value is not None}
    lengths = stage_lengths(kind, recipe, settings.steps)
    stages = {name: replace(lasting(getattr(recipe, name), steps), **every) for name, steps in lengths.items()}
    return replace(recipe, precision=settings.precision or recipe.precision, **stages)


def one_word(settings: TrainSettings, default: str) -> str:
    """The word of the data of a system that takes one data set; `default` where none is named.

    Raises:
        BrainDataError: There is another number of words.
    """
    if len(settings.data) != 1:
        raise BrainDataError(f"expected one data set for {settings.model}, got {', '.join(settings.data) or 'none'}")
    return default if settings.data == ("simulated",) else settings.data[0]


def save_run(model: Any, settings: TrainSettings, world: World, **facts: Any) -> Path:
    """Write down how a model was trained and save it, on the first process; returns its folder."""
    machine = describe_machine(world.device, torch.float32)
    model.meta_["run"] = {**facts, "seed": settings.seed, "processes": world.size, "machine": machine}
    folder = settings.folder / "model"
    if world.rank == 0:
        model.save(folder)
    return folder


def stage_lengths(kind: Any, recipe: Any, steps: Sequence[int]) -> dict[str, int | None]:
    """Steps by name of the stages that a recipe has; None where no steps are given.

    Raises:
        BrainDataError: There is another number of stages.
    """
    stages = [name for name in kind.stages if getattr(recipe, name) is not None]
    if steps and len(steps) != len(stages):
        raise BrainDataError(
            f"expected steps of {len(stages)} stages ({', '.join(stages) or 'none'}), got {len(steps)} numbers"
            f"{f'; {kind.trained_by}' if kind.trained_by else ''}"
        )
    return dict(zip(stages, steps or [None] * len(stages), strict=True))
