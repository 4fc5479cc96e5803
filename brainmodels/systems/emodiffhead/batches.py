"""What the two stages of an EmoDiffHead read of clips.

| stage | a clip needs | a row holds |
|---|---|---|
| expression | coefficients and sound; an emotion or none | `MotionBatch` |
| render | pictures, coefficients and sound; no emotion | `RenderBatch` |

A row is a window of a clip, all of one length. The last window of a clip ends with the clip, and may overlap the one
before it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.clips import EMOTIONS, TalkingClip
from ...errors import BrainDataError
from .motion import MotionBatch
from .pictures import frames_of
from .rendering import RenderBatch

__all__ = ["ClipSeries", "MotionRows", "RenderRows", "neutral_coefficients", "offsets_of", "usable"]

REFERENCES = 6  # of a row


@dataclass(frozen=True, eq=False)
class ClipSeries:
    """A clip as the networks see it.

    Attributes:
        clip: The clip.
        audio: fp32 (T, S, D) Features of its sound, scaled.
        full: fp32 (T, E + J) Whitened coefficients.
    """

    clip: TalkingClip
    audio: np.ndarray
    full: np.ndarray

    def __len__(self) -> int:
        return len(self.full)


def usable(clips: Sequence[TalkingClip], window: int, pictures: bool) -> tuple[list[TalkingClip], dict[str, int]]:
    """Clips that a stage can train on, and the number of those it cannot by reason.

    Args:
        clips: All clips.
        window: Number of frames that a clip must have.
        pictures: Whether the stage needs pictures.
    """
    kept: list[TalkingClip] = []
    skipped: dict[str, int] = {}
    for clip in clips:
        reason = None
        if clip.num_frames < window:
            reason = f"fewer than {window} frames"
        elif pictures and clip.frames is None:
            reason = "no pictures"
        if reason is None:
            kept.append(clip)
        else:
            skipped[reason] = skipped.get(reason, 0) + 1
    return kept, skipped


def neutral_coefficients(clips: Sequence[TalkingClip]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean coefficients (E,) and jaw (J,) of the neutral clips of each identity that has any."""
    found: dict[str, list[TalkingClip]] = {}
    for clip in clips:
        if clip.emotion == EMOTIONS[0]:
            found.setdefault(clip.identity, []).append(clip)
    return {
        name: tuple(np.concatenate([getattr(x, key) for x in own]).mean(0) for key in ("exp", "jaw"))
        for name, own in found.items()
    }


def offsets_of(
    clip: TalkingClip, neutral: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (T, E) and jaw (T, J) of a clip as offsets from the neutral face of its identity."""
    exp, jaw = neutral.get(clip.identity, (np.float32(0), np.float32(0)))
    return clip.exp - exp, clip.jaw - jaw


class _Windows:
    """A source whose rows are windows of clips; see `brainmodels.training.batches.Source`.

    Args:
        series: Clips of at least `window` frames.
        window: Number of frames of a row.
    """

    name = "clips"

    def __init__(self, series: Sequence[ClipSeries], window: int):
        self.series, self.window = list(series), window
        self.rows: list[tuple[int, int]] = []
        for index, item in enumerate(self.series):
            last = len(item) - window
            if last < 0:
                raise BrainDataError(f"expected clips of {window} frames or more, got {len(item)} of {item.clip.id}")
            self.rows += [(index, start) for start in dict.fromkeys([*range(0, last + 1, window), last])]

    def sizes(self, part: str) -> dict[str, int]:
        """Number of windows, all of them to train on."""
        return {self.name: len(self.rows) if part == "train" else 0}

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """The clips of some rows in words."""
        return f"windows of {', '.join(self.series[self.rows[row][0]].clip.id for row in rows[:8])}"

    def cut(self, rows: np.ndarray, read: Callable[[ClipSeries], Any]) -> Tensor:
        """Windows (B, window, ...) of a series of the clips, as tensors."""
        places = [self.rows[row] for row in rows]
        return torch.from_numpy(np.stack([read(self.series[i])[start : start + self.window] for i, start in places]))


class MotionRows(_Windows):
    """Rows of the expression stage."""

    def batch(self, part: str, subject: str, rows: np.ndarray) -> MotionBatch:
        """Windows, on the CPU."""
        clips = [self.series[self.rows[row][0]].clip for row in rows]
        label = torch.tensor([-1 if clip.emotion is None else EMOTIONS.index(clip.emotion) for clip in clips])
        alpha = self.cut(rows, lambda x: np.zeros(len(x), np.float32) if x.clip.alpha is None else x.clip.alpha)
        return MotionBatch(
            subject, rows, self.cut(rows, lambda x: x.audio), self.cut(rows, lambda x: x.full), label, alpha
        )


class RenderRows(_Windows):
    """Rows of the render stage.

    Args:
        series, window: As in `_Windows`.
        size: Side of the pictures in pixels.
        hide: Returns whitened coefficients (T, E + J) of a clip as the renderer sees them where the mouth is hidden.
        faces: Reference frames uint8 (K, size, size, 3) of each clip, and what was read from them, (K, 1 + C, g), or
            the pictures to read.

    The references of a row come from other clips of the same identity, and from its own clip where there is no other.

    Attributes:
        alone: Number of clips whose identity has no other.
    """

    def __init__(
        self,
        series: Sequence[ClipSeries],
        window: int,
        size: int,
        hide: Callable[[ClipSeries], np.ndarray],
        faces: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ):
        super().__init__(series, window)
        self.faces = faces
        members: dict[str, list[str]] = {}
        for item in series:
            members.setdefault(item.clip.identity, []).append(item.clip.id)
        others = {item.clip.id: [x for x in members[item.clip.identity] if x != item.clip.id] for item in series}
        self.alone = sum(not x for x in others.values())
        self.others = {name: x or [name] for name, x in others.items()}
        self.hidden = {item.clip.id: hide(item) for item in series}
        self.shown = {item.clip.id: frames_of(item.clip, size) for item in series}

    def batch(self, part: str, subject: str, rows: np.ndarray) -> RenderBatch:
        """Windows, on the CPU."""
        pictures, portraits = zip(*(self.references(row) for row in rows), strict=True)
        return RenderBatch(
            subject,
            rows,
            self.cut(rows, lambda x: self.shown[x.clip.id][0]),
            self.cut(rows, lambda x: x.full),
            self.cut(rows, lambda x: self.hidden[x.clip.id]),
            self.cut(rows, lambda x: x.audio),
            torch.from_numpy(np.stack(pictures)),
            torch.from_numpy(np.stack(portraits)),
            self.cut(rows, lambda x: self.shown[x.clip.id][1]),
        )

    def references(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """References of a row and what was read from them, `REFERENCES` of each, drawn by the number of the row."""
        own = self.others[self.series[self.rows[row][0]].clip.id]
        rng = np.random.default_rng(row)
        count = len(self.faces[own[0]][0])
        order = rng.permutation(len(own) * count)
        chosen = np.resize(order, REFERENCES)
        pairs = [[part[place % count] for part in self.faces[own[place // count]]] for place in chosen]
        return np.stack([x for x, _ in pairs]), np.stack([x for _, x in pairs])
