"""Both halves of the op in one launch: the first programs read, the others write.

Read and write need nothing from each other, forward or backward. Below about 4,096 patches a launch costs as much as
its work, and one grid of both keeps the device busier at its ends. The tiles of both halves may differ in patches, but
not in warps and stages. With `patch_self` the backward takes two launches, since the write adds to what the read
stored.
"""

import triton.language as tl

from .read import read_backward, read_forward
from .tiles import RUNTIME, jit
from .write import write_backward, write_forward


@jit(do_not_specialize=RUNTIME)
def joint_forward(
    q,
    k,
    v,
    rope,
    core_out,
    core_rows,
    out,
    lse,
    active,
    lengths,
    scale,
    B,
    H,
    C,
    P,
    first_patch,
    core_tiles,
    read_splits,
    read_tiles,
    write_splits,
    write_tiles,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    BC: tl.constexpr,
    BP_READ: tl.constexpr,
    BP_WRITE: tl.constexpr,
    PATCH_SELF: tl.constexpr,
    NEGATE: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`core_out` takes what cores read (or its partials), and `out` the rows of patches."""
    reads = B * H * read_splits
    if tl.program_id(0) < reads:
        read_forward(
            q, k, v, rope, core_out, core_rows, lse, active, lengths, scale, B, H, C, P, first_patch, core_tiles,
            read_splits, read_tiles, 0,
            D, D1, D2, BC, BP_READ, NEGATE, ALIGN, PRECISION,
        )  # fmt: skip
    else:
        write_forward(
            q, k, v, rope, out, active, lengths, scale, B, H, C, P, first_patch,
            write_splits, write_tiles, reads,
            D, D1, D2, BC, BP_WRITE, PATCH_SELF, NEGATE, ALIGN, PRECISION,
        )  # fmt: skip


@jit(do_not_specialize=RUNTIME)
def joint_backward(
    q,
    k,
    v,
    rope,
    out,
    lse,
    dout,
    dq_core,
    dk_core,
    dv_core,
    dq,
    dk,
    dv,
    active,
    lengths,
    scale,
    B,
    H,
    C,
    P,
    first_patch,
    core_tiles,
    num_splits,
    tiles_per_split,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    NEGATE: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The pointers *_core take the gradients of cores (or their partials), the others those of patches."""
    half = B * H * num_splits
    if tl.program_id(0) < half:
        read_backward(
            q, k, v, rope, out, lse, dout, None, dq_core, dk, dv, active, lengths, scale, B, H, C, P, first_patch,
            core_tiles, num_splits, tiles_per_split, 0,
            D, D1, D2, BC, BP, NEGATE, ALIGN, PRECISION,
        )  # fmt: skip
    else:
        write_backward(
            q, k, v, rope, out, lse, dout, dq, dk_core, dv_core, dq, dq, active, lengths, scale, B, H, C, P,
            first_patch, core_tiles, num_splits, tiles_per_split, half,
            D, D1, D2, BC, BP, False, NEGATE, ALIGN, PRECISION,
        )  # fmt: skip
