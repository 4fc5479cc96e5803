"""Recipes: how a stage is trained, and the settings that all systems share."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from veca.train.schedules import SCHEDULES

from ..errors import BrainDataError, check_choice
from ..records import from_json, to_json

__all__ = ["EmbeddingRecipe", "LatentRecipe", "ModelRecipe", "StagedRecipe", "TrainingStage"]


@dataclass(frozen=True)
class TrainingStage:
    """Settings of one stage, which AdamW trains.

    Attributes:
        steps, epochs: Length of the longest run, in steps or in passes over the trials; exactly one is given.
        lr, weight_decay, betas: Arguments of AdamW; `lr` is the largest learning rate.
        batch_size: Number of trials of a step, over all processes.
        micro_batch: Most trials that a process computes at a time. Their gradients add up, but a contrast sees no more
            trials than these. None is all of its share.
        clip_norm: Largest norm of the gradient; None never clips.
        ema_decay: Decay of the averaged weights, after n steps at most (1 + n) / (10 + n); None keeps no average.
        seed: Seed of weights, order and noise.
        patience: Number of epochs without a better validation loss before the stage ends with the best weights. None
            keeps the last. Without validation trials it does not apply.
        stop_mse: An epoch whose mean training error is below this is the last; None has no bound.
        stop_share: The same as a share of the total training variance, used where there are no validation trials.
        schedule: Course of the learning rate: "constant", "cosine" or "one_cycle", see `lr_factor`; or "plateau", which
            is lowered tenfold where the validation loss does not fall, see `plateau_factor`.
        warmup: Number of first steps in which the learning rate rises linearly. "one_cycle" has its own rise.
        least_lr: Learning rate below which the schedule does not go.
        groups: (beginning of the names, factor of the learning rate, weight decay) of parameters that differ from the
            others. A parameter belongs to the first group that its name begins with.
        validate_first: Validate before the first step as well, so that the weights at the start can be the best ones.
    """

    steps: int | None = None
    epochs: int | None = None
    lr: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    batch_size: int = 24
    micro_batch: int | None = None
    clip_norm: float | None = None
    ema_decay: float | None = None
    seed: int = 0
    patience: int | None = None
    stop_mse: float | None = None
    stop_share: float | None = None
    schedule: str = "constant"
    warmup: int = 0
    least_lr: float = 0.0
    groups: tuple[tuple[str, float, float], ...] = ()
    validate_first: bool = False

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise BrainDataError(f"expected either steps or epochs, got steps={self.steps} and epochs={self.epochs}")
        for name in ("steps", "epochs", "batch_size", "micro_batch", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BrainDataError(f"expected {name} of at least 1, got {value}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise BrainDataError(f"expected ema_decay from 0 to below 1, got {self.ema_decay}")
        for name in ("seed", "warmup"):
            if getattr(self, name) < 0:
                raise BrainDataError(f"expected {name} of at least 0, got {getattr(self, name)}")
        check_choice("schedule", self.schedule, (*SCHEDULES, "plateau"))
        if not 0 <= self.least_lr <= self.lr:
            raise BrainDataError(f"expected least_lr from 0 to lr, {self.lr}, got {self.least_lr}")
        if self.schedule == "one_cycle" and self.warmup:
            raise BrainDataError(f"expected no warmup with schedule='one_cycle', which has its own, got {self.warmup}")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON; without the later ones, such as `schedule`, where these are the defaults.

        A stage without them equals one that was saved before they existed, so that its run can be resumed.
        """
        return {key: value for key, value in to_json(self).items() if _LATER.get(key, ...) != value}


# defaults of the settings that older runs lack
_LATER = {"schedule": "constant", "warmup": 0, "least_lr": 0.0, "groups": [], "validate_first": False}


@dataclass(frozen=True)
class StagedRecipe:
    """A recipe as JSON: sizes, losses, and one `TrainingStage` for each stage that the class of the system names."""

    def to_json(self) -> dict[str, Any]:
        """The recipe as dictionaries, lists, numbers and strings."""
        stages = {x.name: getattr(self, x.name) for x in fields(self)}
        stages = {name: stage.to_json() for name, stage in stages.items() if isinstance(stage, TrainingStage)}
        return to_json(self) | stages

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The recipe that `to_json` described; a key that is left out has its default.

        Raises:
            BrainDataError: A key is unknown.
        """
        return from_json(cls, content, "recipe")


@dataclass(frozen=True)
class ModelRecipe(StagedRecipe):
    """What the recipes of systems of images say: which tokens and which responses, and how they are scaled.

    Attributes:
        name: Name of the recipe.
        what: Features of an image: "tokens", or "pooled", which is one token.
        tokens: "raw", "scaled" to mean 0 and variance 1 over training images, or "embedding": pooled features of length
            1, see `EmbeddingSpace`.
        reduce: (side, width) to which scaled tokens are averaged and projected first, see `TokenScaler`; None keeps
            them whole.
        response_scale: "as_is", "train_z", or "auto": as they are where they carry the record of a normaliser.
        validation: Share of the training images that is held out.
        precision: "auto" is bf16 autocast on a GPU that has it, else fp32.
        grad_checkpointing: Compute activations again in the backward pass instead of keeping them.
        stack: Linear baseline that `veca brain train` stacks the model with, see `Stacked`; None trains it alone.
    """

    name: str = "custom"
    what: str = "tokens"
    tokens: str = "scaled"
    reduce: tuple[int | None, int | None] | None = None
    response_scale: str = "auto"
    validation: float = 0.05
    precision: str = "auto"
    grad_checkpointing: bool = False
    stack: str | None = None

    def __post_init__(self):
        check_choice("what", self.what, ("tokens", "pooled"))
        check_choice("tokens", self.tokens, ("raw", "scaled", "embedding"))
        if self.reduce is not None and (self.tokens, self.what) != ("scaled", "tokens"):
            raise BrainDataError(f"expected reduce with scaled tokens only, got {self.tokens} {self.what}")
        check_choice("response_scale", self.response_scale, ("auto", "as_is", "train_z"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if not 0 <= self.validation < 1:
            raise BrainDataError(f"expected validation from 0 to below 1, got {self.validation}")


@dataclass(frozen=True)
class EmbeddingRecipe(ModelRecipe):
    """What the recipes of systems say that see an image as one vector of length 1, see `EmbeddingSpace`.

    Attributes:
        embed_width: Number E of principal components of pooled features; None keeps all features.
        and those of `ModelRecipe`.
    """

    what: str = "pooled"
    tokens: str = "embedding"
    embed_width: int | None = None


@dataclass(frozen=True)
class LatentRecipe(ModelRecipe):
    """What the recipes of systems with a variational latent add: its size, and how it is held to the image tokens.

    The loss of the first stage is MSE + kl_weight * KL + contrast weight * SoftCLIP + ..., where MSE is summed over
    voxels and KL over the latent. A contrast weight of None is `contrast_share` times the total training variance in
    model units: a fixed number suits one count and scale of voxels only.

    Attributes:
        num_tokens, token_width: m and d, the size of the image tokens and of the latents.
        kl_weight, contrast_weight, contrast_share: Weights of the loss, see above.
        temperature: Temperature of SoftCLIP, on cosines.
        and those of `ModelRecipe`.
    """

    num_tokens: int = 256
    token_width: int = 1664
    kl_weight: float = 0.001
    contrast_weight: float | None = None
    contrast_share: float = 0.064
    temperature: float = 0.125

    def contrast_weight_for(self, total_variance: float) -> float:
        """The weight of SoftCLIP for responses with this training variance, summed over voxels, in model units."""
        return self.contrast_share * total_variance if self.contrast_weight is None else self.contrast_weight
