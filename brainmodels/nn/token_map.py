"""What is learned from the tokens of images alone, before any brain comes in: the base of decoders and adapters."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from veca.train.engine import Engine
from veca.train.optimizers import NamedOptimizer
from veca.train.parallel import Spread, World
from veca.train.schedules import lr_factor

from ..errors import AxisError, BrainDataError, LayoutError
from ..features.base import weights_hash
from ..features.weights import load_strictly
from ..records import from_json, to_json

__all__ = ["TokenMap", "Tokens", "check_shape", "digest", "read", "statistics"]

_log = logging.getLogger(__name__)

Tokens = np.ndarray | Tensor  # (n, m, d) of any float type; arrays may be memory-mapped

FORMAT = 1
CHUNK = 64  # images at a time, where all of a set is gone through
WARMUP = 30  # steps in which the learning rate rises


class TokenMap(nn.Module):
    """A map of tokens (n, m, d) that standardises them itself, trains on images alone, and is saved as a folder.

    A subclass gives `kind`, `size_type` and `_map`. After `fit` and `load` it is in evaluation mode and frozen.

    Args:
        size: a frozen dataclass with `num_tokens` and `token_width`, from which the layers are built.

    Attributes:
        size: see above.
        mean, std: (d,), of the training tokens over images and tokens.
        trained: how it was trained, and the mean loss of the last tenth of the steps; empty for a new one.
    """

    kind: ClassVar[str]
    size_type: ClassVar[type]

    def __init__(self, size: Any):
        super().__init__()
        self.size = size
        self.trained: dict[str, float] = {}
        self.register_buffer("mean", torch.zeros(size.token_width))
        self.register_buffer("std", torch.ones(size.token_width))

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the weights and with the size."""
        return digest(self.kind, to_json(self.size), weights_hash(self))

    def forward(self, tokens: Tensor) -> Tensor:
        """What the map makes of tokens (n, m, d), on its own device; 64 at a time, so that n may be large.

        Raises:
            AxisError: tokens of another shape.
        """
        check_shape(tokens, (self.size.num_tokens, self.size.token_width), self.kind)
        return torch.cat([self._map(self._standardised(part)) for part in tokens.split(CHUNK)])

    def save(self, folder: str | Path) -> None:
        """Write `weights.safetensors` and `config.json`, each whole or not at all; what was there is replaced."""
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
        _replace(folder / "weights.safetensors", lambda path: save_file(weights, path))
        _replace(folder / "config.json", lambda path: path.write_text(json.dumps(content, indent=1)))

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """What `save` has written.

        Raises:
            LayoutError: a file is missing or of another kind, weights are missing or left over, or the two files are
                not of one save.
            BrainDataError: an unknown key of the size.
        """
        file = Path(folder) / "config.json"
        try:
            content = json.loads(file.read_text())
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
        """The map of a batch of standardised tokens."""
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
        self.mean.copy_(mean), self.std.copy_(std)
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
    """Some rows as an fp32 tensor on the CPU, the only ones that are read of an array on disk."""
    if isinstance(values, Tensor):
        return values[rows].cpu().float()
    picked = values[rows.numpy() if isinstance(rows, Tensor) else rows]
    return torch.from_numpy(np.array(picked, dtype=np.float32))


def check_shape(tokens: Tokens, shape: tuple[int, ...], what: str) -> None:
    """Raise an `AxisError` unless tokens are (n, *shape)."""
    if tuple(tokens.shape[1:]) != shape:
        raise AxisError(f"expected tokens of {what} (n, {', '.join(map(str, shape))}), got {tuple(tokens.shape)}")


def digest(*content: Any) -> str:
    """Twelve hexadecimal digits: the start of the SHA-256 of values as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def statistics(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Mean and population std of each feature over images and tokens, (d,); a constant feature has std 1."""
    count = tokens.shape[0] * tokens.shape[1]
    mean = sum(part.sum((0, 1)) for part in _parts(tokens)) / count
    std = (sum((part - mean).square().sum((0, 1)) for part in _parts(tokens)) / count).sqrt()
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
    """Rows of each step: permutations of all, one after the other, each without its incomplete last batch."""
    size = min(batch_size, count)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        rows, order = order[:size], order[size:]
        yield rows


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(f".{path.name}-{os.urandom(4).hex()}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
