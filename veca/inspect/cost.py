"""The cost of a forward pass: FLOPs by formula and by counting operators, and peak memory.

A multiply-add is two FLOPs. Norms, softmax, rotations and activations are not counted.

Symbols: P patches, C active cores, T tokens, E embedding dim, h hidden width of the FFN, L blocks.
"""

import copy
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..model.backbone import VECA

__all__ = [
    "Cost",
    "break_even_side",
    "core_attention_flops",
    "counted_flops",
    "dense_attention_flops",
    "forward_cost",
    "num_patches",
    "peak_bytes",
]


class Cost(NamedTuple):
    """FLOPs of one image.

    Attributes:
        attention: the attention of one block with its q, k, v and output projections.
        block: the attention sub-layer and the FFN of one block.
        model: all blocks, the patch embedding and, for VECA, the moves of the cores.
    """

    attention: int
    block: int
    model: int


def core_attention_flops(patches: int, num_cores: int, dim: int) -> int:
    """FLOPs of the attention sub-layer of a VECA block are 8 (P + C) E^2 + 4 E (2 P C + C^2).

    Args:
        patches: P.
        num_cores: C.
        dim: E.
    """
    pairs = 2 * patches * num_cores + num_cores**2
    return 8 * (patches + num_cores) * dim**2 + 4 * dim * pairs


def dense_attention_flops(tokens: int, dim: int) -> int:
    """FLOPs of an attention sub-layer in which all tokens attend to all are 8 T E^2 + 4 E T^2.

    Args:
        tokens: T.
        dim: E.
    """
    return 8 * tokens * dim**2 + 4 * dim * tokens**2


def num_patches(model: nn.Module, height: int, width: int) -> int:
    """Number of patches of an image, P. A rest at the right or the bottom is padded to a whole patch.

    Args:
        model: a model with `patch_embed.patch_size`.
        height, width: size of the image in pixels.
    """
    network: Any = model
    patch_h, patch_w = network.patch_embed.patch_size
    return -(-height // patch_h) * -(-width // patch_w)


def forward_cost(model: nn.Module, height: int, width: int, num_cores: int | None = None) -> Cost:
    """FLOPs of a forward pass by formula.

        block            attention sub-layer + 6 T E h for a SwiGLU, or 4 T E h for a plain MLP
        patch embedding  2 P E times the number of values in a patch
        moves of cores   4 C E for each block but the first

    Args:
        model: a `VECA` with its default attention, or a timm VisionTransformer with full attention.
        height, width: size of the image in pixels.
        num_cores: C of a `VECA`; None means its budget.
    """
    network: Any = model
    dim, depth = network.embed_dim, len(network.blocks)
    hidden = network.blocks[0].mlp.fc2.in_features
    patches = num_patches(model, height, width)
    embedding = 2 * patches * network.patch_embed.proj.weight.numel()
    if isinstance(model, VECA):
        num_cores = model.budget if num_cores is None else num_cores
        attention = core_attention_flops(patches, num_cores, dim)
        block = attention + 6 * (patches + num_cores) * dim * hidden
        moves = (depth - 1) * 4 * num_cores * dim
        return Cost(attention, block, depth * block + embedding + moves)
    tokens = patches + network.num_prefix_tokens
    attention = dense_attention_flops(tokens, dim)
    block = attention + 4 * tokens * dim * hidden
    return Cost(attention, block, depth * block + embedding)


def break_even_side(veca: VECA, vit: nn.Module, num_cores: int | None = None) -> int:
    """The smallest side of a square image in pixels at which VECA takes no more FLOPs than a plain ViT.

    Args:
        veca: a VECA with its default attention.
        vit: a timm VisionTransformer with full attention.
        num_cores: C; None means the budget of `veca`.
    """
    side = step = veca.patch_embed.patch_size[0]
    while forward_cost(veca, side, side, num_cores).model > forward_cost(vit, side, side).model:
        side += step  # the loop ends, because VECA's cost grows with P and the ViT's with P^2
    return side


def counted_flops(model: nn.Module, height: int, width: int, **options: object) -> int:
    """FLOPs of `model.forward_features` for one image, as torch counts them operator by operator.

    Nothing is computed: a copy of the model without data runs on torch's "meta" device.

    Args:
        model: any model with `forward_features`.
        height, width: size of the image in pixels.
        options: further arguments of `forward_features`.
    """
    hollow: Any = copy.deepcopy(model).requires_grad_(False).to("meta")
    images = torch.empty(1, 3, height, width, device="meta", dtype=next(hollow.parameters()).dtype)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        hollow.forward_features(images, **options)
    return counter.get_total_flops()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes in use at once during `call`, beyond those in use before.

    On CUDA the allocator counts. On a CPU each tensor counts from the operator that returns it until it is freed. This
    is exact and repeatable, unlike the size of the process, but it does not see buffers inside an operator.

    Args:
        call: function that does the work.
        device: device on which it works.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveTensors() as live:
        call()
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the storages that operators make. A storage first seen as an argument is older."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()
        self._earlier: list[torch.UntypedStorage] = []  # kept, so that no new storage gets their address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self._earlier.append(storage)
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
