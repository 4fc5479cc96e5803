"""The base of all feature extractors: checks of the input, normalisation, and a fingerprint.

    output = extractor("gabor").encode(images)  # FeatureOutput(tokens (B, m, d), pooled (B, p))
    extractor("gabor").fingerprint()            # 12 hexadecimal digits

The fingerprint covers everything that changes a number: class, input size and normalisation, weights, settings and
library versions.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from veca.hashes import hex_digest

from ..errors import AxisError, BrainDataError, NormalizationError, check_choice
from ..versions import release

__all__ = ["Extractor", "FeatureOutput"]

DTYPES = ("float32", "float16", "bfloat16")
VALUE_MAPS = ("identity", "mindeye2")


class FeatureOutput(NamedTuple):
    """Features of a batch of images, fp32.

    Attributes:
        tokens: (B, m, d) One row for each place of the picture, in row-major order. None if the extractor gives no
            tokens.
        pooled: (B, p) One vector for each picture. None if the extractor gives no pooled features.
    """

    tokens: Tensor | None
    pooled: Tensor | None


class Extractor(nn.Module):
    """Frozen map from images in [0, 1] to features. A subclass defines `_encode` and `settings`.

    Args:
        name: Name for `extractor`, messages and reports.
        input_size: Side in pixels of the square from which features are computed. Other images are resized to it as a
            whole, by antialiased bicubic interpolation. This changes the aspect of images that are not square.
        mean, std: Mean that is subtracted from each channel, and deviation that it is divided by. Zeros and ones change
            nothing.
        value_map: Map that is applied before them, "identity" or "mindeye2". The latter is (x + 1) / 2, which
            MindEye2's code applies to images that are in [0, 1] already. It gives another token space, so do not share
            statistics with it.
        dtype: Type in which features are computed. They are returned as fp32.

    Attributes:
        name, input_size: As given.
        libraries: Distributions beside torch whose versions may change a number.
        note: Text that must be printed with results, or "".

    Raises:
        BrainDataError: An input size below 1, or a mean or std without 3 channels.
    """

    libraries: tuple[str, ...] = ()
    note: str = ""
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        input_size: int,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        value_map: str = "identity",
        dtype: str = "float32",
    ):
        super().__init__()
        if isinstance(input_size, bool) or not isinstance(input_size, int) or input_size < 1:
            raise BrainDataError(f"expected an input size of {name} of at least 1 pixel, got {input_size!r}")
        if not len(mean) == len(std) == 3:
            raise BrainDataError(f"expected a mean and std for each of 3 channels, got {len(mean)} and {len(std)}")
        self.name, self.input_size = name, input_size
        self.value_map = check_choice("value_map", value_map, VALUE_MAPS)
        self.dtype = check_choice("dtype", dtype, DTYPES)
        self._mean, self._std = [float(x) for x in mean], [float(x) for x in std]
        self.register_buffer("mean", torch.tensor(self._mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(self._std)[:, None, None], persistent=False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> FeatureOutput:
        """Features of a batch of images.

        Args:
            images: (B, 3, height, width) Floats in [0, 1], on any device.

        Raises:
            AxisError: Images are not (B, 3, height, width) of floats.
            NormalizationError: Values outside [0, 1], such as those of normalised images.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise AxisError(
                f"expected images (B, 3, height, width) as floats in [0, 1], got {images.dtype} {tuple(images.shape)}"
            )
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            low, high = images.min().item(), images.max().item()
            raise NormalizationError(
                f"expected images in [0, 1], because {self.name} normalises them itself, got {low:.3g} to {high:.3g}"
            )
        tokens, pooled = self._encode(self._prepare(images.to(self.mean.device, torch.float32)))
        return FeatureOutput(*(None if x is None else x.float().contiguous() for x in (tokens, pooled)))

    forward = encode

    def train(self, mode: bool = True) -> "Extractor":
        """Has no effect: an extractor stays in evaluation mode, also as part of another module."""
        return super().train(False)

    def config(self) -> str:
        """Everything that changes a number, as canonical JSON: keys sorted, no spaces."""
        content = {
            "class": type(self).__name__,
            "name": self.name,
            "input": {
                "size": self.input_size,
                "resize": "bicubic",
                "antialias": True,
                "crop": None,
                "range": [0, 1],
                "value_map": self.value_map,
                "mean": self._mean,
                "std": self._std,
            },
            "dtype": self.dtype,
            "settings": self.settings(),
            "versions": {name: release(name) for name in ("torch", *self.libraries)},
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    def fingerprint(self) -> str:
        """The first twelve hexadecimal digits of the SHA-256 of `config()`."""
        return hex_digest([self.config()], 12)

    def settings(self) -> dict[str, Any]:
        """What this kind of extractor adds to `config`: weights, layer, pooling. Plain JSON values."""
        raise NotImplementedError

    def _encode(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Tokens and pooled features of prepared images."""
        raise NotImplementedError

    def _prepare(self, images: Tensor) -> Tensor:
        """Resized and normalised images, in the type of the computation."""
        size = (self.input_size, self.input_size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        if self.value_map == "mindeye2":
            images = (images + 1) / 2
        return ((images - self.mean) / self.std).to(getattr(torch, self.dtype))

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (f"{self.name!r}, {self.input_size} px, {self.fingerprint()}", self.note)))
