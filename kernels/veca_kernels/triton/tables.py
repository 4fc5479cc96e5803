"""Launch tables: how many patches a tile holds, warps and stages, by kernel, size and shared memory.

The tables were chosen from what `python -m veca_kernels.aot` reports: registers, spills and shared memory. Nothing is
timed on the user's machine. Autotuning costs minutes at the first start and again for every image size, and it changes
bits.
"""

from dataclasses import dataclass

_HOPPER_SHARED = 227 << 10  # room for a third stage; with two, loads wait for the whole tile before
_LARGE_SHARED = 160 << 10  # data-centre GPUs; consumer GPUs have 99 KB, gfx942 64 KB


@dataclass(frozen=True)
class Tile:
    """Size and launch options of one kernel."""

    block_c: int  # cores, padded to a power of two
    block_p: int  # patches a tile
    num_warps: int
    num_stages: int


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """(D1, D2): the one or two powers of two, at least 16, that cover `head_dim` with the fewest channels."""
    single = [(d, 0) for d in (16, 32, 64, 128) if d >= head_dim]
    double = [(a, b) for a in (32, 64) for b in (16, 32) if b < a and a + b >= head_dim]
    return min(single + double, key=lambda pair: (sum(pair), pair[1]))


def choose_tile(kernel: str, cores: int, head_dim: int, itemsize: int, patch_self: bool, shared: int) -> Tile:
    """The launch of a kernel.

    There are three classes of shared memory: Hopper and newer, other data-centre GPUs, consumer GPUs and gfx942.
    Products in fp32 do not use tensor cores, and their tiles are small on all of them. Read and write of one pass agree
    in warps and stages wherever both take 64 patches, so they can share a launch.

    Args:
        kernel: "read_forward", "write_forward", "read_backward" or "write_backward".
        cores: C, at most 128.
        head_dim: D, at most 128.
        itemsize: Bytes of an element of q, k and v.
        patch_self: Whether a patch attends to its own key.
        shared: Bytes of shared memory that a block may use.
    """
    block_c = next(c for c in (16, 32, 64, 128) if c >= cores)
    wide, many = head_dim > 64, block_c == 128
    backward = kernel.endswith("backward")
    if itemsize == 4:
        return Tile(block_c, 16, 4, 1) if wide and many else Tile(block_c, 32, 8, 1)
    if shared < _LARGE_SHARED:
        return Tile(block_c, 32, 4, 1) if backward else Tile(block_c, 32 if wide else 64, 4, 1)
    if backward and wide and many:
        return Tile(block_c, 32, 8, 1)
    if kernel == "write_backward" and patch_self:
        return Tile(block_c, 32, 8, 2)
    # four warps hold 64 rows, in wgmma and in mma.sync; four more would compute the same again
    deep = not (wide and many) and not (backward and (many or 64 < head_dim <= 96))
    if shared < _HOPPER_SHARED:
        deep = not (backward or wide or many)
    return Tile(block_c, 64, 4, 3 if deep else 2)


def fits(cores: int, head_dim: int, itemsize: int, shared: int) -> bool:
    """Whether all passes fit into `shared` bytes a block. The backward keeps two (C, D) operands on the chip.

    The bounds come from the compiler:

        operand                 shared memory
        up to 16 KB             fits every target
        32 KB (bf16)            140 KB
        64 KB (fp32)            160 KB
    """
    block_c = next(c for c in (16, 32, 64, 128) if c >= cores)
    operand = block_c * sum(split_head_dim(head_dim)) * itemsize
    return operand <= 16 << 10 or shared >= _LARGE_SHARED
