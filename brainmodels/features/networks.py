"""Extractors with weights: their common base, and the features of VECA backbones.

    veca_features("veca_nano_patch8", pretrained=True, num_cores=8)
    veca_features("veca", weights="runs/model", layer=-2, tokens="cores", pooled="core_mean")

Nothing is downloaded. Weights come from a local path, from this package (`pretrained=True`, VECA only), or are "random"
with a seed. They are random only if you ask for it. Loading is strict.
"""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

import veca
from veca.hashes import weights_hash
from veca.model.features import pool
from veca.zoo.sizes import VARIANTS

from ..errors import BrainDataError, LayoutError, check_choice
from .base import Extractor
from .weights import check_source, load_strictly, seeded

__all__ = ["NetworkFeatures", "VECAFeatures", "veca_features"]

_log = logging.getLogger(__name__)


class NetworkFeatures(Extractor):
    """An extractor around a module. It puts the module into evaluation mode, freezes it and changes its type.

    Args:
        model: Module with the weights. Pass a copy if the original will be trained further.
        random_seed: Seed of weights that were drawn and not learned. None for learned weights.
        options: Further arguments of `Extractor`.
    """

    def __init__(self, model: nn.Module, random_seed: int | None, **options: Any):
        super().__init__(**options)
        self.weights = f"sha256:{weights_hash(model)}" if random_seed is None else f"random:{random_seed}"
        if random_seed is not None:
            self.note = f"random weights (seed {random_seed}): not comparable with published numbers"
            _log.warning("%s has %s", self.name, self.note)
        self.model = model.eval().requires_grad_(False).to(getattr(torch, self.dtype))


class VECAFeatures(NetworkFeatures):
    """Features of a VECA backbone.

    Args:
        model: Backbone.
        num_cores: Number of cores to use. None uses the model's budget.
        layer: Block whose output is used, negative from the end. None uses what the model itself returns, after its
            last block, norm and output linear. Only core 0 of the last block was supervised, so the cores of layer -2
            are better features.
        tokens: "patches" (row by row), "cores", "cores+patches", or None for no tokens.
        pooled: Source of the pooled features, at the same layer: "core0", "core_mean", "patch_mean",
            "core0+patch_mean", "global" for the model's own choice of these, or None for no pooled features.
        norm: Whether to apply the final norm to the output of a `layer`.
        size: Side of the picture in pixels. None uses the model's nominal one.
        name, random_seed, dtype, value_map: As in `Extractor` and `NetworkFeatures`.

    Raises:
        BrainDataError: A layer that does not exist, or an unknown choice.
    """

    model: veca.VECA
    libraries = ("timm",)
    TOKENS = ("patches", "cores", "cores+patches", None)
    POOLED = ("global", "core0", "core_mean", "patch_mean", "core0+patch_mean", None)

    def __init__(
        self,
        model: veca.VECA,
        num_cores: int | None = None,
        layer: int | None = None,
        tokens: str | None = "patches",
        pooled: str | None = "global",
        norm: bool = True,
        size: int | None = None,
        name: str = "veca",
        random_seed: int | None = None,
        dtype: str = "float32",
        value_map: str = "identity",
    ):
        grid, patch = model.patch_embed.grid_size, model.patch_embed.patch_size
        nominal = max(cells * pixels for cells, pixels in zip(grid, patch, strict=True))
        super().__init__(
            model,
            random_seed,
            name=name,
            input_size=nominal if size is None else size,
            mean=model.mean,
            std=model.std,
            value_map=value_map,
            dtype=dtype,
        )
        self.num_cores = model.check_budget(num_cores)
        self.layer = None if layer is None else _block_index(layer, len(model.blocks))
        self.tokens = check_choice("tokens", tokens, self.TOKENS)
        self.pooled = check_choice("pooled", pooled, self.POOLED)
        self.norm = norm

    def at_layer(self, layer: int) -> Self:
        """The same features after another block. Both share the model and its memory.

        Args:
            layer: Block whose output is used; negative from the end.

        Raises:
            BrainDataError: A layer that does not exist.
        """
        other = copy.copy(self)
        other.layer = _block_index(layer, len(self.model.blocks))
        return other

    def settings(self) -> dict[str, Any]:
        # `veca.load` alone reads crop_pct, and num_cores below is the budget that counts
        config = {key: value for key, value in self.model.config.items() if key not in ("crop_pct", "budget")}
        return {
            "veca": veca.__version__,
            "weights": self.weights,
            "model": config,
            "num_cores": self.num_cores,
            "layer": self.layer,
            "tokens": self.tokens,
            "pooled": self.model.global_from if self.pooled == "global" else self.pooled,
            "norm": self.norm if self.layer is not None else True,
        }

    def _encode(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.layer is None:
            features = self.model.forward_features(images, self.num_cores)
            cores, patches = features.cores, features.patches
        else:
            taken: Any = self.model.forward_intermediates(
                images,
                [self.layer],
                return_prefix_tokens=True,
                norm=self.norm,
                stop_early=True,
                output_fmt="NLC",
                intermediates_only=True,
                num_cores=self.num_cores,
            )
            ((patches, cores),) = taken
        both = {"patches": patches, "cores": cores, "cores+patches": torch.cat((cores, patches), 1), None: None}
        source = self.model.global_from if self.pooled == "global" else self.pooled
        return both[self.tokens], None if source is None else pool(cores, patches, source)


def veca_features(
    name: str = "veca",
    weights: str | Path | None = None,
    pretrained: bool = False,
    seed: int = 0,
    model_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> VECAFeatures:
    """Features of a VECA backbone by name.

    Args:
        name: Name from `veca.list_models()`, or "veca" for any model of a folder.
        weights: Folder of `save_pretrained`, safetensors file, or "random".
        pretrained: Whether to use the weights that ship with this package.
        seed: Seed of random weights.
        model_options: Arguments of `veca.VECA` beyond the name. A folder has its own, so it takes none.
        options: Arguments of `VECAFeatures`.

    Raises:
        LayoutError: No such file, or weights that do not fit, with the names of those missing.
        BrainDataError: No weights, two sources of weights, or a name that does not fit them.
    """
    check_source(name, weights, pretrained)
    given = dict(model_options or {})
    folder = weights is not None and weights != "random" and Path(weights).is_dir()
    if name == "veca" and not folder:
        raise BrainDataError(
            f"expected a size such as {next(iter(VARIANTS))} for weights other than a folder, got veca"
        )
    if weights is not None and folder:
        if given:
            raise BrainDataError(f"expected no model_options for a folder, whose config has them, got {given}")
        model = _from_folder(name, Path(weights))
    else:
        model = seeded(seed, lambda: cast(veca.VECA, veca.create_model(name, pretrained=pretrained, **given)))
        if weights is not None and weights != "random":
            load_strictly(model, weights)
    return VECAFeatures(model, name=name, random_seed=seed if weights == "random" else None, **options)


def _from_folder(name: str, folder: Path) -> veca.VECA:
    """The model of a folder, which must have the size that the name says."""
    try:
        model = seeded(0, lambda: veca.VECA.from_pretrained(folder))
    except (OSError, ValueError, TypeError) as error:
        raise LayoutError(f"expected a folder that save_pretrained has written, got {folder}: {error}") from error
    for key, value in VARIANTS.get(name, {}).items():
        if model.config.get(key) != value:
            raise LayoutError(
                f"expected {key}={value} of {name} in {folder}, got {model.config.get(key)}; use the name 'veca'"
            )
    return model


def _block_index(layer: int, depth: int) -> int:
    if not isinstance(layer, int) or not -depth <= layer < depth:
        raise BrainDataError(f"expected a layer from {-depth} to {depth - 1}, got {layer!r}")
    return layer % depth
