"""Trained models of objects from their folders, by subject, and whether folders hold models of objects or of images.

opened = open_object_models([Path("out/neuro3d")], device="cpu")
opened["sim01"]  # {"Neuro3D": model}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BrainDataError
from ..systems import class_names, load_model, system
from ..training.files import read_meta

__all__ = ["data_of", "kind_of_models", "open_object_models"]


def kind_of_models(folders: Sequence[str | Path]) -> str:
    """The kind of study that evaluates the models in these folders, "objects" or "images".

    Raises:
        LayoutError: A folder holds no model.
        BrainDataError: There are models of both kinds.
    """
    kinds = {Path(folder): _kind(Path(folder)) for folder in folders}
    found = {kind: folder for folder, kind in kinds.items()}
    if len(found) > 1:
        raise BrainDataError(
            f"expected models of objects or models of images, got both, such as {found['objects']} and "
            f"{found['images']}; evaluate them one after the other"
        )
    return next(iter(found), "images")


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


def data_of(opened: Mapping[str, Mapping[str, Any]]) -> tuple[str, int]:
    """The word and the seed of the data that models were trained on, as `veca brain train` wrote them down.

    Raises:
        BrainDataError: The models do not know their data, or were trained on several.
    """
    runs = [model.meta_.get("run", {}) for models in opened.values() for model in models.values()]
    known = {(str(run["data"]), int(run["seed"])) for run in runs if "data" in run and "seed" in run}
    if len(known) != 1:
        told = " and ".join(f"{word} of seed {seed}" for word, seed in sorted(known))
        raise BrainDataError(
            f"expected models that know the one data set of their training, got {told or 'none that does'}; name the "
            "data, such as objects:nano or eeg3d:FOLDER"
        )
    return known.pop()


def _kind(folder: Path) -> str:
    folder = folder / "model" if (folder / "model" / "meta.json").is_file() else folder
    kind, names = read_meta(folder)["system"], class_names()
    return system(names[kind]).study if kind in names else "images"
