"""Recipes of generators: `nano()` for drawn scenes on a CPU, `base()` for folders of photographs on a GPU, `tiny()`."""

from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import BrainDataError, near_names
from ..records import to_json
from ..training.recipe import TrainingStage

__all__ = ["GeneratorRecipe", "base", "named", "nano", "tiny"]


@dataclass(frozen=True)
class GeneratorRecipe:
    """How a generator is built, trained and used.

    Attributes:
        name: Name of the recipe.
        pixels: Side of the pictures.
        patch, channels: Side of a patch of the code, and components that are kept of it.
        widths: Channels of the U-Net at each scale.
        components, cell_width: Arguments of `TokenComponents.fit`.
        bank: Pictures that the nearest one is looked for among, the first of the training images.
        reader_steps: Training steps of the reader; None is its own number.
        whole: Share of the training pictures whose tokens are given whole and exact.
        alone: Share of them that is drawn without a nearest picture.
        blind: Share of them that is drawn from nothing, for guidance.
        informed: Share of them whose pooled features are guessed better than their damaged tokens allow. Decoders of
            brains err less in what an object is than in where it is.
        steps, guidance: Steps of Euler and weight of the conditions, in drawing.
        since: Time at which drawing from decoded tokens begins, with the nearest picture under noise; 0 is noise alone.
            Whole tokens are always drawn from noise.
        flow: Training of the flow.
    """

    name: str = "custom"
    pixels: int = 64
    patch: int = 4
    channels: int = 16
    widths: tuple[int, ...] = (64, 128, 192)
    components: int = 256
    cell_width: int = 32
    bank: int = 8000
    reader_steps: int | None = None
    whole: float = 0.15
    alone: float = 0.15
    blind: float = 0.1
    informed: float = 0.5
    steps: int = 16
    guidance: float = 1.5
    since: float = 0.6
    flow: TrainingStage = field(default_factory=lambda: TrainingStage(steps=1))

    def __post_init__(self):
        if self.pixels % (self.patch * 2 ** (len(self.widths) - 1)):
            raise BrainDataError(
                f"expected pixels that {len(self.widths)} scales of patches of {self.patch} divide, got {self.pixels}"
            )

    @property
    def grid(self) -> int:
        """Cells a side of the code."""
        return self.pixels // self.patch

    def to_json(self) -> dict[str, Any]:
        """The recipe as dictionaries, lists, numbers and strings."""
        return to_json(self) | {"flow": self.flow.to_json()}


_STAGE = TrainingStage(
    steps=5000,
    lr=1.5e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    batch_size=32,
    clip_norm=1.0,
    ema_decay=0.998,
    schedule="cosine",
    warmup=100,
)


def nano() -> GeneratorRecipe:
    """64 pixels, 7.8 M weights: drawn scenes, two hours on one busy core of a CPU."""
    return GeneratorRecipe("nano", flow=_STAGE)


def base() -> GeneratorRecipe:
    """256 pixels, 70 M weights: folders of photographs, on a GPU. It was not trained by the authors."""
    stage = replace(_STAGE, steps=200_000, lr=3e-4, batch_size=128, ema_decay=0.9995, warmup=2000)
    return GeneratorRecipe(
        "base",
        pixels=256,
        patch=8,
        channels=48,
        widths=(192, 384, 576),
        components=1024,
        bank=50_000,
        reader_steps=10_000,
        steps=32,
        flow=stage,
    )


def tiny() -> GeneratorRecipe:
    """16 pixels, for tests: it learns colours in seconds."""
    stage = replace(_STAGE, steps=150, lr=3e-3, warmup=10, ema_decay=0.9)
    return GeneratorRecipe(
        "tiny",
        pixels=16,
        patch=4,
        channels=8,
        widths=(16, 32),
        components=32,
        cell_width=8,
        bank=200,
        reader_steps=200,
        steps=8,
        since=0.0,
        flow=stage,
    )


_RECIPES = {"nano": nano, "base": base, "tiny": tiny}


def named(name: str) -> GeneratorRecipe:
    """A recipe by its name."""
    if name not in _RECIPES:
        raise BrainDataError(f"expected a recipe of {', '.join(_RECIPES)}, got {name!r}{near_names(name, [*_RECIPES])}")
    return _RECIPES[name]()
