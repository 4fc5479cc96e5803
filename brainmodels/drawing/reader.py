"""A reader: the pooled features of an image, as a nonlinear function of all that is decoded of its tokens.

Shape and colour of an object lie in a nonlinear function of all tokens together. A reader learns it from images alone:
from scores that are damaged as decoders damage them.

Shapes: n images, K components, p pooled features.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from veca.train.engine import Engine
from veca.train.optimizers import NamedOptimizer
from veca.train.parallel import Spread, World
from veca.train.schedules import lr_factor

from ..errors import AxisError
from ..features.weights import seeded
from .components import damaged, drawn_reliabilities

__all__ = ["Reader", "levels"]

LEVELS = 16  # components whose reliability the networks are told
WARMUP = 30
STEPS = 900  # longer training fits the damage better, and errors of decoders worse


def levels(r: Tensor) -> Tensor:
    """Reliabilities (n, L) of at most `LEVELS` components, at equal steps of the logarithm, of those (n, K) of all."""
    at = np.unique(np.geomspace(1, r.shape[1], LEVELS).round().astype(int)) - 1
    return r[:, at]


class Reader(nn.Module):
    """Perceptron from calibrated scores and their reliabilities to standardised pooled features.

    Args:
        count: Number K of components.
        pooled: Number p of pooled features.
        hidden: Width of the two hidden layers.
    """

    def __init__(self, count: int, pooled: int, hidden: int = 384):
        super().__init__()
        inputs = count + levels(torch.zeros(1, count)).shape[1]
        layers = [nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, pooled)]
        self.body = nn.Sequential(*layers)

    @classmethod
    def fit(
        cls,
        scores: Tensor,
        pooled: Tensor,
        usual: Tensor | None = None,
        *,
        steps: int | None = None,
        batch_size: int = 256,
        lr: float = 1e-3,
        seed: int = 0,
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> "Reader":
        """Train on the squared error from damaged scores, with AdamW.

        Args:
            scores: (n, K) Scores of images.
            pooled: (n, p) Standardised pooled features of the same images.
            usual: (K,) Reliabilities of the decoder that it will read from, see `drawn_reliabilities`.
            steps: Number of steps; None is `STEPS`.
            batch_size, lr, seed, device, progress: As in `ConvDecoder.fit`.

        Raises:
            AxisError: Numbers of images differ.
        """
        if scores.ndim != 2 or pooled.ndim != 2 or len(scores) != len(pooled):
            raise AxisError(
                "expected scores (n, K) and pooled features (n, p) of the same images, got "
                f"{tuple(scores.shape)} and {tuple(pooled.shape)}"
            )
        reader = seeded(seed, lambda: cls(scores.shape[1], pooled.shape[1]))
        reader.to(device)
        rng, steps = torch.Generator().manual_seed(seed), STEPS if steps is None else steps
        optimizer = torch.optim.AdamW(reader.parameters(), lr=lr, weight_decay=0.05)
        optimizer = NamedOptimizer(dict(reader.named_parameters()), [optimizer])
        engine = Engine(optimizer, Spread(reader, World(0, 1, torch.device(device))))
        for step in tqdm(range(steps), desc="reader", disable=not progress):
            rows = torch.randint(len(scores), (batch_size,), generator=rng)
            r = drawn_reliabilities(batch_size, scores.shape[1], rng, usual)
            guess = reader(damaged(scores[rows].cpu(), r, rng).to(device), r.to(device))
            loss = F.mse_loss(guess, pooled[rows].to(device))
            engine.backward([(loss, {"loss": loss})])
            engine.update(lr * lr_factor("cosine", step, steps, WARMUP))
        return reader.eval().requires_grad_(False)

    def forward(self, scores: Tensor, r: Tensor) -> Tensor:
        """Guesses of standardised pooled features (n, p).

        Args:
            scores: (n, K) Calibrated scores.
            r: (n, K) Their reliabilities.
        """
        return self.body(torch.cat([scores, levels(r)], 1))
