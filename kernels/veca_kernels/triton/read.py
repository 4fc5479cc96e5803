"""The read: every core attends to the patches and, with CORE_SELF, to the cores.

    out[c] = sum_t softmax_t(scale <q[c], k[t]>) v[t]

Shapes     q, out (B, T, H, D) rows 0..C; k, v (B, T, H, D), patches from row
           `first_patch` on, and with core tiles the cores' own keys in rows 0..C.
Programs   one per (image, split, head), heads fastest; a split walks its share of the tiles of the keys, core tiles
           first, and leaves a normalised partial with its log-sum-exp. `combine_reads` joins them in split order.
Traffic    2 BPHD elements forward (k, v), 4 BPHD backward (k, v, dk, dv).
Not here   dropout, bias, more than 128 cores, double backward.
"""

import triton
import triton.language as tl

from .tiles import (
    LN_2,
    LOG2_E,
    RUNTIME,
    accumulate,
    count_of,
    load_angles,
    load_tile,
    rotate_tile,
    row_dot,
    row_pointers,
    scale_tile,
    scores,
    store_tile,
    tile_rows,
    zero_tile,
)


@triton.jit(do_not_specialize=RUNTIME)
def read_forward(
    q,
    k,
    v,
    rope,
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
    num_splits,
    tiles_per_split,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Online softmax over one split of the keys: m, l and acc are rescaled whenever the running maximum grows."""
    i_h = tl.program_id(0) % H
    i_s = tl.program_id(0) // H % num_splits
    i_b = tl.program_id(0) // (H * num_splits)
    n_c, n_p = count_of(active, i_b, C), count_of(lengths, i_b, P)
    o_c = tl.arange(0, BC)
    b_q = load_tile(q, i_b, i_h, o_c, o_c < n_c, D, D1, D2, ALIGN)
    b_m = tl.full([BC], float("-inf"), tl.float32)
    b_l = tl.zeros([BC], tl.float32)
    b_acc = zero_tile(BC, D1, D2)
    last = tl.minimum((i_s + 1) * tiles_per_split, core_tiles + tl.cdiv(n_p, BP))
    for i_t in range(i_s * tiles_per_split, last):
        rows, m_t, m_patch = tile_rows(i_t, core_tiles, first_patch, n_c, n_p, P, BP)
        b_k = load_tile(k, i_b, i_h, rows, m_t, D, D1, D2, ALIGN)
        b_v = load_tile(v, i_b, i_h, rows, m_t, D, D1, D2, ALIGN)
        if rope is not None:
            angles = load_angles(rope, i_b, rows - first_patch, m_t & m_patch, D, D1, D2)
            b_k = rotate_tile(b_k, angles, 1, D2)
        b_s = scores(b_q, b_k, D2, PRECISION) * (scale * LOG2_E)  # [BC, BP]
        b_s = tl.where(m_t[None, :], b_s, float("-inf"))
        b_peak = tl.maximum(b_m, tl.max(b_s, 1))
        b_safe = tl.where(b_peak == float("-inf"), 0.0, b_peak)
        b_w = tl.exp2(b_s - b_safe[:, None])
        b_shrink = tl.exp2(b_m - b_safe)
        b_l = b_l * b_shrink + tl.sum(b_w, 1)
        b_acc = accumulate(b_w, b_v, scale_tile(b_acc, b_shrink[:, None], D2), D2, PRECISION)
        b_m = b_peak
    m_out = (o_c < n_c) & (b_l > 0)
    b_out = scale_tile(b_acc, tl.where(m_out, 1.0 / tl.where(b_l > 0, b_l, 1.0), 0.0)[:, None], D2)
    b_lse = tl.where(m_out, (b_m + tl.log2(tl.where(b_l > 0, b_l, 1.0))) * LN_2, float("-inf"))
    i_sb = i_s * B + i_b  # partials stack the splits along the batch
    store_tile(out, b_out, i_sb, i_h, o_c, o_c < C, D, D1, D2, ALIGN)
    tl.store(lse + (i_sb.to(tl.int64) * H + i_h) * C + o_c, b_lse, mask=o_c < C)


@triton.jit(do_not_specialize=RUNTIME)
def read_backward(
    q,
    k,
    v,
    rope,
    out,
    lse,
    dout,
    dlse,
    dq,
    dk,
    dv,
    delta,
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
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p = exp2(s - lse); dv = p^T do; ds = p (v do^T - delta); dk = scale ds^T q; dq = scale sum ds k.

    One pass, tile-major: dk and dv of a patch belong to one program, only dq is summed over tiles (fp32 partials in
    split order). Tiles of core keys add to dq alone; their dk and dv are the business of `write_backward`, which
    finds delta = <out, dout> - dlse where split 0 leaves it.
    """
    i_h = tl.program_id(0) % H
    i_s = tl.program_id(0) // H % num_splits
    i_b = tl.program_id(0) // (H * num_splits)
    n_c, n_p = count_of(active, i_b, C), count_of(lengths, i_b, P)
    o_c = tl.arange(0, BC)
    m_c = o_c < n_c
    b_q = load_tile(q, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN)
    b_do = load_tile(dout, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN)
    b_delta = row_dot(load_tile(out, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN), b_do, D2)  # [BC]
    i_row = (i_b.to(tl.int64) * H + i_h) * C
    b_lse = tl.load(lse + i_row + o_c, mask=m_c, other=float("-inf")) * LOG2_E
    b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse)  # p = 0 where a core reads nothing
    if dlse is not None:
        b_delta -= tl.where(b_lse == float("inf"), 0.0, tl.load(dlse + i_row + o_c, mask=m_c, other=0.0))
    if i_s == 0:
        tl.store(delta + i_row + o_c, b_delta, mask=o_c < C)
    b_dq = zero_tile(BC, D1, D2)
    last = tl.minimum((i_s + 1) * tiles_per_split, core_tiles + tl.cdiv(P, BP))
    for i_t in range(i_s * tiles_per_split, last):
        rows, m_t, m_patch = tile_rows(i_t, core_tiles, first_patch, n_c, n_p, P, BP)
        b_k = load_tile(k, i_b, i_h, rows, m_t, D, D1, D2, ALIGN)
        b_v = load_tile(v, i_b, i_h, rows, m_t, D, D1, D2, ALIGN)
        if rope is not None:
            angles = load_angles(rope, i_b, rows - first_patch, m_t & m_patch, D, D1, D2)
            b_k = rotate_tile(b_k, angles, 1, D2)
        b_s = scores(b_k, b_q, D2, PRECISION) * (scale * LOG2_E)  # [BP, BC]
        b_p = tl.where(m_t[:, None], tl.exp2(b_s - b_lse[None, :]), 0.0)
        b_ds = b_p * (scores(b_v, b_do, D2, PRECISION) - b_delta[None, :])
        # dq first: after dk, ptxas serialises every wgmma of the loop (C7515, Triton 3.6, sm_90, 2026-11-22)
        b_dq = accumulate(tl.trans(b_ds), b_k, b_dq, D2, PRECISION)
        b_dv = accumulate(b_p, b_do, zero_tile(BP, D1, D2), D2, PRECISION)
        b_dk = scale_tile(accumulate(b_ds, b_q, zero_tile(BP, D1, D2), D2, PRECISION), scale, D2)
        if rope is not None:
            b_dk = rotate_tile(b_dk, angles, -1, D2)
        store_tile(dk, b_dk, i_b, i_h, rows, m_patch, D, D1, D2, ALIGN)
        store_tile(dv, b_dv, i_b, i_h, rows, m_patch, D, D1, D2, ALIGN)
    b_dq = scale_tile(b_dq, scale, D2)
    store_tile(dq, b_dq, i_s * B + i_b, i_h, o_c, o_c < C, D, D1, D2, ALIGN)


@triton.jit(do_not_specialize=RUNTIME)
def combine_reads(
    part,
    part_lse,
    out,
    lse,
    B,
    H,
    C,
    num_splits,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """out = sum_s exp(lse_s - lse) out_s with lse = log sum_s exp(lse_s), in split order.

    part (S, B, C, H, D) fp32 contiguous, part_lse (S, B, H, C). One program joins ROWS rows of one (image, head).
    """
    i_h = tl.program_id(0) % H
    i_r = tl.program_id(0) // H % tl.cdiv(C, ROWS)
    i_b = tl.program_id(0) // (H * tl.cdiv(C, ROWS))
    o_c = i_r * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, BD)
    m_c = o_c < C
    b_m = tl.full([ROWS], float("-inf"), tl.float32)
    b_l = tl.zeros([ROWS], tl.float32)
    b_acc = tl.zeros([ROWS, BD], tl.float32)
    for i_s in tl.range(0, num_splits, loop_unroll_factor=4):  # four loads in flight
        i_sb = (i_s * B + i_b).to(tl.int64)
        b_lse = tl.load(part_lse + (i_sb * H + i_h) * C + o_c, mask=m_c, other=float("-inf"))
        p = part + ((i_sb * C + o_c[:, None]) * H + i_h) * D + o_d
        b_part = tl.load(p, mask=m_c[:, None] & (o_d < D), other=0.0)
        b_peak = tl.maximum(b_m, b_lse)
        b_safe = tl.where(b_peak == float("-inf"), 0.0, b_peak)
        b_w = tl.exp2((b_lse - b_safe) * LOG2_E)
        b_shrink = tl.exp2((b_m - b_safe) * LOG2_E)
        b_l = b_l * b_shrink + b_w
        b_acc = b_acc * b_shrink[:, None] + b_part * b_w[:, None]
        b_m = b_peak
    b_safe = tl.where(b_l > 0, b_l, 1.0)
    b_lse = tl.where(b_l > 0, b_m + tl.log2(b_safe) * LN_2, float("-inf"))
    b_out = (b_acc / b_safe[:, None]).to(out[0].dtype.element_ty)
    tl.store(row_pointers(out, i_b, i_h, o_c, ALIGN) + o_d, b_out, mask=m_c[:, None] & (o_d < D))
    tl.store(lse + (i_b.to(tl.int64) * H + i_h) * C + o_c, b_lse, mask=m_c)
