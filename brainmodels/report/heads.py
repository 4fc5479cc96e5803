"""report.html of talking heads: one page without scripts or network, with pictures, films and record.json beside it.

write_head_report(evaluation, Path("out/study_head"))  # report.html, record.json, *.png, films/*.gif and *.mp4

Every picture and every film bears the visible word SYNTHETIC, exact renders included.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from veca.report.curves import BLUES, FAINT, GREY, INK, STYLE, VERMILLION
from veca.report.page import percent, render

from ..data.animation import Frames
from ..data.clips import EMOTIONS
from ..errors import BrainDataError
from ..evaluation.head_made import COPY, EXACT
from ..evaluation.head_verdicts import LEAK_BOUND
from ..evaluation.heads import HeadEvaluation
from ..evaluation.object_case import Row
from ..metrics import Score
from . import figures
from .figures import PictureRow, _pyplot

__all__ = ["write_head_report"]

_STRIP = 8  # frames of a strip
_LARGE = 96  # pixels of a small picture after it was enlarged
_FILMS = 8  # films with chosen emotions

_COLUMNS = {
    "pictures": {
        "clip_psnr": "PSNR, dB ↑",
        "clip_ssim": "SSIM ↑",
        "mouth_rmse": "mouth RMSE ↓",
        "jerk": "jerk, true 1",
        "kid[probe]": "KID of the probe ↓",
    },
    "sync": {
        "swap_leak": "leak, swapped ↓",
        "mouth_audio_r": "r, swapped ↑",
        "mouth_audio_r[matched]": "r, matched ↑",
        "mouth_audio_best_lag": "best lag, swapped, frames",
        "mouth_audio_best_lag[matched]": "best lag, matched, frames",
        "silent_motion": "motion in silence ↓",
    },
    "expression": {
        "intensity_slope": "slope, exact 1",
        "intensity_r2": "r² ↑",
        "emotion_accuracy[probe]": "emotion of 8 ↑",
        "viseme_accuracy[probe]": "viseme of 6, swapped ↑",
        "viseme_accuracy[probe, matched]": "viseme of 6, matched ↑",
    },
    "identity": {"identity_drift": "distance to the reference ↓", "identity_drift_per_s": "drift per second ↓"},
}


def write_head_report(evaluation: HeadEvaluation, out: str | Path) -> Path:
    """Write report.html, record.json, the figures and the films.

    Films with sound need PyAV. Without it there are GIFs only, and the page says so.

    Args:
        evaluation: Scores and videos of talking heads.
        out: Folder to write to.

    Returns:
        The path of report.html.
    """
    out = Path(out)
    (out / "films").mkdir(parents=True, exist_ok=True)
    record = evaluation.record
    (out / "record.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    path = out / "report.html"
    path.write_text(render("heads.html", "brainmodels.report", **_view(evaluation, record, out)), encoding="utf-8")
    return path


def _view(evaluation: HeadEvaluation, record: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Draw the figures, write the films, and collect what the template shows."""
    found = evaluation.verdicts()
    readers = evaluation.readers
    return {
        "record": record,
        "data": record["data"],
        "name": evaluation.name,
        "first_line": evaluation.first_line,
        "title": _title(evaluation),
        "good": [verdict for verdict in found if verdict.good],
        "bad": [verdict for verdict in found if not verdict.good],
        "others": {name: evaluation.verdicts(name) for name in list(evaluation.models)[1:]},
        "beats": evaluation.beats_copy,
        "against": evaluation.against_copy(evaluation.name),
        "cards": _cards(evaluation),
        "drawn": _draw(evaluation, out),
        "films": _films(evaluation, out),
        "with_sound": find_spec("av") is not None,
        "pair": _pair_films(evaluation, out),
        "tables": {name: _table(rows, _COLUMNS[name]) for name, rows in evaluation.tables.items()},
        "gated": evaluation.gated,
        "leak_bound": LEAK_BOUND,
        "probe": None if readers is None else readers.probe.r2,
        "readers": readers,
        "lines": [str(score) for rows in evaluation.tables.values() for row in rows for score in row.scores],
        "timing": ", ".join(f"{name} {value:.0f} s" for name, value in evaluation.seconds.items()),
        "settings": {name: value for name, value in record["settings"].items() if name != "progress"},
        "versions": evaluation.tables["pictures"][0].scores[0].versions,
    }


def _title(evaluation: HeadEvaluation) -> str:
    """The main result in a sentence: copying, then the leak where it is known."""
    name = evaluation.name
    start = f"{name} {'beats' if evaluation.beats_copy else 'does not beat'} copying the reference frame"
    leak = {verdict.name: verdict.good for verdict in evaluation.verdicts()}.get("lip leak")
    if leak is None:
        return start
    joined = "and" if leak == evaluation.beats_copy else "but"
    rest = "its lips follow the sound alone" if leak else "its lips also follow the old expression"
    return f"{start}, {joined} {rest}"


class _Card(NamedTuple):
    """A number of the first model, and what it compares with."""

    value: str
    name: str
    score: Score
    beside: list[str]


def _cards(evaluation: HeadEvaluation) -> list[_Card]:
    """Up to three numbers of the first model."""
    name, case = evaluation.name, evaluation.case
    psnr = evaluation.row("pictures", name).score("clip_psnr")
    assert psnr is not None and psnr.value is not None  # of every model
    beside = [f"the reference repeated {_told(evaluation, 'pictures', COPY, 'clip_psnr')} dB"]
    cards = [_Card(f"{psnr.value:.1f} dB", "PSNR of matched clips", psnr, beside)]
    sync = evaluation.row("sync", name).score("mouth_audio_r")
    if sync is not None and sync.value is not None:
        beside = [f"leak {_told(evaluation, 'sync', name, 'swap_leak')}, bound {LEAK_BOUND}"]
        beside += [f"exact renders {_told(evaluation, 'sync', EXACT, 'mouth_audio_r')}"] if case.simulated else []
        cards.append(_Card(f"{sync.value:.2f}", "mouth and new audio, r", sync, beside))
    emotion = evaluation.row("expression", name).score("emotion_accuracy[probe]")
    if emotion is not None and emotion.value is not None:
        beside = [f"chance {percent(emotion.chance or 0.0)}", f"exact renders {percent(emotion.ceiling or 0.0)}"]
        cards.append(_Card(percent(emotion.value), "of clips show the emotion asked for", emotion, beside))
    return cards


def _told(evaluation: HeadEvaluation, table: str, row: str, name: str) -> str:
    """A score as a number, or that it is not available."""
    score = evaluation.row(table, row).score(name)
    return "not available" if score is None or score.value is None else f"{score.value:.3g}"


def _table(rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, Any]:
    """A table: heads, rows with their cells, and cells of the model for chance, best value and number of items."""
    shown = {name: head for name, head in columns.items() if any(row.score(name) is not None for row in rows)}
    cells = [(row, [row.score(name) for name in shown]) for row in rows]
    model = next(found for row, found in cells if row.kind == "model")
    return {
        "head": list(shown.values()),
        "rows": cells,
        "model": model,
        "ceiling": any(score is not None and score.ceiling is not None for score in model),
        "missing": sorted({score.note for _, found in cells for score in found if score and not score.available}),
    }


# pictures


def _draw(evaluation: HeadEvaluation, out: Path) -> set[str]:
    """Draw the grid of emotions, the strip of a clip and the openings; names of the files."""
    drawn = {"strip.png"}
    if evaluation.grid:
        _draw_grid(evaluation, out / "emotions.png")
        drawn.add("emotions.png")
    _draw_strip(evaluation, out / "strip.png")
    if evaluation.case.openings is not None:
        _draw_openings(evaluation, out / "openings.png")
        drawn.add("openings.png")
    return drawn


def _draw_grid(evaluation: HeadEvaluation, path: Path) -> None:
    """One face with each emotion in rows and each intensity in columns."""
    alphas = evaluation.case.settings.alphas
    rows = []
    for emotion in EMOTIONS:
        pictures = _marked(np.stack([evaluation.grid[emotion, alpha] for alpha in alphas]))
        captions = [f"{alpha:g}" for alpha in alphas] if emotion == EMOTIONS[-1] else ()
        rows.append(PictureRow(emotion, list(pictures), captions))
    figures.picture_grid([rows], path)


def _draw_strip(evaluation: HeadEvaluation, path: Path) -> None:
    """Reference, exact and model frames of the first test clip, evenly spaced in time."""
    case = evaluation.case
    clip = case.test[0]
    shown = np.linspace(0, case.frames - 1, min(_STRIP, case.frames)).round().astype(int)
    rows = [PictureRow("reference", list(_marked(evaluation.videos(COPY).matched[clip.id][shown])))]
    true = "exact render" if case.simulated else "film"
    rows.append(PictureRow(true, list(_marked(case.videos[clip.id][shown]))))
    for name in evaluation.models:
        rows.append(PictureRow(_wrapped(name), list(_marked(evaluation.videos(name).matched[clip.id][shown]))))
    times = [f"{1000 * (frame + 0.5) / case.fps:.0f} ms" for frame in shown]
    rows[-1] = rows[-1]._replace(captions=times)
    figures.picture_grid([rows], path)


def _draw_openings(evaluation: HeadEvaluation, path: Path) -> None:
    """Mouth opening over the envelope of the sound, with a clip's own sound and with that of another clip."""
    case, made = evaluation.case, evaluation.videos(evaluation.name)
    ids, own, openings = case.ids, 0, case.openings
    if openings is None:
        raise BrainDataError("expected clips with mouth openings, got clips without mouth boxes")
    pair = next(pair for pair in made.swapped if pair[0] == ids[own])
    other = ids.index(pair[1])
    times = (np.arange(case.frames) + 0.5) / case.fps
    plt = _pyplot()
    panels = (
        ("its own sound", own, made.read[ids[own]].opening, None),
        ("sound of another clip", other, made.swapped[pair].opening, openings[own]),
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True, layout="constrained")
        for axis, (title, sound, rendered, old) in zip(axes, panels, strict=True):
            true = openings[sound]
            envelope = case.envelopes[sound] / max(case.envelopes[sound].max(), 1e-12)
            low, high = float(openings.min()), float(openings.max())
            axis.fill_between(times, low, low + envelope * (high - low), color=FAINT, lw=0, label="envelope, scaled")
            axis.plot(times, true, c=INK, lw=1.2, ls=(0, (4, 2)), label="what the sound calls for")
            if old is not None:
                axis.plot(times, old, c=VERMILLION, lw=1.1, label="old expression")
            axis.plot(times, rendered, c=BLUES[0], lw=1.9, label=evaluation.name)
            axis.set_title(title, loc="left", fontsize=10.5)
            axis.set_xlabel("s")
            axis.axhline(0, c=GREY, lw=0.6, zorder=0.5)
        axes[0].set_ylabel("mouth opening" if case.simulated else "darkness of the mouth box")
        handles, names = axes[1].get_legend_handles_labels()
        figure.legend(handles, names, frameon=False, loc="outside upper left", ncols=4)
        figure.savefig(path)
        plt.close(figure)


# films


def _films(evaluation: HeadEvaluation, out: Path) -> list[dict[str, str]]:
    """Films of chosen emotions at the largest intensity, one for each emotion; their files."""
    case, made, found = evaluation.case, evaluation.videos(evaluation.name), []
    for clip, emotion in list(zip(case.test, case.asked, strict=True))[:_FILMS]:
        if clip.id in made.emotional:
            facts = {"emotion": emotion, "intensity": case.settings.alphas[-1]}
            files = _film(evaluation, clip, made.emotional[clip.id], emotion, evaluation.name, facts, out)
            found.append(files | {"name": emotion})
    return found


def _pair_films(evaluation: HeadEvaluation, out: Path) -> list[dict[str, str]]:
    """The first test clip with its own sound and with that of another clip, exact where it is known, and the model."""
    case, clip = evaluation.case, evaluation.case.test[0]
    true = "exact render" if case.simulated else "film"
    films = [("clip_true", true, clip, case.videos[clip.id], "its own sound")]
    films.append(
        ("clip_model", evaluation.name, clip, evaluation.videos(evaluation.name).matched[clip.id], films[0][4])
    )
    for stem, maker, row in (("swapped_true", true, EXACT), ("swapped_model", evaluation.name, evaluation.name)):
        if row == EXACT and not case.simulated:
            continue
        for (_, sound), video in evaluation.videos(row).swapped_film.items():
            other = next(one for one in case.test if one.id == sound)
            films.append((stem, maker, other, video, "sound of another clip"))
    return [
        _film(evaluation, sound, video, stem, maker, {}, out) | {"name": f"{maker}, {told}"}
        for stem, maker, sound, video, told in films
    ]


def _film(
    evaluation: HeadEvaluation, clip: Any, video: np.ndarray, stem: str, maker: str, facts: Mapping[str, Any], out: Path
) -> dict[str, str]:
    """Write a marked film as GIF and, where PyAV is installed, as mp4 with sound; paths relative to the page."""
    case = evaluation.case
    provenance = {"model": maker, "clip": clip.id, "seed": case.settings.seed, **facts}
    if maker in evaluation.models:
        provenance["fingerprint"] = evaluation.models[maker].fingerprint
    frames = Frames(_large(video), case.fps, None, provenance, case.audio(clip), clip.sample_rate)
    files = {"gif": frames.save(out / "films" / f"{stem}.gif")}
    if find_spec("av") is not None:
        files["mp4"] = frames.save(out / "films" / f"{stem}.mp4")
    return {kind: f"films/{path.name}" for kind, path in files.items()}


def _marked(video: np.ndarray) -> np.ndarray:
    """Pictures uint8 (n, H, W, 3), enlarged where they are small, with the visible mark."""
    return Frames(_large(video), 1.0, None, {}).marked()


def _large(video: np.ndarray) -> np.ndarray:
    """Small pictures with each pixel repeated, so that the mark has room and nothing is smoothed."""
    factor = max(1, _LARGE // max(video.shape[1:3]))
    return video.repeat(factor, 1).repeat(factor, 2)


def _wrapped(name: str) -> str:
    return name.replace(", ", ",\n")
