"""Map tokens of one extractor to those of another, learned on images alone, to use a generator for the other tokens.

    adapter = TokenAdapter.fit(veca_tokens, clip_tokens, steps=20_000, device="cuda")  # rows of the same images
    pixels = AdaptedGenerator(adapter, unclip, "sdxl_unclip", fingerprint="...")(decoded_tokens)  # (n, 3, H, W)

Shapes: n images, m1 and d1 number and width of the tokens that come in, m2 and d2 of those that go out, W model width.
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
        num_tokens, token_width: Number m1 and width d1 of the tokens that come in.
        to_tokens, to_width: Number m2 and width d2 of the tokens that go out.
        width, depth, heads: Width W, number of blocks and number of heads of the transformer between them.

    Raises:
        BrainDataError: W is odd or not divisible by the number of heads.
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
    """Map from tokens (n, m1, d1) to tokens (n, m2, d2) of another extractor, in the units of that extractor.

    1. A linear map of features.
    2. A linear map over tokens, at first the identity if m1 = m2.
    3. A position code.
    4. Blocks of a pre-norm transformer over the m2 tokens.
    5. A linear map to the features of the target.

    The target is also standardised by feature, so that no feature outweighs the others.

    Args:
        size: Sizes of all layers.

    Attributes:
        name: Text with both shapes.
    """

    kind = "token_adapter"
    size_type = AdapterSize
    to_mean: Tensor
    to_std: Tensor
    positions: Tensor

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
        """Train an adapter by least squares in standardised targets.

        Args:
            tokens: (n, m1, d1) Tokens of training images only.
            targets: (n, m2, d2) Tokens of the same images in the same order.
            size: Sizes of all layers. None takes the default for these shapes.
            noise: Largest sd of the noise on the tokens that come in, in units of their sd. The sd is drawn uniformly
                from 0 for each image. Choose about the error of the tokens that will be decoded from a brain.
            steps: Number of training steps.
            batch_size: Number of images in a step.
            lr: Highest learning rate of AdamW. It falls along a cosine.
            seed: Seed of the weights, the order of images and the noise.
            device: Device on which the adapter trains and stays.
            progress: Whether to show a bar.

        Raises:
            AxisError: The shapes do not fit each other or the size.
            BrainDataError: Values that are not finite, or a size, noise or number of steps that is out of range.
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
        model.to_mean.copy_(mean)
        model.to_std.copy_(std)

        def loss(out: Tensor, rows: Tensor) -> Tensor:
            return ((out - read(targets, rows).to(out.device)) / model.to_std).square().mean()

        options = {"noise": noise, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
        return model._learn(tokens, loss, device=device, progress=progress, **options)

    def _map(self, tokens: Tensor) -> Tensor:
        x = self.mix(self.embed(tokens).mT).mT + self.positions  # (B, m2, W)
        return self.out(self.blocks(x)) * self.to_std + self.to_mean  # (B, m2, d2)


class AdaptedGenerator:
    """`TokensToImage` through a generator for other tokens, such as an unCLIP pipeline that the user provides.

    Args:
        adapter: Map to the tokens of the generator.
        generator: Function from tokens (n, m2, d2) to images (n, 3, H, W), floats in [0, 1]. It gets all n at once and
            may split them.
        name: Name of the generator.
        fingerprint: Fingerprint of the generator's weights and sampling: any text that changes when an image would.

    Attributes:
        name: Name of adapter and generator.
        fingerprint: Twelve hexadecimal digits of adapter and generator.

    Raises:
        BrainDataError: An empty name or fingerprint.
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
        """Generate images.

        Args:
            tokens: (n, m1, d1) Tokens.

        Returns:
            (n, 3, H, W) fp32 in [0, 1].

        Raises:
            AxisError: Tokens of another shape, or a generator that returned another shape or number of images.
            NormalizationError: The generator returned values outside [0, 1], or NaN.
        """
        images = self.generator(self.adapter(tokens))  # (n, m2, d2) to (n, 3, H, W)
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
