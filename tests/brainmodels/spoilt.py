"""Damage to compressed files that only their checksum shows."""

import gzip
from pathlib import Path


def spoil(path: Path) -> None:
    """Change the last byte of the content, and keep the checksum of what was there."""
    stored = path.read_bytes()
    content = bytearray(gzip.decompress(stored))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content))[:-8] + stored[-8:])
