"""Features of timm models and of the image towers of open_clip.

    timm_features("vit_small_patch14_dinov2.lvd142m", weights="dinov2.safetensors", pooled="cls")
    open_clip_features("open_clip:ViT-bigG-14", weights="open_clip_model.safetensors", norm=False)
    timm_features("vit_base_patch16_224", weights="backbone.safetensors").at_layer(6)  # the same model, shared

As in `networks`, weights are local files or random, and are never downloaded.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from ..errors import BrainDataError, check_choice, near_names, need
from .networks import NetworkFeatures
from .weights import check_source, load_headless, load_tower, seeded

__all__ = ["OpenCLIPFeatures", "TimmFeatures", "Tower", "open_clip_features", "timm_features"]


class Tower(NetworkFeatures):
    """Base of models of timm, open_clip and torchvision: tokens after some block.

    Args:
        layer: Block whose tokens are used, or stage in a network of stages; negative from the end.
        tokens: "patches" (row by row), "prefix+patches" (the class token and others before them), or None for no
            tokens.
        pooled: "head" is what the model itself pools after its last block. "cls" is the first token before the patches,
            and "mean" the mean of the patches, both at `layer`. None for no pooled features.
        norm: Whether to apply the final norm to the tokens, if the model has one that fits.
        options: Further arguments of `NetworkFeatures`.
    """

    model: Any
    TOKENS = ("patches", "prefix+patches", None)
    POOLED = ("head", "cls", "mean", None)

    def __init__(self, model: nn.Module, layer: int, tokens: str | None, pooled: str | None, norm: bool, **options):
        super().__init__(model, **options)
        self.layer, self.norm = self._checked_layer(layer), norm
        self.tokens = check_choice("tokens", tokens, self.TOKENS)
        self.pooled = check_choice("pooled", pooled, self.POOLED)

    def at_layer(self, layer: Any) -> Self:
        """The same features after another block. Both share the model and its memory.

        Args:
            layer: Block whose tokens are used; negative from the end.

        Raises:
            BrainDataError: A layer that does not exist.
        """
        other = copy.copy(self)
        other.layer = self._checked_layer(layer)
        return other

    def _checked_layer(self, layer: Any) -> Any:
        """The layer as it was given, if the model has it."""
        if not hasattr(self.model, "forward_intermediates"):
            raise BrainDataError(f"expected a model that returns the output of single blocks, {self.name} does not")
        depth = _depth(self.model)
        if isinstance(layer, bool) or not isinstance(layer, int) or (depth and not -depth <= layer < depth):
            span = f" from {-depth} to {depth - 1}" if depth else ""
            raise BrainDataError(f"expected a layer of {self.name}{span}, got {layer!r}")
        return layer

    @property
    def _with_prefix(self) -> bool:
        return self.tokens == "prefix+patches" or self.pooled == "cls"

    def _tower_settings(self) -> dict[str, Any]:
        names = ("weights", "layer", "tokens", "pooled", "norm")
        return {name: getattr(self, name) for name in names}

    def _assemble(self, maps: Tensor, prefix: Tensor | None, head: Tensor | None) -> tuple[Tensor | None, ...]:
        """Tokens and pooled features, from maps (B, d, rows, cols), prefix tokens (B, n, d) and the head's vector."""
        patches = maps.flatten(2).transpose(1, 2)
        tokens, cls = patches, None
        if self._with_prefix:
            if prefix is None:
                raise BrainDataError(f"expected tokens before the patches, {self.name} has none: pass tokens='patches'")
            tokens = torch.cat((prefix, patches), 1) if self.tokens == "prefix+patches" else patches
            cls = prefix[:, 0] if self.pooled == "cls" else None
        pooled = {"head": head, "cls": cls, "mean": patches.mean(1), None: None}
        return tokens if self.tokens else None, pooled[self.pooled]


class TimmFeatures(Tower):
    """Features of a timm model. Size, mean and std are those of its data config. Other arguments are as in `Tower`.

    Args:
        model: Model from `timm.create_model`.
        name: Name of the model.
        layer: Block whose tokens are used, or stage in a network of stages; negative from the end.
        tokens: "patches" (row by row), "prefix+patches" (the class token and others before them), or None for no
            tokens.
        pooled: "head" is what the model itself pools after its last block. "cls" is the first token before the patches,
            and "mean" the mean of the patches, both at `layer`. None for no pooled features.
        norm: Whether to apply the final norm to the tokens, if the model has one that fits.
        size: Side of the picture in pixels, for a model that takes other sizes than its own.
        model_options: Options with which the model was made. They are part of the fingerprint.
        random_seed, dtype, value_map: As in `NetworkFeatures` and `Extractor`.

    Raises:
        BrainDataError: A model that does not return the output of single blocks, or an unknown choice.
    """

    libraries = ("timm",)

    def __init__(
        self,
        model: nn.Module,
        name: str,
        layer: int = -1,
        tokens: str | None = "patches",
        pooled: str | None = "head",
        norm: bool = True,
        size: int | None = None,
        model_options: Mapping[str, Any] | None = None,
        random_seed: int | None = None,
        dtype: str = "float32",
        value_map: str = "identity",
    ):
        data = resolve_model_data_config(model)
        built = getattr(
            getattr(model, "patch_embed", None), "img_size", None
        )  # the model's own size, if an option changed it
        super().__init__(
            model,
            layer,
            tokens,
            pooled,
            norm,
            random_seed=random_seed,
            name=name,
            input_size=max(built or data["input_size"][1:]) if size is None else size,
            mean=data["mean"],
            std=data["std"],
            dtype=dtype,
            value_map=value_map,
        )
        self.model_options = dict(model_options or {})

    def settings(self) -> dict[str, Any]:
        return self._tower_settings() | {"model_options": self.model_options}

    def _encode(self, images: Tensor) -> tuple[Tensor | None, ...]:
        whole = self.pooled == "head"
        options = {"norm": self.norm, "stop_early": not whole, "intermediates_only": not whole}
        if self._with_prefix and getattr(self.model, "num_prefix_tokens", 0):
            options["return_prefix_tokens"] = True
        out = self.model.forward_intermediates(images, indices=[self.layer], **options)
        final, (taken,) = out if whole else (None, out)
        maps, prefix = taken if isinstance(taken, tuple) else (taken, None)
        return self._assemble(maps, prefix, self.model.forward_head(final, pre_logits=True) if whole else None)


class OpenCLIPFeatures(Tower):
    """Features of the image tower of a CLIP model.

    Pooled features "head" are the projected embedding, not normalised. `norm` chooses between tokens before and after
    the last norm. The option `output_tokens` of open_clip has given one or the other, depending on its version and on
    `final_ln_after_pool`. Papers that use these tokens rarely say which they used.

    Args:
        model: Image tower, `visual` of open_clip's model.
        name: "open_clip:ARCHITECTURE".
        mean, std: Mean and std of each channel, with which the weights were trained.
        layer, tokens, pooled, norm: As in `TimmFeatures`.
        random_seed, dtype, value_map: As in `NetworkFeatures` and `Extractor`.

    Raises:
        BrainDataError: `norm` for a tower whose last norm belongs to its attention pooling, or an unknown choice.
    """

    libraries = ("open_clip_torch", "timm")

    def __init__(
        self,
        model: nn.Module,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        layer: int = -1,
        tokens: str | None = "patches",
        pooled: str | None = "head",
        norm: bool = True,
        random_seed: int | None = None,
        dtype: str = "float32",
        value_map: str = "identity",
    ):
        side: Any = model.image_size
        super().__init__(
            model,
            layer,
            tokens,
            pooled,
            norm,
            random_seed=random_seed,
            name=name,
            input_size=side if isinstance(side, int) else max(side),
            mean=mean,
            std=std,
            dtype=dtype,
            value_map=value_map,
        )
        if norm and getattr(model, "attn_pool", None) is not None:
            raise BrainDataError(
                f"expected norm=False, because the last norm of {name} belongs to its attention pooling"
            )

    def settings(self) -> dict[str, Any]:
        return self._tower_settings()

    def _encode(self, images: Tensor) -> tuple[Tensor | None, ...]:
        whole = self.pooled == "head"
        options = {"output_extra_tokens": True} if self._with_prefix else {}
        out = self.model.forward_intermediates(
            images,
            indices=[self.layer],
            stop_early=not whole,
            normalize_intermediates=self.norm,
            intermediates_only=not whole,
            **options,
        )
        prefix = out.get("image_intermediates_prefix")
        return self._assemble(out["image_intermediates"][0], prefix[0] if prefix else None, out.get("image_features"))


def timm_features(
    name: str,
    weights: str | Path | None = None,
    seed: int = 0,
    model_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> TimmFeatures:
    """Features of a timm model by name.

    Args:
        name: Name from `timm.list_models()`, with a tag after a dot. The tag decides size, mean and std.
        weights: File of weights in timm's names (safetensors, or a state dict of torch), or "random". The file may lack
            the classifier, which no features use; their note says so.
        seed: Seed of random weights.
        model_options: Arguments of `timm.create_model`, such as {"dynamic_img_size": True} to pass another `size`.
        options: Arguments of `TimmFeatures`.

    Raises:
        LayoutError: No such file, or weights that do not fit.
        UnsafePickleError: A file of torch that holds more than tensors.
        BrainDataError: No weights.
    """
    check_source(name, weights)
    given = dict(model_options or {})
    model: Any = seeded(seed, lambda: timm.create_model(name, pretrained=False, **given))
    note = ""
    if weights is not None and weights != "random":
        head = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
        head = (head,) if isinstance(head, str) else head
        note = load_headless(model, weights, head, lambda: model.reset_classifier(0))
    random_seed = seed if weights == "random" else None
    made = TimmFeatures(model, name, model_options=given, random_seed=random_seed, **options)
    made.note = made.note or note
    return made


def open_clip_features(
    name: str,
    weights: str | Path | None = None,
    tag: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    **options: Any,
) -> OpenCLIPFeatures:
    """Features of the image tower of a CLIP model by name.

    Args:
        name: "open_clip:" and a name from `open_clip.list_models()`. Add "-quickgelu" for weights that were trained so,
            as OpenAI's were. The wrong activation raises no error.
        weights: File with all weights of the model, or with those of its image tower `visual` (safetensors, or a state
            dict of torch), or "random".
        tag: Name that open_clip has for these weights. It decides mean and std, and checks the activation.
        mean, std: Mean and std of each channel. Needed if neither `tag` nor the architecture decides them, because
            weights of one architecture were trained with different ones.
        seed: Seed of random weights.
        options: Arguments of `OpenCLIPFeatures`.

    Raises:
        LayoutError: No such file, or weights that do not fit.
        UnsafePickleError: A file of torch that holds more than tensors.
        BrainDataError: No weights, an unknown name or tag, or mean and std that are not decided.
        ImportError: open_clip_torch is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise need("open_clip_torch", f"the extractor {name!r}") from error
    check_source(name, weights)
    architecture = name.removeprefix("open_clip:")
    if architecture not in open_clip.list_models():
        near = near_names(architecture, open_clip.list_models())
        raise BrainDataError(f"expected an architecture of open_clip.list_models(), got {architecture!r}{near}")
    if mean is None or std is None:
        mean, std = _clip_statistics(architecture, tag)
    options = {"mean": mean, "std": std, "random_seed": seed if weights == "random" else None} | options
    with _without_open_clip_warning():
        model = seeded(seed, lambda: open_clip.create_model(architecture, pretrained_text=False))
    visual: Any = model.visual
    note = "" if weights is None or weights == "random" else load_tower(model, visual, weights)
    made = OpenCLIPFeatures(visual, name, **options)
    made.note = made.note or note
    return made


def _depth(model: Any) -> int | None:
    """Number of blocks or stages whose output can be taken, or None where a model does not tell."""
    model = getattr(model, "trunk", model)  # a model of timm in a tower of open_clip
    blocks = getattr(getattr(model, "transformer", None), "resblocks", None)
    return len(getattr(model, "feature_info", None) or blocks or ()) or None


@contextmanager
def _without_open_clip_warning() -> Iterator[None]:
    """Silence a warning of open_clip's root logger: a model is random before its weights are loaded here."""

    def keep(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    logging.getLogger().addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(keep)


def _clip_statistics(architecture: str, tag: str | None) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of the weights of this tag, or of all weights of the architecture if they agree."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag is not None and tag not in tags:
        raise BrainDataError(f"expected a tag of {architecture} ({', '.join(tags) or 'none'}), got {tag!r}")
    known = [open_clip.get_pretrained_cfg(architecture, name) for name in ([tag] if tag else tags)]
    quick = (open_clip.get_model_config(architecture) or {}).get("quick_gelu", False)
    if tag and known[0].get("quick_gelu", False) != quick:
        other = architecture.removesuffix("-quickgelu") if quick else f"{architecture}-quickgelu"
        raise BrainDataError(
            f"expected the activation with which {tag} was trained, got the other: use the name {other}"
        )
    pairs = {(tuple(item["mean"]), tuple(item["std"])) for item in known if "mean" in item and "std" in item}
    if len(pairs) != 1:
        raise BrainDataError(
            f"expected tag= (one of {', '.join(tags) or 'none known'}) or mean= and std= for {architecture}, whose "
            f"weights were trained with {len(pairs) or 'unknown'} kinds of normalisation, got neither"
        )
    return pairs.pop()
