"""Recipes of Neuro-3D: sizes, targets, losses and training, as frozen dataclasses built by plain functions.

    recipe = dataclasses.replace(nano(), folds=None)

Stage 1 trains the encoder of EEG, stage 2 the diffusion over points, stage 3 the painter. Paper: Neuro-3D, arXiv
2411.12248. In every recipe the denoiser is a `PointTransformer`; the paper's is a PVCNN++.
"""

from dataclasses import dataclass, field, replace

from ...errors import BrainDataError, check_choice
from ...nn.points import OBJECTIVES
from ...training.recipe import StagedRecipe, TrainingStage

__all__ = [
    "EncoderSize",
    "Neuro3DRecipe",
    "PointSize",
    "Targets",
    "named",
    "nano",
    "paper",
    "released",
    "tiny",
    "veca",
]

STREAMS = ("static", "dynamic")


@dataclass(frozen=True)
class EncoderSize:
    """Sizes of the encoder.

    Attributes:
        variant: "fusion" is ours, "official" has the layers of the released code.
        streams: Streams that it sees: static, dynamic or both.
        fusion: "cross" lets the tokens of the picture attend to those of the video. "concat" reads both side by side.
        width, depth, heads: Width W of the tokens, and transformer layers of each stream.
        components: Number of fixed courses in time, each of which is a token, see `SignalFilters`. None takes spans of
            time as tokens.
        static_token, dynamic_token: Length in seconds of a span, or of a bin within which courses are constant.
        pooled: Number of components of a token that are read; None reads all.
        hidden: Number of values that the heads read.
        dropout: Rate of dropout.
        whiten: Whiten the channels by the covariance of train trials around their object's mean.
        official_norm: "rows" or, as released, "time": the axis of the norms between convolutions.
        gelu_last: End the heads of "official" in a GELU, as released.
        stack: Join its answers with those of a ridge on the same courses, see `stacking`. This needs folds.
    """

    variant: str = "fusion"
    streams: tuple[str, ...] = STREAMS
    fusion: str = "cross"
    width: int = 64
    depth: int = 1
    heads: int = 4
    components: int | None = None
    static_token: float = 0.04
    dynamic_token: float = 0.2
    pooled: int | None = None
    hidden: int = 128
    dropout: float = 0.1
    whiten: bool = True
    official_norm: str = "rows"
    gelu_last: bool = False
    stack: bool = False

    def __post_init__(self):
        check_choice("variant", self.variant, ("fusion", "official"))
        check_choice("fusion", self.fusion, ("cross", "concat"))
        check_choice("official_norm", self.official_norm, ("rows", "time"))
        if not self.streams or set(self.streams) - set(STREAMS):
            raise BrainDataError(f"expected streams of static and dynamic, got {self.streams}")
        if self.components is not None and not (self.components > 0 and self.whiten):
            raise BrainDataError(f"expected components of at least 1 and whiten=True, got {self.components} without")
        if self.stack and (self.components is None or self.variant != "fusion"):
            raise BrainDataError("expected the variant 'fusion' and components with stack=True, got other settings")
        _check_heads(self.width, self.heads)

    def token(self, stream: str) -> float:
        """Length of a token of a stream in seconds."""
        return self.static_token if stream == "static" else self.dynamic_token


@dataclass(frozen=True)
class PointSize:
    """Sizes of a `PointTransformer`.

    Attributes:
        width, depth, heads: Width W, number of blocks, and of attention heads.
        latents: Number C of learned latents.
    """

    width: int = 64
    depth: int = 4
    heads: int = 4
    latents: int = 16

    def __post_init__(self):
        _check_heads(self.width, self.heads)


@dataclass(frozen=True)
class Targets:
    """Features of the objects that the two heads learn.

    Attributes:
        features: Word of an extractor, see `FeatureSet.parse`, or "given" for those of the data set.
        frames: Number of frames of the turning object that are averaged.
        size: Side of a frame in pixels.
        geometry: "grey" gives the geometry head features of colourless objects; "color" gives it those of the other.
    """

    features: str = "veca"
    frames: int = 4
    size: int = 64
    geometry: str = "grey"

    def __post_init__(self):
        check_choice("geometry", self.geometry, ("grey", "color"))


@dataclass(frozen=True)
class Neuro3DRecipe(StagedRecipe):
    """All that decides how a Neuro3D is built, trained and used.

    Attributes:
        name: Name of the recipe.
        encoder_size, denoiser_size, painter_size: Sizes of the networks.
        targets: Features of the objects that the encoder learns.
        encoder, shape, color: Training of the three networks.
        loss: "ours" or "paper", see `losses`.
        raw_logit_scale: Multiply the contrast of "paper" by the scale parameter itself, as released, not by its
            exponential.
        mean_rate: Share of train trials that are replaced by the mean of their object's presentations.
        noise: Standard deviation of the white noise that is added to a trial, and the share of trials that get it.
        residual_noise: Largest factor of the noise of another trial that is added to a trial. Its noise is what differs
            from the mean of its object. None adds none.
        folds: Number K of encoders that see all but 1/K of the train objects of every class. They give the features
            on which the other stages train. None takes one encoder.
        condition_from: Features on which shape and colour train: "cross_fit" of encoders that did not see the object,
            "in_sample" of the final encoder, or "targets", true features with noise of random strength.
        classes: What shape and colour are told of class and colour besides. "label" is the true label in training and
            the most probable one in use. "probabilities" are those of the encoder in both. None tells nothing.
        objective: "flow" or "ddpm", see `points_loss`.
        pair_noise: Number of points of a cloud whose noise is assigned to them at once, see `paired_noise`. It is for
            the flow. None draws the noise independently.
        condition_dropout: Share of conditions that are dropped in training, which guidance needs.
        points: Number of points of a cloud in training, drawn anew in every step.
        color_loss: "l1" or "mse" of colours in [-1, 1].
        jitter: Standard deviation of the noise on points that the painter trains on, in units of the cloud's spread.
        num_points, steps, samples, guidance: How clouds are made where nothing else is asked for.
        selection: Which epoch's encoder is used. "last" takes the last one. "folds" takes the number of steps that was
            best on the held-out objects of the folds. "test" chooses by the test objects, as released, and every number
            of such a model says so.
        precision: "auto" is bf16 autocast on a GPU that has it, else fp32.
    """

    name: str = "custom"
    encoder_size: EncoderSize = field(default_factory=EncoderSize)
    denoiser_size: PointSize = field(default_factory=PointSize)
    painter_size: PointSize = field(default_factory=lambda: PointSize(depth=2))
    targets: Targets = field(default_factory=Targets)
    encoder: TrainingStage = field(default_factory=lambda: TrainingStage(steps=300, batch_size=64))
    shape: TrainingStage = field(default_factory=lambda: TrainingStage(steps=1_200))
    color: TrainingStage = field(default_factory=lambda: TrainingStage(steps=300))
    loss: str = "ours"
    raw_logit_scale: bool = False
    mean_rate: float = 0.5
    noise: tuple[float, float] = (0.0, 0.0)
    residual_noise: float | None = 2.0
    folds: int | None = 4
    condition_from: str = "cross_fit"
    classes: str | None = "label"
    objective: str = "flow"
    pair_noise: int | None = 512
    condition_dropout: float = 0.1
    points: int = 128
    color_loss: str = "l1"
    jitter: float = 0.02
    num_points: int = 1024
    steps: int = 8
    samples: int = 2
    guidance: float = 1.0
    selection: str = "folds"
    precision: str = "auto"

    def __post_init__(self):
        check_choice("loss", self.loss, ("ours", "paper"))
        check_choice("condition_from", self.condition_from, ("cross_fit", "in_sample", "targets"))
        check_choice("classes", self.classes, ("label", "probabilities", None))
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("color_loss", self.color_loss, ("l1", "mse"))
        check_choice("selection", self.selection, ("last", "folds", "test"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if self.pair_noise is not None and self.objective != "flow":
            raise BrainDataError(f"expected pair_noise=None with objective={self.objective!r}, got {self.pair_noise}")
        if self.folds is not None and self.folds < 2:
            raise BrainDataError(f"expected 2 folds or more, or None, got {self.folds}")
        wants = self.condition_from == "cross_fit" or self.selection == "folds"
        if wants and self.folds is None:
            raise BrainDataError(
                f"expected folds with condition_from={self.condition_from!r} and selection={self.selection!r}, got None"
            )
        if self.encoder_size.stack and self.folds is None:
            raise BrainDataError("expected folds, which weigh the ridge, with encoder_size.stack=True, got None")
        if min(self.points, self.num_points) < 16:
            raise BrainDataError(f"expected clouds of at least 16 points, got {min(self.points, self.num_points)}")
        if self.guidance != 1 and not self.condition_dropout:
            raise BrainDataError(f"expected condition_dropout above 0 with guidance={self.guidance:g}, got 0")
        if self.loss == "paper" and self.encoder_size.variant != "official":
            raise BrainDataError(
                "expected the encoder 'official' with the loss 'paper', whose scale it has, got 'fusion'"
            )


def paper() -> Neuro3DRecipe:
    """The published data, losses, schedule and steps; the denoiser is ours, of about the published one's size.

    An encoder of 3.7 M parameters on `clip_feature.pth`, whose colour features both heads learn. DDPM of 1,000 steps on
    8,192 points. Not measured: it needs the data set EEG-3D and hours on a GPU.
    """
    return Neuro3DRecipe(
        "paper",
        encoder_size=EncoderSize("official", whiten=False, dropout=0.25),
        denoiser_size=PointSize(384, 12, 6, 64),
        painter_size=PointSize(64, 2, 4, 16),
        targets=Targets("given", geometry="color"),
        encoder=TrainingStage(epochs=200, lr=1e-3, weight_decay=5e-4, batch_size=128, schedule="one_cycle"),
        shape=TrainingStage(
            steps=100_500,
            lr=1e-3,
            weight_decay=1e-6,
            betas=(0.95, 0.999),
            batch_size=48,
            clip_norm=50.0,
            schedule="cosine",
            warmup=2_000,
        ),
        color=TrainingStage(steps=40_000, lr=1e-3, weight_decay=1e-6, betas=(0.95, 0.999), batch_size=48),
        loss="paper",
        mean_rate=0.25,
        noise=(0.2, 0.6),
        residual_noise=None,
        folds=None,
        condition_from="in_sample",
        classes=None,
        objective="ddpm",
        pair_noise=None,
        condition_dropout=0.0,
        points=8192,
        color_loss="mse",
        num_points=8192,
        steps=1_000,
        samples=5,
        selection="last",
    )


def released() -> Neuro3DRecipe:
    """`paper` with what the released code does beyond it: the epoch is chosen by the test objects, among others."""
    base = paper()
    size = replace(base.encoder_size, official_norm="time", gelu_last=True)
    return replace(base, name="released", encoder_size=size, raw_logit_scale=True, selection="test")


def veca() -> Neuro3DRecipe:
    """Features of VECA base at 256 px, and a denoiser of about 33 M parameters. Not yet measured."""
    return Neuro3DRecipe(
        "veca",
        encoder_size=EncoderSize(width=128, depth=2, pooled=16, static_token=0.02, dynamic_token=0.05, hidden=512),
        denoiser_size=PointSize(384, 12, 6, 64),
        painter_size=PointSize(128, 2, 4, 32),
        targets=Targets("veca_base_patch16", size=256),
        encoder=TrainingStage(epochs=200, lr=5e-4, weight_decay=0.05, batch_size=128, schedule="cosine"),
        shape=TrainingStage(
            steps=60_000, lr=5e-4, batch_size=64, clip_norm=1.0, ema_decay=0.9999, schedule="cosine", warmup=1_000
        ),
        color=TrainingStage(steps=10_000, lr=5e-4, batch_size=64, clip_norm=1.0, schedule="cosine", warmup=500),
        points=2048,
        num_points=8192,
        steps=24,
        samples=5,
    )


def nano() -> Neuro3DRecipe:
    """Minutes on two processor cores: 24 classes of simulated objects, features of the shipped VECA nano."""
    return Neuro3DRecipe(
        "nano",
        encoder_size=EncoderSize(components=3, fusion="concat", depth=0, hidden=256, dropout=0.5, stack=True),
        encoder=TrainingStage(
            steps=250, lr=2e-3, weight_decay=0.05, batch_size=64, clip_norm=1.0, ema_decay=0.98, schedule="cosine"
        ),
        shape=TrainingStage(steps=1_500, lr=4e-3, batch_size=24, clip_norm=1.0, ema_decay=0.999, schedule="cosine"),
        color=TrainingStage(steps=200, lr=4e-3, batch_size=24, clip_norm=1.0, ema_decay=0.98, schedule="cosine"),
        selection="last",
        precision="fp32",
    )


def tiny() -> Neuro3DRecipe:
    """Half a minute on two processor cores, for tests: 6 classes of simulated objects, 16 channels, grids of pixels."""
    base = nano()
    return replace(
        base,
        name="tiny",
        encoder_size=EncoderSize(components=3, fusion="concat", depth=0, width=32, hidden=64),
        denoiser_size=PointSize(32, 2, 2, 8),
        painter_size=PointSize(32, 1, 2, 8),
        targets=Targets("grid", size=32, frames=2),
        encoder=replace(base.encoder, steps=150, batch_size=32),
        shape=replace(base.shape, steps=200, batch_size=16),
        color=replace(base.color, steps=100, batch_size=16),
        folds=None,
        condition_from="in_sample",
        pair_noise=128,
        num_points=256,
        samples=1,
    )


_RECIPES = {"paper": paper, "released": released, "veca": veca, "nano": nano, "tiny": tiny}


def named(name: str) -> Neuro3DRecipe:
    """A recipe by its name; an unknown one is a `BrainDataError` that lists them."""
    check_choice("a recipe", name, tuple(_RECIPES))
    return _RECIPES[name]()


def _check_heads(width: int, heads: int) -> None:
    if width % 2 or width % heads:
        raise BrainDataError(f"expected an even width divisible by heads={heads}, got {width}")
