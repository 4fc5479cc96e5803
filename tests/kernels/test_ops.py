"""The registered ops with their CPU bodies: autograd, opcheck, compile, vmap, autocast, in fp64 where it matters.

`impl="triton"` is these ops with other bodies, so all of this holds for the kernels too.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from veca_kernels import core_periphery_attention, registration

from tests.kernels.cases import (
    GRADS,
    LAYOUTS,
    OPTIONS,
    SCALE,
    Case,
    assert_close,
    forward_backward,
    joint_options,
    make_options,
    make_qkv,
    run,
)

ops = torch.ops.veca_kernels


@pytest.mark.parametrize("case", [*OPTIONS, *LAYOUTS, *GRADS, Case(P=0, C=7), Case(P=197, C=64)], ids=str)
def test_backward_algebra_in_fp64(case):
    case = case.at(dtype=torch.float64)
    assert_close(forward_backward("ops", case), case)


@pytest.mark.parametrize("case", [Case(), Case(active=(3, 0), lengths=(2, 3), patch_self=True, rope="shared")], ids=str)
def test_gradcheck(case):
    case = case.at(P=3, C=4, D=8, H=1, dtype=torch.float64)
    views, _ = make_qkv(case)
    assert torch.autograd.gradcheck(lambda *x: run("ops", case, *x, make_options(case)), views, fast_mode=True)


def test_gradcheck_of_the_halves_through_output_and_lse():
    q, k, v = (torch.randn(2, n, 1, 8, dtype=torch.float64, requires_grad=True) for n in (3, 5, 5))
    lengths = torch.tensor([5, 2], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda *x: registration.read(*x, lengths, SCALE), (q, k, v))
    active = torch.tensor([3, 1], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda *x: registration.write(*x, active, SCALE), (k, q, q.detach() + 1))


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_tables_get_no_gradient_and_any_last_stride_is_taken(impl):
    q, k, v = (torch.randn(1, 2, 40, 32, 2)[..., 0].requires_grad_() for _ in range(3))
    cos, sin = (torch.rand(32, 16, requires_grad=True) for _ in range(2))
    out = core_periphery_attention(q, k, v, 8, patch_rope=(cos, sin), impl=impl)
    out.sum().backward()
    assert cos.grad is None
    expected = core_periphery_attention(
        *(x.contiguous() for x in (q, k, v)), 8, patch_rope=(cos, sin), impl="reference"
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_packed_gradient_is_one_buffer():
    """(B, T, 3, H, D), contiguous, equal to the stacked gradients of the three-tensor form."""
    case = Case(dtype=torch.float64, layout="packed", active=5, rope="shared")
    views, (qkv,) = make_qkv(case)
    options = make_options(case)
    out = registration.core_periphery_attention(qkv, None, None, joint_options(case, options))
    (packed,) = torch.autograd.grad(out.square().sum(), qkv)
    assert packed.is_contiguous()
    (stacked,) = torch.autograd.grad(run("reference", case, *views, options).square().sum(), qkv)
    torch.testing.assert_close(packed, stacked, rtol=1e-10, atol=1e-10)


def joint_arguments(case):
    (q, k, v), _ = make_qkv(case)
    options = make_options(case)
    active = options["active_cores"]
    per_image = active if isinstance(active, torch.Tensor) else None
    cos, sin = options.get("patch_rope", (None, None))
    count = case.C if active is None or per_image is not None else active
    tensors = [x.detach().transpose(1, 2) for x in (q, k, v)]
    flags = (SCALE, case.core_self, case.patch_self)
    return tensors, (case.C, count, per_image, options["patch_lengths"], cos, sin, *flags)


CHECKED = [
    Case(P=9, C=4, D=8),
    Case(P=9, C=4, D=8, layout="packed", active=(3, 0), lengths=(2, 3), patch_self=True, rope="shared"),
]


@pytest.mark.parametrize("case", CHECKED, ids=str)
def test_opcheck_joint(case):
    """Schema, fakes with real strides, autograd registration, static and dynamic AOT dispatch."""
    tensors, joint = joint_arguments(case)
    torch.library.opcheck(ops.core_periphery_forward, (*tensors, *joint))
    out, core_rows, lse = ops.core_periphery_forward(*tensors, *joint)
    assert torch.equal(core_rows, out[:, : case.C])
    for packed in (True, False):
        arguments = (torch.randn_like(out), *tensors, core_rows, lse, *joint, packed)
        torch.library.opcheck(ops.core_periphery_backward, arguments)


def test_opcheck_halves():
    q, k, v = torch.randn(2, 3, 2, 8), torch.randn(2, 2, 9, 8).transpose(1, 2), torch.randn(2, 9, 2, 8)
    lengths = torch.tensor([9, 4], dtype=torch.int32)
    torch.library.opcheck(ops.read_forward, (q, k, v, lengths, SCALE))
    out, lse = ops.read_forward(q, k, v, lengths, SCALE)
    torch.library.opcheck(ops.read_backward, (out, lse, q, k, v, out, lse, lengths, SCALE))
    torch.library.opcheck(ops.write_forward, (k, q, q, 2, None, SCALE))
    torch.library.opcheck(ops.write_backward, (torch.randn_like(v), k, q, q, 2, None, SCALE))


@pytest.mark.parametrize("impl", ["ops", "sdpa"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph_forward_and_backward(impl, dynamic):
    case = Case(P=21, C=8, D=16, dtype=torch.float64, rope="shared")
    compiled = torch.compile(
        lambda q, k, v, options: run(impl, case, q, k, v, options),
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    for patches in (21, 34):
        sized = case.at(P=patches)
        views, leaves = make_qkv(sized)
        options = make_options(sized)
        expected, actual = run("reference", sized, *views, options), compiled(*views, options)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        grads = [torch.autograd.grad(x.square().sum(), leaves) for x in (expected, actual)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_changing_sizes_and_budgets_does_not_recompile():
    counter = CompileCounterWithBackend("aot_eager")
    case = Case(P=21, C=8, D=16)

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def attend(q, k, v, active):
        return run("ops", case, q, k, v, make_options(case) | {"active_cores": active})

    graphs = []
    for patches, active in ((21, 5), (34, 3), (50, 7), (50, 2)):
        (q, k, v), _ = make_qkv(case.at(P=patches))
        attend(q, k, v, active)
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 4


def test_inductor():
    """The default backend, once: real code generation around the ops."""
    case = Case(P=21, C=8, D=16)
    views, leaves = make_qkv(case)
    options = make_options(case)
    compiled = torch.compile(lambda q, k, v: run("ops", case, 2 * q, k, v, options).sin(), fullgraph=True)
    expected = run("reference", case, 2 * views[0], *views[1:], options).sin()
    torch.testing.assert_close(compiled(*views), expected, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(x.sum(), leaves) for x in (expected, compiled(*views))]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_vmap_of_values_and_gradients(packed):
    """vmap over a leading and an inner dimension equals a loop, through torch.func.grad as well."""
    case = Case(P=9, C=4, D=8, dtype=torch.float64, lengths=(7, 3), rope="per_image")
    options = joint_options(case.at(patch_self=True), make_options(case) | {"active_cores": 3})
    qkv = torch.randn(3, 2, 13, 3, 2, 8, dtype=torch.float64)
    k, v = (None, None) if packed else qkv[0].unbind(2)[1:]
    inputs = qkv if packed else qkv[:, :, :, 0]

    def loss(x):
        return registration.core_periphery_attention(x, k, v, options).square().sum()

    looped = torch.stack([torch.func.grad(loss)(x) for x in inputs])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(inputs), looped, rtol=1e-10, atol=1e-10)
    moved = torch.func.vmap(torch.func.grad(loss), in_dims=2, out_dims=1)(inputs.movedim(0, 2))
    torch.testing.assert_close(moved, looped.movedim(0, 1), rtol=1e-10, atol=1e-10)


def test_vmap_of_the_halves():
    q, k, v = (torch.randn(3, 2, n, 2, 8, dtype=torch.float64) for n in (3, 9, 9))
    lengths = torch.tensor([9, 4], dtype=torch.int32)
    read = lambda q, k, v: registration.read(q, k, v, lengths, SCALE)[0].square().sum()  # noqa: E731
    write = lambda k, q, v: registration.write(k, q, v, 2, SCALE).square().sum()  # noqa: E731
    for function, inputs in ((read, (q, k, v)), (write, (k, q, q + 1))):
        gradient = torch.func.grad(function, argnums=(0, 1, 2))
        looped = [torch.stack(x) for x in zip(*(gradient(*x) for x in zip(*inputs, strict=True)), strict=True)]
        for a, b in zip(torch.func.vmap(gradient)(*inputs), looped, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_autocast_casts_all_three_and_keeps_the_tables(impl):
    case = Case(rope="shared")
    (q, k, v), leaves = make_qkv(case)
    with torch.autocast("cpu", torch.bfloat16):
        out = core_periphery_attention(q.bfloat16(), k, v, case.C, impl=impl, **make_options(case))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in leaves)


def test_double_backward_is_refused_by_name():
    case = Case(P=5, C=2, D=8, dtype=torch.float64)
    views, leaves = make_qkv(case)
    (grad,) = torch.autograd.grad(run("ops", case, *views, make_options(case)).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        grad.sum().backward()


def test_saved_for_backward():
    """q, k, v, the core rows of the output and their lse: the patch output is not kept alive."""
    case = Case(P=1000, C=8, D=32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        views, _ = make_qkv(case)
        run("ops", case, *views, make_options(case))
    B, H, T, D = 2, 2, 1008, 32
    assert sorted(saved) == sorted([(B, T, H, D)] * 3 + [(B, 8, H, D), (B, H, 8)])


def test_no_graph_without_gradients():
    case = Case()
    (q, k, v), _ = make_qkv(case)
    with torch.no_grad():
        assert not run("ops", case, q, k, v, make_options(case)).requires_grad
