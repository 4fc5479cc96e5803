"""What is good about a talking head and what is not, in sentences, each with its number and its bound.

for verdict in verdicts(rows, exact, against_copy):
    print(verdict.good, verdict.text)
"""

from collections.abc import Mapping
from typing import NamedTuple

from .head_probes import NAME
from .object_case import PairedRow, Row

__all__ = ["LEAK_BOUND", "Verdict", "verdicts"]

LEAK_BOUND = 0.05
_SYNC_SHARE, _SILENT, _SHARE = 0.95, 0.1, 0.9
_SLOPE, _R2 = (0.85, 1.10), 0.95


class Verdict(NamedTuple):
    """A sentence about a model.

    Attributes:
        name: What it is about, such as "lip leak".
        good: Whether the bound is kept.
        text: The sentence, with number and bound.
    """

    name: str
    good: bool
    text: str


class _Known(NamedTuple):
    """The numbers of an available score."""

    value: float
    chance: float | None
    ceiling: float | None


def verdicts(rows: Mapping[str, Row], exact: Mapping[str, Row], against_copy: PairedRow) -> list[Verdict]:
    """Sentences about one model. What is not available is left out.

    Args:
        rows: Rows of the model by table.
        exact: Rows of the exact renders of the truth by table; empty where they are not known.
        against_copy: Its `clip_psnr` against the repeated reference frame.
    """
    found = [_copied(against_copy), _leak(rows), _lag(rows), _silent(rows, exact), *_intensity(rows), _identity(rows)]
    found[2:2] = [_sync(rows, exact)]
    found += [_share(rows, f"emotion_accuracy[{NAME}]", "emotion", "the emotion that was asked for", "clips")]
    found += [_share(rows, f"viseme_accuracy[{NAME}]", "visemes", "the viseme of the new sound", "frames")]
    return [verdict for verdict in found if verdict is not None]


def _copied(row: PairedRow) -> Verdict:
    good = row.outcome == "better"
    word = {"better": "nearer to the true frames than", "worse": "farther from the true frames than"}.get(
        row.outcome, "no nearer to the true frames than"
    )
    low, high = row.interval[:2]
    text = (
        f"Its frames are {word} the repeated reference frame: {row.value:+.1f} dB (95 % interval {low:+.1f} to "
        f"{high:+.1f}, {row.n} clips)."
    )
    return Verdict("pictures", good, text)


def _leak(rows: Mapping[str, Row]) -> Verdict | None:
    score = _of(rows, "sync", "swap_leak")
    if score is None:
        return None
    good = score.value <= LEAK_BOUND
    word = "within" if good else "beyond"
    return Verdict(
        "lip leak",
        good,
        f"The leak is {word} its bound: {_number(score.value)} of the mouth comes from the old expression when the "
        f"audio is swapped (bound {LEAK_BOUND}).",
    )


def _sync(rows: Mapping[str, Row], exact: Mapping[str, Row]) -> Verdict | None:
    score, best = _of(rows, "sync", "mouth_audio_r"), _of(exact, "sync", "mouth_audio_r")
    if score is None or best is None:
        return None
    good = score.value >= _SYNC_SHARE * best.value
    word = "follows" if good else "does not follow"
    text = (
        f"The mouth {word} new audio as exact renders do: r {_number(score.value)}, exact renders "
        f"{_number(best.value)} (bound: {_percent(_SYNC_SHARE)} of it)."
    )
    return Verdict("lip sync", good, text)


def _lag(rows: Mapping[str, Row]) -> Verdict | None:
    score = _of(rows, "sync", "mouth_audio_best_lag")
    if score is None:
        return None
    good = abs(score.value) < 0.5
    word = "on time" if good else "late" if score.value > 0 else "early"
    return Verdict("lag", good, f"The mouth is {word}: the best lag is {score.value:+.2f} frames on average.")


def _silent(rows: Mapping[str, Row], exact: Mapping[str, Row]) -> Verdict | None:
    score = _of(rows, "sync", "silent_motion")
    if score is None:
        return None
    best = _of(exact, "sync", "silent_motion")
    bound = _SILENT if best is None else max(_SILENT, best.value)  # emotions tremble a little in exact renders
    good = score.value <= bound
    word = "rests" if good else "moves"
    text = f"The mouth {word} in silence: its motion is {score.value:.3f} of that with speech (bound {bound:.3f})."
    return Verdict("silence", good, text)


def _intensity(rows: Mapping[str, Row]) -> list[Verdict | None]:
    slope, r2 = (_of(rows, "expression", name) for name in ("intensity_slope", "intensity_r2"))
    if slope is None or r2 is None:
        return []
    good = _SLOPE[0] <= slope.value <= _SLOPE[1] and r2.value >= _R2
    word = "as strong as" if good else "weaker than" if slope.value < 1 else "stronger than"
    if not good and r2.value < _R2:
        word = "less regular than"
    text = (
        f"Emotions are {word} asked: slope {_number(slope.value)} relative to exact renders (bounds {_SLOPE[0]} to "
        f"{_SLOPE[1]}), r² {_number(r2.value)} (bound {_R2})."
    )
    return [Verdict("intensity", good, text)]


def _identity(rows: Mapping[str, Row]) -> Verdict | None:
    score = _of(rows, "identity", "identity_drift")
    if score is None or score.chance is None:
        return None
    good = score.value < score.chance / 2
    word = "stays the same person" if good else "does not stay the same person"
    text = (
        f"The face {word}: the distance to the reference is {_number(score.value)}. It is {_number(score.chance)} "
        "between two identities (bound: half of it)."
    )
    return Verdict("identity", good, text)


def _share(rows: Mapping[str, Row], name: str, label: str, what: str, unit: str) -> Verdict | None:
    score = _of(rows, "expression", name)
    if score is None or score.ceiling is None:
        return None
    good = score.value >= _SHARE * score.ceiling
    word = "shows" if good else "often misses"
    text = (
        f"It {word} {what}: the probe is right in {_percent(score.value)} of the {unit}, and in "
        f"{_percent(score.ceiling)} of exact renders (bound: {_percent(_SHARE)} of it)."
    )
    return Verdict(label, good, text)


def _of(rows: Mapping[str, Row], table: str, name: str) -> _Known | None:
    score = rows[table].score(name) if rows else None
    if score is None or score.value is None:
        return None
    return _Known(score.value, score.chance, score.ceiling)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.095 else f"{value:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
