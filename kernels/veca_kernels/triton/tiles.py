"""Steps that all kernels share: rows of a head as tiles, split head dims, rotation, counts.

Letters    i_* program indices, n_* counts, m_* masks, o_* offsets, b_* blocks in registers. BC cores, BP patches.
Tensor     is a tuple (pointer, batch stride, token stride, head stride). Indices are 64 bits wide before they are
           multiplied by a stride.
Strides    are in units of ALIGN elements, which is 8 for all usual layouts. The compiler then sees 16-byte alignment
           and emits vector loads. They are odd numbers, 2 u + 3. Triton always specialises the integers of a tuple on
           1 and on multiples of 16, so even strides would compile again when the number of patches changes.
Tile       is a pair of blocks [rows, D1] and [rows, D2] that together hold D channels, the tail masked. D = 80 is
           64 + 16 and D = 96 is 64 + 32, so that no product is padded to 128 channels. With D2 = 0 the second block is
           a stand-in that is never read. A comment such as [BP, D] stands for both blocks.
"""

import os
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)  # an annotation instead passes the interpreter, not the compiler
LN_2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

jit: Callable[..., Any] = triton.jit  # device code is Triton's language, in which an int is a constexpr

# Arguments that must never cause a recompilation: sizes, counts and the scale.
RUNTIME = ["active", "lengths", "scale", "B", "H", "C", "P", "first_patch", "core_tiles", "num_splits"]
RUNTIME += ["tiles_per_split", "first_program", "read_splits", "read_tiles", "write_splits", "write_tiles"]


@jit
def place(first_program, num_splits, H):
    """(image, split, head) of this program, heads fastest. In a joint launch the first programs do the other half."""
    i = tl.program_id(0) - first_program
    return i // (H * num_splits), i // H % num_splits, i % H


@jit
def count_of(counts, i_b, size):
    """How many of `size` items image i_b has. `counts` is None (all), an int, or a pointer to one int32 per image."""
    if counts is None:
        n = size
    elif counts.dtype.is_ptr():
        n = tl.load(counts + i_b)
    else:
        n = counts
    return tl.minimum(tl.maximum(n, 0), size)


@jit
def offset(index, stride, ALIGN: tl.constexpr):
    """index * stride in elements, 64 bits, for a stride encoded as above."""
    return index.to(tl.int64) * ((stride - 3) // 2) * ALIGN


@jit
def row_pointers(x, i_b, i_h, rows, ALIGN: tl.constexpr):
    """Pointers to channel 0 of some tokens of one head, [rows, 1]."""
    return x[0] + offset(i_b, x[1], ALIGN) + offset(i_h, x[3], ALIGN) + offset(rows, x[2], ALIGN)[:, None]


@jit
def load_tile(x, i_b, i_h, rows, mask, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ALIGN: tl.constexpr):
    """Tokens `rows` of one head as a tile [rows, D]. Rows outside the mask are zeros."""
    p = row_pointers(x, i_b, i_h, rows, ALIGN)  # [rows, 1]
    o_1 = tl.arange(0, D1)
    b_1 = tl.load(p + o_1, mask=mask[:, None] & (o_1 < D), other=0.0)  # [rows, D1]
    b_2 = b_1
    if D2 > 0:
        o_2 = D1 + tl.arange(0, D2)
        b_2 = tl.load(p + o_2, mask=mask[:, None] & (o_2 < D), other=0.0)  # [rows, D2]
    return b_1, b_2


@jit
def store_tile(x, tile, i_b, i_h, rows, mask, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ALIGN: tl.constexpr):
    """Write a tile, rounded once to the dtype of its destination."""
    p = row_pointers(x, i_b, i_h, rows, ALIGN)  # [rows, 1]
    o_1 = tl.arange(0, D1)
    tl.store(p + o_1, tile[0].to(x[0].dtype.element_ty), mask=mask[:, None] & (o_1 < D))
    if D2 > 0:
        o_2 = D1 + tl.arange(0, D2)
        tl.store(p + o_2, tile[1].to(x[0].dtype.element_ty), mask=mask[:, None] & (o_2 < D))


@jit
def zero_tile(ROWS: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    """A tile of zeros in fp32."""
    b_1 = tl.zeros([ROWS, D1], tl.float32)  # [ROWS, D1]
    b_2 = b_1
    if D2 > 0:
        b_2 = tl.zeros([ROWS, D2], tl.float32)  # [ROWS, D2]
    return b_1, b_2


@jit
def scale_tile(tile, factor, D2: tl.constexpr):
    """factor times a tile, for a number or a column [rows, 1]."""
    b_1 = tile[0] * factor
    b_2 = b_1
    if D2 > 0:
        b_2 = tile[1] * factor
    return b_1, b_2


@jit
def row_sum(x):
    """The sum of each row, [rows]."""
    return tl.sum(x, 1)


@jit
def row_dot(x, y, D2: tl.constexpr):
    """<x_i, y_i> for every row i of two tiles, fp32, [rows]."""
    s = row_sum(x[0].to(tl.float32) * y[0].to(tl.float32))  # [rows]
    if D2 > 0:
        s += row_sum(x[1].to(tl.float32) * y[1].to(tl.float32))
    return s


@jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b on tensor cores, fp32 accumulation."""
    if INTERPRETED:  # the interpreter's bf16 dot is silently wrong (triton-lang/triton#4972)
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@jit
def scores(x, y, D2: tl.constexpr, PRECISION: tl.constexpr):
    """x y^T of two tiles, [rows of x, rows of y]."""
    s = dot(x[0], tl.trans(y[0]), None, PRECISION)  # [rows of x, rows of y]
    if D2 > 0:
        s = dot(x[1], tl.trans(y[1]), s, PRECISION)
    return s


@jit
def accumulate(w, x, acc, D2: tl.constexpr, PRECISION: tl.constexpr):
    """acc + w x for weights w [m, n] and tiles x [n, D], acc [m, D]. w is rounded to the dtype of x."""
    w = w.to(x[0].dtype)
    b_1 = dot(w, x[0], acc[0], PRECISION)  # [m, D1]
    b_2 = acc[1]
    if D2 > 0:
        b_2 = dot(w, x[1], acc[1], PRECISION)  # [m, D2]
    return b_1, b_2


@jit
def load_angles(rope, i_b, rows, mask, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    """(cos, sin) of both blocks of a tile, [rows, D1/2] and [rows, D2/2]. Outside the mask they rotate nothing."""
    p = offset(i_b, rope[2], 4) + (rows.to(tl.int64) * (D // 2))[:, None]  # [rows, 1]; D/2 is a multiple of 4
    o_1 = tl.arange(0, D1 // 2)
    m_1 = mask[:, None] & (o_1 < D // 2)
    cos_1 = tl.load(rope[0] + p + o_1, mask=m_1, other=1.0)  # [rows, D1/2]
    sin_1 = tl.load(rope[1] + p + o_1, mask=m_1, other=0.0)
    cos_2, sin_2 = cos_1, sin_1
    if D2 > 0:
        o_2 = D1 // 2 + tl.arange(0, D2 // 2)
        m_2 = mask[:, None] & (o_2 < D // 2)
        cos_2 = tl.load(rope[0] + p + o_2, mask=m_2, other=1.0)  # [rows, D2/2]
        sin_2 = tl.load(rope[1] + p + o_2, mask=m_2, other=0.0)
    return cos_1, sin_1, cos_2, sin_2


@jit
def rotate_block(x, cos, sin, SIGN: tl.constexpr):
    """(a, b) -> (a cos - b sin, a sin + b cos) on channel pairs (2k, 2k+1), in fp32. SIGN -1 turns back."""
    cos, sin = cos.to(tl.float32), sin.to(tl.float32)
    a, b = tl.split(tl.reshape(x.to(tl.float32), (x.shape[0], x.shape[1] // 2, 2)))  # [rows, D1/2] each
    y = tl.join(a * cos - b * (SIGN * sin), a * (SIGN * sin) + b * cos)  # [rows, D1/2, 2]
    return tl.reshape(y, (x.shape[0], x.shape[1])).to(x.dtype)  # [rows, D1]


@jit
def rotate_tile(tile, angles, SIGN: tl.constexpr, D2: tl.constexpr):
    """`rotate_block` of both blocks, with the angles of `load_angles`."""
    b_1 = rotate_block(tile[0], angles[0], angles[1], SIGN)
    b_2 = b_1
    if D2 > 0:
        b_2 = rotate_block(tile[1], angles[2], angles[3], SIGN)
    return b_1, b_2


@jit
def base_2(scale):
    """The factor f = |scale| log2(e), which is at least 1e-30.

    exp2(s f - m f) is one multiply-add an element. The maximum m is taken before the factor, so f must be positive. A
    negative scale negates the resident tile instead, in variants with NEGATE. Without it the tile stays in shared
    memory as it was loaded. For scale 0, 1e-30 makes all scores equal, and masked scores stay -inf instead of NaN.
    """
    return tl.maximum(tl.abs(scale) * LOG2_E, 1e-30)


@jit
def negated(tile, D2: tl.constexpr):
    """-1 times a tile."""
    b_1 = -tile[0]
    b_2 = b_1
    if D2 > 0:
        b_2 = -tile[1]
    return b_1, b_2


@jit
def lift_of(x, lift):
    """The power of two, at most `lift`, that brings the largest |x| below 2^14.

    fp16 cannot hold small score gradients. With 65,536 patches and incoming gradients of 1e-3 they are below its
    smallest normal number. Times 2^lift they fit. Dividing the fp32 sums by a power of two is exact.
    """
    peak = tl.max(tl.max(tl.abs(x), 1), 0)  # []
    top = (tl.cast(peak, tl.int32, bitcast=True) >> 23) - 127
    return tl.minimum(lift, tl.maximum(13 - top, -60))


@jit
def power_of_two(exponent):
    """2^exponent, exactly, for |exponent| <= 126."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)
