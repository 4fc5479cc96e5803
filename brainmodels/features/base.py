"""What every feature extractor shares: checked input, normalisation, and a fingerprint of all that changes a number.

output = extractor("gabor").encode(images)  # FeatureOutput(tokens (B, m, d), pooled (B, p))
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
        tokens: (B, m, d), one row a place of the picture, row by row; None where the extractor gives none.
        pooled: (B, p), one vector a picture; None where the extractor gives none.
    """

    tokens: Tensor | None
    pooled: Tensor | None


class Extractor(nn.Module):
    """Images in [0, 1] to features. Frozen; a subclass gives `_encode` and `settings`.

    Args:
        name: under which `extractor` finds it, or any other.
        input_size: side in pixels of the square that the features are taken of. Images of another size are resized to
            it by antialiased bicubic interpolation, whole, their aspect changed where they are not square.
        mean, std: of each channel, subtracted and divided by; zeros and ones leave images as they are.
        value_map: applied before them. "identity", or "mindeye2", (x + 1) / 2, which the code of that paper applies to
            images that are in [0, 1] already: another token space, with which no statistics may be shared.
        dtype: in which the features are computed; they are given as fp32.

    Attributes:
        name, input_size: see above.
        libraries: distributions whose versions may change a number, beside torch.
        note: what must be printed with results; "" where nothing must.
    """

    libraries: tuple[str, ...] = ()
    note: str = ""

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
        """Features of a batch.

        Args:
            images: (B, 3, height, width), floats in [0, 1], on any device.

        Raises:
            AxisError: not (B, 3, height, width) of floats.
            NormalizationError: values outside [0, 1], such as of images that were normalised already.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise AxisError(
                f"expected images (B, 3, height, width) as floats in [0, 1], got {images.dtype} {tuple(images.shape)}"
            )
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            low, high = images.min().item(), images.max().item()
            raise NormalizationError(
                f"expected images in [0, 1], which {self.name} normalises itself, got {low:.3g} to {high:.3g}"
            )
        tokens, pooled = self._encode(self._prepare(images.to(self.mean.device, torch.float32)))
        return FeatureOutput(*(None if x is None else x.float().contiguous() for x in (tokens, pooled)))

    forward = encode

    def train(self, mode: bool = True) -> "Extractor":
        """Nothing: extractors stay in evaluation mode, whatever they are part of."""
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
        """Twelve hexadecimal digits: the start of the SHA-256 of `config()`."""
        return hex_digest([self.config()], 12)

    def settings(self) -> dict[str, Any]:
        """What `config` adds for this kind of extractor: weights, layer, pooling. Plain JSON values."""
        raise NotImplementedError

    def _encode(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Tokens and pooled of prepared images."""
        raise NotImplementedError

    def _prepare(self, images: Tensor) -> Tensor:
        """Resized and normalised images, in the dtype of the computation."""
        size = (self.input_size, self.input_size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        if self.value_map == "mindeye2":
            images = (images + 1) / 2
        return ((images - self.mean) / self.std).to(getattr(torch, self.dtype))

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (f"{self.name!r}, {self.input_size} px, {self.fingerprint()}", self.note)))
