"""Recipes of MindAligner: rank of the map, pairs, losses and training, as frozen dataclasses built by plain functions.

    recipe = dataclasses.replace(tiny(), init="encode_align")

The first stage trains a decoder of the known subject, where `fit` is asked for one. The second trains the map.
Paper: MindAligner, arXiv 2502.05034.
"""

from dataclasses import dataclass, field, replace

from ...errors import BrainDataError, check_choice
from ...training.recipe import EmbeddingRecipe, TrainingStage

__all__ = [
    "FILMS",
    "INITS",
    "KL_DIRECTIONS",
    "PAIRS",
    "MindAlignerRecipe",
    "named",
    "nano",
    "paper",
    "released",
    "tiny",
]

FILMS = ("residual", "released")
INITS = ("random", "uniform", "encode_align")
KL_DIRECTIONS = ("predicted", "measured")
PAIRS = ("class", "random", "nearest", "same")


def _decoder_stage() -> TrainingStage:
    return TrainingStage(steps=5_000, lr=1e-4, weight_decay=0.05, batch_size=64, patience=3, schedule="cosine")


def _align_stage() -> TrainingStage:
    return TrainingStage(
        steps=100_000,
        lr=1e-5,
        batch_size=64,
        clip_norm=1.0,
        patience=900,
        schedule="one_cycle",
        groups=(("map.", 1.0, 0.1), ("embedder.", 1e3, 0.0)),
        validate_first=True,
    )


@dataclass(frozen=True)
class MindAlignerRecipe(EmbeddingRecipe):
    """All that decides how a MindAligner is built and trained; the defaults are those of `paper`.

    The loss is rec + kl_weight * kl + latent_weight * latent + dec_weight * dec, see `losses`.

    Attributes:
        rank: Largest rank of the map; fewer voxels bound it further.
        init: How the map begins: "random", "uniform" as in the released code, or "encode_align" from that closed form.
        film: Form of the mapper, "residual" or "released", see `CrossStimulusMapper`.
        pairs: Which image of the known subject is paired with a trial: one of the same "class", any ("random"), one of
            the five "nearest" in embedding, or the "same" image.
        kl_weight, kl_temperature, kl_direction: Weight of the divergence over voxels, see `voxel_divergence`.
        latent_weight, dec_weight: Weights of the latents' similarity and of the frozen decoder.
        decoder_depth: Number of residual MLPs of the decoder; with 0 it stays the ridge that it begins with.
        decoder: Training of the decoder, where it has MLPs.
        align: Training of the map and of its helpers. The names of their parameters begin with "map.", "mapper." and
            "embedder.". Patience counts epochs, which have 11 steps with the 680 trials of one session.
        and those of `EmbeddingRecipe`.
    """

    response_scale: str = "as_is"
    rank: int = 4096
    init: str = "random"
    film: str = "residual"
    pairs: str = "class"
    kl_weight: float = 0.1
    kl_temperature: float = 1.0
    kl_direction: str = "predicted"
    latent_weight: float = 1e-3
    dec_weight: float = 0.1
    decoder_depth: int = 2
    decoder: TrainingStage = field(default_factory=_decoder_stage)
    align: TrainingStage = field(default_factory=_align_stage)

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (
            ("init", INITS),
            ("film", FILMS),
            ("pairs", PAIRS),
            ("kl_direction", KL_DIRECTIONS),
        ):
            check_choice(name, getattr(self, name), choices)
        for name in ("kl_weight", "latent_weight", "dec_weight", "decoder_depth"):
            if getattr(self, name) < 0:
                raise BrainDataError(f"expected {name} of at least 0, got {getattr(self, name)}")
        if self.kl_temperature <= 0:
            raise BrainDataError(f"expected kl_temperature above 0, got {self.kl_temperature}")
        if self.rank < 1 or (self.embed_width is not None and self.embed_width < 1):
            raise BrainDataError(f"expected rank and embed_width of at least 1, got {self.rank}, {self.embed_width}")
        if self.align.batch_size < 4:
            raise BrainDataError(
                f"expected align with a batch_size of at least 4, whose pairs are compared, got {self.align.batch_size}"
            )


def paper() -> MindAlignerRecipe:
    """A map of rank 4096 from one session of a new subject, with weight decay on the map and validation images.

    Sizes and learning rates are those of the released code; weights of the losses are not published otherwise. About
    a day on one A100 by the authors. Not yet measured by us.
    """
    return MindAlignerRecipe("paper")


def released() -> MindAlignerRecipe:
    """The settings of the released code: Adam without decay, batches of 16, the other mapper.

    That code keeps the weights that are best on 300 test images, which is a leak. Ours keeps the last ones. Its rate
    rises in the first 2 / 150 of the steps; ours does in the first 3 / 10. It takes two steps an iteration, the second
    one with the decoder's loss. Ours takes one step with the sum.
    """
    base = paper()
    groups = (("map.", 1.0, 0.0), ("embedder.", 1e3, 0.0))
    align = replace(base.align, steps=399_999, batch_size=16, clip_norm=None, patience=None, groups=groups)
    return replace(
        base,
        name="released",
        init="uniform",
        film="released",
        align=replace(align, validate_first=False),
        validation=0.0,
    )


def tiny() -> MindAlignerRecipe:
    """Seconds on a processor: some 200 voxels, 220 single trials, planted features reduced to 16 components.

    All 1,500 steps are taken; patience only keeps the best weights.
    """
    align = TrainingStage(
        steps=1_500,
        lr=3e-3,
        batch_size=16,
        patience=1_500,
        schedule="cosine",
        groups=(("map.", 1.0, 3.0),),
        validate_first=True,
    )
    return MindAlignerRecipe(
        "tiny",
        embed_width=16,
        rank=32,
        decoder_depth=0,
        decoder=TrainingStage(steps=300, lr=1e-3, weight_decay=0.05, batch_size=64),
        align=align,
        validation=0.15,
        precision="fp32",
    )


def nano() -> MindAlignerRecipe:
    """As `tiny`, for pooled features of the shipped `veca_nano_patch8`. Pairs are random, which needs no label."""
    return replace(tiny(), name="nano", pairs="random")


_RECIPES = {"paper": paper, "released": released, "nano": nano, "tiny": tiny}


def named(name: str) -> MindAlignerRecipe:
    """A recipe by its name; an unknown one is a `BrainDataError` that lists them."""
    check_choice("a recipe", name, tuple(_RECIPES))
    return _RECIPES[name]()
