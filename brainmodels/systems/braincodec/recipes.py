"""Recipes of BraInCoRL and BrainCoDec: sizes and training, as frozen dataclasses built by plain functions.

    recipe = dataclasses.replace(tiny(), noise_channel=False)
    stage1 = dataclasses.replace(in_context("tiny"), context=(8, 32))

Stage 1 (BraInCoRL, arXiv 2505.15813) writes the linear encoder of a voxel from a few images and responses. Stage 2
(BrainCoDec, arXiv 2604.08537) reads the encoders and responses of many voxels and writes the embedding of an image.
"""

from dataclasses import dataclass, field, replace

from ...errors import BrainDataError, check_choice
from ...training.recipe import EmbeddingRecipe, TrainingStage

__all__ = [
    "CROSS_FITS",
    "LOGNS",
    "PRIORS",
    "BrainCoDecRecipe",
    "InContextRecipe",
    "in_context",
    "named",
    "nano",
    "paper",
    "released",
    "tiny",
    "veca",
]

LOGNS = ("logits", "query", "none")
PRIORS = ("ridge", "isotropic")
CROSS_FITS = ("nested", "finetune", "single")


def _plateau(**changes: int | float | None) -> TrainingStage:
    """A stage of the paper's stage 1: the rate falls from 1e-3 to 1e-5, tenfold each time."""
    base = TrainingStage(epochs=100, lr=1e-3, least_lr=1e-5, weight_decay=0.01, batch_size=80, schedule="plateau")
    return replace(base, **changes)


def _synthetic(**changes: int | float | None) -> TrainingStage:
    """A stage of the paper's stage 2 on synthetic voxels."""
    base = TrainingStage(steps=20_000, least_lr=1e-6, weight_decay=0.01, batch_size=32, schedule="cosine")
    return replace(base, **changes)


def _small(steps: int, lr: float) -> TrainingStage:
    """A stage of a tiny model: half a cosine down to a hundredth of the rate, after 100 steps of warm-up."""
    base = TrainingStage(steps=steps, lr=lr, least_lr=lr / 100, weight_decay=0.01, batch_size=32, clip_norm=1.0)
    return replace(base, schedule="cosine", warmup=100)


@dataclass(frozen=True)
class InContextRecipe(EmbeddingRecipe):
    """All that decides how an `InContextEncoder` is built and trained; sizes are the paper's for embeddings of 512.

    A stage that is None is left out.

    Attributes:
        width: Model width D, at least E + 1. The paper has the next multiple of 80.
        depth, heads: Number of layers, and of heads in each.
        hidden: Hidden width of the SwiGLU layers.
        registers: Number of learned tokens beside the context; the first is read.
        dropout: Share of dropout.
        logn: How attention is scaled by the logarithm of its length, see `Layer`.
        context: Lowest and highest number of context images, drawn for each batch of `extend` and `finetune`.
        pretrain_context: Number of context images in `pretrain`.
        queries: Number of images of a batch whose responses are predicted.
        prior: Prior of synthetic voxels: "ridge" for mean and covariance of the training subjects' ridge weights, or
            "isotropic" for N(0, I).
        pretrain, extend: Training on synthetic voxels.
        finetune: Training on voxels of the training subjects.
        and those of `EmbeddingRecipe`.
    """

    width: int = 560
    depth: int = 20
    heads: int = 10
    hidden: int = 2048
    registers: int = 4
    dropout: float = 0.1
    logn: str = "logits"
    context: tuple[int, int] = (30, 500)
    pretrain_context: int = 500
    queries: int = 100
    prior: str = "ridge"
    pretrain: TrainingStage | None = field(default_factory=lambda: _plateau(steps=50_000, epochs=None))
    extend: TrainingStage | None = field(default_factory=lambda: _plateau(steps=50_000, epochs=None))
    finetune: TrainingStage | None = field(default_factory=lambda: _plateau(patience=5))

    def __post_init__(self):
        super().__post_init__()
        check_choice("logn", self.logn, LOGNS)
        check_choice("prior", self.prior, PRIORS)
        _check_range("context", self.context)
        for name in ("pretrain_context", "queries"):
            if getattr(self, name) < 1:
                raise BrainDataError(f"expected {name} of at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class BrainCoDecRecipe(EmbeddingRecipe):
    """All that decides how a `BrainCoDec` is built and trained; sizes are the paper's for embeddings of 512.

    The loss is 1 - cosine + contrast_weight * InfoNCE. A stage that is None is left out.

    Attributes:
        stage1: Recipe of the model that writes the encoders of voxels.
        width: Model width D.
        depth, heads: Number of layers, and of heads in each.
        hidden, residual_hidden: Hidden width of the SwiGLU layers, and of the residual blocks at both ends.
        registers, readout_tokens: Number of learned tokens beside the voxels, and how many of them are read.
        dropout: Share of dropout.
        logn: How attention is scaled by the logarithm of its length, see `Layer`.
        noise_channel: Whether the token of a voxel says how noisy the voxel is.
        evidence_channel: Whether the token also has w (y - b) / noise variance, which Bayes' rule adds up over voxels.
            The published network has to learn this product.
        legacy_sim: Whether synthetic responses are those of the released code: the intercept is left out, and the noise
            has a standard deviation of 0.1.
        cross_fit: Which model writes the encoders of a training subject. "nested" is trained on the other training
            subjects alone, "finetune" shares its synthetic stages, and "single" has seen the subject.
        runs, run_draws: Numbers of context images of the encoders that are stored, and draws of each.
        synthetic_voxels, extend_voxels, finetune_voxels: Lowest and highest number of voxels, drawn for each batch of a
            stage.
        contrast_weight, temperature: Weight and temperature of InfoNCE.
        mode: How the fitted model decodes: by the "network", by "inversion" of the encoders, or "chosen" by the mean
            cosine on validation images.
        synthetic, extend: Training on synthetic voxels.
        finetune: Training on responses of the training subjects and stored encoders.
        and those of `EmbeddingRecipe`.
    """

    stage1: InContextRecipe = field(default_factory=InContextRecipe)
    width: int = 768
    depth: int = 8
    heads: int = 8
    hidden: int = 1024
    residual_hidden: int = 2048
    registers: int = 32
    readout_tokens: int = 4
    dropout: float = 0.1
    logn: str = "logits"
    noise_channel: bool = False
    evidence_channel: bool = False
    legacy_sim: bool = False
    cross_fit: str = "nested"
    runs: tuple[int, ...] = (30, 70, 100, 200, 300, 400, 500, 600, 700, 1000)
    run_draws: int = 5
    synthetic_voxels: tuple[int, int] = (200, 200)
    extend_voxels: tuple[int, int] = (200, 4000)
    finetune_voxels: tuple[int, int] = (200, 4000)
    contrast_weight: float = 0.1
    temperature: float = 0.2
    mode: str = "network"
    synthetic: TrainingStage | None = field(default_factory=_synthetic)
    extend: TrainingStage | None = field(default_factory=_synthetic)
    finetune: TrainingStage | None = field(
        default_factory=lambda: TrainingStage(epochs=100, lr=1e-5, weight_decay=0.01, batch_size=32)
    )

    def __post_init__(self):
        super().__post_init__()
        check_choice("logn", self.logn, LOGNS)
        check_choice("cross_fit", self.cross_fit, CROSS_FITS)
        check_choice("mode", self.mode, ("network", "inversion", "chosen"))
        if self.stage1.embed_width != self.embed_width:
            raise BrainDataError(
                f"expected the embed_width of stage1, {self.stage1.embed_width}, got {self.embed_width}"
            )
        for name in ("synthetic_voxels", "extend_voxels", "finetune_voxels"):
            _check_range(name, getattr(self, name))
        if not self.runs or min(self.runs) < 2 or self.run_draws < 1:
            raise BrainDataError(
                f"expected runs of 2 context images or more and run_draws of at least 1, got {self.runs} and "
                f"{self.run_draws}"
            )


def _check_range(name: str, limits: tuple[int, int]) -> None:
    lowest, highest = limits
    if not 1 <= lowest <= highest:
        raise BrainDataError(f"expected {name} from 1 up, the lowest first, got {lowest} to {highest}")


def paper() -> BrainCoDecRecipe:
    """The published models on embeddings of width 512 (CLIP), with our choice where the papers are silent.

    Ours are the numbers of steps, the dropout of stage 1, the rate of the synthetic stages (1e-4; the release has 1e-5)
    and `cross_fit`.
    """
    return BrainCoDecRecipe("paper", stage1=in_context("paper"))


def veca() -> BrainCoDecRecipe:
    """The published depths for the pooled features of VECA base, 768 numbers, with the published widths for so many."""
    return replace(paper(), name="veca", stage1=in_context("veca"), width=1024)


def released() -> BrainCoDecRecipe:
    """The published models as the released code trains them, with its quirks.

    It scales the query input of attention, leaves the intercept out of synthetic responses, and lets stage 1 see all
    subjects. Its scripts have no synthetic stage for stage 1, and no stage with more voxels for stage 2. The number of
    voxels in fine-tuning is the paper's.
    """
    base = paper()
    return replace(
        base,
        name="released",
        stage1=in_context("released"),
        logn="query",
        legacy_sim=True,
        cross_fit="single",
        synthetic_voxels=(100, 200),
        synthetic=_synthetic(steps=None, epochs=1, lr=1e-5),
        extend=None,
    )


def tiny() -> BrainCoDecRecipe:
    """Five minutes on a processor core: pooled features by PCA to 16 numbers, subjects of some 200 voxels."""
    return BrainCoDecRecipe(
        "tiny",
        stage1=in_context("tiny"),
        embed_width=16,
        width=32,
        depth=2,
        heads=4,
        hidden=64,
        residual_hidden=64,
        registers=8,
        dropout=0.0,
        noise_channel=True,
        evidence_channel=True,
        cross_fit="finetune",
        mode="chosen",
        runs=(8, 16, 32, 64),
        run_draws=3,
        synthetic_voxels=(16, 256),
        extend_voxels=(16, 256),
        finetune_voxels=(16, 256),
        synthetic=_small(2_000, 3e-3),
        extend=None,
        finetune=replace(_small(400, 5e-4), patience=20, validate_first=True),
        validation=0.1,
        precision="fp32",
    )


def nano() -> BrainCoDecRecipe:
    """The sizes of `tiny`, for the pooled features of the shipped `veca_nano_patch8`; stage 1 is trained longer."""
    return replace(tiny(), name="nano", stage1=in_context("nano"))


def _in_context_paper() -> InContextRecipe:
    return InContextRecipe("paper")


def _in_context_veca() -> InContextRecipe:
    return replace(_in_context_paper(), name="veca", width=800)


def _in_context_released() -> InContextRecipe:
    return InContextRecipe(
        "released",
        dropout=0.5,
        logn="query",
        pretrain=None,
        extend=None,
        finetune=_plateau(lr=1e-4, weight_decay=0.1, batch_size=64),
        precision="fp16",
    )


def _in_context_tiny() -> InContextRecipe:
    return InContextRecipe(
        "tiny",
        embed_width=16,
        width=32,
        depth=3,
        heads=4,
        hidden=64,
        dropout=0.0,
        context=(8, 64),
        queries=32,
        pretrain=None,
        extend=_small(4_000, 3e-3),
        finetune=_small(300, 3e-3),
        precision="fp32",
    )


def _in_context_nano() -> InContextRecipe:
    return replace(_in_context_tiny(), name="nano", extend=_small(8_000, 3e-3), finetune=_small(300, 5e-4))


_RECIPES = {"paper": paper, "veca": veca, "released": released, "nano": nano, "tiny": tiny}
_IN_CONTEXT = {
    "paper": _in_context_paper,
    "veca": _in_context_veca,
    "released": _in_context_released,
    "nano": _in_context_nano,
    "tiny": _in_context_tiny,
}


def named(name: str) -> BrainCoDecRecipe:
    """A recipe by its name; an unknown one is a `BrainDataError` that lists them."""
    check_choice("a recipe", name, tuple(_RECIPES))
    return _RECIPES[name]()


def in_context(name: str) -> InContextRecipe:
    """The recipe of stage 1 by the name of the whole; an unknown one is a `BrainDataError` that lists them.

    | name | what it is |
    |---|---|
    | "paper" | the published model, first trained on synthetic voxels |
    | "veca" | the same for embeddings of 768 numbers, as VECA base has |
    | "released" | the published model as the released script trains it, on real voxels alone |
    | "tiny" | a minute on a processor core: embeddings of 16 numbers, 8 to 64 context images |
    | "nano" | the same sizes for the shipped `veca_nano_patch8`, twice the steps on synthetic voxels |
    """
    check_choice("a recipe", name, tuple(_IN_CONTEXT))
    return _IN_CONTEXT[name]()
