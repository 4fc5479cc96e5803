"""The read: every core attends to the patches and, with core tiles, to the cores.

    out[c] = sum_t softmax_t(scale <q[c], k[t]>) v[t]

Shapes     q, out (B, T, H, D), cores in rows 0..C. k, v (B, T, H, D), patches from row `first_patch` on. With core
           tiles the keys of the cores are in rows 0..C.
Programs   one per (image, split, head), heads fastest. A split walks its share of the tiles of keys, core tiles last,
           and leaves a normalised partial with its log-sum-exp. `combine_reads` joins them in split order.
Traffic    2 BPHD elements forward (k, v), 4 BPHD backward (k, v, dk, dv).
Not here   dropout, bias, more than 128 cores, double backward.
"""

import triton.language as tl

from .tiles import (
    LN_2,
    LOG2_E,
    RUNTIME,
    accumulate,
    base_2,
    count_of,
    jit,
    lift_of,
    load_angles,
    load_tile,
    negated,
    place,
    power_of_two,
    rotate_tile,
    row_dot,
    row_pointers,
    row_sum,
    scale_tile,
    scores,
    store_tile,
    zero_tile,
)


@jit
def read_keys(b_q, b_k, b_v, m_k, factor, b_m, b_l, b_acc, D2: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax over a tile of keys.

    The running maximum m [BC], the sum of weights l [BC] and acc [BC, D] are rescaled when the maximum grows.
    """
    b_s = tl.where(m_k[None, :], scores(b_q, b_k, D2, PRECISION), float("-inf"))  # [BC, BP]
    b_peak = tl.maximum(b_m, tl.max(b_s, 1))  # [BC]
    b_top = tl.where(b_peak == float("-inf"), 0.0, b_peak) * factor
    b_w = tl.exp2(b_s * factor - b_top[:, None])  # [BC, BP]
    b_shrink = tl.exp2(b_m * factor - b_top)  # [BC]
    b_l = b_l * b_shrink + row_sum(b_w)
    b_acc = accumulate(b_w, b_v, scale_tile(b_acc, b_shrink[:, None], D2), D2, PRECISION)  # [BC, D]
    return b_peak, b_l, b_acc


@jit(do_not_specialize=RUNTIME)
def read_forward(
    q,
    k,
    v,
    rope,
    out,
    core_rows,
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
    first_program,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    NEGATE: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Softmax over one split of the keys. `core_rows` takes a copy of the rows of `out`, or is None."""
    i_b, i_s, i_h = place(first_program, num_splits, H)
    n_c, n_p = count_of(active, i_b, C), count_of(lengths, i_b, P)
    o_c, o_t = tl.arange(0, BC), tl.arange(0, BP)
    factor = base_2(scale)
    b_q = load_tile(q, i_b, i_h, o_c, o_c < n_c, D, D1, D2, ALIGN)  # [BC, D]
    if NEGATE:
        b_q = negated(b_q, D2)
    b_m = tl.full([BC], float("-inf"), tl.float32)
    b_l = tl.zeros([BC], tl.float32)
    b_acc = zero_tile(BC, D1, D2)  # [BC, D]
    patch_tiles = tl.cdiv(n_p, BP)
    first = i_s * tiles_per_split
    last = tl.minimum(first + tiles_per_split, patch_tiles + core_tiles)
    for i_t in range(first, tl.minimum(last, patch_tiles)):
        o_p = i_t * BP + o_t
        b_k = load_tile(k, i_b, i_h, first_patch + o_p, o_p < n_p, D, D1, D2, ALIGN)  # [BP, D]
        b_v = load_tile(v, i_b, i_h, first_patch + o_p, o_p < n_p, D, D1, D2, ALIGN)
        if rope is not None:
            b_k = rotate_tile(b_k, load_angles(rope, i_b, o_p, o_p < n_p, D, D1, D2), 1, D2)
        b_m, b_l, b_acc = read_keys(b_q, b_k, b_v, o_p < n_p, factor, b_m, b_l, b_acc, D2, PRECISION)
    # cores last: before the patches, ptxas serialises every wgmma of their loop (Triton 3.9, sm_90, 2026-11-28)
    # only the compiler iterates tl.range
    for i_t in tl.range(tl.maximum(first, patch_tiles), last, num_stages=1):  # pyright: ignore[reportGeneralTypeIssues]
        rows = (i_t - patch_tiles) * BP + o_t
        b_k = load_tile(k, i_b, i_h, rows, rows < n_c, D, D1, D2, ALIGN)  # [BP, D]
        b_v = load_tile(v, i_b, i_h, rows, rows < n_c, D, D1, D2, ALIGN)
        b_m, b_l, b_acc = read_keys(b_q, b_k, b_v, rows < n_c, factor, b_m, b_l, b_acc, D2, PRECISION)
    m_out = (o_c < n_c) & (b_l > 0)
    b_safe = tl.where(b_l > 0, b_l, 1.0)
    b_out = scale_tile(b_acc, tl.where(m_out, 1.0 / b_safe, 0.0)[:, None], D2)  # [BC, D]
    b_lse = tl.where(m_out, (b_m * factor + tl.log2(b_safe)) * LN_2, float("-inf"))  # [BC]
    i_sb = i_s * B + i_b  # partials stack the splits along the batch
    store_tile(out, b_out, i_sb, i_h, o_c, o_c < C, D, D1, D2, ALIGN)
    if core_rows is not None:
        store_tile(core_rows, b_out, i_sb, i_h, o_c, o_c < C, D, D1, D2, ALIGN)
    tl.store(lse + (i_sb.to(tl.int64) * H + i_h) * C + o_c, b_lse, mask=o_c < C)


@jit
def read_gradients(b_q, b_do, b_lse, b_delta, b_k, b_v, m_k, factor, D2: tl.constexpr, PRECISION: tl.constexpr):
    """Weights and score gradients of a tile of keys, both [BP, BC]: p = exp2(s f - lse), ds = p (v do^T - delta)."""
    b_s = scores(b_k, b_q, D2, PRECISION)  # [BP, BC]
    # rows outside the mask are zeros; exp2(0 - lse) may be inf there, and inf times a zero key is NaN in dq
    b_p = tl.where(m_k[:, None], tl.exp2(b_s * factor - b_lse[None, :]), 0.0)
    return b_p, b_p * (scores(b_v, b_do, D2, PRECISION) - b_delta[None, :])


@jit(do_not_specialize=RUNTIME)
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
    first_program,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    NEGATE: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dv = p^T do; dk = scale ds^T q; dq = scale sum ds k, with delta = <out, dout> - dlse.

    One pass over the tiles of keys. One program writes dk and dv of a patch. Only dq is a sum over tiles, with fp32
    partials that are added in split order. Tiles of core keys add to dq alone. `write_backward` writes their dk and dv.
    """
    i_b, i_s, i_h = place(first_program, num_splits, H)
    n_c, n_p = count_of(active, i_b, C), count_of(lengths, i_b, P)
    o_c, o_t = tl.arange(0, BC), tl.arange(0, BP)
    m_c = o_c < n_c
    factor = base_2(scale)
    HALF: tl.constexpr = q[0].dtype.element_ty == tl.float16
    b_q = load_tile(q, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN)  # [BC, D]
    if NEGATE:
        b_q = negated(b_q, D2)
    b_do = load_tile(dout, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN)  # [BC, D]
    b_delta = row_dot(load_tile(out, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN), b_do, D2)  # [BC]
    i_row = (i_b.to(tl.int64) * H + i_h) * C
    b_lse = tl.load(lse + i_row + o_c, mask=m_c, other=float("-inf")) * LOG2_E  # [BC]
    b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse)  # p = 0 where a core reads nothing
    if dlse is not None:
        b_delta -= tl.where(b_lse == float("inf"), 0.0, tl.load(dlse + i_row + o_c, mask=m_c, other=0.0))
    b_dq = zero_tile(BC, D1, D2)  # [BC, D]
    lift = 0
    if HALF:
        lift = tl.full((), 60, tl.int32)
    patch_tiles = tl.cdiv(P, BP)
    first = i_s * tiles_per_split
    last = tl.minimum(first + tiles_per_split, patch_tiles + core_tiles)
    for i_t in range(first, tl.minimum(last, patch_tiles)):
        o_p = i_t * BP + o_t
        rows, m_p = first_patch + o_p, o_p < n_p
        b_k = load_tile(k, i_b, i_h, rows, m_p, D, D1, D2, ALIGN)  # [BP, D]
        b_v = load_tile(v, i_b, i_h, rows, m_p, D, D1, D2, ALIGN)
        if rope is not None:
            angles = load_angles(rope, i_b, o_p, m_p, D, D1, D2)  # [BP, D/2]
            b_k = rotate_tile(b_k, angles, 1, D2)
        b_p, b_ds = read_gradients(b_q, b_do, b_lse, b_delta, b_k, b_v, m_p, factor, D2, PRECISION)  # [BP, BC]
        p_unit, ds_unit = 1.0, tl.abs(scale)
        if HALF:
            new_lift = lift_of(b_ds, lift)
            b_ds, b_dq = b_ds * power_of_two(new_lift), scale_tile(b_dq, power_of_two(new_lift - lift), D2)
            lift = new_lift
            b_p, p_unit, ds_unit = b_p * 32768.0, 1.0 / 32768.0, ds_unit * power_of_two(-lift)
        # dq first: after dk, ptxas serialises every wgmma of the loop (C7515, Triton 3.6, sm_90, 2026-11-22)
        b_dq = accumulate(tl.trans(b_ds), b_k, b_dq, D2, PRECISION)  # [BC, D]
        b_dv = scale_tile(accumulate(b_p, b_do, zero_tile(BP, D1, D2), D2, PRECISION), p_unit, D2)  # [BP, D]
        b_dk = scale_tile(accumulate(b_ds, b_q, zero_tile(BP, D1, D2), D2, PRECISION), ds_unit, D2)  # [BP, D]
        if rope is not None:
            b_dk = rotate_tile(b_dk, angles, -1, D2)
        store_tile(dk, b_dk, i_b, i_h, rows, o_p < P, D, D1, D2, ALIGN)
        store_tile(dv, b_dv, i_b, i_h, rows, o_p < P, D, D1, D2, ALIGN)
    # only the compiler iterates tl.range
    for i_t in tl.range(tl.maximum(first, patch_tiles), last, num_stages=1):  # pyright: ignore[reportGeneralTypeIssues]
        rows = (i_t - patch_tiles) * BP + o_t
        b_k = load_tile(k, i_b, i_h, rows, rows < n_c, D, D1, D2, ALIGN)  # [BP, D]
        b_v = load_tile(v, i_b, i_h, rows, rows < n_c, D, D1, D2, ALIGN)
        b_p, b_ds = read_gradients(b_q, b_do, b_lse, b_delta, b_k, b_v, rows < n_c, factor, D2, PRECISION)  # [BP, BC]
        if HALF:
            new_lift = lift_of(b_ds, lift)
            b_ds, b_dq = b_ds * power_of_two(new_lift), scale_tile(b_dq, power_of_two(new_lift - lift), D2)
            lift = new_lift
        b_dq = accumulate(tl.trans(b_ds), b_k, b_dq, D2, PRECISION)  # [BC, D]
    dq_unit = scale
    if HALF:
        dq_unit = scale * power_of_two(-lift)
    store_tile(dq, scale_tile(b_dq, dq_unit, D2), i_s * B + i_b, i_h, o_c, o_c < C, D, D1, D2, ALIGN)


@jit(do_not_specialize=RUNTIME)
def combine_reads(
    part,
    part_lse,
    out,
    core_rows,
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
    """Joins the partials of the splits, in split order.

        out = sum_s exp(lse_s - lse) out_s,    lse = log sum_s exp(lse_s)

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
    # four loads in flight; only the compiler iterates tl.range
    for i_s in tl.range(0, num_splits, loop_unroll_factor=4):  # pyright: ignore[reportGeneralTypeIssues]
        i_sb = (i_s * B + i_b).to(tl.int64)
        b_lse = tl.load(part_lse + (i_sb * H + i_h) * C + o_c, mask=m_c, other=float("-inf"))  # [ROWS]
        p = part + ((i_sb * C + o_c[:, None]) * H + i_h) * D + o_d  # [ROWS, BD]
        b_part = tl.load(p, mask=m_c[:, None] & (o_d < D), other=0.0)  # [ROWS, BD]
        b_peak = tl.maximum(b_m, b_lse)  # [ROWS]
        b_safe = tl.where(b_peak == float("-inf"), 0.0, b_peak)
        b_w = tl.exp2((b_lse - b_safe) * LOG2_E)
        b_shrink = tl.exp2((b_m - b_safe) * LOG2_E)
        b_l = b_l * b_shrink + b_w
        b_acc = b_acc * b_shrink[:, None] + b_part * b_w[:, None]
        b_m = b_peak
    b_safe = tl.where(b_l > 0, b_l, 1.0)
    b_lse = tl.where(b_l > 0, b_m + tl.log2(b_safe) * LN_2, float("-inf"))
    b_out = (b_acc / b_safe[:, None]).to(out[0].dtype.element_ty)  # [ROWS, BD]
    m_out = m_c[:, None] & (o_d < D)
    tl.store(row_pointers(out, i_b, i_h, o_c, ALIGN) + o_d, b_out, mask=m_out)
    if core_rows is not None:
        tl.store(row_pointers(core_rows, i_b, i_h, o_c, ALIGN) + o_d, b_out, mask=m_out)
    tl.store(lse + (i_b.to(tl.int64) * H + i_h) * C + o_c, b_lse, mask=m_c)
