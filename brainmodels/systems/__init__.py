"""The brain models: one room for each published system, and the table of them.

A system is a subclass of `brainmodels.training.BrainModel`; its class attributes say what it predicts, what it needs
and how it is trained. To add one, write its room and its line of `SYSTEMS`: nothing else knows the names.
"""

import importlib
import importlib.util
from pathlib import Path

import torch

from ..errors import BrainDataError, near_names, need
from ..training.estimator import BrainModel
from ..training.files import STACK, read_meta
from ..training.stacked import Stacked

__all__ = ["SYSTEMS", "class_names", "load_model", "system"]

SYSTEMS = {
    "braincodec": "brainmodels.systems.braincodec:BrainCoDec",
    "braincorl": "brainmodels.systems.braincodec:InContextEncoder",
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


def load_model(folder: str | Path, device: str | torch.device | None = None) -> BrainModel | Stacked:
    """A saved model of any system, stacked or not, or the one in the folder of a training run.

    Raises:
        LayoutError: the folder holds no model.
        BrainDataError: its system is not in the table.
    """
    folder = Path(folder)
    folder = folder / "model" if (folder / "model" / "meta.json").is_file() else folder
    kind = read_meta(folder)["system"]
    names = class_names()
    if kind not in names:
        raise BrainDataError(f"expected a model of {', '.join(names)} in {folder}, got {kind!r}")
    model = system(names[kind]).load(folder, device)
    return Stacked.of(model, folder) if (folder / STACK).is_file() else model
