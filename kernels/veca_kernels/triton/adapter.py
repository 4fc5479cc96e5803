"""All uses of Triton's internals: compiling for a GPU that is not here, and launching what is compiled."""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .binary import Binary, read_binary

_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def active_driver() -> Any:
    """The driver with `get_current_device()` and `get_current_stream(device)`."""
    return triton.runtime.driver.active


def compilation_state() -> tuple[Any, ...]:
    """Switches that change how Triton compiles the same kernel and arguments: debugging, instrumenting profilers."""
    runtime, compilation = knobs.runtime, knobs.compilation
    return runtime.debug, compilation.instrumentation_mode, getattr(runtime, "add_stages_inspection_hook", None)


def launcher(compiled: Any) -> Callable[[int, int, tuple[Any, ...]], None]:
    """A function (programs, stream, arguments) that launches a binary on the current device.

    The last step of Triton's own launch, hooks of profilers included. Pointers may be tensors or addresses.
    """
    run, function, packed, runtime = compiled.run, compiled.function, compiled.packed_metadata, knobs.runtime

    def launch(programs: int, stream: int, arguments: tuple[Any, ...]) -> None:
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        if enter.calls or leave.calls:
            metadata = compiled.launch_metadata((programs, 1, 1), stream, *arguments)
            run(programs, 1, 1, stream, function, packed, metadata, enter, leave, *arguments)
        else:
            run(programs, 1, 1, stream, function, packed, None, None, None, *arguments)

    return launch


def target(arch: str) -> GPUTarget:
    """sm_90 -> CUDA compute capability 9.0; gfx942 -> HIP."""
    return GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)


def compile_ahead(kernel: Any, arguments: dict[str, Any], arch: str) -> Binary:
    """Compile what `kernel[grid](**arguments)` would launch, and count what it needs."""
    return read_binary(compile_kernel(kernel, arguments, arch), arch)


def compile_kernel(kernel: Any, arguments: dict[str, Any], arch: str) -> Any:
    """What Triton compiles for that target, with the code of every stage in `asm`.

    Tensors may live on the meta device. The result depends only on their dtype and the alignment of an allocation.
    """
    constants = {p.name for p in kernel.params if p.is_constexpr}
    signature, constexprs, attributes = {}, {}, {}
    for index, name in enumerate(p.name for p in kernel.params):
        if name in constants:
            signature[name], constexprs[name] = "constexpr", arguments[name]
        else:
            signature[name] = _type_of(arguments[name], (index,), attributes, constexprs)
    source = ASTSource(kernel, signature, constexprs=constexprs, attrs=attributes)
    options = {name: arguments[name] for name in _OPTIONS if name in arguments}
    return triton.compile(source, target=target(arch), options=options)


def _type_of(value: Any, path: tuple[int, ...], attributes: dict, constexprs: dict) -> Any:
    """The signature entry of an argument. Aligned pointers and compile-time None are noted under their path."""
    if isinstance(value, tuple):
        return tuple(_type_of(x, (*path, i), attributes, constexprs) for i, x in enumerate(value))
    if isinstance(value, Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return _POINTERS[value.dtype]
    if value is None:
        constexprs[path] = None
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"
