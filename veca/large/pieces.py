"""What a forward by pieces of the patches needs, besides the three methods of `Block`.

Such a forward never has all patches in memory. A piece is a range of the patches.

Shapes: B images, C cores, P patches = rows * cols in row-major order, E embedding dim, D head dim.
"""

import math

import torch
from torch import Tensor

from ..model.attention import Tables
from ..model.backbone import VECA
from ..model.features import pool
from ..model.rope import augment_coordinates, patch_coordinates, rope_periods, rope_tables
from ..model.tokens import core_read_scale

__all__ = ["Pieces"]


class Pieces:
    """The cores and all positions of a forward whose patches come a piece at a time.

    The rotation tables of all patches are never built, because they would take as much memory as D channels of the
    patches. Their coordinates are kept, 8 bytes for each patch.

    Args:
        model: a model with update="parallel", so that pieces do not depend on each other.
        grid_size: (rows, cols) of all patches of the image.
        num_cores: C; None means the model's budget.
        device: device where the blocks run.
        seed: seed of the random shift and scale of the patches' coordinates, used in training only.

    Attributes:
        num_cores: C.
        grid_size: see above.
        dtype: dtype of the residual stream.
        cores, raw_xy: input of the first block: core tokens (C, E) and raw coordinates (C, 2).
        core_scale: factor of the scores of the core read, as in `CoreAttention.forward`.

    Raises:
        ValueError: a model with update="sequential", or `num_cores` out of range.
    """

    def __init__(
        self,
        model: VECA,
        grid_size: tuple[int, int],
        num_cores: int | None,
        device: torch.device,
        seed: int | None = None,
    ):
        if model.blocks[0].update != "parallel":
            raise ValueError(f"expected a model with update='parallel', got {model.blocks[0].update!r}")
        self.model = model
        self.num_cores = model.check_budget(num_cores)
        self.grid_size = grid_size
        tokens = model.core_bank.tokens
        self.dtype = torch.promote_types(model.patch_embed.proj.weight.dtype, tokens.dtype)
        self.cores = tokens[: self.num_cores].to(self.dtype)
        raw_xy = model.core_bank.raw_xy[: self.num_cores]
        self.raw_xy = raw_xy.to(torch.promote_types(raw_xy.dtype, torch.float32))
        self.core_scale = core_read_scale(math.prod(grid_size), model.core_logit_log_scale, device)
        self._periods = rope_periods(model.blocks[0].attn.head_dim, model.rope_base, model.rope_zero_low, device)
        xy = patch_coordinates(*grid_size, model.coord_norm)
        if model.training and (model.rope_shift or model.rope_scale != 1):
            if seed is None:
                raise ValueError("expected a seed of the shift and scale in training, got None")
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                xy = augment_coordinates(xy, model.rope_shift, model.rope_scale)
        self._xy = xy.to(device)  # (P, 2)

    def patch_rope(self, piece: slice) -> Tables:
        """Rotation tables (cos, sin) of these n patches, each (n, D/2)."""
        return rope_tables(self._xy[piece], self._periods, self.model.rope_axis_order)

    def move_cores(self, index: int, cores: Tensor, raw_xy: Tensor) -> tuple[Tensor, Tensor]:
        """Move the cores before block `index`.

        Args:
            index: number of the block, from 0.
            cores: core tokens (B, C, E).
            raw_xy: raw coordinates (C, 2) or (B, C, 2).

        Returns:
            New raw coordinates (B, C, 2), and q, k and v of the cores in that block (B, C, 3, H, D).
        """
        if index:
            raw_xy = self.model.core_steps[index - 1](raw_xy, cores)
        core_rope = rope_tables(raw_xy.tanh(), self._periods, self.model.rope_axis_order)
        return raw_xy, self.model.blocks[index].project_cores(cores, core_rope, self.core_scale)

    def pool(self, cores: Tensor, patch_mean: Tensor | None) -> Tensor:
        """The global token (B, E), from final cores (B, C, E) and the mean of all final patches (B, E).

        The mean is needed if `takes_patch_mean` is True.
        """
        patches = cores[:, :0] if patch_mean is None else patch_mean[:, None]
        return pool(cores, patches, self.model.global_from)

    @property
    def takes_patch_mean(self) -> bool:
        """Whether the global token needs the mean of the patches."""
        return "patch_mean" in self.model.global_from

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the final norm and the output layer to any of the tokens (..., E)."""
        return self.model.output(self.model.norm(tokens))
