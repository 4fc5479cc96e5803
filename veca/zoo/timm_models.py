"""VECA in timm's registry: after `import veca`, `timm.create_model("veca_small_patch16", ...)` builds it."""

from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .registry import create_model, weights_file
from .sizes import VARIANTS

__all__ = []  # timm adds the names it registers


def _file(name: str) -> str | None:
    """The shipped weights. timm takes a name with a file for one with weights; `create_model` loads them."""
    file = weights_file(name)
    return str(file) if file.is_file() else None


# a negative number of classes leaves the choice to the model; `VECA.pretrained_cfg` adds the other values
default_cfgs = generate_default_cfgs(
    {name: dict(num_classes=-1, interpolation="bicubic", file=_file(name)) for name in VARIANTS}
)


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return create_model(name, pretrained, **options)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"`veca.create_model({name!r}, ...)`."
    return register_model(build)


globals().update({name: _entrypoint(name) for name in VARIANTS})
