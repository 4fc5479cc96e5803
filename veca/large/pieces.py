"""A forward that never holds all patches: what it needs beside the three steps of `Block`.

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

    The rotation tables of all patches are never built: they would take as much memory as D channels of the
    patches. Their coordinates, 8 bytes a patch, are kept.

    Args:
        model: with update="parallel", where pieces need nothing from each other.
        grid_size: (rows, cols) of all patches of the image.
        num_cores: C; None means the model's budget.
        device: where the blocks run.
        seed: of the random shift and scale of the patches' coordinates; in training only.

    Attributes:
        num_cores: C.
        grid_size: see above.
        dtype: of the residual stream.
        cores, raw_xy: what enters the first block, (C, E) and (C, 2).
        core_scale: as in `CoreAttention.forward`.
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
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(seed)
                xy = augment_coordinates(xy, model.rope_shift, model.rope_scale)
        self._xy = xy.to(device)  # (P, 2)

    def patch_rope(self, piece: slice) -> Tables:
        """Tables of these patches, each (n, D/2)."""
        return rope_tables(self._xy[piece], self._periods, self.model.rope_axis_order)

    def move_cores(self, index: int, cores: Tensor, raw_xy: Tensor) -> tuple[Tensor, Tensor]:
        """Before block `index`: new raw coordinates (B, C, 2), and q, k and v of the cores (B, C, E) there."""
        if index:
            raw_xy = self.model.core_steps[index - 1](raw_xy, cores)
        core_rope = rope_tables(raw_xy.tanh(), self._periods, self.model.rope_axis_order)
        return raw_xy, self.model.blocks[index].project_cores(cores, core_rope, self.core_scale)

    def pool(self, cores: Tensor, patch_mean: Tensor | None) -> Tensor:
        """The global token (B, E), from final cores (B, C, E) and the mean of all final patches (B, E).

        The mean is needed where `takes_patch_mean` says so.
        """
        patches = cores[:, :0] if patch_mean is None else patch_mean[:, None]
        return pool(cores, patches, self.model.global_from)

    @property
    def takes_patch_mean(self) -> bool:
        return "patch_mean" in self.model.global_from

    def finish(self, tokens: Tensor) -> Tensor:
        """What comes after the last block, the final norm and the output linear, for any of the tokens."""
        return self.model.output(self.model.norm(tokens))
