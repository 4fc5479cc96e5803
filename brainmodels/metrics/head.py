"""Talking heads: has the emotion the strength asked for, is it still the same person, does the motion look real?

    intensity_scores(probe_of_model, probe_of_exact_renders)  # (clips, alphas)
    identity_scores(distances, fps=25)  # (clips, T)

Sync with the sound is in `brainmodels.metrics.sync`.
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
    """Does twice the intensity look twice as strong? A probe's readings against the intensity asked for.

    `intensity_slope` is the slope of the readings over alpha, mean over clips, divided by the same slope on exact
    renders of the same clips: 1 is exact. `intensity_r2` is the squared correlation of readings and alpha in each clip.
    Intensity is linear in coefficients, not in pixels, and a probe saturates beyond what it was trained on: calibrate
    it first, the note says what it makes of exact renders.

    Args:
        readings: (clips, alphas) of the probe on the model's clips.
        exact: (clips, alphas) on exact renders.
        alphas: asked for, the columns.
        resamples, seed: of the bootstrap over clips.
        conditions: further fields of `Score`.
    """
    readings, exact = (np.asarray(x, dtype=np.float64) for x in (readings, exact))
    if readings.ndim != 2 or readings.shape != exact.shape or readings.shape[1] != len(alphas) or len(alphas) < 3:
        raise AxisError(f"expected readings (clips, {len(alphas)}) twice, got {readings.shape} and {exact.shape}")
    if not (np.isfinite(readings).all() and np.isfinite(exact).all()):
        raise BrainDataError("expected finite readings, got others")
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
    """Does the person stay the same?

    Args:
        distances: (clips, T) distance in an identity space of each frame to the reference picture.
        fps: frames per second.
        resamples, seed: of the bootstrap over clips.
        conditions: further fields of `Score`, such as `features` for the identity network.

    Returns:
        `identity_drift`, the mean over the last second (or all of a shorter clip), and `identity_drift_per_s`, the
        least-squares slope over the clip in distance per second.
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
    """Mean |third difference| x fps^3 of positions (T, ...), in units of the positions per second cubed."""
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
    """Mean jerk of rendered clips divided by that of the true ones: above 1 trembles, below 1 is smoothed.

    Args:
        rendered, true: positions (T, ...) of the same clips in the same order, such as mouth openings or vertices.
        fps: frames per second.
        resamples, seed: of the bootstrap over clips.
        conditions: further fields of `Score`.
    """
    shapes = [(np.shape(a), np.shape(b)) for a, b in zip(rendered, true, strict=False)]
    if len(rendered) != len(true) or any(a != b for a, b in shapes):
        raise AxisError(f"expected true positions of the shapes of the rendered ones, got {shapes[:3]}")
    values = [np.array([jerk(x, fps) for x in clips]) for clips in (rendered, true)]
    if not values[1].mean() > 0:
        raise BrainDataError("expected true positions that move, got a jerk of 0")
    return _ratio(metric("jerk"), *values, resamples, seed, {"n_of": "clips"} | conditions)


def emotion_score(
    predicted: np.ndarray,
    labels: np.ndarray,
    probe: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    **conditions,
) -> Score:
    """Share of clips in which a probe sees the emotion asked for; chance from permuted labels.

    Args:
        predicted, labels: (clips,) class numbers or names.
        probe: name of the classifier, which becomes part of the name of the metric.
        resamples, seed, clusters: of the bootstrap over clips and of the permutations.
        conditions: further fields of `Score`.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape:
        raise AxisError(f"expected one prediction for each label (clips,), got {predicted.shape} and {labels.shape}")
    table = labels[:, None] == predicted
    base = {"n_of": "clips"} | conditions
    definition = metric(f"emotion_accuracy[{probe}]")
    return score_images(definition, np.diagonal(table), table, resamples, seed, clusters, **base)


def weighted_scores() -> list[Score]:
    """Rows of what is published about talking heads and needs networks that cannot be shipped: never available here."""
    return [not_available(definition, f"weights {definition.needs_weights}, in its own tool") for definition in _GATED]


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
