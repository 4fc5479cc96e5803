"""Everything that is said of talking heads: pictures, lip sync and its leak, emotion and intensity, identity.

evaluation = evaluate_heads({"EMOdiffhead": model}, clips, HeadSettings(num_clips=20))
print(evaluation.first_line)                                   # whether the model beats copying the reference
evaluation.row("sync", "EMOdiffhead").score("swap_leak")       # printed beside every number of lip sync

There are four rows beside a model:

* the reference frame repeated,
* exact renders of the truth,
* exact renders of the model's own motion,
* the model when it reads the mouth from the coefficients.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from veca.report.machine import describe_machine

from ..data.clips import EMOTIONS, ClipSet
from ..errors import BrainDataError, check_choice
from ..metrics import Score, metric
from ..metrics.head import weighted_scores
from ..records import plain
from .head_case import HeadCase, HeadSettings
from .head_made import COPY, EXACT, HeadMade, HeadMaker, has_control
from .head_probes import HeadReaders, fit_readers
from .head_rows import ROWS
from .head_verdicts import Verdict, verdicts
from .object_case import PairedRow, Row

__all__ = ["HeadEvaluation", "HeadSettings", "evaluate_heads"]

PRIMARY = "clip_psnr"


@dataclass(frozen=True, eq=False)
class HeadEvaluation:
    """Scores, videos and readings of talking heads on test clips.

    Attributes:
        name: Name of the first model, of which the sentences are.
        models: Models by name.
        case: Test clips.
        readers: Probe and linear readers; None for clips whose truth is not known.
        made: Videos and readings, one item for each row.
        tables: Rows by table: "pictures", "sync", "expression", "identity".
        paired: Differences of models and the repeated reference frame on the same clips.
        gated: Scores that need weights which cannot be shipped.
        grid: Pictures of the first model by (emotion, intensity), with one face.
        seconds: Time that each section took.
        machine: Where and when it was computed.
    """

    name: str
    models: Mapping[str, Any]
    case: HeadCase
    readers: HeadReaders | None
    made: Sequence[HeadMade]
    tables: Mapping[str, Sequence[Row]]
    paired: Sequence[PairedRow]
    gated: Sequence[Score]
    grid: Mapping[tuple[str, float], np.ndarray]
    seconds: Mapping[str, float]
    machine: Mapping[str, Any]

    def row(self, table: str, name: str) -> Row:
        """A row of a table. An unknown table or row is a `BrainDataError`."""
        check_choice("table", table, tuple(self.tables))
        rows = {row.name: row for row in self.tables[table]}
        return rows[check_choice("row", name, tuple(rows))]

    def videos(self, name: str) -> HeadMade:
        """Videos and readings of a row. An unknown row is a `BrainDataError`."""
        found = {item.name: item for item in self.made}
        return found[check_choice("row", name, tuple(found))]

    def against_copy(self, name: str, metric_name: str = PRIMARY) -> PairedRow:
        """A model against the repeated reference frame."""
        rows = {row.first: row for row in self.paired if row.metric == metric_name}
        return rows[check_choice("model", name, tuple(rows))]

    def verdicts(self, name: str | None = None) -> list[Verdict]:
        """What is good about a model and what is not; the first model by default."""
        name = name or self.name
        rows = {table: self.row(table, name) for table in self.tables}
        exact = {table: self.row(table, EXACT) for table in self.tables} if self.case.simulated else {}
        return verdicts(rows, exact, self.against_copy(name))

    @property
    def beats_copy(self) -> bool:
        """Whether the frames of the first model are nearer to the truth than its reference, beyond the interval."""
        return self.against_copy(self.name).outcome == "better"

    @property
    def first_line(self) -> str:
        """What the report says first: whether the model beats copying its reference, and whether the mouth leaks."""
        start = "beats" if self.beats_copy else "does not beat"
        found = self.against_copy(self.name)
        low, high = found.interval[:2]
        line = (
            f"{self.name} {start} copying the reference frame: {found.value:+.2f} dB PSNR (95 % interval {low:+.2f} to "
            f"{high:+.2f}, {found.n} clips)."
        )
        leak = [verdict.text for verdict in self.verdicts() if verdict.name == "lip leak"]
        return " ".join([line, *leak])

    @property
    def record(self) -> dict[str, Any]:
        """All numbers as JSON types. `json.dumps(record, allow_nan=False)` always works."""
        readers = self.readers
        probe = None
        if readers is not None:
            probe = {"r2": readers.probe.r2, "fingerprint": readers.probe.fingerprint}
            probe |= {"pictures": readers.pictures, "seconds": readers.seconds}
        return plain(
            {
                "first_line": self.first_line,
                "settings": asdict(self.case.settings),
                "machine": self.machine,
                "data": self.case.describe(),
                "models": {name: _facts(model) for name, model in self.models.items()},
                "verdicts": {name: [verdict._asdict() for verdict in self.verdicts(name)] for name in self.models},
                "tables": {name: [row.to_json() for row in rows] for name, rows in self.tables.items()},
                "paired": [row.to_json() for row in self.paired],
                "not_available": [score.to_json() for score in self.gated],
                "probe": probe,
                "seconds": self.seconds,
            }
        )


def evaluate_heads(models: Mapping[str, Any], clips: ClipSet, settings: HeadSettings | None = None) -> HeadEvaluation:
    """All scores of talking heads on test clips, beside what they must beat and what is exact.

    A model offers `render` (its renderer on given coefficients), `motion` (coefficients from audio and emotion) and
    `animate` (both). Clips whose truth is not known get fewer rows, and every score that is left out says why.

    Args:
        models: Fitted models by their names in tables, such as `EmoDiffHead`.
        clips: Clips with a test part. Simulated ones add exact renders and the probe.
        settings: See there; None takes the defaults.

    Raises:
        BrainDataError: There is no model, or there are too few test clips, or train clips for the probe.
        AxisError: Clips are too short, or a model returns videos of another shape than the clips.
    """
    if not models:
        raise BrainDataError("expected a fitted model, got none")
    taken = [name for name in models if name in (COPY, EXACT)]
    if taken:
        raise BrainDataError(f"expected names of models that no baseline has, got {taken[0]!r}")
    settings = settings or HeadSettings()
    clock = _Clock(settings.progress)
    with clock("clips"):
        case = HeadCase.of(clips, settings)
    readers = None
    if case.simulated:
        with clock("probe"):
            readers = fit_readers(case.exact, settings.probe_pictures, settings.probe_steps, settings.seed)
    maker = HeadMaker(case, readers, clock.tick)
    clock.start(maker.total(models.values()) + _grid_size(settings))
    made = _collect(maker, models, clock)
    with clock("grid"):
        name, model = next(iter(models.items()))
        grid = _grid(maker, name, model)
    with clock("scores"):
        exact = made[1] if case.simulated else _filmed(maker)
        tables = {table: [build(case, readers, item, exact) for item in made] for table, build in ROWS.items()}
        paired = _paired(case, tables["pictures"], models)
    clock.close()
    machine = describe_machine(torch.device("cpu"), torch.float32)
    found = case, readers, made, tables, paired, weighted_scores(), grid
    return HeadEvaluation(name, models, *found, clock.seconds, machine)


class _Clock:
    """A bar over the videos of an evaluation, and the seconds that each section took."""

    def __init__(self, progress: bool):
        self.seconds: dict[str, float] = {}
        self.progress, self.bar = progress, tqdm(disable=True)

    def start(self, total: int) -> None:
        self.bar = tqdm(total=total, disable=not self.progress, desc="evaluate", unit="video")

    def tick(self) -> None:
        self.bar.update()

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        self.bar.set_postfix_str(section)
        start = time.perf_counter()
        yield
        self.seconds[section] = time.perf_counter() - start

    def close(self) -> None:
        self.bar.close()


def _collect(maker: HeadMaker, models: Mapping[str, Any], clock: _Clock) -> list[HeadMade]:
    """Videos of all rows. Exact renders come second where they are known."""
    with clock("baselines"):
        made = [maker.of_copy()]
        if maker.readers is not None:
            made.append(maker.of_truth())
    for name, model in models.items():
        with clock(name):
            if maker.readers is not None:
                made.append(maker.of_motion(name, model))
                if has_control(model):
                    made.append(maker.of_control(name, model))
            made.append(maker.of_model(name, model))
    return made


def _filmed(maker: HeadMaker) -> HeadMade:
    """The film itself, which stands for exact renders where none are known."""
    videos = maker.case.videos
    return HeadMade("film", "above", "", videos, {name: maker.read(video, name) for name, video in videos.items()})


def _grid_size(settings: HeadSettings) -> int:
    return 1 + (len(EMOTIONS) - 1) * (len(settings.alphas) - 1) if settings.grid_frames else 0


def _grid(maker: HeadMaker, name: str, model: Any) -> dict[tuple[str, float], np.ndarray]:
    """Last frame of short clips of each emotion and intensity. Intensity 0 is the same for all of them."""
    case, found = maker.case, {}
    frames = min(case.settings.grid_frames, case.frames)
    if not frames:
        return found
    clip = case.test[0]
    neutral = maker.animated(name, model, clip, EMOTIONS[0], 1.0, frames)[-1]
    for emotion in EMOTIONS:
        for alpha in case.settings.alphas:
            still = alpha == 0 or emotion == EMOTIONS[0]
            video = None if still else maker.animated(name, model, clip, emotion, alpha, frames)
            found[emotion, alpha] = neutral if video is None else video[-1]
    return found


def _paired(case: HeadCase, rows: Sequence[Row], models: Mapping[str, Any]) -> list[PairedRow]:
    """Each model against the repeated reference frame, in all scores of pictures that have values of clips."""
    named, settings = {row.name: row for row in rows}, case.settings
    names = [key for key in (PRIMARY, "clip_ssim", "mouth_rmse") if key in named[COPY].values]
    return [
        PairedRow.of(named[label], named[COPY], metric(name), settings.resamples, settings.seed)
        for label in models
        for name in names
    ]


def _facts(model: Any) -> dict[str, Any]:
    """What a model says of itself."""
    recipe = model.recipe
    return {
        "label": model.label,
        "fingerprint": model.fingerprint,
        "steps": recipe.steps,
        "size": recipe.size,
        "recipe": recipe.to_json() if hasattr(recipe, "to_json") else None,
        "meta": model.meta_,
    }
