"""SynBrain's networks: the BrainVAE, whose latent is aligned with image tokens, and how responses are drawn from it.

vae = BrainVAE(recipe.num_tokens, recipe.token_width, recipe.vae)
mapper = build_mapper(recipe.num_tokens, recipe.token_width, recipe.mapper)
responses = synthesize(vae, mapper, tokens, num_voxels=15724)  # (n, 1, 15724)

No weight depends on the number of voxels, but their order is part of what is learned: convolutions run along it.
Shapes: B trials, V voxels, m tokens, d token width, L latent length = pool / 2^num_down. Paper: arXiv 2508.10298.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint_sequential

from ..errors import AxisError, BrainDataError, near_names, need
from ..nn import DownStack1d, Posterior, SiT, UpStack1d, group_norm
from .recipes import MapperSize, VAESize

__all__ = [
    "NOISES",
    "BrainVAE",
    "BrainVAEOutput",
    "ResidualNoise",
    "adapt_parameters",
    "build_mapper",
    "mean_posterior_sigma",
    "synthesize",
]

NOISES = ("none", "unit", "posterior", "residual")


@dataclass(frozen=True)
class BrainVAEOutput:
    """What a BrainVAE made of responses.

    Attributes:
        reconstruction: (B, V).
        latents: (B, m, d) that were decoded: a sample in training, else the mean.
        posterior: the Gaussians they are from.
    """

    reconstruction: Tensor
    latents: Tensor
    posterior: Posterior


class BrainVAE(nn.Module):
    """A convolutional variational autoencoder of responses with any number of voxels.

    Voxels are the length axis of 1-D convolutions, pooled (maximum) to a fixed length; at the latent, channels are
    tokens and the length is their width. With the default sizes it has 78.31 M parameters.

    The way back begins with a LayerNorm of each token of the latent, so shift and scale of a token are lost on the
    decoder; only its direction counts.

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
            responses: (B, V) or (B, 1, V).
            generator: of the draw.
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
def mean_posterior_sigma(vae: BrainVAE, batches: Iterable[Tensor]) -> Tensor:
    """Mean standard deviation of the posteriors of training responses, (m, d) fp32: the scale of "posterior" noise.

    Args:
        vae: trained.
        batches: responses (B, V), batches of any size; every trial counts the same.

    Raises:
        AxisError: there is no trial.
    """
    total, count = torch.zeros(vae.num_tokens, vae.token_width, dtype=torch.float64), 0
    for responses in batches:
        total += vae.encode(responses).std.double().sum(0).cpu()
        count += len(responses)
    if not count:
        raise AxisError("expected responses of at least one trial, got none")
    return (total / count).float()


@dataclass(frozen=True)
class ResidualNoise:
    """The variation of responses between trials as a Gaussian: covariance = factors.T @ factors + diag(spread^2).

    Attributes:
        factors: (r, V) fp32, patterns that voxels share.
        spread: (V,) fp32, standard deviation of what is left to each voxel alone.
        around: "repeats" where it was fitted around the mean response to an image; "predictions" where no image was
            repeated, so that the errors of the model are part of it, which a report must say.
    """

    factors: Tensor
    spread: Tensor
    around: str

    @classmethod
    def fit(
        cls,
        responses: np.ndarray,
        image_ids: Sequence[str],
        predictions: np.ndarray | None = None,
        rank: int = 10,
        seed: int = 0,
    ) -> "ResidualNoise":
        """Estimate it on training trials.

        Residuals of an image with k > 1 trials are taken around their mean and scaled by sqrt(k / (k - 1)), which makes
        their variance unbiased; images with one trial do not count, unless there are no others. The factors are those
        of probabilistic PCA (Tipping and Bishop 1999, eq. 7 and 8) on voxels scaled to variance 1; the variance of each
        voxel is kept exactly.

        Args:
            responses: (n, V), in the units of the predictions.
            image_ids: (n,).
            predictions: (n, V) without noise; used where no image is repeated.
            rank: r.
            seed: of the randomised decomposition.

        Raises:
            AxisError: shapes do not match, or `rank` is not below the number of residuals and of voxels.
            BrainDataError: neither repeats nor predictions.
        """
        try:
            from sklearn.utils.extmath import randomized_svd
        except ImportError as error:
            raise need("scikit-learn", "noise fitted to residuals") from error
        residuals, around = _residuals(responses, image_ids, predictions)
        count, voxels = residuals.shape
        if not 0 < rank < min(count, voxels):
            raise AxisError(f"expected rank of 1 to below {min(count, voxels)} ({count} residuals), got {rank}")
        deviation = np.sqrt(np.square(residuals).mean(0, dtype=np.float64))  # (V,)
        residuals /= np.where(deviation > 0, deviation, 1).astype(np.float32)
        _, singular, patterns = randomized_svd(residuals, rank, random_state=seed)
        eigenvalues = singular.astype(np.float64) ** 2 / count
        floor = (np.count_nonzero(deviation) - eigenvalues.sum()) / (voxels - rank)
        factors = np.sqrt(np.maximum(eigenvalues - floor, 0))[:, None] * patterns * deviation
        spread = np.sqrt(np.maximum(deviation**2 - np.square(factors).sum(0), 0))
        return cls(torch.tensor(factors, dtype=torch.float32), torch.tensor(spread, dtype=torch.float32), around)

    def sample(self, predicted: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw (n, V) for predicted responses (n, V), to be added to them."""
        if predicted.ndim != 2 or predicted.shape[1] != len(self.spread):
            expected = f"(n, {len(self.spread)}), the voxels of the fitted noise"
            raise AxisError(f"expected predicted responses {expected}, got {tuple(predicted.shape)}")
        shared = _normal(predicted.new_empty(len(predicted), len(self.factors)), generator)
        own = _normal(predicted, generator)
        return shared @ self.factors.to(predicted) + own * self.spread.to(predicted)


@torch.no_grad()
def synthesize(
    vae: BrainVAE,
    mapper: SiT,
    tokens: Tensor,
    num_voxels: int,
    num_trials: int = 1,
    noise: str = "none",
    noise_scale: float = 1.0,
    sigma: Tensor | None = None,
    residual: ResidualNoise | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Synthetic responses of images: tokens, mapper, noise, decoder; the whole stack of draws, never their mean.

    Noise in the latent is not trial noise: it moves responses far less than repeats differ, and without the pattern of
    voxels. Where the variance of trials must be right use "residual", noise fitted to measured repeats.

    Args:
        vae, mapper: trained; nothing in them is drawn at random, whatever their mode.
        tokens: (n, m, d) on the scale the mapper was trained on.
        num_voxels: V.
        num_trials: draws of each image. The first draws do not change when more are asked for.
        noise: "none"; "unit" adds N(0, I) to the latent and "posterior" sigma * N(0, I); "residual" adds a draw of
            `residual` to the responses. Unit noise makes sense only where sigma is near 1.
        noise_scale: factor of the noise.
        sigma: (m, d), of `mean_posterior_sigma`.
        residual: of `ResidualNoise.fit`.
        generator: of all noise, on any device.

    Returns:
        (n, num_trials, V) in the units the VAE was trained on.

    Raises:
        BrainDataError: several trials without noise, an unknown noise, or one whose scale is missing.
        AxisError: shapes do not match.
    """
    if noise not in NOISES:
        raise BrainDataError(f"expected noise of {', '.join(NOISES)}, got {noise!r}{near_names(noise, NOISES)}")
    if num_trials < 1 or (num_trials > 1 and noise == "none"):
        allowed = "exactly one trial without noise" if noise == "none" else "at least one trial"
        raise BrainDataError(f"expected {allowed}, got num_trials={num_trials} and noise={noise!r}")
    for wanted, name, value in (("posterior", "sigma", sigma), ("residual", "residual", residual)):
        if noise == wanted and value is None:
            raise BrainDataError(f"expected {name}, fitted to training trials, for noise={noise!r}, got None")
    latents = mapper(tokens)
    if noise in ("unit", "posterior"):
        spread = torch.ones_like(latents[0]) if noise == "unit" else sigma.to(latents)
        if spread.shape != latents.shape[1:]:
            raise AxisError(f"expected sigma {tuple(latents.shape[1:])}, got {tuple(spread.shape)}")
        drawn = (latents + noise_scale * spread * _normal(latents, generator) for _ in range(num_trials))
        return torch.stack([vae.decode(draw, num_voxels) for draw in drawn], 1)
    predicted = vae.decode(latents, num_voxels)
    if noise == "none":
        return predicted.unsqueeze(1)
    draws = [residual.sample(predicted, generator) for _ in range(num_trials)]
    return torch.stack([predicted + noise_scale * draw for draw in draws], 1)


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


def _residuals(
    responses: np.ndarray, image_ids: Sequence[str], predictions: np.ndarray | None
) -> tuple[np.ndarray, str]:
    """What is left of responses (n, V) without their image, (n', V), and what was taken for it."""
    responses = np.asarray(responses, np.float32)
    if responses.ndim != 2 or len(responses) != len(image_ids):
        raise AxisError(f"expected responses ({len(image_ids)}, V), a row for each id, got {tuple(responses.shape)}")
    _, image, counts = np.unique(np.asarray(image_ids, str), return_inverse=True, return_counts=True)
    trials = counts[image]  # (n,) of the image of each row
    if (trials > 1).any():
        sums = np.zeros((len(counts), responses.shape[1]))
        np.add.at(sums, image, responses)
        means = (sums / counts[:, None]).astype(np.float32)
        scale = np.sqrt(trials / np.maximum(trials - 1, 1)).astype(np.float32)
        return ((responses - means[image]) * scale[:, None])[trials > 1], "repeats"
    if predictions is None:
        raise BrainDataError("expected images with repeats, or predictions to take residuals around, got neither")
    if predictions.shape != responses.shape:
        raise AxisError(f"expected predictions {responses.shape}, as the responses, got {predictions.shape}")
    return responses - predictions, "predictions"


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, I) of the shape, dtype and device of a tensor, drawn where the generator is: one seed, the same noise."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
