"""Files and pictures of point clouds: what is written is read back, and pictures show what the clouds are."""

import math
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import median_filter

from brainmodels.data.cloud_files import check_cloud, export_cloud
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.report.clouds import AZIMUTH, ELEVATION, PictureRow, cloud_grid, render_cloud, turntable
from veca.data import solid_drawing

RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.2, 0.9)


def sphere(n, color=RED, at=(0, 0, 0), radius=1.0, seed=0):
    points = np.random.default_rng(seed).normal(size=(n, 3))
    points *= radius / np.linalg.norm(points, axis=1, keepdims=True)
    return np.c_[points + at, np.tile(color, (n, 1))]


def random_cloud(n=8192):
    rng = np.random.default_rng(1)
    return np.c_[rng.normal(size=(n, 3)).astype(np.float32), rng.random((n, 3))]


def drawn(picture):
    """Pixels that are not white."""
    return (picture < 250).any(-1)


def loaded(path):
    trimesh = pytest.importorskip("trimesh")
    found = trimesh.load(path, process=False)
    return next(iter(found.geometry.values())) if isinstance(found, trimesh.Scene) else found


@pytest.mark.parametrize("suffix", ["ply", "glb"])
def test_points_are_read_back(suffix, tmp_path):
    cloud = random_cloud()
    found = loaded(export_cloud(cloud, tmp_path / "new" / f"cloud.{suffix}"))
    np.testing.assert_array_equal(np.asarray(found.vertices, np.float32), cloud[:, :3].astype(np.float32))
    np.testing.assert_array_equal(found.colors[:, :3], (255 * cloud[:, 3:]).round())
    assert (found.colors[:, 3] == 255).all()
    plain = loaded(export_cloud(cloud[:, :3], str(tmp_path / f"plain.{suffix}")))
    np.testing.assert_array_equal(np.asarray(plain.vertices, np.float32), cloud[:, :3].astype(np.float32))
    assert not len(plain.colors)


def test_a_ply_file_has_a_uchar_for_each_colour(tmp_path):
    header = export_cloud(random_cloud(64), tmp_path / "x.ply").read_bytes().split(b"end_header")[0]
    assert all(b"property uchar " + name in header for name in (b"red", b"green", b"blue"))
    assert b"element vertex 64" in header
    assert b"COLOR_0" in export_cloud(random_cloud(64), tmp_path / "x.glb").read_bytes()


@pytest.mark.parametrize("suffix", ["ply", "glb"])
def test_octahedra_stand_where_the_points_are(suffix, tmp_path):
    cloud = random_cloud(700)
    found = loaded(export_cloud(cloud, tmp_path / f"cloud.{suffix}", points_as="octahedra"))
    corners = np.asarray(found.vertices).reshape(700, 6, 3)
    np.testing.assert_allclose(corners.mean(1), cloud[:, :3], atol=1e-6)
    apart = np.linalg.norm(corners - cloud[:, None, :3], axis=2)
    lengths = np.sort(np.linalg.norm(cloud[:, None, :3] - cloud[:, :3], axis=2), axis=1)
    np.testing.assert_allclose(apart, np.median(lengths[:, 6]) / 2, rtol=1e-5)
    colors = found.visual.vertex_colors.reshape(700, 6, 4)
    np.testing.assert_array_equal(colors[:, :, :3], np.repeat((255 * cloud[:, 3:]).round()[:, None], 6, 1))
    assert len(found.faces) == 8 * 700
    assert found.volume == pytest.approx(700 * 4 / 3 * apart[0, 0] ** 3, rel=1e-4)  # closed, with outer sides outside
    plain = loaded(export_cloud(cloud[:, :3], tmp_path / f"plain.{suffix}", points_as="octahedra"))
    assert len(plain.vertices) == 6 * 700


def test_bad_clouds_are_refused(tmp_path):
    good = sphere(40)
    refused = (
        (AxisError, r"of shape \(N, 3\) or \(N, 6\), got \(40, 4\)", good[:, :4]),
        (AxisError, r"got \(240,\)", good.ravel()),
        (BrainDataError, "16 or more distinct points, got 15", np.repeat(good[:15], 4, axis=0)),
        (BrainDataError, "finite points, got 1 of 40", np.where(np.arange(40)[:, None] == 7, np.nan, good)),
        (BrainDataError, r"colours in \[0, 1\], got 25.5 to 230", good * [1, 1, 1, 255, 255, 255]),
        (BrainDataError, r"got -0.1 to 0.7", good - [0, 0, 0, 0.2, 0.2, 0.2]),
    )
    for error, words, cloud in refused:
        for use in (render_cloud, lambda x: export_cloud(x, tmp_path / "x.ply"), check_cloud):
            with pytest.raises(error, match=words):
                use(cloud)
    with pytest.raises(BrainDataError, match=r"suffix of a cloud's file to be one of .ply, .glb, got '.obj'"):
        export_cloud(good, tmp_path / "x.obj")
    with pytest.raises(BrainDataError, match="points_as to be one of points, octahedra, got 'cubes'"):
        export_cloud(good, tmp_path / "x.ply", points_as="cubes")
    with pytest.raises(BrainDataError, match="the decoded cloud with colours"):
        check_cloud(good * 3, "the decoded cloud")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ImportError, match=r"a file of a point cloud needs trimesh; .*veca\[brain\]"):
        export_cloud(sphere(40), tmp_path / "x.ply")
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(ImportError, match="a picture of a point cloud needs scipy"):
        render_cloud(sphere(40))


@pytest.mark.parametrize("n", [64, 1024])
def test_a_red_sphere_is_a_red_disc_on_white(n):
    picture = render_cloud(sphere(n), 80)
    inside = drawn(picture)
    assert (picture[~inside] >= 250).all() and (picture[0] == 255).all()
    red, others = picture[inside][:, 0].astype(int), picture[inside][:, 1:].max(1)
    assert (red > others).mean() > 0.97 and red.mean() > 150  # rims are mixed with white
    rows, columns = np.nonzero(inside)
    radius = np.hypot(rows - rows.mean(), columns - columns.mean())
    assert radius.max() < 1.15 * math.sqrt(inside.sum() / math.pi)  # a disc
    assert abs(rows.mean() - 39.5) < 2 and abs(columns.mean() - 39.5) < 2


@pytest.mark.parametrize("n", [256, 1024, 8192])
def test_a_surface_has_no_holes_and_no_speckle(n):
    """Every pixel of a grey disc is covered, and none stands out from the 25 around it."""
    for seed in (1, 2):
        picture = render_cloud(sphere(n, (0.8, 0.8, 0.8), seed=seed), 96).astype(int)
        rows, columns = np.indices((96, 96)) - 47.5
        middle = np.hypot(rows, columns) < 16  # the disc has a radius of 24
        assert drawn(picture)[middle].all()
        apart = np.abs(picture[..., 0] - median_filter(picture[..., 0], 5))[middle]
        assert apart.max() < 12 and apart.mean() < 1.5


def test_size_and_position_do_not_matter():
    cloud = sphere(300)
    moved = cloud * [9, 9, 9, 1, 1, 1] + [5, -2, 1, 0, 0, 0]
    difference = np.abs(render_cloud(cloud, 48).astype(int) - render_cloud(moved, 48))
    assert difference.max() <= 2
    copies = np.concatenate([cloud, cloud[:100]])
    assert drawn(render_cloud(copies, 48)).sum() == pytest.approx(drawn(render_cloud(cloud, 48)).sum(), rel=0.1)


def test_nearer_points_hide_farther_ones():
    cloud = np.concatenate([sphere(400, RED, (0, 0, 1), 0.5), sphere(400, BLUE, (0, 0, -1), 0.5, seed=1)])
    front, back = render_cloud(cloud, 64, 0, 0), render_cloud(cloud, 64, math.pi, 0)
    for picture, channel in ((front, 0), (back, 2)):
        colors = picture[drawn(picture)].astype(int)
        assert (colors.argmax(1) == channel).mean() > 0.98
    beside = render_cloud(cloud, 64, math.pi / 2, 0)  # the camera is on the axis x: the red one is at the left
    kinds = beside.astype(int)[..., 0] - beside[..., 2]
    assert (kinds[:, :30][drawn(beside)[:, :30]] > 0).mean() > 0.98
    assert (kinds[:, 34:][drawn(beside)[:, 34:]] < 0).mean() > 0.98


def test_up_is_up_and_the_camera_rises():
    cloud = np.concatenate([sphere(300, RED, (0, 1, 0), 0.5), sphere(300, BLUE, (0, -1, 0), 0.5, seed=1)])
    picture = render_cloud(cloud, 64, 0, 0).astype(int)
    red = np.nonzero(drawn(picture) & (picture[..., 0] > picture[..., 2] + 40))[0]
    blue = np.nonzero(drawn(picture) & (picture[..., 2] > picture[..., 0] + 40))[0]
    assert red.max() < 33 < blue.max() and red.mean() < blue.mean() - 15
    above = render_cloud(cloud, 64, 0, math.pi / 2).astype(int)
    assert (above[drawn(above)][:, 0] > above[drawn(above)][:, 2]).mean() > 0.98


def test_light_comes_from_above_and_the_left():
    picture = render_cloud(sphere(1000, (0.6, 0.6, 0.6)), 64, 0, 0).astype(int)[..., 0]
    assert picture[24, 32] > picture[40, 32] + 15
    assert picture[32, 24] > picture[32, 40] + 15


def test_views_of_an_asymmetric_cloud():
    cloud = np.concatenate([sphere(300), sphere(100, BLUE, (1.3, 0, 0), 0.3, seed=2)])
    first = render_cloud(cloud, 48)
    np.testing.assert_array_equal(render_cloud(cloud, 48), first)
    assert (np.abs(first.astype(int) - render_cloud(cloud, 48, AZIMUTH + 1)).max(-1) > 30).mean() > 0.02
    np.testing.assert_array_equal(render_cloud(cloud, 48, AZIMUTH, ELEVATION), first)
    assert (AZIMUTH, ELEVATION) == (solid_drawing.START, solid_drawing.ELEVATION)
    assert drawn(render_cloud(cloud, 48, radius=0.3)).sum() > drawn(render_cloud(cloud, 48, radius=0.1)).sum()
    shuffled = cloud[np.random.default_rng(0).permutation(len(cloud))]
    assert np.abs(render_cloud(shuffled, 48).astype(int) - first).max() <= 2


def test_clouds_that_are_no_surface():
    line = np.c_[np.linspace(-1, 1, 50), np.zeros((50, 2))]
    across = drawn(render_cloud(line, 64, 0, 0))
    assert across.any(0).sum() > 40 and across.any(1).sum() < 8  # long and thin
    volume = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), -1).reshape(-1, 3)
    assert 0.2 < drawn(render_cloud(volume, 64)).mean() < 0.6
    outlier = np.concatenate([sphere(300)[:, :3], [[0, 0, 500.0]]])
    assert render_cloud(outlier, 64).shape == (64, 64, 3)
    grey = render_cloud(volume, 64)
    assert np.ptp(grey[drawn(grey)].astype(int), axis=1).max() < 30


def test_a_turntable_has_its_frames(tmp_path):
    cloud = np.concatenate([sphere(300), sphere(100, BLUE, (1.3, 0, 0), 0.3, seed=2)])
    path = turntable(cloud, tmp_path / "new" / "turn.gif", frames=6, size=48)
    with Image.open(path) as movie:
        assert movie.n_frames == 6 and movie.size == (48, 48) and movie.info["loop"] == 0
        assert movie.info["duration"] == 500
        for k in range(6):
            movie.seek(k)
            shown = np.asarray(movie.convert("RGB")).astype(int)
            expected = render_cloud(cloud, 48, AZIMUTH + math.tau * k / 6)
            assert np.abs(shown - expected).mean() < 3  # 256 colours
    for words, options in (("two or more frames", {"frames": 1}), ("8 pixels", {"size": 4})):
        with pytest.raises(BrainDataError, match=words):
            turntable(cloud, path, **options)
    with pytest.raises(BrainDataError, match="8 pixels or more on each side, got 7"):
        render_cloud(cloud, 7)


def test_a_sheet_shows_its_rows(tmp_path):
    """Red and blue rows; a picture stands beside a cloud as it is."""
    green = np.zeros((20, 20, 3), np.uint8)
    green[..., 1] = 200
    rows = [
        PictureRow("true", [green, sphere(200)], ["shown", "cloud"]),
        PictureRow("decoded", [sphere(200, BLUE), sphere(200, BLUE, seed=1)]),
    ]
    cloud_grid(rows, tmp_path / "sheet.png", size=60, elevation=0.2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    places = [
        np.argwhere((sheet[..., k] > 120) & (sheet[..., k] > sheet.max(-1, initial=0, where=np.arange(3) != k) + 60))
        for k in range(3)
    ]
    red, of_green, blue = (found.mean(0) for found in places)
    assert red[0] < blue[0] and abs(red[0] - of_green[0]) < 20 and of_green[1] < red[1]
    assert of_green[1] < blue[1] < red[1]  # between the columns
    with pytest.raises(AxisError, match="rows of one or more clouds, got none"):
        cloud_grid([PictureRow("empty", [])], tmp_path / "sheet.png")
