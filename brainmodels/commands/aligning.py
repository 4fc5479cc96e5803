"""A new subject and the known one that it is aligned with, from words of the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data import Split
from ..data.stimuli import StimulusSet
from ..errors import BrainDataError
from ..systems import load_model

__all__ = ["classes_of", "known_subject", "of_sessions"]


def known_subject(known: Path, device: str | torch.device | None) -> tuple[str, Any]:
    """The known subject, and the model of it that decodes.

    Args:
        known: Folder of a trained model of one subject, or the name of a subject.
        device: Device of the model.

    Returns:
        The name of the subject and the model, or "embedding" for a subject whose decoder is trained.

    Raises:
        BrainDataError: The model knows several subjects, or has no decoder that gradients pass through.
    """
    if not known.is_dir():
        return str(known), "embedding"
    model = load_model(known, device)
    if len(model.subjects_) != 1 or not model.freezes:
        raise BrainDataError(
            f"expected a model of one subject whose decoder can be frozen, such as a NeuroFlow, got "
            f"{model.meta_['system']} of {', '.join(model.subjects_)} in {known}"
        )
    return model.subjects_[0], model


def of_sessions(split: Split, sessions: Sequence[int]) -> Split:
    """The split with the train trials of some sessions alone; none given are all."""
    return replace(split, sessions={**(split.sessions or {}), "train": frozenset(sessions)}) if sessions else split


def classes_of(stimuli: StimulusSet, label: str | None) -> Mapping[str, object] | None:
    """The class of each image by id, from a label of the stimuli; None without a label."""
    if label is None:
        return None
    ids = stimuli.ids.tolist()
    return dict(zip(ids, stimuli.label(label, ids).tolist(), strict=True))
