"""Brain encoding and decoding models on the VECA backbone. The systems arrive one room at a time."""

import importlib

# names that are promised here, imported when first used
_ROOMS = {"simulate": ".data.simulated", "simulate_eeg": ".data.simulated"}

__all__ = ["simulate", "simulate_eeg"]


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
