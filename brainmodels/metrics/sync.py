"""Talking heads: do the lips follow the sound, and only the sound?

Sync is reported on swapped audio, the expression of clip A with the sound of clip B: a renderer that reads the mouth
from the expression is perfect on matched clips and fails there. `swap_leak` says how much of the mouth it takes from
the expression.

    pairing = swap_partners(openings)  # who lends whom the audio
    clips = [SwappedClip(ids[a], ids[b], rendered, envelopes[b], openings[a]) for a, b in pairing.pairs]
    sync_scores(clips, fps=25)

All series are one number a frame at video rate, (T,). A mouth opening is the gap of the inner lips divided by the
height of the face; the envelope of speech is `speech_envelope`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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

FLOOR = 0.03  # of the mean correlation of the two openings of a pair
_log = logging.getLogger(__name__)


class Sync(NamedTuple):
    """Mouth against sound: `r` at lag 0, the `best_r` and its lag; a positive lag says that the video is late."""

    r: float
    best_r: float
    best_lag: int
    best_lag_ms: float


class Leak(NamedTuple):
    """Where the mouth comes from.

    Attributes:
        leak: max(0, old) / (max(0, old) + max(0, new)); NaN where the mouth follows neither.
        new, old: weights of the new audio and of the old expression in a joint regression of the mouth on both.
        r_new, r_old: plain correlations with the two.
        floor: correlation of the two with each other.
    """

    leak: float
    new: float
    old: float
    r_new: float
    r_old: float
    floor: float


class Pairing(NamedTuple):
    """Pairs (clip of the expression, clip of the audio), and the mean correlation of their openings."""

    pairs: list[tuple[int, int]]
    floor: float


@dataclass(frozen=True)
class SwappedClip:
    """A clip rendered with the expression of one and the audio of another.

    Attributes:
        expression_of, audio_of: whose.
        rendered: (T,) opening of the mouth that was rendered.
        envelope: (T,) of the audio.
        audio: (T,) opening that the audio calls for, in the clip it comes from; None takes the envelope.
        expression: (T,) opening that the mouth part of the expression has.
    """

    expression_of: str
    audio_of: str
    rendered: np.ndarray
    envelope: np.ndarray
    expression: np.ndarray
    audio: np.ndarray | None = None


def speech_envelope(audio: np.ndarray, sample_rate: float, fps: float, frames: int) -> np.ndarray:
    """Root mean square of a sound within each frame of its video, (frames,).

    Args:
        audio: (samples,) mono.
        sample_rate: of the audio, Hz.
        fps: of the video, Hz.
        frames: of the video.

    Raises:
        AlignmentError: audio and video differ in length by more than one frame.
    """
    audio = np.asarray(audio, dtype=np.float64)
    if audio.ndim != 1 or not np.isfinite(audio).all():
        raise AxisError(f"expected finite mono audio (samples,), got {audio.shape}")
    seconds, video = len(audio) / sample_rate, frames / fps
    if frames < 1 or abs(seconds - video) > 1 / fps + 1e-9:
        raise AlignmentError(
            f"expected audio of {video:.3f} s for {frames} frames at {fps:g} Hz, got {seconds:.3f} s; cut both to the "
            "same moments"
        )
    edges = np.minimum(np.round(np.arange(frames + 1) * sample_rate / fps).astype(int), len(audio))
    edges[-1] = len(audio)
    sums = np.concatenate(([0.0], np.cumsum(np.square(audio))))
    counts = np.maximum(np.diff(edges), 1)
    return np.sqrt(np.diff(sums[edges]).clip(0) / counts)


def mouth_audio(opening: np.ndarray, envelope: np.ndarray, fps: float, max_lag: float = 0.4) -> Sync:
    """Pearson correlation of mouth and sound at each lag up to `max_lag` seconds, over the frames that both have.

    Args:
        opening, envelope: (T,) at video rate.
        fps: frames per second.
        max_lag: seconds, either way.
    """
    opening, envelope = _series(opening, envelope)
    reach = round(max_lag * fps)
    if len(opening) < reach + 3:
        raise AxisError(f"expected {reach + 3} or more frames for lags up to {max_lag:g} s, got {len(opening)}")
    lags = sorted(range(-reach, reach + 1), key=abs)  # of equals, the smallest wins
    values = []
    for lag in lags:
        late, early = (opening[lag:], envelope[: len(envelope) - lag]) if lag >= 0 else (opening[:lag], envelope[-lag:])
        values.append(_r(late, early))
    best = int(np.argmax(values))
    return Sync(values[0], values[best], lags[best], 1000 * lags[best] / fps)


def swap_partners(openings: np.ndarray, partners: int = 5, seed: int = 0) -> Pairing:
    """Pair each clip, for its expression, with `partners` others, for their audio.

    Openings of short clips correlate by chance, which hides a leak or feigns one. Partners are i + s modulo the number
    of clips, the same shifts s for all; shifts are added one by one such that the mean correlation of the openings of
    all pairs comes closest to zero. Where it stays above 0.03 a warning is logged.

    Args:
        openings: (clips, T) true mouth openings of clips of equal length.
        partners: of each clip, fewer than the clips.
        seed: of the first shift.
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
    """How much of the mouth comes from the expression where the audio is of another clip.

    The rendered opening is regressed on what the audio calls for and on what the expression has, jointly, all three
    standardised within each clip and pooled over clips. The share of the second weight is the leak.
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
    """Sync on swapped audio and the leak; intervals resample the clips that lent their expression.

    Args:
        swapped: rendered clips.
        fps: frames per second.
        matched: pairs (rendered opening, envelope) of clips with their own audio, printed beside; matched sync alone
            shows no leak.
        max_lag: seconds.
        resamples, seed: of the bootstrap.
        conditions: further fields of `Score`.
    """
    tables = _correlations(swapped)
    clusters = np.array([clip.expression_of for clip in swapped])
    leak = _leak(tables)
    base = {"n_of": "swapped clips", "seed": seed} | conditions
    words = f"weights new {leak.new:.3f}, old {leak.old:.3f}; r new {leak.r_new:.3f}, old {leak.r_old:.3f}; "
    note = "; ".join(filter(None, [base.get("note"), f"{words}floor {leak.floor:.3f}"]))
    if len(np.unique(clusters)) < 2:
        raise BrainDataError(f"expected expressions of two or more clips, got {len(np.unique(clusters))}")
    drawn = bootstrap(lambda rows: _leak(tables[rows]).leak, len(swapped), resamples, seed, clusters)
    if np.isfinite(leak.leak):
        found = base | {"note": note, "interval": drawn if np.isfinite(drawn[:2]).all() else None}
        scores = [Score(metric("swap_leak"), leak.leak, len(swapped), **found)]
    else:
        words = f"the mouth follows neither audio nor expression: {note}"
        scores = [Score(metric("swap_leak"), None, len(swapped), available=False, **(base | {"note": words}))]
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
    """Of each clip: rendered with audio, rendered with expression, audio with expression; (clips, 3)."""
    rows = []
    for clip in clips:
        audio = clip.envelope if clip.audio is None else clip.audio
        rendered, audio = _series(clip.rendered, audio)
        _, expression = _series(clip.rendered, clip.expression)
        if np.ptp(audio) == 0 or np.ptp(expression) == 0:
            raise BrainDataError(
                f"expected audio and expression that move the mouth, got a constant one in the pair of "
                f"{clip.expression_of} and {clip.audio_of}"
            )
        rows.append([_r(rendered, audio), _r(rendered, expression), _r(audio, expression)])
    if not rows:
        raise BrainDataError("expected swapped clips, got none")
    return np.array(rows)


def _leak(tables: np.ndarray) -> Leak:
    """From correlations of standardised series, whose pooled correlation is their mean."""
    r_new, r_old, floor = (float(x) for x in tables.mean(0))
    left = 1 - floor**2
    if left < 1e-6:
        raise BrainDataError("expected audio and expression of different clips, got openings that are the same")
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
    """Pearson correlation; 0 where one is constant."""
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
