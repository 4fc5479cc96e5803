"""The brain models: one room for each published system, and the table of them.

A system is a subclass of `brainmodels.training.BrainModel`; its class attributes say what it predicts, what it needs
and how it is trained. To add one, write its room and its line of `SYSTEMS`: nothing else knows the names.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from ..errors import BrainDataError, near_names, need
from ..training.estimator import BrainModel
from ..training.files import STACK, model_folder, read_meta
from ..training.stacked import Stacked

__all__ = ["SYSTEMS", "class_names", "load_model", "shipped_model", "system"]

SYSTEMS = {
    "braincodec": "brainmodels.systems.braincodec:BrainCoDec",
    "braincorl": "brainmodels.systems.braincodec:InContextEncoder",
    "emodiffhead": "brainmodels.systems.emodiffhead:EmoDiffHead",
    "mindaligner": "brainmodels.systems.mindaligner:MindAligner",
    "neuro3d": "brainmodels.systems.neuro3d:Neuro3D",
    "neuroflow": "brainmodels.systems.neuroflow:NeuroFlow",
    "synbrain": "brainmodels.systems.synbrain:SynBrain",
    "unibrain": "brainmodels.systems.unibrain:UniBrain",
}


def system(name: str) -> type[BrainModel]:
    """The class of a system by its name on the command line.

    Raises:
        BrainDataError: The name is unknown; the message has the nearest known ones.
        ImportError: A package that the system needs is not installed.
    """
    if name not in SYSTEMS:
        raise BrainDataError(f"expected a system of {', '.join(SYSTEMS)}, got {name!r}{near_names(name, [*SYSTEMS])}")
    module, _, kind = SYSTEMS[name].partition(":")
    found = getattr(importlib.import_module(module), kind)
    for package in found.needs:
        if importlib.util.find_spec(package) is None:
            raise need(package, f"the system {name}")
    return found


def class_names() -> dict[str, str]:
    """Names on the command line by the names of the classes."""
    return {place.rpartition(":")[2]: name for name, place in SYSTEMS.items()}


def shipped_model(name: str) -> Path:
    """Folder of a trained model that ships in the room of its system, by its name, such as "toy".

    Raises:
        BrainDataError: None has that name.
    """
    known = {place.name: place for place in Path(__file__).parent.glob("*/weights/*") if place.is_dir()}
    if name not in known:
        raise BrainDataError(f"expected a model that ships, {', '.join(sorted(known))}, got {name!r}")
    return known[name]


def load_model(folder: str | Path, device: str | torch.device | None = None, **options: Any) -> BrainModel | Stacked:
    """A saved model of any system, stacked or not, or the one in the folder of a training run.

    Args:
        folder: Folder of the model or of the run.
        device: Device; None is a GPU where there is one.
        options: What the system's `load` takes besides, such as `head` of a talking head.

    Raises:
        LayoutError: the folder holds no model.
        BrainDataError: its system is not in the table.
    """
    folder = model_folder(folder)
    kind = read_meta(folder)["system"]
    names = class_names()
    if kind not in names:
        raise BrainDataError(f"expected a model of {', '.join(names)} in {folder}, got {kind!r}")
    model = system(names[kind]).load(folder, device, **options)
    return Stacked.of(model, folder) if (folder / STACK).is_file() else model
