"""Where weights come from: a file that the user names, loaded whole or not at all, or a seed."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from veca.model.hub import load_weights

from ..errors import BrainDataError, LayoutError, UnsafePickleError

__all__ = ["check_source", "load_strictly", "seeded"]


def check_source(name: str, weights: str | Path | None, pretrained: bool = False) -> None:
    """Exactly one source of weights, and nothing random that was not asked for."""
    if (weights is None) == (not pretrained):
        if pretrained:
            raise BrainDataError(f"expected weights or pretrained=True for {name}, got both, {weights}")
        raise BrainDataError(
            f"expected weights for {name}, got none: pass weights= a local path, or weights='random' and a seed "
            "for a control; nothing is downloaded"
        )
    if weights == "":
        raise BrainDataError(f"expected a path of weights for {name}, got ''; random ones are weights='random'")
    if weights not in (None, "random") and not Path(weights).exists():
        raise LayoutError(f"expected weights of {name} at {weights}, got no such file")


def load_strictly(model: nn.Module, file: str | Path) -> None:
    """Load all weights of a model, safetensors or a state dict that torch has saved.

    Raises:
        LayoutError: names or shapes differ.
        UnsafePickleError: a file of torch that holds more than tensors.
    """
    file = Path(file)
    if file.suffix == ".safetensors":
        try:
            load_weights(model, file)
        except (OSError, ValueError) as error:
            raise LayoutError(str(error)) from error
        return
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, OSError) as error:
        raise UnsafePickleError(
            f"expected a state dict of tensors alone in {file}, got what can only be unpickled as code or not at all; "
            f"convert it to safetensors where it comes from ({str(error).splitlines()[0]})"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise LayoutError(f"expected a state dict of tensors in {file}, got something else")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise LayoutError(f"{file} does not fit this {type(model).__name__}: {error}") from error


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes after `torch.manual_seed(seed)`; the caller's random numbers go on as if nothing was drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return build()
