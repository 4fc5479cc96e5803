"""Stand-ins for models of talking heads, which draw exactly, or read the mouth from the expression.

evaluation = two_heads()   # computed once
evaluation.row("sync", "Exact").score("swap_leak").value
"""

from dataclasses import replace
from functools import cache
from types import MappingProxyType, SimpleNamespace

import numpy as np

from brainmodels.data.animation import Frames, Motion
from brainmodels.data.clips import ClipSet, emotion_name
from brainmodels.evaluation.head_case import HeadSettings, recomposed
from brainmodels.evaluation.heads import evaluate_heads
from brainmodels.heads import ToyHead
from brainmodels.simulated.talking_head import simulate_clips

FPS = 25


class RememberingHead(ToyHead):
    """Draws equal videos once, because stand-ins draw what the exact renderer draws."""

    def __init__(self):
        super().__init__()
        self.known = {}

    def pictures(self, exp, jaw=None, pose=None, identity=None, size=64):
        key = b"".join(np.asarray(part, np.float32).tobytes() for part in (exp, jaw, pose, identity))
        if key not in self.known:
            self.known[key] = super().pictures(exp, jaw, pose, identity, size)
        return self.known[key]


def small_clips(train=32, test=8, size=32, frames=16):
    return simulate_clips(RememberingHead(), train=train, test=test, size=size, frames=frames)


def small_settings(**more):
    few = {"partners": 2, "resamples": 20, "alphas": (0.0, 0.5, 1.0), "grid_frames": 2}
    few |= {"probe_pictures": 512, "probe_steps": 140}
    return HeadSettings(**few | more)


class ExactHead:
    """Knows the clips by their sound and their coefficients, and draws what the exact renderer draws."""

    label, fingerprint = "Exact", "0123456789ab"
    meta_ = MappingProxyType({"system": "stand-in"})
    recipe = SimpleNamespace(size=32, steps=2)

    def __init__(self, clips, shift=0):
        self.clips, self.shift = clips, shift
        self.calls = []

    def _frames(self, video):
        return Frames(np.roll(video, self.shift, 0), FPS, None, {})

    def _sound(self, audio):
        return next((clip for clip in self.clips.clips if np.array_equal(clip.audio[: len(audio)], audio)), None)

    def render(self, image, audio, exp, jaw, *, sample_rate, lips="audio", seed=0, steps=None):
        self.calls.append(("render", lips))
        face = next(clip for clip in self.clips.clips if np.array_equal(clip.exp, exp))
        return self._frames(self.clips.render(face.id, *self.spoken(face, audio, exp, jaw, lips)))

    def spoken(self, face, audio, exp, jaw, lips):
        if lips == "expression":
            return exp, jaw
        sound, truth = self._sound(audio), self.clips.truth[face.id]
        if sound is not None:
            return self.clips.swapped(face.id, sound.id)
        return exp - self.clips.head.mix(truth.speech), jaw - truth.speech_jaw

    def motion(self, audio, emotion, intensity, *, sample_rate, seed=0):
        self.calls.append(("motion", emotion))
        sound = self._sound(audio)
        exp, jaw = self.clips.head.emotion(emotion_name(emotion))
        count = round(len(audio) * FPS / sample_rate)
        strength = np.broadcast_to(np.asarray(intensity, np.float32), count)[:, None]
        spoken, opened = np.zeros((count, 12), np.float32), np.zeros((count, 3), np.float32)
        if sound is not None:
            truth = self.clips.truth[sound.id]
            spoken, opened = truth.speech[:count], truth.speech_jaw[:count]
        exp = self.clips.head.mix(spoken.astype(np.float32)) + strength * exp
        return Motion(exp, (opened + strength * jaw).astype(np.float32), np.arange(count) / FPS, FPS)

    def animate(self, image, audio, emotion="neutral", intensity=1.0, *, sample_rate, seed=0, steps=None):
        self.calls.append(("animate", emotion))
        clip = self._sound(audio)
        count = round(len(audio) * FPS / sample_rate)
        exp, jaw = recomposed(self.clips, clip.id, emotion, self.strength(intensity))
        return self._frames(self.clips.render(clip.id, exp, jaw)[:count])

    def strength(self, intensity):
        return intensity


class LeakyHead(ExactHead):
    """Reads the mouth from the expression, whatever the sound. Its emotions are half as strong as asked."""

    label = "Leaky"

    def spoken(self, face, audio, exp, jaw, lips):
        return exp, jaw

    def strength(self, intensity):
        return intensity / 2


class FilmHead:
    """Repeats its picture, a little brighter: a model of clips whose truth is not known."""

    label, fingerprint, meta_ = "Film", "ba9876543210", {}
    recipe = SimpleNamespace(size=32, steps=2)

    def render(self, image, audio, exp, jaw, *, sample_rate, lips="audio", seed=0, steps=None):
        brighter = np.clip(image.astype(int) + 9, 0, 255).astype(np.uint8)
        return Frames(np.repeat(brighter[None], len(exp), 0), FPS, None, {})

    def animate(self, image, audio, emotion="neutral", intensity=1.0, *, sample_rate, seed=0, steps=None):
        count = round(len(audio) * FPS / sample_rate)
        return Frames(np.repeat(image[None], count, 0), FPS, None, {})


@cache
def two_heads():
    """The evaluation of an exact and of a leaky stand-in on eight clips."""
    clips = small_clips()
    return evaluate_heads({"Exact": ExactHead(clips), "Leaky <b>": LeakyHead(clips)}, clips, small_settings())


def filmed(clips, boxes=True):
    """The same clips without their truth."""
    kept = [
        replace(clip, frames=clip.pictures(), mouth_box=clip.mouth_box if boxes else None)
        for clip in clips.of("train")[:2] + clips.of("test")
    ]
    return ClipSet("films", tuple(kept), {"train": [x.id for x in kept[:2]], "test": [x.id for x in kept[2:]]})


@cache
def one_film():
    """The evaluation of a head that repeats its picture, on clips without truth."""
    return evaluate_heads({"Film": FilmHead()}, filmed(small_clips(2, 8)), small_settings())
