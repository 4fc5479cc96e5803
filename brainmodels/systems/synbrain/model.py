"""SynBrain's networks: the BrainVAE, whose latent is aligned with image tokens, and how responses are drawn from it.

vae = BrainVAE(recipe.num_tokens, recipe.token_width, recipe.vae)
mapper = build_mapper(recipe.num_tokens, recipe.token_width, recipe.mapper)
responses = synthesize(vae, mapper, tokens, num_voxels=15724)  # (n, 1, 15724)

No weight depends on the number of voxels, but their order is part of what is learned: convolutions run along it.
Shapes: B trials, V voxels, m tokens, d token width, L latent length = pool / 2^num_down. Paper: arXiv 2508.10298.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint_sequential

from ...errors import AxisError, BrainDataError
from ...nn import DownStack1d, Posterior, SiT, UpStack1d, group_norm
from ...nn.noise import draw_responses
from .recipes import MapperSize, VAESize

__all__ = ["BrainVAE", "BrainVAEOutput", "adapt_parameters", "build_mapper", "synthesize"]


@dataclass(frozen=True)
class BrainVAEOutput:
    """Outputs of a BrainVAE.

    Attributes:
        reconstruction: Reconstructed responses (B, V).
        latents: Latents (B, m, d) that were decoded: a sample in training, else the mean.
        posterior: Gaussian posterior of the latents.
    """

    reconstruction: Tensor
    latents: Tensor
    posterior: Posterior


class BrainVAE(nn.Module):
    """A convolutional variational autoencoder of responses with any number of voxels.

    Voxels are the length axis of 1-D convolutions, pooled (maximum) to a fixed length; at the latent, channels are
    tokens and the length is their width. With the default sizes it has 78.31 M parameters.

    The decoder begins with a LayerNorm of each token of the latent. Shift and scale of a token are therefore lost, and
    only its direction counts.

    Args:
        num_tokens: m.
        token_width: d.
        size: everything else; None is the paper's.

    Attributes:
        checkpointing: recompute the residual stacks in the backward pass instead of keeping their activations. False.

    Raises:
        BrainDataError: sizes break a rule.
    """

    def __init__(self, num_tokens: int = 256, token_width: int = 1664, size: VAESize | None = None):
        super().__init__()
        size = VAESize() if size is None else size
        length = _latent_length(size)
        first, last = size.channels[0], size.channels[-1]
        self.num_tokens, self.token_width, self.size = num_tokens, token_width, size
        self.checkpointing = False
        self.stem = nn.Conv1d(1, size.stem, size.stem_kernel, padding=size.stem_kernel // 2)
        self.pool = nn.AdaptiveMaxPool1d(size.pool)
        self.down = DownStack1d(size.stem, size.channels, size.blocks, size.num_down)
        self.to_tokens = nn.Conv1d(last, num_tokens, 7, padding=3)
        self.mean = _perceptron(length, size.hidden, token_width)
        self.logvar = _perceptron(length, size.hidden, token_width)
        self.from_latent = _perceptron(token_width, size.hidden, length)
        self.from_tokens = nn.Conv1d(num_tokens, last, 7, padding=3)
        self.up = UpStack1d(size.channels, size.blocks + 1, size.num_down)
        self.head = nn.Sequential(group_norm(first), nn.SiLU(), nn.Conv1d(first, 1, 7, padding=3))

    def encode(self, responses: Tensor) -> Posterior:
        """The posterior of responses (B, V) or (B, 1, V).

        Raises:
            AxisError: another shape.
        """
        x = self.pool(self.stem(_one_channel(responses)))  # (B, stem, pool)
        x = self.to_tokens(self._stack(self.down, x))  # (B, m, L)
        return Posterior.of(self.mean(x), self.logvar(x))

    def decode(self, latents: Tensor, num_voxels: int) -> Tensor:
        """Responses (B, V) of latents (B, m, d).

        Raises:
            AxisError: latents of another shape, or no voxels.
        """
        if latents.ndim != 3 or latents.shape[1:] != (self.num_tokens, self.token_width):
            expected = f"(B, {self.num_tokens}, {self.token_width})"
            raise AxisError(f"expected latents {expected}, got {tuple(latents.shape)}")
        if num_voxels < 1:
            raise AxisError(f"expected at least one voxel, got num_voxels={num_voxels}")
        x = self.from_tokens(self.from_latent(latents))  # (B, channels[-1], L)
        x = self._stack(self.up, x)  # (B, channels[0], pool)
        x = F.interpolate(x, size=num_voxels, mode="linear", align_corners=True)
        return self.head(x).squeeze(1)

    def forward(self, responses: Tensor, generator: torch.Generator | None = None) -> BrainVAEOutput:
        """Encode, draw a latent (its mean in eval mode) and decode to as many voxels as came.

        Args:
            responses: Responses (B, V) or (B, 1, V).
            generator: Generator of the draw.
        """
        posterior = self.encode(responses)
        latents = posterior.sample(generator) if self.training else posterior.mean
        return BrainVAEOutput(self.decode(latents, responses.shape[-1]), latents, posterior)

    def _stack(self, stack: nn.Sequential, x: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint_sequential(stack, len(stack), x, use_reentrant=False)
        return stack(x)


def build_mapper(num_tokens: int = 256, token_width: int = 1664, size: MapperSize | None = None) -> SiT:
    """The semantic-to-neural mapper: image tokens (B, m, d) to the mean of the latent (B, m, d) in one step.

    A SiT at time 0; there is neither diffusion nor an ODE. With the default sizes it has 410.86 M numbers, 610.32 M at
    depth 12 (0.43 M of them the fixed position code). A new one returns zeros.

    Args:
        num_tokens, token_width: m and d.
        size: None is the paper's.

    Raises:
        BrainDataError: the width is odd or not divisible by the number of heads.
    """
    size = MapperSize() if size is None else size
    return SiT(num_tokens, token_width, size.depth, size.heads, size.width, conditioning=size.conditioning)


def adapt_parameters(vae: BrainVAE, mapper: SiT, train_mapper: str = "mlp") -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that adaptation to a new subject trains, and no others, by the names they have in their module.

    Args:
        vae: trained whole, with the losses of stage 1.
        mapper: trained after it.
        train_mapper: the sub-layers of the mapper's blocks that move, "mlp" (the paper: 177.3 of 410.9 M) or "attn";
            "all" is the whole mapper, "none" leaves it as it is.

    Returns:
        "vae" and "mapper", each a dictionary by name.

    Raises:
        BrainDataError: `train_mapper` is unknown.
    """
    if train_mapper not in ("mlp", "attn", "all", "none"):
        raise BrainDataError(f"expected train_mapper 'mlp', 'attn', 'all' or 'none', got {train_mapper!r}")
    chosen = {}
    for name, parameter in mapper.named_parameters():
        in_part = name.startswith("blocks.") and name.split(".")[2] == train_mapper
        if train_mapper == "all" or in_part:
            chosen[name] = parameter
    return {"vae": dict(vae.named_parameters()), "mapper": chosen}


@torch.no_grad()
def synthesize(vae: BrainVAE, mapper: SiT, tokens: Tensor, num_voxels: int, *args: Any, **options: Any) -> Tensor:
    """Synthetic responses of images: tokens, mapper, noise, decoder; the whole stack of draws, never their mean.

    Args:
        vae, mapper: trained; nothing in them is drawn at random, whatever their mode.
        tokens: (n, m, d) on the scale the mapper was trained on.
        num_voxels: V.
        args, options: `num_trials` and all that follows it in `brainmodels.nn.noise.draw_responses`.

    Returns:
        (n, num_trials, V) in the units the VAE was trained on.
    """
    return draw_responses(partial(vae.decode, num_voxels=num_voxels), mapper(tokens), *args, **options)


def _latent_length(size: VAESize) -> int:
    if size.stem_kernel % 2 != 1:
        raise BrainDataError(f"expected an odd stem_kernel, which keeps the number of voxels, got {size.stem_kernel}")
    if size.pool % 2**size.num_down:
        raise BrainDataError(
            f"expected pool divisible by 2^num_down = {2**size.num_down}, got pool={size.pool}, "
            f"num_down={size.num_down}"
        )
    return size.pool // 2**size.num_down


def _perceptron(width: int, hidden: int, out: int) -> nn.Sequential:
    """Three times LayerNorm, GELU, Linear on the last axis."""
    widths = (width, hidden, hidden, out)
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.LayerNorm(before), nn.GELU(), nn.Linear(before, after)]
    return nn.Sequential(*layers)


def _one_channel(responses: Tensor) -> Tensor:
    if responses.ndim == 2:
        responses = responses.unsqueeze(1)
    if responses.ndim != 3 or responses.shape[1] != 1 or not responses.shape[2]:
        raise AxisError(f"expected responses (B, V) or (B, 1, V), got {tuple(responses.shape)}")
    return responses
