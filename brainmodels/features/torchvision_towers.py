"""Features of the classifiers of torchvision, after a block or any named layer.

    torchvision_features("torchvision:resnet50", weights="resnet50.pth", tag="IMAGENET1K_V2", layer="layer3")
    torchvision_features("torchvision:vit_b_16", weights="vit.pth", tag="IMAGENET1K_V1", layer=6, pooled="cls")

As in `networks`, weights are local files or random, and are never downloaded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import BrainDataError, near_names, need
from .towers import Tower
from .weights import check_source, load_headless, seeded

__all__ = ["TorchvisionFeatures", "torchvision_features"]

_SERIES = ("encoder.layers", "trunk_output", "blocks", "features")  # where a model keeps its blocks
_AFTER = ("avgpool", "dropout", "fc", "classifier", "head", "heads", "norm", "permute", "flatten", "aux1", "aux2")


class TorchvisionFeatures(Tower):
    """Features of a torchvision classifier.

    Args:
        model: Model of `torchvision.models`.
        name: "torchvision:" and the name of the model.
        size: Side of the picture in pixels.
        mean, std: Mean and std of each channel, with which the weights were trained.
        layer: Block or stage by its number, negative from the end, or the name of any layer, such as "layer3" or
            "features.11".
        tokens: "patches" (row by row), "prefix+patches" (the class token before them), or None for no tokens.
        pooled: "head" is the input of the last linear layer, the classifier. "cls" is the class token and "mean" the
            mean of the patches, both at `layer`. None for no pooled features.
        random_seed, dtype, value_map: As in `NetworkFeatures` and `Extractor`.

    Raises:
        BrainDataError: A layer that does not exist, a model without a last linear layer for "head", or an unknown
            choice.
    """

    libraries = ("torchvision",)

    def __init__(
        self,
        model: nn.Module,
        name: str,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        layer: int | str = -1,
        tokens: str | None = "patches",
        pooled: str | None = "head",
        random_seed: int | None = None,
        dtype: str = "float32",
        value_map: str = "identity",
    ):
        options = {"name": name, "input_size": size, "mean": mean, "std": std, "dtype": dtype, "value_map": value_map}
        super().__init__(model, layer, tokens, pooled, False, random_seed=random_seed, **options)  # type: ignore[arg-type]
        if pooled == "head" and classifier_of(model) is None:
            raise BrainDataError(f"expected pooled='mean' or None, because {name} ends in no linear layer, got 'head'")

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("weights", "layer", "tokens", "pooled")}

    def _checked_layer(self, layer: Any) -> Any:
        self._place(layer)
        return layer

    def _place(self, layer: Any) -> str:
        """Name of the module of a layer."""
        blocks = block_names(self.model)
        if isinstance(layer, int) and not isinstance(layer, bool) and -len(blocks) <= layer < len(blocks):
            return blocks[layer]
        known = [name for name, _ in self.model.named_modules() if name]
        if isinstance(layer, str) and layer in known:
            return layer
        raise BrainDataError(
            f"expected a layer of {self.name} from {-len(blocks)} to {len(blocks) - 1} ({', '.join(blocks)}), or the "
            f"name of one of its layers, got {layer!r}{near_names(str(layer), known)}"
        )

    def _encode(self, images: Tensor) -> tuple[Tensor | None, ...]:
        found: dict[str, Any] = {}
        hooks = [self.model.get_submodule(self._place(self.layer)).register_forward_hook(_keep_output(found))]
        if self.pooled == "head":
            head: Any = classifier_of(self.model)
            hooks.append(self.model.get_submodule(head).register_forward_pre_hook(_keep_input(found)))
        try:
            self.model(images)
        finally:
            for hook in hooks:
                hook.remove()
        maps, prefix = self._as_maps(found["layer"])
        return self._assemble(maps, prefix, found.get("head"))

    def _as_maps(self, out: Any) -> tuple[Tensor, Tensor | None]:
        """The output of a layer as maps (B, d, rows, cols), and the tokens before the patches (B, 1, d)."""
        if not isinstance(out, Tensor) or out.ndim not in (2, 3, 4):
            got = f"{tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise BrainDataError(
                f"expected features of layer {self.layer} of {self.name}, got {got}; take another layer"
            )
        if out.ndim == 4:
            last = type(self.model).__name__ == "SwinTransformer"  # its blocks keep channels last
            return (out.permute(0, 3, 1, 2) if last else out), None
        if out.ndim == 2:
            return out[:, :, None, None], None
        return out[:, 1:].transpose(1, 2)[..., None], out[:, :1]  # a class token, then the patches


def torchvision_features(
    name: str,
    weights: str | Path | None = None,
    tag: str | None = None,
    size: int | None = None,
    seed: int = 0,
    **options: Any,
) -> TorchvisionFeatures:
    """Features of a torchvision classifier by name.

    Args:
        name: "torchvision:" and a name of `torchvision.models.list_models()`.
        weights: State dict of torch, safetensors file, or "random". The file may lack the last linear layer.
        tag: Name that torchvision has for these weights, such as "IMAGENET1K_V2". It decides size, mean and std. It is
            needed if the weights of a model were trained with different ones.
        size: Side of the picture in pixels. None takes that of the tag.
        seed: Seed of random weights.
        options: Arguments of `TorchvisionFeatures`.

    Raises:
        LayoutError: No such file, or weights that do not fit.
        UnsafePickleError: A file of torch that holds more than tensors.
        BrainDataError: No weights, an unknown name or tag, or a tag that is needed.
        ImportError: torchvision is not installed.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise need("torchvision", f"the extractor {name!r}") from error
    architecture = name.removeprefix("torchvision:")
    known = models.list_models(module=models)
    if architecture not in known:
        raise BrainDataError(
            f"expected a classifier of torchvision.models.list_models(), got {architecture!r}"
            f"{near_names(architecture, known)}"
        )
    check_source(name, weights)
    side, mean, std = _statistics(models, architecture, tag)
    side = side if size is None else size
    sized = {"image_size": side} if architecture.startswith("vit_") else {}
    plain = (
        {"init_weights": False} if architecture in ("inception_v3", "googlenet") else {}
    )  # faster, and random anyway
    model: Any = seeded(seed, lambda: models.get_model(architecture, weights=None, **sized, **plain))
    note = ""
    if weights is not None and weights != "random":
        head = classifier_of(model)
        note = load_headless(model, weights, () if head is None else (head,), lambda: _behead(model))
    statistics = {"mean": mean, "std": std, "random_seed": seed if weights == "random" else None}
    made = TorchvisionFeatures(model, name, side, **(statistics | options))
    made.note = made.note or note
    return made


def block_names(model: nn.Module) -> list[str]:
    """Names of the blocks or stages of a model, from the image on; numbers of layers count them."""
    stages = [f"layer{number}" for number in range(1, 5)]
    children = dict(model.named_children())
    if all(name in children for name in stages):
        return stages
    for series in _SERIES:
        try:
            found = model.get_submodule(series)
        except AttributeError:
            continue
        return [f"{series}.{name}" for name, _ in found.named_children()]
    return [name for name in children if not name.startswith(_AFTER)]


def classifier_of(model: nn.Module) -> str | None:
    """Name of the last linear layer of a model, or of the identity in its place; None without one."""
    if hasattr(model, "beheaded"):
        return str(model.beheaded)
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return last[-1] if last and not last[-1].startswith(("encoder", "features", "blocks")) else None


def _behead(model: Any) -> None:
    """Put an identity in the place of the last linear layer."""
    name: Any = classifier_of(model)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    model.beheaded = name


def _keep_output(found: dict[str, Any]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        found["layer"] = output

    return hook


def _keep_input(found: dict[str, Any]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any) -> None:
        found["head"] = inputs[0]

    return hook


def _statistics(models: Any, architecture: str, tag: str | None) -> tuple[int, Sequence[float], Sequence[float]]:
    """Side, mean and std of the weights of this tag, or of all weights of the architecture if they agree."""
    known = {item.name: item for item in models.get_model_weights(architecture)}
    if tag is not None and tag not in known:
        raise BrainDataError(
            f"expected a tag of {architecture} ({', '.join(known)}), got {tag!r}{near_names(tag, list(known))}"
        )
    seen = [item.transforms() for name, item in known.items() if tag in (None, name)]
    found = {(item.crop_size[0], tuple(item.mean), tuple(item.std)) for item in seen}
    if len(found) != 1:
        raise BrainDataError(
            f"expected tag= (one of {', '.join(known)}) for {architecture}, whose weights were trained with "
            f"{len(found)} kinds of size and normalisation, got none"
        )
    return found.pop()
