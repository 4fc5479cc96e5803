"""Models by name: build them, load them, and get the transform of their images."""

import contextlib
import difflib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform
from timm.models import adapt_input_conv, build_model_with_cfg
from torch import Tensor, nn
from torchvision.transforms import Compose

from ..data.images import upright_rgb
from ..model.backbone import VECA
from ..model.hub import put_weights, read_content, weights_in, with_fewer_cores
from ..model.interface import global_source
from .official import is_official, load_official, renamed
from .sizes import VARIANTS

__all__ = ["create_model", "list_models", "load", "weights_file"]

_WEIGHTS = Path(__file__).parent / "weights"  # <name>.safetensors, and <name>.json for more arguments than the size
_DROPOUTS = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_block_rate")
_NORMALISATION = dict(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)  # of shipped weights that name none
_ALWAYS: Any = ("dynamic_img_size", "dynamic_img_pad")  # options of timm that VECA always has


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    *,
    features_only: Literal[False] = False,
    **options: Any,
) -> VECA: ...


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    *,
    features_only: Literal[True],
    **options: Any,
) -> nn.Module: ...


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
        options: arguments of `VECA` that replace those of the size; None keeps the default. Also timm's words:
            `features_only` and `out_indices`, for maps (B, E, rows, cols) of the last 3 blocks or of the named ones;
            `global_pool`, which is `global_from` with "token" for "core0" and "avg" for "patch_mean"; `device` and
            `dtype`; dropout rates of 0. With another `in_chans` than that of shipped weights, the patch embedding is
            adapted: for one channel so that grey images have the features of their RGB form.

    Returns:
        The model in training mode, fp32 unless `dtype` is given. With `features_only` it is timm's wrapper, whose
        `model` is the model.

    Raises:
        ValueError: an unknown name, `pretrained` for a size without weights, both `pretrained` and
            `checkpoint_path`, or a dropout rate above 0.
    """
    _check_name(name)
    if pretrained and checkpoint_path is not None:
        raise ValueError(f"expected pretrained or checkpoint_path, got both, {checkpoint_path}")
    given = _plain_options({key: value for key, value in options.items() if value is not None})
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
    return [name for name in VARIANTS if not pretrained or weights_file(name).is_file()]


def weights_file(name: str) -> Path:
    """Where the weights of a name are, if they ship."""
    return _WEIGHTS / f"{name}.safetensors"


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
        (model, transform). The model is in evaluation mode. The transform takes a PIL image of any mode, turns it by
        its EXIF orientation, resizes its shorter side to the model's `img_size` / `crop_pct`, cuts out the centre, and
        returns a normalised tensor (3, height, width). For a model of one channel it returns grey values.

    Raises:
        ValueError: neither an existing folder, nor a known name, nor a repository, or a file of another kind.
    """
    name = str(name_or_dir)
    if Path(name).is_dir():
        model = VECA.from_pretrained(name, **options)
    elif name in VARIANTS:
        model = cast(VECA, create_model(name, pretrained=True, **options)).eval()
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
    to_mode = _upright_grey if model.in_chans == 1 else upright_rgb
    transform: Any = create_transform(**resolve_model_data_config(model))
    return model, Compose([to_mode, *transform.transforms])


def _upright_grey(image: Image.Image) -> Image.Image:
    return upright_rgb(image).convert("L")


def _plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options without timm's words that change nothing or have another name here."""
    for name in _DROPOUTS:
        if rate := options.pop(name, 0):
            raise ValueError(f"expected {name}=0, the model has no dropout, got {rate}; drop_path_rate is supported")
    if "global_pool" in options:
        source = global_source(options.pop("global_pool"))
        if options.setdefault("global_from", source) != source:
            raise ValueError(f"expected global_pool or global_from, got {source!r} and {options['global_from']!r}")
    return options


def _build(
    name: str,
    pretrained: bool,
    checkpoint_path: str | Path | None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> VECA:
    """Build the model itself. Weights are loaded here, because timm may then remove some of its blocks."""
    with contextlib.nullcontext() if device is None else torch.device(device):
        return _build_here(name, pretrained, checkpoint_path, **options).to(dtype=dtype)


def _build_here(name: str, pretrained: bool, checkpoint_path: str | Path | None, **options: Any) -> VECA:
    if not pretrained:
        model = VECA(**(VARIANTS[name] | options))
        if checkpoint_path is not None:
            weights = weights_in(read_content(checkpoint_path))
            put_weights(model, renamed(weights) if is_official(weights) else weights, checkpoint_path)
        return model
    file = weights_file(name)
    if not file.is_file():
        shipped = ", ".join(list_models(pretrained=True)) or "none"
        raise ValueError(f"expected a name with weights in this package ({shipped}), got {name!r} with pretrained=True")
    settings = file.with_suffix(".json")
    stored = VARIANTS[name] | (json.loads(settings.read_text()) if settings.is_file() else {})
    num_classes = options.pop("num_classes", stored.get("num_classes", 0))
    mean, std = (stored.pop(key, default) for key, default in _NORMALISATION.items())
    if options.get("in_chans", 3) == 3:
        own = dict(mean=mean, std=std)
    elif options["in_chans"] == 1:
        own = dict(mean=(sum(mean) / 3,), std=(sum(std) / 3,))
    else:
        own = {}
    model = VECA(**with_fewer_cores(stored, own | options))
    weights = weights_in(read_content(file))
    _adapt_channels(weights, mean, std, model)
    put_weights(model, weights, file)
    if num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    return model


def _adapt_channels(weights: dict[str, Tensor], mean: Sequence[float], std: Sequence[float], model: VECA) -> None:
    """Change the patch embedding of RGB images normalised by `mean` and `std` to the channels of the model.

    For one channel, a grey image normalised as the model says has the patches of its RGB form. For other numbers,
    channels are repeated and scaled as in timm.
    """
    weight, bias = (weights[f"patch_embed.proj.{kind}"].float() for kind in ("weight", "bias"))  # (E, 3, p, p), (E,)
    if model.in_chans == 1:
        means, stds = (weight.new_tensor(x)[:, None, None] for x in (mean, std))
        bias = bias + (weight * (model.mean[0] - means) / stds).sum((1, 2, 3))
        weight = (weight * model.std[0] / stds).sum(1, keepdim=True)
    elif model.in_chans != 3:
        weight = adapt_input_conv(model.in_chans, weight)
    weights |= {"patch_embed.proj.weight": weight, "patch_embed.proj.bias": bias}


def _check_name(name: str) -> None:
    if name not in VARIANTS:
        raise ValueError(f"expected one of veca.list_models(), got {name!r}; did you mean {_near(name)}?")


def _near(name: str) -> str:
    return ", ".join(difflib.get_close_matches(name, VARIANTS, n=3) or list_models())
