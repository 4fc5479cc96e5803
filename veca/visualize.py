"""What a VECA sees: maps of what the cores read, and features as colours.

Numbers come as tensors; the `draw_` functions put them on matplotlib axes that the caller has made.

Shapes: B images, C cores, P patches = rows * cols, E embedding dim.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .backbone import VECA
from .features import AttentionMaps, Features

__all__ = [
    "PatchPCA",
    "core_pixels",
    "core_shares",
    "draw_core_map",
    "draw_image",
    "features_and_maps",
    "fit_patch_pca",
    "map_limit",
    "pca_rgb",
]

_INK, _PAPER = "#1b1f24", "#ffffff"


class PatchPCA(NamedTuple):
    """Directions along which patch features vary most, and the range shown as colour.

    Attributes:
        mean: (E,).
        components: (3, E), orthonormal, largest variance first; the largest entry of each is positive.
        low, high: (3,), projections shown as 0 and 1.
        explained: (3,), shares of the variance.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor
    explained: Tensor


def features_and_maps(
    model: VECA, images: Tensor, num_cores: int | None = None, blocks: Sequence[int] = (-1,)
) -> tuple[Features, list[AttentionMaps]]:
    """`forward_features` and the `attention_maps` of several blocks from a single pass.

    Args:
        model: with update="parallel", as by default.
        images, num_cores: as in `VECA.forward_features`.
        blocks: which blocks, negative from the end.

    Returns:
        (the features, maps in the order of `blocks`).
    """
    layers = [model.blocks[block] for block in blocks]
    if any(layer.update != "parallel" for layer in layers):
        raise ValueError(f"expected a model with update='parallel', got {layers[0].update!r}")
    arguments, positions = {}, {}

    def keep_arguments(layer, given):
        arguments[layer] = given

    def keep_positions(step, given, raw_xy):
        positions[step] = raw_xy

    handles = [layer.attn.register_forward_pre_hook(keep_arguments) for layer in layers]
    handles += [step.register_forward_hook(keep_positions) for step in model.core_steps]
    try:
        features = model.forward_features(images, num_cores)
    finally:
        for handle in handles:
            handle.remove()
    start = model.core_bank.raw_xy[: features.num_cores]
    maps = []
    for block, layer in zip(blocks, layers, strict=True):
        index = block % len(model.blocks)
        raw_xy = positions[model.core_steps[index - 1]] if index else start
        parts = layer.attn.maps(*arguments[layer.attn][:5])
        core_xy = raw_xy.tanh().expand(len(images), -1, -1)
        maps.append(AttentionMaps(*parts, core_xy=core_xy, grid_size=features.grid_size))
    return features, maps


def core_shares(maps: AttentionMaps, cores: Sequence[int], image: int = 0) -> Tensor:
    """How strongly patches move some cores, in multiples of an even spread.

        share_cp = P ||sum_h A_cp^h v_p^h W_o^h|| / sum_p' ||sum_h A_cp'^h v_p'^h W_o^h||

    Args:
        maps: from `VECA.attention_maps`.
        cores: which ones.
        image: which one of the batch.

    Returns:
        (len(cores), rows, cols) with mean 1 over the patches.
    """
    active, patches = maps.core_map.shape[1:]
    if wrong := [core for core in cores if not 0 <= core < active]:
        raise ValueError(f"expected cores from 0 to {active - 1}, got {wrong}")
    return (patches * maps.core_map[image, list(cores)]).unflatten(-1, maps.grid_size)


def core_pixels(core_xy: Tensor, height: int, width: int) -> Tensor:
    """Core positions (..., 2), (x, y) in (-1, 1), in pixels: the centre of the top left pixel is (0, 0)."""
    sides = core_xy.new_tensor((width, height))
    return (core_xy + 1) / 2 * sides - 0.5


def fit_patch_pca(patches: Tensor, clip: float = 0.01) -> PatchPCA:
    """Principal components of patch features. Fit once and show every size with them: colours then compare.

    Args:
        patches: (N, E), of one or more images.
        clip: share of the patches beyond either end of the colour range.
    """
    if patches.ndim != 2 or len(patches) < 2 or patches.shape[1] < 3:
        raise ValueError(f"expected patches (N, E) with N of 2 and E of 3 or more, got {tuple(patches.shape)}")
    x = patches.double()
    mean = x.mean(0)
    variances, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))  # ascending
    components = vectors[:, -3:].flip(1).T
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    projected = (x - mean) @ components.T
    ends = torch.tensor([clip, 1 - clip], dtype=x.dtype, device=x.device)
    low, high = projected.quantile(ends, 0)
    return PatchPCA(mean, components, low, high, variances[-3:].flip(0) / variances.sum())


def pca_rgb(patches: Tensor, pca: PatchPCA) -> Tensor:
    """Patch features (..., E) as colours (..., 3) in [0, 1]; the first component is red."""
    projected = (patches.double() - pca.mean) @ pca.components.T
    return ((projected - pca.low) / (pca.high - pca.low).clamp_min(1e-12)).clamp(0, 1).float()


def map_limit(shares: Tensor, most: float = 32.0) -> float:
    """Range of a colour scale for maps of shares: a factor that 99.5 % of them stay within, 1.05 to `most`."""
    deviation = shares.double().clamp_min(1e-6).log().abs().flatten()
    return min(max(math.exp(deviation.quantile(0.995).item()), 1.05), most)


def draw_image(axes: Any, image: Tensor, core_xy: Tensor | None = None) -> None:
    """An image, and dots where cores are; the first core is ringed.

    Args:
        axes: matplotlib's.
        image: (3, height, width) in [0, 1].
        core_xy: (C, 2), (x, y) in (-1, 1).
    """
    axes.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="lanczos")
    axes.set_axis_off()
    if core_xy is None:
        return
    x, y = core_pixels(core_xy.cpu().float(), *image.shape[1:]).T.numpy()
    axes.scatter(x, y, s=12, c=_PAPER, edgecolors=_INK, linewidths=0.7)
    axes.scatter(x[:1], y[:1], s=70, facecolors="none", edgecolors=_PAPER, linewidths=2.8)
    axes.scatter(x[:1], y[:1], s=70, facecolors="none", edgecolors=_INK, linewidths=1.2)


def draw_core_map(axes: Any, share: Tensor, xy: Tensor, limit: float) -> Any:
    """One core's map on a logarithmic, colour-blind safe scale around 1, and a dot where the core is.

    Args:
        axes: matplotlib's.
        share: (rows, cols), from `core_shares`.
        xy: (2,), the core's position.
        limit: the scale runs from 1 / limit to limit.

    Returns:
        matplotlib's image, whose values are natural logarithms of shares, for a colour bar.
    """
    values = share.cpu().double().clamp_min(1e-6).log().numpy()
    end = math.log(limit)
    shown = axes.imshow(np.clip(values, -end, end), cmap="PuOr_r", vmin=-end, vmax=end, interpolation="nearest")
    x, y = core_pixels(xy.cpu().float(), *share.shape).numpy()
    axes.scatter([x], [y], s=34, c=_PAPER, edgecolors=_INK, linewidths=1.2, zorder=3, clip_on=False)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.5, share.shape[1] - 0.5), ylim=(share.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    return shown
