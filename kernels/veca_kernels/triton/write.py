"""The write: every patch attends to the cores and, with PATCH_SELF, to its own key.

    out[p] = sum_c softmax_c(scale <q[p], k[c]>) v[c]

Shapes     q, out (B, T, H, D), patches from row `first_patch` on. k, v (B, T, H, D), cores in rows 0..C.
Programs   one per (image, share of the patches, head), heads fastest. A program keeps keys and values of all cores and
           walks its tiles of patches. The softmax covers a whole row, so nothing is rescaled. Nothing is saved for the
           backward.
Traffic    2 BPHD elements forward (q, out), 3 BPHD backward (q, dout, dq). PATCH_SELF adds 2 BPHD each way.
Not here   dropout, bias, more than 128 cores, double backward.
"""

import triton.language as tl

from .tiles import (
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
    offset,
    place,
    power_of_two,
    rotate_tile,
    row_dot,
    row_sum,
    scale_tile,
    scores,
    store_tile,
    zero_tile,
)


@jit
def add_scaled(acc, factor, x, D2: tl.constexpr):
    """Adds factor x to acc, row by row in fp32."""
    b_1 = acc[0] + factor[:, None] * x[0].to(tl.float32)
    b_2 = b_1
    if D2 > 0:
        b_2 = acc[1] + factor[:, None] * x[1].to(tl.float32)
    return b_1, b_2


@jit(do_not_specialize=RUNTIME)
def write_forward(
    q,
    k,
    v,
    rope,
    out,
    active,
    lengths,
    scale,
    B,
    H,
    C,
    P,
    first_patch,
    num_splits,
    tiles_per_split,
    first_program,
    D: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    PATCH_SELF: tl.constexpr,
    NEGATE: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Weights of the cores are softmax_c(scale <R q, k>). The own key needs no rotation, since <R q, R k> = <q, k>."""
    i_b, i_s, i_h = place(first_program, num_splits, H)
    n_c, n_p = count_of(active, i_b, C), count_of(lengths, i_b, P)
    o_c = tl.arange(0, BC)
    m_c = o_c < n_c
    factor = base_2(scale)
    b_k = load_tile(k, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN)  # [BC, D]
    if NEGATE:
        b_k = negated(b_k, D2)
    b_v = load_tile(v, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN)  # [BC, D]
    for i_t in range(i_s * tiles_per_split, tl.minimum((i_s + 1) * tiles_per_split, tl.cdiv(P, BP))):
        o_p = i_t * BP + tl.arange(0, BP)
        rows, m_p = first_patch + o_p, o_p < n_p
        b_q = load_tile(q, i_b, i_h, rows, m_p, D, D1, D2, ALIGN)  # [BP, D]
        b_turned = b_q
        if rope is not None:
            b_turned = rotate_tile(b_q, load_angles(rope, i_b, o_p, m_p, D, D1, D2), 1, D2)
        b_s = tl.where(m_c[None, :], scores(b_turned, b_k, D2, PRECISION), float("-inf"))  # [BP, BC]
        b_m = tl.max(b_s, 1)  # [BP]
        if PATCH_SELF:
            b_own = row_dot(b_q, load_tile(k, i_b, i_h, rows, m_p, D, D1, D2, ALIGN), D2)  # [BP]
            if NEGATE:
                b_own = -b_own
            b_m = tl.maximum(b_m, b_own)
        b_top = tl.where(b_m == float("-inf"), 0.0, b_m) * factor
        b_w = tl.exp2(b_s * factor - b_top[:, None])  # [BP, BC]
        b_l = row_sum(b_w)  # [BP]
        b_out = accumulate(b_w, b_v, zero_tile(BP, D1, D2), D2, PRECISION)  # [BP, D]
        if PATCH_SELF:
            b_own = tl.exp2(b_own * factor - b_top)
            b_l += b_own
            b_out = add_scaled(b_out, b_own, load_tile(v, i_b, i_h, rows, m_p, D, D1, D2, ALIGN), D2)
        b_unit = tl.where(m_p & (b_l > 0), 1.0 / tl.where(b_l > 0, b_l, 1.0), 0.0)
        store_tile(out, scale_tile(b_out, b_unit[:, None], D2), i_b, i_h, rows, o_p < P, D, D1, D2, ALIGN)


@jit
def add_gradients(
    b_q, b_do, b_p, b_ds, lift, b_dk, b_dv, HALF: tl.constexpr, D2: tl.constexpr, PRECISION: tl.constexpr
):
    """dk += ds^T q and dv += p^T do of the cores. In fp16 ds and dk are lifted (see `lift_of`)."""
    if HALF:
        new_lift = lift_of(b_ds, lift)
        b_ds, b_dk = b_ds * power_of_two(new_lift), scale_tile(b_dk, power_of_two(new_lift - lift), D2)
        lift = new_lift
    b_dk = accumulate(tl.trans(b_ds), b_q, b_dk, D2, PRECISION)  # [BC, D]
    b_dv = accumulate(tl.trans(b_p), b_do, b_dv, D2, PRECISION)  # [BC, D]
    return b_ds, lift, b_dk, b_dv


@jit(do_not_specialize=RUNTIME)
def write_backward(
    q,
    k,
    v,
    rope,
    out,
    lse,
    dout,
    dq,
    dk,
    dv,
    dk_own,
    dv_own,
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
    PATCH_SELF: tl.constexpr,
    NEGATE: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the patches' q and of the cores' k and v.

        p = softmax(s),  dp = dout v^T,  ds = p (dp - rowsum(p dp))
        dq = scale ds k,  dk = scale sum ds^T q,  dv = sum p^T dout

    All keys are resident, so the softmax and its row sums are computed again. Neither out nor statistics are read. dk
    and dv of the cores are fp32 sums over the tiles of a program, then over programs in order. With core tiles the
    cores join as query rows, since they read each other's keys. Their weights come from the rows `out` and `lse`.
    PATCH_SELF adds to dk_own and dv_own, which `read_backward` wrote before in stream order.
    """
    i_b, i_s, i_h = place(first_program, num_splits, H)
    n_c, n_p = count_of(active, i_b, C), count_of(lengths, i_b, P)
    o_c, o_t = tl.arange(0, BC), tl.arange(0, BP)
    m_c = o_c < n_c
    factor = base_2(scale)
    HALF: tl.constexpr = q[0].dtype.element_ty == tl.float16
    b_k = load_tile(k, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN)  # [BC, D]
    if NEGATE:
        b_k = negated(b_k, D2)
    b_v = load_tile(v, i_b, i_h, o_c, m_c, D, D1, D2, ALIGN)  # [BC, D]
    b_dk, b_dv = zero_tile(BC, D1, D2), zero_tile(BC, D1, D2)  # [BC, D]
    lift = 0
    if HALF:
        lift = tl.full((), 60, tl.int32)
    first = i_s * tiles_per_split
    last = tl.minimum(first + tiles_per_split, core_tiles + tl.cdiv(P, BP))
    if lse is not None:
        # only the compiler iterates tl.range
        for i_t in tl.range(first, tl.minimum(last, core_tiles), num_stages=1):  # pyright: ignore[reportGeneralTypeIssues]
            rows = i_t * BP + o_t
            b_q = load_tile(q, i_b, i_h, rows, rows < n_c, D, D1, D2, ALIGN)  # [BP, D]
            b_do = load_tile(dout, i_b, i_h, rows, rows < n_c, D, D1, D2, ALIGN)  # [BP, D]
            b_delta = row_dot(load_tile(out, i_b, i_h, rows, rows < n_c, D, D1, D2, ALIGN), b_do, D2)  # [BP]
            b_lse = tl.load(lse + (i_b.to(tl.int64) * H + i_h) * C + rows, mask=rows < n_c, other=float("-inf"))
            b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse * LOG2_E)
            b_s = tl.where(m_c[None, :], scores(b_q, b_k, D2, PRECISION), float("-inf"))  # [BP, BC]
            b_p = tl.exp2(b_s * factor - b_lse[:, None])  # [BP, BC]
            b_ds = b_p * (scores(b_do, b_v, D2, PRECISION) - b_delta[:, None])  # [BP, BC]
            _, lift, b_dk, b_dv = add_gradients(b_q, b_do, b_p, b_ds, lift, b_dk, b_dv, HALF, D2, PRECISION)
    for i_t in range(tl.maximum(first - core_tiles, 0), last - core_tiles):
        o_p = i_t * BP + o_t
        rows, m_p = first_patch + o_p, o_p < n_p
        b_q = load_tile(q, i_b, i_h, rows, m_p, D, D1, D2, ALIGN)  # [BP, D]
        b_do = load_tile(dout, i_b, i_h, rows, m_p, D, D1, D2, ALIGN)  # [BP, D]
        b_turned = b_q
        if rope is not None:
            angles = load_angles(rope, i_b, o_p, m_p, D, D1, D2)  # [BP, D/2]
            b_turned = rotate_tile(b_q, angles, 1, D2)
        b_s = tl.where(m_c[None, :], scores(b_turned, b_k, D2, PRECISION), float("-inf"))  # [BP, BC]
        b_m = tl.max(b_s, 1)  # [BP]
        if PATCH_SELF:
            b_k_own = load_tile(k, i_b, i_h, rows, m_p, D, D1, D2, ALIGN)  # [BP, D]
            b_v_own = load_tile(v, i_b, i_h, rows, m_p, D, D1, D2, ALIGN)  # [BP, D]
            b_s_own = row_dot(b_q, b_k_own, D2)  # [BP]
            if NEGATE:
                b_s_own = -b_s_own
            b_m = tl.maximum(b_m, b_s_own)
        b_top = tl.where(b_m == float("-inf"), 0.0, b_m) * factor
        b_p = tl.exp2(b_s * factor - b_top[:, None])  # [BP, BC]
        b_l = row_sum(b_p)  # [BP]
        if PATCH_SELF:
            b_p_own = tl.where(m_p, tl.exp2(b_s_own * factor - b_top), 0.0)
            b_l += b_p_own
        b_r = tl.where(m_p & (b_l > 0), 1.0 / tl.where(b_l > 0, b_l, 1.0), 0.0)
        b_p = b_p * b_r[:, None]
        b_dp = scores(b_do, b_v, D2, PRECISION)  # [BP, BC]
        b_delta = row_sum(b_p * b_dp)  # [BP]
        if PATCH_SELF:
            b_p_own = b_p_own * b_r
            b_dp_own = row_dot(b_do, b_v_own, D2)
            b_delta += b_p_own * b_dp_own
        b_ds = b_p * (b_dp - b_delta[:, None])  # [BP, BC]
        b_ds, lift, b_dk, b_dv = add_gradients(b_turned, b_do, b_p, b_ds, lift, b_dk, b_dv, HALF, D2, PRECISION)
        ds_unit = tl.abs(scale)
        if HALF:
            ds_unit = ds_unit * power_of_two(-lift)
        b_dq = scale_tile(accumulate(b_ds, b_k, zero_tile(BP, D1, D2), D2, PRECISION), ds_unit, D2)  # [BP, D]
        if rope is not None:
            b_dq = rotate_tile(b_dq, angles, -1, D2)
        if PATCH_SELF:
            b_ds_own = scale * b_p_own * (b_dp_own - b_delta)
            b_dq = add_scaled(b_dq, b_ds_own, b_k_own, D2)
            b_dk_own = load_tile(dk_own, i_b, i_h, rows, o_p < P, D, D1, D2, ALIGN)  # [BP, D]
            b_dv_own = load_tile(dv_own, i_b, i_h, rows, o_p < P, D, D1, D2, ALIGN)  # [BP, D]
            b_dk_own = add_scaled(b_dk_own, b_ds_own, b_q, D2)
            b_dv_own = add_scaled(b_dv_own, b_p_own, b_do, D2)
            store_tile(dk_own, b_dk_own, i_b, i_h, rows, o_p < P, D, D1, D2, ALIGN)
            store_tile(dv_own, b_dv_own, i_b, i_h, rows, o_p < P, D, D1, D2, ALIGN)
        store_tile(dq, b_dq, i_b, i_h, rows, o_p < P, D, D1, D2, ALIGN)
    dk_unit = scale
    if HALF:
        dk_unit = scale * power_of_two(-lift)
    i_sb = i_s * B + i_b
    store_tile(dk, scale_tile(b_dk, dk_unit, D2), i_sb, i_h, o_c, o_c < C, D, D1, D2, ALIGN)
    store_tile(dv, b_dv, i_sb, i_h, o_c, o_c < C, D, D1, D2, ALIGN)


@jit(do_not_specialize=RUNTIME)
def sum_partials(part, out, B, H, C, num_splits, D: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """out[w, b] = sum over splits of part[w, s, b], fp32, in split order.

    part is (W, S, B, C, H, D), contiguous. out is (pointer, strides of w, batch, token, head), with contiguous
    channels. One program sums BLOCK consecutive numbers of one (w, b).
    """
    size = C * H * D
    blocks = tl.cdiv(size, BLOCK)
    i_b = tl.program_id(0) // blocks % B
    i_w = tl.program_id(0) // (blocks * B)
    o_x = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < size
    i_block = i_w.to(tl.int64) * num_splits * B + i_b
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i_s in range(num_splits):
        b_sum += tl.load(part + (i_block + i_s * B) * size + o_x, mask=m_x, other=0.0)  # [BLOCK]
    p = out[0] + offset(i_w, out[1], ALIGN) + offset(i_b, out[2], ALIGN)
    p += offset(o_x // (H * D), out[3], ALIGN) + offset(o_x // D % H, out[4], ALIGN) + o_x % D
    tl.store(p, b_sum.to(out[0].dtype.element_ty), mask=m_x)
