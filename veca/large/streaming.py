"""Exact features of images that do not fit in memory: the patches go through each block a chunk at a time.

    for each block:    cores and patches' input -> for each chunk: new patches, partial read -> new cores

Both halves of the attention use the block's input, so a chunk needs the cores but no other chunk. What the cores read
from the chunks is merged by log-sum-exp. The result differs from `VECA.forward` only in the order of the sums.

Memory holds E numbers for each patch, the residual stream, where the caller wants it, and the activations of one
chunk. The image is read, normalised and embedded by strips. Each block reads and writes the residual stream once. In
fp32 that moves 8 E bytes for each patch, against about 24 E**2 floating-point operations.

Shapes: C cores, P patches, E embedding dim.
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..model.backbone import VECA
from ..model.block import join
from ..model.features import Features
from ..model.padding import fit_to_patches
from .pieces import Pieces
from .sources import StripReader, open_image
from .store import DirectoryStore, MemoryStore, PatchFile, fingerprint

__all__ = ["stream_features"]

_STRIP_PATCHES = 4096  # patches embedded at once: 13 MB of fp32 pixels at patch 16

Work = Callable[[slice, Tensor, Tensor | None], Tensor]  # patches (1, n, E), where to put the result if given
Store = MemoryStore | DirectoryStore


@torch.no_grad()
def stream_features(
    model: VECA,
    source: Any,
    chunk_patches: int = 65536,
    num_cores: int | None = None,
    device: torch.device | str | None = None,
    *,
    layout: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    residual: str = "host",
    workdir: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    progress: bool = False,
) -> Features:
    """Compute `model.forward_features` of one image of any size, in inference.

        features = veca.stream_features(model, "slide.tif", mean=model.mean, std=model.std, workdir="run")

    Args:
        model: a model in eval mode, with update="parallel".
        source: the image, in one of these forms:
            a tensor (C, H, W) or (1, C, H, W);
            an array, memmap, zarr or h5py data set, or any object with shape, dtype and slices;
            a PIL image;
            the name of a TIFF file with grey or RGB values, whose first page tifffile reads by tiles;
            the name of another file that PIL opens, of any size, kept as 8-bit pixels. EXIF orientation is applied.
        chunk_patches: number of patches in a chunk. It bounds the memory besides the residual stream.
        num_cores: C, the budget; None means the model's.
        device: device where the blocks run; the model is moved there. None means the device of its weights.
        layout: "CHW" or "HWC" of a tensor or an array. None means CHW for tensors and floating arrays, HWC for
            arrays of integers.
        mean, std: one value for each channel. Integer pixels are divided by the largest value of their dtype, then
            all pixels become (pixel - mean) / std. None takes floating pixels as already normalised. Integers need
            both, as a rule `model.mean` and `model.std`.
        residual: memory of the residual stream without a `workdir`: "host" or "device".
        workdir: directory that keeps the residual stream in two memory-mapped files, and the state after each block.
            If a call is interrupted, the same call goes on after the last complete block, with bit-equal results.
            At the end the directory is cleared, except for `patches.npy`, the default of `out`.
        out: NumPy file (P, width) for the patches. The file takes this name when it is complete.
        progress: show a progress bar.

    Returns:
        The record of `forward_features`. `patches` are in the memory that `residual` names, or backed by the
        file `out`. NumPy has no bfloat16, so the file has float32 then.

    Raises:
        TypeError: not a VECA, an unknown kind of source, or pixels that are neither unsigned integers nor floats.
        ValueError: a model in training mode or with update="sequential"; an image whose shape, layout, mean or std
            does not fit; or a `workdir` with another run.
        FileNotFoundError: no such image file.
        ImportError: a TIFF file without tifffile installed.
    """
    _check(model, chunk_patches, residual)
    if device is not None:
        model.to(device)
    weight = model.patch_embed.proj.weight
    image = open_image(source, weight.shape[1], layout, mean, std)
    pieces = Pieces(model, _grid_size(model, image), num_cores, weight.device)
    num_patches = math.prod(pieces.grid_size)
    chunks = [slice(start, min(start + chunk_patches, num_patches)) for start in range(0, num_patches, chunk_patches)]
    if workdir is None:
        store = MemoryStore((num_patches, model.embed_dim), pieces.dtype, weight.device, residual)
    else:
        workdir = Path(workdir)
        run = fingerprint(model, image, weight.device, chunk_patches=chunk_patches, num_cores=pieces.num_cores)
        store = DirectoryStore(workdir, (num_patches, model.embed_dim), pieces.dtype, run)
        out = workdir / "patches.npy" if out is None else out

    with closing(store):
        state = store.load()
        if state is None:
            _embed(model, image, store.after(0))
            state = 0, pieces.cores[None], pieces.raw_xy
            store.save(*state)
        cores, raw_xy = _run_blocks(pieces, store, state, chunks, progress)
        features = _finish(pieces, store, cores, raw_xy, chunks, None if out is None else Path(out))
        store.remove()
    return features


def _check(model: VECA, chunk_patches: int, residual: str) -> None:
    if not isinstance(model, VECA):
        raise TypeError(f"expected a veca.VECA model, got {type(model).__name__}")
    if model.training:
        raise ValueError("expected a model in eval mode, got one in training mode; call model.eval()")
    if isinstance(chunk_patches, bool) or not isinstance(chunk_patches, int):
        raise TypeError(f"expected chunk_patches to be an int, got {type(chunk_patches).__name__}")
    if chunk_patches < 1:
        raise ValueError(f"expected chunk_patches of at least 1, got {chunk_patches}")
    if residual not in ("host", "device"):
        raise ValueError(f"expected residual 'host' or 'device', got {residual!r}")


def _grid_size(model: VECA, image: StripReader) -> tuple[int, int]:
    """(rows, cols) of the patches, by the model's rule for odd sizes. No pixel is read."""
    weight = model.patch_embed.proj.weight
    pixels = torch.empty(1, weight.shape[1], image.height, image.width, device="meta", dtype=weight.dtype)
    height, width = fit_to_patches(pixels, model.patch_embed, model.on_odd).shape[2:]
    return height // model.patch_embed.patch_size[0], width // model.patch_embed.patch_size[1]


def _embed(model: VECA, image: StripReader, target: Tensor) -> None:
    """Write the patches of the image to `target` (P, E), by strips of whole rows of patches."""
    patch_height = model.patch_embed.patch_size[0]
    patches_across = -(-image.width // model.patch_embed.patch_size[1])
    rows = patch_height * max(1, _STRIP_PATCHES // patches_across)
    start = 0
    for strip in image.normalised_strips(rows, model.patch_embed.proj.weight):
        if model.on_odd == "crop" and strip.shape[1] < patch_height:
            break  # these pixels are below the last row of patches
        patches = model.patch_embed(fit_to_patches(strip[None], model.patch_embed, model.on_odd)).flatten(0, 2)
        target[start : start + len(patches)] = patches
        start += len(patches)


def _run_blocks(
    pieces: Pieces, store: Store, state: tuple[int, Tensor, Tensor], chunks: list[slice], progress: bool
) -> tuple[Tensor, Tensor]:
    """Run all blocks that are not done. Returns final cores (1, C, E) and raw coordinates (1, C, 2)."""
    device = pieces.cores.device
    done, cores, raw_xy = state[0], state[1].to(device), state[2].to(device)
    depth = len(pieces.model.blocks)
    with tqdm(total=depth * len(chunks), initial=done * len(chunks), unit="chunk", disable=not progress) as bar:
        for index in range(done, depth):
            block = pieces.model.blocks[index]
            raw_xy, core_qkv = pieces.move_cores(index, cores, raw_xy)
            read: Any = None  # what the cores have read of the chunks so far

            def advance(chunk: slice, patches: Tensor, out: Tensor | None, block=block, core_qkv=core_qkv) -> Tensor:
                nonlocal read
                advanced, part = block.advance_patches(patches, core_qkv, pieces.patch_rope(chunk), out=out)
                read = join(read, part)
                bar.update()
                return advanced

            _each_chunk(store.after(index), store.after(index + 1), chunks, device, advance)
            cores = block.advance_cores(cores, core_qkv, read)
            store.save(index + 1, cores, raw_xy)
    return cores, raw_xy


def _finish(
    pieces: Pieces,
    store: Store,
    cores: Tensor,
    raw_xy: Tensor,
    chunks: list[slice],
    out: Path | None,
) -> Features:
    """The record, after the final norm. Without a file the patches replace the residual stream if their width fits."""
    model = pieces.model
    source = store.after(len(model.blocks))
    shape = (len(source), model.num_features)
    file = None if out is None else PatchFile(out, shape, source.dtype)
    if file is not None:
        target = file.tensor
    else:
        target = source if model.num_features == model.embed_dim else source.new_empty(shape)
    total = torch.zeros(
        1, model.num_features, device=cores.device, dtype=torch.promote_types(cores.dtype, torch.float32)
    )

    def finish(chunk: slice, patches: Tensor, out: Tensor | None) -> Tensor:
        finished = pieces.finish(patches)
        total.add_(finished.sum(1, dtype=total.dtype))
        return finished if out is None else out.copy_(finished)

    _each_chunk(source, target, chunks, cores.device, finish)
    if file is not None:
        file.complete()
    cores = pieces.finish(cores)
    return Features(
        global_token=pieces.pool(cores, (total / len(source)).to(cores.dtype)),
        patches=target[None],
        cores=cores,
        core_xy=raw_xy.tanh().expand(1, -1, -1),
        grid_size=pieces.grid_size,
        num_cores=pieces.num_cores,
    )


def _each_chunk(source: Tensor, target: Tensor, chunks: list[slice], device: torch.device, work: Work) -> None:
    """target[chunk] = work(chunk, source[chunk]) for all chunks; both tensors (P, E) and (P, width) may be one."""
    if device.type == "cuda" and source.device != device:
        return _each_chunk_overlapped(source, target, chunks, device, work)
    for chunk in chunks:
        patches, place = source[None, chunk].to(device), target[None, chunk]
        if place.device == device:
            work(chunk, patches, place)
        else:
            place.copy_(work(chunk, patches, None))


def _each_chunk_overlapped(
    source: Tensor, target: Tensor, chunks: list[slice], device: torch.device, work: Work
) -> None:
    """`_each_chunk` with the source in host memory: copies of the next and the last chunk overlap the work."""
    compute = torch.cuda.current_stream(device)
    incoming, outgoing = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def fetch(chunk: slice) -> tuple[Tensor, torch.Event]:
        with torch.cuda.stream(incoming):
            return source[None, chunk].to(device, non_blocking=True), incoming.record_event()

    ahead, finished = fetch(chunks[0]), None
    for number, chunk in enumerate(chunks):
        patches, arrived = ahead
        if number + 1 < len(chunks):
            ahead = fetch(chunks[number + 1])
        compute.wait_event(arrived)
        patches.record_stream(compute)
        result = work(chunk, patches, None)
        if finished is not None:
            finished.synchronize()  # the host runs at most one chunk ahead, or memory would grow with P
        finished = compute.record_event()
        with torch.cuda.stream(outgoing):
            outgoing.wait_event(finished)
            target[None, chunk].copy_(result, non_blocking=True)
        result.record_stream(outgoing)
    outgoing.synchronize()
