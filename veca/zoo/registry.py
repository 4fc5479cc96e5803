"""Models by name: build them, load them, and get the transform of their images."""

import difflib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from timm.data import create_transform, resolve_model_data_config
from timm.models import build_model_with_cfg
from torch import nn

from ..model.backbone import VECA
from ..model.hub import load_weights, put_weights, read_content, weights_in, with_fewer_cores
from .official import is_official, load_official, renamed
from .sizes import VARIANTS

__all__ = ["create_model", "list_models", "load"]

_WEIGHTS = Path(__file__).parent / "weights"  # <name>.safetensors, and <name>.json for more arguments than the size
_ALWAYS = ("dynamic_img_size", "dynamic_img_pad")  # options of timm that VECA always has


def create_model(
    name: str, pretrained: bool = False, checkpoint_path: str | Path | None = None, **options: Any
) -> VECA | nn.Module:
    """Build a VECA backbone. `timm.create_model` takes the same names and builds the same models.

        model = veca.create_model("veca_base_patch16", num_cores=64, num_classes=0)
        pyramid = veca.create_model("veca_base_patch16", features_only=True, out_indices=(2, 5, 8, 11))

    Args:
        name: one of `list_models()`.
        pretrained: load the weights that ship with this package. False gives random weights. With another
            `num_classes` than that of the weights, the classifier is new.
        checkpoint_path: a safetensors file or a checkpoint of `torch.save`, also of the authors' code. It is loaded
            strictly. If it has more cores than the model, the first ones are kept.
        options: arguments of `VECA` that replace those of the size; None keeps the default. Also timm's
            `features_only` and `out_indices`, for maps (B, E, rows, cols) of the last 3 blocks or of the named ones.

    Returns:
        The model in training mode, fp32. With `features_only` it is timm's wrapper, whose `model` is the model.

    Raises:
        ValueError: an unknown name, `pretrained` for a size without weights, or both `pretrained` and
            `checkpoint_path`.
    """
    _check_name(name)
    if pretrained and checkpoint_path is not None:
        raise ValueError(f"expected pretrained or checkpoint_path, got both, {checkpoint_path}")
    given = {key: value for key, value in options.items() if value is not None}
    return build_model_with_cfg(
        partial(_build, name, pretrained, checkpoint_path),
        name,
        pretrained=False,  # timm's own loading is not strict
        feature_cfg=dict(out_indices=3, feature_cls="getter"),
        kwargs_filter=_ALWAYS,
        **given,
    )


def list_models(pretrained: bool = False) -> list[str]:
    """Names that `create_model` accepts, smallest first; with `pretrained` only those whose weights ship."""
    return [name for name in VARIANTS if not pretrained or (_WEIGHTS / f"{name}.safetensors").is_file()]


def load(name_or_dir: str | Path, **options: Any) -> tuple[VECA, Callable]:
    """Load a model with weights, and the transform that prepares images for it.

        model, transform = veca.load("folder")
        features = model.forward_features(transform(image)[None])

    Args:
        name_or_dir: a folder that `save_pretrained` has written, a name from `list_models(pretrained=True)`, a
            repository "owner/name" on the Hugging Face Hub, or a checkpoint of the authors' code (see
            `veca.zoo.official`). Only a repository is downloaded.
        options: arguments of `VECA` that replace the saved ones. A smaller `num_cores` keeps the first cores.

    Returns:
        (model, transform). The model is in evaluation mode. The transform takes a PIL image, resizes its shorter side
        to the model's `img_size`, cuts out the centre, and returns a normalised tensor (3, height, width).

    Raises:
        ValueError: neither an existing folder, nor a known name, nor a repository, or a file of another kind.
    """
    name = str(name_or_dir)
    if Path(name).is_dir():
        model = VECA.from_pretrained(name, **options)
    elif name in VARIANTS:
        model = create_model(name, pretrained=True, **options).eval()
    elif Path(name).is_file():
        model = load_official(name, **options)
    elif isinstance(name_or_dir, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        model = VECA.from_pretrained(name, **options)
    else:
        near = _near(name)
        raise ValueError(
            f"expected an existing folder, a repository owner/name or one of veca.list_models(), got {name!r}; "
            f"did you mean {near}?"
        )
    return model, create_transform(**resolve_model_data_config(model))


def _build(name: str, pretrained: bool, checkpoint_path: str | Path | None, **options: Any) -> VECA:
    """Build the model itself. Weights are loaded here, because timm may then remove some of its blocks."""
    if not pretrained:
        model = VECA(**(VARIANTS[name] | options))
        if checkpoint_path is not None:
            weights = weights_in(read_content(checkpoint_path))
            put_weights(model, renamed(weights) if is_official(weights) else weights, checkpoint_path)
        return model
    file = _WEIGHTS / f"{name}.safetensors"
    if not file.is_file():
        shipped = ", ".join(list_models(pretrained=True)) or "none"
        raise ValueError(f"expected a name with weights in this package ({shipped}), got {name!r} with pretrained=True")
    settings = file.with_suffix(".json")
    stored = VARIANTS[name] | (json.loads(settings.read_text()) if settings.is_file() else {})
    num_classes = options.pop("num_classes", stored.get("num_classes", 0))
    model = VECA(**with_fewer_cores(stored, options))
    load_weights(model, file)
    if num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    return model


def _check_name(name: str) -> None:
    if name not in VARIANTS:
        raise ValueError(f"expected one of veca.list_models(), got {name!r}; did you mean {_near(name)}?")


def _near(name: str) -> str:
    return ", ".join(difflib.get_close_matches(name, VARIANTS, n=3) or list_models())
