"""Data sets as they arrive: damaged where only a checksum shows it, and among files that systems leave behind."""

import gzip
import shutil
from pathlib import Path


def spoil(path: Path) -> None:
    """Change the last byte of the content, and keep the checksum of what was there."""
    stored = path.read_bytes()
    content = bytearray(gzip.decompress(stored))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content))[:-8] + stored[-8:])


def litter(root: Path) -> None:
    """Put beside every file what macOS writes on foreign disks, and a hidden copy of everything, as of a backup."""
    shutil.copytree(root, root / ".snapshot")
    for path in list(root.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(100))
