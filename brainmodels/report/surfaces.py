"""Scores on the surface of fsaverage5, interactive maps, and arrays for flatmaps of pycortex.

    left, right = on_fsaverage5(r, space, np.eye(4))  # (10242,) each, NaN where nothing is known
    surface_map((left, right), Path("surface.png"))
    save_flatmaps(Path("maps.npz"), {"r": r}, space)

fsaverage5 ships with nilearn. Nothing is downloaded. The left hemisphere is always at the left.
"""

import logging
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veca.report.curves import STYLE

from ..data.anatomy import anatomy_of
from ..errors import AxisError, BrainDataError, need
from . import figures

if TYPE_CHECKING:
    from ..data import VoxelSpace

__all__ = [
    "FSAVERAGE5",
    "draw_maps",
    "interactive_surface",
    "interactive_volume",
    "masked",
    "on_fsaverage5",
    "save_flatmaps",
    "surface_map",
]

_log = logging.getLogger(__name__)
FSAVERAGE5 = 10242  # vertices of a hemisphere; the first ones of every finer fsaverage
_FINER = (10242, 40962, 163842)
_HEMISPHERES = ("left", "right")
_VIEWS = (("left", "lateral"), ("left", "medial"), ("right", "medial"), ("right", "lateral"))
_LEAST = 0.1  # share of the samples of a vertex that voxels with a value must have
_LIFT = 1e-9  # keeps a score of exactly 0 apart from no score


def masked(values: np.ndarray, significant: np.ndarray | None) -> np.ndarray:
    """Values (V,) with NaN where a voxel is not significant; all of them without a mask.

    Args:
        values: Scores of the voxels, (V,).
        significant: Booleans (V,), or None.

    Raises:
        AxisError: The mask has another length, or is not of booleans.
    """
    if significant is None:
        return values
    if significant.shape != values.shape or significant.dtype != bool:
        raise AxisError(f"expected {len(values)} booleans, got {significant.dtype} {significant.shape}")
    return np.where(significant, values, np.nan)


def on_fsaverage5(
    values: np.ndarray, space: "VoxelSpace", transform: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Values of voxels or vertices on both hemispheres of fsaverage5.

    Vertices of a finer fsaverage give those that it shares with fsaverage5. A volume is sampled between the white and
    the pial surface, linearly. Voxels without a value have no part in the mean.

    Args:
        values: Scores of the voxels, (V,); NaN for a voxel without a score.
        space: Space of the voxels.
        transform: Matrix (4, 4) from millimetres of the space to those of MNI. A volume needs it.

    Returns:
        Left and right hemisphere, (10242,) each, NaN where nothing is known.

    Raises:
        AxisError: There is not one value for each voxel.
        BrainDataError: A surface that is no fsaverage, or a volume without an affine or a transform.
    """
    if len(values) != len(space):
        raise AxisError(f"expected values of {len(space)} voxels, got {len(values)}")
    if space.index.shape[1] == 2:
        return _from_vertices(values, space)
    if transform is None or space.affine is None:
        absent = "an affine" if space.affine is None else "a transform to MNI"
        raise BrainDataError(f"expected {absent} of the volume {space.name!r} for a surface map, got none")
    nibabel, surface, meshes = _nilearn_surface()
    known, affine = np.isfinite(values), transform @ space.affine
    data, inside = np.where(known, values, 0).astype(np.float32), known.astype(np.float32)
    totals, weights = (nibabel.Nifti1Image(space.volume(part, 0), affine) for part in (data, inside))
    found = []
    for side in _HEMISPHERES:
        outer, inner = meshes[f"pial_{side}"], meshes[f"white_{side}"]
        total, weight = (surface.vol_to_surf(image, outer, inner_mesh=inner) for image in (totals, weights))
        seen = np.nan_to_num(weight) > _LEAST
        found.append(np.where(seen, total / np.where(seen, weight, 1), np.nan))
    return found[0], found[1]


def _from_vertices(values: np.ndarray, space: "VoxelSpace") -> tuple[np.ndarray, np.ndarray]:
    if tuple(space.shape) not in {(count, count) for count in _FINER}:
        raise BrainDataError(
            f"expected vertices of fsaverage ({', '.join(map(str, _FINER))} a hemisphere) for a surface map, got "
            f"{tuple(space.shape)} of {space.name!r}"
        )
    out = np.full((2, FSAVERAGE5), np.nan)
    shared = space.index[:, 1] < FSAVERAGE5
    out[tuple(space.index[shared].T)] = values[shared]
    return out[0], out[1]


def surface_map(hemispheres: tuple[np.ndarray, np.ndarray], path: Path, name: str = "r") -> None:
    """Draw scores on the inflated surface from both sides, the left hemisphere at the left. NaN shows the folds.

    Args:
        hemispheres: Scores of the left and the right hemisphere of fsaverage5, (10242,) each.
        path: PNG file to write.
        name: Name of the score, for the colour bar.

    Raises:
        BrainDataError: No finite score.
    """
    from matplotlib import pyplot as plt
    from matplotlib.colors import Normalize
    from nilearn.plotting import plot_surf_stat_map

    meshes, limit = _nilearn_surface()[2], _limit(hemispheres)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9.5, 2.5))
        for number, (side, view) in enumerate(_VIEWS):
            axes: Any = figure.add_axes((0.222 * number, 0.0, 0.23, 0.9), projection="3d")
            plot_surf_stat_map(
                meshes[f"infl_{side}"],
                _lifted(hemispheres[_HEMISPHERES.index(side)]),
                bg_map=meshes[f"sulc_{side}"],
                hemi=side,
                view=view,
                axes=axes,
                cmap="RdBu_r",
                vmin=-limit,
                vmax=limit,
                threshold=_LIFT / 2,
                colorbar=False,
            )
            figure.text(0.222 * number + 0.115, 0.93, f"{side}, {view}", ha="center", fontsize=9.5)
        scale = plt.cm.ScalarMappable(Normalize(-limit, limit), "RdBu_r")
        figure.colorbar(scale, cax=figure.add_axes((0.915, 0.15, 0.012, 0.66)), label=name)
        figure.savefig(path)
        plt.close(figure)


def interactive_surface(hemispheres: tuple[np.ndarray, np.ndarray], path: Path, name: str = "r") -> None:
    """Write both hemispheres as a page to turn and zoom, by nilearn. It holds all that it needs.

    Args:
        hemispheres: As in `surface_map`.
        path: HTML file to write.
        name: Name of the score, for the title.

    Raises:
        BrainDataError: No finite score.
        ImportError: plotly is not installed.
    """
    if find_spec("plotly") is None:  # what nilearn draws with
        raise ImportError("an interactive surface needs plotly; install it with: pip install plotly")
    from nilearn.plotting import view_surf
    from nilearn.surface import PolyMesh, SurfaceImage

    meshes, limit = _nilearn_surface()[2], _limit(hemispheres)
    mesh = PolyMesh(left=meshes["infl_left"], right=meshes["infl_right"])
    data = {side: _lifted(part) for side, part in zip(_HEMISPHERES, hemispheres, strict=True)}
    folds = SurfaceImage(mesh, {side: meshes[f"sulc_{side}"] for side in _HEMISPHERES})
    options = {"threshold": _LIFT / 2, "cmap": "RdBu_r", "vmax": limit, "symmetric_cmap": True}
    page = view_surf(mesh, SurfaceImage(mesh, data), bg_map=folds, hemi="both", title=name, **options)
    page.save_as_html(str(path))


def interactive_volume(
    values: np.ndarray, space: "VoxelSpace", path: Path, anatomy: Path | None = None, name: str = "r"
) -> None:
    """Write cuts through a volume as a page to click through, by nilearn. It holds all that it needs.

    Args:
        values: Scores of the voxels, (V,); NaN is not drawn.
        space: Space of the voxels, with an affine.
        path: HTML file to write.
        anatomy: NIfTI image in the same space, drawn below the scores.
        name: Name of the score, for the title.

    Raises:
        BrainDataError: No finite score.
        LayoutError: An anatomy that cannot be read, or that does not cover the voxels.
    """
    try:
        from nilearn.plotting import view_img
    except ImportError as error:
        raise need("nilearn", "a map of the brain") from error
    below: Any = False if anatomy is None else anatomy_of(anatomy, space)
    image = space.to_image(_lifted(values))
    options: dict[str, Any] = {"threshold": _LIFT / 2, "cmap": "RdBu_r", "vmax": _limit((values,))}
    options |= {"bg_img": below, "title": name, "resampling_interpolation": "nearest", "black_bg": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn warns of the empty corners of its own resampled ground
        page = view_img(image, **options)
    page.save_as_html(str(path))


def save_flatmaps(path: Path, maps: Mapping[str, np.ndarray], space: "VoxelSpace") -> None:
    """Write scores for users of pycortex, which draws flatmaps.

    A surface gives `NAME` (left, then right vertices) for `cortex.Vertex`. A volume gives `NAME` (z, y, x), the order
    of `cortex.Volume`, with `affine`. NaN stands where there is no score.

    Args:
        path: File to write, .npz.
        maps: Scores (V,) by name.
        space: Space of the voxels.

    Raises:
        BrainDataError: The name "affine" or "space", which the file uses itself.
    """
    taken = {"affine", "space"} & set(maps)
    if taken:
        raise BrainDataError(f"expected names of maps other than affine and space, got {', '.join(taken)}")
    arrays: dict[str, Any] = {"space": space.name}
    for name, values in maps.items():
        if space.index.shape[1] == 3:
            arrays[name] = space.volume(np.asarray(values, np.float32)).T
        else:
            whole = np.full(sum(space.shape), np.nan, np.float32)
            whole[space.index[:, 0] * space.shape[0] + space.index[:, 1]] = values
            arrays[name] = whole
    if space.affine is not None:
        arrays["affine"] = space.affine
    np.savez_compressed(path, **arrays)


def draw_maps(
    values: np.ndarray,
    space: "VoxelSpace",
    out: Path,
    significant: np.ndarray | None = None,
    anatomy: Path | None = None,
    transform: np.ndarray | None = None,
) -> list[str]:
    """Draw every map that a space allows.

    | file | of |
    |---|---|
    | map.png, map.html | volumes with an affine |
    | surface.png, surface.html | vertices of fsaverage, and volumes with a transform to MNI; the page needs plotly |
    | flatmaps.npz | all: scores, and those of significant voxels alone |

    Args:
        values: Scores of the voxels, (V,); NaN for a voxel without a score.
        space: Space of the voxels.
        out: Folder to write to.
        significant: Booleans (V,). Other voxels are left out of the pictures. None draws all.
        anatomy: NIfTI image in the same space, drawn below the cuts.
        transform: Matrix (4, 4) from millimetres of the space to those of MNI.

    Returns:
        Names of the files. Without a voxel to draw there are no pictures.
    """
    maps = {"r": values} | ({} if significant is None else {"r_significant": masked(values, significant)})
    save_flatmaps(out / "flatmaps.npz", maps, space)
    drawn, shown = ["flatmaps.npz"], masked(values, significant)
    if not np.isfinite(shown).any():
        return drawn
    volume = space.index.shape[1] == 3
    if volume and space.affine is not None:
        figures.brain_map(shown, space, out / "map.png", anatomy=anatomy)
        interactive_volume(shown, space, out / "map.html", anatomy)
        drawn += ["map.png", "map.html"]
    known = transform is not None and space.affine is not None if volume else space.shape[0] in _FINER
    if known:
        hemispheres = on_fsaverage5(shown, space, transform)
        if np.isfinite(np.concatenate(hemispheres)).any():
            surface_map(hemispheres, out / "surface.png")
            drawn.append("surface.png")
            try:
                interactive_surface(hemispheres, out / "surface.html")
                drawn.append("surface.html")
            except ImportError as error:
                _log.info("no surface.html: %s", error)
    return drawn


def _lifted(values: np.ndarray) -> np.ndarray:
    """Values with 0 for NaN, and a tiny number for 0, which the views take for no score."""
    return np.where(np.isfinite(values), np.where(values == 0, _LIFT, values), 0).astype(np.float64)


def _limit(parts: tuple[np.ndarray, ...]) -> float:
    """Absolute value of the strongest colours."""
    every = np.abs(np.concatenate(parts))
    if not np.isfinite(every).any():
        raise BrainDataError("expected a finite score to draw, got none")
    return max(float(np.nanmax(every)), _LIFT)


def _nilearn_surface() -> tuple[Any, Any, Any]:
    """nibabel, `nilearn.surface`, and the files of fsaverage5 by name."""
    try:
        import nibabel
        from nilearn import surface
        from nilearn.datasets import fetch_surf_fsaverage
    except ImportError as error:
        raise need("nilearn", "a map on a surface") from error
    return nibabel, surface, fetch_surf_fsaverage("fsaverage5")
