"""What stage 2 is trained on: embeddings from synthetic voxels, and from measured responses and stored encoders.

task = RunDecoding(decoder, recipe, runs, limits=(16, 128))
train_stage("finetune", task, ImageRows(subjects), recipe.finetune)
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import BrainDataError
from ...training.batches import Batch
from .losses import decoding_loss
from .model import ContextDecoder
from .recipes import BrainCoDecRecipe
from .runs import StoredRuns
from .synthetic import between

__all__ = ["RunDecoding", "SyntheticDecoding", "voxel_tokens"]

_LEGACY_NOISE = 0.1  # standard deviation of the noise in the released code


def voxel_tokens(encoders: Tensor, responses: Tensor, recipe: BrainCoDecRecipe) -> Tensor:
    """Tokens (B, V, E + 2) of voxels for `ContextDecoder`, wider with the channels of the recipe.

    Args:
        encoders: (V, E + 2) or (B, V, E + 2) Weights, intercept and logarithm of the noise of each voxel.
        responses: (B, V) Responses to B images.
        recipe: Recipe that says which channels there are.
    """
    encoders = encoders.float().expand(len(responses), -1, -1)
    weights, log_noise, response = encoders[..., :-2], encoders[..., -1:], responses[..., None]
    parts = [encoders[..., :-1], response]
    if recipe.noise_channel:
        parts.append(log_noise)
    if recipe.evidence_channel:
        parts.append(weights * (response - encoders[..., -2:-1]) * (-2 * log_noise).exp())
    return torch.cat(parts, -1)


class SyntheticDecoding(nn.Module):
    """Embeddings of images from synthetic voxels, which vary as the stored encoders of one subject and size do."""

    bank: Tensor

    def __init__(
        self,
        decoder: ContextDecoder,
        recipe: BrainCoDecRecipe,
        runs: Mapping[str, StoredRuns],
        bank: Tensor,
        limits: tuple[int, int],
    ):
        super().__init__()
        self.decoder, self.recipe, self.limits = decoder, recipe, limits
        self.register_buffer("bank", bank, persistent=False)
        self.kinds = 0
        for stored in runs.values():
            for tokens in stored.tokens:
                voxels = torch.from_numpy(np.asarray(tokens, np.float32)).double()
                weights = voxels[:, :-1]
                covariance = torch.cov(weights.T) + 1e-6 * torch.eye(weights.shape[1], dtype=torch.float64)
                parts = {"mean": weights.mean(0), "root": torch.linalg.cholesky(covariance), "noise": voxels[:, -1]}
                for name, value in parts.items():
                    self.register_buffer(f"{name}_{self.kinds}", value.float(), persistent=False)
                self.kinds += 1

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, device = self.recipe, self.bank.device
        kind = int(torch.randint(self.kinds, (), generator=generator, device=device))
        mean, root, noise = (getattr(self, f"{name}_{kind}") for name in ("mean", "root", "noise"))
        images = torch.from_numpy(batch.rows).to(device)
        target = self.bank[images]  # (B, E)
        shape = (len(target), between(self.limits, generator))
        weights = mean + torch.randn(*shape, len(mean), generator=generator, device=device) @ root.T  # (B, V, E + 1)
        log_noise = noise[torch.randint(len(noise), shape, generator=generator, device=device)]  # (B, V)
        responses = (weights[..., :-1] @ target[..., None])[..., 0]
        drawn = torch.randn(shape, generator=generator, device=device)
        if recipe.legacy_sim:
            responses = responses + _LEGACY_NOISE * drawn
        else:
            responses = responses + weights[..., -1] + log_noise.exp() * drawn
        encoders = torch.cat([weights, log_noise[..., None]], -1)  # (B, V, E + 2)
        decoded = self.decoder(voxel_tokens(encoders, responses, recipe))
        return decoding_loss(decoded, target, images, recipe.contrast_weight, recipe.temperature)


class RunDecoding(nn.Module):
    """Embeddings of images from measured responses and the encoders of a stored run, whose context they are not in."""

    def __init__(
        self, decoder: ContextDecoder, recipe: BrainCoDecRecipe, runs: Mapping[str, StoredRuns], limits: tuple[int, int]
    ):
        super().__init__()
        self.decoder, self.recipe, self.limits = decoder, recipe, limits
        self.runs = dict(runs)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, stored = self.recipe, self.runs[batch.subject]
        device, count = batch.responses.device, batch.responses.shape[1]
        images = torch.from_numpy(batch.rows).to(device)
        run, free = self._run(stored, batch.rows, generator)
        shape = (len(free), min(between(self.limits, generator), count))
        order = torch.rand(len(free), count, generator=generator, device=device).argsort(1)[:, : shape[1]]  # (B, V)
        encoders = torch.from_numpy(np.array(stored.tokens[run])).to(device)[order]  # (B, V, E + 2)
        responses = batch.responses[free].gather(1, order)
        decoded = self.decoder(voxel_tokens(encoders, responses, recipe))
        target = batch.tokens[free, 0]
        return decoding_loss(decoded, target, images[free], recipe.contrast_weight, recipe.temperature)

    def _run(self, stored: StoredRuns, rows: np.ndarray, generator: torch.Generator) -> tuple[int, Tensor]:
        """A run at random among those whose context leaves images of the batch, and the positions of these images.

        Validation images are in no context.
        """
        seen = stored.seen[:, rows] if self.training else np.zeros((len(stored.seen), len(rows)), bool)
        runs = np.flatnonzero((~seen).any(1))
        if not len(runs):
            raise BrainDataError(
                f"expected a stored run without one of {len(rows)} images, got none; ask for smaller runs"
            )
        run = int(runs[int(torch.randint(len(runs), (), generator=generator, device=generator.device))])
        return run, torch.from_numpy(np.flatnonzero(~seen[run])).to(generator.device)
