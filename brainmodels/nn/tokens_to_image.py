"""Turn tokens into pictures: the nearest picture of a bank, or one drawn by convolutions.

    draw = ConvDecoder.fit(tokens, images, noise=0.5, device="cuda")  # tokens and pictures of training images
    pixels = draw(decoded_tokens)                                    # (n, 3, H, W) in [0, 1]

There is no public generator for VECA tokens. These are the choices:

| class | draws | tokens without a grid, such as cores |
|---|---|---|
| `NearestImage` | the nearest picture of a bank: what it found, not what was seen; needs no training | yes |
| `ConvDecoder` | the layout that the tokens describe; the rest is blurred | no |
| `TokenAdapter` | what a generator for other tokens makes of them | yes |

Every score of pixels names the choice. Shapes: n images, N images of a bank, m tokens, d token width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from veca.hashes import hex_digest, json_digest

from ..errors import AxisError, BrainDataError, IdError
from ..features.arrays import Ids
from ..features.weights import seeded
from .token_map import TokenMap, Tokens, check_shape, read

__all__ = ["Blend", "ConvDecoder", "DecoderSize", "NearestImage", "TokensToImage"]

BLOCK = 2**24  # count of numbers of a bank that are in memory at a time
NORM_GROUPS = 8


class TokensToImage(Protocol):
    """Any map from tokens to pictures.

    Attributes:
        name: Name that is printed with every score of the pictures.
        fingerprint: Twelve hexadecimal digits that change with weights, bank and settings. They are printed too.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, tokens: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) fp32 in [0, 1], drawn from tokens (n, m, d)."""
        ...


class NearestImage:
    """The picture of a bank whose tokens have the highest cosine with the given ones, over all m x d numbers together.

    Args:
        tokens: (N, m, d) Tokens of the bank, which should be training images. An array may be memory-mapped and fp16.
        images: (N, H, W, 3) Pictures of the same images, uint8.
        ids: (N,) Ids of the same images.
        centre: Whether to subtract the mean of the bank from both sides first. Tokens have a large part in common, so
            without this the cosines of any two images are alike.

    Attributes:
        ids: (N,) Ids of the bank.
        name: Text with the size of the bank, on which every score depends.

    Raises:
        AxisError: Lengths or shapes do not fit.
        IdError: Ids repeat.
        BrainDataError: Tokens of the bank have no direction, or are not finite.
    """

    def __init__(self, tokens: Tokens, images: np.ndarray, ids: Ids, centre: bool = True):
        _check_images(images)
        self.ids = np.asarray(ids, dtype=str)
        if tokens.ndim != 3 or not len(tokens) == len(images) == len(self.ids) > 0:
            raise AxisError(
                f"expected tokens (N, m, d), images and ids of the same N images, got {tuple(tokens.shape)}, "
                f"{tuple(images.shape)} and {len(self.ids)} ids"
            )
        if len(set(self.ids.tolist())) != len(self.ids):
            raise IdError(f"expected unique ids, got {len(self.ids) - len(set(self.ids.tolist()))} that repeat")
        self.tokens, self.images, self.centre = tokens, images, centre
        self.name = f"nearest_image@{len(self.ids)}"
        self._step = max(1, BLOCK // math.prod(tokens.shape[1:]))
        self._mean = torch.zeros(math.prod(tokens.shape[1:]))
        if centre:
            total: Any = sum(self._part(start).double().sum(0) for start in self._starts())
            self._mean = (total / len(self.ids)).float()
        self._norms = torch.cat([self._part(start).norm(dim=1) for start in self._starts()])
        self._check_directions()

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with `centre` and with ids, tokens and pictures of the bank."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        parts = [slice(start, start + self._step) for start in self._starts()]
        tokens, images = (read(self.tokens, part) for part in parts), (self.images[part] for part in parts)
        content = hex_digest(chain(tokens, images))
        shapes = [list(self.tokens.shape), list(self.images.shape)]
        return json_digest(["nearest_image", self.centre, shapes, self.ids.tolist(), content])

    def __call__(self, tokens: Tensor) -> Tensor:
        """Nearest pictures of the bank.

        Args:
            tokens: (n, m, d) Tokens.

        Returns:
            (n, 3, H, W) fp32 in [0, 1], on the device of the tokens.

        Raises:
            AxisError: Tokens of another shape.
            BrainDataError: Tokens that are not finite.
        """
        found = np.array(self.images[self._nearest(tokens).cpu().numpy()])  # (n, H, W, 3)
        return torch.from_numpy(found).to(tokens.device).permute(0, 3, 1, 2).float() / 255  # (n, 3, H, W)

    def ids_of(self, tokens: Tensor) -> list[str]:
        """Ids of the nearest images. Of equally near ones, the first in the bank is taken.

        Args:
            tokens: (n, m, d) Tokens.
        """
        return self.ids[self._nearest(tokens).cpu().numpy()].tolist()

    def _nearest(self, tokens: Tensor) -> Tensor:
        """Rows (n,) of the bank. The bank is read once, one block at a time."""
        check_shape(tokens, tuple(self.tokens.shape[1:]), self.name)
        query = tokens.float().flatten(1) - self._mean.to(tokens.device)  # (n, m d)
        if not query.isfinite().all():
            raise BrainDataError("expected finite tokens, got NaN or infinity")
        best = torch.full((len(query),), -torch.inf, device=query.device)
        row = torch.zeros(len(query), dtype=torch.long, device=query.device)
        for start in self._starts():
            part = (self._part(start) / self._norms[start : start + self._step, None]).to(query.device)
            value, index = (query @ part.T).max(1)  # (n,); the norm of the query does not change which is best
            row = torch.where(value > best, start + index, row)
            best = torch.maximum(value, best)
        return row

    def _starts(self) -> range:
        return range(0, len(self.ids), self._step)

    def _part(self, start: int) -> Tensor:
        """A block (step, m d) of the bank, centred."""
        return read(self.tokens, slice(start, start + self._step)).flatten(1) - self._mean

    def _check_directions(self) -> None:
        bad = ~(self._norms > 1e-6 * (self._norms + self._mean.norm()))
        if bad.any():
            row = int(bad.int().argmax())
            raise BrainDataError(
                f"expected finite tokens that differ from {'their mean' if self.centre else 'zero'}, got a distance of "
                f"{float(self._norms[row]):.3g} for {self.ids[row]} ({int(bad.sum())} of {len(self.ids)} images fail)"
                + ("; a bank needs two different images, or centre=False" if self.centre else "")
            )


@dataclass(frozen=True)
class DecoderSize:
    """Sizes of a `ConvDecoder`. The default turns 16 x 16 tokens into 128 pixels a side.

    Attributes:
        num_tokens, token_width: Number m of tokens, a square number, and their width d.
        widths: Number of channels before the first doubling of the grid, and after each doubling.
        cell: Number of pixels a side that each place of the last grid draws (Shi et al., arXiv 1609.05158). A larger
            cell is coarser and cheaper.

    Raises:
        BrainDataError: `num_tokens` is not a square number, or there are no widths, or a cell is below 1 pixel.
    """

    num_tokens: int
    token_width: int
    widths: tuple[int, ...] = (256, 128, 64, 32)
    cell: int = 1

    def __post_init__(self):
        if math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise BrainDataError(
                f"expected a square number of tokens, row by row, got {self.num_tokens}; map tokens without a grid, "
                "such as cores, to one by a TokenAdapter, or take NearestImage"
            )
        if not self.widths or self.cell < 1:
            raise BrainDataError(f"expected at least one width and a cell of 1 pixel, got {self.widths}, {self.cell}")

    @classmethod
    def small(cls, num_tokens: int, token_width: int) -> "DecoderSize":
        """A size for CPUs: eight pixels a side for each token, so 8 x 8 tokens become 64 pixels.

        Args:
            num_tokens: Number m of tokens, a square number.
            token_width: Width d of a token.
        """
        return cls(num_tokens, token_width, (64, 32), 4)

    @property
    def grid(self) -> int:
        """Number of tokens a side."""
        return math.isqrt(self.num_tokens)

    @property
    def patch(self) -> int:
        """Number of pixels a side that belong to one token."""
        return self.cell * 2 ** (len(self.widths) - 1)

    @property
    def pixels(self) -> int:
        """Side of the picture in pixels."""
        return self.grid * self.patch


class ConvDecoder(TokenMap):
    """Convolutional decoder from tokens of a square grid, row by row, to a square picture.

    1. A 1 x 1 convolution changes the token width to the first width.
    2. For each further width, the grid is doubled (nearest), and two 3 x 3 convolutions with GroupNorm and SiLU follow.
    3. A last convolution draws the cells.
    4. What a linear map draws from each single token is added. It learns fast, which helps if training is short.
    5. A sigmoid ends the decoder.

    Args:
        size: Sizes of all layers.

    Attributes:
        name: Text with the side of the picture.
    """

    kind = "conv_decoder"
    size_type = DecoderSize

    def __init__(self, size: DecoderSize):
        super().__init__(size)
        self.name = f"{self.kind}[{size.pixels}px]"
        width = size.widths[0]
        layers = [nn.Conv2d(size.token_width, width, 1)]  # (B, d, side, side) to (B, width, side, side)
        for after in size.widths[1:]:
            layers += [nn.Upsample(scale_factor=2), *_convolution(width, after), *_convolution(after, after)]
            width = after
        last = nn.Conv2d(width, 3 * size.cell**2, 3, padding=1)
        self.body = nn.Sequential(*layers, last, nn.PixelShuffle(size.cell))
        self.linear = nn.Sequential(nn.Conv2d(size.token_width, 3 * size.patch**2, 1), nn.PixelShuffle(size.patch))
        self.to(memory_format=torch.channels_last)

    @classmethod
    def fit(
        cls,
        tokens: Tokens,
        images: np.ndarray,
        size: DecoderSize | None = None,
        *,
        noise: float = 0.0,
        steps: int = 2_000,
        batch_size: int = 16,
        lr: float = 3e-3,
        seed: int = 0,
        device: str | torch.device = "cpu",
        feature_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        progress: bool = False,
    ) -> Self:
        """Train a decoder on the mean absolute error of pixels, plus what `feature_loss` adds.

        Args:
            tokens: (n, m, d) Tokens of training images only.
            images: (n, H, W, 3) Pictures of the same images in the same order, uint8, with the side that the size
                draws.
            size: Sizes of all layers. None takes the default for these tokens.
            noise: Largest sd of the noise on the tokens, in units of their sd. The sd is drawn uniformly from 0 for
                each image. A decoder that has only seen exact tokens draws the errors of decoded ones. Choose about the
                root mean squared error of decoding, in standardised tokens.
            steps: Number of training steps.
            batch_size: Number of images in a step.
            lr: Highest learning rate of AdamW. It falls along a cosine.
            seed: Seed of the weights, the order of images and the noise.
            device: Device on which the decoder trains and stays.
            feature_loss: Function from drawn and true images, (B, 3, H, W) in [0, 1], to a scalar that is added to the
                loss.
            progress: Whether to show a bar.

        Raises:
            AxisError: The shapes do not fit each other or the size.
            BrainDataError: Tokens that form no square grid or are not finite, or a noise or number of steps out of
                range.
        """
        _check_images(images)
        if tokens.ndim != 3 or not len(tokens) == len(images) > 0:
            raise AxisError(
                "expected tokens (n, m, d) and images of the same n images, got "
                f"{tuple(tokens.shape)} and {tuple(images.shape)}"
            )
        size = size or DecoderSize(tokens.shape[1], tokens.shape[2])
        check_shape(tokens, (size.num_tokens, size.token_width), cls.kind)
        if tuple(images.shape[1:3]) != (size.pixels, size.pixels):
            raise AxisError(
                f"expected images of {size.pixels} x {size.pixels} pixels, which {size} draws, got "
                f"{images.shape[1]} x {images.shape[2]}; read them at that size, or change widths or cell"
            )
        model = seeded(seed, lambda: cls(size))

        def loss(drawn: Tensor, rows: Tensor) -> Tensor:
            true = torch.from_numpy(images[rows.numpy()]).to(drawn.device).permute(0, 3, 1, 2).float() / 255
            error = (drawn - true).abs().mean()
            return error if feature_loss is None else error + feature_loss(drawn, true)

        options = {"noise": noise, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
        return model._learn(tokens, loss, device=device, progress=progress, **options)

    def _map(self, tokens: Tensor) -> Tensor:
        side = self.size.grid
        x = tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (B, d, side, side), channels last in memory
        return (self.body(x) + self.linear(x)).float().sigmoid()  # (B, 3, pixels, pixels)


class Blend:
    """Weighted mean of two pictures of the same tokens, by pixel: share * low + (1 - share) * semantic.

    Published pixel scores often come from such blends. NeuroFlow "++" takes 0.65 of NeuroFlow's image and 0.35 of a
    blurry one that MindEye2 made.

    Args:
        low: Map that draws the layout. Its picture is resized (bilinear, antialiased) to that of `semantic`.
        semantic: Map that draws the content.
        share: Share of `low`, from 0 to 1.

    Attributes:
        name, fingerprint: Name and fingerprint of both maps and the share.

    Raises:
        BrainDataError: A share outside 0 to 1.
    """

    def __init__(self, low: TokensToImage, semantic: TokensToImage, share: float = 0.35):
        if not 0 <= share <= 1:
            raise BrainDataError(f"expected a share from 0 to 1, got {share}")
        self.low, self.semantic, self.share = low, semantic, float(share)
        self.name = f"{share:g} {low.name} + {1 - share:g} {semantic.name}"

    @property
    def fingerprint(self) -> str:
        return json_digest(["blend", self.share, self.low.fingerprint, self.semantic.fingerprint])

    def __call__(self, tokens: Tensor) -> Tensor:
        """Draw and blend pictures.

        Args:
            tokens: (n, m, d) Tokens.

        Returns:
            (n, 3, H, W) fp32 in [0, 1], of the size of `semantic`.
        """
        semantic = self.semantic(tokens)
        low = self.low(tokens).to(semantic.device)
        if low.shape[2:] != semantic.shape[2:]:
            low = F.interpolate(low, semantic.shape[2:], mode="bilinear", antialias=True)
        return (self.share * low + (1 - self.share) * semantic).clamp(0, 1)  # rounding may leave [0, 1]


def _convolution(channels: int, after: int) -> list[nn.Module]:
    norm = nn.GroupNorm(math.gcd(after, NORM_GROUPS), after)
    return [nn.Conv2d(channels, after, 3, padding=1), norm, nn.SiLU()]


def _check_images(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise AxisError(f"expected images (n, height, width, 3) uint8, got {images.dtype} {tuple(images.shape)}")
