"""Load weights from a file that the user names, complete or not at all, or draw them from a seed.

model = seeded(0, lambda: timm.create_model("vit_tiny_patch16_224"))
load_strictly(model, "weights.safetensors")
load_headless(model, "backbone.safetensors", ("head",), lambda: model.reset_classifier(0))  # with or without the head
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from veca.model.hub import plain_name, put_weights, read_content, weights_in

from ..data.pickles import read_torch
from ..errors import BrainDataError, LayoutError

__all__ = [
    "HEADLESS",
    "TOWER",
    "check_source",
    "load_headless",
    "load_strictly",
    "load_tower",
    "read_weights",
    "seeded",
]

Module = TypeVar("Module", bound=nn.Module)
HEADLESS = "checkpoint without a classifier, which the features do not use"
TOWER = "checkpoint of the image tower alone"


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
    _put(model, read_weights(file), file)


def load_headless(model: nn.Module, file: str | Path, head: Collection[str], behead: Callable[[], object]) -> str:
    """As `load_strictly`, but the file may lack the whole classifier. A part of it, or anything else, may not lack.

    Args:
        model: Model whose weights are set.
        file: Path of the weights.
        head: Names of the modules of the classifier.
        behead: Function that takes the classifier off `model`. It is called if the file has none, so that no random
            weight stays in the model.

    Returns:
        A note for the features, `HEADLESS` or "".

    Raises:
        LayoutError: Names or shapes differ.
        UnsafePickleError: A file of torch that holds more than tensors.
    """
    state, starts = read_weights(file), tuple(f"{name}." for name in head)
    plain = {plain_name(name) for name in state}
    own = {name for name in model.state_dict() if starts and name.startswith(starts)}
    headless = bool(own) and not any(name.startswith(starts) for name in plain)
    if headless:
        behead()
    _put(model, state, file)
    return HEADLESS if headless else ""


def load_tower(model: nn.Module, visual: nn.Module, file: str | Path) -> str:
    """As `load_strictly`, but the file may hold one part of the model, the image tower.

    Args:
        model: Model with an image and a text tower.
        visual: Its image tower, `model.visual`. A file of it alone has its names, with or without "visual." before
            them.
        file: Path of the weights.

    Returns:
        A note for the features, `TOWER` or "".

    Raises:
        LayoutError: Names or shapes differ.
        UnsafePickleError: A file of torch that holds more than tensors.
    """
    state = read_weights(file)
    names, own = {name: plain_name(name) for name in state}, visual.state_dict()
    if names and all(name.startswith("visual.") for name in names.values()):
        _put(visual, {names[name].removeprefix("visual."): value for name, value in state.items()}, file)
        return TOWER
    if not any(name.startswith("visual.") for name in names.values()) and any(name in own for name in names.values()):
        _put(visual, state, file)
        return TOWER
    _put(model, state, file)
    return ""


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict that torch has saved, by name.

    Args:
        file: Path of the weights.

    Raises:
        LayoutError: A damaged file, or one of another kind.
        UnsafePickleError: A file of torch that holds more than tensors.
    """
    file = Path(file)
    if file.suffix == ".safetensors":
        try:
            return weights_in(read_content(file))
        except (OSError, ValueError) as error:
            raise LayoutError(str(error)) from error
    state = read_torch(file)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise LayoutError(f"expected a state dict of tensors in {file}, got something else")
    return state


def _put(model: nn.Module, state: Mapping[str, Tensor], file: str | Path) -> None:
    try:
        put_weights(model, dict(state), file)
    except (RuntimeError, ValueError) as error:
        raise LayoutError(str(error)) from error


def seeded(seed: int, build: Callable[[], Module]) -> Module:
    """What `build` returns after `torch.manual_seed(seed)`. The caller's random state does not change.

    Args:
        seed: Seed of the CPU's random generator.
        build: Function that makes a module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()
