"""A generator of pictures from decoded tokens, which is trained on images alone.

    generator = Generator.load("out/drawer", images)           # or scenes.shipped_generator()
    own = generator.calibrated(decoded, true, pooled)          # on validation images of one decoder
    pictures = own(decoded_test)                               # (n, 3, H, W) in [0, 1]

A picture is drawn from the expected cells of tokens, the features that a reader guesses, and the nearest picture of a
bank.
Shapes: n images, m tokens, d token width, K components.
"""

import json
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from veca.files import read_json, read_tensors, whole_file
from veca.hashes import json_digest, weights_hash
from veca.zoo.plain_vit import pack_rows, unpack_rows

from ..errors import AxisError, BrainDataError, LayoutError
from ..features.arrays import Ids
from ..nn.token_map import Tokens
from ..records import from_json
from .components import ComponentsSize
from .flow import Conditions, FlowSize, PictureFlow
from .keyed_nearest import KeyedNearest, cpu
from .patch_code import PatchCode, pixels_of
from .reader import levels
from .recipes import GeneratorRecipe

__all__ = ["Generator"]

CHUNK = 64  # pictures that are drawn together
FORMAT = 1


class Generator(nn.Module):
    """Components, reader, bank, code and flow, put together.

    Args:
        recipe: How it is built and used.
        nearest: Finds the nearest picture of the bank.
        code: Code of pictures.
        flow: Network that draws codes.

    Attributes:
        whole: Whether the tokens that it draws from are true and whole, rather than decoded.
        seed: Seed of the noise; row i of the tokens has noise of its own.
        trained: How it was trained.
    """

    cell_scale: Tensor
    token_scale: Tensor

    def __init__(self, recipe: GeneratorRecipe, nearest: KeyedNearest, code: PatchCode, flow: PictureFlow):
        super().__init__()
        self.recipe, self.code, self.flow = recipe, code, flow
        self.components, self.reader = nearest.components, nearest.reader
        self.nearest = nearest
        self.whole, self.seed = False, 0
        self.trained: dict[str, Any] = {}
        self.register_buffer("cell_scale", torch.ones(()))
        self.register_buffer("token_scale", torch.ones(()))

    @property
    def name(self) -> str:
        """Name that is printed with every score of the pictures."""
        return f"generator[{self.recipe.pixels}px]"

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with weights, bank, settings, reliability and seed."""
        settings = [self.recipe.to_json(), self.whole, self.seed, self.nearest.fingerprint]
        return json_digest(["generator", weights_hash(self), *settings])

    def calibrated(self, decoded: Tokens, true: Tokens, pooled: np.ndarray) -> "Generator":
        """The same for the tokens of one decoder, see `KeyedNearest.calibrated`."""
        return self.told(nearest=self.nearest.calibrated(decoded, true, pooled))

    def told(self, **changes: Any) -> "Generator":
        """Copy this generator and change its `nearest`, `whole` or `seed`."""
        other = copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def forward(self, tokens: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) fp32 in [0, 1], drawn from tokens (n, m, d), 64 at a time.

        Raises:
            AxisError: Tokens of another shape.
            BrainDataError: Tokens that are not finite.
        """
        if not tokens.isfinite().all():
            raise BrainDataError("expected finite tokens, got NaN or infinity")
        parts = tokens.split(CHUNK)
        drawn = [self._draw(part, number * CHUNK) for number, part in enumerate(parts)]
        return torch.cat(drawn).to(tokens.device)

    def samples(self, tokens: Tensor, count: int) -> Tensor:
        """Several pictures (count, n, 3, H, W) from the same tokens, with seeds from `seed` on."""
        return torch.stack([self.told(seed=self.seed + number)(tokens) for number in range(count)])

    def _draw(self, tokens: Tensor, first: int) -> Tensor:
        device, size = self.cell_scale.device, self.flow.size
        tokens = tokens.to(device, torch.float32)
        trust = self.nearest.reliability
        scores = trust.calibrated(self.components(tokens))
        r = trust.r.to(device).expand_as(scores)
        with torch.no_grad():
            guess = self.nearest.reader(scores, r)
        rows = self.nearest.nearest(scores, r, guess)
        codes = self.code.encode(pixels_of(self.nearest.bank.images(rows.cpu().numpy())).to(device))
        whole = self.features(tokens) if self.whole else None
        given = self.conditions(scores, r, guess, codes, whole)
        noise = torch.stack([self._noise(first + row, size) for row in range(len(tokens))]).to(device)
        begun = 0.0 if self.whole else self.recipe.since
        options = {"steps": self.recipe.steps, "guidance": self.recipe.guidance, "since": begun}
        drawn = self.flow.draw(given, noise, start=codes if begun else None, **options)
        return self.code.decode(drawn)

    def _noise(self, row: int, size: FlowSize) -> Tensor:
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + row)
        return torch.randn(size.channels, size.grid, size.grid, generator=rng)

    def features(self, tokens: Tensor) -> Tensor:
        """Principal features (n, m, width) of whole tokens."""
        return (tokens - self.components.center) @ self.components.features.T

    def conditions(
        self, scores: Tensor, r: Tensor, guess: Tensor, codes: Tensor, whole: Tensor | None = None
    ) -> Conditions:
        """What a picture is drawn from, all on the grid of the code where it has a place.

        Args:
            scores, r: (n, K) Calibrated scores and their reliabilities.
            guess: (n, p) Standardised pooled features.
            codes: (n, c, g, g) Codes of the nearest pictures.
            whole: (n, m, width) Features of whole tokens, zero in rows that have none.
        """
        size, count = self.flow.size, len(scores)
        expected = self.components.cells(scores * r) - self.components.cells(torch.zeros_like(scores))
        placed = [codes, _on_grid(expected / self.cell_scale, size.grid)]
        if whole is None:
            placed.append(codes.new_zeros(count, size.token_width, size.grid, size.grid))
        else:
            placed.append(_on_grid(whole / self.token_scale, size.grid))
        flags = [x.flatten(1).any(1).float()[:, None] for x in (placed[2], codes)]
        return Conditions(torch.cat(placed, 1), torch.cat([guess, levels(r), *flags], 1))

    def save(self, folder: str | Path) -> None:
        """Write `generator.safetensors` and `generator.json`, and beside them what `KeyedNearest.save` does.

        Matrices of the flow are rounded to int8 with a scale for each row.

        Args:
            folder: Folder; created where needed.
        """
        folder = Path(folder)
        self.nearest.save(folder)
        exact = {name: value for name, value in self.state_dict().items() if not name.startswith("flow.")}
        exact = {name: value for name, value in exact.items() if not name.startswith(("components.", "reader."))}
        packed = pack_rows(cpu(self.flow.state_dict(prefix="flow.")))
        content = {"format": FORMAT, "recipe": self.recipe.to_json(), "trained": self.trained}
        with whole_file(folder / "generator.safetensors", shared=True) as partial:
            save_file(packed | cpu(exact), partial)
        with whole_file(folder / "generator.json", shared=True) as partial:
            partial.write_text(json.dumps(content, indent=1))

    @classmethod
    def load(
        cls, folder: str | Path, images: Callable[[Ids, int], np.ndarray], device: str | torch.device = "cpu"
    ) -> "Generator":
        """Load what `save` has written.

        Args:
            folder: Folder.
            images: Function from ids and a side in pixels to pictures (n, side, side, 3) uint8, such as
                `StimulusSet.images`.
            device: Device of the generator.

        Raises:
            LayoutError: A file is missing, damaged or of another format, or weights are missing or left over.
        """
        folder = Path(folder)
        try:
            content = read_json(folder / "generator.json")
        except (OSError, ValueError) as error:
            raise LayoutError(f"expected a folder that Generator.save has written, got {folder}: {error}") from error
        if content.get("format") != FORMAT:
            raise LayoutError(f"expected format {FORMAT} in {folder}, got {content.get('format')}")
        recipe = from_json(GeneratorRecipe, content["recipe"], f"recipe in {folder}")
        nearest = KeyedNearest.load(folder, lambda ids: images(ids, recipe.pixels), device)
        made = build(recipe, nearest)
        own = unpack_rows(read_tensors(folder / "generator.safetensors", LayoutError))
        state = {
            name: value for name, value in made.state_dict().items() if name.startswith(("components.", "reader."))
        }
        try:
            made.load_state_dict(state | own)
        except RuntimeError as error:
            raise LayoutError(f"the weights in {folder} do not fit: {error}") from error
        made.trained = content["trained"]
        return made.to(device).eval().requires_grad_(False)


def build(recipe: GeneratorRecipe, nearest: KeyedNearest) -> Generator:
    """A generator with a new flow and code around components, reader and bank."""
    size = flow_size(recipe, nearest.components.size, nearest.bank.pooled.shape[1])
    return Generator(recipe, nearest, PatchCode(recipe.patch, recipe.channels), PictureFlow(size))


def flow_size(recipe: GeneratorRecipe, size: ComponentsSize, pooled: int) -> FlowSize:
    """Sizes of the flow.

    Raises:
        AxisError: Tokens without a grid, which have no place in a picture.
    """
    if size.side is None:
        raise AxisError(f"expected tokens of a square grid to draw from, got {size.num_tokens}; take KeyedNearest")
    known = levels(torch.zeros(1, size.count)).shape[1]
    return FlowSize(recipe.grid, recipe.channels, size.width, size.width, pooled, known, recipe.widths)


def _on_grid(cells: Tensor, grid: int) -> Tensor:
    """Cells (n, s * s, w) as a map (n, w, grid, grid), each drawn as a block."""
    side = round(cells.shape[1] ** 0.5)
    return F.interpolate(cells.transpose(1, 2).unflatten(2, (side, side)), grid, mode="nearest")
