"""Refusals of what would otherwise fail late, have no effect, or mix two sets of features."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Split, Subject
from ..errors import BrainDataError
from ..features.sets import FeatureSet

__all__ = ["FOLDS", "check_settings", "check_study", "refuse_changed"]

LEAST_IMAGES = 10  # train images
FOLDS = 5  # of ridge, which needs as many images; a small context need not have more


def check_settings(pictures: str, published: bool, simulated: bool) -> None:
    """Refuse pictures that nothing draws, and published numbers beside simulated ones.

    Args:
        pictures, published: The settings.
        simulated: Whether the study is simulated.

    Raises:
        BrainDataError: See above.
    """
    known = pictures in ("none", "nearest", "generator") or (Path(pictures) / "nearest.json").is_file()
    if not known and ":" not in pictures:
        raise BrainDataError(
            "expected pictures of none, nearest, generator, a folder that `veca brain drawer` wrote, or a function as "
            f"module:name or file.py:name, got {pictures!r}"
        )
    if published and simulated:
        raise BrainDataError("expected published=False with simulated data, whose scores share no table with real ones")


def check_study(subject: Subject, split: Split, sets: Sequence[FeatureSet], few: bool) -> None:
    """Refuse sets of features of one name, responses over time, and too few images.

    Args:
        subject, split: What is evaluated.
        sets: Sets of features.
        few: Whether the subject gives a small number of train images on purpose.

    Raises:
        BrainDataError: See above.
    """
    names = [item.name for item in sets]
    if not names or len(set(names)) != len(names):
        raise BrainDataError(f"expected sets of features with names of their own, got {', '.join(names) or 'none'}")
    if subject.responses.values.ndim != 2:
        raise BrainDataError(
            f"expected responses (trials, voxels) of {subject.id}, got {subject.responses.values.shape}; epochs "
            "of sensors are evaluated by evaluate_epochs and by `veca brain evaluate`"
        )
    for part, least in (("train", FOLDS if few else LEAST_IMAGES), ("test", 2)):
        count = len(
            np.unique(subject.responses.trials.image_id[split.rows(subject.responses.trials, part, subject.id)])
        )
        if count < least:
            raise BrainDataError(
                f"expected {least} {part} images or more with responses of {subject.id} in split {split.name!r}, got "
                f"{count}"
            )


def refuse_changed(settings: Any, names: Sequence[str], whose: str) -> None:
    """Refuse settings that do not apply and were changed from their defaults.

    Args:
        settings: A dataclass.
        names: Settings that do not apply.
        whose: What they do not apply to, for the message.

    Raises:
        BrainDataError: One of them was changed.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name in names:
        if getattr(settings, name) != defaults[name]:
            raise BrainDataError(f"expected no {name} with {whose}, got {getattr(settings, name)}")
