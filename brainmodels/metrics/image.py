"""Similarity of decoded and real images: pixels, structure, and the features of several networks.

    for score in image_scores(real, decoded, ids, decoded_ids, weights={"alexnet": "alexnet.safetensors"}):
        print(score)
    # pixcorr ↑ 0.322 [0.295, 0.349], chance ...
    # inception ↑ not available (needs weights inception_v3; pass --weights inception=FILE ...)

Both sets are (N, 3, H, W) in [0, 1]; their sizes may differ. Blurred images win `pixcorr` and both SSIMs, so do not
report pixel scores alone. The Fréchet distance is not offered: at a thousand images its bias exceeds the differences
between models. `brainmodels.metrics.kid` compares the two sets as distributions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.ids import Ids
from ..errors import AxisError, BrainDataError, IdError, NormalizationError, near_names, need
from ..versions import library_versions
from .encoding import pearson
from .protocols import join
from .record import Metric, Score
from .registry import metric, register
from .retrieval import correlation_matrix, two_way_pairs
from .slots import EMBEDDING, SLOTS, Network, missing_weights, open_slot
from .statistics import RESAMPLES, score_images

__all__ = ["PROTOCOLS", "SSIM_VARIANTS", "ImageProtocol", "examples", "image_scores", "pixcorr", "ssim", "video_scores"]

SSIM_VARIANTS = ("2d", "columns")
_GREY = (0.2125, 0.7154, 0.0721)


@dataclass(frozen=True)
class ImageProtocol:
    """Sizes to which images are brought before they are compared. The whole image is resized to a square, bilinearly.

    Attributes:
        name: Name of the protocol, printed with every score.
        first: Side in pixels to which both sets are resized before anything else. None skips this step.
        pixels: Side in pixels for `pixcorr` and the SSIMs.
        sizes: Side in pixels for each slot of networks.
        antialias: Whether to filter before sampling if an image shrinks.
    """

    name: str
    first: int | None
    pixels: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    antialias: bool = True


PROTOCOLS = {
    "mindeye2": ImageProtocol(
        "mindeye2",
        256,
        425,
        {"alexnet": 256, "inception_v3": 342, "clip_vit_l14_openai": 224, "efficientnet_b1": 255, "swav_rn50": 224},
    ),
    "braindiffuser": ImageProtocol("braindiffuser", None, 425, dict.fromkeys(SLOTS, 224)),
}

# name, slot, layer, judge
_COLUMNS = (
    ("alexnet2", "alexnet", "features.4", "two_way"),
    ("alexnet5", "alexnet", "features.11", "two_way"),
    ("inception", "inception_v3", "avgpool", "two_way"),
    ("clip", "clip_vit_l14_openai", EMBEDDING, "two_way"),
    ("effnet_b1", "efficientnet_b1", "avgpool", "correlation_distance"),
    ("swav", "swav_rn50", "avgpool", "correlation_distance"),
)


def pixcorr(real: np.ndarray | Tensor, decoded: np.ndarray | Tensor) -> np.ndarray:
    """Pearson correlation of the pixels of each pair, over all channels together.

    Args:
        real, decoded: (N, 3, H, W) Images of one size, in [0, 1].

    Returns:
        (N,) fp64.

    Raises:
        AxisError: Shapes differ or are not (N, 3, H, W).
        NormalizationError: Values outside [0, 1].
    """
    real, decoded = _pair(real, decoded)
    return pearson(real.flatten(1).numpy(), decoded.flatten(1).numpy(), axis=1)


def ssim(real: np.ndarray | Tensor, decoded: np.ndarray | Tensor, variant: str = "2d") -> np.ndarray:
    """Structural similarity of each pair of grey images, computed by scikit-image.

    The settings are those of Wang et al. (2004):

    | setting | value |
    |---|---|
    | window | Gaussian, sigma 1.5, radius 5 |
    | covariance | population |
    | constants | K 0.01 and 0.03, range 1 |
    | border | 5 pixels left out |
    | grey | .2125 R + .7154 G + .0721 B |

    Args:
        real, decoded: (N, 3, H, W) Images of one size, in [0, 1].
        variant: "2d", or "columns", the mean over image columns of their one-dimensional SSIM. The second is what
            `multichannel=True` meant for a grey image in scikit-image up to 0.19. Since 0.20 scikit-image ignores that
            keyword without a warning. One pair can score 0.55 by one variant and 0.37 by the other.

    Returns:
        (N,) fp64.

    Raises:
        AxisError: Shapes differ or are not (N, 3, H, W).
        NormalizationError: Values outside [0, 1].
        BrainDataError: An unknown variant.
        ImportError: scikit-image is not installed.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise need("scikit-image", "ssim") from error
    if variant not in SSIM_VARIANTS:
        raise BrainDataError(f"expected an SSIM variant of {', '.join(SSIM_VARIANTS)}, got {variant!r}")
    real, decoded = _pair(real, decoded)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    options |= {"channel_axis": -1 if variant == "columns" else None}
    pairs = zip(_grey(real), _grey(decoded), strict=True)
    return np.array([structural_similarity(one, two, **options) for one, two in pairs])


def image_scores(
    real: np.ndarray | Tensor,
    decoded: np.ndarray | Tensor,
    real_ids: Ids,
    decoded_ids: Ids,
    weights: Mapping[str, str | Path | Network | Callable[[Tensor], Any]] | None = None,
    protocol: str | ImageProtocol = "mindeye2",
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    variants: Sequence[str] = SSIM_VARIANTS,
    **conditions,
) -> list[Score]:
    """All image scores. A score whose network is absent says which weights it needs.

    Memory: pixels at side 425 take 2.2 MB an image, and the features of one network up to 0.9 MB an image (AlexNet).
    Both sets are held in memory, one network at a time.

    Args:
        real: (N, 3, H, W) Real images in [0, 1].
        decoded: (M, 3, h, w) Decoded images in [0, 1]. They are matched to the real ones by id.
        real_ids, decoded_ids: Ids of the images, one for each row.
        weights: Weights by slot (`brainmodels.metrics.slots.SLOTS`): a local file, what `open_slot` returned for one,
            or a callable from images (B, 3, S, S) in [0, 1] to features, such as an extractor. A callable scores as
            `two_way[name]` or `correlation_distance[name]`, and the slot's own columns stay not available.
        protocol: "mindeye2", "braindiffuser", or another `ImageProtocol`.
        batch_size: Number of images in a forward pass.
        device: Device of the networks.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        clusters: (n,) Labels of images that are drawn together, such as their subject. None draws single images.
        variants: Variants of SSIM. "columns" takes about 0.2 s an image, "2d" a tenth of that.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: Images or features of a wrong shape, or ids and images that differ in number.
        IdError: A real id repeats, or a real image was not decoded.
        NormalizationError: Values outside [0, 1].
        BrainDataError: An unknown slot or protocol.
    """
    real, decoded = _joined(real, decoded, real_ids, decoded_ids, 4)
    made = {"resamples": resamples, "seed": seed, "clusters": clusters} | conditions
    return _scores(real[:, None], decoded[:, None], weights or {}, protocol, batch_size, device, "", made, variants)


def video_scores(
    real: np.ndarray | Tensor,
    decoded: np.ndarray | Tensor,
    real_ids: Ids,
    decoded_ids: Ids,
    weights: Mapping[str, str | Path | Network | Callable[[Tensor], Any]] | None = None,
    protocol: str | ImageProtocol = "mindeye2",
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    **conditions,
) -> list[Score]:
    """Image scores of each frame, averaged over frames, and identification of whole clips.

    The names of the frame scores begin with "video_". `video_clip_two_way[...]` joins the features of all frames of a
    clip into one vector.

    Args:
        real: (N, T, 3, H, W) Real clips in [0, 1].
        decoded: (M, T, 3, h, w) Decoded clips in [0, 1], with as many frames. They are matched to the real ones by id.
        real_ids, decoded_ids: Ids of the clips, one for each row.
        weights, protocol, batch_size, device: As in `image_scores`.
        resamples, seed, clusters, conditions: As in `image_scores`.

    Raises:
        AxisError: The clips have unequal numbers of frames, or as in `image_scores`.
    """
    real, decoded = _joined(real, decoded, real_ids, decoded_ids, 5)
    if real.shape[1] != decoded.shape[1]:
        raise AxisError(f"expected decoded clips of {real.shape[1]} frames, as the real ones, got {decoded.shape[1]}")
    made = {"resamples": resamples, "seed": seed, "clusters": clusters, "n_of": "clips"} | conditions
    return _scores(real, decoded, weights or {}, protocol, batch_size, device, "video_", made)


def examples(values: np.ndarray, direction: str, count: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of images to show together: "random" ones, and the "best" and "worst" by a score.

    Args:
        values: (n,) Score of each image.
        direction: "up" if a higher score is better, else "down".
        count: Number of images of each kind, at most n.
        seed: Seed of the random rows. Store it with the figure.

    Returns:
        (count,) rows under "random", "best" and "worst".

    Raises:
        AxisError: Fewer than `count` values, or values that are not finite.
        BrainDataError: An unknown direction.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not 1 <= count <= len(values) or not np.isfinite(values).all():
        raise AxisError(f"expected {count} or more finite values (n,), got {values.shape}")
    if direction not in ("up", "down"):
        raise BrainDataError(f"expected direction 'up' or 'down', got {direction!r}")
    order = np.argsort(-values if direction == "up" else values, kind="stable")
    chosen = np.random.default_rng(seed).choice(len(values), count, replace=False)
    return {"random": np.sort(chosen), "best": order[:count], "worst": order[::-1][:count]}


def _scores(
    real: Tensor,
    decoded: Tensor,
    weights: Mapping[str, Any],
    protocol: str | ImageProtocol,
    batch_size: int,
    device: str | torch.device,
    prefix: str,
    made: dict,
    variants: Sequence[str] = SSIM_VARIANTS,
) -> list[Score]:
    """Scores of clips (N, T, 3, H, W)."""
    protocol = _protocol(protocol)
    unknown = [slot for slot in weights if slot not in SLOTS]
    if unknown:
        near = near_names(unknown[0], list(SLOTS))
        raise BrainDataError(f"expected slots of {', '.join(SLOTS)}, got {unknown[0]!r}{near}")
    note = f"protocol {protocol.name}"
    if "note" in made:
        note, made = f"{note}; {made['note']}", {key: value for key, value in made.items() if key != "note"}
    scores = _pixel_scores(real, decoded, protocol, batch_size, prefix, note, made, variants)
    for slot in SLOTS:
        columns = [column for column in _COLUMNS if column[1] == slot]
        own = slot in weights and not callable(weights[slot])
        if not own:
            scores += [missing_weights(metric(prefix + name), slot) for name, *_ in columns]
        if slot not in weights:
            continue
        network = open_slot(slot, weights[slot], device)
        if not own:
            judge = columns[0][3]
            columns = [(f"{judge}[{network.name}]", slot, EMBEDDING, judge)]
        features = [_features(x, network, protocol, slot, batch_size, device) for x in (real, decoded)]
        found = made | {"features": network.fingerprint, "note": note}
        for name, _, layer, judge in columns:
            shown, guessed = (x[layer] for x in features)
            scores += _judged(prefix, name, judge, shown, guessed, found)
    return scores


def _pixel_scores(
    real: Tensor,
    decoded: Tensor,
    protocol: ImageProtocol,
    batch_size: int,
    prefix: str,
    note: str,
    made: dict,
    variants: Sequence[str],
) -> list[Score]:
    count, frames = real.shape[:2]
    table: Any = 0.0
    similar = {variant: np.zeros(count) for variant in variants}
    for frame in range(frames):
        sides = []
        for images in (real[:, frame], decoded[:, frame]):
            parts = [_resized(x, protocol, protocol.pixels) for x in images.split(batch_size)]
            sides.append(torch.cat(parts))
        first, second = (x.flatten(1).numpy() for x in sides)
        table = table + correlation_matrix(first, second) / frames
        for variant, total in similar.items():
            total += ssim(sides[0], sides[1], variant) / frames
    scores = [score_images(metric(f"{prefix}pixcorr"), np.diagonal(table), table, note=note, **made)]
    versions = library_versions("scikit-image")
    more = {"versions": versions, "note": f"{note}; scikit-image {versions['scikit-image']}"}
    return scores + [
        score_images(metric(f"{prefix}ssim_{variant}"), total, **(made | more)) for variant, total in similar.items()
    ]


def _judged(prefix: str, name: str, judge: str, real: np.ndarray, decoded: np.ndarray, found: dict) -> list[Score]:
    """Scores of one layer, from features (N, T, d): mean over frames, and whole clips where they are clips."""
    tables = []
    for frame in range(real.shape[1]):
        r = correlation_matrix(real[:, frame], decoded[:, frame])
        tables.append(two_way_pairs(r) if judge == "two_way" else 1 - r)
    table = np.mean(tables, axis=0)
    scores = [score_images(metric(prefix + name), np.diagonal(table), table, **found)]
    if prefix:
        whole = name[len(judge) + 1 : -1] if name.startswith(f"{judge}[") else name
        table = two_way_pairs(correlation_matrix(real, decoded))
        scores.append(score_images(metric(f"video_clip_two_way[{whole}]"), np.diagonal(table), table, **found))
    return scores


@torch.no_grad()
def _features(
    videos: Tensor, network: Network, protocol: ImageProtocol, slot: str, batch_size: int, device: str | torch.device
) -> dict[str, np.ndarray]:
    """Features of every frame by layer, fp32 (N, T, d)."""
    found: dict[str, list[np.ndarray]] = {}
    for images in videos.flatten(0, 1).split(batch_size):
        outputs = network.features(_resized(images, protocol, protocol.sizes[slot]).to(device))
        for layer, output in outputs.items():
            if len(output) != len(images):
                raise AxisError(f"expected features of {len(images)} images from {network.name}, got {len(output)}")
            found.setdefault(layer, []).append(output.detach().flatten(1).float().cpu().numpy())
    return {layer: np.concatenate(parts).reshape(*videos.shape[:2], -1) for layer, parts in found.items()}


def _resized(images: Tensor, protocol: ImageProtocol, size: int) -> Tensor:
    """Images (B, 3, H, W) at the side of a comparison, after the first step of the protocol."""
    for side in filter(None, (protocol.first, size)):
        if images.shape[2:] != (side, side):
            images = F.interpolate(
                images, (side, side), mode="bilinear", align_corners=False, antialias=protocol.antialias
            ).clamp(0, 1)
    return images


def _joined(real: Any, decoded: Any, real_ids: Ids, decoded_ids: Ids, axes: int) -> tuple[Tensor, Tensor]:
    real, decoded = _images("real", real, axes), _images("decoded", decoded, axes)
    if len(real) != len(real_ids):
        raise AxisError(f"expected an id for each of {len(real)} real images, got {len(real_ids)}")
    names, counts = np.unique(np.asarray(real_ids, dtype=str), return_counts=True)
    if len(names) < len(real):
        raise IdError(f"expected each real image once, got {names[counts.argmax()]} {counts.max()} times")
    joined: Any = join(real_ids, decoded_ids, decoded)  # rows of a tensor are taken as those of an array
    return real, joined


def _pair(real: Any, decoded: Any) -> tuple[Tensor, Tensor]:
    real, decoded = _images("real", real, 4), _images("decoded", decoded, 4)
    if real.shape != decoded.shape:
        raise AxisError(f"expected decoded images of shape {tuple(real.shape)}, as real, got {tuple(decoded.shape)}")
    return real, decoded


def _images(what: str, images: Any, axes: int) -> Tensor:
    images = torch.as_tensor(images).detach()
    layout = "(N, 3, H, W)" if axes == 4 else "(N, T, 3, H, W)"
    if images.ndim != axes or images.shape[-3] != 3 or not images.is_floating_point() or not images.numel():
        raise AxisError(
            f"expected {what} images {layout} as floats in [0, 1], got {images.dtype} {tuple(images.shape)}; for "
            "stored uint8 pictures with channels last, move that axis and divide by 255"
        )
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise NormalizationError(f"expected {what} images in [0, 1], got {low:.3g} to {high:.3g}")
    return images.float().cpu()


def _grey(images: Tensor) -> np.ndarray:
    return np.einsum("bchw,c->bhw", images.numpy().astype(np.float64), _GREY)


def _protocol(protocol: str | ImageProtocol) -> ImageProtocol:
    if isinstance(protocol, ImageProtocol):
        return protocol
    if protocol not in PROTOCOLS:
        near = near_names(protocol, list(PROTOCOLS))
        raise BrainDataError(f"expected a protocol of {', '.join(PROTOCOLS)}, got {protocol!r}{near}")
    return PROTOCOLS[protocol]


_TWO_WAY = "two-way identification by Pearson correlation, exhaustive, ties fail"
_DISTANCE = "mean of 1 - Pearson correlation"
_GREY_TEXT = (
    "grey at the protocol's pixels (425), sigma 1.5, radius 5, population covariance, K .01 and .03, border cut"
)
_KNOWN = [
    Metric("pixcorr", "pixel", "up", None, None, "RGB pixels at 425, Pearson correlation of each pair, mean"),
    Metric("ssim_2d", "pixel", "up", None, None, f"two-dimensional SSIM; {_GREY_TEXT}"),
    Metric("ssim_columns", "pixel", "up", None, None, f"mean over columns of one-dimensional SSIM; {_GREY_TEXT}"),
    Metric("alexnet2", "feature", "up", 0.5, "alexnet", f"AlexNet after ReLU 2; {_TWO_WAY}"),
    Metric("alexnet5", "feature", "up", 0.5, "alexnet", f"AlexNet after ReLU 5; {_TWO_WAY}"),
    Metric("inception", "semantic", "up", 0.5, "inception_v3", f"Inception-v3 average pool; {_TWO_WAY}"),
    Metric("clip", "semantic", "up", 0.5, "clip_vit_l14_openai", f"CLIP ViT-L/14 image embedding; {_TWO_WAY}"),
    Metric("effnet_b1", "semantic", "down", None, "efficientnet_b1", f"EfficientNet-B1 average pool; {_DISTANCE}"),
    Metric("swav", "semantic", "down", None, "swav_rn50", f"SwAV ResNet-50 average pool; {_DISTANCE}"),
    Metric("correlation_distance[{features}]", "feature", "down", None, None, f"features; {_DISTANCE}"),
]
for _metric in _KNOWN:
    register(_metric)
_PER_FRAME = [*_KNOWN, Metric("two_way[{features}]", "identification", "up", 0.5, None, _TWO_WAY)]
for _metric in _PER_FRAME:
    register(
        replace(_metric, name=f"video_{_metric.name}", protocol=f"of each frame, mean over frames: {_metric.protocol}")
    )
register(
    Metric(
        "video_clip_two_way[{features}]",
        "identification",
        "up",
        0.5,
        None,
        f"features of all frames of a clip as one vector; {_TWO_WAY}",
    )
)
