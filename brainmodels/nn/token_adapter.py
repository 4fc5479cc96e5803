"""From one space of tokens to another, learned on images alone: how a generator for other tokens can be used.

adapter = TokenAdapter.fit(veca_tokens, clip_tokens, steps=20_000, device="cuda")  # rows of the same images
pixels = AdaptedGenerator(adapter, unclip, "sdxl_unclip", fingerprint="...")(decoded_tokens)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from veca.hashes import json_digest

from ..errors import AxisError, BrainDataError, NormalizationError
from ..features.weights import seeded
from .sit import sincos_positions
from .token_map import TokenMap, Tokens, check_shape, read, statistics

__all__ = ["AdaptedGenerator", "AdapterSize", "TokenAdapter"]


@dataclass(frozen=True)
class AdapterSize:
    """Sizes of a `TokenAdapter`.

    Attributes:
        num_tokens, token_width: of the tokens that come in, (m1, d1).
        to_tokens, to_width: of those that go out, (m2, d2).
        width, depth, heads: of the transformer between them.
    """

    num_tokens: int
    token_width: int
    to_tokens: int
    to_width: int
    width: int = 512
    depth: int = 2
    heads: int = 8

    def __post_init__(self):
        if self.width % 2 or self.width % self.heads:
            raise BrainDataError(f"expected an even width divisible by heads={self.heads}, got {self.width}")


class TokenAdapter(TokenMap):
    """Tokens (n, m1, d1) to tokens (n, m2, d2) of another extractor, in that extractor's units.

    A linear map of features, one over tokens (the identity at first where m1 = m2), a position code, and blocks of a
    pre-norm transformer over the m2 tokens. The target is standardised by feature too, so that none outweighs others.

    Attributes:
        name: says both shapes.
    """

    kind = "token_adapter"
    size_type = AdapterSize

    def __init__(self, size: AdapterSize):
        super().__init__(size)
        self.name = f"{self.kind}[{size.num_tokens}x{size.token_width} to {size.to_tokens}x{size.to_width}]"
        self.register_buffer("to_mean", torch.zeros(size.to_width))
        self.register_buffer("to_std", torch.ones(size.to_width))
        self.embed = nn.Linear(size.token_width, size.width)
        self.mix = nn.Linear(size.num_tokens, size.to_tokens)
        if size.num_tokens == size.to_tokens:
            nn.init.eye_(self.mix.weight)
        self.register_buffer("positions", sincos_positions(size.to_tokens, size.width), persistent=False)
        self.blocks = nn.Sequential(*(Block(size.width, size.heads, qkv_bias=True) for _ in range(size.depth)))
        self.out = nn.Linear(size.width, size.to_width)

    @classmethod
    def fit(
        cls,
        tokens: Tokens,
        targets: Tokens,
        size: AdapterSize | None = None,
        *,
        noise: float = 0.0,
        steps: int = 2_000,
        batch_size: int = 32,
        lr: float = 1e-3,
        seed: int = 0,
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> Self:
        """Least squares in standardised targets.

        Args:
            tokens: (n, m1, d1), of training images only.
            targets: (n, m2, d2), of the same images in the same order.
            size: None takes the default size for these shapes.
            noise: largest sd of the noise on the tokens that come in, in units of their sd; drawn uniformly from 0 for
                each image. About the error of the tokens that will be decoded from a brain.
            steps, batch_size, lr: of AdamW, whose rate falls along a cosine.
            seed: of weights, order and noise.
            device: where it trains and stays.
            progress: show a bar.

        Raises:
            AxisError: the shapes do not fit each other or the size.
            BrainDataError: values that are not finite.
        """
        if tokens.ndim != 3 or targets.ndim != 3 or len(tokens) != len(targets):
            raise AxisError(
                "expected tokens (n, m1, d1) and targets (n, m2, d2) of the same images, got "
                f"{tuple(tokens.shape)} and {tuple(targets.shape)}"
            )
        size = size or AdapterSize(*tokens.shape[1:], *targets.shape[1:])
        check_shape(tokens, (size.num_tokens, size.token_width), cls.kind)
        check_shape(targets, (size.to_tokens, size.to_width), f"the targets of {cls.kind}")
        model = seeded(seed, lambda: cls(size))
        mean, std = statistics(targets)
        model.to_mean.copy_(mean), model.to_std.copy_(std)

        def loss(out: Tensor, rows: Tensor) -> Tensor:
            return ((out - read(targets, rows).to(out.device)) / model.to_std).square().mean()

        options = {"noise": noise, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
        return model._learn(tokens, loss, device=device, progress=progress, **options)

    def _map(self, tokens: Tensor) -> Tensor:
        x = self.mix(self.embed(tokens).mT).mT + self.positions  # (B, m2, W)
        return self.out(self.blocks(x)) * self.to_std + self.to_mean


class AdaptedGenerator:
    """`TokensToImage` by a generator for other tokens, such as an unCLIP pipeline that the user holds.

    Args:
        adapter: to the tokens of the generator.
        generator: from tokens (n, m2, d2) to images (n, 3, H, W), floats in [0, 1]; all n at once, in parts of its own.
        name: of the generator.
        fingerprint: of its weights and sampling; any text that changes where an image would.

    Attributes:
        name: of both parts.
        fingerprint: twelve hexadecimal digits of both.
    """

    def __init__(self, adapter: TokenAdapter, generator: Callable[[Tensor], Tensor], name: str, fingerprint: str):
        if not name or not fingerprint:
            raise BrainDataError(
                f"expected a name and a fingerprint of the generator, got {name!r} and {fingerprint!r}"
            )
        self.adapter, self.generator = adapter, generator
        self.name = f"{adapter.name} + {name}"
        self._generator_fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        return json_digest(["adapted_generator", self.adapter.fingerprint, self.name, self._generator_fingerprint])

    def __call__(self, tokens: Tensor) -> Tensor:
        """(n, 3, H, W) fp32 in [0, 1] of tokens (n, m1, d1).

        Raises:
            AxisError: the generator gave another shape or another number of images.
            NormalizationError: it gave values outside [0, 1], or none.
        """
        images = self.generator(self.adapter(tokens))
        if not isinstance(images, Tensor) or images.ndim != 4 or tuple(images.shape[:2]) != (len(tokens), 3):
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise AxisError(f"expected images ({len(tokens)}, 3, height, width) of {self.name}, got {got}")
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            low, high = float(images.min()), float(images.max())
            raise NormalizationError(
                f"expected images in [0, 1] of {self.name}, got {low:.3g} to {high:.3g}; divide by 255, or map "
                "[-1, 1] to (x + 1) / 2 and clamp, in the generator"
            )
        return images.float()
