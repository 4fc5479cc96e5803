"""Expressions over time: how the generator trains, and how emotions and intensities are put together.

    task = ExpressionTask(generator, recipe)
    neutral, happy = trajectories(generator, audio, (0, 5), noise_seed=0)   # (T, W) each
    motion = blend(neutral, happy, 0.8)                                     # (1 - alpha) neutral + alpha happy

Intensity alpha is no input of the network. The coefficients are therefore affine in alpha, whatever was learned. All
series here are whitened, see `brainmodels.heads.ExpressionSpace`. Whitening is affine and the weights of every mixture
add up to 1, so mixing before or after it is the same.

Shapes: B clips, T frames, S parts of a frame, D audio width, K emotions, E expression coefficients, J jaw numbers,
W = E + J.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...baselines import Ridge
from ...errors import AxisError, BrainDataError
from ...heads import ExpressionSpace
from .losses import frozen, generator_hinge, hinge, label_loss, motion_loss
from .model import (
    NEUTRAL,
    SPAN,
    ExpressionGenerator,
    FrameDiscriminator,
    LabelClassifier,
    SequenceDiscriminator,
    audio_windows,
)
from .recipes import EmoDiffHeadRecipe

__all__ = [
    "ExpressionTask",
    "Intensity",
    "MotionBatch",
    "RidgeSpeech",
    "as_told",
    "blend",
    "check_range",
    "curve",
    "mixture",
    "with_trajectory",
    "with_vector",
]

_log = logging.getLogger(__name__)
_ROUNDING = 1e-6  # by which sums of intensities may pass a bound
_LABEL_SCALE = 10.0  # of the columns of emotions in `RidgeSpeech`, which makes their penalty 100 times smaller

Intensity = float | np.ndarray | Sequence[float] | Callable[[float], float]


class MotionBatch(NamedTuple):
    """Windows of clips for the expression stage.

    Attributes:
        subject, rows: As in `brainmodels.training.Batch`.
        audio: (B, T, S, D) Scaled features of the sound.
        target: (B, T, W) Whitened coefficients.
        label: (B,) Places of emotions, integers; -1 is unknown.
        alpha: (B, T) Intensities. Those of clips of unknown emotion are not read.
    """

    subject: str
    rows: np.ndarray
    audio: Tensor
    target: Tensor
    label: Tensor
    alpha: Tensor


class ExpressionTask(nn.Module):
    """The loss of the expression generator, and of the networks that judge what it makes.

    A clip with a label is predicted as (1 - alpha) e_neutral + alpha e_label, both from the same sound and noise.
    A clip without one is predicted by the trajectory of an empty label, which is a row of zeros. It trains how sound
    moves the face and leaves the weights of every emotion alone. Nobody can ask for that trajectory later.

    All networks learn in one step of one optimiser. The terms of the generator use the judges with detached weights.
    The terms of the judges use detached coefficients.

    Args:
        generator: The network.
        recipe: Recipe of the model. `adversarial` None leaves the discriminators out, and `label_weight` 0 the
            classifier.

    Attributes:
        generator, classifier, frames, sequences: The networks; the last three may be None.

    Raises:
        BrainDataError: The recipe has discriminators and a window shorter than the 16 frames that one of them reads.
    """

    def __init__(self, generator: ExpressionGenerator, recipe: EmoDiffHeadRecipe):
        super().__init__()
        self.generator, self.recipe = generator, recipe
        width, count = generator.width, generator.num_emotions
        self.classifier = LabelClassifier(width, count) if recipe.label_weight else None
        self.frames: FrameDiscriminator | None = None
        self.sequences: SequenceDiscriminator | None = None
        if recipe.adversarial is not None:
            if recipe.window < SPAN:
                raise BrainDataError(
                    f"expected a window of {SPAN} frames or more with adversaries, got {recipe.window}"
                )
            self.frames, self.sequences = FrameDiscriminator(width), SequenceDiscriminator(width, count)

    def predict(self, batch: MotionBatch, noise: Tensor) -> Tensor:
        """Coefficients (B, T, W) of clips, at their own emotions and intensities, from noise (B, n)."""
        known = (batch.label >= 0)[:, None]
        hot = self._one_hot(batch.label)
        neutral = self._one_hot(torch.full_like(batch.label, NEUTRAL)) * known
        both = self.generator(batch.audio.repeat(2, 1, 1, 1), torch.cat((neutral, hot)), noise.repeat(2, 1))
        return blend(both[: len(hot)], both[len(hot) :], batch.alpha * known)

    def forward(self, batch: MotionBatch, generator: torch.Generator) -> dict[str, Tensor]:
        recipe = self.recipe
        shape = (len(batch.label), self.generator.noise)
        noise = torch.randn(shape, device=generator.device, generator=generator)
        found = self.predict(batch, noise)
        l1, velocity = motion_loss(found, batch.target)
        terms = {"l1": l1, "velocity": velocity}
        loss = l1 + recipe.velocity_weight * velocity
        for name, weight, value in self._judged(batch, found):
            terms[name] = value
            loss = loss + weight * value
        return {"loss": loss, **terms}

    def _one_hot(self, label: Tensor) -> Tensor:
        """(B, K) rows of emotions; zeros where unknown."""
        return F.one_hot(label.clamp_min(0), self.generator.num_emotions).float() * (label >= 0)[:, None]

    def _judged(self, batch: MotionBatch, found: Tensor) -> list[tuple[str, float, Tensor]]:
        """Name, weight and value of the terms of the networks that judge."""
        recipe, target, terms = self.recipe, batch.target, []
        strength = torch.where(batch.label == NEUTRAL, 0.0, batch.alpha.mean(1)) * (batch.label >= 0)  # (B,)
        if self.classifier is not None:
            # faint emotions cannot be read, neutral faces can
            weight = torch.where(batch.label == NEUTRAL, 1.0, strength)
            read, made = self.classifier(target), frozen(self.classifier, found)
            terms.append(("label", recipe.label_weight, label_loss(made, batch.label, weight)))
            terms.append(("label_true", recipe.label_weight, label_loss(read, batch.label, weight)))
        if self.frames is not None and self.sequences is not None and recipe.adversarial is not None:
            fake = found.detach()
            for_frames, for_sequences = recipe.adversarial
            terms.append(("frame", for_frames, generator_hinge(frozen(self.frames, found))))
            terms.append(("frame_judge", for_frames, hinge(self.frames(target), self.frames(fake))))
            neutral = self._one_hot(torch.full_like(batch.label, NEUTRAL)) * (batch.label >= 0)[:, None]
            label = blend(neutral, self._one_hot(batch.label), strength)  # as strong as the clip shows it
            scores = self.sequences(target, label), self.sequences(fake, label)
            terms.append(("sequence", for_sequences, generator_hinge(frozen(self.sequences, found, label))))
            terms.append(("sequence_judge", for_sequences, hinge(*scores)))
        return terms


def blend(neutral: Any, emotional: Any, alpha: Any) -> Any:
    """(1 - alpha) neutral + alpha emotional.

    Args:
        neutral, emotional: (..., W) Coefficients, tensors or arrays. Arrays are mixed in fp64 and returned in fp32.
        alpha: (...) Intensities, or a number.
    """
    if isinstance(neutral, Tensor):
        alpha = torch.as_tensor(alpha, dtype=neutral.dtype, device=neutral.device)[..., None]
        return (1 - alpha) * neutral + alpha * emotional
    alpha = np.asarray(alpha, np.float64)[..., None]
    return ((1 - alpha) * neutral + alpha * np.asarray(emotional, np.float64)).astype(np.float32)


def mixture(
    neutral: np.ndarray,
    emotional: Mapping[Any, np.ndarray],
    weights: Mapping[Any, Intensity],
    alpha: Intensity = 1.0,
    *,
    times: np.ndarray | None = None,
    trained_alpha_max: float = 1.0,
    allow_extrapolation: bool = False,
) -> np.ndarray:
    """neutral + sum over emotions k of alpha w_k (e_k - neutral).

    Args:
        neutral: (T, W) Neutral trajectory.
        emotional: Trajectories (T, W) of the emotions.
        weights: Weights w_k of the same emotions: numbers, arrays (T,) or functions of seconds.
        alpha: Intensity of the whole, in the same forms.
        times: (T,) Seconds of the frames, for functions. None counts frames as seconds.
        trained_alpha_max: Largest sum of alpha w_k that was trained.
        allow_extrapolation: Warn of intensities outside the range instead of raising.

    Returns:
        fp32 (T, W). It is exactly the neutral trajectory where all intensities are 0.

    Raises:
        AxisError: A series has another number of frames.
        BrainDataError: An emotion is missing, or an intensity is outside [0, trained_alpha_max].
    """
    if missing := [name for name in weights if name not in emotional]:
        raise BrainDataError(f"expected a trajectory of each emotion, got none of {missing}")
    times = np.arange(len(neutral), dtype=np.float64) if times is None else times
    whole = curve(alpha, times)
    strengths = {name: whole * curve(weight, times) for name, weight in weights.items()}
    check_range(strengths, trained_alpha_max, allow_extrapolation)
    found = np.array(neutral, np.float64)
    for name, strength in strengths.items():
        found += strength[:, None] * (np.asarray(emotional[name], np.float64) - neutral)
    return found.astype(np.float32)


def curve(alpha: Intensity, times: np.ndarray) -> np.ndarray:
    """Intensity of each frame, fp64 (T,).

    Args:
        alpha: A number, an array (T,), or a function of seconds.
        times: (T,) Seconds of the frames.

    Raises:
        AxisError: The array has another length.
        BrainDataError: A value is not finite.
    """
    found = np.asarray([alpha(float(time)) for time in times] if callable(alpha) else alpha, np.float64)
    if found.ndim == 0:
        found = np.full(len(times), float(found))
    if found.shape != (len(times),):
        raise AxisError(f"expected an intensity of each of {len(times)} frames, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise BrainDataError("expected finite intensities, got NaN or infinite ones")
    return found


def as_told(alpha: Intensity) -> float | str:
    """An intensity as provenance has it: a number, or "curve" for one that changes over time."""
    return "curve" if callable(alpha) or np.ndim(alpha) else float(np.asarray(alpha))


def check_range(strengths: Mapping[Any, np.ndarray], trained_alpha_max: float, allow_extrapolation: bool) -> None:
    """Refuse or report intensities below 0, and sums of intensities above what was trained.

    Args:
        strengths: Intensities (T,) by emotion.
        trained_alpha_max: Largest sum that was trained.
        allow_extrapolation: Warn instead of raising.

    Raises:
        BrainDataError: An intensity is outside the range, and extrapolation is not allowed.
    """
    if not strengths:
        return
    values = np.stack(list(strengths.values()))
    low, high = float(values.min()), float(values.sum(0).max())
    if low >= -_ROUNDING and high <= trained_alpha_max + _ROUNDING:
        return
    wrong = f"{low:g}" if low < -_ROUNDING else f"{high:g}"
    what = f"intensities from 0 to {trained_alpha_max:g}, the largest trained sum, got {wrong}"
    if not allow_extrapolation:
        raise BrainDataError(f"expected {what}; allow_extrapolation=True goes on with a warning")
    _log.warning("expected %s: coefficients extrapolate, pictures do not", what)


def with_trajectory(neutral: np.ndarray, vectors: np.ndarray, space: ExpressionSpace) -> np.ndarray:
    """Whitened emotional trajectory (T, W) that is given frame by frame.

    Args:
        neutral: (T, W) Neutral trajectory, whitened, from which the jaw comes where it is not given.
        vectors: (T, E) or (T, E + J) Coefficients as offsets from the neutral face, not whitened.
        space: Their space.

    Raises:
        AxisError: There are other numbers of frames or coefficients.
    """
    exp, jaw = space.unwhiten(neutral)
    if np.ndim(vectors) != 2:
        raise AxisError(f"expected vectors (T, E) or (T, E + J), got shape {np.shape(vectors)}")
    new_exp, new_jaw = _parts(vectors, exp, jaw)
    return space.whiten(new_exp, jaw if new_jaw is None else new_jaw)


def with_vector(neutral: np.ndarray, vector: np.ndarray, space: ExpressionSpace, fps: float) -> np.ndarray:
    """Whitened emotional trajectory (T, W) of a vector that is constant, or so slow that it holds no speech.

        e = v + neutral - hide(neutral)

    The fast part of the mouth comes from the neutral trajectory, so the lips keep speaking. A vector without the jaw
    leaves the jaw as it is in the neutral trajectory.

    Args:
        neutral: (T, W) Neutral trajectory, whitened.
        vector: (E,), (E + J,), (T, E) or (T, E + J) Offsets from the neutral face, not whitened.
        space: Space of the coefficients, which knows the mouth part.
        fps: Frames a second.

    Raises:
        AxisError: There are other numbers of frames or coefficients.
        BrainDataError: The space has no head, and so no mouth part.
    """
    exp, jaw = space.unwhiten(neutral)
    slow_exp, slow_jaw = space.unwhiten(space.hide(neutral, fps))
    new_exp, new_jaw = _parts(vector, exp, jaw)
    return space.whiten(new_exp + exp - slow_exp, jaw if new_jaw is None else new_jaw + jaw - slow_jaw)


def _parts(vector: np.ndarray, exp: np.ndarray, jaw: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Expression and jaw of a vector, as series as long as `exp`; the jaw is None where the vector has none."""
    vector = np.asarray(vector, np.float32)
    width, full = exp.shape[1], exp.shape[1] + jaw.shape[1]
    if vector.ndim not in (1, 2) or vector.shape[-1] not in (width, full):
        raise AxisError(f"expected vectors of {width} or {full} coefficients, got shape {vector.shape}")
    if vector.ndim == 2 and len(vector) != len(exp):
        raise AxisError(f"expected vectors of {len(exp)} frames, got {len(vector)}")
    if not np.isfinite(vector).all():
        raise BrainDataError("expected finite coefficients, got NaN or infinite ones")
    series = np.broadcast_to(vector, (len(exp), vector.shape[-1]))
    return series[:, :width], series[:, width:] if full > width and vector.shape[-1] == full else None


class RidgeSpeech:
    """Linear baseline of the expression generator, by ridge regression.

        coefficients = windows of sound * A + alpha * b[emotion] + c

    Args:
        num_emotions: K.
        reach: Number of frames before and after a frame whose sound it reads.

    Attributes:
        weight, bias: (n + K, W) and (W,). The last K rows are those of the emotions but neutral, and of unknown ones.
    """

    weight: np.ndarray
    bias: np.ndarray

    def __init__(self, num_emotions: int, reach: int = 2):
        self.num_emotions, self.reach = num_emotions, reach

    def fit(
        self,
        audio: Sequence[np.ndarray],
        target: Sequence[np.ndarray],
        label: Sequence[int],
        alpha: Sequence[np.ndarray],
    ) -> "RidgeSpeech":
        """Choose penalties by cross-validation over clips, and fit.

        Args:
            audio: (T, S, D) Scaled features of each clip.
            target: (T, W) Whitened coefficients of each clip.
            label: Place of the emotion of each clip; -1 is unknown.
            alpha: (T,) Intensities of each clip.
        """
        rows = [np.hstack((self._sound(x), self._label(k, a))) for x, k, a in zip(audio, label, alpha, strict=True)]
        clips = np.repeat(np.arange(len(rows)), [len(x) for x in rows])
        fitted = Ridge(cv=5).fit(np.concatenate(rows), np.concatenate(list(target)), groups=clips)
        self.weight, self.bias = fitted.affine()
        return self

    def trajectories(self, audio: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """Trajectories fp32 (len(labels), T, W) of emotions at intensity 1, from features (T, S, D)."""
        sound, ones = self._sound(audio), np.ones(len(audio), np.float32)
        return np.stack([np.hstack((sound, self._label(k, ones))) @ self.weight + self.bias for k in labels])

    def _sound(self, audio: np.ndarray) -> np.ndarray:
        windows = audio_windows(torch.tensor(np.array(audio, np.float32))[None], self.reach)
        return windows[0].flatten(1).numpy()

    def _label(self, label: int, alpha: np.ndarray) -> np.ndarray:
        columns = np.zeros((len(alpha), self.num_emotions), np.float32)  # neutral has none, unknown has the last
        if label < 0:
            columns[:, -1] = _LABEL_SCALE
        elif label != NEUTRAL:
            columns[:, label - 1] = _LABEL_SCALE * alpha
        return columns
