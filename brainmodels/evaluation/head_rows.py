"""Rows of scores of talking heads: pictures, lip sync, emotion and intensity, identity.

rows = {name: build(case, readers, made, exact) for name, build in ROWS.items()}
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..data.clips import EMOTIONS
from ..metrics import Score, metric
from ..metrics.head import emotion_score, identity_scores, intensity_scores, jerk_score
from ..metrics.image import ssim
from ..metrics.kid import kid_score
from ..metrics.statistics import bootstrap, score_images
from ..metrics.sync import SwappedClip, sync_scores
from .head_case import HeadCase, mouth_rmse, psnr
from .head_made import HeadMade
from .head_probes import NAME, HeadReaders, Reading, clip_vector, frame_vectors
from .object_case import Row

__all__ = ["ROWS", "sync_row"]

_NO_TRUTH = "needs simulated clips, whose coefficients and exact renderer are known"
_NO_BOX = "needs a mouth box for each clip"
_SYNC = ("mouth_audio_r", "mouth_audio_best_r", "mouth_audio_best_lag")
_KID_SUBSET = 100


def picture_row(case: HeadCase, readers: HeadReaders | None, made: HeadMade, exact: HeadMade) -> Row:
    """Errors of the frames with the clips' own audio, against the exact renderer or the film."""
    options, values = case.conditions(decoder=made.name), {}
    ids = case.ids
    values["clip_psnr"] = np.array([psnr(made.matched[name], case.videos[name]) for name in ids])
    values["clip_ssim"] = np.array([_ssim(made.matched[name], case.videos[name]) for name in ids])
    if case.boxes is not None:
        boxes = case.boxes
        found = [mouth_rmse(made.matched[name], case.videos[name], boxes[name]) for name in ids]
        values["mouth_rmse"] = np.array(found)
    scores = [score_images(metric(name), value, None, **options) for name, value in values.items()]
    if case.boxes is None:
        scores.append(_absent("mouth_rmse", _NO_BOX))
    scores.append(_jerk(case, made, exact))
    scores.append(_kid(case, readers, made, exact))
    return Row(made.name, made.kind, scores, made.about, values)


def sync_row(case: HeadCase, readers: HeadReaders | None, made: HeadMade, exact: HeadMade) -> Row:
    """Lip sync on swapped audio with the leak beside it, on the clips' own audio, and with silence."""
    names = ["swap_leak", *(name + part for part in ("", "[matched]") for name in _SYNC)]
    if case.openings is None or not made.swapped:
        why = made.missing.get("swapped", _NO_BOX)
        scores = [_absent(name, why) for name in names]
        return Row(made.name, made.kind, [*scores, _absent("silent_motion", why)], made.about)
    number = {name: row for row, name in enumerate(case.ids)}
    openings, envelopes = case.openings, case.envelopes
    swapped = [
        SwappedClip(a, b, reading.opening, envelopes[number[b]], openings[number[a]], openings[number[b]])
        for (a, b), reading in made.swapped.items()
    ]
    matched = [(made.read[name].opening, envelopes[row]) for name, row in number.items()]
    options = case.conditions(decoder=made.name)
    del options["n_of"]
    if readers is None:
        options["note"] = "opening from the darkness of the mouth box"
    scores = sync_scores(swapped, case.fps, matched, **options)
    return Row(made.name, made.kind, [*scores, _silent(case, made)], made.about)


def expression_row(case: HeadCase, readers: HeadReaders | None, made: HeadMade, exact: HeadMade) -> Row:
    """Intensity, emotion and viseme, as the probe reads them, beside its readings of exact renders."""
    scores = _intensity(case, readers, made, exact)
    scores.append(_emotion(case, readers, made, exact))
    scores += _visemes(case, readers, made, exact)
    return Row(made.name, made.kind, scores, made.about)


def identity_row(case: HeadCase, readers: HeadReaders | None, made: HeadMade, exact: HeadMade) -> Row:
    """Distance of each frame to the reference picture in the probe's identity, beside that of two identities."""
    names = ("identity_drift", "identity_drift_per_s")
    if readers is None:
        return Row(made.name, made.kind, [_absent(name, _NO_TRUTH) for name in names], made.about)
    references = np.stack([_identity(readers.probe.read(case.reference(clip)[None]))[0] for clip in case.test])
    distances = [_apart(_identity(made.read[name]), references[row]) for row, name in enumerate(case.ids)]
    people = [clip.identity for clip in case.test]
    other = [
        _apart(references[i], references[k])
        for i in range(len(people))
        for k in range(len(people))
        if people[i] != people[k]
    ]
    options = case.conditions(decoder=made.name, features=readers.probe.fingerprint)
    drift, slope = identity_scores(np.stack(distances), case.fps, **options)
    note = "chance is the mean distance of two identities" if other else ""
    chance = float(np.mean(other)) if other else None
    return Row(made.name, made.kind, [drift.under(chance=chance, note=note), slope], made.about)


ROWS: Mapping[str, Callable[[HeadCase, HeadReaders | None, HeadMade, HeadMade], Row]] = {
    "pictures": picture_row,
    "sync": sync_row,
    "expression": expression_row,
    "identity": identity_row,
}


def _jerk(case: HeadCase, made: HeadMade, exact: HeadMade) -> Score:
    if case.openings is None:
        return _absent("jerk", _NO_BOX)
    rendered, true = ([one.read[name].opening for name in case.ids] for one in (made, exact))
    return jerk_score(rendered, true, case.fps, **case.conditions(decoder=made.name))


def _kid(case: HeadCase, readers: HeadReaders | None, made: HeadMade, exact: HeadMade) -> Score:
    """Distance of the distributions of frames, in features of the probe."""
    name = f"kid[{NAME}]"
    if readers is None:
        return _absent(name, _NO_TRUTH)
    real, decoded = (np.concatenate([_known(one.read[key].features) for key in case.ids]) for one in (exact, made))
    options = case.conditions(decoder=made.name, features=readers.probe.fingerprint)
    del options["resamples"], options["n_of"]
    size = min(_KID_SUBSET, len(real) // 4)
    score = kid_score(real, decoded, NAME, size, **options)
    return score.under(note=f"{score.note}; frames of a clip resemble each other")


def _silent(case: HeadCase, made: HeadMade) -> Score:
    if not made.silent:
        return _absent("silent_motion", made.missing.get("silent", "needs videos without sound"))
    still, moved = (np.array([np.std(one[name].opening) for name in case.ids]) for one in (made.silent, made.read))
    if not moved.mean() > 0:
        return _absent("silent_motion", "the mouth does not move with speech either")
    options = case.conditions(decoder=made.name)
    resamples, seed = options.pop("resamples"), options["seed"]
    interval = bootstrap(lambda rows: still[rows].mean() / max(moved[rows].mean(), 1e-12), len(still), resamples, seed)
    return Score(metric("silent_motion"), float(still.mean() / moved.mean()), len(still), interval=interval, **options)


def _intensity(case: HeadCase, readers: HeadReaders | None, made: HeadMade, exact: HeadMade) -> list[Score]:
    names, alphas = ("intensity_slope", "intensity_r2"), case.settings.alphas
    if readers is None or not made.asked or "intensity" in made.missing:
        why = _NO_TRUTH if readers is None else made.missing.get("intensity", "needs videos of several intensities")
        return [_absent(name, why) for name in names]
    rows = [(name, emotion) for name, emotion in zip(case.ids, case.asked, strict=True) if emotion != EMOTIONS[0]]

    def readings(one: HeadMade) -> np.ndarray:
        found = []
        for name, emotion in rows:
            vectors = np.stack([clip_vector(one.asked[name, alpha]) for alpha in alphas])
            found.append(readers.emotions.intensity(vectors, emotion))
        return np.stack(found)

    options = case.conditions(decoder=made.name, features=readers.probe.fingerprint)
    return intensity_scores(readings(made), readings(exact), alphas, **options)


def _emotion(case: HeadCase, readers: HeadReaders | None, made: HeadMade, exact: HeadMade) -> Score:
    name, last = f"emotion_accuracy[{NAME}]", case.settings.alphas[-1]
    if readers is None or not made.asked:
        return _absent(name, _NO_TRUTH if readers is None else made.missing.get("asked", "needs videos of emotions"))
    asked = np.array(case.asked)
    seen = {}
    for key, one in (("own", made), ("exact", exact)):
        seen[key] = readers.emotions.classify(np.stack([clip_vector(one.asked[x, last]) for x in case.ids]))
    options = case.conditions(decoder=made.name, features=readers.probe.fingerprint, chance=1 / len(EMOTIONS))
    return emotion_score(seen["own"], asked, NAME, **options).under(ceiling=float(np.mean(seen["exact"] == asked)))


def _visemes(case: HeadCase, readers: HeadReaders | None, made: HeadMade, exact: HeadMade) -> list[Score]:
    """Share of frames whose viseme is that of the sound, with swapped audio and with the clips' own."""
    names = [f"viseme_accuracy[{NAME}]", f"viseme_accuracy[{NAME}, matched]"]
    if readers is None:
        return [_absent(name, _NO_TRUTH) for name in names]
    truth = case.exact.truth
    parts: list[tuple[str, Mapping[Any, Reading], Mapping[Any, Reading], list[tuple[Any, str]]]] = [
        (names[0], made.swapped, exact.swapped, [(pair, pair[1]) for pair in made.swapped]),
        (names[1], made.read, exact.read, [(name, name) for name in made.read]),
    ]
    return [
        _viseme_score(case, readers, made, name, own, best, [(key, truth[sound].viseme) for key, sound in keys])
        for name, own, best, keys in parts
    ]


def _viseme_score(
    case: HeadCase,
    readers: HeadReaders,
    made: HeadMade,
    name: str,
    own: Mapping[Any, Reading],
    best: Mapping[Any, Reading],
    keys: Sequence[tuple[Any, np.ndarray]],
) -> Score:
    """Accuracy over clips; chance is what the same answers reach on frames in random order."""
    right, ideal, chance = [], [], []
    for key, viseme in keys:
        labels = viseme[: case.frames]
        seen = readers.visemes.classify(frame_vectors(own[key]))
        right.append(np.mean(seen == labels))
        ideal.append(np.mean(readers.visemes.classify(frame_vectors(best[key])) == labels))
        chance.append((np.bincount(seen, minlength=8) @ np.bincount(labels, minlength=8)) / len(labels) ** 2)
    clusters = [key[0] if isinstance(key, tuple) else key for key, _ in keys]
    options = case.conditions(decoder=made.name, features=readers.probe.fingerprint, clusters=clusters)
    if "matched" not in name:
        options["n_of"] = "swapped clips"
    score = score_images(metric(name), np.array(right), None, **options)
    return score.under(chance=float(np.mean(chance)), ceiling=float(np.mean(ideal)))


def _identity(reading: Reading) -> np.ndarray:
    return _known(reading.identity)


def _known(part: np.ndarray | None) -> np.ndarray:
    assert part is not None  # of a probe
    return part


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Root mean square difference over the numbers of the identity."""
    return np.sqrt(np.square(first - second).mean(-1))


def _ssim(video: np.ndarray, truth: np.ndarray) -> float:
    sides = [torch.from_numpy(x / 255.0).permute(0, 3, 1, 2).float() for x in (truth, video)]
    return float(ssim(sides[0], sides[1]).mean())


def _absent(name: str, why: str) -> Score:
    return Score(metric(name), None, n=0, available=False, note=why)
