"""Samples in tar archives, as WebDataset stores them.

    samples = read_samples(path, ["behav.npy"])
    read_member(samples["sample000000000"]["behav.npy"])  # an array

The members of a sample have the same name before the first dot.
"""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from veca.data.images import IMAGE_FORMATS, upright_rgb

from ..errors import LayoutError, UnsafePickleError

__all__ = ["Member", "TarImages", "read_member", "read_samples"]


class Member(NamedTuple):
    """Position of a file inside a tar archive that is not compressed.

    Attributes:
        archive: Path of the archive.
        name: Name of the file.
        offset: Position of its first byte in the archive.
        size: Number of bytes.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """All bytes of the file."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size:
            raise LayoutError(f"expected {self.size} bytes of {self.name} in {self.archive}, got {len(content)}")
        return content


class TarImages:
    """Pictures inside archives, which are read without unpacking."""

    def __init__(self, members: Sequence[Member]):
        self.members = list(members)

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int, size: int | None) -> np.ndarray:
        member = self.members[index]
        try:
            with Image.open(io.BytesIO(member.read()), formats=IMAGE_FORMATS) as image:
                return np.asarray(upright_rgb(image))
        except LayoutError:
            raise
        except Exception as error:  # on broken files, Pillow's decoders raise nearly anything
            raise LayoutError(
                f"expected a picture {member.name} in {member.archive}, got {type(error).__name__}: {error}"
            ) from error


def read_samples(path: Path, needed: Sequence[str | tuple[str, ...]]) -> dict[str, dict[str, Member]]:
    """Members of an archive by sample, then by the rest of their name, such as "trial.npy".

    Members whose names begin with a dot are passed over.

    Args:
        path: Path of the `.tar` file.
        needed: Members that every sample must have. A tuple means one of its names.

    Returns:
        Samples in the order of the archive.

    Raises:
        LayoutError: The archive is truncated, or a sample is incomplete. The message names it.
    """
    samples: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                file = PurePosixPath(info.name)
                if info.isfile() and not file.name.startswith("."):
                    sample, _, kind = file.name.partition(".")
                    members = samples.setdefault(str(file.parent / sample), {})
                    if kind in members:
                        raise LayoutError(f"expected one {kind} of sample {sample!r} in {path}, got two")
                    members[kind] = Member(path, info.name, info.offset_data, info.size)
    except (tarfile.TarError, OSError) as error:
        raise LayoutError(f"expected a tar archive that is not compressed at {path}, got: {error}") from None
    for sample, members in samples.items():
        for kinds in needed:
            choice = (kinds,) if isinstance(kinds, str) else kinds
            if not any(kind in members for kind in choice):
                raise LayoutError(
                    f"expected {' or '.join(choice)} of sample {sample!r} in {path}, got only {', '.join(members)}; "
                    "the archive was cut or written otherwise"
                )
    if not samples:
        raise LayoutError(f"expected samples in {path}, got an empty archive")
    return samples


def read_member(member: Member) -> np.ndarray:
    """The array of a `.npy` file in an archive. An array of Python objects is an `UnsafePickleError`."""
    content = member.read()
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays of a .npz file")
        return array
    except (EOFError, MemoryError, OSError, OverflowError, ValueError) as error:
        if "pickle" in str(error).lower() or "object arrays" in str(error).lower():
            raise UnsafePickleError(
                f"expected numbers in {member.name} of {member.archive}, got pickled Python objects, which can run "
                "code when they are opened"
            ) from None
        raise LayoutError(f"expected an array in {member.name} of {member.archive}, got: {error}") from None
