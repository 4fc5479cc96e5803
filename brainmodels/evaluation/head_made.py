"""Videos of talking heads under evaluation, and what a reader sees in them: matched, swapped, silent, with emotions.

maker = HeadMaker(case, readers)
made = maker.of_model("EMOdiffhead", model)
made.swapped["clip 1", "clip 2"].opening   # (T,) face and expression of clip 1, audio of clip 2
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..data.clips import EMOTIONS, TalkingClip
from ..errors import AxisError
from .head_case import HeadCase, box_darkness, recomposed
from .head_probes import HeadReaders, Reading

__all__ = ["COPY", "EXACT", "HeadMade", "HeadMaker", "control_name", "has_control", "stage_name"]

COPY = "reference frame repeated"
EXACT = "exact render of the truth"


def stage_name(name: str) -> str:
    """Name of the row of exact renders of a model's motion."""
    return f"exact render of stage 1 of {name}"


def control_name(name: str) -> str:
    """Name of the row of a model that reads the mouth from the coefficients."""
    return f"{name}, mouth from coefficients"


def has_control(model: Any) -> bool:
    """Whether a model can read the mouth from the coefficients. One that never saw it there says so in `lips`."""
    return "expression" in getattr(model, "lips", ("audio", "expression"))


@dataclass(frozen=True, eq=False)
class HeadMade:
    """Videos of one row, and what a reader sees in them.

    Attributes:
        name, kind, about: As in `Row`.
        matched: Video uint8 (T, H, W, 3) of each clip with its own audio, by id.
        read: Reading of these, by id.
        swapped: Readings by (clip of the expression, clip of the audio).
        silent: Readings with silence in place of the audio, by id.
        asked: Readings of clips whose emotion was asked for, by (id, intensity).
        emotional: Videos of these at the largest intensity, by id.
        swapped_film: Video of the first swapped pair, by (clip of the expression, clip of the audio).
        missing: Why a part is empty, by the name of the part.
    """

    name: str
    kind: str
    about: str
    matched: Mapping[str, np.ndarray]
    read: Mapping[str, Reading]
    swapped: Mapping[tuple[str, str], Reading] = field(default_factory=dict)
    silent: Mapping[str, Reading] = field(default_factory=dict)
    asked: Mapping[tuple[str, float], Reading] = field(default_factory=dict)
    emotional: Mapping[str, np.ndarray] = field(default_factory=dict)
    swapped_film: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


class HeadMaker:
    """Makes the videos of all rows and reads them.

    Args:
        case: Test clips.
        readers: Readers of drawn heads. None reads the darkness of the mouth box.
        tick: Function that is called after each video.
    """

    def __init__(self, case: HeadCase, readers: HeadReaders | None, tick: Callable[[], Any] = lambda: None):
        self.case, self.readers, self.tick = case, readers, tick
        self.clips = {clip.id: clip for clip in case.test}

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Ids of (clip of the expression, clip of the audio); none without openings."""
        ids = self.case.ids
        return [] if self.case.openings is None else [(ids[a], ids[b]) for a, b in self.case.pairing.pairs]

    @property
    def wanted(self) -> list[tuple[str, str, float]]:
        """Clips with the emotion and the intensities that are asked of them. Neutral has one."""
        alphas, found = self.case.settings.alphas, []
        for name, emotion in zip(self.case.ids, self.case.asked, strict=True):
            found += [(name, emotion, alpha) for alpha in (alphas if emotion != EMOTIONS[0] else alphas[-1:])]
        return found

    def total(self, models: Iterable[Any]) -> int:
        """Number of videos that models render."""
        count, settings = len(self.case.test), self.case.settings
        own = 2 * count + len(self.pairs) + (len(self.wanted) if self.readers else 0)
        control = count * (1 + settings.control_partners) if self.readers else 0
        return sum(own + (control if has_control(model) else 0) for model in models)

    def read(self, video: np.ndarray, clip_id: str) -> Reading:
        """What the reader sees in a video with the face of a clip."""
        if self.readers is not None:
            return self.readers.probe.read(video)
        boxes = self.case.still_boxes
        if boxes is None:
            return Reading(np.zeros(0))
        return Reading(box_darkness(video, boxes[clip_id][: len(video)]))

    def of_copy(self) -> HeadMade:
        """The reference frame in place of every frame."""
        videos, readings = {}, {}
        for clip in self.case.test:
            picture = self.case.reference(clip)
            videos[clip.id] = np.repeat(picture[None], self.case.frames, 0)
            readings[clip.id] = self._repeated(self.read(videos[clip.id][:1], clip.id))
        last = self.case.settings.alphas[-1]
        asked = {(name, last): readings[name] for name in readings} if self.readers else {}
        swapped = {pair: readings[pair[0]] for pair in self.pairs}
        missing = {"intensity": "a picture that stands still has no intensity to choose"}
        about = "what a model must beat"
        return HeadMade(COPY, "below", about, videos, readings, swapped, readings, asked, missing=missing)

    def of_truth(self) -> HeadMade:
        """Exact renders of the true coefficients."""
        clips, videos = self.case.exact, self.case.videos
        read = {name: self.read(video, name) for name, video in videos.items()}
        swapped, film = self._swapped(lambda a, b: clips.render(a, *clips.swapped(a, b)))
        silent, asked, emotional = {}, {}, {}
        for name in self.case.ids:
            truth = clips.truth[name]
            exp, jaw = recomposed(clips, name, truth.emotion, truth.alpha)
            speech = clips.head.mix(truth.speech)
            silent[name] = self.read(clips.render(name, exp - speech, jaw - truth.speech_jaw), name)
        for name, emotion, alpha in self.wanted:
            video = clips.render(name, *recomposed(clips, name, emotion, alpha))
            asked[name, alpha] = self.read(video, name)
            if alpha == self.case.settings.alphas[-1]:
                emotional[name] = video
        about = "the ideal, as the probe reads it"
        return HeadMade(EXACT, "above", about, videos, read, swapped, silent, asked, emotional, film)

    def of_motion(self, name: str, model: Any) -> HeadMade:
        """Exact renders of the coefficients that a model makes from audio and emotion."""

        def rendered(face: str, clip: TalkingClip, emotion: str | None, alpha: Any, silent: bool = False) -> np.ndarray:
            motion = model.motion(*self._sound(clip, silent), emotion, alpha, **self._rate(clip))
            return self._checked(self.case.exact.render(face, motion.exp, motion.jaw), stage_name(name))

        own = {clip.id: (self.case.exact.truth[clip.id].emotion, self._strength(clip)) for clip in self.case.test}
        videos = {key: rendered(key, clip, *own[key]) for key, clip in self.clips.items()}
        swapped, film = self._swapped(lambda a, b: rendered(a, self.clips[b], *own[a]))
        silent = {key: self.read(rendered(key, clip, *own[key], silent=True), key) for key, clip in self.clips.items()}
        asked, emotional = {}, {}
        for key, emotion, alpha in self.wanted:
            video = rendered(key, self.clips[key], emotion, alpha)
            asked[key, alpha] = self.read(video, key)
            if alpha == self.case.settings.alphas[-1]:
                emotional[key] = video
        read = {key: self.read(video, key) for key, video in videos.items()}
        about = "its motion, without its renderer"
        return HeadMade(stage_name(name), "above", about, videos, read, swapped, silent, asked, emotional, film)

    def of_control(self, name: str, model: Any) -> HeadMade:
        """The model's renderer with all coefficients, the mouth included."""
        videos = {key: self._rendered(name, model, key, clip, "expression") for key, clip in self.clips.items()}
        partners = self.case.settings.control_partners
        swapped, film = self._swapped(
            lambda a, b: self._rendered(name, model, a, self.clips[b], "expression"), len(self.clips) * partners
        )
        read = {key: self.read(video, key) for key, video in videos.items()}
        why = "this control is about the mouth alone"
        missing = {part: why for part in ("silent", "asked", "intensity")}
        about = f"the leaky control; {partners} of {self.case.settings.partners} partners of each clip"
        return HeadMade(control_name(name), "control", about, videos, read, swapped, missing=missing, swapped_film=film)

    def of_model(self, name: str, model: Any) -> HeadMade:
        """The model: its renderer on given coefficients, and both stages where an emotion is asked for."""
        videos = {key: self._rendered(name, model, key, clip) for key, clip in self.clips.items()}
        swapped, film = self._swapped(lambda a, b: self._rendered(name, model, a, self.clips[b]))
        silent = {}
        for key, clip in self.clips.items():
            silent[key] = self.read(self._rendered(name, model, key, clip, silent=True), key)
        asked, emotional = {}, {}
        for key, emotion, alpha in self.wanted if self.readers else ():
            video = self.animated(name, model, self.clips[key], emotion, alpha)
            asked[key, alpha] = self.read(video, key)
            if alpha == self.case.settings.alphas[-1]:
                emotional[key] = video
        read = {key: self.read(video, key) for key, video in videos.items()}
        return HeadMade(name, "model", "", videos, read, swapped, silent, asked, emotional, film)

    def animated(
        self, name: str, model: Any, clip: TalkingClip, emotion: str, alpha: float, frames: int | None = None
    ) -> np.ndarray:
        """Video of both stages, uint8 (T, H, W, 3), of the first `frames` frames or of all."""
        frames = frames or self.case.frames
        audio = self.case.audio(clip)[: round(frames * clip.sample_rate / self.case.fps)]
        options = self._rate(clip) | {"steps": self.case.settings.steps}
        made = model.animate(self.case.reference(clip), audio, emotion=emotion, intensity=alpha, **options)
        self.tick()
        return self._checked(made.video, name, frames)

    def _swapped(
        self, render: Callable[[str, str], np.ndarray], count: int | None = None
    ) -> tuple[dict[tuple[str, str], Reading], dict[tuple[str, str], np.ndarray]]:
        """Readings of the first `count` swapped pairs, or of all, and the video of the first one."""
        readings, film = {}, {}
        for pair in self.pairs[:count]:
            video = render(*pair)
            readings[pair] = self.read(video, pair[0])
            film = film or {pair: video}
        return readings, film

    def _rendered(
        self, name: str, model: Any, face: str, clip: TalkingClip, lips: str = "audio", silent: bool = False
    ) -> np.ndarray:
        """Video of the renderer alone: reference and coefficients of `face`, audio of `clip`."""
        exp, jaw = self.case.coefficients(self.clips[face])
        picture, settings = self.case.reference(self.clips[face]), self.case.settings
        options = self._rate(clip) | {"lips": lips, "steps": settings.steps}
        made = model.render(picture, *self._sound(clip, silent), exp, jaw, **options)
        self.tick()
        return self._checked(made.video, name)

    def _checked(self, video: np.ndarray, name: str, frames: int | None = None) -> np.ndarray:
        wanted = (frames or self.case.frames, *self.case.size, 3)
        if video.shape != wanted or video.dtype != np.uint8:
            raise AxisError(
                f"expected uint8 videos {wanted} of {name}, as the test clips are, got {video.dtype} {video.shape}"
            )
        return video

    def _sound(self, clip: TalkingClip, silent: bool) -> tuple[np.ndarray]:
        audio = self.case.audio(clip)
        return (np.zeros_like(audio) if silent else audio,)

    def _rate(self, clip: TalkingClip) -> dict[str, Any]:
        return {"sample_rate": clip.sample_rate, "seed": self.case.settings.seed}

    def _strength(self, clip: TalkingClip) -> np.ndarray:
        return np.asarray(self.case.exact.truth[clip.id].alpha, np.float32)[: self.case.frames]

    def _repeated(self, reading: Reading) -> Reading:
        """The reading of one picture for each frame."""
        opening = np.repeat(reading.opening[:1], self.case.frames)
        further = [None if part is None else np.repeat(part[:1], self.case.frames, 0) for part in reading[1:]]
        return Reading(opening, *further)
