"""One image on many processes: each has some rows of the patches, and all have the same cores.

    each rank:    patches of its rows through a block, partial read (output, log-sum-exp) of the C cores
    exchange:     the partial reads, B H C (D + 1) numbers for each rank and block, for any image size
    each rank:    the cores through the block, with the same result on all ranks

    strip = images[:, :, patch_row_slice(model, images.shape[2])]  # or read only these rows
    features = forward_features(model, strip)
    loss(features).backward()
    reduce_gradients(model)

Objective: the sum over ranks of the losses on which the ranks call `backward`. Global token, cores and their positions
are the same on all ranks. A term of the loss that uses them belongs on one rank, or on all divided by their number.

The exchange has a backward pass too, so every rank must call `backward`. A rank without a loss term calls it on
`0 * features.global_token.sum()`. What requires gradients on one rank must require them on all.

Gradients: the gradient of a rank's strip is complete. The gradients of the weights, the core bank and its coordinates
are partial. All ranks compute the cores, but each rank's gradient has only what its loss terms and patches contribute,
so nothing is counted twice. `reduce_gradients` sums over ranks, which gives the whole gradient.
DistributedDataParallel would average instead.

Shapes: B images, C cores, P patches of all ranks, H heads, D head dim, E embedding dim.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from veca_kernels import merge_attention_states

from ..model.attention import Read
from ..model.backbone import VECA
from ..model.features import Features
from ..model.padding import fit_to_patches
from .pieces import Pieces

__all__ = ["Traffic", "forward_features", "patch_row_slice", "reduce_gradients"]

Group = dist.ProcessGroup | None


@dataclass
class Traffic:
    """Counts the bytes that this rank sends to the exchange.

    Attributes:
        forward, backward: bytes of the cores' partial reads, and bytes of their gradients.
        setup: bytes of the sizes that ranks tell each other, once in each forward.
    """

    forward: int = 0
    backward: int = 0
    setup: int = 0


def patch_row_slice(model: VECA, height: int, group: Group = None) -> slice:
    """Rows of pixels of this rank. Each rank gets whole rows of patches, the first ranks one row more.

    Args:
        model: the model, which gives the height of a patch and the rule for heights that are not a multiple of it.
        height: height of the whole image in pixels.
        group: the processes; None means all.

    Returns:
        A slice. It is empty on the last ranks where there are more ranks than rows of patches.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    patch_height = model.patch_embed.patch_size[0]
    rows = height // patch_height if model.on_odd == "crop" else -(-height // patch_height)
    share, more = divmod(rows, ranks)
    first = rank * share + min(rank, more)
    last = first + share + (rank < more)
    return slice(min(first * patch_height, height), min(last * patch_height, height))


def forward_features(
    model: VECA,
    strip: Tensor,
    num_cores: int | None = None,
    *,
    group: Group = None,
    traffic: Traffic | None = None,
) -> Features:
    """Compute `model.forward_features` of images whose rows are distributed over processes; see the module.

    Args:
        model: a model with update="parallel" and the same weights on every rank.
        strip: this rank's normalised rows of pixels (B, 3, rows, width), maybe none. The rows of all ranks, in order,
            make the images. Only the last strip that is not empty may have a height that is not a multiple of the
            patch.
        num_cores: C, the budget; None means the model's.
        group: the processes; None means all.
        traffic: record that counts the bytes.

    Returns:
        The record, with the patches and the grid of this rank. Everything else is the same on all ranks.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        ValueError: a model with update="sequential" or with dropout in training, or strips that do not fit together.
    """
    if not dist.is_initialized():
        raise RuntimeError("expected torch.distributed to be initialised; start with torchrun, call init_process_group")
    _check_no_dropping(model)
    exchange = _Exchange(group, traffic if traffic is not None else Traffic())
    patches = _embed(model, strip)  # (B, rows, cols, E)
    batch, rows, cols, _ = patches.shape
    odd = strip.shape[2] % model.patch_embed.patch_size[0] > 0
    above, all_rows, seed = exchange.agree((batch, cols, rows, odd, _seed(model)), strip.device)
    pieces = Pieces(model, (all_rows, cols), num_cores, strip.device, seed)
    patch_rope = pieces.patch_rope(slice(above * cols, (above + rows) * cols))

    patches, cores = patches.flatten(1, 2).to(pieces.dtype), pieces.cores.expand(batch, -1, -1)
    raw_xy = pieces.raw_xy
    for index, block in enumerate(model.blocks):
        raw_xy, core_qkv = pieces.move_cores(index, cores, raw_xy)
        if model.grad_checkpointing and torch.is_grad_enabled():
            patches, part = checkpoint(block.advance_patches, patches, core_qkv, patch_rope, use_reentrant=False)
        else:
            patches, part = block.advance_patches(patches, core_qkv, patch_rope)
        cores = block.advance_cores(cores, core_qkv, exchange.merge(part))

    cores, patches = pieces.finish(cores), pieces.finish(patches)
    patch_mean = None
    if pieces.takes_patch_mean:
        total = patches.sum(1, dtype=torch.promote_types(patches.dtype, torch.float32))
        patch_mean = (exchange.gather(total).sum(0) / (all_rows * cols)).to(patches.dtype)
    core_xy = raw_xy.tanh().expand(batch, -1, -1)
    global_token, patches, cores, core_xy = _Tie.apply(pieces.pool(cores, patch_mean), patches, cores, core_xy)
    return Features(
        global_token=global_token,
        patches=patches,
        cores=cores,
        core_xy=core_xy,
        grid_size=(rows, cols),
        num_cores=pieces.num_cores,
    )


def reduce_gradients(model: nn.Module, group: Group = None) -> None:
    """Replace every parameter's gradient by its sum over ranks. It is called after backward and before the optimiser.

    If a parameter has a gradient on some ranks only, it counts as zero on the others. A parameter without gradient on
    all ranks keeps none.

    Args:
        model: the model, the same on every rank.
        group: the processes; None means all.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(present, dist.ReduceOp.MAX, group)
    works = []
    for parameter, anywhere in zip(parameters, present.tolist(), strict=True):
        if not anywhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        works.append(dist.all_reduce(parameter.grad, dist.ReduceOp.SUM, group, async_op=True))
    for work in works:
        work.wait()


class _Exchange:
    """Communication between the ranks."""

    def __init__(self, group: Group, traffic: Traffic):
        self.group = group
        self.ranks = dist.get_world_size(group)
        self.traffic = traffic

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all ranks, (ranks, *shape), with the same result on all; differentiable."""
        return _Gather.apply(part.contiguous(), self)

    def merge(self, part: Read) -> Read:
        """Merge what the cores read from the patches of each rank."""
        out, lse = part
        parts = self.gather(torch.cat((out.to(lse.dtype), lse[..., None]), -1))  # (ranks, B, H, C, D + 1)
        return merge_attention_states(parts[..., :-1].unbind(0), parts[..., -1].unbind(0))

    def agree(self, mine: tuple[int, int, int, bool, int], device: torch.device) -> tuple[int, int, int]:
        """Number of rows of patches above this rank's, number in all, and a seed that all ranks share.

        Args:
            mine: number of images, of patches across and of rows of patches; whether the last row is not whole; a
                seed.
            device: device of the tensors that the group exchanges.
        """
        sizes = torch.tensor(mine, device=device)
        every = [torch.empty_like(sizes) for _ in range(self.ranks)]
        dist.all_gather(every, sizes, self.group)
        self.traffic.setup += sizes.nbytes
        batches, widths, heights, odds, seeds = torch.stack(every).T.tolist()
        if len(set(batches)) > 1 or len(set(widths)) > 1:
            raise ValueError(f"expected strips of one batch and width, got {batches} images of {widths} patches across")
        if sum(heights) == 0:
            raise ValueError("expected at least one row of patches, got empty strips on all ranks")
        for rank, odd in enumerate(odds):
            if odd and any(heights[rank + 1 :]):
                raise ValueError(f"expected whole rows of patches on all ranks but the last, got a part on rank {rank}")
        return sum(heights[: dist.get_rank(self.group)]), sum(heights), seeds[0]


class _Gather(torch.autograd.Function):
    """Sends each rank's part to all ranks. The backward pass sums the gradients of a part on the rank that sent it."""

    @staticmethod
    def forward(ctx, part: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        every = [torch.empty_like(part) for _ in range(exchange.ranks)]
        dist.all_gather(every, part, exchange.group)
        exchange.traffic.forward += part.nbytes
        return torch.stack(every)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        exchange = ctx.exchange
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, dist.ReduceOp.SUM, exchange.group)
        exchange.traffic.backward += total.nbytes
        return total[dist.get_rank(exchange.group)], None


class _Tie(torch.autograd.Function):
    """Returns the same tensors. The backward pass sets missing gradients to zero.

    A loss on some of the outputs then passes through every exchange, in the same order on every rank.
    """

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def _embed(model: VECA, strip: Tensor) -> Tensor:
    """Patches (B, rows, cols, E) of a strip, which may have no rows."""
    if not isinstance(strip, Tensor) or strip.ndim != 4 or strip.shape[2]:
        return model.patch_embed(fit_to_patches(strip, model.patch_embed, model.on_odd))
    one_row = strip.new_zeros(*strip.shape[:2], model.patch_embed.patch_size[0], strip.shape[3])
    whole = torch.cat((strip, one_row), 2)
    return model.patch_embed(fit_to_patches(whole, model.patch_embed, model.on_odd))[:, :0]


def _seed(model: VECA) -> int:
    """Seed of the shift and scale of the coordinates in training. All ranks use the one of rank 0."""
    drawn = model.training and (model.rope_shift or model.rope_scale != 1)
    return int(torch.randint(2**31, (), device="cpu")) if drawn else 0


def _check_no_dropping(model: VECA) -> None:
    """Refuse drop path and dropout, which would have to drop the same cores on all ranks."""
    if not model.training:
        return
    for name, module in model.named_modules():
        rate = getattr(module, "drop_prob", 0.0) or (module.p if isinstance(module, nn.Dropout) else 0.0)
        if rate:
            raise ValueError(f"expected drop path and dropout of 0 in training, got a rate of {rate} in {name}")
