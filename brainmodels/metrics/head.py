"""Talking heads: strength of the emotion, identity of the person, and smoothness of the motion.

    intensity_scores(probe_of_model, probe_of_exact_renders)  # (clips, alphas) -> intensity_slope, intensity_r2
    identity_scores(distances, fps=25)                        # (clips, T) -> identity_drift, identity_drift_per_s

Scores of lip sync are in `brainmodels.metrics.sync`.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import AxisError, BrainDataError
from .encoding import pearson
from .record import Metric, Score, not_available
from .registry import metric, register
from .statistics import RESAMPLES, bootstrap, score_images

__all__ = [
    "ALPHAS",
    "emotion_score",
    "identity_scores",
    "intensity_scores",
    "jerk",
    "jerk_score",
    "weighted_scores",
]

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def intensity_scores(
    readings: np.ndarray,
    exact: np.ndarray,
    alphas: Sequence[float] = ALPHAS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """Intensity that a probe reads from clips, against the intensity that was asked for.

    | score | definition |
    |---|---|
    | `intensity_slope` | mean slope of the readings over alpha, divided by that on exact renders; 1 is exact |
    | `intensity_r2` | squared correlation of readings and alpha within each clip, mean over clips |

    Calibrate the probe first: intensity is linear in coefficients, not in pixels, and a probe saturates beyond its
    training range. The note gives the probe's own slope and r2 on exact renders.

    Args:
        readings: (clips, alphas) Readings of the probe on the model's clips.
        exact: (clips, alphas) Readings of the probe on exact renders of the same clips.
        alphas: Intensities that were asked for, one for each column; at least three.
        resamples: Number of bootstrap samples over clips.
        seed: Seed of the bootstrap.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: Shapes do not match.
        BrainDataError: A reading is not finite, or the probe's readings of exact renders do not rise with alpha.
    """
    readings, exact = (np.asarray(x, dtype=np.float64) for x in (readings, exact))
    if readings.ndim != 2 or readings.shape != exact.shape or readings.shape[1] != len(alphas) or len(alphas) < 3:
        raise AxisError(f"expected two arrays (clips, {len(alphas)}), got {readings.shape} and {exact.shape}")
    if not (np.isfinite(readings).all() and np.isfinite(exact).all()):
        raise BrainDataError("expected finite readings, got NaN or infinite ones")
    asked = np.asarray(alphas, dtype=np.float64) - np.mean(alphas)
    slopes, reference = (x @ asked / (asked @ asked) for x in (readings, exact))
    if not reference.mean() > 0:
        raise BrainDataError(
            f"expected a probe whose readings of exact renders rise with alpha, got a slope of {reference.mean():.3g}"
        )
    of_alpha = np.broadcast_to(asked, readings.shape)
    r2 = {name: np.square(pearson(of_alpha, x, axis=1)) for name, x in (("model", readings), ("exact", exact))}
    note = f"probe on exact renders: slope {reference.mean():.3f}, r2 {r2['exact'].mean():.3f}"
    base = {"n_of": "clips", "note": note} | conditions
    slope = _ratio(metric("intensity_slope"), slopes, reference, resamples, seed, base)
    return [slope, score_images(metric("intensity_r2"), r2["model"], None, resamples, seed, **base)]


def identity_scores(
    distances: np.ndarray, fps: float, resamples: int = RESAMPLES, seed: int = 0, **conditions
) -> list[Score]:
    """How far a person's identity drifts over a clip.

    Args:
        distances: (clips, T) Distance of each frame to the reference picture, in an identity space.
        fps: Frames per second.
        resamples: Number of bootstrap samples over clips.
        seed: Seed of the bootstrap.
        conditions: Further fields of `Score`, such as `features` for the identity network.

    Returns:
        `identity_drift`, the mean distance over the last second (or over all of a shorter clip), and
        `identity_drift_per_s`, the least-squares slope over the clip in distance per second.

    Raises:
        AxisError: `distances` is not (clips, T) with two or more frames.
    """
    distances = np.asarray(distances, dtype=np.float64)
    if distances.ndim != 2 or distances.shape[1] < 2:
        raise AxisError(f"expected distances (clips, T) of two or more frames, got {distances.shape}")
    seconds = np.arange(distances.shape[1]) / fps
    seconds = seconds - seconds.mean()
    values = {
        "identity_drift": distances[:, -max(1, round(fps)) :].mean(1),
        "identity_drift_per_s": distances @ seconds / (seconds @ seconds),
    }
    base = {"n_of": "clips"} | conditions
    return [score_images(metric(name), value, None, resamples, seed, **base) for name, value in values.items()]


def jerk(positions: np.ndarray, fps: float) -> float:
    """Jerk of a motion: mean |third difference| x fps^3, in units of the positions per second cubed.

    Args:
        positions: (T, ...) Positions, at least four frames.
        fps: Frames per second.

    Raises:
        AxisError: Fewer than four frames, or positions that are not finite.
    """
    positions = np.asarray(positions, dtype=np.float64)
    if len(positions) < 4 or not np.isfinite(positions).all():
        raise AxisError(f"expected finite positions (T, ...) of four or more frames, got {positions.shape}")
    return float(np.abs(np.diff(positions, 3, axis=0)).mean() * fps**3)


def jerk_score(
    rendered: Sequence[np.ndarray],
    true: Sequence[np.ndarray],
    fps: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> Score:
    """Mean jerk of rendered clips divided by that of the true clips: above 1 trembles, below 1 is smoothed.

    Args:
        rendered, true: Positions (T, ...) of the same clips in the same order, such as mouth openings or vertices.
        fps: Frames per second.
        resamples: Number of bootstrap samples over clips.
        seed: Seed of the bootstrap.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: The clips differ in number or shape.
        BrainDataError: The true positions do not move.
    """
    shapes = [(np.shape(a), np.shape(b)) for a, b in zip(rendered, true, strict=False)]
    if len(rendered) != len(true) or any(a != b for a, b in shapes):
        raise AxisError(f"expected true positions of the shapes of the rendered ones, got {shapes[:3]}")
    drawn, moved = (np.array([jerk(x, fps) for x in clips]) for clips in (rendered, true))
    if not moved.mean() > 0:
        raise BrainDataError("expected true positions that move, got a jerk of 0")
    return _ratio(metric("jerk"), drawn, moved, resamples, seed, {"n_of": "clips"} | conditions)


def emotion_score(
    predicted: np.ndarray,
    labels: np.ndarray,
    probe: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    **conditions,
) -> Score:
    """Share of clips in which a probe sees the emotion that was asked for; the chance level comes from permuted labels.

    Args:
        predicted: (clips,) Class numbers or names that the probe sees.
        labels: (clips,) Class numbers or names that were asked for.
        probe: Name of the classifier. It becomes part of the metric's name.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        clusters: (n,) Labels of clips that are drawn together, such as their subject. None draws single clips.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: Shapes do not match.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape:
        raise AxisError(f"expected one prediction for each label (clips,), got {predicted.shape} and {labels.shape}")
    table = labels[:, None] == predicted
    base = {"n_of": "clips"} | conditions
    definition = metric(f"emotion_accuracy[{probe}]")
    return score_images(definition, np.diagonal(table), table, resamples, seed, clusters, **base)


def weighted_scores() -> list[Score]:
    """Rows of published metrics that need networks which cannot be shipped, such as SyncNet. They are never available
    here.
    """
    told = "no option of this package loads them; score the clips with the tool of the published metric"
    return [not_available(definition, f"weights {definition.needs_weights}", told) for definition in _GATED]


def _ratio(definition: Metric, above: np.ndarray, below: np.ndarray, resamples: int, seed: int, found: dict) -> Score:
    """Ratio of two means over the same clips."""
    interval = None
    if len(above) > 1:
        interval = bootstrap(lambda rows: above[rows].mean() / below[rows].mean(), len(above), resamples, seed)
    return Score(definition, float(above.mean() / below.mean()), len(above), interval=interval, seed=seed, **found)


_GATED = [
    Metric("lse_d", "acoustic", "down", None, "syncnet", "distance of SyncNet embeddings of mouth and sound"),
    Metric("lse_c", "acoustic", "up", None, "syncnet", "confidence of SyncNet"),
    Metric("fid", "feature", "down", None, "fid_inception", "Fréchet distance of frames, in the features of FID"),
    Metric("fvd", "temporal", "down", None, "i3d_kinetics400", "Fréchet distance of clips, in the features of I3D"),
]
for _definition in (
    *_GATED,
    Metric("intensity_slope", "semantic", "none", None, None, "slope over alpha relative to exact renders; 1 is exact"),
    Metric("intensity_r2", "semantic", "up", None, None, "squared correlation of reading and alpha, mean over clips"),
    Metric("identity_drift", "semantic", "down", None, None, "distance to the reference, mean over the last second"),
    Metric("identity_drift_per_s", "semantic", "down", None, None, "slope of the distance to the reference per second"),
    Metric(
        "jerk", "temporal", "none", None, None, "mean |third difference| x fps^3 relative to the truth; 1 is as real"
    ),
    Metric("emotion_accuracy[{probe}]", "semantic", "up", None, None, "share of clips with the emotion asked for"),
):
    register(_definition)
