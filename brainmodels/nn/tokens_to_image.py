"""From tokens to pixels: the picture in a bank that is nearest, or one drawn by convolutions.

draw = ConvDecoder.fit(tokens, images, noise=0.5, device="cuda")  # of training images
pixels = draw(decoded_tokens)                                    # (n, 3, H, W) in [0, 1]

There is no public generator for VECA tokens. `NearestImage` needs no training and shows what it found, not what was
seen; `ConvDecoder` draws what the tokens say of the layout and blurs the rest; `TokenAdapter` leads to a generator for
other tokens. Cores and other tokens without a grid go through the first or the last. Every score of pixels says which.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from veca.hashes import hex_digest, json_digest

from ..errors import AxisError, BrainDataError, IdError
from ..features.weights import seeded
from .token_map import TokenMap, Tokens, check_shape, read

__all__ = ["Blend", "ConvDecoder", "DecoderSize", "NearestImage", "TokensToImage"]

BLOCK = 2**24  # numbers of a bank in memory at a time
NORM_GROUPS = 8


class TokensToImage(Protocol):
    """From tokens to pictures.

    Attributes:
        name: printed with every score of the pictures.
        fingerprint: twelve hexadecimal digits that change with weights, bank and settings; printed too.
    """

    name: str
    fingerprint: str

    def __call__(self, tokens: Tensor) -> Tensor:
        """(n, 3, H, W) fp32 in [0, 1] of tokens (n, m, d)."""


class NearestImage:
    """The image of a bank whose tokens have the highest cosine with those given, all m x d numbers together.

    Args:
        tokens: (N, m, d) of the bank, which should be training images; an array may be memory-mapped and fp16.
        images: (N, H, W, 3) uint8, the same images.
        ids: of the same images.
        centre: subtract the mean of the bank from both sides first. Without it the cosines of any two images are
            alike: tokens have a large part in common.

    Attributes:
        ids: (N,) of the bank.
        name: says the size of the bank, on which every score depends.

    Raises:
        AxisError: lengths or shapes do not fit.
        IdError: ids repeat.
        BrainDataError: tokens of the bank have no direction, or are not finite.
    """

    def __init__(self, tokens: Tokens, images: np.ndarray, ids: Sequence[str], centre: bool = True):
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
            total = sum(self._part(start).double().sum(0) for start in self._starts())
            self._mean = (total / len(self.ids)).float()
        self._norms = torch.cat([self._part(start).norm(dim=1) for start in self._starts()])
        self._check_directions()

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with ids, tokens and pictures of the bank, and with `centre`."""
        parts = [slice(start, start + self._step) for start in self._starts()]
        tokens, images = (read(self.tokens, part) for part in parts), (self.images[part] for part in parts)
        content = hex_digest(chain(tokens, images))
        shapes = [list(self.tokens.shape), list(self.images.shape)]
        return json_digest(["nearest_image", self.centre, shapes, self.ids.tolist(), content])

    def __call__(self, tokens: Tensor) -> Tensor:
        """(n, 3, H, W) fp32 in [0, 1] of tokens (n, m, d), on their device."""
        found = np.array(self.images[self._nearest(tokens).cpu().numpy()])
        return torch.from_numpy(found).to(tokens.device).permute(0, 3, 1, 2).float() / 255

    def ids_of(self, tokens: Tensor) -> list[str]:
        """Ids of the nearest images; of equally near ones, the first in the bank."""
        return self.ids[self._nearest(tokens).cpu().numpy()].tolist()

    def _nearest(self, tokens: Tensor) -> Tensor:
        """(n,) rows of the bank, which is read once, a block at a time."""
        check_shape(tokens, tuple(self.tokens.shape[1:]), self.name)
        query = tokens.float().flatten(1) - self._mean.to(tokens.device)  # (n, m d)
        if not query.isfinite().all():
            raise BrainDataError("expected finite tokens, got NaN or infinity")
        best = torch.full((len(query),), -torch.inf, device=query.device)
        row = torch.zeros(len(query), dtype=torch.long, device=query.device)
        for start in self._starts():
            part = (self._part(start) / self._norms[start : start + self._step, None]).to(query.device)
            value, index = (query @ part.T).max(1)  # the norm of the query does not change which is best
            row = torch.where(value > best, start + index, row)
            best = torch.maximum(value, best)
        return row

    def _starts(self) -> range:
        return range(0, len(self.ids), self._step)

    def _part(self, start: int) -> Tensor:
        """(step, m d) of the bank, centred."""
        return read(self.tokens, slice(start, start + self._step)).flatten(1) - self._mean

    def _check_directions(self) -> None:
        bad = ~(self._norms > 1e-6 * (self._norms + self._mean.norm()))
        if bad.any():
            row = int(bad.int().argmax())
            raise BrainDataError(
                f"expected finite tokens that differ from {'their mean' if self.centre else 'zero'}, got a distance of "
                f"{float(self._norms[row]):.3g} for {self.ids[row]}, {int(bad.sum())} such of {len(self.ids)}"
                + ("; a bank needs two different images, or centre=False" if self.centre else "")
            )


@dataclass(frozen=True)
class DecoderSize:
    """Sizes of a `ConvDecoder`; the default turns 16 x 16 tokens into 128 pixels a side.

    Attributes:
        num_tokens, token_width: m, a square number, and d.
        widths: channels before the first doubling of the grid and after each.
        cell: pixels a side that each place of the last grid draws (Shi et al., arXiv 1609.05158). Larger is coarser
            and cheaper.
    """

    num_tokens: int
    token_width: int
    widths: tuple[int, ...] = (256, 128, 64, 32)
    cell: int = 1

    def __post_init__(self):
        if math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise BrainDataError(
                f"expected a square number of tokens, row by row, got {self.num_tokens}; bring tokens without a grid, "
                "such as cores, to one by a TokenAdapter, or take NearestImage"
            )
        if not self.widths or self.cell < 1:
            raise BrainDataError(f"expected at least one width and a cell of 1 pixel, got {self.widths}, {self.cell}")

    @classmethod
    def small(cls, num_tokens: int, token_width: int) -> "DecoderSize":
        """For processors: eight pixels a side for each token, 8 x 8 tokens to 64 pixels."""
        return cls(num_tokens, token_width, (64, 32), 4)

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return math.isqrt(self.num_tokens)

    @property
    def patch(self) -> int:
        """Pixels a side of what belongs to one token."""
        return self.cell * 2 ** (len(self.widths) - 1)

    @property
    def pixels(self) -> int:
        """Side of the picture."""
        return self.grid * self.patch


class ConvDecoder(TokenMap):
    """Tokens of a square grid, row by row, to a square picture.

    A 1 x 1 convolution to the first width; for each further width the grid is doubled (nearest) and goes through two
    3 x 3 convolutions with GroupNorm and SiLU; a last one draws the cells. To that, what a linear map draws of each
    token on its own is added, which learns fast where little is trained. Then a sigmoid.

    Attributes:
        name: says the side of the picture.
    """

    kind = "conv_decoder"
    size_type = DecoderSize

    def __init__(self, size: DecoderSize):
        super().__init__(size)
        self.name = f"{self.kind}[{size.pixels}px]"
        width = size.widths[0]
        layers = [nn.Conv2d(size.token_width, width, 1)]
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
        """Mean absolute error of pixels, and what `feature_loss` adds.

        Args:
            tokens: (n, m, d), of training images only.
            images: (n, H, W, 3) uint8, the same images in the same order, of the side that the size draws.
            size: None is the default size for these tokens.
            noise: largest sd of the noise on tokens, in units of their sd; drawn uniformly from 0 for each image.
                Decoded tokens err, and a decoder that has only seen exact ones draws their errors: give about the
                root mean squared error of decoding in standardised tokens.
            steps, batch_size, lr: of AdamW, whose rate falls along a cosine.
            seed: of weights, order and noise.
            device: where it trains and stays.
            feature_loss: from drawn and true images, (B, 3, H, W) in [0, 1], to a scalar that is added.
            progress: show a bar.

        Raises:
            AxisError: the shapes do not fit each other or the size.
            BrainDataError: tokens that are not of a square grid, or not finite.
        """
        _check_images(images)
        if tokens.ndim != 3 or not len(tokens) == len(images) > 0:
            raise AxisError(
                "expected tokens (n, m, d) and images of the same n images, got "
                f"{tuple(tokens.shape)} and {tuple(images.shape)}"
            )
        size = size or DecoderSize(*tokens.shape[1:])
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
        return (self.body(x) + self.linear(x)).float().sigmoid()


class Blend:
    """Two pictures of one kind of tokens laid over each other: share * low + (1 - share) * semantic, by pixel.

    Published pixel scores are often of such blends: NeuroFlow "++" takes 0.65 of its own image and 0.35 of a blurry
    one that MindEye2 made.

    Args:
        low: of the layout; its picture is resized, bilinear and antialiased, to that of `semantic`.
        semantic: of the content.
        share: of `low`, 0 to 1.

    Attributes:
        name, fingerprint: of both and the share.
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
        """(n, 3, H, W) fp32 in [0, 1] of tokens (n, m, d), of the size of `semantic`."""
        semantic = self.semantic(tokens)
        low = self.low(tokens).to(semantic.device)
        if low.shape[2:] != semantic.shape[2:]:
            low = F.interpolate(low, semantic.shape[2:], mode="bilinear", antialias=True)
        return (self.share * low + (1 - self.share) * semantic).clamp(0, 1)  # rounding may pass the ends


def _convolution(channels: int, after: int) -> list[nn.Module]:
    norm = nn.GroupNorm(math.gcd(after, NORM_GROUPS), after)
    return [nn.Conv2d(channels, after, 3, padding=1), norm, nn.SiLU()]


def _check_images(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise AxisError(f"expected images (n, height, width, 3) uint8, got {images.dtype} {tuple(images.shape)}")
