"""Lip sync of talking heads: how well the mouth follows the sound, and how much it follows something else.

    pairing = swap_partners(openings)  # (expression, audio) pairs of clips
    clips = [SwappedClip(ids[a], ids[b], rendered, envelopes[b], openings[a]) for a, b in pairing.pairs]
    for score in sync_scores(clips, fps=25):
        print(score)  # swap_leak ↓ ..., n 500 swapped clips, ...; mouth_audio_r ↑ ...

Sync is reported on swapped audio: the expression of clip A with the sound of clip B. A renderer that reads the mouth
from the expression is perfect on matched clips and fails on swapped ones. `swap_leak` is the share of the mouth that
comes from the expression.

All series have one number for each frame, at video rate, (T,). A mouth opening is the gap of the inner lips divided by
the height of the face. `speech_envelope` computes the envelope of speech.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import AlignmentError, AxisError, BrainDataError
from .encoding import pearson
from .record import Metric, Score
from .registry import metric, register
from .statistics import RESAMPLES, bootstrap, score_images

__all__ = [
    "Leak",
    "Pairing",
    "SwappedClip",
    "Sync",
    "mouth_audio",
    "speech_envelope",
    "swap_leak",
    "swap_partners",
    "sync_scores",
]

FLOOR = 0.03  # largest mean correlation of the openings of a pair that raises no warning
_log = logging.getLogger(__name__)


class Sync(NamedTuple):
    """Correlation of mouth and sound.

    Attributes:
        r: Correlation at lag 0.
        best_r: Largest correlation over the lags.
        best_lag: Lag of the largest correlation in frames; positive if the video is late.
        best_lag_ms: The same lag in milliseconds.
    """

    r: float
    best_r: float
    best_lag: int
    best_lag_ms: float


class Leak(NamedTuple):
    """Where the mouth comes from: the new audio, or the old expression.

    Attributes:
        leak: max(0, old) / (max(0, old) + max(0, new)). NaN if the mouth follows neither.
        new, old: Weights of the new audio and of the old expression in a joint regression of the mouth on both.
        r_new, r_old: Plain correlations of the mouth with the two.
        floor: Correlation of the two with each other.
    """

    leak: float
    new: float
    old: float
    r_new: float
    r_old: float
    floor: float


class Pairing(NamedTuple):
    """Pairs of clips for swapped audio.

    Attributes:
        pairs: Pairs (clip of the expression, clip of the audio).
        floor: Mean correlation of the openings of the pairs.
    """

    pairs: list[tuple[int, int]]
    floor: float


@dataclass(frozen=True)
class SwappedClip:
    """A clip that was rendered with the expression of one clip and the audio of another.

    Attributes:
        expression_of, audio_of: Ids of the two clips.
        rendered: (T,) Opening of the mouth that was rendered.
        envelope: (T,) Envelope of the audio.
        audio: (T,) Opening that the audio calls for, measured in the clip it comes from. None uses the envelope.
        expression: (T,) Opening that the mouth part of the expression has.
    """

    expression_of: str
    audio_of: str
    rendered: np.ndarray
    envelope: np.ndarray
    expression: np.ndarray
    audio: np.ndarray | None = None


def speech_envelope(audio: np.ndarray, sample_rate: float, fps: float, frames: int) -> np.ndarray:
    """Root mean square of a sound within each frame of its video.

    Args:
        audio: (samples,) Mono audio.
        sample_rate: Sample rate of the audio, Hz.
        fps: Frame rate of the video, Hz.
        frames: Number of frames of the video.

    Returns:
        (frames,) fp64.

    Raises:
        AlignmentError: Audio and video differ in length by more than one frame.
        AxisError: Audio that is not mono, or not finite.
    """
    audio = np.asarray(audio, dtype=np.float64)
    if audio.ndim != 1 or not np.isfinite(audio).all():
        raise AxisError(f"expected finite mono audio (samples,), got {audio.shape}")
    seconds, video = len(audio) / sample_rate, frames / fps
    if frames < 1 or abs(seconds - video) > 1 / fps + 1e-9:
        raise AlignmentError(
            f"expected audio of {video:.3f} s for {frames} frames at {fps:g} Hz, got {seconds:.3f} s; cut both to the "
            "same start and end"
        )
    edges = np.minimum(np.round(np.arange(frames + 1) * sample_rate / fps).astype(int), len(audio))
    edges[-1] = len(audio)
    sums = np.concatenate(([0.0], np.cumsum(np.square(audio))))
    counts = np.maximum(np.diff(edges), 1)
    return np.sqrt(np.diff(sums[edges]).clip(0) / counts)


def mouth_audio(opening: np.ndarray, envelope: np.ndarray, fps: float, max_lag: float = 0.4) -> Sync:
    """Pearson correlation of mouth and sound at each lag, over the frames that both have.

    Args:
        opening: (T,) Mouth opening at video rate.
        envelope: (T,) Envelope of the sound at video rate.
        fps: Frames per second.
        max_lag: Largest lag in seconds, either way.

    Raises:
        AlignmentError: The two differ in length.
        AxisError: Too few frames for the largest lag.
        BrainDataError: Values that are not finite.
    """
    opening, envelope = _series(opening, envelope)
    reach = round(max_lag * fps)
    if len(opening) < reach + 3:
        raise AxisError(f"expected {reach + 3} or more frames for lags up to {max_lag:g} s, got {len(opening)}")
    lags = sorted(range(-reach, reach + 1), key=abs)  # the smallest of equally good lags wins
    values = []
    for lag in lags:
        late, early = (opening[lag:], envelope[: len(envelope) - lag]) if lag >= 0 else (opening[:lag], envelope[-lag:])
        values.append(_r(late, early))
    best = int(np.argmax(values))
    return Sync(values[0], values[best], lags[best], 1000 * lags[best] / fps)


def swap_partners(openings: np.ndarray, partners: int = 5, seed: int = 0) -> Pairing:
    """Pair each clip, for its expression, with several others, for their audio.

    Openings of short clips correlate by chance, which can hide or imitate a leak. The partners of clip i are clips i +
    s, modulo the number of clips, with the same shifts s for all. Shifts are added one by one, so that the mean
    correlation of the openings over all pairs comes closest to zero. If it stays above 0.03, a warning is logged.

    Args:
        openings: (clips, T) True mouth openings of clips of equal length.
        partners: Number of partners of each clip, less than the number of clips.
        seed: Seed of the first shift.

    Raises:
        AxisError: `openings` is not (clips, T) with more clips than `partners`.
    """
    openings = np.asarray(openings, dtype=np.float64)
    count = len(openings)
    if openings.ndim != 2 or not 1 <= partners < count:
        raise AxisError(f"expected openings (clips, T) of more than {partners} clips, got {openings.shape}")
    floors = {s: pearson(openings, np.roll(openings, -s, axis=0), axis=1).mean() for s in range(1, count)}
    chosen = [int(np.random.default_rng(seed).integers(1, count))]
    while len(chosen) < partners:
        total = sum(floors[s] for s in chosen)
        left = [s for s in floors if s not in chosen]
        chosen.append(min(left, key=lambda s: abs(total + floors[s])))
    floor = float(np.mean([floors[s] for s in chosen]))
    if abs(floor) > FLOOR:
        _log.warning(
            "openings of swapped clips correlate by %.3f, more than %.2f: use more or longer clips", floor, FLOOR
        )
    return Pairing([(i, (i + s) % count) for s in chosen for i in range(count)], floor)


def swap_leak(clips: Sequence[SwappedClip]) -> Leak:
    """How much of the mouth comes from the expression if the audio belongs to another clip.

    The rendered opening is regressed jointly on the opening that the audio calls for and on that of the expression. All
    three are standardised within each clip and pooled over clips. The leak is the share of the second weight.

    Raises:
        BrainDataError: No clips, constant or identical openings, or values that are not finite.
        AlignmentError: Series of a clip differ in length.
    """
    return _leak(_correlations(clips))


def sync_scores(
    swapped: Sequence[SwappedClip],
    fps: float,
    matched: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    max_lag: float = 0.4,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """Sync on swapped audio, and the leak. Intervals resample the clips that lent their expression.

    Args:
        swapped: Rendered clips with swapped audio.
        fps: Frames per second.
        matched: Pairs (rendered opening, envelope) of clips with their own audio. They are printed beside the swapped
            ones, because matched sync alone shows no leak.
        max_lag: Largest lag in seconds.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        conditions: Further fields of `Score`.

    Raises:
        BrainDataError: Expressions of fewer than two clips, constant openings, or values that are not finite.
        AlignmentError: Series of a clip differ in length.
        AxisError: Too few frames for the largest lag.
    """
    tables = _correlations(swapped)
    clusters = np.array([clip.expression_of for clip in swapped])
    leak = _leak(tables)
    base: dict[str, Any] = {"n_of": "swapped clips", "seed": seed} | conditions
    words = f"weights new {leak.new:.3f}, old {leak.old:.3f}; r new {leak.r_new:.3f}, old {leak.r_old:.3f}; "
    note = "; ".join(filter(None, [base.get("note"), f"{words}floor {leak.floor:.3f}"]))
    if len(np.unique(clusters)) < 2:
        raise BrainDataError(f"expected expressions of two or more clips, got {len(np.unique(clusters))}")
    drawn = bootstrap(lambda rows: _leak(tables[rows]).leak, len(swapped), resamples, seed, clusters)
    if np.isfinite(leak.leak):
        more: dict[str, Any] = base | {"note": note, "interval": drawn if np.isfinite(drawn[:2]).all() else None}
        scores = [Score(metric("swap_leak"), leak.leak, len(swapped), **more)]
    else:
        words = f"the mouth follows neither audio nor expression: {note}"
        silent: dict[str, Any] = base | {"note": words}
        scores = [Score(metric("swap_leak"), None, len(swapped), available=False, **silent)]
    found = [mouth_audio(clip.rendered, clip.envelope, fps, max_lag) for clip in swapped]
    scores += _sync("", found, resamples, seed, clusters, base)
    if matched:
        found = [mouth_audio(opening, envelope, fps, max_lag) for opening, envelope in matched]
        scores += _sync("[matched]", found, resamples, seed, None, base | {"n_of": "matched clips"})
    return scores


def _sync(
    suffix: str, found: list[Sync], resamples: int, seed: int, clusters: np.ndarray | None, base: dict
) -> list[Score]:
    lags = [sync.best_lag_ms for sync in found]
    rows = {
        "mouth_audio_r": ([sync.r for sync in found], ""),
        "mouth_audio_best_r": ([sync.best_r for sync in found], ""),
        "mouth_audio_best_lag": ([sync.best_lag for sync in found], f"frames; {np.mean(lags):.0f} ms"),
    }
    scores = []
    for name, (values, words) in rows.items():
        conditions = {key: value for key, value in base.items() if key != "seed"}
        conditions["note"] = "; ".join(filter(None, [base.get("note"), words]))
        scores.append(score_images(metric(name + suffix), values, None, resamples, seed, clusters, **conditions))
    return scores


def _correlations(clips: Sequence[SwappedClip]) -> np.ndarray:
    """Correlations (clips, 3): rendered with audio, rendered with expression, audio with expression."""
    rows = []
    for clip in clips:
        audio = clip.envelope if clip.audio is None else clip.audio
        rendered, audio = _series(clip.rendered, audio)
        _, expression = _series(clip.rendered, clip.expression)
        if np.ptp(audio) == 0 or np.ptp(expression) == 0:
            raise BrainDataError(
                f"expected audio and expression that move the mouth, got a constant opening in the pair of "
                f"{clip.expression_of} and {clip.audio_of}"
            )
        rows.append([_r(rendered, audio), _r(rendered, expression), _r(audio, expression)])
    if not rows:
        raise BrainDataError("expected swapped clips, got none")
    return np.array(rows)


def _leak(tables: np.ndarray) -> Leak:
    """The leak from correlations of standardised series, whose pooled correlation is their mean."""
    r_new, r_old, floor = (float(x) for x in tables.mean(0))
    left = 1 - floor**2
    if left < 1e-6:
        raise BrainDataError("expected audio and expression of different clips, got identical openings")
    new, old = (r_new - floor * r_old) / left, (r_old - floor * r_new) / left
    total = max(0.0, old) + max(0.0, new)
    return Leak(max(0.0, old) / total if total > 0 else float("nan"), new, old, r_new, r_old, floor)


def _series(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 3:
        raise AlignmentError(
            f"expected two series (T,) of equal length at video rate, got {first.shape} and {second.shape}; "
            "nothing is cut or resampled here"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise BrainDataError("expected finite series, got NaN or infinite values")
    return first, second


def _r(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation; 0 if one of the two is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(pearson(first[None], second[None], axis=1)[0])


_SYNC = (
    ("mouth_audio_r", "acoustic", "up", 0.0, "Pearson correlation of mouth opening and speech envelope at lag 0"),
    ("mouth_audio_best_r", "acoustic", "up", None, "largest correlation over lags, above 0 by chance"),
    ("mouth_audio_best_lag", "temporal", "none", None, "lag of the largest correlation, frames; positive: video late"),
)
for _name, _level, _direction, _chance, _text in _SYNC:
    for _suffix, _audio in (("", "audio of another clip"), ("[matched]", "audio of the clip itself")):
        register(Metric(_name + _suffix, _level, _direction, _chance, None, f"{_text}, mean over clips; {_audio}"))
register(
    Metric(
        "swap_leak",
        "acoustic",
        "down",
        None,
        None,
        "expression of A, audio of B: share of the expression's opening in a joint regression of the rendered mouth; "
        "0 is no leak",
    )
)
