"""Networks that judge images and captions: named slots, each filled from a local file or by any callable.

    network = open_slot("alexnet", "alexnet.safetensors")
    network.features(images)  # {"features.4": (B, 192, 31, 31), "features.11": ...}

A slot is one architecture with one published set of weights, the one that tables in the literature mean. Files are
loaded strictly, and nothing is downloaded. If a callable fills a slot, its own name is the name of its scores. Numbers
of another network thus never appear under the name of a published one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from veca.hashes import json_digest, weights_hash

from ..errors import AxisError, BrainDataError, LayoutError, near_names, need
from ..features.towers import open_clip_features
from ..features.weights import check_source, load_strictly, seeded
from ..versions import library_versions
from .record import Metric, Score, not_available

__all__ = ["SHORT", "SLOTS", "Network", "missing_weights", "open_slot", "open_text_slot", "slot_files"]

SLOTS = {
    "alexnet": "torchvision AlexNet, IMAGENET1K_V1",
    "inception_v3": "torchvision Inception-v3, IMAGENET1K_V1",
    "clip_vit_l14_openai": "OpenAI CLIP ViT-L/14, image and text tower, in open_clip's names",
    "efficientnet_b1": "torchvision EfficientNet-B1, IMAGENET1K_V2",
    "swav_rn50": "SwAV ResNet-50, 800 epochs, as published: prefix 'module.', projection head and prototypes included",
}
SHORT = {  # names of the command line
    "alexnet": "alexnet",
    "inception": "inception_v3",
    "clip": "clip_vit_l14_openai",
    "efficientnet": "efficientnet_b1",
    "swav": "swav_rn50",
}
LAYERS = {
    "alexnet": ("features.4", "features.11"),  # the ReLU after the second and the fifth convolution
    "inception_v3": ("avgpool",),
    "efficientnet_b1": ("avgpool",),
    "swav_rn50": ("module.avgpool",),
}
CLIP = "ViT-L-14-quickgelu"  # OpenAI trained with the quick approximation; the exact GELU raises no error
EMBEDDING = "embedding"


@dataclass(frozen=True)
class Network:
    """The network in a slot.

    Attributes:
        name: Name of the slot if `own`, else of the callable. It names the columns of scores.
        own: Whether this is the network that the slot is named after.
        features: Function from images (B, 3, H, W) in [0, 1] to features by layer, or from texts to (n, d).
        fingerprint: Twelve hexadecimal digits of the weights, or the fingerprint that a callable gives, or None.
    """

    name: str
    own: bool
    features: Any
    fingerprint: str | None


def slot_files(words: Sequence[str]) -> dict[str, Path]:
    """Files of weights by slot, from words of the command line such as "alexnet=alexnet.safetensors".

    Args:
        words: SLOT=FILE, where SLOT is one of `SHORT` or of `SLOTS`.

    Raises:
        BrainDataError: Another form, an unknown slot, or a slot that is given twice.
        LayoutError: No such file.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, equals, file = word.partition("=")
        slot = SHORT.get(name, name)
        if not equals or not file or slot not in SLOTS:
            known = list(dict.fromkeys([*SHORT, *SLOTS]))
            raise BrainDataError(
                f"expected weights as SLOT=FILE, where SLOT is one of {', '.join(SHORT)}, got {word!r}"
                f"{near_names(name, known)}"
            )
        if slot in found:
            raise BrainDataError(f"expected one file for slot {slot}, got {found[slot]} and {file}")
        if not Path(file).is_file():
            raise LayoutError(f"expected weights of slot {slot} ({SLOTS[slot]}) at {file}, got no such file")
        found[slot] = Path(file)
    return found


def missing_weights(metric: Metric, slot: str) -> Score:
    """Row of a metric whose network is absent. It says how to name a file of its weights.

    Args:
        metric: Definition of the metric.
        slot: Name of the slot, one of `SLOTS`.
    """
    short = next(name for name, full in SHORT.items() if full == slot)
    return not_available(metric, f"weights {slot}", f"pass --weights {short}=FILE ({SLOTS[slot]})")


def open_slot(
    slot: str, source: "str | Path | Network | Callable[[Tensor], Any]", device: str | torch.device = "cpu"
) -> Network:
    """The network of an image slot.

    Args:
        slot: Name of the slot, one of `SLOTS`.
        source: File of weights, safetensors or a state dict of torch. Or a callable from images (B, 3, S, S) in [0, 1],
            at the size of the slot, to features (B, ...), such as any extractor of `brainmodels.features`. Of an
            extractor the pooled features are used, else its tokens. An opened network is
            returned as it is.
        device: Device of a network that is loaded. A callable gets its images there.

    Raises:
        LayoutError: No such file, or weights that are not those of the slot.
        UnsafePickleError: A file of torch that holds more than tensors.
        BrainDataError: An unknown slot, or a callable without a name.
    """
    _check_slot(slot)
    if isinstance(source, Network):
        return source
    if callable(source):
        name = _name_of(source)
        return Network(name, False, lambda images: {EMBEDDING: _tensor(source(images), name)}, _fingerprint_of(source))
    check_source(f"slot {slot}", source)
    if slot == "clip_vit_l14_openai":
        statistics: dict[str, Any] = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}
        tower = open_clip_features(f"open_clip:{CLIP}", weights=source, tokens=None, **statistics).to(device)
        return Network(slot, True, lambda images: {EMBEDDING: tower.encode(images).pooled}, tower.fingerprint())
    model = seeded(0, lambda: _build(slot))
    load_strictly(model, source)
    model.eval().requires_grad_(False).to(device)
    return Network(slot, True, _Layers(model, LAYERS[slot]), _fingerprint(slot, model))


def open_text_slot(
    source: str | Path | Network | Callable[[Sequence[str]], Any], device: str | torch.device = "cpu"
) -> Network:
    """The text tower that fills the slot "clip_vit_l14_openai".

    Args:
        source: File of weights, or a callable from a list of texts to (n, d). An opened network is returned as it is.
        device: Device of a network that is loaded.

    Raises:
        LayoutError: No such file, or weights that are not those of the slot.
        UnsafePickleError: A file of torch that holds more than tensors.
        BrainDataError: A callable without a name.
        ImportError: open_clip_torch is not installed.
    """
    slot = "clip_vit_l14_openai"
    if isinstance(source, Network):
        return source
    if callable(source):
        return Network(_name_of(source), False, source, _fingerprint_of(source))
    try:
        import open_clip
    except ImportError as error:
        raise need("open_clip_torch", "the text tower of CLIP") from error
    check_source(f"slot {slot}", source)
    sizes: Any = open_clip.get_model_config(CLIP)
    model = seeded(0, lambda: open_clip.CLIP(**sizes))
    load_strictly(model, source)
    model.eval().requires_grad_(False).to(device)
    tokenizer: Any = open_clip.get_tokenizer(CLIP)

    @torch.no_grad()
    def features(texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        parts = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        return np.concatenate([model.encode_text(tokenizer(part).to(device)).cpu().numpy() for part in parts])

    return Network(slot, True, features, _fingerprint(slot, model))


class _Layers:
    """A torchvision classifier as a function from images in [0, 1] to the outputs of some of its layers."""

    def __init__(self, model: nn.Module, layers: Sequence[str]):
        self.model, self._found = model, {}
        for layer in layers:
            model.get_submodule(layer).register_forward_hook(self._keep(layer))
        parameter = next(model.parameters())
        self._mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=parameter.device)[:, None, None]
        self._std = torch.tensor(IMAGENET_DEFAULT_STD, device=parameter.device)[:, None, None]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        self.model((images - self._mean) / self._std)
        found, self._found = self._found, {}
        return found

    def _keep(self, layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._found[layer.removeprefix("module.")] = output

        return hook


class _SwAV(nn.Module):
    """A module with exactly the names of the published file, so that all of it can be checked."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        backbone.fc = nn.Identity()
        backbone.projection_head = nn.Sequential(
            nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 128)
        )
        backbone.prototypes = nn.Linear(128, 3000, bias=False)
        self.module = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)


def _build(slot: str) -> nn.Module:
    """The architecture of a slot.

    Inception's published weights expect images in [-1, 1]. `transform_input` converts images that were normalised by
    the ImageNet mean and std. Without it nothing fails, and the number is wrong.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise need("torchvision", f"the slot {slot}") from error
    if slot == "alexnet":
        return models.alexnet(weights=None)
    if slot == "inception_v3":
        return models.inception_v3(weights=None, init_weights=False, transform_input=True)
    if slot == "efficientnet_b1":
        return models.efficientnet_b1(weights=None)
    return _SwAV(models.resnet50(weights=None))


def _check_slot(slot: str) -> None:
    if slot not in SLOTS:
        raise BrainDataError(f"expected a slot of {', '.join(SLOTS)}, got {slot!r}{near_names(slot, list(SLOTS))}")


def _name_of(source: Callable) -> str:
    name = getattr(source, "name", None) or getattr(source, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>" or "@" in name or name in SLOTS:
        raise BrainDataError(
            f"expected a callable with a name, which becomes the name of the metric, got {name or source!r}"
        )
    return name


def _fingerprint_of(source: Callable) -> str | None:
    told: Any = getattr(source, "fingerprint", None)
    fingerprint: Any = told() if callable(told) else told
    return fingerprint


def _fingerprint(slot: str, model: nn.Module) -> str:
    content = {"slot": slot, "weights": weights_hash(model), "versions": dict(library_versions("torchvision"))}
    return json_digest(content, compact=False)


def _tensor(found: Any, name: str) -> Tensor:
    """Features as a tensor, from a tensor, an array or a `FeatureOutput`."""
    if hasattr(found, "pooled") and hasattr(found, "tokens"):
        found = found.tokens if found.pooled is None else found.pooled
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(found)
    if not isinstance(found, Tensor) or found.ndim < 2:
        got = f"{tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise AxisError(f"expected features (B, ...) from {name}, got {got}")
    return found
