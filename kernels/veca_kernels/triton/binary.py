"""Resources and structure of a compiled kernel, read from its binary without a GPU, for the ahead-of-time report."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton import knobs

__all__ = ["Binary", "duplicated_mma", "loops_of", "read_binary"]

_MIN_LOOP = 20  # instructions; shorter loops combine partials or copy rows
_NVIDIA_MMA = re.compile(
    r"(#\w+) = #ttg\.nvidia_mma<\{versionMajor = (\d+).*?warpsPerCTA = \[(\d+), (\d+)\].*?instrShape = \[([\d, ]+)\]"
)
_PRODUCT = re.compile(r"(?:warp_group_dot|tt\.dot) .*-> tensor<(\d+)x(\d+)x\w+, (#\w+)>")
_WGMMA = ("HGMMA", "WARPGROUP.ARRIVE")  # ptxas opens one group for all of a product, or one for each of its parts
_MMA = re.compile(r"[HQI]G?MMA")
_LABEL = re.compile(r"^(\.L_[\w.]+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\S*)(.*?);")
_BRANCH_TARGET = re.compile(r"`\((\.L_[\w.]+)\)")


@dataclass(frozen=True)
class Binary:
    """Resources and structure of one compiled kernel.

    Attributes:
        registers, spill_bytes: Registers and spilled bytes of a thread.
        shared_bytes: Shared memory of a block in bytes.
        wgmma, mma: Number of matrix instructions in the code. `mma` counts mma.sync, tcgen05 or mfma.
        loops: Number of instructions of each innermost loop with matrix products, longest first. Empty but on sm_90.
        serialised: Number of wgmma instructions that wait for the one before, because ptxas could not overlap them.
        duplicated: Matrix layouts of which several warps compute the same part.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    wgmma: int
    mma: int
    loops: tuple[int, ...] = ()
    serialised: int = 0
    duplicated: tuple[str, ...] = ()


def read_binary(compiled: Any, arch: str) -> Binary:
    """The resources and structure of a kernel that `triton.compile` returned for that target."""
    return _read_cuda(compiled, arch) if arch.startswith("sm_") else _read_hip(compiled)


def duplicated_mma(ttgir: str) -> tuple[str, ...]:
    """Layouts of matrix products, "64x64 by 8x1 warps", whose warps cover more rows or columns than there are.

    A warp holds 16 rows, in wgmma (of the 64 rows of its group) and in mma.sync. With more warps than rows for them,
    some warps compute what others compute.
    """
    found = {}
    layouts = {m[1]: m for m in _NVIDIA_MMA.finditer(ttgir)}
    for rows, columns, name in _PRODUCT.findall(ttgir):
        if name not in layouts:
            continue
        warps_m, warps_n = int(layouts[name][3]), int(layouts[name][4])
        shape = [int(x) for x in layouts[name][5].split(",")]
        tile_n = shape[1] if len(shape) > 1 else 8
        if 16 * warps_m > int(rows) or tile_n * warps_n > int(columns):
            found[f"{rows}x{columns} by {warps_m}x{warps_n} warps"] = True
    return tuple(found)


def loops_of(sass: str) -> tuple[tuple[int, ...], int]:
    """(number of instructions of each innermost loop with matrix products, longest first; serialised wgmma)."""
    labels: dict[str, int] = {}
    code: list[tuple[str, str]] = []
    for line in sass.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(code)
        elif instruction := _INSTRUCTION.match(line):
            code.append((instruction[1], instruction[2]))
    spans = []
    for end, (name, operands) in enumerate(code):
        target = _BRANCH_TARGET.search(operands) if name.startswith("BRA") else None
        if target and end - (start := labels.get(target[1], end)) > _MIN_LOOP:
            spans.append((start, end))
    inner = [s for s in spans if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    products = [s for s in inner if any(_MMA.match(name) for name, _ in code[s[0] : s[1] + 1])]
    counts = [[sum(name.startswith(op) for name, _ in code[s[0] : s[1] + 1]) for op in _WGMMA] for s in products]
    serialised = sum(parts for parts, groups in counts if parts == groups)
    return tuple(sorted((end - start + 1 for start, end in products), reverse=True)), serialised


def _read_cuda(compiled: Any, arch: str) -> Binary:
    tools = knobs.nvidia
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run(tools.cuobjdump.path, "-res-usage", str(cubin))
        loops, serialised = ((), 0) if arch != "sm_90" else loops_of(_run(tools.nvdisasm.path, "-c", str(cubin)))
    registers, stack = (_number(rf"{key}:(\d+)", usage) for key in ("REG", "STACK"))
    ptx = compiled.asm["ptx"]
    mma = len(re.findall(r"\bmma\.sync|tcgen05\.mma", ptx))
    wgmma = ptx.count("wgmma.mma_async")
    duplicated = duplicated_mma(compiled.asm["ttgir"])
    return Binary(registers, stack, compiled.metadata.shared, wgmma, mma, loops, serialised, duplicated)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"expected the compiler's output to hold {pattern}, got {text[:200]!r}")
    return int(found[1])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _read_hip(compiled: Any) -> Binary:
    text = compiled.asm["amdgcn"]
    registers, spills = (_number(rf"\.{key}:\s+(\d+)", text) for key in ("vgpr_count", "vgpr_spill_count"))
    return Binary(registers, 4 * spills, compiled.metadata.shared, 0, text.count("v_mfma"))
