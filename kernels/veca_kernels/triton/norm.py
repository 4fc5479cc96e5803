"""Residual, LayerScale and LayerNorm in one pass over the rows.

    total = x + scale * branch
    normed = (total - mean) * rstd * weight + bias,    rstd = 1 / sqrt(variance + eps)

Shapes     x, branch, total, normed (R, E), contiguous. scale, weight, bias (E,). mean, rstd (R,) in fp32.
Programs   BR rows at a time, whole rows in registers. The backward walks over several such tiles.
Traffic    forward x, branch, total and normed once each. Backward grad, grad_total, total, branch and two results.
Sums       over rows (weight, bias, scale) are fp32, one per program. They are added afterwards in program order.
"""

import triton
import triton.language as tl


@triton.jit
def tile_of(i_t, R, E: tl.constexpr, BR: tl.constexpr, BE: tl.constexpr):
    """Row numbers, column numbers, offsets [BR, BE] and their mask."""
    o_r = (i_t * BR + tl.arange(0, BR)).to(tl.int64)
    o_e = tl.arange(0, BE)
    return o_r, o_e, o_r[:, None] * E + o_e[None, :], (o_r < R)[:, None] & (o_e < E)[None, :]


@triton.jit
def load_columns(x, o_e, E: tl.constexpr):
    """One number per column, [1, BE], in fp32."""
    return tl.load(x + o_e, mask=o_e < E, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["R"])
def norm_forward(
    x,
    branch,
    scale,
    weight,
    bias,
    total,
    normed,
    mean,
    rstd,
    eps,
    R,
    E: tl.constexpr,
    BR: tl.constexpr,
    BE: tl.constexpr,
):
    """Without `branch`, x is normalised and `total` is not written. The norm is that of `total` as it is stored."""
    o_r, o_e, p, m = tile_of(tl.program_id(0), R, E, BR, BE)
    b_x = tl.load(x + p, mask=m, other=0.0).to(tl.float32)  # [BR, BE]
    if branch is not None:
        b_branch = tl.load(branch + p, mask=m, other=0.0).to(tl.float32)
        if scale is not None:
            b_branch = b_branch * load_columns(scale, o_e, E)
        b_total = (b_x + b_branch).to(total.dtype.element_ty)
        tl.store(total + p, b_total, mask=m)
        b_x = b_total.to(tl.float32)
    b_mean = tl.sum(b_x, 1) / E  # [BR]
    b_x = tl.where(m, b_x - b_mean[:, None], 0.0)
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_x * b_x, 1) / E + eps)  # [BR]
    b_normed = b_x * b_rstd[:, None] * load_columns(weight, o_e, E) + load_columns(bias, o_e, E)  # [BR, BE]
    tl.store(normed + p, b_normed.to(normed.dtype.element_ty), mask=m)
    tl.store(mean + o_r, b_mean, mask=o_r < R)
    tl.store(rstd + o_r, b_rstd, mask=o_r < R)


@triton.jit(do_not_specialize=["R", "tiles_per_program"])
def norm_backward(
    grad,
    grad_total,
    total,
    mean,
    rstd,
    weight,
    branch,
    scale,
    d_total,
    d_branch,
    sums,
    R,
    tiles_per_program,
    E: tl.constexpr,
    BR: tl.constexpr,
    BE: tl.constexpr,
):
    """d_total = rstd (g - avg(g) - n avg(g n)) + grad_total,    g = grad * weight,  n = (total - mean) rstd

    sums (programs, 2 or 3, E) takes the sums of each program: of grad * n, of grad and, with `scale`, of
    d_total * branch. `d_branch` = scale * d_total is written where it is not None.
    """
    i_p = tl.program_id(0)
    b_dw, b_db, b_ds = tl.zeros([BR, BE], tl.float32), tl.zeros([BR, BE], tl.float32), tl.zeros([BR, BE], tl.float32)
    for i_t in range(i_p * tiles_per_program, tl.minimum((i_p + 1) * tiles_per_program, tl.cdiv(R, BR))):
        o_r, o_e, p, m = tile_of(i_t, R, E, BR, BE)
        b_grad = tl.load(grad + p, mask=m, other=0.0).to(tl.float32)  # [BR, BE]
        b_n = tl.load(total + p, mask=m, other=0.0).to(tl.float32)  # [BR, BE]
        b_rstd = tl.load(rstd + o_r, mask=o_r < R, other=0.0)[:, None]  # [BR, 1]
        b_n = (b_n - tl.load(mean + o_r, mask=o_r < R, other=0.0)[:, None]) * b_rstd
        b_dw += b_grad * b_n
        b_db += b_grad
        b_grad = b_grad * load_columns(weight, o_e, E)  # 0 outside the columns, and so are the products below
        b_d = (b_grad - (tl.sum(b_grad, 1) / E)[:, None] - b_n * (tl.sum(b_grad * b_n, 1) / E)[:, None]) * b_rstd
        if grad_total is not None:
            b_d += tl.load(grad_total + p, mask=m, other=0.0).to(tl.float32)
        tl.store(d_total + p, b_d.to(d_total.dtype.element_ty), mask=m)
        if scale is not None:
            b_ds += b_d * tl.load(branch + p, mask=m, other=0.0).to(tl.float32)
            b_d = b_d * load_columns(scale, o_e, E)
        if d_branch is not None:
            tl.store(d_branch + p, b_d.to(d_branch.dtype.element_ty), mask=m)
    o_e = tl.arange(0, BE)
    row = i_p.to(tl.int64) * (2 if scale is None else 3)
    tl.store(sums + row * E + o_e, tl.sum(b_dw, 0), mask=o_e < E)
    tl.store(sums + (row + 1) * E + o_e, tl.sum(b_db, 0), mask=o_e < E)
    if scale is not None:
        tl.store(sums + (row + 2) * E + o_e, tl.sum(b_ds, 0), mask=o_e < E)
