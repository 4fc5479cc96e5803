"""Brain encoding and decoding models on the VECA backbone. The systems arrive one room at a time.

model = brainmodels.NeuroFlow("veca").fit(cache, dataset.pairs("subj01", "shared1000", "train"))
"""

import importlib

# names that are promised here, imported when first used
_ROOMS = {
    "FeatureCache": ".features",
    "NeuroFlow": ".systems.neuroflow",
    "SynBrain": ".systems.synbrain",
    "load_model": ".systems",
    "load_prepared": ".data",
    "simulate": ".simulated",
    "simulate_eeg": ".simulated",
}

__all__ = ["FeatureCache", "NeuroFlow", "SynBrain", "load_model", "load_prepared", "simulate", "simulate_eeg"]


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
