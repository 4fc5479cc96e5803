"""The picture of a bank that fits decoded tokens best, by the tokens and by what a reader makes of them.

    nearest = KeyedNearest.fit(tokens, pooled, images, ids)     # of any images, no brain
    calibrated = nearest.calibrated(decoded, true, pooled)      # on validation images of one decoder
    pictures = calibrated(decoded_test)                         # (n, 3, H, W) in [0, 1]

What it draws is always a picture that exists: it shows what was found, not what was seen.
Shapes: n images, N images of the bank, m tokens, d token width, p pooled features, K components.
"""

import json
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from veca.files import read_json, read_tensors, whole_file
from veca.hashes import hex_digest, json_digest, weights_hash
from veca.zoo.plain_vit import pack_rows, unpack_rows

from ..errors import AxisError, BrainDataError, IdError, LayoutError
from ..features.arrays import Ids
from ..nn.token_map import Tokens, read
from .components import ComponentsSize, Reliability, TokenComponents
from .patch_code import pixels_of
from .reader import Reader

__all__ = ["KeyedNearest", "PictureBank"]

BLOCK, FORMAT = 256, 1
SHARES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHARE = 0.7  # of the reader's guess, where no validation images tell

Images = Callable[[np.ndarray], np.ndarray]  # row numbers to pictures (rows, H, W, 3), uint8


@dataclass(frozen=True)
class PictureBank:
    """Pictures with the numbers by which they are found.

    Attributes:
        ids: (N,) Ids.
        scores: (N, K) Components of their tokens.
        pooled: (N, p) Their pooled features.
        images: Function from row numbers to pictures, so that drawn scenes need not be kept.
    """

    ids: np.ndarray
    scores: Tensor
    pooled: Tensor
    images: Images

    @cached_property
    def keys(self) -> Tensor:
        """(N, p) Standardised pooled features."""
        return self.standardised(self.pooled)

    def standardised(self, pooled: Tensor) -> Tensor:
        """Pooled features with mean 0 and standard deviation 1 over the bank."""
        mean, std = self.pooled.mean(0), self.pooled.std(0).clamp(min=1e-6)
        return (pooled.to(mean.device) - mean) / std

    def to(self, device: str | torch.device) -> "PictureBank":
        """The same with its numbers on a device."""
        return replace(self, scores=self.scores.to(device), pooled=self.pooled.to(device))

    def __post_init__(self):
        if not len(self.ids) == len(self.scores) == len(self.pooled) > 0:
            raise AxisError(
                "expected ids, scores and pooled features of the same images, got "
                f"{len(self.ids)}, {len(self.scores)} and {len(self.pooled)}"
            )
        if len(set(self.ids.tolist())) != len(self.ids):
            raise IdError(f"expected unique ids, got {len(self.ids) - len(set(self.ids.tolist()))} that repeat")


class KeyedNearest:
    """Nearest picture by (1 - share) * cosine of cells of tokens + share * cosine of pooled features.

    Both are what is expected of the true ones: scores are calibrated and shrunk by their reliability, and a reader
    guesses the pooled features from them.

    Args:
        components: Components of tokens.
        reader: Reader of the same components.
        bank: Pictures.
        share: Share of the pooled features, 0 to 1.
        reliability: That of the tokens which are drawn from; None is that of true tokens.

    Attributes:
        name: Text with the size of the bank, on which every score depends.

    Raises:
        BrainDataError: A share outside 0 to 1.
    """

    def __init__(
        self,
        components: TokenComponents,
        reader: Reader,
        bank: PictureBank,
        share: float = SHARE,
        reliability: Reliability | None = None,
    ):
        if not 0 <= share <= 1:
            raise BrainDataError(f"expected a share from 0 to 1, got {share}")
        self.components, self.reader, self.bank, self.share = components, reader, bank, float(share)
        self.reliability = reliability or Reliability.exact(components.size.count)
        self.name = f"nearest_of_{len(bank.ids)}"

    @classmethod
    def fit(
        cls,
        tokens: Tokens,
        pooled: np.ndarray,
        images: np.ndarray | Images,
        ids: Ids,
        *,
        bank: int | None = None,
        count: int = 256,
        width: int = 32,
        steps: int | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> Self:
        """Learn components and reader from images, which become the bank.

        Args:
            tokens: (N, m, d) Tokens of the images, which should be training images. May be memory-mapped and fp16.
            pooled: (N, p) Pooled features of the same images.
            images: (N, H, W, 3) The pictures, uint8, or a function from row numbers to them.
            ids: (N,) Their ids.
            bank: How many of the images, from the first, are kept as pictures to find; None keeps all.
            count, width: As in `TokenComponents.fit`.
            steps: Training steps of the reader; None is its own number.
            seed: Seed of the reader.
            device: Device of all that is computed.
            progress: Whether to show a bar.

        Raises:
            AxisError: Numbers of images differ.
            IdError: Ids repeat.
            BrainDataError: Images that are all alike, or values that are not finite.
        """
        if not len(tokens) == len(pooled) == len(ids):
            raise AxisError(
                "expected tokens, pooled features and ids of the same images, got "
                f"{len(tokens)}, {len(pooled)} and {len(ids)}"
            )
        components = TokenComponents.fit(tokens, count, width).to(device)
        scores, told = scores_of(components, tokens), torch.from_numpy(np.asarray(pooled, np.float32)).to(device)
        shown, kept = images if callable(images) else images.__getitem__, slice(0, bank)
        made = PictureBank(np.asarray(ids, dtype=str)[kept], scores[kept], told[kept], shown)
        options = {"steps": steps, "seed": seed, "device": device, "progress": progress}
        return cls(components, Reader.fit(scores, made.standardised(told), **options), made)

    def save(self, folder: str | Path) -> None:
        """Write `nearest.safetensors` and `nearest.json`: all but the pictures, whose ids tell what they are.

        The reader and the keys of the bank are rounded to int8 with a scale for each row. What is loaded is therefore
        not quite what was saved. Components divide by small numbers and stay fp32.

        Args:
            folder: Folder; created where needed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"bank.scores": self.bank.scores, "bank.pooled": self.bank.pooled}
        arrays |= {f"reader.{name}": value for name, value in self.reader.state_dict().items()}
        arrays = pack_rows(cpu(arrays)) | cpu(self.components.state_dict(prefix="components."))
        content = {
            "format": FORMAT,
            "components": vars(self.components.size),
            "share": self.share,
            "ids": self.bank.ids.tolist(),
        }
        with whole_file(folder / "nearest.safetensors", shared=True) as partial:
            save_file(arrays, partial)
        with whole_file(folder / "nearest.json", shared=True) as partial:
            partial.write_text(json.dumps(content))

    @classmethod
    def load(cls, folder: str | Path, images: Callable[[Ids], np.ndarray], device: str | torch.device = "cpu") -> Self:
        """Load what `save` has written.

        Args:
            folder: Folder.
            images: Function from ids to pictures (n, H, W, 3), uint8.
            device: Device of all that is computed.

        Raises:
            LayoutError: A file is missing, damaged or of another format, or arrays are missing or left over.
        """
        folder = Path(folder)
        try:
            content = read_json(folder / "nearest.json")
        except (OSError, ValueError) as error:
            raise LayoutError(f"expected a folder that KeyedNearest.save has written, got {folder}: {error}") from error
        if content.get("format") != FORMAT:
            raise LayoutError(f"expected format {FORMAT} in {folder}, got {content.get('format')}")
        arrays = unpack_rows(read_tensors(folder / "nearest.safetensors", LayoutError))
        try:
            scores, pooled = (arrays.pop(name).to(device) for name in ("bank.scores", "bank.pooled"))
            networks = nn.ModuleDict()
            networks["components"] = components = TokenComponents(ComponentsSize(**content["components"]))
            networks["reader"] = reader = Reader(scores.shape[1], pooled.shape[1])
            networks.load_state_dict(arrays)
        except (KeyError, RuntimeError) as error:
            raise LayoutError(f"the arrays in {folder} do not fit: {error}") from error
        ids = np.array(content["ids"], dtype=str)
        bank = PictureBank(ids, scores, pooled, lambda rows: images(ids[rows]))
        networks.to(device).eval().requires_grad_(False)
        return cls(components, reader, bank, content["share"])

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with bank, networks, share and reliability."""
        told = [np.asarray(x.cpu()) for x in (self.reliability.mean, self.reliability.std, self.reliability.r)]
        return json_digest(["keyed_nearest", self._parts, self.share, hex_digest(told)])

    @cached_property
    def _parts(self) -> list[Any]:
        keys = [self.bank.scores.cpu().numpy(), self.bank.pooled.cpu().numpy()]
        return [weights_hash(nn.ModuleList([self.components, self.reader])), self.bank.ids.tolist(), hex_digest(keys)]

    def calibrated(self, decoded: Tokens, true: Tokens, pooled: np.ndarray, seed: int = 0) -> "KeyedNearest":
        """The same for a decoder whose reliability is measured on held-out images, with the share that serves best.

        Pictures are judged by the cosine of their tokens' cells with the true ones, plus that of their pooled features.
        The share is the largest that is not worse than the best by more than a standard error. Pooled features tell
        what an object is. Cells tell where it is, which is decoded worse.

        A reader is trained on the bank, with damage as this decoder does.

        Args:
            decoded: (n, m, d) Decoded tokens of images that the decoder was not fitted to.
            true: (n, m, d) True tokens of the same images.
            pooled: (n, p) True pooled features of the same images.
            seed: Seed of the reader.
        """
        decoded_scores, true_scores = (scores_of(self.components, x) for x in (decoded, true))
        told = copy(self)
        vars(told).pop("_parts", None)  # of the other reader
        told.reliability = Reliability.measured(decoded_scores, true_scores)
        bank, device = self.bank, self.bank.scores.device
        told.reader = Reader.fit(bank.scores, bank.keys, told.reliability.r.cpu(), seed=seed, device=device)
        wanted = bank.standardised(torch.from_numpy(np.array(pooled)))
        cells, guess = told._similarities(told.reliability.calibrated(decoded_scores))
        rows = torch.stack([((1 - x) * cells + x * guess).argmax(1) for x in SHARES])  # (shares, n)
        std = self.components.std
        gains = F.cosine_similarity(bank.scores[rows] * std, true_scores * std, dim=2)
        gains = gains + F.cosine_similarity(bank.keys[rows], wanted, dim=2)
        apart = gains[gains.mean(1).argmax()] - gains
        fine = apart.mean(1) <= apart.std(1) / apart.shape[1] ** 0.5
        told.share = SHARES[int(fine.nonzero().max())]
        return told

    def __call__(self, tokens: Tensor) -> Tensor:
        """Nearest pictures (n, 3, H, W) fp32 in [0, 1], on the device of the tokens.

        Args:
            tokens: (n, m, d) Tokens.

        Raises:
            AxisError: Tokens of another shape.
            BrainDataError: Tokens that are not finite.
        """
        return pixels_of(self.bank.images(self.rows_of(tokens).cpu().numpy())).to(tokens.device)

    def ids_of(self, tokens: Tensor) -> list[str]:
        """Ids of the nearest pictures. Of equally near ones, the first in the bank is taken."""
        return self.bank.ids[self.rows_of(tokens).cpu().numpy()].tolist()

    def rows_of(self, tokens: Tensor) -> Tensor:
        """Rows (n,) of the bank."""
        if not tokens.isfinite().all():
            raise BrainDataError("expected finite tokens, got NaN or infinity")
        scores = self.reliability.calibrated(scores_of(self.components, tokens))
        return self.nearest(scores, self.reliability.r.to(scores).expand_as(scores))

    def nearest(
        self,
        scores: Tensor,
        r: Tensor,
        guess: Tensor | None = None,
        share: float | None = None,
        without: Tensor | None = None,
    ) -> Tensor:
        """Rows (n,) of the bank by calibrated scores (n, K) and their reliabilities (n, K).

        Args:
            scores, r: (n, K) Calibrated scores and their reliabilities.
            guess: (n, p) Standardised pooled features; None is what the reader guesses.
            share: Share of the pooled features; None is that of this object.
            without: (n,) A row of the bank for each image that must not be found; those beyond the bank do not count.
        """
        share = self.share if share is None else share
        cells, pooled = self._similarities(scores, r, guess)
        table = (1 - share) * cells + share * pooled
        if without is not None:
            known = torch.arange(len(table))[without < table.shape[1]]
            table[known, without[known]] = -torch.inf
        return table.argmax(1)

    def _similarities(self, scores: Tensor, r: Tensor | None = None, guess: Tensor | None = None) -> tuple[Tensor, ...]:
        """Cosines (n, N) to the bank, of expected cells and of guessed pooled features."""
        r = self.reliability.r.to(scores).expand_as(scores) if r is None else r
        with torch.no_grad():
            known: Tensor = self.reader(scores, r) if guess is None else guess
        cells = F.normalize(scores * r * self.components.std, dim=1) @ self._cells.T
        return cells, F.normalize(known, dim=1) @ self._pooled.T

    @cached_property
    def _cells(self) -> Tensor:
        return F.normalize(self.bank.scores * self.components.std, dim=1)

    @cached_property
    def _pooled(self) -> Tensor:
        return F.normalize(self.bank.keys, dim=1)


def cpu(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are written to a file."""
    return {name: value.detach().cpu().contiguous() for name, value in arrays.items()}


def scores_of(components: TokenComponents, tokens: Tokens) -> Tensor:
    """Scores (n, K) of tokens (n, m, d), an array or a tensor, a block at a time."""
    return torch.cat([components(read(tokens, slice(at, at + BLOCK))) for at in range(0, len(tokens), BLOCK)])
