"""Posteriors of a frozen encoder as targets of a second stage: computed once where they fit, else for every batch."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..nn.gaussian import Posterior
from .loop import Batch
from .trials import TrialData

__all__ = ["CACHE_BYTES", "LatentData", "posterior_of"]

CACHE_BYTES = 2 * 2**30

Encode = Callable[[torch.Tensor, str], Posterior]


class LatentData:
    """Trials with the posterior of their responses, (B, 2, m, d) of mean and log variance, in place of the responses.

    It is made only where all posteriors fit `CACHE_BYTES`; see `fits`.

    Args:
        data: Trials of the first stage.
        encode: Function from responses (B, V) and subject to their posterior; no gradient is kept.
        device: Device of the computation.
    """

    def __init__(self, data: TrialData, encode: Encode, device: torch.device):
        self._data, self._latents = data, {}
        with torch.no_grad():
            for part in ("train", "val"):
                for batch in data.batches(part):
                    posterior = encode(batch.responses.to(device), batch.subject)
                    stacked = torch.stack([posterior.mean, posterior.logvar], 1).float().cpu()
                    self._latents.setdefault((part, batch.subject), []).append(stacked)
        self._latents = {key: torch.cat(blocks) for key, blocks in self._latents.items()}

    @staticmethod
    def fits(data: TrialData, num_tokens: int, token_width: int) -> bool:
        """Whether the posteriors of all trials take at most `CACHE_BYTES`."""
        trials = sum(sum(data.sizes(part).values()) for part in ("train", "val"))
        return 8 * trials * num_tokens * token_width <= CACHE_BYTES

    def sizes(self, part: str) -> Mapping[str, int]:
        return self._data.sizes(part)

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        return self._data.describe(part, subject, rows)

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Batch:
        return self._data.batch(part, subject, rows)._replace(responses=self._latents[part, subject][rows])


def posterior_of(batch: Batch, encode: Encode) -> Posterior:
    """The posterior of a batch, from `LatentData` or computed now, without gradient."""
    if batch.responses.ndim == 4:
        return Posterior(*batch.responses.unbind(1))
    with torch.no_grad():
        return encode(batch.responses, batch.subject)
