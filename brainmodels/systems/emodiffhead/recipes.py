"""Recipes of EMOdiffhead: sizes, losses, training and how videos are made.

| recipe | for |
|---|---|
| `tiny` | minutes on two processor cores: drawn heads at 32 px |
| `nano` | drawn heads at 64 px; the model that ships |
| `full` | heads of the user at 256 px behind an autoencoder, on GPUs; never run by us |

There is no `paper`: the settings of arXiv 2409.07255 are not known to us, see README.md.
"""

from dataclasses import dataclass, field, replace

from ...errors import BrainDataError, check_choice
from ...nn.diffusion import PREDICTIONS
from ...training.recipe import StagedRecipe, TrainingStage

__all__ = ["DenoiserSize", "EmoDiffHeadRecipe", "GeneratorSize", "full", "named", "nano", "tiny"]

HIDING = ("flagged", "always", "jaw", "never")
SYLLABLES = ("none", "generator")
REFERENCES = ("concat", "unet", "veca")
PORTRAITS = ("frozen", "train")


@dataclass(frozen=True)
class GeneratorSize:
    """Sizes of the expression generator.

    Attributes:
        hidden, layers: Width and number of the LSTM layers.
        noise: Width of the noise of a clip.
        reach: Number of frames before and after a frame whose sound it reads.
    """

    hidden: int = 128
    layers: int = 1
    noise: int = 16
    reach: int = 2


@dataclass(frozen=True)
class DenoiserSize:
    """Sizes of the denoiser.

    Attributes:
        channels: Number c of channels of a frame in the space of the diffusion: 3, or 4 behind an autoencoder.
        side: Height and width of a frame in that space.
        width: Channels of the first level.
        multipliers: Channels of each level, in units of `width`. Each further level has half the side.
        attention: Sides at which there is spatial attention.
        heads: Attention heads.
        time: Levels with attention over time: "lowest", "all", or None.
        frames: Number F of frames of a chunk.
        motion: Number m of frames before a chunk that it continues.
        reference: How the reference frame enters: "concat" as channels, "unet" through a network of its own, "veca"
            as maps of a VECA's patches.
        maps: Number of maps at the entry that are linear in expression and sound, so that both can act where they
            belong; 0 has none.
        residual: Whether the reference frame is added to what the network says, so that it learns what changes.
        cores: Number C of cores of the portrait that are read; None reads all.
    """

    channels: int = 3
    side: int = 32
    width: int = 16
    multipliers: tuple[int, ...] = (1, 2, 2)
    attention: tuple[int, ...] = (8,)
    heads: int = 4
    time: str | None = "lowest"
    frames: int = 8
    motion: int = 2
    reference: str = "concat"
    maps: int = 0
    residual: bool = False
    cores: int | None = None

    def __post_init__(self):
        check_choice("time", self.time, ("lowest", "all", None))
        check_choice("reference", self.reference, REFERENCES)
        if self.side % 2 ** (len(self.multipliers) - 1):
            raise BrainDataError(f"expected a side divisible by {2 ** (len(self.multipliers) - 1)}, got {self.side}")
        sides = [self.side >> level for level in range(len(self.multipliers))]
        if wrong := set(self.attention) - set(sides):
            raise BrainDataError(f"expected attention at sides of {sides}, got {sorted(wrong)}")
        for side, factor in zip(sides, self.multipliers, strict=True):
            if side in self.attention and (self.width * factor) % self.heads:
                raise BrainDataError(f"expected widths divisible by {self.heads} heads, got {self.width * factor}")
        if self.reference == "veca" and self.cores is None:
            raise BrainDataError("expected a number of cores with reference='veca', got None")
        if self.frames < 1 or self.motion < 0 or self.maps < 0:
            numbers = f"{self.frames}, {self.motion} and {self.maps}"
            raise BrainDataError(f"expected frames >= 1, motion >= 0 and maps >= 0, got {numbers}")


@dataclass(frozen=True)
class EmoDiffHeadRecipe(StagedRecipe):
    """All that decides how an EmoDiffHead is built, trained and used.

    Attributes:
        name: Name of the recipe.
        generator_size, denoiser_size: Sizes of the two networks.
        expression, render: Training of the two stages.
        size: Side of the pictures in pixels.
        window: Number of frames of a clip that a row of a training batch holds.
        audio: "log_mel", or the folder of a wav2vec2, HuBERT, WavLM or Whisper model.
        adversarial: Weights of the discriminators of single frames and of sequences; None trains without them.
        label_weight: Weight of the classifier that reads the emotion from generated sequences.
        velocity_weight: Weight of the L1 of first differences.
        hide: What the renderer sees of the mouth part of the expression in training. "flagged" hides it in a random
            half of the clips and says so, "always" hides it, "jaw" hides the jaw alone, "never" hides nothing. The last
            two are the controls that leak.
        syllables: What stands in for the syllables of a hidden mouth: "none", or those that the "generator" makes of
            the same sound, which is then trained first.
        prediction: What the denoiser predicts: "sample", "v_prediction" or "epsilon".
        noise_bias: Power p of the times of training, 1000 u^(1/p) with u uniform. 1 draws all noise levels alike.
            Larger powers draw more noise, where a frame can be told from the conditions alone.
        mouth_weight: Weight of the error of the frame within the mouth box.
        dropout: Shares of clips without expression, without audio, without both, and without these and the reference.
        motion_dropout: Share of chunks without frames before them.
        motion_noise: Largest noise on the frames before a chunk.
        portrait: "frozen" reads the portrait with a VECA whose weights stay, "train" trains it along.
        portrait_model: Name of a shipped VECA, or the folder of a saved one.
        portrait_size: Side of the portrait that it reads, in pixels; None is the picture's own, up to 1,024, or
            `size` where the reader is trained.
        neutral: "clips" takes coefficients as offsets from the mean of an identity's neutral clips, where there are
            any. "zeros" takes them as they are.
        autoencoder: Folder of a diffusers `AutoencoderKL`; None works on pixels.
        steps: Denoising steps of a chunk.
        trained_alpha_max: Largest intensity in training.
        precision: "auto" is bf16 autocast on a GPU that has it, else fp32.
    """

    name: str = "custom"
    generator_size: GeneratorSize = field(default_factory=GeneratorSize)
    denoiser_size: DenoiserSize = field(default_factory=DenoiserSize)
    expression: TrainingStage = field(default_factory=lambda: TrainingStage(steps=1_500))
    render: TrainingStage = field(default_factory=lambda: TrainingStage(steps=1_200))
    size: int = 32
    window: int = 32
    audio: str = "log_mel"
    adversarial: tuple[float, float] | None = None
    label_weight: float = 0.1
    velocity_weight: float = 0.5
    hide: str = "flagged"
    syllables: str = "none"
    prediction: str = "sample"
    noise_bias: float = 1.0
    mouth_weight: float = 0.2
    dropout: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.05)
    motion_dropout: float = 0.2
    motion_noise: float = 0.1
    portrait: str = "frozen"
    portrait_model: str = "veca_nano_patch8"
    portrait_size: int | None = None
    neutral: str = "clips"
    autoencoder: str | None = None
    steps: int = 20
    trained_alpha_max: float = 1.0
    precision: str = "auto"

    def __post_init__(self):
        check_choice("hide", self.hide, HIDING)
        check_choice("syllables", self.syllables, SYLLABLES)
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("portrait", self.portrait, PORTRAITS)
        check_choice("neutral", self.neutral, ("clips", "zeros"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if self.autoencoder is None and self.size != self.denoiser_size.side:
            raise BrainDataError(
                f"expected a denoiser of side {self.size} for pictures of that size, got {self.denoiser_size.side}"
            )
        if self.noise_bias < 1:
            raise BrainDataError(f"expected noise_bias of 1 or more, got {self.noise_bias}")
        if self.denoiser_size.residual and self.prediction != "sample":
            raise BrainDataError(f"expected prediction='sample' with a residual denoiser, got {self.prediction!r}")
        if self.window < self.denoiser_size.frames + self.denoiser_size.motion:
            raise BrainDataError(
                f"expected a window that holds a chunk and its motion frames, got {self.window} frames"
            )
        if len(self.dropout) != 4 or min(self.dropout) < 0 or sum(self.dropout) >= 1:
            raise BrainDataError(f"expected four shares of dropout with a sum below 1, got {self.dropout}")


def full() -> EmoDiffHeadRecipe:
    """Clips of the user at 256 px behind an f=8 autoencoder, whose folder the user sets. Never run by us."""
    return EmoDiffHeadRecipe(
        "full",
        generator_size=GeneratorSize(hidden=256, layers=2),
        denoiser_size=DenoiserSize(
            channels=4, width=128, multipliers=(1, 2, 4, 4), attention=(32, 16, 8), heads=8, frames=16, reference="unet"
        ),
        expression=TrainingStage(steps=50_000, lr=5e-4, batch_size=32, clip_norm=1.0, schedule="cosine", warmup=500),
        render=TrainingStage(steps=200_000, lr=1e-4, batch_size=32, clip_norm=1.0, ema_decay=0.9999, warmup=1_000),
        size=256,
        adversarial=(0.05, 0.05),
        prediction="v_prediction",
        portrait_model="veca_base_patch16",
        autoencoder="autoencoder",
        steps=30,
    )


def tiny() -> EmoDiffHeadRecipe:
    """Drawn heads at 32 px; about a quarter of an hour on one processor core."""
    return EmoDiffHeadRecipe(
        "tiny",
        denoiser_size=DenoiserSize(
            multipliers=(1,), attention=(), time=None, frames=2, motion=0, maps=16, residual=True
        ),
        expression=TrainingStage(steps=1_500, lr=2e-3, batch_size=16, clip_norm=1.0, ema_decay=0.99, schedule="cosine"),
        render=TrainingStage(
            steps=1_500, lr=4e-3, batch_size=32, clip_norm=1.0, ema_decay=0.99, schedule="cosine", warmup=50
        ),
        syllables="generator",
        noise_bias=3.0,
        mouth_weight=0.03,
        dropout=(0.03, 0.03, 0.03, 0.0),
        portrait_size=32,
        neutral="zeros",
        steps=4,
        precision="fp32",
    )


def nano() -> EmoDiffHeadRecipe:
    """Drawn heads at 64 px; the model that ships."""
    base = tiny()
    return replace(
        base,
        name="nano",
        denoiser_size=replace(base.denoiser_size, side=64),
        render=replace(base.render, batch_size=16),
        size=64,
        portrait_size=64,
    )


_RECIPES = {"full": full, "nano": nano, "tiny": tiny}


def named(name: str) -> EmoDiffHeadRecipe:
    """A recipe by its name; an unknown one is a `BrainDataError` that lists them."""
    check_choice("a recipe", name, tuple(_RECIPES))
    return _RECIPES[name]()
