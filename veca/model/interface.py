"""The methods that timm and DINOv2 expect of a backbone, besides its forward pass. `VECA` inherits them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from timm.layers.helpers import to_2tuple
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from .arguments import whole_number
from .block import Block
from .cores import CoreStep
from .modules import Modules
from .padding import PatchEmbed

__all__ = ["BackboneInterface", "global_source", "init_linear"]

_TIMM_POOLS = {"token": "core0", "avg": "patch_mean"}


class BackboneInterface:
    """Methods and attributes that heads, optimisers and timm's wrappers look for, under timm's names."""

    embed_dim: int
    num_features: int
    num_classes: int
    budget: int
    crop_pct: float
    config: dict[str, Any]
    training: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    global_from: str
    patch_embed: PatchEmbed
    blocks: "Modules[Block]"
    core_steps: "Modules[CoreStep]"
    norm: nn.Module
    head: nn.Module
    modules: Callable[[], Iterable[Any]]
    apply: Callable[[Callable[[nn.Module], None]], Any]
    forward_intermediates: Callable[..., Any]
    _check_choices: Callable[..., None]
    _set_option: Callable[[str, Any], None]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute. One that has a value already and is named like an argument is recorded in `config`."""
        if name in self.__dict__ and name in self.config:
            self._set_option(name, list(value) if isinstance(value, tuple) else value)
        super().__setattr__(name, value)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches, as timm counts them: the cores of a call that names no budget."""
        return self.budget

    @property
    def head_hidden_size(self) -> int:
        """Width of the vector that the classifier takes."""
        return self.num_features

    @property
    def in_chans(self) -> int:
        """Number of channels of the images."""
        return self.patch_embed.proj.in_channels

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride in pixels and module name of every block; timm's `features_only` reads them."""
        stride = max(self.patch_embed.patch_size)
        return [
            dict(num_chs=self.embed_dim, reduction=stride, module=f"blocks.{index}")
            for index in range(len(self.blocks))
        ]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of input and classifier; `timm.data.resolve_model_data_config(model)` reads it.

        Values that timm's builder has set are kept. Sizes, normalisation and classes always come from the model.
        """
        size = tuple(n * p for n, p in zip(self.patch_embed.grid_size, self.patch_embed.patch_size, strict=True))
        own = dict(
            input_size=(self.in_chans, *size),
            mean=self.mean,
            std=self.std,
            num_classes=self.num_classes,
            interpolation="bicubic",
            crop_pct=self.crop_pct,
            crop_mode="center",
            fixed_input_size=False,
            pool_size=None,
            first_conv="patch_embed.proj",
            classifier="head",
        )
        return self.__dict__.get("_given_cfg", {}) | own

    @pretrained_cfg.setter
    def pretrained_cfg(self, given: dict[str, Any]) -> None:
        self.__dict__["_given_cfg"] = dict(given)

    default_cfg = pretrained_cfg

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one with random weights.

        Args:
            num_classes: number of outputs; 0 removes the classifier.
            global_pool: new value of `global_from`, or timm's word for it: "token", "avg", or "" for no pooling. None
                keeps it.

        Raises:
            ValueError: an unknown `global_pool`.
        """
        weight = self.patch_embed.proj.weight
        if global_pool is not None:
            source = global_source(global_pool)
            self._check_choices(global_from=source)
            self.global_from = source
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.apply(init_linear).to(weight.device, weight.dtype).train(self.training)

    def init_weights(self, needs_reset: bool = True) -> None:
        """Draw all weights again, as in a new model. After `to_empty`, this fills a model from the meta device.

        Args:
            needs_reset: also reset norms, LayerScale and cores. False draws linear layers and convolutions only.
        """
        for module in self.modules() if needs_reset else ():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self.apply(init_linear)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Set the nominal size in pixels. No weight depends on it, and the model takes any size without this call.

        Args:
            img_size: new size; None keeps it.
            patch_size: must be the model's patch size, or None.

        Raises:
            ValueError: another patch size.
        """
        patch_h, patch_w = self.patch_embed.patch_size
        if patch_size is not None and to_2tuple(patch_size) != (patch_h, patch_w):
            raise ValueError(f"expected patch_size {patch_h} x {patch_w}, the weights', got {patch_size}")
        if img_size is not None:
            height, width = img_size if isinstance(img_size, Sequence) else (img_size, img_size)
            self.patch_embed.grid_size = (height // patch_h, width // patch_w)
            self._set_option("img_size", [height, width])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the cores, their coordinates and their step sizes."""
        steps = {f"core_steps.{index}.alpha" for index in range(len(self.core_steps))}
        return {"core_bank.tokens", "core_bank.raw_xy"} | steps

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters by depth, for layer-wise learning rates.

        A move of the cores belongs to the block before it.

        Args:
            coarse: argument of timm's method, without effect here.
        """
        return dict(
            stem=r"^patch_embed|^core_bank",
            blocks=[
                (r"^blocks\.(\d+)", None),
                (r"^core_steps\.(\d+)", None),
                (r"^(?:norm|output)\.", (99999,)),  # timm's number for the group of the last block
            ],
        )

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        norm: bool = True,
        return_cores: bool = False,
        num_cores: int | None = None,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Features after several blocks, as from `forward_intermediates`, with DINOv2's arguments.

        Args:
            x, num_cores: `images` and `num_cores` of `VECA.forward_features`.
            n: an int means the last n blocks, a list means these blocks (negative from the end).
            reshape: return maps (B, E, rows, cols) in place of (B, P, E).
            norm: apply the final norm. True as in DINOv2; timm's method of this name has it False.
            return_cores: pair each output with the cores (B, C, E) after the same block.

        Returns:
            One entry for each block, in the order of the blocks.
        """
        return tuple(
            self.forward_intermediates(
                x,
                n,
                return_prefix_tokens=return_cores,
                norm=norm,
                output_fmt="NCHW" if reshape else "NLC",
                stop_early=True,
                intermediates_only=True,
                num_cores=num_cores,
            )
        )

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last one of `indices`.

        Args:
            indices: blocks, as in `forward_intermediates`.
            prune_norm: remove the final norm too.
            prune_head: remove the classifier too.

        Returns:
            The absolute indices, ascending.
        """
        taken = self._block_indices(indices)
        self.blocks = self.blocks[: taken[-1] + 1]
        self.core_steps = self.core_steps[: taken[-1]]
        self._set_option("depth", len(self.blocks))
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def _block_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Absolute block numbers, ascending. An int means the last n, None means all."""
        depth = len(self.blocks)
        if not isinstance(indices, Iterable) or isinstance(indices, str):
            count = depth if indices is None else whole_number("indices", indices)
            if not 1 <= count <= depth:
                raise ValueError(f"expected the last 1 to {depth} blocks, got {count}")
            return list(range(depth - count, depth))
        indices = [whole_number("indices", index) for index in indices]
        for index in indices:
            if not -depth <= index < depth:
                raise ValueError(f"expected block indices from {-depth} to {depth - 1}, got {index}")
        return sorted({index % depth for index in indices})


def global_source(global_pool: str) -> str:
    """The value of `global_from` that means the same as timm's `global_pool`; other words are returned unchanged."""
    return _TIMM_POOLS.get(global_pool, global_pool)


def init_linear(module: nn.Module) -> None:
    """Initialise linear layers and convolutions: weights truncated normal of deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
