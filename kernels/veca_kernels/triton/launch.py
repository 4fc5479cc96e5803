"""From tensors to launches: buffers, split counts, strides. The only caller of the kernels.

Tensors come token-major by meaning, (B, T, H, D) with any strides but a contiguous last dimension. A pass over the
patches is cut into splits when its images and heads alone would not fill the device; partial results of the splits
are fp32, joined by a second small kernel in split order, so every run gives the same bits.
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..support import device_facts
from . import plan, read, write
from .plan import empty
from .tables import Tile, choose_tile, split_head_dim

_MAX_SPLITS = 64
_MIN_TILES_PER_SPLIT = 4
_PARTIAL_BYTES = 24 << 20  # all partials of a pass together: they must stay in L2 between their two kernels
_COMBINE_ROWS = 4
_SUM_BLOCK = 1024


def split_count(programs: int, tiles: int, bytes_per_split: int, num_sms: int) -> int:
    """The number of splits that is fastest on paper: waves of two blocks a multiprocessor, times tiles of a block.

    Loading what a program keeps and writing its partial count as two tiles. At least 4 tiles a split, at most 64
    splits, all partials together within 24 MB; the fewest splits among equals.
    """
    most = min(_MAX_SPLITS, tiles // _MIN_TILES_PER_SPLIT, _PARTIAL_BYTES // max(bytes_per_split, 1))

    def cost(splits: int) -> int:
        return math.ceil(programs * splits / (2 * num_sms)) * (math.ceil(tiles / splits) + 2)

    return min(range(1, max(most, 1) + 1), key=cost)


@dataclass(frozen=True)
class Call:
    """One call of the op: what all of its launches share.

    In a joint tensor patches start at row C; the halves have cores and patches in tensors of their own, row 0 both.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    cores: int
    patches: int
    first_patch: int
    active: int | Tensor
    lengths: Tensor | None
    rope: tuple[Tensor, Tensor] | None
    scale: float
    core_self: bool = False
    patch_self: bool = False

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        return self.q.shape[2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[3]

    @property
    def num_sms(self) -> int:
        return device_facts(self.q.device)[0]

    def tile(self, kernel: str) -> Tile:
        rotated, shared = self.rope is not None, device_facts(self.q.device)[1]
        return choose_tile(kernel, self.cores, self.head_dim, self.q.element_size(), rotated, self.patch_self, shared)

    def tiles(self, tile: Tile) -> int:
        """Tiles of a walk over the patches, and before them over the cores where they read each other."""
        return self.core_tiles(tile) + triton.cdiv(self.patches, tile.block_p)

    def core_tiles(self, tile: Tile) -> int:
        return triton.cdiv(self.cores, tile.block_p) if self.core_self else 0

    def launch(self, kernel: Any, tile: Tile, splits: int, tiles: int, rows: dict[str, Tensor], **own: Any) -> None:
        """Launch one program per (image, split, head). `rows` are tensors (B, T, H, D) that the kernel addresses."""
        rows = dict(q=self.q, k=self.k, v=self.v, **rows)
        align = alignment(*rows.values())
        d1, d2 = split_head_dim(self.head_dim)
        launch(
            kernel,
            self.batch * splits * self.heads,
            self.q.device,
            **{name: kernel_rows(x, align) for name, x in rows.items()},
            rope=self._rope(),
            active=self.active,
            lengths=self.lengths,
            scale=self.scale,
            B=self.batch,
            H=self.heads,
            C=self.cores,
            P=self.patches,
            first_patch=self.first_patch,
            num_splits=splits,
            tiles_per_split=triton.cdiv(tiles, splits),
            **own,
            D=self.head_dim,
            D1=d1,
            D2=d2,
            BC=tile.block_c,
            BP=tile.block_p,
            ALIGN=align,
            PRECISION=fp32_precision(self.q.device, kernel, tile),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )

    def _rope(self) -> tuple[Any, ...] | None:
        if self.rope is None:
            return None
        cos, sin = (x.contiguous() for x in self.rope)
        return cos, sin, encode_stride(cos.stride(0) // 4 if cos.ndim == 3 else 0)


def launch(kernel: Any, programs: int, device: torch.device, **arguments: Any) -> None:
    """Launch a flat grid on the device of the tensors; an empty grid is no launch."""
    if programs == 0:
        return
    # on a CPU: the interpreter, or an emulated device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        compiled = kernel[(programs,)](**arguments)
    plan.note(kernel, programs, compiled, arguments)


def alignment(*tensors: Tensor) -> int:
    """8 if every stride but the last is a multiple of 8 elements, else 1."""
    return 8 if all(s % 8 == 0 for x in tensors for s in x.stride()[:-1]) else 1


def encode_stride(stride: int) -> int:
    """An odd number, which Triton does not specialise on; see tiles.py."""
    return 2 * stride + 3


def kernel_rows(x: Tensor, align: int) -> tuple[Any, ...]:
    """(pointer, strides of all but the last dimension)."""
    return (x, *(encode_stride(s // align) for s in x.stride()[:-1]))


def fp32_precision(device: torch.device, kernel: Any, tile: Tile) -> str:
    """tf32 only where the user asked torch for it.

    Backward kernels with 64 rows of cores stay exact: Triton 3.6 and 3.9 fail to compile their transposed tf32
    products for sm_90 (TritonGPUOptimizeDotOperands, 2026-11-22).
    """
    if device.type != "cuda" or torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    backward = kernel in (read.read_backward, write.write_backward)
    return "ieee" if backward and tile.block_c >= 64 else "tf32"


def run_read_forward(call: Call, out: Tensor) -> Tensor:
    """Write the core rows of `out`, return their log-sum-exp (B, H, C)."""
    B, H, C, D = call.batch, call.heads, call.cores, call.head_dim
    tile = call.tile("read_forward")
    tiles = call.tiles(tile)
    splits = split_count(B * H, tiles, 4 * B * H * C * (D + 1), call.num_sms)
    lse = empty(out, (B, H, C), torch.float32)
    if C == 0:
        return lse
    part, part_lse = out, lse
    if splits > 1:
        part = empty(out, (splits * B, C, H, D), torch.float32)
        part_lse = empty(out, (splits, B, H, C), torch.float32)
    core_tiles = call.core_tiles(tile)
    call.launch(read.read_forward, tile, splits, tiles, dict(out=part), lse=part_lse, core_tiles=core_tiles)
    if splits > 1:
        align = alignment(out)
        launch(
            read.combine_reads,
            B * H * triton.cdiv(C, _COMBINE_ROWS),
            out.device,
            part=part,
            part_lse=part_lse,
            out=kernel_rows(out, align),
            lse=lse,
            B=B,
            H=H,
            C=C,
            num_splits=splits,
            D=D,
            BD=triton.next_power_of_2(D),
            ROWS=_COMBINE_ROWS,
            ALIGN=align,
            enable_fp_fusion=True,
        )
    return lse


def run_write_forward(call: Call, out: Tensor) -> None:
    """Write the patch rows of `out`."""
    tile = call.tile("write_forward")
    tiles = triton.cdiv(call.patches, tile.block_p)
    if tiles == 0:
        return
    wanted = max(1, 4 * call.num_sms // max(call.batch * call.heads, 1))
    splits = triton.cdiv(tiles, triton.cdiv(tiles, min(tiles, wanted)))  # no program without a tile
    call.launch(write.write_forward, tile, splits, tiles, dict(out=out), PATCH_SELF=call.patch_self)


def partial_sums(call: Call, kinds: int) -> tuple[int, Tensor | None]:
    """Splits of a backward pass, and room for `kinds` sums of each: (kinds, splits B, C, H, D), None for one split."""
    B, H, C, D = call.batch, call.heads, call.cores, call.head_dim
    rows = max(call.tile(name).block_p for name in ("read_backward", "write_backward"))
    splits = split_count(B * H, triton.cdiv(call.patches, rows), 4 * kinds * B * H * C * D, call.num_sms)
    if splits == 1:
        return 1, None
    return splits, empty(call.q, (kinds, splits * B, C, H, D), torch.float32)


def run_read_backward(
    call: Call,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor | None,
    grads: tuple[Tensor, ...],
    splits: int,
) -> Tensor:
    """Write dk, dv of the patches and dq of the cores (or its partial sums); return delta (B, H, C)."""
    tile = call.tile("read_backward")
    delta = empty(lse, lse.shape)
    dq, dk, dv = grads
    rows = dict(out=out, dout=dout, dq=dq, dk=dk, dv=dv)
    own = dict(lse=lse, dlse=dlse, delta=delta, core_tiles=call.core_tiles(tile))
    call.launch(read.read_backward, tile, splits, call.tiles(tile), rows, **own)
    return delta


def run_write_backward(
    call: Call,
    dout: Tensor,
    grads: tuple[Tensor, ...],
    splits: int,
    known: tuple[Tensor, Tensor] | None = None,
    own: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write dq of the patches, dk and dv of the cores (or their partial sums).

    known: (lse, delta) of the cores, which then join as query rows. own: dk and dv of the patches, to be added to.
    """
    tile = call.tile("write_backward")
    dq, dk, dv = grads
    dk_own, dv_own = own or (dq, dq)
    lse, delta = known or (None, None)
    rows = dict(dout=dout, dq=dq, dk=dk, dv=dv, dk_own=dk_own, dv_own=dv_own)
    constants = dict(core_tiles=call.core_tiles(tile), PATCH_SELF=own is not None)
    call.launch(write.write_backward, tile, splits, call.tiles(tile), rows, lse=lse, delta=delta, **constants)


def sum_partials(call: Call, part: Tensor, out: Tensor, splits: int) -> None:
    """Core rows of out (kinds, B, T, H, D) = sums over splits of part (kinds, splits B, C, H, D)."""
    align = alignment(out)
    launch(
        write.sum_partials,
        triton.cdiv(call.cores * call.heads * call.head_dim, _SUM_BLOCK) * call.batch * part.shape[0],
        out.device,
        part=part,
        out=kernel_rows(out, align),
        B=call.batch,
        H=call.heads,
        C=call.cores,
        num_splits=splits,
        D=call.head_dim,
        ALIGN=align,
        BLOCK=_SUM_BLOCK,
        enable_fp_fusion=True,
    )
