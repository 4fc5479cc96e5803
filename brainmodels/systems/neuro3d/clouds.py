"""What a Neuro3D returns, and how its clouds are drawn from noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.cloud_files import export_cloud
from ...errors import BrainDataError
from ...metrics.shape3d import majority_color
from ...nn.points import PointTransformer, sample_points

__all__ = ["COLORS", "Decoded", "Embedded", "Found", "Retrieved", "in_one_color", "paint"]

COLORS = ("per_point", "majority", "label")
_TOGETHER = 1 << 16  # points that are drawn at a time


@dataclass(frozen=True)
class Found:
    """Probabilities of classes and colours.

    Attributes:
        ids: (n,) Object of each row.
        shape: fp32 (n, K) Probabilities of the classes.
        color: fp32 (n, Q) Probabilities of the colours; None without labels of colours in the fit.
    """

    ids: np.ndarray
    shape: np.ndarray
    color: np.ndarray | None


@dataclass(frozen=True)
class Embedded:
    """Features of trials.

    Attributes:
        ids: (n,) Object of each row.
        geometry, appearance: fp32 (n, d) Features of length 1.
    """

    ids: np.ndarray
    geometry: np.ndarray
    appearance: np.ndarray


@dataclass(frozen=True)
class Retrieved:
    """Similarities of trials and the objects of a gallery.

    Attributes:
        ids: (n,) Object of each row.
        gallery: (m,) Objects of the columns.
        scores: fp32 (n, m) Cosines; higher is likelier.
    """

    ids: np.ndarray
    gallery: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Decoded:
    """Coloured clouds.

    Attributes:
        points: fp32 (n, samples, N, 6) xyz, centred and of root mean square radius 1, and rgb in [0, 1].
        ids: (n,) Objects of the rows.
        settings: How they were drawn.
    """

    points: np.ndarray
    ids: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)

    def by_id(self) -> dict[str, list[np.ndarray]]:
        """Clouds (N, 6) of each object, as the metrics take them. Rows of one object are further samples."""
        found: dict[str, list[np.ndarray]] = {}
        for name, clouds in zip(self.ids.tolist(), self.points, strict=True):
            found.setdefault(name, []).extend(clouds)
        return found

    def export(
        self, folder: str | Path, formats: Sequence[str] = ("ply", "glb"), points_as: str = "points"
    ) -> list[Path]:
        """Write every cloud as `OBJECT_SAMPLE.FORMAT`, with "_" in the place of ":".

        Args:
            folder: Folder to write to, which is created.
            formats: "ply", "glb" or both.
            points_as: "points", or "octahedra", which viewers with tiny points show better.

        Returns:
            Paths of the files.

        Raises:
            BrainDataError: Another format, or rows of one object, whose files would have one name.
        """
        if set(formats) - {"ply", "glb"}:
            raise BrainDataError(f"expected formats of ply and glb, got {', '.join(formats)}")
        if len(set(self.ids.tolist())) < len(self.ids):
            raise BrainDataError("expected one row for each object to write files by object, got several")
        folder, paths = Path(folder), []
        folder.mkdir(parents=True, exist_ok=True)
        for name, clouds in zip(self.ids.tolist(), self.points, strict=True):
            for sample, cloud in enumerate(clouds):
                for kind in formats:
                    paths.append(folder / f"{name.replace(':', '_')}_{sample}.{kind}")
                    export_cloud(cloud, paths[-1], points_as)
        return paths


@torch.no_grad()
def paint(
    denoiser: PointTransformer,
    painter: PointTransformer,
    geometry: Tensor,
    appearance: Tensor,
    settings: Mapping[str, Any],
    objective: str,
    seed: int,
    chunk_points: int | None,
) -> np.ndarray:
    """Draw clouds under conditions (n, k) and paint them: fp32 (n, samples, N, 6), see `Decoded`.

    Args:
        denoiser, painter: Networks on the device of the conditions.
        geometry, appearance: Their conditions, one row an object.
        settings: samples, num_points, steps and guidance.
        objective: Objective of the denoiser's training.
        seed: Seed of the noise.
        chunk_points: See `PointTransformer.forward`.
    """
    samples, count = settings["samples"], settings["num_points"]
    if samples < 1 or count < 16:
        raise BrainDataError(f"expected samples of at least 1 and num_points of at least 16, got {samples} and {count}")
    generator = torch.Generator(geometry.device).manual_seed(seed)
    shape, color = (x.repeat_interleave(samples, 0) for x in (geometry, appearance))
    found = np.empty((len(shape), count, 6), np.float32)
    options: dict[str, Any] = {"steps": settings["steps"], "guidance": settings["guidance"]}
    options["chunk_points"] = chunk_points
    step = max(1, _TOGETHER // count)
    for start in range(0, len(shape), step):
        rows = slice(start, start + step)
        xyz = sample_points(denoiser, shape[rows], count, objective, generator=generator, **options)
        xyz = xyz - xyz.mean(1, keepdim=True)
        xyz = xyz / xyz.square().mean((1, 2), keepdim=True).sqrt()
        rgb = painter(xyz, None, color[rows], chunk_points=chunk_points)  # colours in [-1, 1]
        found[rows, :, :3] = xyz.cpu() / 3**0.5  # from unit variance to unit root mean square radius
        found[rows, :, 3:] = ((rgb.clamp(-1, 1) + 1) / 2).cpu()
    return found.reshape(-1, samples, count, 6)


def in_one_color(points: np.ndarray, color: str, palette: np.ndarray, probable: np.ndarray) -> np.ndarray:
    """Clouds (n, samples, N, 6) in one colour of the palette each: "majority" of the points, or the "label"."""
    points = points.copy()
    for row, clouds in enumerate(points):
        for cloud in clouds:
            number = probable[row].argmax() if color == "label" else majority_color(cloud, palette)
            cloud[:, 3:] = palette[number]
    return points
