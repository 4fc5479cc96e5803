"""The backbone: a vision transformer whose patches exchange information only through learned cores that move.

    tokens = [cores[:C] ; patches]
    for each block:  move the cores, then  tokens = block(tokens)

VECA, arXiv 2605.12491. Attention costs O(P C), so the cost of the whole model is linear in the number of patches.

Shapes: B images, M cores in the bank, C active cores (the budget), P = rows * cols patches. The blocks see T = C + P
tokens of embedding dim E, in heads of dim D.
"""

import warnings
from collections.abc import Sequence

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .arguments import checked, whole_number
from .attention import Tables
from .block import Block
from .cores import DEFAULT_CORES, CoreBank, CoreStep, default_budgets
from .features import AttentionMaps, Features, pool, single, zero_inactive
from .hub import HubMixin
from .interface import BackboneInterface, init_linear
from .modules import Modules
from .padding import PatchEmbed
from .rope import augment_coordinates, rope_periods, rope_tables, tables_for
from .tokens import Frame, core_read_scale, embed_patches, patch_positions

__all__ = ["VECA"]

_CHOICES = {
    "global_from": ("core0", "core_mean", "patch_mean", "core0+patch_mean", ""),
    "on_odd": ("pad", "crop", "error"),
    "update": ("parallel", "sequential"),
    "coord_norm": ("separate", "max", "min"),
    "rope_axis_order": ("xy", "yx"),
    "rope_layout": ("interleaved", "half"),
    "impl": ("auto", "triton", "sdpa", "reference"),
}


class VECA(BackboneInterface, nn.Module, HubMixin):
    """Core-periphery vision transformer. All arguments are plain values, so config and weights define a model.

    Args:
        embed_dim, depth, num_heads: E, number of blocks, H. The head dim E / H must be a multiple of 4.
        mlp_ratio: hidden width of the SwiGLU: int(E * mlp_ratio), rounded up to a multiple of `multiple_of`.
        multiple_of: see `mlp_ratio`. 8 and 64 suit tensor cores; 1 keeps the published widths.
        patch_size, in_chans: side of a patch in pixels, and number of channels of the images.
        img_size: nominal size in pixels, kept in `patch_embed.grid_size`. The model takes images of any size.
        crop_pct: share of the resized shorter side that the transform of `veca.load` keeps, above 0 and at most 1.
        mean, std: mean and deviation of each channel, with which the caller normalises images in [0, 1]. None means
            ImageNet's for three channels, 0.5 for any other number.
        num_cores: M, size of the core bank.
        trained_budgets: budgets that a call may name without a warning; None means the multiples of 8, and M.
        budget: number of cores of a call that names none; None means M.
        num_classes: width of the classifier; 0 has none.
        output_dim: width of the features. A linear layer after the final norm makes it if it is not E. None means E.
        global_from: source of the global token: "core0", "core_mean", "patch_mean", or the sum "core0+patch_mean".
            With "", `forward` does not pool: it returns all tokens, or the logits of each.
        on_odd: what happens to sizes that are not a multiple of the patch. "pad" adds zeros right and bottom, "crop"
            cuts there, "error" raises.
        update, core_self, patch_self: arguments of `Block`.
        coord_norm: argument of `rope.patch_coordinates`: "separate", "max" or "min".
        rope_base, rope_zero_low: `base` and `zero_low` of `rope.rope_periods`.
        rope_axis_order, rope_layout: "xy" or "yx"; "interleaved" or "half" rows in the q and k weights.
        rope_shift, rope_scale: random shift and scale of the patch coordinates in training, one draw for each batch.
            The published models used 0.08 and 2.
        core_step_norm, core_step_max: `norm` and `max_step` of `CoreStep`, which moves the cores.
        core_logit_log_scale: a number of patches N. The scores of the core read are multiplied by log P / log N, so
            that its softmax is as sharp for any P. None is off.
        norm_eps, qk_norm, init_values: arguments of `Block`.
        drop_path_rate: drop path of the last block. It grows linearly from 0 at the first.
        impl: attention implementation in `veca_kernels`: "auto", "triton", "sdpa" or "reference".
        fused_norm, recompute: arguments of `Block`. kernels/README.md says what they save for the backward pass.

    Attributes:
        budget, trained_budgets: see above.

    Attributes that are named like an argument may be set, and are then saved with the model.

    Raises:
        TypeError: a number of another kind.
        ValueError: an unknown choice, a head dim that is not a multiple of 4, or a number out of range.
    """

    @checked
    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 2.66667,
        multiple_of: int = 1,
        patch_size: int = 16,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 224,
        crop_pct: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_cores: int = DEFAULT_CORES,
        trained_budgets: Sequence[int] | None = None,
        budget: int | None = None,
        num_classes: int = 0,
        output_dim: int | None = None,
        global_from: str = "core0",
        on_odd: str = "pad",
        update: str = "parallel",
        core_self: bool = True,
        patch_self: bool = False,
        coord_norm: str = "separate",
        rope_base: float = 100.0,
        rope_zero_low: float = 0.125,
        rope_axis_order: str = "xy",
        rope_layout: str = "interleaved",
        rope_shift: float = 0.0,
        rope_scale: float = 1.0,
        core_step_norm: bool = False,
        core_step_max: float | None = None,
        core_logit_log_scale: int | None = None,
        norm_eps: float = 1e-5,
        qk_norm: bool = False,
        init_values: float | None = None,
        drop_path_rate: float = 0.0,
        impl: str = "auto",
        fused_norm: bool = True,
        recompute: bool = True,
    ):
        super().__init__()
        self._check_choices(
            global_from=global_from,
            on_odd=on_odd,
            update=update,
            coord_norm=coord_norm,
            rope_axis_order=rope_axis_order,
            rope_layout=rope_layout,
            impl=impl,
        )
        if embed_dim % (4 * num_heads):
            raise ValueError(f"expected a head dim of 4 n, got embed_dim={embed_dim} and num_heads={num_heads}")
        if budget is not None and budget > num_cores:
            raise ValueError(f"expected budget from 1 to {num_cores}, the core bank, got {budget}")
        height, width = map(int, to_2tuple(img_size))
        mean = mean or (IMAGENET_DEFAULT_MEAN if in_chans == 3 else (0.5,) * in_chans)
        std = std or (IMAGENET_DEFAULT_STD if in_chans == 3 else (0.5,) * in_chans)
        if not len(mean) == len(std) == in_chans:
            raise ValueError(f"expected a mean and std for each of {in_chans} channels, got {len(mean)} and {len(std)}")

        self.embed_dim = embed_dim
        self.num_features = output_dim or embed_dim
        self.num_cores = num_cores
        self.budget = num_cores if budget is None else budget
        self.trained_budgets = tuple(trained_budgets or default_budgets(num_cores))
        self.num_classes = num_classes
        self.mean, self.std = tuple(mean), tuple(std)
        self._set_option("mean", list(mean))
        self._set_option("std", list(std))
        self.crop_pct = crop_pct
        self.global_from = global_from
        self.on_odd = on_odd
        self.coord_norm = coord_norm
        self.rope_base = rope_base
        self.rope_zero_low = rope_zero_low
        self.rope_axis_order = rope_axis_order
        self.rope_shift = rope_shift
        self.rope_scale = rope_scale
        self.core_logit_log_scale = core_logit_log_scale
        self.grad_checkpointing = False

        # None as the size: timm's check of a known size would fix a compiled graph to that size
        self.patch_embed = PatchEmbed(None, patch_size, in_chans, embed_dim, output_fmt="NHWC")
        self.patch_embed.grid_size = (height // patch_size, width // patch_size)
        self.core_bank = CoreBank(num_cores, embed_dim)
        self.core_steps = Modules(
            CoreStep(embed_dim, core_step_norm, core_step_max, norm_eps) for _ in range(depth - 1)
        )
        hidden_dim = int(embed_dim * mlp_ratio)
        self.blocks = Modules(
            Block(
                embed_dim,
                num_heads,
                hidden_dim + -hidden_dim % multiple_of,
                norm_eps=norm_eps,
                qk_norm=qk_norm,
                init_values=init_values,
                drop_path=drop_path_rate * index / max(depth - 1, 1),
                update=update,
                core_self=core_self,
                patch_self=patch_self,
                rope_layout=rope_layout,
                impl=impl,
                fused_norm=fused_norm,
                recompute=recompute,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        same_width = self.num_features == embed_dim
        self.output = nn.Identity() if same_width else nn.Linear(embed_dim, self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(init_linear)

    def forward(
        self, images: Tensor | Sequence[Tensor], num_cores: int | None = None, active_cores: Tensor | None = None
    ) -> Tensor:
        """Logits (B, num_classes), or the global token (B, num_features) of a model without classifier.

        With `global_from=""` it returns them for each token, (B, C + P, ...), the cores first.
        The arguments are those of `forward_features`.
        """
        return self.forward_head(self.forward_features(images, num_cores, active_cores=active_cores))

    def forward_features(
        self, images: Tensor | Sequence[Tensor], num_cores: int | None = None, active_cores: Tensor | None = None
    ) -> Features:
        """All features of a batch of images.

        Args:
            images: normalised images (B, 3, height, width) in the dtype of the weights, or in any floating dtype
                under autocast. Or a list of B images (3, height, width) of any sizes. They run in one batch as long
                as the largest, and each gets the features that it would get alone.
            num_cores: C, the budget of this call, 1 to M; None means `self.budget`.
            active_cores: budget of each image, int32 (B,), at most C. Later rows of `Features.cores` are zeros;
                later rows of `core_xy` have no meaning.

        Returns:
            The record, after the final norm.

        Raises:
            TypeError: images of another dtype than the weights, or `num_cores` not an int.
            ValueError: images of another shape, or `num_cores` out of range.
        """
        tokens, raw_xy, frame = self._enter(images, num_cores, active_cores)
        for index in range(len(self.blocks)):
            tokens, raw_xy = self._advance(index, tokens, raw_xy, frame)
        return self._record(tokens, raw_xy, frame)

    def forward_head(self, features: Features, pre_logits: bool = False) -> Tensor:
        """The classifier on top of `forward_features`; `pre_logits` stops before it."""
        pooled = features.global_token if self.global_from else features.tokens()
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        images: Tensor | Sequence[Tensor],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        num_cores: int | None = None,
    ) -> list[Tensor] | list[tuple[Tensor, Tensor]] | tuple[Features, list]:
        """Features after several blocks, with timm's arguments.

        Args:
            images, num_cores: as in `forward_features`.
            indices: an int means the last n blocks, a list means these blocks (negative from the end), None all.
            return_prefix_tokens: pair each map with the cores (B, C, E) after the same block.
            norm: apply the final norm to what is returned. False as in timm; DINOv2 has it True.
            stop_early: leave out the blocks after the last one asked for.
            output_fmt: "NCHW" for maps (B, E, rows, cols); "NLC" for (B, P, E), which a list of images needs.
            intermediates_only: return only the list.

        Returns:
            (record of the last block that ran, list in the order of the blocks), or the list.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"expected output_fmt 'NCHW' or 'NLC', got {output_fmt!r}")
        taken = self._block_indices(indices)
        tokens, raw_xy, frame = self._enter(images, num_cores)
        if output_fmt == "NCHW" and frame.patch_lengths is not None:
            raise ValueError("expected output_fmt 'NLC' with a list of images, got 'NCHW'")
        intermediates = []
        for index in range(max(taken) + 1 if stop_early else len(self.blocks)):
            tokens, raw_xy = self._advance(index, tokens, raw_xy, frame)
            if index not in taken:
                continue
            out = self.norm(tokens) if norm else tokens
            cores, patches = out[:, : frame.num_cores], zero_inactive(out[:, frame.num_cores :], frame.patch_lengths)
            if output_fmt == "NCHW":
                patches = (
                    patches.unflatten(1, single(frame.grid_size)).permute(0, 3, 1, 2).contiguous()
                )  # (B, E, rows, cols)
            intermediates.append((patches, cores) if return_prefix_tokens else patches)
        if intermediates_only:
            return intermediates
        return self._record(tokens, raw_xy, frame), intermediates

    def forward_maps(
        self,
        images: Tensor,
        num_cores: int | None = None,
        blocks: int | Sequence[int] | None = (-1,),
        stop_early: bool = False,
    ) -> tuple[Features, list[AttentionMaps]]:
        """The features and the attention maps of several blocks, from one pass.

        This is slow and takes O(B H C P) memory for each block. No other method builds maps.

        Args:
            images, num_cores: as in `forward_features`; images of one size.
            blocks: `indices` of `forward_intermediates`.
            stop_early: stop after the attention of the last of these blocks. The record is that of the block before.

        Returns:
            (record, maps in the order of the blocks).
        """
        if self.blocks[0].update != "parallel":
            raise ValueError(f"expected a model with update='parallel', got {self.blocks[0].update!r}")
        taken = self._block_indices(blocks)
        tokens, raw_xy, frame = self._enter(images, num_cores)
        if frame.patch_lengths is not None:
            raise ValueError("expected images of one size as one tensor for maps, got a list")
        maps = []
        for index in range(len(self.blocks)):
            raw_xy = self._move_cores(index, tokens, raw_xy, frame)
            if index in taken:
                maps.append(self._maps(index, tokens, raw_xy, frame))
            if stop_early and index == max(taken):
                break
            tokens = self._run_block(index, tokens, raw_xy, frame)
        return self._record(tokens, raw_xy, frame), maps

    def attention_maps(self, images: Tensor, num_cores: int | None = None, block: int = -1) -> AttentionMaps:
        """The attention maps of one block (negative from the end); see `forward_maps`."""
        return self.forward_maps(images, num_cores, [block], stop_early=True)[1][0]

    def _enter(
        self, images: Tensor | Sequence[Tensor], num_cores: int | None, active_cores: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Frame]:
        """Tokens (B, T, E), raw core coordinates (C, 2) and the frame of a batch of images."""
        num_cores = self.check_budget(num_cores)
        if not isinstance(active_cores, Tensor | None):
            raise TypeError(f"expected active_cores to be a tensor (B,) or None, got {type(active_cores).__name__}")
        patches = embed_patches(images, self.patch_embed, self.on_odd)
        device = patches.tokens.device
        cores = self.core_bank.tokens[:num_cores].expand(patches.tokens.shape[0], -1, -1)  # (B, C, E)
        tokens = torch.cat((cores, patches.tokens), 1)  # (B, T, E); fp32 under autocast, like the cores

        periods = rope_periods(self.blocks[0].attn.head_dim, self.rope_base, self.rope_zero_low, device)
        xy = patch_positions(patches.grid_size, self.coord_norm, device)
        if self.training and (self.rope_shift or self.rope_scale != 1):
            xy = augment_coordinates(xy, self.rope_shift, self.rope_scale)
        counts = patches.tokens.shape[1] if patches.lengths is None else patches.lengths
        frame = Frame(
            num_cores=num_cores,
            grid_size=patches.grid_size,
            periods=periods,
            patch_rope=tables_for(rope_tables(xy, periods, self.rope_axis_order), tokens),
            core_scale=core_read_scale(counts, self.core_logit_log_scale, device),
            active_cores=active_cores,
            patch_lengths=patches.lengths,
        )
        # a view of a parameter requires gradients even where none are recorded, which breaks hooks
        raw_xy = self.core_bank.raw_xy[:num_cores].clone()  # (C, 2)
        return tokens, raw_xy.to(torch.promote_types(raw_xy.dtype, torch.float32)), frame

    def _advance(self, index: int, tokens: Tensor, raw_xy: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Move the cores, then run block `index`."""
        raw_xy = self._move_cores(index, tokens, raw_xy, frame)
        return self._run_block(index, tokens, raw_xy, frame), raw_xy

    def _move_cores(self, index: int, tokens: Tensor, raw_xy: Tensor, frame: Frame) -> Tensor:
        return self.core_steps[index - 1](raw_xy, tokens[:, : frame.num_cores]) if index else raw_xy

    def _run_block(self, index: int, tokens: Tensor, raw_xy: Tensor, frame: Frame) -> Tensor:
        arguments = (
            tokens,
            frame.num_cores,
            self._core_rope(raw_xy, frame),
            frame.patch_rope,
            frame.core_scale,
            frame.active_cores,
            frame.patch_lengths,
        )
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.blocks[index], *arguments, use_reentrant=False)
        return self.blocks[index](*arguments)

    def _maps(self, index: int, tokens: Tensor, raw_xy: Tensor, frame: Frame) -> AttentionMaps:
        layer = self.blocks[index]
        core_rope = self._core_rope(raw_xy, frame)
        maps = layer.attn.maps(layer.norm1(tokens), frame.num_cores, core_rope, frame.patch_rope, frame.core_scale)
        return AttentionMaps(*maps, raw_xy.tanh().expand(tokens.shape[0], -1, -1), single(frame.grid_size))

    def _core_rope(self, raw_xy: Tensor, frame: Frame) -> Tables:
        return rope_tables(raw_xy.tanh(), frame.periods, self.rope_axis_order)

    def _record(self, tokens: Tensor, raw_xy: Tensor, frame: Frame) -> Features:
        tokens = self.output(self.norm(tokens))  # (B, T, num_features)
        cores = zero_inactive(tokens[:, : frame.num_cores], frame.active_cores)
        patches = zero_inactive(tokens[:, frame.num_cores :], frame.patch_lengths)
        return Features(
            global_token=pool(cores, patches, self.global_from, frame.active_cores, frame.patch_lengths),
            patches=patches,
            cores=cores,
            core_xy=raw_xy.tanh().expand(tokens.shape[0], -1, -1),
            grid_size=frame.grid_size,
            num_cores=frame.num_cores,
            patch_lengths=frame.patch_lengths,
        )

    def check_budget(self, num_cores: int | None) -> int:
        """The budget that a call uses: `self.budget` for None. Warns if the model was not trained with it.

        Raises:
            TypeError: not an int.
            ValueError: not from 1 to M.
        """
        num_cores = self.budget if num_cores is None else num_cores
        if isinstance(num_cores, bool) or not isinstance(num_cores, int):
            num_cores = whole_number("num_cores", num_cores)
        if not 1 <= num_cores <= self.num_cores:
            raise ValueError(f"expected num_cores from 1 to {self.num_cores}, the core bank, got {num_cores}")
        if not torch.compiler.is_compiling() and num_cores not in self.trained_budgets:
            trained = ", ".join(map(str, self.trained_budgets))
            warnings.warn(f"num_cores={num_cores} is not among the trained budgets {trained}", stacklevel=4)
        return num_cores

    @staticmethod
    def _check_choices(**given: str) -> None:
        for name, value in given.items():
            if value not in _CHOICES[name]:
                choices = ", ".join(choice or '""' for choice in _CHOICES[name])
                raise ValueError(f"expected {name} to be one of {choices}, got {value!r}")
