"""Brain encoding and decoding models on the VECA backbone.

model = brainmodels.NeuroFlow("veca").fit(cache, dataset.pairs("subj01", "shared1000", "train"))

Every system of `brainmodels.systems.SYSTEMS` is a name of this package, imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data import load_prepared
    from .features import FeatureCache
    from .heads import ToyHead
    from .layouts import prepare
    from .simulated import simulate, simulate_clips, simulate_eeg, simulate_objects
    from .systems import load_model

_ROOMS = {
    "FeatureCache": ".features",
    "ToyHead": ".heads",
    "load_model": ".systems",
    "load_prepared": ".data",
    "prepare": ".layouts",
    "simulate": ".simulated",
    "simulate_clips": ".simulated",
    "simulate_eeg": ".simulated",
    "simulate_objects": ".simulated",
}

__all__ = [
    "FeatureCache",
    "ToyHead",
    "load_model",
    "load_prepared",
    "prepare",
    "simulate",
    "simulate_clips",
    "simulate_eeg",
    "simulate_objects",
]


def __getattr__(name: str):
    if name == "catalog":  # a room that needs no extra, unlike the systems
        return importlib.import_module(".catalog", __name__)
    if name in _ROOMS:
        return getattr(importlib.import_module(_ROOMS[name], __name__), name)
    if not name.startswith("_"):
        systems = importlib.import_module(".systems", __name__)
        if name in systems.class_names():
            return systems.system(systems.class_names()[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *importlib.import_module(".systems", __name__).class_names()})
