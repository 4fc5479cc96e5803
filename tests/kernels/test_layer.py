"""The fused parts of a block in plain torch, and the ops of the row kernels with their CPU bodies."""

import os
import re

import pytest
import torch
from torch import nn
from veca_kernels import layer_ops, residual_norm_linear, swiglu

from tests.kernels.rows import (
    EDGES,
    EPS,
    MIXED,
    PARTS,
    WIDTHS,
    Rows,
    assert_close,
    define_gate,
    define_norm,
    forward_backward,
    make_gate,
    make_norm,
)

ops = torch.ops.veca_kernels


def norm(x, branch, scale, norm_weight, norm_bias, weight, bias):
    return residual_norm_linear(x, branch, norm_weight, norm_bias, weight, bias, scale=scale, eps=EPS)


def norm_by_ops(*leaves):
    return layer_ops.norm_linear(*leaves, EPS, True)


def gate(*leaves):
    return (swiglu(*leaves),)


def gate_by_ops(*leaves):
    return (layer_ops.gate_linear(*leaves, True),)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", WIDTHS + PARTS + EDGES, ids=str)
def test_against_the_definition(case, dtype):
    case = case.at(dtype=dtype)
    for function in (norm, norm_by_ops):
        assert_close(function, define_norm, make_norm(case))
    for function in (gate, gate_by_ops):
        assert_close(function, define_gate, make_gate(case))


@pytest.mark.parametrize("case", MIXED, ids=str)
def test_stream_in_fp32_and_branches_in_bf16(case):
    for function in (norm, norm_by_ops):
        assert_close(function, define_norm, make_norm(case))


@pytest.mark.parametrize("case", PARTS, ids=str)
def test_derivatives_of_any_order(case):
    case = case.at(shape=(2, 2), width=5, features=3, dtype=torch.float64)
    for function, leaves in ((norm, make_norm(case)), (norm_by_ops, make_norm(case)), (gate_by_ops, make_gate(case))):
        taken = [x for x in leaves if x is not None]

        def call(*values, function=function, leaves=leaves):
            values = iter(values)
            results = function(*(None if x is None else next(values) for x in leaves))
            return tuple(x + 0 for x in results)  # x itself where there is no branch: gradcheck wants no input back

        assert torch.autograd.gradcheck(call, taken, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, taken, fast_mode=True)


@pytest.mark.parametrize("case", PARTS, ids=str)
def test_opcheck(case):
    """Schema, fakes, autograd registration, static and dynamic AOT dispatch."""
    x, branch, scale, norm_weight, norm_bias, *_ = (
        t if t is None else t.detach() for t in make_norm(case.at(shape=(10,)))
    )
    torch.library.opcheck(ops.norm_forward, (x, branch, scale, norm_weight, norm_bias, EPS, torch.bfloat16))
    _, normed, mean, rstd = ops.norm_forward(x, branch, scale, norm_weight, norm_bias, EPS, torch.bfloat16)
    for grad_total, dtype in ((None, None), (x, torch.bfloat16)):
        given = (normed, grad_total, x, mean, rstd, norm_weight, branch, scale)
        if scale is None or dtype is not None:
            torch.library.opcheck(ops.norm_backward, (*given, dtype))
    hidden = torch.randn(10, 14)
    torch.library.opcheck(ops.gate_forward, (hidden,))
    torch.library.opcheck(ops.gate_backward, (hidden[..., :7].clone(), hidden))


@pytest.mark.parametrize(
    "functions, dynamic",
    [((norm, gate), False), ((norm_by_ops, gate_by_ops), False), ((norm_by_ops, gate_by_ops), True)],
    ids=["torch", "ops", "ops-dynamic"],
)
def test_compile_fullgraph_forward_and_backward(functions, dynamic):
    for rows in (5, 9) if dynamic else (5,):
        case = Rows(shape=(2, rows), dtype=torch.float64)
        for function, leaves in zip(functions, (make_norm(case), make_gate(case)), strict=True):
            compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
            for a, b in zip(forward_backward(compiled, leaves), forward_backward(function, leaves), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("functions", [(norm, gate), (norm_by_ops, gate_by_ops)], ids=["torch", "ops"])
def test_vmap_of_gradients_over_rows_and_weights(functions):
    case = Rows(shape=(4, 3), dtype=torch.float64)
    for function, leaves in zip(functions, (make_norm(case), make_gate(case)), strict=True):
        leaves = [x.detach() for x in leaves]
        dims = [0 if x.ndim == leaves[0].ndim else None for x in leaves]
        dims[-1] = 0  # a bias each
        leaves[-1] = torch.randn(4, case.features, dtype=torch.float64)

        def loss(*values, function=function):
            return sum(x.sin().sum() for x in function(*values))

        gradient = torch.func.grad(loss, argnums=tuple(range(len(leaves))))
        looped = [gradient(*(x if d is None else x[i] for x, d in zip(leaves, dims, strict=True))) for i in range(4)]
        mapped = torch.func.vmap(gradient, in_dims=tuple(dims))(*leaves)
        for a, b in zip(mapped, zip(*looped, strict=True), strict=True):
            torch.testing.assert_close(a, torch.stack(b), rtol=1e-10, atol=1e-10)
        x = leaves[0].requires_grad_()
        out = function(x, *leaves[1:-1], leaves[-1][0])[-1]
        basis = torch.randn(3, *out.shape, dtype=torch.float64)
        (batched,) = torch.autograd.grad(out, x, basis, is_grads_batched=True, retain_graph=True)
        one_by_one = [torch.autograd.grad(out, x, grad, retain_graph=True)[0] for grad in basis]
        torch.testing.assert_close(batched, torch.stack(one_by_one), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", PARTS, ids=str)
def test_autocast_is_that_of_the_modules(case):
    """fp32 stream, bf16 branch and projection: values and gradients of torch's own layers under autocast."""
    x, branch, scale, norm_weight, norm_bias, weight, bias = make_norm(case)
    second = torch.randn(4, case.features // 2, requires_grad=True)
    leaves = [t for t in (x, branch, scale, norm_weight, norm_bias, weight, bias, second) if t is not None]

    def plain():
        total, hidden = define_norm(x, half, scale, norm_weight, norm_bias, weight, bias)
        return total, define_gate(hidden, second, None)[0]

    def fused():
        total, hidden = norm(x, half, scale, norm_weight, norm_bias, weight, bias)
        return total, swiglu(hidden, second)

    results = []
    with torch.autocast("cpu", torch.bfloat16):
        half = None if branch is None else branch.bfloat16()
        for function in (plain, fused):
            total, out = function()
            assert total.dtype == torch.float32 and out.dtype == torch.bfloat16
            grads = torch.autograd.grad(total.sin().sum() + out.float().sin().sum(), leaves, retain_graph=True)
            results.append([total, out, *grads])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * a.abs().max().item())


def test_frozen_weights_and_unused_results_get_no_gradient():
    leaves = make_norm(Rows(dtype=torch.float64))
    x, weight = leaves[0], leaves[5].detach()
    total, out = norm(*leaves[:5], weight, leaves[6])
    assert torch.autograd.grad(out.sum(), [weight.requires_grad_()], allow_unused=True) == (None,)
    torch.testing.assert_close(torch.autograd.grad(total.sum(), x)[0], torch.ones_like(x))


def test_nothing_that_can_be_computed_again_is_saved():
    """One (rows, E) tensor of the norm, two with LayerScale, x of the gate; beside them parameters alone."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        for case, kept in zip(PARTS, (2, 1, 1), strict=True):
            saved.clear()
            norm(*make_norm(case))
            assert saved.count(torch.Size((10, 48))) == kept + 1  # and the weight
        saved.clear()
        gate(*make_gate(Rows(features=7)))
    assert saved == [(10, 96), (7, 48)]


def test_mistakes():
    x, branch, scale, norm_weight, norm_bias, weight, bias = make_norm(Rows())
    call = lambda **changes: residual_norm_linear(  # noqa: E731
        **dict(x=x, branch=branch, norm_weight=norm_weight, norm_bias=norm_bias, weight=weight) | changes
    )
    with pytest.raises(ValueError, match=r"norm_bias of shape \(48,\) like the rows of x, got \(10,\)"):
        call(norm_bias=bias)
    with pytest.raises(ValueError, match=r"branch of the shape of x, \(2, 5, 48\), got \(5, 48\)"):
        call(branch=branch[0])
    with pytest.raises(ValueError, match="scale=None without a branch"):
        call(branch=None, scale=scale)
    with pytest.raises(ValueError, match=r"weight of shape \(features, 48\), got \(48, 10\)"):
        call(weight=weight.T)
    with pytest.raises(TypeError, match=r"x to be a tensor of a floating dtype, got torch\.int64"):
        call(x=x.long())
    with pytest.raises(ValueError, match="impl to be one of auto, triton, torch, got 'sdpa'"):
        call(impl="sdpa")
    with pytest.raises(ValueError, match="cannot take this call: expected CUDA tensors, got cpu"):
        call(impl="triton")
    with pytest.raises(ValueError, match=r"x of shape \(..., 2h\), got \(2, 5, 7\)"):
        swiglu(x[..., :7], weight)


def test_layers_of_torch_are_the_same_function():
    layer, linear, gated = nn.LayerNorm(48), nn.Linear(48, 20), nn.Linear(10, 48)
    x, branch = torch.randn(2, 5, 48), torch.randn(2, 5, 48)
    total, hidden = residual_norm_linear(x, branch, layer.weight, layer.bias, linear.weight, linear.bias)
    torch.testing.assert_close(hidden, linear(layer(x + branch)))
    a, b = hidden.chunk(2, -1)
    torch.testing.assert_close(swiglu(hidden, gated.weight, gated.bias), gated(nn.functional.silu(a) * b))
    assert torch.equal(total, x + branch)


def launches_of_a_block(width, hidden, dtype, total):
    """(kernel, arguments) of every launch, on tensors without data. `total` is the dtype of the residual stream."""
    from veca_kernels.triton import layer

    x, branch = (torch.empty(64, width, dtype=d, device="meta") for d in (total, dtype))
    row, stat = (torch.empty(n, dtype=d, device="meta") for n, d in ((width, total), (64, torch.float32)))
    hidden_rows, product = (torch.empty(64, n, dtype=dtype, device="meta") for n in (2 * hidden, hidden))
    residuals = [(None, None, None), (x, branch, None), (x, branch, row)]  # the other gradient of x, branch, scale
    launches = []
    with pytest.MonkeyPatch.context() as patch:
        record = lambda kernel, programs, device, **arguments: launches.append((kernel, arguments))  # noqa: E731
        patch.setattr(layer, "launch", record)
        for _, b, s in residuals:
            layer.norm_forward(x, b, s, row, row, 1e-5, dtype)
        for other, b, s in residuals:
            own = dtype if s is not None or (b is not None and dtype != total) else None
            layer.norm_backward(branch, other, x, stat, stat, row, b, s, own)
        layer.gate_forward(hidden_rows)
        layer.gate_backward(product, hidden_rows)
    return launches


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_kernels_compile_without_spills_and_with_wide_offsets(arch):
    """On GPUs that are not here. Rows times columns pass 2^31 elements: every product of offsets is 64 bits wide."""
    pytest.importorskip("triton")
    from veca_kernels.triton import adapter, binary

    launches = launches_of_a_block(384, 1024, torch.bfloat16, torch.float32)
    names = [kernel.__name__ for kernel, _ in launches]
    assert names == ["norm_forward"] * 3 + ["norm_backward"] * 3 + ["gate_forward", "gate_backward"]
    for (kernel, arguments), name in zip(launches, names, strict=True):
        compiled = adapter.compile_kernel(kernel, arguments, arch)
        needs = binary.read_binary(compiled, arch)
        assert needs.spill_bytes == 0 and needs.registers <= 128, (name, needs)
        code = compiled.asm["ttir"]
        assert re.search(r"arith\.muli .*i64", code)
        assert not re.findall(r"tt\.addptr .*tensor<\d+x\d+xi32>", code)
