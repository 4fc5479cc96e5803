"""Maps: left is left on every kind of affine, surfaces and flatmaps hold the right vertices, and masks are kept."""

import re
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import VoxelSpace
from brainmodels.data.anatomy import check_maps, to_mni, upright
from brainmodels.errors import AxisError, BrainDataError, LayoutError
from brainmodels.report import figures, surfaces

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("nilearn")
SHAPE = (31, 40, 30)
LEFT, RIGHT = 0.6, -0.3


def affine_of(kind):
    """Matrices of a grid of 6 mm around the brain, with axes to the right, to the left, or turned."""
    linear = np.diag([6.0, 6.0, 6.0])
    if kind != "RAS":
        linear[0, 0] = -6
    if kind == "oblique":
        a, b = 0.35, 0.2
        about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        linear = about_z @ about_x @ linear
    if kind == "PSL":  # stored from front to back, from below, from right to left
        linear = np.array([[0, 0, -6.0], [-6, 0, 0], [0, 6, 0]])
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.array([0, -15, 8]) - linear @ (np.array(SHAPE) - 1) / 2
    return affine


def head(kind):
    """Voxels of an ellipsoid, and scores that are positive on the left and negative on the right."""
    affine = affine_of(kind)
    index = np.argwhere(np.ones(SHAPE, bool))
    places = (np.column_stack((index, np.ones(len(index)))) @ affine.T)[:, :3]
    inside = (((places - [0, -15, 8]) / [70, 90, 70]) ** 2).sum(1) < 1
    space = VoxelSpace("MNI152NLin2009cAsym", index[inside], SHAPE, affine)
    return space, np.where(places[inside, 0] < 0, LEFT, RIGHT).astype(np.float32)


def sides(picture):
    """Columns of the red and of the blue pixels of a picture, their means."""
    pixels = picture[..., :3].astype(float)
    red = (pixels[..., 0] > pixels[..., 2] + 40).nonzero()[1]
    blue = (pixels[..., 2] > pixels[..., 0] + 40).nonzero()[1]
    return red.mean(), blue.mean()


@pytest.mark.parametrize("kind", ["RAS", "LAS", "oblique", "PSL"])
def test_left_is_left_in_every_picture(kind, tmp_path):
    space, scores = head(kind)
    left, right = surfaces.on_fsaverage5(scores, space, np.eye(4))
    assert np.nanmean(left) > 0.9 * LEFT and np.nanmean(right) < 0.9 * RIGHT
    assert np.isfinite(left).mean() > 0.8
    small = figures.response_picture(scores, space, 1.0)
    for column in (small[:, :120], small[:, 120:]):  # two cuts beside each other
        red, blue = sides(column)
        assert red < blue - 15
    from matplotlib.image import imread

    figures.brain_map(scores, space, tmp_path / "map.png", cuts=1)
    red, blue = sides((imread(tmp_path / "map.png")[:, :1000] * 255).astype(int))
    assert red < blue - 50


def test_the_front_is_at_the_top_whatever_the_axes():
    for kind in ("RAS", "LAS", "PSL"):
        space, _ = head(kind)
        places = (np.column_stack((space.index, np.ones(len(space)))) @ space.affine.T)[:, :3]
        picture = figures.response_picture(np.where(places[:, 1] > -15, 1.0, -1.0), space, 1.0)
        red, blue = sides(np.swapaxes(picture[:120], 0, 1))
        assert red < blue - 15
        across = upright(space.volume(places[:, 0]), space.affine)
        assert (np.diff(np.nanmean(across[10:20], axis=(1, 2))) > 0).all()  # the first axis goes to the right


def test_what_is_masked_has_no_part_in_a_surface():
    space, scores = head("LAS")
    places = (np.column_stack((space.index, np.ones(len(space)))) @ space.affine.T)[:, :3]
    back = places[:, 1] < -60
    left, _ = surfaces.on_fsaverage5(surfaces.masked(scores, back), space, np.eye(4))
    from nilearn.datasets import load_fsaverage

    y = load_fsaverage("fsaverage5")["pial"].parts["left"].coordinates[:, 1]
    assert np.isnan(left[y > -45]).all() and np.isfinite(left[(y < -66) & (y > -95)]).mean() > 0.8
    known = left[np.isfinite(left) & (np.abs(y) > 0)]
    assert np.median(known) == pytest.approx(LEFT, abs=1e-6)  # the edge of the mask is not mixed with zeros
    with pytest.raises(AxisError, match="booleans, got int64"):
        surfaces.masked(scores, back.astype(int))


def test_vertices_of_any_fsaverage_go_to_the_same_vertices():
    index = np.array([[0, 0], [0, 10241], [0, 10242], [1, 5]])
    space = VoxelSpace("challenge-fsaverage", index, (163842, 163842))
    left, right = surfaces.on_fsaverage5(np.array([0.1, 0.2, 0.3, 0.4]), space)
    assert (left[0], left[10241], right[5]) == (0.1, 0.2, 0.4)
    assert np.isfinite(left).sum() == 2 and np.isfinite(right).sum() == 1  # vertex 10242 is not in fsaverage5
    with pytest.raises(BrainDataError, match=r"10242, 40962, 163842.*got \(20, 20\)"):
        surfaces.on_fsaverage5(np.zeros(1), VoxelSpace("own", np.array([[0, 3]]), (20, 20)))
    space, scores = head("RAS")
    with pytest.raises(BrainDataError, match="a transform to MNI"):
        surfaces.on_fsaverage5(scores, space)
    with pytest.raises(AxisError, match="expected values of"):
        surfaces.on_fsaverage5(scores[:-1], space, np.eye(4))


def test_a_transform_moves_what_is_drawn(tmp_path):
    """Responses that are stored 40 mm too far to the right reach the same vertices through their transform."""
    space, scores = head("LAS")
    there, back = np.eye(4), np.eye(4)
    there[0, 3], back[0, 3] = 40, -40
    moved = replace(space, name="func1pt8mm", affine=there @ space.affine)
    np.save(tmp_path / "to_mni.npy", back)
    np.savetxt(tmp_path / "to_mni.txt", back)
    for name in ("to_mni.npy", "to_mni.txt"):
        found = surfaces.on_fsaverage5(scores, moved, to_mni(str(tmp_path / name), moved))
        np.testing.assert_allclose(found, surfaces.on_fsaverage5(scores, space, np.eye(4)), atol=1e-4)
    assert to_mni("", moved) is None
    np.testing.assert_array_equal(to_mni("", space), np.eye(4))
    np.savetxt(tmp_path / "short.txt", back[:3])
    (tmp_path / "words.txt").write_text("no numbers")
    for name, message in (
        ("none.txt", "got no file"),
        ("short.txt", r"got shape \(3, 4\)"),
        ("words.txt", "of numbers"),
    ):
        with pytest.raises(LayoutError, match=message):
            check_maps(space, None, str(tmp_path / name))


def test_an_anatomy_must_cover_the_voxels(tmp_path):
    space, scores = head("LAS")
    ground = np.linspace(0, 1, 30**3).reshape(30, 30, 30).astype(np.float32)
    fits, far = np.diag([8.0, 8, 8, 1]), np.diag([8.0, 8, 8, 1])
    fits[:3, 3], far[:3, 3] = (-116, -131, -108), (400, 0, 0)
    for name, affine in (("fits", fits), ("far", far)):
        nibabel.Nifti1Image(ground, affine).to_filename(tmp_path / f"{name}.nii.gz")
    figures.brain_map(scores, space, tmp_path / "with.png", anatomy=tmp_path / "fits.nii.gz")
    figures.brain_map(scores, space, tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    with pytest.raises(LayoutError, match=r"covers the voxels of 'MNI.*far\.nii\.gz, outside"):
        check_maps(space, tmp_path / "far.nii.gz", "")
    (tmp_path / "text.nii").write_text("none")
    for name in ("text.nii", "absent.nii"):
        with pytest.raises(LayoutError, match=name):
            check_maps(space, tmp_path / name, "")
    with pytest.raises(BrainDataError, match="a volume with an affine"):
        check_maps(VoxelSpace("own", np.array([[0, 3]]), (20, 20)), None, "identity")


def test_all_maps_of_a_volume_and_of_a_surface(tmp_path):
    space, scores = head("oblique")
    significant = scores > 0
    (tmp_path / "volume").mkdir()
    drawn = surfaces.draw_maps(scores, space, tmp_path / "volume", significant, transform=np.eye(4))
    assert set(drawn) - {"surface.html"} == {"flatmaps.npz", "map.png", "map.html", "surface.png"}
    page = (tmp_path / "volume" / "map.html").read_text()
    assert not re.search(r'(src|href)="https?:', page)  # it holds all that it needs
    arrays = np.load(tmp_path / "volume" / "flatmaps.npz")
    assert arrays["r"].shape == SHAPE[::-1]
    x, y, z = space.index[7]
    assert arrays["r"][z, y, x] == scores[7] and np.isnan(arrays["r"][0, 0, 0])
    assert np.isnan(arrays["r_significant"]).sum() == np.prod(SHAPE) - significant.sum()
    np.testing.assert_array_equal(arrays["affine"], space.affine)

    vertices = VoxelSpace("fsaverage5", np.array([[0, 4], [1, 2]]), (10242, 10242))
    (tmp_path / "surface").mkdir()
    drawn = surfaces.draw_maps(np.array([0.25, 0.5]), vertices, tmp_path / "surface")
    assert "surface.png" in drawn and "map.png" not in drawn
    flat = np.load(tmp_path / "surface" / "flatmaps.npz")["r"]
    assert flat.shape == (20484,) and (flat[4], flat[10242 + 2]) == (0.25, 0.5)
    none = surfaces.draw_maps(np.array([0.25, 0.5]), vertices, tmp_path / "surface", np.zeros(2, bool))
    assert none == ["flatmaps.npz"]
    with pytest.raises(BrainDataError, match="other than affine and space"):
        surfaces.save_flatmaps(tmp_path / "x.npz", {"affine": scores}, space)


def test_an_interactive_surface_asks_for_what_it_needs(tmp_path):
    hemispheres = np.zeros((2, 10242))
    hemispheres[0, :5] = 0.5
    try:
        import plotly  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install plotly"):
            surfaces.interactive_surface((hemispheres[0], hemispheres[1]), tmp_path / "surface.html")
        return
    surfaces.interactive_surface((hemispheres[0], hemispheres[1]), tmp_path / "surface.html")
    assert (tmp_path / "surface.html").stat().st_size > 100_000
