"""Fitted models in folders: weights and statistics as safetensors, recipe and facts as JSON; nothing is unpickled.

| file                | content                                                          |
|---------------------|------------------------------------------------------------------|
| weights.safetensors | weights of the networks                                          |
| stats.safetensors   | scale of voxels and tokens, and statistics that a system adds    |
| config.json         | the recipe                                                       |
| meta.json           | versions, fingerprint of the features, subjects, stages, losses  |
| stack.safetensors   | baseline that the model is stacked with, where there is one      |
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from veca.files import read_json, read_tensors, whole_folder

from ..errors import LayoutError
from ..features import EmbeddingSpace, TokenScaler
from .trials import VoxelScale

__all__ = ["FORMAT", "STACK", "model_folder", "read_meta", "read_model", "scale_arrays", "scales_from", "write_model"]

FORMAT, STACK = 1, "stack.safetensors"
_PARTS = ("weights.safetensors", "stats.safetensors", "config.json", "meta.json")


def write_model(model: Any, folder: Path, further: Mapping[str, Mapping[str, Tensor]] | None = None) -> Path:
    """Write a fitted model, with further files of tensors by name, beside its folder, then give it its name."""
    if folder.exists() and not (folder / "meta.json").is_file():
        raise LayoutError(f"expected no folder {folder}, or one with a model to replace, got another")
    with whole_folder(folder, replace=True) as partial:
        _write_parts(model, partial)
        model._save_more(partial)
        for name, tensors in (further or {}).items():
            save_file(dict(tensors), partial / name)
    return folder


def _write_parts(model: Any, folder: Path) -> None:
    weights = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name in model.networks
        for key, value in getattr(model, name).state_dict().items()
    }
    arrays, texts = model._statistics()
    save_file(weights, folder / "weights.safetensors")
    save_file(arrays, folder / "stats.safetensors")
    (folder / "config.json").write_text(json.dumps(model.recipe.to_json(), indent=1) + "\n")
    (folder / "meta.json").write_text(json.dumps(model.meta_ | {"statistics": texts}, indent=1) + "\n")


def model_folder(folder: str | Path) -> Path:
    """The folder of a model: the one given, or `model` below it if it is that of a training run."""
    below = Path(folder) / "model"
    return below if (below / "meta.json").is_file() else Path(folder)


def read_meta(folder: Path) -> dict[str, Any]:
    """The facts of a saved model; "system" names its class."""
    missing = [name for name in _PARTS if not (folder / name).is_file()]
    if missing:
        raise LayoutError(f"expected a saved model in {folder}, got no {', '.join(missing)}")
    return read_json(folder / "meta.json", LayoutError)


def read_model(kind: Any, folder: Path, device: str | torch.device | None, **options: Any) -> Any:
    """A model of a class from its folder, with what it needs besides."""
    meta = read_meta(folder)
    if (meta.get("system"), meta.get("format")) != (kind.__name__, FORMAT):
        raise LayoutError(
            f"expected a {kind.__name__} of format {FORMAT} in {folder}, got {meta.get('system')} of format "
            f"{meta.get('format')}"
        )
    recipe = kind.recipe_type.from_json(read_json(folder / "config.json", LayoutError))
    model = kind(recipe, device=device, **kind._arguments(meta, **options))
    model._recall(meta)
    arrays = read_tensors(folder / "stats.safetensors", LayoutError)
    try:
        model._restore(arrays, meta.pop("statistics"), meta["subjects"])
    except KeyError as error:
        raise LayoutError(f"expected {error.args[0]} in stats.safetensors of {folder}, got none") from error
    if arrays:
        raise LayoutError(f"expected no {next(iter(arrays))} in stats.safetensors of {folder}, got it")
    model.meta_ = meta
    model._rebuild()
    weights = read_tensors(folder / "weights.safetensors", LayoutError)
    for name in kind.networks:
        own = {key.removeprefix(f"{name}."): weights.pop(key) for key in [*weights] if key.startswith(f"{name}.")}
        try:
            getattr(model, name).load_state_dict(own)
        except RuntimeError as error:
            raise LayoutError(f"expected the weights of {name} in {folder}, got others: {error}") from error
    if weights:
        raise LayoutError(f"expected weights of {', '.join(kind.networks)} in {folder}, got {next(iter(weights))}")
    return model


def scale_arrays(
    scales: Mapping[str, VoxelScale], scaler: TokenScaler | EmbeddingSpace | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Scales of voxels and tokens as arrays for safetensors, and what of them is text."""
    arrays: dict[str, Tensor] = {}
    texts: dict[str, Any] = {"scaler": None}
    for name, scale in scales.items():
        for key in ("kept", "mean", "std"):
            arrays[f"scale.{name}.{key}"] = torch.from_numpy(np.ascontiguousarray(getattr(scale, key)))
    if scaler is not None:
        texts["scaler"] = {}
        for key, value in scaler.state_dict().items():
            value = np.asarray(value)
            if value.dtype.kind == "U":
                texts["scaler"][key] = value.tolist()
            else:
                arrays[f"scaler.{key}"] = torch.from_numpy(np.array(value, order="C"))
    return arrays, texts


def scales_from(
    arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]
) -> tuple[dict[str, VoxelScale], TokenScaler | EmbeddingSpace | None]:
    """The scales that `scale_arrays` described, taken out of `arrays`; `subjects` are those of the facts."""
    scaling = {key.removeprefix("scaler."): arrays.pop(key).numpy() for key in [*arrays] if key.startswith("scaler.")}
    scales = {
        name: VoxelScale(
            *(arrays.pop(f"scale.{name}.{key}").numpy() for key in ("kept", "mean", "std")),
            variance=known["total_variance"],
        )
        for name, known in subjects.items()
    }
    state = texts["scaler"]
    if state is None:
        return scales, None
    kind = EmbeddingSpace if "width" in scaling | state else TokenScaler
    return scales, kind.from_state_dict(scaling | dict(state))
