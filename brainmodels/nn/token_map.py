"""The base of decoders and adapters, which learn from the tokens of images alone, before any brain data.

    model = SomeTokenMap.fit(tokens, ...)  # a subclass, such as ConvDecoder or TokenAdapter
    model.save("decoder")                  # weights.safetensors and config.json
    SomeTokenMap.load("decoder").fingerprint

Shapes: n images, m tokens, d token width.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from veca.files import read_json, whole_file
from veca.hashes import json_digest, weights_hash
from veca.train.engine import Engine
from veca.train.optimizers import NamedOptimizer
from veca.train.parallel import Spread, World
from veca.train.schedules import lr_factor

from ..errors import AxisError, BrainDataError, LayoutError
from ..features.weights import load_strictly
from ..records import from_json, to_json

__all__ = ["TokenMap", "Tokens", "check_shape", "read", "statistics"]

_log = logging.getLogger(__name__)

Tokens = np.ndarray | Tensor  # (n, m, d) of any float type; arrays may be memory-mapped

FORMAT = 1
CHUNK = 64  # number of images at a time, in loops over a whole set
WARMUP = 30  # number of steps in which the learning rate rises


class TokenMap(nn.Module):
    """A map of tokens (n, m, d) that standardises them itself, trains on images alone, and is saved as a folder.

    A subclass defines `kind`, `size_type` and `_map`. After `fit` and `load` the map is frozen and in evaluation mode.

    Args:
        size: Frozen dataclass with `num_tokens` and `token_width`, from which the layers are built.

    Attributes:
        size: As given.
        mean, std: (d,) Mean and std of the training tokens, over images and tokens.
        trained: How it was trained, and the mean loss of the last tenth of the steps. Empty for a new map.
    """

    kind: ClassVar[str]
    size_type: ClassVar[type]

    mean: Tensor
    std: Tensor

    def __init__(self, size: Any):
        super().__init__()
        self.size = size
        self.trained: dict[str, float] = {}
        self.register_buffer("mean", torch.zeros(size.token_width))
        self.register_buffer("std", torch.ones(size.token_width))

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the weights and with the size."""
        return json_digest([self.kind, to_json(self.size), weights_hash(self)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the map on its own device, 64 images at a time, so that n may be large.

        Args:
            tokens: (n, m, d) Tokens.

        Raises:
            AxisError: Tokens of another shape.
        """
        check_shape(tokens, (self.size.num_tokens, self.size.token_width), self.kind)
        return torch.cat([self._map(self._standardised(part)) for part in tokens.split(CHUNK)])

    def save(self, folder: str | Path) -> None:
        """Writes `weights.safetensors` and `config.json`, each complete or not at all. Earlier files are replaced.

        Args:
            folder: Folder to write to. It is created if needed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "kind": self.kind,
            "size": to_json(self.size),
            "fingerprint": self.fingerprint,
            "trained": self.trained,
        }
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with whole_file(folder / "weights.safetensors", shared=True) as partial:
            save_file(weights, partial)
        with whole_file(folder / "config.json", shared=True) as partial:
            partial.write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load what `save` has written.

        Args:
            folder: Folder that `save` has written.
            device: Device of the map.

        Raises:
            LayoutError: A file is missing or of another kind, weights are missing or left over, or the two files belong
                to different saves.
            BrainDataError: An unknown key of the size.
        """
        file = Path(folder) / "config.json"
        try:
            content = read_json(file)
        except (OSError, ValueError) as error:
            raise LayoutError(
                f"expected a folder that {cls.__name__}.save has written, got {folder}: {error}"
            ) from error
        if (content.get("format"), content.get("kind")) != (FORMAT, cls.kind):
            raise LayoutError(
                f"expected {cls.kind} of format {FORMAT} in {file}, got {content.get('kind')} of format "
                f"{content.get('format')}"
            )
        model = cls(from_json(cls.size_type, content["size"], f"size in {file}"))
        load_strictly(model, Path(folder) / "weights.safetensors")
        if model.fingerprint != content["fingerprint"]:
            raise LayoutError(
                f"expected weights {content['fingerprint']} beside {file}, got {model.fingerprint}; the two files are "
                "of different saves: save again"
            )
        model.trained = content["trained"]
        return model.to(device).eval().requires_grad_(False)

    def _map(self, tokens: Tensor) -> Tensor:
        """The map of a batch of standardised tokens (B, m, d)."""
        raise NotImplementedError

    def _standardised(self, tokens: Tensor) -> Tensor:
        return (tokens.to(self.mean.device, torch.float32) - self.mean) / self.std

    def _learn(
        self,
        tokens: Tokens,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        noise: float,
        steps: int,
        batch_size: int,
        lr: float,
        seed: int,
        device: str | torch.device,
        progress: bool,
    ) -> Self:
        """Train by AdamW, whose learning rate rises over 30 steps and falls along a cosine.

        `loss` is a function of the outputs (B, ...) for a batch and of the rows (B,) of its images.
        """
        if steps < 1 or batch_size < 1 or not noise >= 0:
            raise BrainDataError(
                f"expected at least one step, one image a batch and no negative noise, got {steps=}, {batch_size=}, "
                f"{noise=}"
            )
        mean, std = statistics(tokens)
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.to(device).train().requires_grad_(True)
        generator = torch.Generator().manual_seed(seed)
        optimizer = NamedOptimizer(dict(self.named_parameters()), [torch.optim.AdamW(self.parameters(), lr=lr)])
        engine = Engine(optimizer, Spread(self, World(0, 1, torch.device(device))))
        losses = torch.zeros(steps)
        batches = _batches(len(tokens), batch_size, steps, generator)
        for step, rows in enumerate(tqdm(batches, total=steps, desc=self.kind, disable=not progress)):
            x = self._standardised(read(tokens, rows))
            if noise:
                scale = noise * torch.rand(len(x), 1, 1, generator=generator)
                x = x + (scale * torch.randn(x.shape, generator=generator)).to(device)
            value = loss(self._map(x), rows)
            losses[step] = engine.backward([(value, {"loss": value})])[0]["loss"]
            engine.update(lr * lr_factor("cosine", step, steps, WARMUP))
        last = float(losses[-math.ceil(steps / 10) :].mean())
        if not math.isfinite(last):
            raise FloatingPointError(f"the loss of {self.kind} is {last} at the end; lower lr={lr:g}")
        self.trained = {"images": len(tokens), "noise": noise, "steps": steps, "batch_size": batch_size}
        self.trained |= {"lr": lr, "seed": seed, "loss": last}
        _log.info("%s trained on %d images, loss %.4g", self.kind, len(tokens), last)
        return self.eval().requires_grad_(False)


def read(values: Tokens, rows: Tensor | slice) -> Tensor:
    """Some rows as an fp32 tensor on the CPU. Only these rows are read from an array on disk.

    Args:
        values: (n, m, d) Array or tensor.
        rows: Row numbers, or a slice.
    """
    if isinstance(values, Tensor):
        return values[rows].cpu().float()
    picked = values[rows.numpy() if isinstance(rows, Tensor) else rows]
    return torch.from_numpy(np.array(picked, dtype=np.float32))


def check_shape(tokens: Tokens, shape: tuple[int, ...], what: str) -> None:
    """Check the shape of tokens.

    Args:
        tokens: Tokens to check.
        shape: Expected shape (m, d) of one image's tokens.
        what: Name of the tokens' user, for the message.

    Raises:
        AxisError: Tokens are not (n, *shape).
    """
    if tuple(tokens.shape[1:]) != shape:
        raise AxisError(f"expected tokens of {what} (n, {', '.join(map(str, shape))}), got {tuple(tokens.shape)}")


def statistics(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Mean and population std of each feature, over images and tokens. A constant feature has std 1.

    Args:
        tokens: (n, m, d) Tokens.

    Returns:
        Two fp32 tensors (d,).

    Raises:
        BrainDataError: Values that are not finite.
    """
    count = tokens.shape[0] * tokens.shape[1]
    total: Any = sum(part.sum((0, 1)) for part in _parts(tokens))
    mean = total / count
    squares: Any = sum((part - mean).square().sum((0, 1)) for part in _parts(tokens))
    std = (squares / count).sqrt()
    constant = std <= 1e-7 * mean.abs().clamp(min=1e-7)
    return mean.float(), torch.where(constant, 1, std).float()


def _parts(tokens: Tokens) -> Iterator[Tensor]:
    for start in range(0, len(tokens), CHUNK):
        part = read(tokens, slice(start, start + CHUNK)).double()
        finite = part.isfinite().flatten(1).all(1)
        if not finite.all():
            raise BrainDataError(
                f"expected finite tokens, got NaN or infinity in row {start + int(finite.int().argmin())}"
            )
        yield part


def _batches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each step: one permutation of all rows after another, each without its incomplete last batch."""
    size = min(batch_size, count)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        rows, order = order[:size], order[size:]
        yield rows
