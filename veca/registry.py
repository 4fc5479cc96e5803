"""Models by name."""

import difflib
from typing import Any

from .backbone import VECA
from .variants import VARIANTS

__all__ = ["create_model", "list_models"]


def create_model(name: str, **options: Any) -> VECA:
    """Build a VECA backbone with random weights.

        model = veca.create_model("veca_base_patch16", num_cores=64, num_classes=0)

    Args:
        name: one of `list_models()`.
        options: arguments of `VECA`, over those of the size; None keeps the default.

    Returns:
        The model, in training mode, fp32.
    """
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=3) or list_models()
        raise ValueError(f"expected one of veca.list_models(), got {name!r}; did you mean {', '.join(near)}?")
    given = {key: value for key, value in options.items() if value is not None}
    return VECA(**(VARIANTS[name] | given))


def list_models() -> list[str]:
    """Names that `create_model` accepts, smallest first."""
    return list(VARIANTS)
