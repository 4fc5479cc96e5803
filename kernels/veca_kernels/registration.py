"""torch.library ops around the kernels, and the autograd functions above them.

There are six raw ops, forward and backward of the joint op and of both halves. Tensors are (B, T, H, D) with any
strides but a contiguous last dimension. On CUDA the bodies are the Triton kernels. On a CPU they are composed.py, or
the interpreted kernels under TRITON_INTERPRET=1. Raw ops return contiguous tensors, so a fake needs sizes only.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.autograd import Function

from .devices import kernels_on_cpu, takes_gpu_path
from .options import Options
from .rules import FAKES, vmap_rule

_COUNTS = "SymInt active, Tensor? active_per_image"
_JOINT = (
    f"SymInt num_cores, {_COUNTS}, Tensor? lengths, Tensor? cos, Tensor? sin, float scale, bool core_self, "
    "bool patch_self"
)
_QKV = "Tensor q, Tensor k, Tensor v"
SCHEMAS = {
    "core_periphery_forward": f"({_QKV}, {_JOINT}) -> (Tensor, Tensor, Tensor)",
    "core_periphery_backward": f"(Tensor grad, {_QKV}, Tensor core_rows, Tensor lse, {_JOINT}, bool packed) -> Tensor",
    "read_forward": f"({_QKV}, Tensor? lengths, float scale) -> (Tensor, Tensor)",
    "read_backward": (
        f"(Tensor grad, Tensor grad_lse, {_QKV}, Tensor out, Tensor lse, Tensor? lengths, float scale)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "write_forward": f"({_QKV}, {_COUNTS}, float scale) -> Tensor",
    "write_backward": f"(Tensor grad, {_QKV}, {_COUNTS}, float scale) -> (Tensor, Tensor)",
}
_ops = torch.ops.veca_kernels


def core_periphery_attention(q: Tensor, k: Tensor | None, v: Tensor | None, options: Options) -> Tensor:
    """Returns (B, T, H, D), contiguous, of q, k, v (B, T, H, D). Or q is qkv (B, T, 3, H, D), with k and v None."""
    num_cores, active_cores, lengths, rope, scale, core_self, patch_self = options
    cos, sin = rope or (None, None)
    joint = (num_cores, *_counts(active_cores, num_cores), lengths, cos, sin, scale, core_self, patch_self)
    if not torch.is_grad_enabled():
        if _direct((q, k, v, *joint)):
            return _DIRECT["core_periphery_output"](q, k, v, *joint)
        return _joint_op("core_periphery_forward", (), (q, k, v), joint)[0]
    return _apply(_CorePeriphery, q, k, v, *joint)[0]


def read(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Returns out (B, C, H, D) and its log-sum-exp (B, H, C), for q (B, C, H, D) and k, v (B, N, H, D)."""
    return _apply(_Read, q, k, v, key_lengths, scale)


def write(q: Tensor, k: Tensor, v: Tensor, active_cores: int | Tensor, scale: float) -> Tensor:
    """Returns out (B, N, H, D), for q (B, N, H, D) and k, v (B, C, H, D)."""
    return _apply(_Write, q, k, v, *_counts(active_cores, k.shape[1]), scale)


class _Twinned(Function):
    eager: ClassVar[type[Function]]


def _with_eager_twin(function: type[_Twinned]) -> type[_Twinned]:
    """Add `eager` to the class: the same Function without `setup_context`.

    For a Function with `setup_context`, torch builds an `inspect.signature` in every call. That takes longer than all
    launches. Transforms of torch.func need `setup_context`, plain eager calls do not.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    methods = dict(forward=staticmethod(forward), backward=staticmethod(function.backward))
    function.eager = type(function.__name__ + "Eager", (Function,), methods)
    return function


def _apply(function: type[_Twinned], *inputs: Any) -> Any:
    """`function.apply(*inputs)`, by the eager twin unless a transform or a compiler is active."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*inputs)
    return function.eager.apply(*inputs)


def _differentiate(function: type[_Twinned], *inputs: Any) -> Any:
    """Run a backward op, with a graph where the caller asked for one (`create_graph=True`)."""
    return _apply(function, *inputs) if torch.is_grad_enabled() else function.forward(*inputs)


class _FirstOrderOnly(_Twinned):
    """Base of the backward ops. Differentiating them again raises an error that names the remedy.

    `forward` of every Function here spells out its parameters. torch 2.11's Dynamo counts them to learn whether a
    nested Function wants a context.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "core-periphery attention in Triton has no second derivative (double backward); "
            "use impl='reference', which is differentiable to any order"
        )


@_with_eager_twin
class _CorePeripheryBackward(_FirstOrderOnly):
    @staticmethod
    def forward(
        grad: Tensor,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        core_rows: Tensor,
        lse: Tensor,
        num_cores: int,
        active: int,
        per_image: Tensor | None,
        lengths: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        scale: float,
        core_self: bool,
        patch_self: bool,
    ) -> Tensor:
        packed = k is None
        joint = (num_cores, active, per_image, lengths, cos, sin, scale, core_self, patch_self)
        return _joint_op("core_periphery_backward", (grad,), (q, k, v), (core_rows, lse, *joint, packed))


@_with_eager_twin
class _CorePeriphery(_Twinned):
    """Saves q, k, v, the core rows of the output and their lse. Patch outputs and their statistics are not saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        num_cores: int,
        active: int,
        per_image: Tensor | None,
        lengths: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        scale: float,
        core_self: bool,
        patch_self: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        joint = (num_cores, active, per_image, lengths, cos, sin, scale, core_self, patch_self)
        return _joint_op("core_periphery_forward", (), (q, k, v), joint)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        q, k, v, num_cores, active, per_image, lengths, cos, sin, *flags = inputs
        _, core_rows, lse = output
        ctx.mark_non_differentiable(core_rows, lse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, core_rows, lse, per_image, lengths, cos, sin)
        ctx.counts, ctx.flags = (num_cores, active), flags

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 12
        q, k, v, core_rows, lse, *options = ctx.saved_tensors
        grads = _differentiate(_CorePeripheryBackward, grad, q, k, v, core_rows, lse, *ctx.counts, *options, *ctx.flags)
        dq, dk, dv = (grads, None, None) if k is None else grads.unbind(0)
        return dq, dk, dv, *(None,) * 9


@_with_eager_twin
class _ReadBackward(_FirstOrderOnly):
    @staticmethod
    def forward(
        grad: Tensor,
        grad_lse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        lengths: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.read_backward(grad, grad_lse, q, k, v, out, lse, lengths, scale)


@_with_eager_twin
class _Read(_Twinned):
    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        return _ops.read_forward(q, k, v, lengths, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, lengths, scale = inputs
        ctx.save_for_backward(q, k, v, *output, lengths)
        ctx.scale = scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
        q, k, v, out, lse, lengths = ctx.saved_tensors
        grads = _differentiate(_ReadBackward, grad, grad_lse, q, k, v, out, lse, lengths, ctx.scale)
        return *grads, None, None


@_with_eager_twin
class _WriteBackward(_FirstOrderOnly):
    @staticmethod
    def forward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, active: int, per_image: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        return _ops.write_backward(grad, q, k, v, active, per_image, scale)


@_with_eager_twin
class _Write(_Twinned):
    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, active: int, per_image: Tensor | None, scale: float) -> Tensor:
        return _ops.write_forward(q, k, v, active, per_image, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, v, active, per_image, scale = inputs
        ctx.save_for_backward(q, k, v, per_image)
        ctx.active, ctx.scale = active, scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v, per_image = ctx.saved_tensors
        dq, dkv = _differentiate(_WriteBackward, grad, q, k, v, ctx.active, per_image, ctx.scale)
        return dq, *dkv.unbind(0), None, None, None


_DIRECT: dict[str, Callable[..., Any]] = {}  # the bodies of the ops on a GPU
_ORDINARY = frozenset({Tensor, torch.nn.Parameter, type(None), int, float, bool})


def _joint_op(
    name: str, before: tuple[Tensor, ...], qkv: tuple[Tensor, Tensor | None, Tensor | None], after: tuple[Any, ...]
) -> Any:
    """Runs one op of the joint attention. Where the dispatcher has nothing to do, the body is called directly.

    Passing a dozen arguments through the dispatcher and unpacking q, k and v takes as long as the launches.
    """
    q, k, v = qkv
    arguments = (*before, *qkv, *after)
    if _direct(arguments):
        return _DIRECT[name](*arguments)
    unpacked = q.unbind(2) if k is None or v is None else qkv
    return getattr(_ops, name)(*before, *unpacked, *after)


def _direct(arguments: tuple[Any, ...]) -> bool:
    """Whether a call goes to a GPU and no compiler, mode, transform, tracer or profiler must see the op."""
    return not (
        torch.compiler.is_compiling()
        or not takes_gpu_path(arguments[0])
        or not _ORDINARY.issuperset(map(type, arguments))
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or _profiler_enabled()
    )


def _counts(active: int | Tensor, num_cores: int) -> tuple[int, Tensor | None]:
    """(active, active_per_image) of the schemas."""
    return (num_cores, active) if isinstance(active, Tensor) else (active, None)


def _body(op: str, arguments: list[str], on_cpu: bool) -> Callable[..., Any]:
    """The function behind an op. It joins the arguments of the schema to those of the body, and runs the body.

    Counts, tables and log-sum-exps are made contiguous. Callers expand and slice them, and kernels address them without
    strides.
    """
    place = {name: i for i, name in enumerate(arguments)}
    joint, grad, counts = place.get("num_cores"), place.get("grad"), place.get("active_per_image")
    contiguous = [place[name] for name in ("lse", "grad_lse", "lengths") if name in place]

    def run(*given: Any) -> Any:
        values = list(given)
        if grad is not None and values[grad].stride(-1) != 1:
            values[grad] = values[grad].contiguous()
        for i in contiguous:
            if values[i] is not None:
                values[i] = values[i].contiguous()
        if counts is not None and values[counts] is not None:
            values[counts - 1] = values[counts].contiguous()
        if joint is not None:
            cores, active, _, lengths, cos, sin, scale, core_self, patch_self = values[joint : joint + 9]
            rope = None if cos is None else (cos.contiguous(), sin.contiguous())
            values[joint : joint + 9] = (Options(cores, active, lengths, rope, scale, core_self, patch_self),)
        elif counts is not None:
            del values[counts]
        if on_cpu and not kernels_on_cpu():
            from . import composed

            with torch.autocast("cpu", enabled=False):  # it would round the products in fp32
                return getattr(composed, op)(*values)
        launch, ops, plan = _triton()
        return plan.run(getattr(ops, op), launch.JOINT, *values)

    return run


@functools.cache
def _triton() -> tuple[Any, Any, Any]:
    """The modules that launch kernels; the first call imports Triton."""
    from .triton import launch, ops, plan

    return launch, ops, plan


def _register() -> None:
    for name, schema in SCHEMAS.items():
        qualified = f"veca_kernels::{name}"
        torch.library.define(qualified, schema)
        arguments = [a.name for a in getattr(_ops, name).default._schema.arguments]
        torch.library.impl(qualified, "CPU", _body(name, arguments, on_cpu=True))
        _DIRECT[name] = _body(name, arguments, on_cpu=False)
        if name == "core_periphery_forward":
            _DIRECT["core_periphery_output"] = _body("core_periphery_output", arguments, on_cpu=False)
        torch.library.impl(qualified, "CUDA", _DIRECT[name])
        torch.library.register_fake(qualified)(FAKES[name])
        torch.library.register_vmap(qualified, vmap_rule(name, arguments))


_register()
