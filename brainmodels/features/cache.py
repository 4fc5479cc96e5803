"""Features on disk, by the fingerprint of their extractor and the id of their image.

    cache = FeatureCache("features", extractor("gabor"), dataset.stimuli)
    cache.extract(batch_size=64)
    X = cache.get(train.image_ids)  # (n, p) fp32, the rows of these images

Files:

    features/<fingerprint>/meta.json                  the extractor's config, and a reference output
    features/<fingerprint>/<number>-<writer>/         a shard; it appears complete or not at all, and never changes
        ids.npy  pixels.npy  tokens.npy  pooled.npy   ids, hashes of the pictures, fp16 features
        crc32.json                                    CRC-32 of every row of these arrays

A row is compared with its CRC-32 when a process reads it for the first time.
Any number of processes may extract into one folder, because each writes its own shards. If two have written the same
image, the shard whose name sorts first counts. Processes skip images that others have finished, but they do not divide
the work. Give each process its own ids, such as `ids[rank::world]`.
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from veca.data.names import composed
from veca.files import read_json, remove_stale, sync, whole_file, whole_folder
from veca.hashes import checksum, hex_digest

from ..data.ids import Ids, as_ids
from ..data.stimuli import StimulusSet
from ..errors import BrainDataError, IdError, LayoutError, NormalizationError, near_names
from .base import Extractor

__all__ = ["FeatureCache"]

_log = logging.getLogger(__name__)
FORMAT = 2
KINDS = ("tokens", "pooled")
SHARD = re.compile(r"\d{6}-[0-9a-f]{8}")
SUMS = "crc32.json"
REFERENCE_VALUES, REFERENCE_TOLERANCE = 64, 0.02  # the latter lets devices and their matmul precisions differ


class _Place(NamedTuple):
    """Where the features of an image are."""

    shard: str
    row: int
    pixels: str


class FeatureCache:
    """Features of one extractor, each computed once.

    Args:
        root: Folder of caches. Each extractor has its own folder in it, so features of two extractors never mix.
        extractor: Extractor that computes the features.
        stimuli: Images to compute features of.
        size: Side in pixels at which pictures are read (see `StimulusSet.image`). None uses the extractor's own. At
            another size the extractor resizes the pictures again, and the features have a separate folder.
        shard_images: Number of images in a shard. This is the most that a killed writer loses, and what is held in
            memory.

    Attributes:
        folder: Folder of this extractor.

    Raises:
        LayoutError: The folder belongs to another extractor, or is incomplete.
        IdError: Two shards hold features of different pictures under one id.
    """

    def __init__(
        self,
        root: str | Path,
        extractor: Extractor,
        stimuli: StimulusSet,
        size: int | None = None,
        shard_images: int = 256,
    ):
        self.extractor, self.stimuli = extractor, stimuli
        self.size = extractor.input_size if size is None else size
        self.shard_images = shard_images
        self.fingerprint = extractor.fingerprint()
        resized = "" if self.size == extractor.input_size else f"-{self.size}px"
        self.folder = Path(root) / f"{self.fingerprint}{resized}"
        self._places: dict[str, _Place] = {}
        self._shards: set[str] = set()
        self._arrays: dict[tuple[str, str], np.ndarray] = {}
        self._intact: dict[tuple[str, str], np.ndarray] = {}  # which rows of an array are known to be what was written
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, image_id: str) -> bool:
        return composed(str(image_id)) in self._places

    def __repr__(self) -> str:
        note = f", {self.extractor.note}" if self.extractor.note else ""
        return f"FeatureCache({self.extractor.name}, {self.fingerprint}, {len(self)} images at {self.size} px{note})"

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_arrays": {}}  # a memory map would be pickled as a copy of its contents

    @property
    def ids(self) -> np.ndarray:
        """Ids of the images whose features are here, sorted."""
        return np.array(sorted(self._places), dtype=str)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the extractor gives: "tokens", "pooled" or both. Empty before the first extraction."""
        shard = self.folder / min(self._shards, default="none")
        return tuple(kind for kind in KINDS if (shard / f"{kind}.npy").is_file())

    def get(self, ids: Ids, what: str = "pooled") -> np.ndarray:
        """Features of images, in the order of `ids`.

        Args:
            ids: Ids of the images. They may repeat.
            what: "pooled" or "tokens".

        Returns:
            fp32 (len(ids), p) or (len(ids), m, d).

        Raises:
            IdError: An unknown id (the message names the nearest known one), or one that was not extracted.
            BrainDataError: The extractor does not give this kind of features.
            LayoutError: A file is missing or damaged.
        """
        places = self._locate(ids)
        rows: dict[str, list[int]] = {}
        for position, place in enumerate(places):
            rows.setdefault(place.shard, []).append(position)
        first = self._array(min(rows) if rows else min(self._shards, default=""), what)
        out = np.empty((len(places), *first.shape[1:]), np.float32)
        for shard, positions in rows.items():
            array = self._array(shard, what)
            if array.shape[1:] != first.shape[1:]:
                raise LayoutError(
                    f"expected {what} {first.shape[1:]} in {self.folder / shard}, as elsewhere, got {array.shape[1:]}"
                )
            picked = [places[position].row for position in positions]
            self._check_rows(shard, what, array, picked)
            out[positions] = array[picked]
        return out

    def extract(
        self,
        ids: Ids | None = None,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
        progress: bool = True,
        verify: bool = True,
    ) -> int:
        """Compute the features that are not here yet. A call after an interruption continues the work.

        Args:
            ids: Ids of the images. None means all of `stimuli`. An id that occurs twice is computed once.
            batch_size: Number of images in a forward pass. It can change the last bits of features.
            device: Device to which the extractor is moved.
            progress: Whether to show a bar.
            verify: Whether to read again the pictures of ids that are here, and compare them with those that features
                were computed from.

        Returns:
            Number of images that were computed.

        Raises:
            IdError: An unknown id, or one whose picture has changed.
            NormalizationError: A feature that is not finite, or that fp16 cannot hold.
            BrainDataError: The extractor gives other numbers than when the cache was created.
        """
        ids = list(dict.fromkeys(as_ids(self.stimuli.ids if ids is None else list(ids)).tolist()))
        self.stimuli.rows(ids)
        self.extractor.to(device)
        self._begin()
        self.refresh()
        if verify:
            self._verify([name for name in ids if name in self], progress)
        missing = [name for name in ids if name not in self]
        step = max(self.shard_images // batch_size, 1) * batch_size
        writer, computed = os.urandom(4).hex(), 0
        with tqdm(total=len(missing), desc=self.extractor.name, unit="images", disable=not progress) as bar:
            for start in range(0, len(missing), step):
                block = missing[start : start + step]
                self.refresh()
                todo = [name for name in block if name not in self]
                if todo:
                    self._publish(writer, self._compute(todo, batch_size))
                computed += len(todo)
                bar.update(len(block))
        self.refresh()
        return computed

    def refresh(self) -> None:
        """Find the shards that other processes have written since the last look."""
        if not self.folder.is_dir():
            return
        self._check_meta()
        found = {path.name for path in self.folder.iterdir() if SHARD.fullmatch(path.name)}
        if not self._shards <= found:  # some were removed
            self._places, self._shards, self._arrays, self._intact = {}, set(), {}, {}
        for shard in sorted(found - self._shards):
            ids, pixels = (self._load(shard, name, mmap_mode=None) for name in ("ids", "pixels"))
            for name, array in (("ids", ids), ("pixels", pixels)):
                self._check_rows(shard, name, array, range(len(ids)))
            for row, (name, digest) in enumerate(zip(ids.tolist(), pixels.tolist(), strict=True)):
                place, other = _Place(shard, row, digest), self._places.get(name)
                if other is not None and other.pixels != digest:
                    raise IdError(
                        f"expected one picture of {name}, got two: {other.shard} and {shard} of {self.folder} have "
                        "different pixels; keep the features of two sets of images under two roots"
                    )
                if other is None or shard < other.shard:
                    self._places[name] = place
        self._shards = found

    def _compute(self, ids: list[str], batch_size: int) -> dict[str, np.ndarray]:
        """Arrays of a shard."""
        hashes, parts = [], {kind: [] for kind in KINDS}
        for start in range(0, len(ids), batch_size):
            batch = ids[start : start + batch_size]
            pixels = self.stimuli.images(batch, self.size)
            hashes += [_hash(picture) for picture in pixels]
            for kind, values in zip(KINDS, self.extractor.encode(_as_tensor(pixels)), strict=True):
                if values is not None:
                    parts[kind].append(_half(values.cpu().numpy(), kind, batch, self.extractor.name))
        arrays = {kind: np.concatenate(values) for kind, values in parts.items() if values}
        if not arrays:
            raise BrainDataError(f"expected tokens or pooled features of {self.extractor.name}, got neither")
        return {"ids": np.asarray(ids, dtype=str), "pixels": np.asarray(hashes, dtype=str), **arrays}

    def _publish(self, writer: str, arrays: dict[str, np.ndarray]) -> None:
        """Write a shard, which gets its name only when it is complete. Its number is above all that are known."""
        number = 1 + max((int(name.split("-")[0]) for name in self._shards), default=-1)
        with whole_folder(self.folder / f"{number:06d}-{writer}") as partial:
            write_shard(partial, arrays)

    def _verify(self, ids: list[str], progress: bool) -> None:
        for name in tqdm(ids, desc="comparing pictures", unit="images", disable=not progress or not ids):
            digest = _hash(self.stimuli.image(name, self.size))
            if digest != self._places[name].pixels:
                raise IdError(
                    f"expected the picture of {name} whose features are stored (hash {self._places[name].pixels}), "
                    f"got another ({digest}); keep the features of two sets of images under two roots"
                )

    def _begin(self) -> None:
        """Create the folder, or check that the extractor still gives the same numbers as when it was created."""
        reference = self._reference()
        path = self.folder / "meta.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_stale(self.folder)
        if not path.is_file():
            content = {
                "format": FORMAT,
                "name": self.extractor.name,
                "fingerprint": self.fingerprint,
                "size": self.size,
                "note": self.extractor.note,
                "config": json.loads(self.extractor.config()),
                "reference": reference.tolist(),
            }
            with whole_file(path, shared=True) as partial:
                partial.write_text(json.dumps(content, indent=1))
        stored = np.array(self._check_meta()["reference"])
        error = np.linalg.norm(stored - reference) / max(np.linalg.norm(stored), 1e-12)
        if not error <= REFERENCE_TOLERANCE:
            raise BrainDataError(
                f"expected {self.extractor.name} to give the same features as when {self.folder} was begun, got "
                f"a relative difference of {error:.2g} on the reference picture; a library computes other numbers now: "
                "use another root"
            )

    def _reference(self) -> np.ndarray:
        """Some features of one fixed picture, fp32."""
        rows, cols, channels = np.ogrid[: self.size, : self.size, :3]
        picture = ((3 * rows + 5 * cols + 85 * channels) % 256).astype(np.uint8)
        tokens, pooled = self.extractor.encode(_as_tensor(picture[None]))
        shown: Any = tokens if pooled is None else pooled
        values = shown.flatten().cpu().numpy()
        return values[:: max(len(values) // REFERENCE_VALUES, 1)][:REFERENCE_VALUES]

    def _check_meta(self) -> dict[str, Any]:
        """Contents of meta.json, after a check that it belongs to this extractor."""
        path = self.folder / "meta.json"
        try:
            meta = read_json(path, LayoutError)
        except FileNotFoundError:
            if any(SHARD.fullmatch(entry.name) for entry in self.folder.iterdir()):
                raise LayoutError(f"expected {path}, which describes these features, got no such file") from None
            return {}  # another process will write it next
        expected = {"format": FORMAT, "fingerprint": self.fingerprint, "size": self.size}
        given = {key: meta.get(key) for key in expected}
        if given != expected:
            raise LayoutError(
                f"expected features of {self.extractor.name}, {expected}, in {self.folder}, got those of "
                f"{meta.get('name')}, {given}; do not rename folders of features"
            )
        return meta

    def _locate(self, ids: Ids) -> list[_Place]:
        try:
            return [self._places[composed(str(name))] for name in ids]
        except KeyError as error:
            name = error.args[0]
        if name not in self.stimuli:
            near = near_names(name, self.stimuli.ids.tolist())
            raise IdError(f"expected ids of these {len(self.stimuli)} images, got {name!r}{near}")
        absent = sum(name not in self for name in ids)
        raise IdError(
            f"expected features of {len(ids)} images, got none of {absent}, such as {name}; run extract(ids) first "
            f"({self.folder} has {len(self)}{self._others()})"
        )

    def _others(self) -> str:
        """Text that names the other extractors under the root, for users whose fingerprint changed by an update."""
        names = []
        for path in sorted(self.folder.parent.glob("*/meta.json")):
            if path.parent != self.folder:
                names.append(f"{path.parent.name} of {read_json(path, LayoutError).get('name')}")
        return f"; beside it: {', '.join(names)}" if names else ""

    def _array(self, shard: str, what: str) -> np.ndarray:
        """Features of a shard, memory-mapped."""
        if what not in KINDS:
            raise BrainDataError(f"expected what to be {' or '.join(map(repr, KINDS))}, got {what!r}")
        if not shard:
            raise IdError(f"expected features in {self.folder}, got none; run extract(ids) first")
        if (shard, what) not in self._arrays:
            if not (self.folder / shard / f"{what}.npy").is_file():
                raise BrainDataError(
                    f"expected {what} of {self.extractor.name}, got none: it gives only the other kind"
                )
            array = self._load(shard, what, mmap_mode="r")
            count = len(self._load(shard, "ids", mmap_mode="r"))
            if array.dtype != np.float16 or len(array) != count:
                raise LayoutError(
                    f"expected {count} rows of float16 in {self.folder / shard / what}.npy, got {len(array)} of "
                    f"{array.dtype}"
                )
            self._arrays[shard, what] = array
        return self._arrays[shard, what]

    def _check_rows(self, shard: str, what: str, array: np.ndarray, rows: Sequence[int]) -> None:
        """Compare rows with their checksums, each once in the life of this object."""
        folder = self.folder / shard
        if (shard, what) not in self._intact:
            self._intact[shard, what] = np.zeros(len(array), bool)
        intact = self._intact[shard, what]
        new = [row for row in dict.fromkeys(rows) if not intact[row]]
        if not new:
            return
        try:
            sums = read_json(folder / SUMS, LayoutError)[what]
        except (FileNotFoundError, KeyError, TypeError):
            raise LayoutError(f"expected checksums of {what} in {folder / SUMS}, got none; remove {folder}") from None
        for row in new:
            if row >= len(sums) or checksum(array[row : row + 1]) != sums[row]:
                raise LayoutError(
                    f"expected row {row} of {folder / what}.npy as it was written, got another; remove {folder}, "
                    "and extract() computes its features again"
                )
        intact[new] = True

    def _load(self, shard: str, name: str, mmap_mode: Literal["r"] | None) -> np.ndarray:
        path = self.folder / shard / f"{name}.npy"
        try:
            return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise LayoutError(f"expected an array in {path}, got {error}; remove the folder {path.parent}") from error


def _as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255


def _hash(pixels: np.ndarray) -> str:
    """32 hexadecimal digits of a uint8 picture."""
    return hex_digest([repr(pixels.shape), pixels], 32)


def _half(values: np.ndarray, kind: str, ids: list[str], name: str) -> np.ndarray:
    """The values as fp16, after a check that it can hold them."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    bad = ~np.isfinite(half).reshape(len(half), -1).all(1)
    if bad.any():
        row = int(np.argmax(bad))
        largest = np.abs(values[row]).max()
        raise NormalizationError(
            f"expected {kind} of {name} that are finite and at most 65504 in size, which fp16 can hold, got "
            f"{largest:.3g} for {ids[row]}; take features after a norm, or from another layer"
        )
    return half


def write_shard(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of as many rows to a folder, and the checksums of their rows."""
    for name, array in arrays.items():
        _write(folder / f"{name}.npy", array)
    sums = {name: [checksum(array[row : row + 1]) for row in range(len(array))] for name, array in arrays.items()}
    (folder / SUMS).write_text(json.dumps(sums), encoding="utf-8")
    sync(folder / SUMS)


def _write(path: Path, array: np.ndarray) -> None:
    np.save(path, array, allow_pickle=False)
    sync(path)
