"""Recipes of SynBrain: sizes, losses and training of both stages, as frozen dataclasses built by plain functions.

    recipe = dataclasses.replace(tiny(), kl_weight=0.02)

Stage 1 trains the BrainVAE, stage 2 the mapper to its posterior means. Paper: SynBrain, arXiv 2508.10298.
"""

from dataclasses import dataclass, field, replace

from ...errors import check_choice
from ...training.recipe import LatentRecipe, TrainingStage

__all__ = ["MapperSize", "SynBrainRecipe", "VAESize", "named", "nano", "paper", "tiny", "veca", "veca_cores"]


@dataclass(frozen=True)
class VAESize:
    """Sizes of a BrainVAE; the defaults are the paper's.

    Attributes:
        stem: Channels after the first convolution.
        stem_kernel: Its odd width in voxels; the released code has 7, Algorithm 2 of the paper 1.
        channels: Channels of the levels.
        blocks: Residual blocks of an encoder level; a decoder level has one more.
        num_down: Number of levels, from the first, that halve the length.
        pool: Length to which the voxels are pooled.
        hidden: Width of the perceptrons on the length axis.
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
        width: Width of its tokens; if it differs from that of the image tokens, there is a linear layer in front.
        depth, heads: Number of blocks and of heads of the transformer.
        conditioning: "adaln" as published (time always 0), or "plain": LayerNorm with its own scale and shift, the same
            functions with fewer parameters.
    """

    width: int = 1664
    depth: int = 8
    heads: int = 13
    conditioning: str = "adaln"

    def __post_init__(self):
        check_choice("conditioning", self.conditioning, ("adaln", "plain"))


def _vae_stage() -> TrainingStage:
    return TrainingStage(epochs=15, weight_decay=0.05, seed=1024, patience=3, stop_share=0.2)


def _mapper_stage(steps: int) -> TrainingStage:
    return TrainingStage(steps=steps, clip_norm=1.0, ema_decay=0.9999, patience=3)


@dataclass(frozen=True)
class SynBrainRecipe(LatentRecipe):
    """All that decides how a SynBrain is built and trained.

    Attributes:
        vae, mapper: Sizes of the networks.
        stage1, stage2: Training of the BrainVAE and of the mapper.
        adapt1, adapt2: The same for a new subject.
        train_mapper: Part of the mapper that `adapt2` trains: "mlp", "attn", "all" or "none".
        contrast_group: Number of trials that SoftCLIP compares with each other; None is the whole batch.
        readout: What turns a latent into responses: "decoder" is the BrainVAE's, as published; "linear" a ridge from
            latents to the voxels of a subject; "chosen" the one with the least error on validation images.
        and those of `LatentRecipe`.
    """

    contrast_share: float = 0.5
    vae: VAESize = field(default_factory=VAESize)
    mapper: MapperSize = field(default_factory=MapperSize)
    stage1: TrainingStage = field(default_factory=_vae_stage)
    stage2: TrainingStage = field(default_factory=lambda: _mapper_stage(50_000))
    adapt1: TrainingStage = field(default_factory=_vae_stage)
    adapt2: TrainingStage = field(default_factory=lambda: _mapper_stage(4_000))
    train_mapper: str = "mlp"
    contrast_group: int | None = None
    readout: str = "decoder"

    def __post_init__(self):
        super().__post_init__()
        check_choice("train_mapper", self.train_mapper, ("mlp", "attn", "all", "none"))
        check_choice("readout", self.readout, ("decoder", "linear", "chosen"))


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
        name="paper",
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
    return replace(
        SynBrainRecipe(),
        name="veca",
        token_width=768,
        mapper=mapper,
        kl_weight=0.017,
        readout="chosen",
        stack="reduced_rank",
    )


def veca_cores() -> SynBrainRecipe:
    """As `veca`, on the 64 cores of VECA base: latents a quarter of the size."""
    return replace(veca(), name="veca_cores", num_tokens=64, kl_weight=0.068)


def tiny() -> SynBrainRecipe:
    """Seconds on a processor: 16 tokens of width 32, some 400 simulated voxels, 800 images with two trials each."""
    stage1 = TrainingStage(steps=525, lr=1e-3, weight_decay=0.05, batch_size=32)
    stage2 = TrainingStage(steps=1_500, lr=1e-3, batch_size=32, clip_norm=1.0, ema_decay=0.999)
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
        precision="fp32",
    )


def nano() -> SynBrainRecipe:
    """A recipe for the shipped `veca_nano_patch8`: its 8 x 8 tokens are reduced to 4 x 4 of width 32.

    It takes three minutes on one processor core for 1,500 simulated voxels and 2,600 trials. Sizes, steps and rates
    were chosen on the test images of another simulated subject than those of the published scores.
    """
    base = tiny()
    return replace(
        base,
        name="nano",
        reduce=(4, 32),
        vae=VAESize(stem=16, channels=(16, 16, 32), blocks=1, pool=512, hidden=128),
        stage1=replace(base.stage1, steps=500, lr=3e-3),
        stage2=replace(base.stage2, steps=1_000, lr=3e-3),
        adapt1=replace(base.adapt1, lr=3e-3),
        adapt2=replace(base.adapt2, lr=3e-3),
        readout="chosen",
        stack="reduced_rank",
    )


_RECIPES = {"paper": paper, "veca": veca, "veca_cores": veca_cores, "nano": nano, "tiny": tiny}


def named(name: str) -> SynBrainRecipe:
    """A recipe by its name; an unknown one is a `BrainDataError` that lists them."""
    check_choice("a recipe", name, tuple(_RECIPES))
    return _RECIPES[name]()
