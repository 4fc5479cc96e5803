"""Where the emotion of a talking head comes from: a label, a mixture, coefficients, clips, or a decoder of brain data.

    EmotionSource.from_label("happy")
    EmotionSource.from_mixture({"happy": 0.5, "surprise": 0.3})
    EmotionSource.from_vector(*head.emotion("happy"))
    EmotionSource.from_clips(clips, "happy")
    EmotionSource.from_brain(decoder, responses)

**Interface and synthetic demonstration. No source known to us decodes emotion from brain signals into a talking head;
this is not evidence that it can be done.**
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ...data.clips import EMOTIONS, TalkingClip, emotion_name
from ...errors import AxisError, BrainDataError, check_choice
from ...heads import ExpressionSpace
from .batches import offsets_of
from .model import NEUTRAL
from .motion import Intensity, as_told, check_range, curve, mixture, with_trajectory, with_vector

__all__ = ["BRAIN_NOTE", "EmotionSource"]

BRAIN_NOTE = (
    "Interface and synthetic demonstration. No source known to us decodes emotion from brain signals into a talking "
    "head; this is not evidence that it can be done."
)


@dataclass(frozen=True, eq=False)
class EmotionSource:
    """An emotion and its course in time. The class methods make one; exactly one of weights and vector is set.

    Attributes:
        weights: Weight of each emotion by its name: a number, a value a frame, or a function of seconds.
        vector: Offsets from the neutral face: (E,) or (E + J,), or a row for each frame or for each of `times`.
        alpha: Intensity by which the whole is multiplied: a number, a value a frame, or a function of seconds.
        slow: Whether the vector holds no speech, so that the lips keep speaking, see `motion.with_vector`. Otherwise
            it replaces the whole trajectory.
        times: (n,) Seconds of the rows of a slow vector, between which frames are interpolated; None means that the
            rows are frames.
        provenance: Where the emotion comes from, as JSON types.
    """

    weights: Mapping[str, Intensity] | None = None
    vector: np.ndarray | None = None
    alpha: Intensity = 1.0
    slow: bool = False
    times: np.ndarray | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if (self.weights is None) == (self.vector is None):
            raise BrainDataError("expected either weights or a vector, got both or neither")

    @classmethod
    def of(cls, emotion: Any) -> "EmotionSource":
        """A source from what a user may pass: a source, a name, a mapping of weights, or coefficients.

        Raises:
            BrainDataError: A name is unknown, or the coefficients are not finite.
            AxisError: The coefficients are neither (E,) nor (T, E).
        """
        if isinstance(emotion, EmotionSource):
            return emotion
        if isinstance(emotion, str):
            return cls.from_label(emotion)
        return cls.from_mixture(emotion) if isinstance(emotion, Mapping) else cls.from_vector(emotion)

    @classmethod
    def from_label(cls, name: str, alpha: Intensity = 1.0) -> Self:
        """One emotion.

        Args:
            name: Name of the emotion, or an alias such as "ang".
            alpha: Its intensity: a number, a value a frame, or a function of seconds.
        """
        name = emotion_name(name)
        return cls({name: 1.0}, alpha=alpha, provenance={"source": "label", "emotion": name})

    @classmethod
    def from_mixture(cls, weights: Mapping[str, Intensity], alpha: Intensity = 1.0) -> Self:
        """Several emotions at once: neutral + sum of alpha w_k (e_k - neutral).

        Args:
            weights: Weight of each emotion: numbers, values a frame, or functions of seconds.
            alpha: Factor of all weights, in the same forms.

        Raises:
            BrainDataError: There is no emotion, a name is unknown, or two names mean the same emotion.
        """
        named = {emotion_name(name): weight for name, weight in weights.items()}
        if not named or len(named) != len(weights):
            raise BrainDataError(f"expected one or more different emotions, got {list(weights)}")
        told = {name: as_told(weight) for name, weight in named.items()}
        return cls(named, alpha=alpha, provenance={"source": "mixture", "weights": told})

    @classmethod
    def from_vector(cls, vector: Any, jaw: Any = None, alpha: Intensity = 1.0) -> Self:
        """Expression coefficients, as offsets from the neutral face.

        Args:
            vector: (E,), which leaves speech to the sound, or (T, E), which replaces the trajectory frame by frame.
            jaw: (J,) or (T, J) Jaw numbers of the same; None leaves the jaw to the sound.
            alpha: Intensity: a number, a value a frame, or a function of seconds.

        Raises:
            AxisError: The vector has another number of axes, or the jaw another number of frames.
            BrainDataError: A value is not finite.
        """
        whole = _numbers("a vector", vector, (1, 2))
        if jaw is not None:
            jaw = _numbers("a jaw", jaw, (whole.ndim,))
            if jaw.shape[:-1] != whole.shape[:-1]:
                raise AxisError(f"expected a jaw of {len(whole)} frames, got {len(jaw)}")
            whole = np.concatenate((whole, jaw), -1)
        told = {"source": "vector", "frames": len(whole) if whole.ndim == 2 else None, "jaw": jaw is not None}
        return cls(vector=whole, alpha=alpha, slow=whole.ndim == 1, provenance=told)

    @classmethod
    def from_clips(
        cls,
        clips: Iterable[TalkingClip],
        emotion: str | None = None,
        neutral: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
        alpha: Intensity = 1.0,
    ) -> Self:
        """The mean coefficients of clips. Intensity 1 is the mean intensity of these clips.

        Args:
            clips: The clips.
            emotion: Emotion of the clips that are taken; None takes all.
            neutral: Neutral coefficients (E,) and jaw (J,) of identities, which are subtracted; zeros of the others.
            alpha: Intensity: a number, a value a frame, or a function of seconds.

        Raises:
            BrainDataError: There is no such clip.
        """
        wanted = None if emotion is None else emotion_name(emotion)
        taken = [clip for clip in clips if wanted is None or clip.emotion == wanted]
        if not taken:
            raise BrainDataError(f"expected clips of {wanted or 'any emotion'}, got none")
        rows = [np.concatenate(offsets_of(clip, neutral or {}), 1) for clip in taken]
        vector = np.concatenate(rows).mean(0, dtype=np.float64).astype(np.float32)
        told = {"source": "clips", "emotion": wanted, "clips": [clip.id for clip in taken]}
        return cls(vector=vector, alpha=alpha, slow=True, provenance=told)

    @classmethod
    def from_brain(
        cls,
        decoder: Any,
        responses: Any,
        space: str = "mixture",
        times: Any = None,
        limit: float | None = None,
        alpha: Intensity = 1.0,
    ) -> Self:
        """What a decoder reads from brain responses.

        **Interface and synthetic demonstration. No source known to us decodes emotion from brain signals into a talking
        head; this is not evidence that it can be done.**

        Args:
            decoder: A fitted regressor with `predict` (n, V) -> (n, targets).
            responses: (V,) or (n, V) Responses.
            space: "mixture", where targets are alpha times the one-hot emotion, 8 numbers; negative ones become 0.
                "expression", where they are E coefficients, or E + J with the jaw, as offsets from the neutral face.
            times: (n,) Rising seconds of several responses. Frames between them are interpolated, those outside take
                the nearest.
            limit: Largest sum of a decoded mixture. Larger ones are scaled down to it, and provenance says how many.
                None leaves them, and sums above the trained range are refused later.
            alpha: Factor of what was decoded: a number, a value a frame, or a function of seconds.

        Raises:
            AxisError: Shapes do not match, or there are several responses without times.
            BrainDataError: A value is not finite, or the times do not rise.
        """
        check_choice("space", space, ("mixture", "expression"))
        found, seconds = _decoded(decoder, responses, times)
        told: dict[str, Any] = {"source": "brain", "space": space, "decoder": type(decoder).__name__}
        told |= {"responses": len(found), "note": BRAIN_NOTE}
        if space == "expression":
            vector = found[0] if seconds is None else found
            return cls(vector=vector, alpha=alpha, slow=True, times=seconds, provenance=told)
        if found.shape[1] != len(EMOTIONS):
            raise AxisError(f"expected {len(EMOTIONS)} decoded numbers, one an emotion, got {found.shape[1]}")
        found = np.maximum(found, 0)
        found[:, NEUTRAL] = 0  # its weight moves nothing
        if limit is not None:
            sums = found.sum(1, keepdims=True)
            told["scaled_down"] = int((sums > limit).sum())
            found = found * np.minimum(1, limit / np.maximum(sums, 1e-12))
        weights: dict[str, Intensity] = {
            name: float(found[0, k]) if seconds is None else _course(seconds, found[:, k])
            for k, name in enumerate(EMOTIONS)
        }
        told["weights"] = {name: [round(float(x), 6) for x in found[:, k]] for k, name in enumerate(EMOTIONS)}
        return cls(weights, alpha=alpha, provenance=told)

    @property
    def labels(self) -> tuple[int, ...]:
        """Places of the emotions whose trajectories are needed beside the neutral one."""
        return tuple(k for name in self.weights or () if (k := EMOTIONS.index(name)) != NEUTRAL)

    def whitened(
        self,
        run: Callable[[Sequence[int]], np.ndarray],
        space: ExpressionSpace,
        times: np.ndarray,
        fps: float,
        intensity: Intensity = 1.0,
        *,
        trained_alpha_max: float = 1.0,
        allow_extrapolation: bool = False,
    ) -> np.ndarray:
        """The trajectory of this emotion.

        Args:
            run: Returns whitened trajectories (len(labels), T, W) of emotions from the same sound and noise.
            space: Space of the coefficients.
            times: (T,) Seconds of the frames.
            fps: Frames a second.
            intensity: Factor of the intensity of this source: a number, an array (T,), or a function of seconds.
            trained_alpha_max: Largest intensity, or sum of intensities, that was trained.
            allow_extrapolation: Warn of intensities outside the range instead of raising.

        Returns:
            fp32 (T, W), whitened.

        Raises:
            AxisError: A series has another number of frames or coefficients.
            BrainDataError: An intensity is outside the range.
        """
        neutral, *emotional = run((NEUTRAL, *self.labels))
        limits: dict[str, Any] = {"trained_alpha_max": trained_alpha_max, "allow_extrapolation": allow_extrapolation}
        whole = curve(self.alpha, times) * curve(intensity, times)
        if self.weights is not None:
            found = dict(zip((EMOTIONS[k] for k in self.labels), emotional, strict=True))
            weights = {name: weight for name, weight in self.weights.items() if name in found}
            if not weights:  # neutral alone
                check_range({"intensity": whole}, **limits)
            return mixture(neutral, found, weights, whole, times=times, **limits)
        assert self.vector is not None
        if not self.slow:
            replaced = with_trajectory(neutral, self.vector, space)
        else:
            vector = self.vector if self.times is None else _between(self.times, self.vector, times)
            replaced = with_vector(neutral, vector, space, fps)
        return mixture(neutral, {"vector": replaced}, {"vector": 1.0}, whole, times=times, **limits)


def _decoded(decoder: Any, responses: Any, times: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Decoded rows (n, targets) and their seconds (n,), or None where there is one row without a time."""
    rows = np.atleast_2d(_numbers("responses", responses, (1, 2)))
    found = np.asarray(decoder.predict(rows), np.float32)
    found = _numbers("decoded targets", found.reshape(len(rows), -1) if found.ndim == 1 else found, (2,))
    if len(found) != len(rows):
        raise AxisError(f"expected decoded targets of {len(rows)} responses, got {len(found)}")
    if times is None:
        if len(rows) != 1:
            raise AxisError(f"expected the times of {len(rows)} responses in seconds, got none")
        return found, None
    seconds = np.asarray(times, np.float64)
    if seconds.shape != (len(rows),):
        raise AxisError(f"expected times ({len(rows)},) of the responses, got shape {seconds.shape}")
    if not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
        raise BrainDataError("expected finite times that rise, got others")
    return found, seconds


def _course(seconds: np.ndarray, values: np.ndarray) -> Callable[[float], float]:
    return lambda time: float(np.interp(time, seconds, values))


def _between(seconds: np.ndarray, values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Rows of values (n, E) at other times, (T, E)."""
    return np.stack([np.interp(times, seconds, column) for column in values.T], 1).astype(np.float32)


def _numbers(name: str, values: Any, axes: tuple[int, ...]) -> np.ndarray:
    found = np.asarray(values, np.float32)
    if found.ndim not in axes or not found.size:
        raise AxisError(f"expected {name} with {' or '.join(map(str, axes))} axes, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise BrainDataError(f"expected finite numbers in {name}, got NaN or infinite ones")
    return found
