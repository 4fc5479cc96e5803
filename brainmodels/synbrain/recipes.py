"""Recipes of SynBrain: sizes, losses and training of both stages, as frozen dataclasses built by plain functions.

    recipe = dataclasses.replace(tiny(), kl_weight=0.02)

Stage 1 trains the BrainVAE, stage 2 the mapper to its posterior means. Paper: SynBrain, arXiv 2508.10298.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import BrainDataError, near_names
from ..nn.settings import check_choice, from_json, to_json

__all__ = ["MapperSize", "Stage", "SynBrainRecipe", "VAESize", "named", "paper", "tiny", "veca", "veca_cores"]

_CHOICES = {
    "conditioning": ("adaln", "plain"),
    "tokens": ("raw", "scaled"),
    "response_scale": ("auto", "as_is", "train_z"),
    "train_mapper": ("mlp", "attn", "all", "none"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}


def _check_choices(record: Any) -> None:
    for name in {f.name for f in fields(record)} & set(_CHOICES):
        check_choice(name, getattr(record, name), _CHOICES[name])


@dataclass(frozen=True)
class VAESize:
    """Sizes of a BrainVAE; the defaults are the paper's.

    Attributes:
        stem: channels after the first convolution.
        stem_kernel: its odd width in voxels; the released code has 7, Algorithm 2 of the paper 1.
        channels: of the levels.
        blocks: residual blocks of an encoder level; a decoder level has one more.
        num_down: how many of the first levels halve the length.
        pool: length to which the voxels are pooled.
        hidden: width of the perceptrons on the length axis.
    """

    stem: int = 128
    stem_kernel: int = 7
    channels: tuple[int, ...] = (256, 512, 512)
    blocks: int = 2
    num_down: int = 1
    pool: int = 8192
    hidden: int = 2048


@dataclass(frozen=True)
class MapperSize:
    """Sizes of the mapper from image tokens to latents; the defaults are those of the paper's script.

    Attributes:
        width: of its tokens; another one than that of the image tokens adds a linear layer in front.
        depth, heads: of the transformer.
        conditioning: "adaln" as published (time always 0), or "plain": LayerNorm with its own scale and shift, the same
            functions with fewer parameters.
    """

    width: int = 1664
    depth: int = 8
    heads: int = 13
    conditioning: str = "adaln"

    def __post_init__(self):
        _check_choices(self)


@dataclass(frozen=True)
class Stage:
    """Training of one stage: AdamW with a constant learning rate.

    Attributes:
        steps, epochs: the longest run, in optimiser steps or in passes over the trials; exactly one is given.
        lr, weight_decay, betas: of AdamW.
        batch_size: trials a step.
        clip_norm: largest norm of the gradient; None never clips.
        ema_decay: of the averaged weights after n steps, at most (1 + n) / (10 + n); None keeps none.
        seed: of weights, order and noise.
        patience: epochs without a better validation loss before the stage ends; None does not look.
        stop_mse: an epoch whose mean training error, summed over voxels, is below it is the last; None has no bound.
        stop_share: the same as a share of the total training variance, used where there are no validation images.
    """

    steps: int | None = None
    epochs: int | None = None
    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    batch_size: int = 24
    clip_norm: float | None = None
    ema_decay: float | None = None
    seed: int = 0
    patience: int | None = 3
    stop_mse: float | None = None
    stop_share: float | None = 0.2

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise BrainDataError(f"expected either steps or epochs, got steps={self.steps} and epochs={self.epochs}")


@dataclass(frozen=True)
class SynBrainRecipe:
    """All that decides how a SynBrain is built and trained.

    The loss of stage 1 is MSE + kl_weight * KL + w * SoftCLIP, where MSE is summed over voxels and KL over the latent.
    w is contrast_weight, or contrast_share times the total training variance in model units where that is None: a
    number fits one count and scale of voxels only.

    Attributes:
        name: of the recipe.
        num_tokens, token_width: of the image tokens and the latent.
        vae, mapper: sizes.
        stage1, stage2: training of the BrainVAE and of the mapper.
        adapt1, adapt2: the same for a new subject.
        train_mapper: what `adapt2` trains: "mlp", "attn", "all" or "none".
        kl_weight, contrast_weight, contrast_share: see above.
        temperature: of SoftCLIP, on cosines.
        contrast_group: trials that SoftCLIP compares with each other; None is the whole batch.
        tokens: "raw", or "scaled" to mean 0 and variance 1 over training images.
        response_scale: "as_is", "train_z", or "auto": as they are where they carry the record of a normaliser.
        validation: share of the training images that is held out.
        cache_means: keep the posterior means of all trials for stage 2 instead of encoding them at every step.
        precision: "auto" is bf16 autocast on a GPU that has it, else fp32.
    """

    name: str = "paper"
    num_tokens: int = 256
    token_width: int = 1664
    vae: VAESize = field(default_factory=VAESize)
    mapper: MapperSize = field(default_factory=MapperSize)
    stage1: Stage = field(default_factory=lambda: Stage(epochs=15, seed=1024))
    stage2: Stage = field(
        default_factory=lambda: Stage(steps=50_000, weight_decay=0.0, clip_norm=1.0, ema_decay=0.9999, stop_share=None)
    )
    adapt1: Stage = field(default_factory=lambda: Stage(epochs=15, seed=1024))
    adapt2: Stage = field(
        default_factory=lambda: Stage(steps=4_000, weight_decay=0.0, clip_norm=1.0, ema_decay=0.9999, stop_share=None)
    )
    train_mapper: str = "mlp"
    kl_weight: float = 0.001
    contrast_weight: float | None = None
    contrast_share: float = 0.5
    temperature: float = 0.125
    contrast_group: int | None = None
    tokens: str = "scaled"
    response_scale: str = "auto"
    validation: float = 0.05
    cache_means: bool = False
    precision: str = "auto"

    def __post_init__(self):
        _check_choices(self)
        if not 0 <= self.validation < 1:
            raise BrainDataError(f"expected validation from 0 to below 1, got {self.validation}")

    def contrast_weight_for(self, total_variance: float) -> float:
        """The weight of SoftCLIP for responses with this training variance, summed over voxels, in model units."""
        return self.contrast_share * total_variance if self.contrast_weight is None else self.contrast_weight

    def to_json(self) -> dict[str, Any]:
        """All of the recipe in dictionaries, lists, numbers and strings."""
        return to_json(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SynBrainRecipe":
        """The recipe that `to_json` described; what is left out has its default.

        Raises:
            BrainDataError: a key is unknown.
        """
        return from_json(cls, content, "recipe")


def paper() -> SynBrainRecipe:
    """The published model on raw OpenCLIP bigG tokens and NSD betas / 2000, single trials; no validation images.

    The bounds of an epoch's error (350) and the contrast weight (1000) belong to the 15,724 voxels of subject 1 in that
    unit. Under two hours on four A100-40G by the authors. The length of the first adaptation stage was not published:
    15 epochs are our choice. The released run on two GPUs compares 12 trials at a time: `contrast_group=12`.
    """
    base = SynBrainRecipe()
    exact = {"patience": None, "stop_share": None}
    return replace(
        base,
        stage1=replace(base.stage1, **exact, stop_mse=350.0),
        stage2=replace(base.stage2, **exact),
        adapt1=replace(base.adapt1, **exact),
        adapt2=replace(base.adapt2, **exact, steps=40_000),
        contrast_weight=1000.0,
        tokens="raw",
        response_scale="as_is",
        validation=0.0,
    )


def veca() -> SynBrainRecipe:
    """The paper's BrainVAE on the 256 patch tokens of VECA base at 256 px, with a mapper of 87.6 M parameters.

    The terms of the loss are balanced as in the paper: contrast weight 0.5 and kl_weight * m * d 0.21 of the total
    variance, for 15,724 voxels of unit variance. Not yet measured on real responses.
    """
    mapper = MapperSize(width=768, depth=8, heads=12)
    return replace(SynBrainRecipe(), name="veca", token_width=768, mapper=mapper, kl_weight=0.017)


def veca_cores() -> SynBrainRecipe:
    """As `veca`, on the 64 cores of VECA base: latents a quarter of the size."""
    return replace(veca(), name="veca_cores", num_tokens=64, kl_weight=0.068)


def tiny() -> SynBrainRecipe:
    """Seconds on a processor: 16 tokens of width 32, some 400 simulated voxels, 800 images with two trials each."""
    long = {"lr": 1e-3, "batch_size": 32, "patience": None, "stop_share": None}
    stage1 = Stage(steps=525, **long)
    stage2 = Stage(steps=1_500, weight_decay=0.0, clip_norm=1.0, ema_decay=0.999, **long)
    return SynBrainRecipe(
        name="tiny",
        num_tokens=16,
        token_width=32,
        vae=VAESize(stem=16, channels=(16, 32, 32), blocks=1, pool=256, hidden=128),
        mapper=MapperSize(width=64, depth=3, heads=4),
        stage1=stage1,
        stage2=stage2,
        adapt1=replace(stage1, steps=150),
        adapt2=replace(stage2, steps=300),
        kl_weight=0.1,
        contrast_share=0.2,
        response_scale="train_z",
        cache_means=True,
        precision="fp32",
    )


_RECIPES = {"paper": paper, "veca": veca, "veca_cores": veca_cores, "tiny": tiny}


def named(name: str) -> SynBrainRecipe:
    """A recipe by its name; an unknown one is a `BrainDataError` that lists them."""
    if name not in _RECIPES:
        known = ", ".join(_RECIPES)
        raise BrainDataError(f"expected a recipe of {known}, got {name!r}{near_names(name, list(_RECIPES))}")
    return _RECIPES[name]()
