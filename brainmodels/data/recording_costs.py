"""How many trials, images and sessions the training part of a split takes to record.

    recording_cost(trials, first_session(trials, test_ids))  # 680 trials of 671 images from 1 session

Papers state this as hours or minutes, which fix neither the trials nor the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .dataset import Split
from .responses import TrialTable

__all__ = ["RecordingCost", "recording_cost"]


@dataclass(frozen=True)
class RecordingCost:
    """How much has to be recorded for the training part of a split.

    Attributes:
        trials: Number of recorded trials.
        images: Number of different images.
        sessions: Number of sessions with such trials. None where the data set does not number its sessions.
        seed: Seed with which the images were drawn. None where nothing was drawn.
    """

    trials: int
    images: int
    sessions: int | None
    seed: int | None = None

    def __str__(self) -> str:
        sessions = "unknown sessions" if self.sessions is None else _count(self.sessions, "session")
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{_count(self.trials, 'trial')} of {_count(self.images, 'image')} from {sessions}{seed}"


def recording_cost(
    trials: TrialTable, split: Split, subject: str | None = None, parts: Sequence[str] = ("train", "val")
) -> RecordingCost:
    """Count what has to be recorded of a subject for the training part of a split.

    Args:
        trials: Table of all trials of the subject.
        split: Split of the images.
        subject: Id of the subject, where the split treats subjects differently.
        parts: Names of the parts to count. The validation part belongs to training.

    Returns:
        The numbers of trials, images and sessions, and the seed of the split's draw of images.
    """
    rows = np.concatenate([split.rows(trials, part, subject) for part in parts])
    sessions = np.unique(trials.session[rows])
    return RecordingCost(
        trials=len(rows),
        images=len(np.unique(trials.image_id[rows])),
        sessions=None if -1 in sessions else len(sessions),
        seed=split.params.get("budget_seed"),
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
