"""What kind of study saved models belong to, and the data that they were trained on.

kind_of_models([Path("out/neuro3d")])  # "objects"
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import BrainDataError
from ..systems import class_names, system
from ..training.files import model_folder, read_meta

__all__ = ["data_of", "kind_of_models"]


def kind_of_models(folders: Sequence[str | Path]) -> str:
    """The kind of study that evaluates the models in these folders: "images", "objects" or "clips".

    Raises:
        LayoutError: A folder holds no model.
        BrainDataError: There are models of two kinds.
    """
    kinds = {Path(folder): _kind(Path(folder)) for folder in folders}
    found = {kind: folder for folder, kind in kinds.items()}
    if len(found) > 1:
        told = " and ".join(f"{folder} of {kind}" for kind, folder in found.items())
        raise BrainDataError(f"expected models of one kind of data, got {told}; evaluate them one after the other")
    return next(iter(found), "images")


def data_of(models: Iterable[Any]) -> tuple[str, int]:
    """The word and the seed of the data that models were trained on, as `veca brain train` wrote them down.

    Raises:
        BrainDataError: The models do not know their data, or were trained on several.
    """
    runs = [model.meta_.get("run", {}) for model in models]
    known = {(str(run["data"]), int(run["seed"])) for run in runs if "data" in run and "seed" in run}
    if len(known) != 1:
        told = " and ".join(f"{word} of seed {seed}" for word, seed in sorted(known))
        raise BrainDataError(
            f"expected models that know the one data set of their training, got {told or 'none that does'}; name the "
            "data, such as objects:nano, eeg3d:FOLDER or clips:MANIFEST"
        )
    return known.pop()


def _kind(folder: Path) -> str:
    kind, names = read_meta(model_folder(folder))["system"], class_names()
    return system(names[kind]).study if kind in names else "images"
