"""The backbones that are measured: VECA of any size and budget, and models of timm.

`LINEAR_BACKBONES` are backbones of timm 1.0.31 whose FLOPs grow by 4 when the sides double, from 512 to 2048 px. Their
size is about that of VECA-small (21.6 M parameters). Each is the strongest of its kind:

    xcit_small_12_p16_224   25.9 M  cross-covariance: channels attend to channels. Stride 16 throughout, width
                                    and depth of VECA-small: the only isotropic peer, 83.3 % on ImageNet
    efficientvit_b2         21.8 M  ReLU linear attention with multi-scale convolutions; the size nearest
    davit_tiny              27.6 M  windows, then channels; 82.7 %, ahead of Swin's and SwinV2's windows of 7 and 8
    pvt_v2_b2_li            22.0 M  every patch reads 7 x 7 pooled keys, the nearest relative of a fixed number of
                                    cores; 82.2 %
    mambaout_tiny           24.2 M  gated convolutions without attention

Accuracies are those of timm's results/results-imagenet.csv at 224 px (XCiT distilled). The other two are not listed
there. All but XCiT are pyramids, whose features end at stride 32, with a quarter of the positions.

These models are not linear and are left out: Hiera, MaxViT, CAFormer, NextViT, Twins, and PVT v2 without pooled keys.
They attend globally in some stage.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..inspect.cost import Cost, counted_flops, forward_cost, peak_bytes
from ..model.backbone import VECA
from ..model.features import Features
from ..zoo.registry import create_model, list_models

__all__ = ["LINEAR_BACKBONES", "BackboneCase", "Prepared", "agrees_with_formula", "build_model", "prepare"]

LINEAR_BACKBONES = ("xcit_small_12_p16_224", "efficientvit_b2", "davit_tiny", "pvt_v2_b2_li", "mambaout_tiny")
_IMAGE_SETS = 2  # batches of images that calls use in turn


@dataclass(frozen=True)
class BackboneCase:
    """A case is one model, pass and mode at one size.

    Attributes:
        model: name of the model.
        num_cores: number of active cores; None for a model without cores.
        size: side of the images in pixels.
        batch: number of images.
        pass_: "inference" or "train".
        mode: "eager", "blocks" or "compiled".
        dtype: name of a torch dtype.
    """

    model: str
    num_cores: int | None
    size: int
    batch: int
    pass_: str
    mode: str
    dtype: str

    @property
    def contestant(self) -> tuple[Any, ...]:
        """All fields but size and batch. Cases that agree in these differ only in scale."""
        return self.model, self.num_cores, self.pass_, self.mode, self.dtype


def build_model(name: str, num_cores: int | None = None, size: int = 224) -> nn.Module:
    """Build a backbone with random weights and no classifier, for square images.

    Args:
        name: a name from `veca.list_models()` or from timm.
        num_cores: C of a VECA, which is also the size of its core bank.
        size: side of the images in pixels, for models that need it.
    """
    if name in list_models():
        return create_model(name, num_cores=num_cores)
    attempts: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"img_size": size})
    for options in attempts:
        try:
            return timm.create_model(name, num_classes=0, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
    return timm.create_model(name, num_classes=0)  # a convolutional model takes no size


@dataclass
class Prepared:
    """A model ready to be timed.

    Attributes:
        case: the case.
        model: the model on its device, in its dtype.
        device: device where it runs.
        flops: FLOPs of one forward pass of one image, as torch counts them.
        cost: FLOPs by part, if the formula of `veca.inspect.cost` agrees with the count; else None.
    """

    case: BackboneCase
    model: nn.Module
    device: torch.device
    flops: int
    cost: Cost | None

    @functools.cached_property
    def calls(self) -> list[Callable[[], object]]:
        """One call for each of two batches of images. Models that compile have already compiled."""
        case, dtype = self.case, getattr(torch, self.case.dtype)
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (case.batch, 3, case.size, case.size)
        batches = [torch.randn(shape, generator=generator, device=self.device) for _ in range(_IMAGE_SETS)]
        features = functools.partial(_dense_features, self.model)
        if case.mode == "compiled":
            features = torch.compile(features, dynamic=False)
        calls: list[Callable[[], object]]
        if case.pass_ == "inference":
            calls = [functools.partial(features, images.to(dtype)) for images in batches]
        else:
            optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=self.device.type == "cuda")
            calls = [functools.partial(_step, features, optimizer, images, dtype) for images in batches]
        if case.mode != "eager":
            calls[0]()
        return calls

    def context(self) -> AbstractContextManager[object]:
        """The context in which the calls run."""
        return torch.inference_mode() if self.case.pass_ == "inference" else nullcontext()

    def peak(self) -> int | None:
        """Peak bytes of a call beyond weights, optimizer and images, measured after the model has run.

        None for a compiled graph on a CPU, which hides its buffers.
        """
        if self.case.mode != "eager" and self.device.type == "cpu":
            return None
        with self.context():
            return peak_bytes(self.calls[0], self.device)


def prepare(case: BackboneCase, device: torch.device, counts: dict[tuple[Any, ...], int] | None = None) -> Prepared:
    """Build a model and count its FLOPs.

    Args:
        case: the case.
        device: device where it will run.
        counts: FLOPs by model, cores and size, a cache that this function reads and extends. Counting takes about a
            second for each case.

    Raises:
        ValueError: mode "blocks" for a model without blocks.
    """
    torch.manual_seed(0)
    with device:
        model = build_model(case.model, case.num_cores, case.size)
    counts = {} if counts is None else counts
    key = (case.model, case.num_cores, case.size)
    if key not in counts:
        options = {"num_cores": case.num_cores} if isinstance(model, VECA) else {}
        counts[key] = counted_flops(model, case.size, case.size, **options)
    flops = counts[key]
    known = isinstance(model, VECA | VisionTransformer)
    cost = forward_cost(model, case.size, case.size, case.num_cores) if known else None
    inference = case.pass_ == "inference"
    model = model.to(device, getattr(torch, case.dtype) if inference else torch.float32).train(not inference)
    if case.mode == "blocks":
        blocks = getattr(model, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential):
            raise ValueError(f"expected a model with blocks for mode='blocks', got {case.model}")
        for block in blocks:
            block.compile(dynamic=False)
    return Prepared(case, model, device, flops, cost if cost and cost.model == flops else None)


def agrees_with_formula(vit: VisionTransformer) -> bool:
    """Whether `forward_cost` agrees with torch's count. Some ViTs of timm have another attention or FFN."""
    return forward_cost(vit, 224, 224).model == counted_flops(vit, 224, 224)


def _dense_features(model: Any, images: Tensor) -> tuple[Tensor, ...]:
    """All tokens, because large images are used for dense features."""
    out = model.forward_features(images)
    if isinstance(out, Features):
        return out.cores, out.patches
    return tuple(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))


def _step(
    features: Callable[[Tensor], tuple[Tensor, ...]],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    dtype: torch.dtype,
) -> None:
    """One training step: forward, backward from the sum of the tokens' mean squares, AdamW."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        out = features(images)
    loss: Any = sum(tokens.float().square().mean() for tokens in out)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
