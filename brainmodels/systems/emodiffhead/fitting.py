"""How an EmoDiffHead is built and fitted: what it learns of its clips, its networks, and how its two stages train."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from veca.train.parallel import World

from ...data.clips import EMOTIONS, TalkingClip
from ...errors import AxisError, BrainDataError, IdError, check_choice
from ...features.audio import AudioFeatures, AudioScale, audio_features
from ...features.weights import seeded
from ...heads import ExpressionSpace, HeadModel
from ...training.loop import StageResult
from ...training.run import Run, check_run
from .batches import ClipSeries, MotionRows, RenderRows, neutral_coefficients, offsets_of, usable
from .denoiser import HeadDenoiser
from .model import ExpressionGenerator
from .motion import ExpressionTask
from .pictures import FrameSpace, PortraitFeatures, resized
from .recipes import EmoDiffHeadRecipe
from .rendering import RenderTask
from .restoring import head_facts

__all__ = ["STAGES", "LearnedScales", "clips_of_stages", "new_networks", "open_run", "train_expression", "train_render"]

STAGES = ("expression", "render")
_log = logging.getLogger(__name__)


def clips_of_stages(
    clips: Sequence[TalkingClip], stages: Sequence[str], window: int
) -> tuple[dict[str, list[TalkingClip]], dict[str, dict[str, int]]]:
    """The clips that each stage trains on, and the number of those that it skips by reason.

    Args:
        clips: All clips.
        stages: Names of the stages.
        window: Number of frames that a clip must have.

    Raises:
        BrainDataError: No or an unknown stage, or a stage without clips.
        IdError: Two clips have one id.
    """
    for name in stages or ("",):
        check_choice("a stage", name, STAGES)
    twice = [name for name, count in Counter(clip.id for clip in clips).items() if count > 1]
    if twice:
        raise IdError(f"expected clips with ids of their own, got {twice[0]!r} twice")
    used, skipped = {}, {}
    for name in stages:
        used[name], skipped[name] = usable(clips, window, pictures=name == "render")
        if not used[name]:
            raise BrainDataError(f"expected clips for the stage {name}, got {skipped[name] or 'none'}")
    if "expression" in used and all(clip.emotion is None for clip in used["expression"]):
        _log.warning("no clip has an emotion: every emotion will look like random weights")
    return used, skipped


@dataclass(frozen=True, eq=False)
class LearnedScales:
    """What is learned of clips before any network trains.

    Attributes:
        fps: Frames per second of all clips.
        extract: Features of sound.
        scale: Scale of these features.
        neutral: Neutral coefficients (E,) and jaw (J,) of identities; empty if coefficients are taken as they are.
        space: Space of the coefficients.
        series: The clips as the networks see them, by id.
    """

    fps: float
    extract: AudioFeatures
    scale: AudioScale
    neutral: dict[str, tuple[np.ndarray, np.ndarray]]
    space: ExpressionSpace
    series: dict[str, ClipSeries]

    @classmethod
    def of(cls, clips: Sequence[TalkingClip], recipe: EmoDiffHeadRecipe, head: HeadModel | None) -> "LearnedScales":
        """Learn the scales of sound and coefficients.

        Raises:
            BrainDataError: Clips differ in frame rate or in their number of coefficients.
            AxisError: The head has other numbers of coefficients.
        """
        rates = sorted({clip.fps for clip in clips})
        widths = sorted({(clip.exp.shape[1], clip.jaw.shape[1]) for clip in clips})
        if len(rates) > 1 or len(widths) > 1:
            raise BrainDataError(f"expected clips of one frame rate and width of coefficients, got {rates}, {widths}")
        if head is not None and widths[0] != (head.n_exp, head.n_jaw):
            raise AxisError(f"expected coefficients {(head.n_exp, head.n_jaw)} of the head, got {widths[0]}")
        extract = audio_features(recipe.audio)
        sound = [extract(clip.audio, clip.sample_rate, clip.fps, clip.num_frames) for clip in clips]
        scale = AudioScale.fit(sound)
        neutral = neutral_coefficients(clips) if recipe.neutral == "clips" else {}
        offsets = [offsets_of(clip, neutral) for clip in clips]
        exp, jaw = (np.concatenate(column) for column in zip(*offsets, strict=True))
        space = ExpressionSpace.fit(exp, jaw, head)
        rows = zip(clips, sound, offsets, strict=True)
        series = {clip.id: ClipSeries(clip, scale.apply(x), space.whiten(*own)) for clip, x, own in rows}
        return cls(rates[0], extract, scale, neutral, space, series)


def new_networks(
    recipe: EmoDiffHeadRecipe, width: int, extract: AudioFeatures, portrait_width: int
) -> tuple[ExpressionGenerator, HeadDenoiser]:
    """Generator and denoiser with the first weights, which depend on the seeds of the recipe.

    Args:
        recipe: Recipe of the model.
        width: Number E + J of coefficients.
        extract: Features of sound.
        portrait_width: Width of the tokens of portraits.
    """
    size = recipe.generator_size

    def generator() -> ExpressionGenerator:
        sound = extract.subframes * extract.width
        return ExpressionGenerator(sound, width, len(EMOTIONS), size.hidden, size.layers, size.noise, size.reach)

    def denoiser() -> HeadDenoiser:
        sound = extract.width, extract.subframes
        return HeadDenoiser(recipe.denoiser_size, width, *sound, portrait_width, size.reach)

    return seeded(recipe.expression.seed, generator), seeded(recipe.render.seed, denoiser)


def open_run(
    world: World,
    recipe: EmoDiffHeadRecipe,
    head: HeadModel | None,
    series: Mapping[str, ClipSeries],
    out: str | Path | None,
    save_every: int,
    progress: bool,
) -> Run:
    """What both stages share.

    Raises:
        BrainDataError: `out` holds a run with another recipe or other clips.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        fps = next(iter(series.values())).clip.fps
        facts = {"ids": sorted(series), "head": head_facts(head), "fps": fps}
        content = {"recipe": recipe.to_json(), "data": facts}
        check_run(folder / "run.json", json.loads(json.dumps(content)), world)
    return Run(world, recipe.precision, folder, {"save_every": save_every, "progress": progress})


def train_expression(
    run: Run, generator: ExpressionGenerator, recipe: EmoDiffHeadRecipe, series: Sequence[ClipSeries]
) -> StageResult:
    """Train the generator."""
    task = seeded(recipe.expression.seed, lambda: ExpressionTask(generator, recipe))
    return run.stage("expression", task, MotionRows(series, recipe.window), recipe.expression)


def train_render(
    run: Run,
    denoiser: HeadDenoiser,
    recipe: EmoDiffHeadRecipe,
    series: Sequence[ClipSeries],
    hide: Callable[[ClipSeries], np.ndarray],
    portraits: PortraitFeatures,
    frames: FrameSpace,
) -> StageResult:
    """Train the denoiser.

    Args:
        run: See `open_run`.
        denoiser: The network.
        recipe: Recipe of the model.
        series: Clips with pictures.
        hide: Returns whitened coefficients (T, E + J) of a clip as the renderer sees them where the mouth is hidden.
        portraits: Reads reference frames, of which each clip gives two.
        frames: Space of the diffusion.
    """
    reader = None if recipe.portrait == "frozen" else portraits.reader
    faces = {}
    for item in series:
        count = len(item)
        chosen = item.clip.pictures()[[count // 4, 3 * count // 4]]
        if reader is None:
            read = np.stack([portraits.of(picture, run.device).cpu().numpy() for picture in chosen])
        else:
            read = resized(chosen, recipe.portrait_size or recipe.size)
        faces[item.clip.id] = resized(chosen, recipe.size), read
    rows = RenderRows(series, recipe.window, recipe.size, hide, faces)
    if rows.alone:
        told = "%d of %d clips are the only one of their person: their own frames are references and give emotions away"
        _log.warning(told, rows.alone, len(series))
    return run.stage("render", RenderTask(denoiser, recipe, reader, frames.encode), rows, recipe.render)
