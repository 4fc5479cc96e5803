"""Training of a generator on images alone: parts with a closed form, the reader, then the flow.

    generator = train_generator("out/drawer", cache, stimuli.images, stimuli.ids, recipes.nano())

In training, the conditions of the flow have errors like those of decoders, of all sizes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from veca.train.parallel import join_world

from ..errors import BrainDataError
from ..features.arrays import FeatureSource, Ids
from ..features.weights import seeded
from ..training.batches import Batch, RowNumbers
from ..training.loop import StageResult
from ..training.run import Run, check_run
from .components import LARGEST, damaged, drawn_reliabilities
from .generator import Generator, build
from .keyed_nearest import KeyedNearest
from .patch_code import PatchCode, pixels_of
from .recipes import GeneratorRecipe

__all__ = ["pooled_of", "train_generator", "train_nearest"]

BLOCK = 256
CODE_IMAGES = 4000  # pictures from which the code is learned
SHARES = 0.4, 0.9  # of pooled features in looking for the nearest picture
GUESSES = 0.45, 0.95  # reliability of guesses that are better than damaged tokens allow


def train_generator(
    out: str | Path,
    source: FeatureSource,
    images: Callable[[Ids, int], np.ndarray],
    ids: Ids,
    recipe: GeneratorRecipe,
    *,
    nearest: KeyedNearest | None = None,
    device: str | torch.device | None = None,
    save_every: int = 500,
    progress: bool = False,
) -> Generator:
    """Train a generator; started again with the same arguments, it goes on from its last checkpoint.

    All scores, codes and features of tokens are held in memory: about 20 kB for a picture of the recipe `nano`.

    Args:
        out: Folder of the run.
        source: Features of the images, such as a `FeatureCache`, with tokens of a square grid and pooled vectors.
        images: Function from ids and a side in pixels to pictures (n, side, side, 3) uint8.
        ids: Ids of the training images. The first `recipe.bank` of them become the bank.
        recipe: Recipe.
        nearest: What finds the nearest picture, with the first of these images as its bank; None learns it.
        device: Device; None is a GPU where there is one.
        save_every: Steps between checkpoints.
        progress: Show bars.

    Raises:
        BrainDataError: Fewer than two images, a bank of other images, or the run in `out` began with another recipe or
            other images.
        AxisError: Tokens that form no grid.
    """
    names = np.asarray(ids, dtype=str)
    if len(names) < 2:
        raise BrainDataError(f"expected two images or more to train on, got {len(names)}")
    if nearest is not None and not np.array_equal(nearest.bank.ids, names[: len(nearest.bank.ids)]):
        raise BrainDataError("expected a bank of the first training images, got another one")
    with join_world(device) as world:
        began = {
            "recipe": recipe.to_json(),
            "images": [len(names), names[0], names[-1]],
            "features": source.fingerprint,
        } | ({} if nearest is None else {"nearest": nearest.fingerprint})
        check_run(Path(out) / "run.json", began, world)
        tables, generator = _prepared(source, images, names, recipe, nearest, world.device, progress)
        task = _FlowTask(generator, tables)
        options = {"save_every": save_every, "progress": progress}
        trainable = {f"flow.{name}" for name, _ in generator.flow.named_parameters()}
        result = Run(world, "auto", Path(out), options).stage(
            "flow", task, RowNumbers("images", len(names)), recipe.flow, trainable
        )
        generator.trained = began | _record(result)
        generator.nearest.bank = generator.nearest.bank.to("cpu")
        return generator.cpu().eval().requires_grad_(False)


def train_nearest(
    source: FeatureSource,
    images: Callable[[Ids, int], np.ndarray],
    ids: Ids,
    recipe: GeneratorRecipe,
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> KeyedNearest:
    """What finds the nearest picture, with the sizes of a recipe. Arguments as in `train_generator`."""
    names = np.asarray(ids, dtype=str)
    tokens: Any = _Tokens(source, names)
    return KeyedNearest.fit(
        tokens,
        pooled_of(source, names),
        lambda rows: images(names[rows], recipe.pixels),
        names,
        bank=recipe.bank,
        count=recipe.components,
        width=recipe.cell_width,
        steps=recipe.reader_steps,
        seed=recipe.flow.seed,
        device=device,
        progress=progress,
    )


def pooled_of(source: FeatureSource, ids: Ids) -> np.ndarray:
    """Pooled features (n, p) fp32; the mean token of a cache without them."""
    if "pooled" in getattr(source, "kinds", ("pooled",)):
        return source.get(ids, "pooled")
    parts = [ids[at : at + BLOCK] for at in range(0, len(ids), BLOCK)]
    return np.concatenate([source.get(part, "tokens").mean(1) for part in parts])


def _prepared(
    source: FeatureSource,
    images: Callable[[Ids, int], np.ndarray],
    names: np.ndarray,
    recipe: GeneratorRecipe,
    nearest: KeyedNearest | None,
    device: torch.device,
    progress: bool,
) -> tuple[dict[str, Tensor], Generator]:
    """Tables of all images, on the CPU, and a generator whose flow is new, on the device."""
    parts = [names[at : at + BLOCK] for at in range(0, len(names), BLOCK)]
    if nearest is None:
        nearest = train_nearest(source, images, names, recipe, device=device, progress=progress)
    generator = seeded(recipe.flow.seed, lambda: build(recipe, nearest))
    code = PatchCode.fit(images(names[:CODE_IMAGES], recipe.pixels), recipe.patch, recipe.channels)
    generator.code.load_state_dict(code.state_dict())
    generator.to(device)
    seen = (torch.from_numpy(source.get(part, "tokens").astype(np.float32)).to(device) for part in parts)
    known = [(generator.components(x).cpu(), generator.features(x).half().cpu()) for x in seen]
    scores, whole = (torch.cat(x) for x in zip(*known, strict=True))
    codes = torch.cat([code.encode(pixels_of(images(part, recipe.pixels))).half() for part in parts])
    keys = nearest.bank.standardised(torch.from_numpy(pooled_of(source, names))).cpu()
    generator.cell_scale.copy_(generator.components.cells(scores[:BLOCK].to(device)).std())
    generator.token_scale.copy_(whole[:BLOCK].float().std())
    return {"scores": scores, "whole": whole, "pooled": keys, "codes": codes}, generator


class _Tokens:
    """Tokens of a source as an array that is read block by block."""

    ndim = 3

    def __init__(self, source: FeatureSource, names: np.ndarray):
        self.source, self.names = source, names
        self.shape = (len(names), *source.get(names[:1], "tokens").shape[1:])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.source.get(self.names[rows], "tokens")


class _FlowTask(nn.Module):
    """The loss of a batch of images, whose conditions have new errors at every step."""

    def __init__(self, generator: Generator, tables: Mapping[str, Tensor]):
        super().__init__()
        self.flow, self.generator, self.tables = generator.flow, [generator], tables  # a list: only the flow is trained

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        drawer, recipe = self.generator[0], self.generator[0].recipe
        device, count = generator.device, len(batch.rows)
        rows = torch.from_numpy(batch.rows)
        scores, pooled, whole, codes = (
            self.tables[name][rows].to(device).float() for name in ("scores", "pooled", "whole", "codes")
        )

        def chance(share: float) -> Tensor:
            return torch.rand(count, 1, generator=generator, device=device) < share

        with torch.no_grad():
            r = drawn_reliabilities(count, scores.shape[1], generator)
            seen = damaged(scores, r, generator)
            guess = torch.where(
                chance(recipe.informed) & (r[:, :1] > 0), _informed(pooled, generator), drawer.reader(seen, r)
            )
            near = self._nearest(drawer.nearest, rows, seen, r, guess, generator)
            exact, there = chance(recipe.whole), ~chance(recipe.alone)
            r, seen = torch.where(exact, LARGEST, r), torch.where(exact, scores, seen)
            shown = self.tables["codes"][near.cpu()].to(device).float() * there[:, :, None, None]
            given = drawer.conditions(seen, r, guess, shown, whole * exact[:, :, None])
            given = given.where(~chance(recipe.blind)[:, 0])
        error = self.flow.loss(codes, given, generator).mean()
        return {"loss": error}

    def _nearest(
        self, nearest: KeyedNearest, rows: Tensor, seen: Tensor, r: Tensor, guess: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Rows of the bank, never the pictures themselves."""
        low, high = SHARES
        share = low + (high - low) * torch.rand(1, generator=rng, device=rng.device).item()
        return nearest.nearest(seen, r, guess, share, without=rows)


def _informed(pooled: Tensor, rng: torch.Generator) -> Tensor:
    """Guesses of pooled features whose errors do not depend on those of the tokens. Each image draws a reliability."""
    low, high = GUESSES
    r = low + (high - low) * torch.rand(len(pooled), 1, generator=rng, device=rng.device)
    return r * damaged(pooled, r, rng)


def _record(stage: StageResult) -> dict[str, Any]:
    """What is kept of a training: its length, and some rows of its log."""
    some = np.unique(np.linspace(0, len(stage.log) - 1, min(12, len(stage.log))).astype(int))
    return {"steps": stage.steps, "seconds": round(stage.seconds), "log": [stage.log[i] for i in some]}
