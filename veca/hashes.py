"""Digests of text, bytes, arrays, tensors and files. Saved files hold digests, so none may change."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "checksum",
    "file_digest",
    "file_facts",
    "file_fault",
    "hex_digest",
    "json_digest",
    "tensor_parts",
    "weights_hash",
]

Part = str | bytes | np.ndarray | np.generic | Tensor


def hex_digest(parts: Iterable[Part], digits: int | None = None, hasher: Any = None) -> str:
    """Digest of the bytes of parts, one after the other: text in UTF-8, arrays and tensors in C order.

    Args:
        parts: One in memory at a time where they are a generator.
        digits: Number of hexadecimal digits to keep. Default: all.
        hasher: New object of hashlib. Default: SHA-256.
    """
    hasher = hashlib.sha256() if hasher is None else hasher
    for part in parts:
        hasher.update(_bytes(part))
    return hasher.hexdigest()[:digits]


def json_digest(content: Any, compact: bool = True) -> str:
    """First 12 hexadecimal digits of the SHA-256 of values as JSON with sorted keys.

    Args:
        content: Values that JSON knows.
        compact: Write no space after commas and colons.
    """
    separators = (",", ":") if compact else None
    return hex_digest([json.dumps(content, sort_keys=True, separators=separators)], 12)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, for `file_fault`."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def file_fault(path: Path, facts: Mapping[str, Any], contents: bool = True) -> str:
    """What is wrong with a file, as a sentence that says what was expected; an empty text where nothing is.

    Args:
        path: The file.
        facts: What `file_facts` said of it when it was written.
        contents: Compare the SHA-256 too, which reads the file: about a second for each gigabyte.
    """
    if not path.is_file():
        return f"expected a file at {path}, got none"
    size = path.stat().st_size
    if size != facts["bytes"]:
        state = "truncated" if size < facts["bytes"] else "longer than it was"
        return f"expected {facts['bytes']} bytes of {path}, got {size}: the file is {state}"
    if contents and file_digest(path) != facts["sha256"]:
        return f"expected {path} with SHA-256 {facts['sha256'][:12]}..., got a changed file"
    return ""


def checksum(values: Tensor | np.ndarray) -> int:
    """CRC-32 of the bytes of an array or a tensor, in C order. It finds accidents in half the time of SHA-256."""
    raw: Any = _bytes(values)
    return zlib.crc32(raw.reshape(-1).view(np.uint8).data)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all weights, in the order of the names."""
    return hex_digest(tensor_parts(dict(sorted(module.state_dict().items())), ";"))


def tensor_parts(tensors: Mapping[str, Tensor], end: str = "") -> Iterator[Part]:
    """For each tensor its name, dtype and shape as text that ends in `end`, then the tensor."""
    for name, tensor in tensors.items():
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}{end}"
        yield tensor


def _bytes(part: Part) -> bytes | np.ndarray:
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, Tensor):
        return part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return part if isinstance(part, bytes) else np.ascontiguousarray(part)
