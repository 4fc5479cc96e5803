"""Recipes: how a stage is trained, and the settings that all systems share."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from veca.train.schedules import SCHEDULES

from ..errors import BrainDataError, check_choice
from ..records import from_json, to_json

__all__ = ["ModelRecipe", "TrainingStage"]


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
        schedule: Course of the learning rate: "constant", "cosine" or "one_cycle", see `lr_factor`.
        warmup: Number of first steps in which the learning rate rises linearly. "one_cycle" has its own rise.
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
        check_choice("schedule", self.schedule, SCHEDULES)
        if self.schedule == "one_cycle" and self.warmup:
            raise BrainDataError(f"expected no warmup with schedule='one_cycle', which has its own, got {self.warmup}")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON; without `schedule` and `warmup` where these are the defaults.

        A stage without them equals one that was saved before they existed, so that its run can be resumed.
        """
        return {key: value for key, value in to_json(self).items() if _LATER.get(key, ...) != value}


_LATER = {"schedule": "constant", "warmup": 0}  # defaults of the settings that older runs lack


@dataclass(frozen=True)
class ModelRecipe:
    """Settings that the recipes of all systems share: tokens, responses, and the losses that tie latents to tokens.

    The loss of the first stage is MSE + kl_weight * KL + contrast weight * SoftCLIP + ..., where MSE is summed over
    voxels and KL over the latent. A contrast weight of None is `contrast_share` times the total training variance in
    model units. A fixed number suits one count and scale of voxels only.

    Attributes:
        name: Name of the recipe.
        num_tokens, token_width: Shape (m, d) of the image tokens and the latents.
        kl_weight, contrast_weight, contrast_share: Weights of the loss, see above.
        temperature: Temperature of SoftCLIP, on cosines.
        what: Features of an image: "tokens", or "pooled" for one token.
        tokens: "raw", or "scaled" to mean 0 and variance 1 over training images.
        reduce: (side, width) to which scaled tokens are averaged and projected before, see `TokenScaler`; None leaves
            them whole.
        response_scale: "as_is", "train_z", or "auto", which leaves responses with the record of a normaliser as is.
        validation: Share of the training images that is held out.
        precision: Precision of `train_stage`; "auto" is bf16 autocast on a GPU that has it, else fp32.
        grad_checkpointing: Compute activations again in the backward pass instead of keeping them.
    """

    name: str = "custom"
    num_tokens: int = 256
    token_width: int = 1664
    kl_weight: float = 0.001
    contrast_weight: float | None = None
    contrast_share: float = 0.064
    temperature: float = 0.125
    what: str = "tokens"
    tokens: str = "scaled"
    reduce: tuple[int | None, int | None] | None = None
    response_scale: str = "auto"
    validation: float = 0.05
    precision: str = "auto"
    grad_checkpointing: bool = False

    def __post_init__(self):
        check_choice("what", self.what, ("tokens", "pooled"))
        check_choice("tokens", self.tokens, ("raw", "scaled"))
        if self.reduce is not None and (self.tokens, self.what) != ("scaled", "tokens"):
            raise BrainDataError(f"expected reduce with scaled tokens only, got {self.tokens} {self.what}")
        check_choice("response_scale", self.response_scale, ("auto", "as_is", "train_z"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if not 0 <= self.validation < 1:
            raise BrainDataError(f"expected validation from 0 to below 1, got {self.validation}")

    def contrast_weight_for(self, total_variance: float) -> float:
        """Return the weight of SoftCLIP.

        Args:
            total_variance: Training variance of the responses in model units, summed over voxels.
        """
        return self.contrast_share * total_variance if self.contrast_weight is None else self.contrast_weight

    def to_json(self) -> dict[str, Any]:
        """Return the recipe in dictionaries, lists, numbers and strings."""
        stages = {x.name: getattr(self, x.name) for x in fields(self)}
        stages = {name: stage.to_json() for name, stage in stages.items() if isinstance(stage, TrainingStage)}
        return to_json(self) | stages

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the recipe that `to_json` described; keys that are left out have their defaults.

        Raises:
            BrainDataError: A key is unknown.
        """
        return from_json(cls, content, "recipe")
