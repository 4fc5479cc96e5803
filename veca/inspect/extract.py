"""Features of image files, written as arrays and pictures."""

import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor

from ..data.images import IMAGE_SUFFIXES, load_image
from ..data.names import stem
from ..model.backbone import VECA
from ..model.features import Features, single
from .visualize import feature_figure, normalised

__all__ = ["extract_features", "read_image"]

_log = logging.getLogger(__name__)


def read_image(file: str | Path, size: int | None = None) -> Tensor:
    """An image file as a tensor.

    Args:
        file: image file, as for `data.load_image`.
        size: longer side in pixels; None keeps the size of the file.

    Returns:
        (3, height, width), fp32 in [0, 1].

    Raises:
        FileNotFoundError: no such file.
        ValueError: a size below 1, or a file that cannot be decoded.
    """
    if size is not None and size < 1:
        raise ValueError(f"expected a size of at least 1 pixel, got {size}")
    image = load_image(file)
    if size is not None:
        ratio = size / max(image.size)
        image = image.resize([max(round(side * ratio), 1) for side in image.size], Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def extract_features(
    model: VECA,
    files: Sequence[str | Path],
    out: str | Path,
    size: int | None = None,
    num_cores: int | None = None,
    note: str = "",
) -> Iterator[tuple[Path, ...]]:
    """Write the features of image files one by one, as `<name>.npz` and as a picture `<name>.png`.

    Without matplotlib the arrays are written alone, and a warning says so. The picture is that of `feature_figure`, and
    the arrays are fp32:

        global_token  (E,)
        patches       (rows, cols, E)
        cores         (C, E)
        core_xy       (C, 2)
        image_size    (height, width) in pixels, as the model saw the image

    Args:
        model: a model in evaluation mode.
        files: image files, whose names without suffix must differ.
        out: folder, made if absent.
        size: longer side in pixels; None keeps the size of each file.
        num_cores: C; None means `model.budget`.
        note: text for the title of each picture.

    Yields:
        (npz file, png file) of each image, or (npz file,).

    Raises:
        ValueError: two files of one name, or a file that cannot be decoded.
    """
    stems = [stem(file, IMAGE_SUFFIXES) for file in files]
    if twice := sorted({name for name in stems if stems.count(name) > 1}):
        raise ValueError(f"expected images with different names, got several called {', '.join(twice)}")
    drawn = find_spec("matplotlib") is not None
    if not drawn:
        _log.warning('no pictures are written, because they need matplotlib; pip install "veca[brain]"')
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for file, name in zip(files, stems, strict=True):
        image = read_image(file, size)
        height, width = image.shape[1:]
        title = ", ".join(filter(None, (Path(file).name, f"{height} x {width} px", note)))
        if drawn:
            figure, features = feature_figure(model, image, num_cores, title)
        else:
            features = _features(model, image, num_cores)
        arrays, picture = out / f"{name}.npz", out / f"{name}.png"
        np.savez(
            arrays,
            global_token=_array(features.global_token),
            patches=_array(features.patches.unflatten(1, single(features.grid_size))),
            cores=_array(features.cores),
            core_xy=_array(features.core_xy),
            image_size=np.array([height, width]),
        )
        if drawn:
            figure.savefig(picture, dpi=80)
        yield (arrays, picture) if drawn else (arrays,)


@torch.no_grad()
def _features(model: VECA, image: Tensor, num_cores: int | None) -> Features:
    return model.forward_features(normalised(model, image), num_cores)


def _array(batch: Tensor) -> np.ndarray:
    return batch[0].float().cpu().numpy()
