"""`EmoDiffHead`: a talking head with a chosen emotion and intensity, from one picture and one recording.

model = EmoDiffHead("tiny", head=ToyHead()).fit(clips.of("train"))
model.motion(audio, "happy", 0.8, sample_rate=16_000)               # Motion: exp (T, E), jaw (T, J)
frames = model.animate(image, audio, emotion="happy", intensity=0.8, sample_rate=16_000)
frames.save("happy.mp4")
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from veca.hashes import weights_hash
from veca.train.parallel import join_world

from ...data.animation import Frames, Motion
from ...data.clips import EMOTIONS, TalkingClip, frame_count
from ...data.media import sound_of, square_picture
from ...errors import AlignmentError, BrainDataError, NormalizationError, check_choice
from ...features.audio import audio_features
from ...heads import HeadModel
from ...training.loop import StageResult
from ...training.run import Run
from ...training.saved import FORMAT, SavedModel, stage_json
from ...versions import library_versions
from .batches import ClipSeries, offsets_of
from .denoiser import HeadDenoiser
from .fitting import STAGES, LearnedScales, clips_of_stages, new_networks, open_run, train_expression, train_render
from .model import ExpressionGenerator, trajectories
from .motion import Intensity, as_told
from .pictures import FrameSpace, PortraitFeatures, resized
from .recipes import EmoDiffHeadRecipe, named
from .rendering import Announced, render_frames
from .restoring import head_facts, known_head, packed, unpacked
from .sources import EmotionSource

__all__ = ["EmoDiffHead"]

LIPS = ("audio", "expression")
_PREVIEW, _PREVIEW_STEPS = 5, 5  # every so many frames, in so many steps
_log = logging.getLogger(__name__)


class EmoDiffHead(SavedModel):
    """An estimator of talking heads in the spirit of EMOdiffhead (Zhang et al., arXiv 2409.07255).

    A generator turns sound and an emotion into expression coefficients of a head model, affine in the intensity. A
    diffusion renders them, in the face of one picture, with lips that follow the sound.

    Animate only people who agreed. Not for impersonation, not as evidence, not to judge what somebody feels.

    Args:
        config: A recipe, or its name: "tiny", "nano" or "full".
        device: Device of the networks; None is a GPU where there is one.
        head: Head model of the coefficients. None has no mouth part, so `hide` must be "jaw" or "never".

    Attributes:
        recipe: How it is built, trained and used, by `config`.
        fps_: Frames per second of the clips of the fit.
        space_: `ExpressionSpace` of the coefficients.
        scale_: `AudioScale` of the sound.
        meta_: Facts of the fit, as JSON: versions, head, sound, clips of each stage and why others were skipped.
    """

    study: ClassVar[str] = "clips"
    about: ClassVar[str] = "from a picture, speech and an emotion to a talking head"
    stages: ClassVar[tuple[str, ...]] = STAGES
    networks: ClassVar[tuple[str, ...]] = ("generator", "denoiser")
    recipe_type: ClassVar[type[EmoDiffHeadRecipe]] = EmoDiffHeadRecipe
    named: ClassVar[Callable[[str], EmoDiffHeadRecipe]] = staticmethod(named)
    options: ClassVar[tuple[str, ...]] = ("head",)
    recipe: EmoDiffHeadRecipe
    generator: ExpressionGenerator
    denoiser: HeadDenoiser

    def __init__(
        self,
        config: EmoDiffHeadRecipe | str = "nano",
        device: str | torch.device | None = None,
        head: HeadModel | None = None,
    ):
        self.head = head
        super().__init__(config, device)

    def _check_params(self) -> None:
        super()._check_params()
        if self.head is not None and not isinstance(self.head, HeadModel):
            raise BrainDataError(f"expected a head model, such as ToyHead(), got {type(self.head).__name__}")

    # training

    def fit(
        self,
        clips: Sequence[TalkingClip],
        *,
        stages: Sequence[str] = STAGES,
        out: str | Path | None = None,
        save_every: int = 500,
        progress: bool = False,
    ) -> Self:
        """Train from the start, or go on where a run in `out` was interrupted. Under `torchrun`, on all its processes.

        Args:
            clips: Train clips. Those that lack what a stage needs are skipped in it, and `meta_` says why.
            stages: "expression", "render" or both. A stage that is left out keeps its first, random weights.
            out: Folder for checkpoints and the log of the run; None keeps none.
            save_every: Steps between checkpoints.
            progress: Show a bar.

        Raises:
            BrainDataError: No clip suits a stage, clips differ in frame rate or coefficients, or `out` holds another
                run.
            IdError: Two clips have one id.
        """
        self._check_params()
        self._forget()
        recipe = self.recipe
        before = list(stages)[: list(stages).index("render")] if "render" in stages else ["expression"]
        if recipe.syllables == "generator" and "expression" not in before:
            told = ", ".join(stages)
            raise BrainDataError(f"expected the stage expression before render with syllables='generator', got {told}")
        used, skipped = clips_of_stages(clips, stages, recipe.window)
        chosen = list({clip.id: clip for own in used.values() for clip in own}.values())
        learned = LearnedScales.of(chosen, recipe, self.head)
        self.fps_, self.space_, self.scale_, self.neutral_ = learned.fps, learned.space, learned.scale, learned.neutral
        self._extract = learned.extract
        self._build()
        with join_world(self.device) as world:
            run = open_run(world, recipe, self.head, learned.series, out, save_every, progress)
            results = [self._train(name, run, [learned.series[x.id] for x in used[name]]) for name in stages]
            self._place()
        self.meta_ = {
            "format": FORMAT,
            "system": type(self).__name__,
            "versions": dict(library_versions()),
            "subjects": {},
            "head": head_facts(self.head),
            "audio": {"name": recipe.audio, "fingerprint": self._extract.fingerprint},
            "emotions": list(EMOTIONS),
            "fps": self.fps_,
            "trained_alpha_max": recipe.trained_alpha_max,
            "estimators": sorted({clip.estimator for clip in chosen}),
            "licences": sorted({clip.licence for clip in chosen} - {""}),
            "clips": {name: {"used": len(used[name]), "skipped": skipped[name]} for name in stages},
            "train_clips": sorted(clip.id for clip in chosen),
            "stages": [stage_json(result) for result in results],
        }
        return self

    def _train(self, name: str, run: Run, series: Sequence[ClipSeries]) -> StageResult:
        if name == "expression":
            return train_expression(run, self.generator, self.recipe, series)

        def hide(item: ClipSeries) -> np.ndarray:
            return self._hidden(item.full, item.audio)

        return train_render(run, self.denoiser, self.recipe, series, hide, self._portraits, self._frames)

    def _hidden(self, whitened: np.ndarray, audio: np.ndarray) -> np.ndarray:
        """Coefficients (T, E + J) as the renderer sees them where it takes the mouth from the sound (T, S, D)."""
        recipe, hide = self.recipe, self.space_.hide
        if recipe.hide == "never":
            return whitened
        if recipe.hide == "jaw":
            return self.space_.hide_jaw(whitened)
        seen = hide(whitened, self.fps_)
        if recipe.syllables == "generator":
            spoken = trajectories(self.generator, audio, [EMOTIONS.index("neutral")], 0)[0]
            seen = seen + spoken - hide(spoken, self.fps_)
        return seen

    # networks

    def _build(self) -> None:
        recipe = self.recipe
        self._portraits = PortraitFeatures(recipe)
        self._frames = FrameSpace(recipe)
        self.generator, self.denoiser = new_networks(recipe, self.space_.width, self._extract, self._portraits.width)
        if recipe.portrait == "train":  # its weights are then those of the model
            self.denoiser.add_module("portrait_reader", self._portraits.reader)

    # use

    def motion(
        self,
        audio: np.ndarray | str | Path,
        emotion: Any = EMOTIONS[0],
        intensity: Intensity = 1.0,
        *,
        sample_rate: int | None = None,
        seed: int = 0,
        allow_extrapolation: bool = False,
    ) -> Motion:
        """Coefficients of a head that says what is heard, with an emotion.

        Args:
            audio: Mono sound (n,) with full scale 1, or a file of sound or video.
            emotion: A name, weights of emotions by name, coefficients (E,) or (T, E), or an `EmotionSource`.
            intensity: A number, a curve (T,), or a function of seconds, from 0 to 1.
            sample_rate: Samples of sound a second; needed with an array.
            seed: Seed of the generator's noise.
            allow_extrapolation: Warn of intensities outside the trained range instead of raising.

        Raises:
            BrainDataError: The emotion is unknown, an intensity is outside the range, or there is no sound.
            AxisError: A series has another number of frames.
        """
        self._check_stage("expression")
        self._place()
        sound, rate = sound_of(audio, sample_rate)
        frames, fps = frame_count(len(sound), rate, self.fps_), self.fps_
        features = self._features(sound, rate, frames)
        times = np.arange(frames) / fps
        limits = {"trained_alpha_max": self.recipe.trained_alpha_max, "allow_extrapolation": allow_extrapolation}
        found = EmotionSource.of(emotion).whitened(
            lambda labels: trajectories(self.generator, features, labels, seed),
            self.space_,
            times,
            fps,
            intensity,
            **limits,
        )
        return Motion(*self.space_.unwhiten(found), times, fps)

    def expressions(self, audio: np.ndarray | str | Path, *args: Any, **options: Any) -> np.ndarray:
        """Expression coefficients (T, E) alone; arguments as in `motion`."""
        return self.motion(audio, *args, **options).exp

    def render(
        self,
        image: Any,
        audio: np.ndarray | str | Path,
        exp: np.ndarray,
        jaw: np.ndarray,
        *,
        sample_rate: int | None = None,
        lips: str = "audio",
        steps: int | None = None,
        audio_scale: float = 1.0,
        emotion_scale: float = 1.0,
        crop: tuple[int, int, int, int] | None = None,
        every: int = 1,
        seed: int = 0,
    ) -> Frames:
        """Frames of given coefficients and sound, in the face of a picture.

        Args:
            image: A cropped, square face: uint8 (H, H, 3), PIL, float in [0, 1], or a file.
            audio, sample_rate: As in `motion`.
            exp, jaw: (T, E) and (T, J) Coefficients, as offsets from the neutral face, of as many frames as the sound.
            lips: "audio" takes the mouth from the sound, and hides it in the coefficients. "expression" takes it from
                the coefficients.
            steps: Denoising steps of a chunk; None is the recipe's.
            audio_scale, emotion_scale: Weights of guidance; 1 is none.
            crop: Box of the face in a picture that is not square: left, top, right, bottom.
            every: Render every so many frames only.
            seed: Seed of the noise.

        Raises:
            AlignmentError: Sound and coefficients differ in their number of frames.
            BrainDataError: The picture, the sound or a setting is not what it should be.
        """
        self._check_stage("render")
        check_choice("lips", lips, LIPS)
        recipe, device = self.recipe, self._place()
        sound, rate = sound_of(audio, sample_rate)
        portrait = square_picture(image, crop)
        picture = resized(portrait[None], recipe.size)[0]
        frames = frame_count(len(sound), rate, self.fps_)
        if len(exp) != frames or len(jaw) != frames:
            raise AlignmentError(
                f"expected coefficients of {frames} frames as the sound has, got {len(exp)} and {len(jaw)}"
            )
        features = self._features(sound, rate, frames)
        seen, hidden = self._seen(self.space_.whiten(exp, jaw), features, lips)
        reference = self._frames.encode(torch.from_numpy(picture)[None, None].to(device))[0, 0]
        options: dict[str, Any] = {"audio_scale": audio_scale, "emotion_scale": emotion_scale, "seed": seed}
        options["steps"] = recipe.steps if steps is None else steps
        made = render_frames(
            self.denoiser,
            recipe,
            reference,
            torch.tensor(seen).to(device),
            torch.tensor(features).to(device),
            hidden,
            self._portraits.of(portrait, device),
            every=every,
            progress=Announced(device),
            **options,
        )
        fps = self.fps_ / every
        motion = Motion(exp[::every], jaw[::every], np.arange(0, frames, every) / self.fps_, fps)
        facts = options | {"model": self.fingerprint, "system": type(self).__name__, "recipe": recipe.name}
        facts |= {"lips": lips, "head": (self.meta_["head"] or {}).get("name")}
        facts |= {"versions": self.meta_["versions"], "licences": self.meta_["licences"]}
        return Frames(self._frames.decode(made), fps, motion, facts, sound, rate)

    def animate(
        self,
        image: Any,
        audio: np.ndarray | str | Path,
        *,
        emotion: Any = EMOTIONS[0],
        intensity: Intensity = 1.0,
        sample_rate: int | None = None,
        allow_extrapolation: bool = False,
        preview: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> Frames:
        """A picture that talks: `motion`, then `render`.

        Args:
            image: As in `render`.
            audio, emotion, intensity, sample_rate, allow_extrapolation: As in `motion`.
            preview: Render every fifth frame, in five steps.
            seed: Seed of both networks' noise.
            options: Further arguments of `render`.

        Raises:
            BrainDataError: See `motion` and `render`.
        """
        self._check_stage("render")  # before the time of the first stage is spent
        sound, rate = sound_of(audio, sample_rate)
        motion = self.motion(
            sound, emotion, intensity, sample_rate=rate, seed=seed, allow_extrapolation=allow_extrapolation
        )
        if preview:
            options = {"every": _PREVIEW, "steps": _PREVIEW_STEPS} | options
        frames = self.render(image, sound, motion.exp, motion.jaw, sample_rate=rate, seed=seed, **options)
        source = EmotionSource.of(emotion)
        told = {"emotion": {**source.provenance, "alpha": as_told(source.alpha)}, "preview": preview}
        told["intensity"] = as_told(intensity)
        return replace(frames, provenance={**frames.provenance, **told})

    def predict(self, clips: Sequence[TalkingClip], **options: Any) -> dict[str, Frames]:
        """Frames by id of clips, from their own coefficients and sound and their first picture.

        Args:
            clips: Clips with pictures.
            options: Further arguments of `render`.
        """
        found = {}
        for clip in clips:
            exp, jaw = offsets_of(clip, self.neutral_)
            image = clip.pictures()[0]
            found[clip.id] = self.render(image, clip.audio, exp, jaw, sample_rate=clip.sample_rate, **options)
        return found

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that change with the weights."""
        self._check_fitted()
        return weights_hash(nn.ModuleDict({name: getattr(self, name) for name in self.networks}))[:12]

    @property
    def lips(self) -> tuple[str, ...]:
        """Choices of `lips` in `render`; a model that never saw the mouth of the coefficients cannot show it."""
        return LIPS if self.recipe.hide in ("flagged", "never") else LIPS[:1]

    def _seen(self, whitened: np.ndarray, audio: np.ndarray, lips: str) -> tuple[np.ndarray, bool]:
        """What the renderer sees of coefficients, and whether their mouth part is hidden."""
        if lips not in self.lips:
            raise BrainDataError(f"expected lips='audio' with a model of hide={self.recipe.hide!r}, got {lips!r}")
        if self.recipe.hide == "never" or lips == "expression":
            return whitened, False
        return self._hidden(whitened, audio), True

    def _features(self, sound: np.ndarray, rate: int, frames: int) -> np.ndarray:
        return self.scale_.apply(self._extract(sound, rate, self.fps_, frames))

    def _check_stage(self, name: str) -> None:
        self._check_fitted()
        if name not in self.meta_["clips"]:
            raise BrainDataError(
                f"expected a model whose stage {name} was trained, got one with {', '.join(self.meta_['clips'])}"
            )

    # folders

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return packed(self.space_, self.scale_, self.neutral_), {}

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        self.space_, self.scale_, self.neutral_ = unpacked(arrays, self.head)

    @classmethod
    def _arguments(cls, meta: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        head = known_head(meta["head"], options.pop("head", None))
        return super()._arguments(meta, **options) | {"head": head}

    def _recall(self, meta: Mapping[str, Any]) -> None:
        self.fps_ = float(meta["fps"])
        self._extract = audio_features(self.recipe.audio)
        if self._extract.fingerprint != meta["audio"]["fingerprint"]:
            raise NormalizationError(
                f"expected features of sound with fingerprint {meta['audio']['fingerprint']}, as in the fit, got "
                f"{self._extract.fingerprint} of {self.recipe.audio}"
            )

    def _rebuild(self) -> None:
        self._build()
