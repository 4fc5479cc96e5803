"""What the folder of an EmoDiffHead holds beside weights: statistics, and facts of the head but never its arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import BrainDataError
from ...features.audio import AudioScale
from ...heads import ExpressionSpace, HeadModel, ToyHead

__all__ = ["head_facts", "known_head", "packed", "unpacked"]

_COEFFICIENTS = ("exp", "jaw")


def head_facts(head: HeadModel | None) -> dict[str, Any] | None:
    """Name, fingerprint and licence of a head model; of a drawn one, what makes it again."""
    if head is None:
        return None
    facts: dict[str, Any] = {"name": head.name, "fingerprint": head.fingerprint, "licence": head.licence}
    if isinstance(head, ToyHead):
        facts["toy"] = {"mixing": head.mixing, "seed": head.seed}
    return facts


def known_head(facts: Mapping[str, Any] | None, head: HeadModel | None) -> HeadModel | None:
    """The head model of the fit: a drawn one is made again, another must be given.

    Args:
        facts: What `head_facts` told of it.
        head: Head model of the user, or None.

    Raises:
        BrainDataError: The head is missing, or has another fingerprint.
    """
    if facts is None:
        if head is not None:
            raise BrainDataError(f"expected no head for a model that was fitted without one, got {head.name}")
        return None
    if head is None and "toy" in facts:
        head = ToyHead(**facts["toy"])
    if head is None:
        raise BrainDataError(
            f"expected head=, the {facts['name']} head with fingerprint {facts['fingerprint'][:12]} of the fit, got "
            "none"
        )
    if head.fingerprint != facts["fingerprint"]:
        raise BrainDataError(
            f"expected the {facts['name']} head with fingerprint {facts['fingerprint'][:12]} of the fit, got "
            f"{head.name} with {head.fingerprint[:12]}"
        )
    return head


def packed(
    space: ExpressionSpace, scale: AudioScale, neutral: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Tensor]:
    """Statistics of a fit as arrays: space of the coefficients, scale of the sound, neutral faces by identity."""
    faces = {f"{key}.{name}": face[i] for name, face in neutral.items() for i, key in enumerate(_COEFFICIENTS)}
    parts = {"space": space.state(), "audio": scale.state(), "neutral": faces}
    arrays = {f"{part}.{name}": x for part, own in parts.items() for name, x in own.items()}
    return {name: torch.from_numpy(np.array(x, order="C")) for name, x in arrays.items()}


def unpacked(
    arrays: dict[str, Tensor], head: HeadModel | None
) -> tuple[ExpressionSpace, AudioScale, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What `packed` was given. The arrays are taken out of `arrays`; a missing or unknown one is a `KeyError`."""
    parts: dict[str, dict[str, np.ndarray]] = {"space": {}, "audio": {}, "neutral": {}}
    for key in [*arrays]:
        part, _, name = key.partition(".")
        parts[part][name] = arrays.pop(key).numpy()
    faces, (exp, jaw) = parts["neutral"], _COEFFICIENTS
    names = [key.partition(".")[2] for key in faces if key.startswith(f"{exp}.")]
    neutral = {name: (faces[f"{exp}.{name}"], faces[f"{jaw}.{name}"]) for name in names}
    return ExpressionSpace.from_state(parts["space"], head), AudioScale.from_state(parts["audio"]), neutral
