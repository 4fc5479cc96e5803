"""Trained models of objects from their folders, by subject.

opened = open_object_models([Path("out/neuro3d")], device="cpu")
opened["sim01"]  # {"Neuro3D": model}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BrainDataError
from ..systems import load_model

__all__ = ["open_object_models"]


def open_object_models(folders: Sequence[str | Path], device: str) -> dict[str, dict[str, Any]]:
    """Models by subject, then by their names in tables: their system, and their folder where several are of one.

    Raises:
        LayoutError: A folder holds no model.
        BrainDataError: Two models of a subject have one name.
    """
    loaded = [(Path(folder), load_model(folder, device)) for folder in folders]
    places = [folder.parent if folder.name == "model" else folder for folder, _ in loaded]
    found: dict[str, dict[str, Any]] = {}
    for place, (_, model) in zip(places, loaded, strict=True):
        (subject, *_) = model.meta_["subjects"]
        same = [x for _, x in loaded if x.label == model.label and subject in x.meta_["subjects"]]
        name = model.label if len(same) == 1 else f"{model.label} {place.name}"
        if name in found.setdefault(subject, {}):
            raise BrainDataError(f"expected models of {subject} in folders with names of their own, got {name} twice")
        found[subject][name] = model
    return found
