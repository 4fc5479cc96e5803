"""Simulated clips of talking heads, with the truth about speech, emotion and motion.

    clips = simulate_clips(ToyHead(), train=48, test=8)
    first, second, *_ = clips.of("test")
    first.pictures()                                        # (32, 32, 32, 3), drawn when asked for
    exp, jaw = clips.swapped(first.id, second.id)           # the face of one clip with the speech of another
    clips.render(first.id, exp, jaw)                        # its exact pictures

Speech, emotion and intensity are drawn independently of each other. Frame k shows the head at (k + 0.5) / fps seconds,
the middle of its time. Sound and mouth have no lag.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from veca.hashes import hex_digest

from ..data.clips import EMOTIONS, ClipSet, TalkingClip
from ..data.dataset import PARTS
from ..errors import BrainDataError, IdError, near_names
from ..heads import NAMED, VISEME_SHAPES, ToyHead
from .speech import VISEMES, Phoneme, cut_schedule, draw_schedule, sentence_of, synthesize, visemes_of

__all__ = ["ClipTruth", "SimulatedClips", "drawn_face", "drawn_speech", "simulate_clips"]

_CLIPS_OF = {"train": 8, "val": 4, "test": 4}  # clips of each identity
_SENTENCES = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}  # tenths of all sentences
_SPEECH, _FACE, _IDENTITY, _EMOTION, _DRAWN = range(5)  # streams of random numbers
_LID = NAMED.index("lid_wide")
_LIP_ROWS = range(NAMED.index("corner_up"), len(NAMED))  # components of the lips
_SHAPES, _JAWS = (np.stack([VISEME_SHAPES[name][kind] for name in VISEMES]) for kind in (0, 1))  # (6, 12), (6, 3)
_SHORTEST = 0.5  # seconds; shorter clips may hold no syllable
_STEP = 0.01  # seconds between the openings that the loudness follows
_CUT = 0.5  # seconds of speech before a clip at least, and after it; longer than the silence at both ends
_ALPHA = (0.2, 1.0)  # mean intensity of a clip that is not neutral
_WAVE = 0.1  # largest amplitude of the intensity's slow wave
_MOTION, _LIPS = 0.08, 0.02  # standard deviation of the slow motion of the upper face, and of the lips
_MEMORY = 0.4  # time constant of the slow motion, seconds
_JITTER = 0.05  # standard deviation of the independent part of each frame
_BLINKS, _BLINK = 0.35, 0.2  # rate in 1/s, and seconds from open to open


@dataclass(frozen=True, eq=False)
class ClipTruth:
    """What a clip is made of: named = speech + alpha * emotion + motion, jaw = speech_jaw + alpha * emotion's jaw.

    Attributes:
        schedule: Phonemes with their times in seconds.
        weights: (T, 6) Weights of `speech.VISEMES` in each frame.
        viseme: (T,) Number of the heaviest viseme.
        named: (T, 12) Named components of the clip, before the head mixes them.
        speech: (T, 12) The part of speech in them.
        speech_jaw: (T, 3) The part of speech in the jaw, axis-angle in radians.
        motion: (T, 12) Slow motion, jitter and blinks.
        opening: (T,) Mouth opening of the mean face with the clip's coefficients and without pose.
        alpha: (T,) Intensity of the emotion. It is 0 in neutral clips.
        emotion: Name of the emotion.
        identity: (8,) Numbers of the face.
        pose: (T, 3) Rotation of the head, axis-angle in radians.
    """

    schedule: tuple[Phoneme, ...]
    weights: np.ndarray
    viseme: np.ndarray
    named: np.ndarray
    speech: np.ndarray
    speech_jaw: np.ndarray
    motion: np.ndarray
    opening: np.ndarray
    alpha: np.ndarray
    emotion: str
    identity: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SimulatedClips(ClipSet):
    """Clips of a head whose truth is known.

    Attributes:
        head: The head that all clips show.
        size: Height and width of the clips' pictures in pixels.
        truth: A `ClipTruth` by clip id.
    """

    head: ToyHead
    size: int
    truth: Mapping[str, ClipTruth]

    def render(self, clip_id: str, exp: np.ndarray, jaw: np.ndarray, size: int | None = None) -> np.ndarray:
        """Exact pictures of any coefficients with the identity and the pose of a clip.

        Args:
            clip_id: Id of the clip.
            exp: (T, 12) Expression coefficients.
            jaw: (T, 3) Jaw, axis-angle in radians.
            size: Height and width in pixels. Default: that of the clips.

        Returns:
            uint8 (T, size, size, 3).

        Raises:
            IdError: The clip is unknown.
            AxisError: The coefficients have another shape than those of the clip.
        """
        truth = self._truth(clip_id)
        return self.head.pictures(exp, jaw, truth.pose, truth.identity, self.size if size is None else size)

    def swapped(self, face: str, speech: str) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients of an exact talking head with the face of one clip and the speech of another.

        Args:
            face: Id of the clip that gives emotion, intensity, motion and blinks.
            speech: Id of the clip that gives the speech.

        Returns:
            exp fp32 (T, 12) and jaw fp32 (T, 3). With the same id twice they are those of the clip.

        Raises:
            IdError: A clip is unknown.
        """
        shown, said = self._truth(face), self._truth(speech)
        alpha = shown.alpha[:, None]
        exp, jaw = self.head.emotion(shown.emotion)
        named = said.speech + alpha * self.head.unmix(exp) + shown.motion
        return self.head.mix(named.astype(np.float32)), said.speech_jaw + alpha * jaw

    def _truth(self, clip_id: str) -> ClipTruth:
        if clip_id not in self.truth:
            raise IdError(
                f"expected the id of a simulated clip, got {clip_id!r}{near_names(clip_id, list(self.truth))}"
            )
        return self.truth[clip_id]


def simulate_clips(
    head: ToyHead,
    train: int = 480,
    test: int = 40,
    frames: int = 32,
    fps: float = 25,
    size: int = 32,
    seed: int = 0,
    val: int = 0,
    sample_rate: int = 16000,
    drift: float = 0.0,
) -> SimulatedClips:
    """Simulate clips of drawn faces that talk with an emotion.

    Clip i of a part depends on the seed, the part and i. More clips of any part leave the others as they are. Each
    identity has 8 clips in training and 4 elsewhere. Every 8 clips of a part show each emotion once. No identity and no
    sentence is in two parts.

    The intensity of a clip that is not neutral has a mean of 0.2 to 1 and a slow wave of at most 0.1. It stays within
    0 and 1.

    Args:
        head: The head to animate.
        train: Number of training clips, 1 or more.
        test: Number of test clips.
        frames: Number of frames of each clip, for 0.5 s or more.
        fps: Frames per second.
        size: Height and width of the pictures in pixels.
        seed: Seed of all random numbers, 0 or more.
        val: Number of validation clips.
        sample_rate: Sample rate of the audio in hertz, 8000 or more.
        drift: Standard deviation of slow turns of the head about each axis, radians. Default: the head stays still.

    Returns:
        Clips named "train_0000", "val_0000", "test_0000" and so on. Their pictures are drawn when asked for. Their
        level is None, and alpha holds the exact intensity of each frame.

    Raises:
        BrainDataError: An argument is out of its range.
    """
    counts = dict(zip(PARTS, (train, val, test), strict=True))
    if train < 1 or min(counts.values()) < 0 or seed < 0 or not drift >= 0:
        raise BrainDataError(
            f"expected train of 1 or more and val, test, seed and drift of 0 or more, got {train}, {val}, {test}, "
            f"{seed} and {drift}"
        )
    if size < 8 or not fps > 0 or not frames / fps >= _SHORTEST:
        raise BrainDataError(
            f"expected pictures of 8 pixels or more and clips of {_SHORTEST} s or more, got {size} pixels and {frames} "
            f"frames at {fps:g} Hz"
        )
    clips, truth = [], {}
    for part, count in counts.items():
        for number in range(count):
            clip_id = f"{part}_{number:04d}"
            facts, audio = _draw(head, part, number, frames, fps, seed, sample_rate, drift)
            truth[clip_id] = facts
            clips.append(_clip(head, clip_id, facts, audio, fps, size, sample_rate))
    return SimulatedClips(
        name=f"clips_toy_{seed}",
        clips=tuple(clips),
        parts={part: tuple(clip_id for clip_id in truth if clip_id.startswith(part)) for part in PARTS},
        head=head,
        size=size,
        truth=truth,
    )


def drawn_face(seed: int = 0, size: int = 256) -> np.ndarray:
    """A neutral portrait of a drawn identity.

    Args:
        seed: Seed of the identity.
        size: Height and width in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    head = ToyHead()
    identity = head.draw_identity(np.random.default_rng((seed, _DRAWN)))
    return head.pictures(np.zeros((1, head.n_exp)), identity=identity, size=size)[0]


def drawn_speech(seed: int = 0, seconds: float = 2.0, sample_rate: int = 16000) -> np.ndarray:
    """Drawn speech of random syllables.

    Args:
        seed: Seed of phonemes, pitch and noise.
        seconds: Length, 0.2 or more.
        sample_rate: Sample rate in hertz, 8000 or more.

    Returns:
        fp32 (round(seconds * sample_rate),) in [-1, 1].

    Raises:
        BrainDataError: The recording is too short, or the sample rate too low.
    """
    rng = np.random.default_rng((seed, _DRAWN))
    return synthesize(draw_schedule(rng, seconds), seconds, sample_rate, rng)


def _draw(
    head: ToyHead,
    part: str,
    number: int,
    frames: int,
    fps: float,
    seed: int,
    sample_rate: int,
    drift: float,
) -> tuple[ClipTruth, np.ndarray]:
    """The truth and the audio of a clip."""
    stream = partial(_stream, seed, part)
    voice, face = stream(_SPEECH, number), stream(_FACE, number)
    schedule = _new_sentence(voice, part, frames / fps)
    audio = synthesize(schedule, frames / fps, sample_rate, voice, _spoken_opening(head, schedule, frames / fps))
    times = (np.arange(frames) + 0.5) / fps
    weights = visemes_of(schedule, times)
    speech, speech_jaw = weights @ _SHAPES, weights @ _JAWS
    emotion = EMOTIONS[stream(_EMOTION, number // len(EMOTIONS)).permutation(len(EMOTIONS))[number % len(EMOTIONS)]]
    alpha = np.zeros(frames, np.float32) if emotion == "neutral" else _intensity(times, face)
    exp, emotion_jaw = head.emotion(emotion)
    direction = head.unmix(exp)
    motion = _wander(frames, fps, face) + face.normal(0, _JITTER, (frames, len(NAMED)))
    blink = _blinks(times, face)
    lids = motion[:, _LID] + alpha * direction[_LID]
    motion[:, _LID] += blink * (-1 - lids)  # the lids close whatever the emotion
    motion = motion.astype(np.float32)
    named = speech + alpha[:, None] * direction + motion
    jaw = speech_jaw + alpha[:, None] * emotion_jaw
    return ClipTruth(
        schedule=tuple(schedule),
        weights=weights,
        viseme=weights.argmax(1),
        named=named,
        speech=speech,
        speech_jaw=speech_jaw,
        motion=motion,
        opening=_openings(head, head.mix(named), jaw),
        alpha=alpha,
        emotion=emotion,
        identity=head.draw_identity(stream(_IDENTITY, number // _CLIPS_OF[part])),
        pose=_turns(times, drift, face),
    ), audio


def _clip(
    head: ToyHead, clip_id: str, truth: ClipTruth, audio: np.ndarray, fps: float, size: int, sample_rate: int
) -> TalkingClip:
    part, number = clip_id.split("_")
    exp = head.mix(truth.named)
    _, emotion_jaw = head.emotion(truth.emotion)
    jaw = truth.speech_jaw + truth.alpha[:, None] * emotion_jaw
    return TalkingClip(
        id=clip_id,
        identity=f"{part}_face_{int(number) // _CLIPS_OF[part]:03d}",
        sentence=sentence_of(truth.schedule),
        fps=fps,
        exp=exp,
        jaw=jaw,
        audio=audio,
        sample_rate=sample_rate,
        frames=partial(head.pictures, exp, jaw, truth.pose, truth.identity, size),
        emotion=truth.emotion,
        alpha=truth.alpha,
        pose=truth.pose,
        mouth_box=head.mouth_box(exp, jaw, truth.pose, truth.identity, size),
        estimator="exact",
        licence="drawn",
    )


def _stream(seed: int, part: str, kind: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, PARTS.index(part), kind, number))


def _new_sentence(rng: np.random.Generator, part: str, seconds: float) -> list[Phoneme]:
    """Cut a sentence from longer speech, again and again until it belongs to the part.

    The hash of a sentence says to which part it belongs, so that no sentence is in two parts. Cuts are anywhere.
    Otherwise all mouths would be closed at the start and at the end, and openings of different clips would be alike.
    """
    while True:
        start = rng.uniform(_CUT, 2 * _CUT)
        schedule = cut_schedule(draw_schedule(rng, seconds + 3 * _CUT), start, start + seconds)
        sentence = sentence_of(schedule)
        tenth = int(hex_digest([sentence], 8), 16) % 10
        if sentence and tenth in _SENTENCES[part]:
            return schedule


def _intensity(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Intensity of each frame: a constant and a slow wave, fp32 (T,) in [0, 1]."""
    mean = rng.uniform(*_ALPHA)
    wave = min(_WAVE, 1 - mean) * rng.uniform()
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * rng.uniform(0.1, 0.5) * times
    return (mean + wave * np.sin(phase)).astype(np.float32)


def _wander(frames: int, fps: float, rng: np.random.Generator) -> np.ndarray:
    """Slow motion of each component, an AR(1) process that starts in its stationary state, (T, 12)."""
    keep = math.exp(-1 / (_MEMORY * fps))
    sizes = [_LIPS if place in _LIP_ROWS else _MOTION for place in range(len(NAMED))]
    steps = rng.normal(0, sizes, (frames, len(NAMED)))
    for place in range(1, frames):
        steps[place] = keep * steps[place - 1] + math.sqrt(1 - keep**2) * steps[place]
    return steps


def _blinks(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How far the lids are closed by blinks, 0 to 1, (T,)."""
    closed, clock = np.zeros(len(times)), rng.exponential(1 / _BLINKS)
    while clock < times[-1]:
        inside = np.abs(times - clock) < _BLINK / 2
        closed[inside] = np.square(np.cos(np.pi * (times[inside] - clock) / _BLINK))
        clock += _BLINK + rng.exponential(1 / _BLINKS)
    return closed


def _turns(times: np.ndarray, drift: float, rng: np.random.Generator) -> np.ndarray:
    """Slow turns of the head about each axis, fp32 (T, 3)."""
    hertz, phase = rng.uniform(0.1, 0.5, 3), rng.uniform(0, 2 * np.pi, 3)
    waves = np.sin(phase + 2 * np.pi * hertz * times[:, None])
    return (math.sqrt(2) * drift * waves).astype(np.float32)


def _openings(head: ToyHead, exp: np.ndarray, jaw: np.ndarray) -> np.ndarray:
    vertices = head.vertices(torch.as_tensor(exp), torch.as_tensor(jaw))
    return head.mouth_opening(vertices).numpy().astype(np.float32)


def _spoken_opening(head: ToyHead, schedule: list[Phoneme], seconds: float) -> Callable[[np.ndarray], np.ndarray]:
    """Opening by speech alone as a function of time, relative to that of the widest viseme."""
    grid = np.linspace(0, seconds, 1 + math.ceil(seconds / _STEP))
    weights = np.concatenate([visemes_of(schedule, grid), np.eye(len(VISEMES), dtype=np.float32)])
    found = _openings(head, head.mix(weights @ _SHAPES), weights @ _JAWS)
    widest = found[len(grid) :].max()
    return lambda times: np.interp(times, grid, found[: len(grid)] / widest)
