"""Load weights from a file that the user names, complete or not at all, or draw them from a seed.

model = seeded(0, lambda: timm.create_model("vit_tiny_patch16_224"))
load_strictly(model, "weights.safetensors")
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from veca.model.hub import load_weights

from ..data.pickles import read_torch
from ..errors import BrainDataError, LayoutError

__all__ = ["check_source", "load_strictly", "seeded"]

Module = TypeVar("Module", bound=nn.Module)


def check_source(name: str, weights: str | Path | None, pretrained: bool = False) -> None:
    """Check that there is exactly one source of weights, and that nothing is random by accident.

    Args:
        name: Name of the model, for messages.
        weights: Path of the weights, "random", or None.
        pretrained: Whether the weights that ship with the package are used.

    Raises:
        BrainDataError: No source, or two.
        LayoutError: No such file.
    """
    if (weights is None) == (not pretrained):
        if pretrained:
            raise BrainDataError(f"expected either weights or pretrained=True for {name}, got both, {weights}")
        raise BrainDataError(
            f"expected weights for {name}, got none: pass weights= a local path, or weights='random' and a seed "
            "for a control; nothing is downloaded"
        )
    if weights == "":
        raise BrainDataError(f"expected a path of weights for {name}, got ''; for random ones pass weights='random'")
    if weights not in (None, "random") and not Path(weights).exists():
        raise LayoutError(f"expected weights of {name} at {weights}, got no such file")


def load_strictly(model: nn.Module, file: str | Path) -> None:
    """Load all weights of a model from safetensors, or from a state dict that torch has saved.

    Args:
        model: Model whose weights are set.
        file: Path of the weights.

    Raises:
        LayoutError: Names or shapes differ.
        UnsafePickleError: A file of torch that holds more than tensors.
    """
    file = Path(file)
    if file.suffix == ".safetensors":
        try:
            load_weights(model, file)
        except (OSError, ValueError) as error:
            raise LayoutError(str(error)) from error
        return
    state = read_torch(file)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise LayoutError(f"expected a state dict of tensors in {file}, got something else")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise LayoutError(f"{file} does not fit this {type(model).__name__}: {error}") from error


def seeded(seed: int, build: Callable[[], Module]) -> Module:
    """What `build` returns after `torch.manual_seed(seed)`. The caller's random state does not change.

    Args:
        seed: Seed of the CPU's random generator.
        build: Function that makes a module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()
