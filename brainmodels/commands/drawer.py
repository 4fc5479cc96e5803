"""Make what draws pictures from tokens: what `veca brain drawer` does. It sees images and no brain."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from veca.train.parallel import join_world

from ..data import StimulusSet
from ..data.stimuli import ImageFiles
from ..drawing import KeyedNearest, recipes, train_generator, train_nearest
from ..drawing.recipes import GeneratorRecipe
from ..drawing.scenes import save_pictures, shipped_ids, shipped_nearest
from ..errors import BrainDataError
from ..features import FeatureCache
from ..features.sets import FeatureSet
from ..simulated import scene_stimuli

__all__ = ["DrawerSettings", "run_drawer"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class DrawerSettings:
    """Settings of `veca brain drawer`.

    Attributes:
        out: Folder of the run, of features and of what is made. The same command goes on with an interrupted run.
        kind: "nearest", the picture of a bank that fits best, or "generator", which draws new pictures. A generator of
            the scenes whose bank ships takes that bank and does not learn its own.
        images: Folder of pictures (png, jpg, webp, bmp, at any depth); none given takes drawn scenes.
        scenes, seed: Number and seed of the drawn scenes.
        features: Features whose tokens are drawn from, see `FeatureSet.parse`.
        recipe: Recipe of the generator: "nano", "base" or "tiny"; "nearest" takes its sizes from it too.
        steps: Steps of the generator; None is the recipe's.
        device: Device; None is a GPU where there is one.
        progress: Show bars.
    """

    out: Path = Path("out/drawer")
    kind: Literal["nearest", "generator"] = "generator"
    images: Path | None = None
    scenes: int = 12_000
    seed: int = 7100
    features: str = "veca"
    recipe: str = "nano"
    steps: int | None = None
    device: str | None = None
    progress: bool = True


def run_drawer(settings: DrawerSettings) -> Path:
    """Extract features, learn, and write the folder that is returned.

    Raises:
        BrainDataError: No pictures, or an unknown recipe.
    """
    recipe = recipes.named(settings.recipe)
    if settings.steps is not None:
        recipe = replace(recipe, flow=replace(recipe.flow, steps=settings.steps))
    stimuli = _stimuli(settings)
    cache = FeatureCache(settings.out / "features", FeatureSet.parse(settings.features).extractor, stimuli)
    folder = settings.out / settings.kind
    with join_world(settings.device) as world:
        options: dict[str, Any] = {"device": world.device, "progress": settings.progress}
        cache.extract(verify=False, **options)
    if settings.kind == "generator":
        run = settings.out / "run"
        options["nearest"] = _shipped(cache, stimuli, recipe, world.device)
        train_generator(run, cache, stimuli.images, stimuli.ids, recipe, **options).save(folder)
    else:
        train_nearest(cache, stimuli.images, stimuli.ids, recipe, **options).save(folder)
    if settings.images is not None:
        save_pictures(folder, stimuli.images(stimuli.ids[: recipe.bank], recipe.pixels))
    return folder


def _shipped(
    cache: FeatureCache, stimuli: StimulusSet, recipe: GeneratorRecipe, device: torch.device
) -> KeyedNearest | None:
    """The bank that ships, where it is the one that this recipe would make of these images."""
    ids = np.asarray(stimuli.ids[: recipe.bank])
    if not np.array_equal(ids, shipped_ids()):
        return None
    nearest = shipped_nearest(cache.extractor, device)
    return nearest if nearest is not None and nearest.components.size.count == recipe.components else None


def _stimuli(settings: DrawerSettings) -> StimulusSet:
    if settings.images is None:
        return scene_stimuli(settings.seed, settings.scenes)
    root = settings.images
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not _hidden(path, root))
    if len(files) < 2:
        raise BrainDataError(f"expected pictures ({', '.join(SUFFIXES)}) in {root}, got {len(files)}")
    ids = np.array([f"file:{path.relative_to(root).as_posix()}" for path in files])
    return StimulusSet(ids, ImageFiles(files))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
