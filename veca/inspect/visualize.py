"""Pictures of a VECA: maps of what the cores read, and features as colours.

Values are tensors. The `draw_` functions draw them on matplotlib axes that the caller has made.

Shapes: B images, C cores, P patches = rows * cols, E embedding dim.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.backbone import VECA
from ..model.features import AttentionMaps, Features

__all__ = [
    "PatchPCA",
    "core_pixels",
    "core_shares",
    "draw_core_map",
    "draw_image",
    "feature_figure",
    "fit_patch_pca",
    "map_limit",
    "normalised",
    "pca_rgb",
]

_INK, _PAPER = "#1b1f24", "#ffffff"
_PANELS = 4  # columns of a figure


class PatchPCA(NamedTuple):
    """Directions along which patch features vary most, and the range shown as colour.

    Attributes:
        mean: mean of the features, (E,).
        components: orthonormal directions (3, E), largest variance first. The largest entry of each is positive.
        low, high: projections shown as 0 and as 1, (3,).
        explained: shares of the variance, (3,).
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor
    explained: Tensor


def core_shares(maps: AttentionMaps, cores: Sequence[int], image: int = 0) -> Tensor:
    """How strongly patches move some cores, in multiples of an even spread.

        share_cp = P ||sum_h A_cp^h v_p^h W_o^h|| / sum_p' ||sum_h A_cp'^h v_p'^h W_o^h||

    Args:
        maps: attention maps, from `VECA.attention_maps`.
        cores: numbers of the cores.
        image: number of the image in the batch.

    Returns:
        (len(cores), rows, cols) with mean 1 over the patches.

    Raises:
        ValueError: a core that is not active.
    """
    active, patches = maps.core_map.shape[1:]
    if wrong := [core for core in cores if not 0 <= core < active]:
        raise ValueError(f"expected cores from 0 to {active - 1}, got {wrong}")
    return (patches * maps.core_map[image, list(cores)]).unflatten(-1, maps.grid_size)


def core_pixels(core_xy: Tensor, height: int, width: int) -> Tensor:
    """Core positions in pixels. The centre of the top left pixel is (0, 0).

    Args:
        core_xy: positions (..., 2): (x, y) in (-1, 1).
        height, width: size of the image in pixels.

    Returns:
        (..., 2).
    """
    sides = core_xy.new_tensor((width, height))
    return (core_xy + 1) / 2 * sides - 0.5


def fit_patch_pca(patches: Tensor, clip: float = 0.01) -> PatchPCA:
    """Fit principal components of patch features. Pictures made with the same components have comparable colours.

    Args:
        patches: patch features (N, E) of one or more images; N of 2 or more, E of 3 or more.
        clip: share of the patches beyond each end of the colour range.

    Raises:
        ValueError: another shape.
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
    """Convert patch features (..., E) to colours (..., 3) in [0, 1]. The first component is red."""
    projected = (patches.double() - pca.mean) @ pca.components.T
    return ((projected - pca.low) / (pca.high - pca.low).clamp_min(1e-12)).clamp(0, 1).float()


def map_limit(shares: Tensor, most: float = 32.0) -> float:
    """Range of a colour scale for maps of shares.

    Args:
        shares: shares, as from `core_shares`.
        most: largest range.

    Returns:
        A factor from 1.05 to `most`. 99.5 % of the shares are between 1 / factor and factor, unless `most` is less.
    """
    deviation = shares.double().clamp_min(1e-6).log().abs().flatten()
    return min(max(math.exp(deviation.quantile(0.995).item()), 1.05), most)


def draw_image(axes: Any, image: Tensor, core_xy: Tensor | None = None) -> None:
    """Draw an image, and dots at the cores. The first core has a ring.

    Args:
        axes: matplotlib axes.
        image: (3, height, width) in [0, 1].
        core_xy: positions of the cores (C, 2), (x, y) in (-1, 1); None draws no cores.
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
    """Draw one core's map on a logarithmic, colour-blind safe scale around 1, and a dot at the core.

    Args:
        axes: matplotlib axes.
        share: map (rows, cols), from `core_shares`.
        xy: position of the core, (2,).
        limit: end of the scale, which runs from 1 / limit to limit.

    Returns:
        matplotlib's image for a colour bar. Its values are natural logarithms of shares.
    """
    values = share.cpu().double().clamp_min(1e-6).log().numpy()
    end = math.log(limit)
    shown = axes.imshow(np.clip(values, -end, end), cmap="PuOr_r", vmin=-end, vmax=end, interpolation="nearest")
    x, y = core_pixels(xy.cpu().float(), *share.shape).numpy()
    axes.scatter([x], [y], s=34, c=_PAPER, edgecolors=_INK, linewidths=1.2, zorder=3, clip_on=False)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.5, share.shape[1] - 0.5), ylim=(share.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    return shown


def normalised(model: VECA, image: Tensor) -> Tensor:
    """An image (3, height, width) in [0, 1] as the batch (1, 3, height, width) that the model takes."""
    mean, std = (image.new_tensor(x)[:, None, None] for x in (model.mean, model.std))
    weight = model.patch_embed.proj.weight
    return ((image - mean) / std)[None].to(weight.device, weight.dtype)


@torch.no_grad()
def feature_figure(model: VECA, image: Tensor, num_cores: int | None = None, title: str = "") -> tuple[Any, Features]:
    """Draw the features of one image: its cores, its patches at several budgets, and what moves the first cores.

    The upper row shows the image with the cores of the last block. Beside it are the patches as colours, at the
    largest budget and at smaller ones. The principal components are those of the largest budget. Titles give the mean
    cosine similarity to the patches at that budget. The lower row shows how strongly each patch moves the first cores
    in the last block, on one scale (`core_shares`).

    Args:
        model: a model in evaluation mode, with update="parallel".
        image: (3, height, width) in [0, 1]. It is normalised here with the model's mean and std.
        num_cores: the largest budget; None means `model.budget`.
        title: title of the figure.

    Returns:
        (matplotlib's Figure, the features at the largest budget).

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib, which is not installed; pip install "veca[brain]"') from error
    batch = normalised(model, image)
    features, (maps,) = model.forward_maps(batch, num_cores)
    pca = fit_patch_pca(features.patches[0])

    figure = Figure(figsize=(4 * _PANELS, 2 * (3.6 * _proportion(image) + 0.3) + 0.4), layout="constrained")
    figure.suptitle(title)
    above, below = figure.subplots(2, _PANELS)
    grid = [n * p for n, p in zip(maps.grid_size, model.patch_embed.patch_size, strict=True)]
    stretch = image.new_tensor([grid[1] / image.shape[2], grid[0] / image.shape[1]])  # not 1 if padded or cropped
    draw_image(above[0], image, (features.core_xy[0].to(stretch) + 1) * stretch - 1)
    above[0].set_title(f"{features.num_cores} cores, the first ringed")
    budgets = _budgets(model, features.num_cores)
    for axes, budget in zip(above[1:], budgets, strict=False):
        patches = model.forward_features(batch, budget).patches[0]
        cosine = F.cosine_similarity(patches.float(), features.patches[0].float(), dim=-1).mean().item()
        axes.imshow(pca_rgb(patches, pca).unflatten(0, maps.grid_size).cpu().numpy(), interpolation="nearest")
        note = "" if budget == features.num_cores else f", cosine {cosine:.3f}"
        axes.set_title(f"patches with {budget} cores{note}")
    shown = range(min(_PANELS, features.num_cores))
    shares = core_shares(maps, list(shown))
    limit = map_limit(shares)
    for axes, core in zip(below, shown, strict=False):
        scale = draw_core_map(axes, shares[core], maps.core_xy[0, core], limit)
        axes.set_title(f"what moves core {core}")
    bar = figure.colorbar(scale, ax=below, shrink=0.8, ticks=[-math.log(limit), 0, math.log(limit)])
    bar.ax.set_yticklabels([f"1/{limit:.3g}", "even", f"{limit:.3g}x"])
    for axes in (*above, *below[len(shown) :]):
        axes.set_axis_off()
    return figure, features


def _budgets(model: VECA, largest: int) -> list[int]:
    """Up to three budgets to compare, largest first: all, the trained one nearest a quarter, the smallest trained."""
    trained = [budget for budget in model.trained_budgets if budget < largest]
    if not trained:
        return [largest]
    quarter = min(trained, key=lambda budget: abs(budget - largest / 4))
    return sorted({largest, quarter, trained[0]}, reverse=True)


def _proportion(image: Tensor) -> float:
    return min(max(image.shape[1] / image.shape[2], 0.3), 3.0)
