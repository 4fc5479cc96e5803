"""What a fit of a MindAligner refuses: images that are tested on, too few trials, and responses on another scale."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...data import Pairs
from ...errors import AxisError, BrainDataError, LeakageError, NormalizationError
from ...training.trials import TrialData, Trials, check_training

__all__ = ["check_decoded", "check_tested", "check_trials"]

_log = logging.getLogger(__name__)
_LEAST_TRIALS, _FEW_TRIALS = 20, 100
_SPREAD = (0.5, 2.0)  # range of the mean standard deviation of z-scored voxels


def check_tested(responses: Mapping[str, Trials], decoder: Any) -> None:
    """Refuse images that are tested on, as far as pairs and a decoder tell.

    Args:
        responses: Train trials by subject.
        decoder: A fitted model that knows the images of its own fit; None where there is none.

    Raises:
        LeakageError: A subject or the decoder was given images that the split of a subject tests on, or other pairs
            than those of the train part.
    """
    pairs = [part for part in responses.values() if isinstance(part, Pairs)]
    tested = {name for part in pairs for name in part.split.test}
    for part in pairs:
        check_training(part)
        seen = tested & set(part.image_ids.tolist())
        if seen:
            raise LeakageError(
                f"expected no train images of {part.subject.id} that the split of the other subject tests on, got "
                f"{len(seen)}, such as {min(seen)}"
            )
    if decoder is not None:
        decoder.check_unseen(sorted(tested))


def check_trials(data: TrialData, new: str, known: str) -> None:
    """Refuse too few trials, and responses that are not z-scored.

    Args:
        data: Trials of both subjects.
        new, known: Names of the subjects.

    Raises:
        BrainDataError: There are too few trials of the new subject, or one image to validate on.
        NormalizationError: Responses are not z-scored.
    """
    count = len(data.rows["train"][new])
    if count < _LEAST_TRIALS:
        raise BrainDataError(f"expected at least {_LEAST_TRIALS} train trials of {new}, got {count}")
    if len(data.images(new, "val")) == 1:
        raise BrainDataError(
            f"expected validation images of {new} to compare with each other, got one; pass another validation, or 0 "
            "for none"
        )
    if count < _FEW_TRIALS:
        _log.warning("%d trials of %s are few: below %d, a map says little", count, new, _FEW_TRIALS)
    for name in (new, known):
        rows = data.rows["train"][name]
        values = data.batch("train", name, np.arange(min(len(rows), 512))).responses
        spread, centre = float(values.std(0).mean()), float(values.mean(0).abs().mean())
        if not _SPREAD[0] < spread < _SPREAD[1] or centre > _SPREAD[0]:
            raise NormalizationError(
                f"expected z-scored responses of {name}, as session_z_train makes them, got a mean absolute mean of "
                f"{centre:.2g} and a mean standard deviation of {spread:.2g}"
            )


def check_decoded(data: TrialData, known: str, facts: Mapping[str, Any]) -> None:
    """Refuse responses of the known subject in other voxels or on another scale than those of its decoder.

    Args:
        data: Trials of both subjects.
        known: Name of the known subject.
        facts: What the fitted decoder wrote down of the subject.

    Raises:
        AxisError: The voxels are others, or stand in another order.
        BrainDataError: Some voxels are left out.
        NormalizationError: The responses went through another normaliser.
    """
    recording = data.recordings[known]
    if not data.scales[known].kept.all():
        raise BrainDataError(f"expected all voxels of {known} with a decoder that knows them, got some dropped")
    if facts["voxels"] and recording.voxels and facts["voxels"] != recording.voxels:
        raise AxisError(
            f"expected the voxels of {known} in the order of the decoder ({facts['voxels']}), got others "
            f"({recording.voxels})"
        )
    if "unknown" not in (facts["normalizer"], recording.normalizer) and facts["normalizer"] != recording.normalizer:
        raise NormalizationError(
            f"expected responses of {known} through {facts['normalizer']!r}, as those of the decoder, got "
            f"{recording.normalizer!r}"
        )
