import itertools
import math
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from veca.data import solid_drawing
from veca.data.solid_bodies import ROUND
from veca.data.solids import (
    BODIES,
    CLASSES,
    COLORS,
    PARTS,
    Solid,
    SolidSource,
    make_solid,
    parse_solid_id,
    solid_id,
)

NANO = [body * 6 + part for body in range(6) for part in range(4)]
SOME = [
    ("sphere", "ring"),
    ("box", "handle"),
    ("cone", "twin"),
    ("torus", "legs"),
    ("cross", "cap"),
    ("star", "handle"),
]


def solid(body, part="none", color="red", stretch=1, **more):
    return Solid(body, part, color, stretch, **more)


def xyz(made, n, seed=0):
    return made.cloud(n, seed)[:, :3].astype(np.float64)


def test_classes_are_bodies_with_parts():
    assert len(CLASSES) == len(set(CLASSES)) == 72
    assert CLASSES[24:30] == ("torus", "torus_ring", "torus_legs", "torus_handle", "torus_cap", "torus_twin")
    for cls in range(72):
        made = make_solid(cls, 4)
        assert (made.body, made.part) == (BODIES[cls // 6], PARTS[cls % 6])


def test_a_solid_is_fixed_for_ever():
    """What an id stands for may not change with versions or machines: results are reported on it."""
    made = make_solid(27, 3)
    assert made == make_solid(27, 3) and hash(made) == hash(make_solid(27, 3))
    assert (made.body, made.part, made.color, made.stretch) == ("torus", "handle", "cyan", 0)
    assert (made.width, made.part_size, made.tone) == pytest.approx((1.037556, 1.132006, 0.951416), abs=1e-6)
    points = np.array([(0.0, 0.0, 0.0), (0.5, 0.1, 0.0), (0.2, -0.7, 0.3)])
    np.testing.assert_allclose(made.sdf(points), [0.2585, -0.0212, 0.3310], atol=5e-4)


def test_nothing_but_the_seed_changes_a_cloud():
    made = make_solid(27, 3)
    cloud = made.cloud(500)
    assert cloud.shape == (500, 6) and cloud.dtype == np.float32
    np.testing.assert_array_equal(cloud, make_solid(27, 3).cloud(500))
    other = made.cloud(500, seed=1)
    assert np.abs(cloud - other).max(1).min() > 0
    twin = replace(made, noise=made.noise + 1).cloud(500)
    assert len(cKDTree(cloud[:, :3]).query(twin[:, :3], distance_upper_bound=1e-5)[0]) == 500
    assert np.isinf(cKDTree(cloud[:, :3]).query(twin[:, :3], distance_upper_bound=1e-5)[0]).all()
    repainted = replace(made, color="blue").cloud(500)
    np.testing.assert_array_equal(cloud[:, :3], repainted[:, :3])
    assert np.abs(cloud[:, 3:] - repainted[:, 3:]).min(0).max() > 0.1


def test_objects_of_a_class_differ():
    for cls in (0, 27, 71):
        assert len({make_solid(cls, obj) for obj in range(100)}) == 100
        assert len({make_solid(cls, 0, seed) for seed in range(50)}) == 50


@pytest.mark.parametrize("seed", [0, 5])
def test_colours_and_stretches_are_balanced_over_classes(seed):
    for objects, classes in (((8,), NANO), (range(8), NANO), ((9,), range(72))):
        made = [make_solid(cls, obj, seed) for cls in classes for obj in objects]
        colors, stretches = Counter(x.color for x in made), Counter(x.stretch for x in made)
        assert set(colors.values()) == {len(made) / 6} and set(stretches.values()) == {len(made) / 3}
    for cls in range(72):
        assert {make_solid(cls, obj, seed).stretch for obj in range(3, 6)} == {0, 1, 2}


def test_colour_does_not_depend_on_class_part_or_earlier_objects():
    table = np.array([[list(COLORS).index(make_solid(cls, obj).color) for obj in range(100)] for cls in range(72)])
    counts = np.stack([np.bincount(row, minlength=6) for row in table])
    chi = ((counts - 100 / 6) ** 2 / (100 / 6)).sum()
    assert abs(chi - 72 * 5) < 4 * math.sqrt(2 * 72 * 5)
    same = (table[:, 1:] == table[:, :-1]).mean()
    assert abs(same - 1 / 6) < 4 * math.sqrt(5 / 36 / (72 * 99))


@pytest.mark.parametrize("cls", range(72), ids=CLASSES)
def test_a_solid_is_one_piece_whose_points_lie_on_it(cls):
    """For all classes: the cloud is on the surface, fills the box, and body and part are seen and hang together."""
    ticks = np.linspace(-1.12, 1.12, 57, dtype=np.float32)
    grid = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).reshape(-1, 3)
    for obj in (cls % 3, cls % 3 + 1):
        made = make_solid(cls, obj)
        inside = made.sdf(grid) < 0
        assert ndimage.label(inside.reshape(57, 57, 57))[1] == 1
        cloud = made.cloud(1024, normals=True)
        points = cloud[:, :3].astype(np.float64)
        assert np.abs(made.sdf(points)).max() < 2e-3
        low, high = points.min(0), points.max(0)
        assert np.abs(low + high).max() < 0.12 and 0.55 < high.max() < 1 and np.linalg.norm(points, axis=1).max() < 1.1
        assert np.linalg.norm(points.mean(0)) < 0.45
        assert (grid[inside] > low - 0.06).all() and (grid[inside] < high + 0.06).all()
        # outward: out of the solid along the normal, into it against it
        normals = cloud[:, 6:]
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-3)
        assert (made.sdf(points + 0.01 * normals) > 0.005).mean() > 0.97
        assert (made.sdf(points - 0.01 * normals) < -0.005).mean() > 0.97
        paint = np.array(COLORS[made.color]) * made.tone
        dark = np.isclose(cloud[:, 3:6], 0.6 * paint, atol=1e-3).all(1)
        assert (dark | np.isclose(cloud[:, 3:6], np.minimum(paint, 1), atol=1e-3).all(1)).all()
        assert dark.sum() == 0 if made.part == "none" else 0.02 < dark.mean() < 0.6


@pytest.mark.parametrize("body, part", list(zip(BODIES, PARTS[::-1] * 2, strict=True)))
def test_a_signed_distance_is_the_distance_to_the_nearest_point(body, part):
    made = solid(body, part, stretch=1 if body == "sphere" else 2)
    nearest = cKDTree(made.cloud(30_000)[:, :3])
    places = np.random.default_rng(0).uniform(-1.3, 1.3, (3000, 3))
    signed = made.sdf(places)
    away = signed > 0.1
    assert away.sum() > 1500
    np.testing.assert_allclose(signed[away], nearest.query(places[away])[0], rtol=0, atol=8e-3)
    within = signed < 0  # where two pieces overlap, the surface is farther
    assert (nearest.query(places[within])[0] > -signed[within] - 1e-3).all()


def test_points_of_simple_bodies_are_as_dense_as_formulas_say():
    ball = xyz(solid("sphere"), 20_000)
    assert stats_uniform(ball[:, 1] / np.linalg.norm(ball, axis=1).mean()) < 0.013  # Archimedes: heights are uniform
    ring = xyz(solid("torus"), 20_000)
    reach, minor = np.abs(ring[:, 0]).max(), np.abs(ring[:, 2]).max()
    major = reach - minor
    outer = (np.hypot(ring[:, 0], ring[:, 1]) > major).mean()
    assert outer == pytest.approx(0.5 + minor / (math.pi * major), abs=0.012)
    can = xyz(solid("cylinder", stretch=2), 20_000)
    radius, half = np.hypot(can[:, 0], can[:, 2]).max(), np.abs(can[:, 1]).max()
    r = ROUND * radius / 0.4  # both edges are quarters of a torus
    edge = 2 * math.pi * r * (math.pi * (radius - r) + 2 * r)
    side, lids = 4 * math.pi * radius * (half - r), 2 * math.pi * (radius - r) ** 2
    on_side = (np.abs(can[:, 1]) < half - r).mean()
    assert on_side == pytest.approx(side / (side + lids + edge), abs=0.012)


def stats_uniform(values):
    """Largest gap between the distribution of values and that of uniform ones in [-1, 1]."""
    values = np.sort(values)
    return np.abs((values + 1) / 2 - (np.arange(len(values)) + 0.5) / len(values)).max()


def test_edges_get_no_more_points_than_their_area():
    cloud = solid("box").cloud(40_000, normals=True)
    side = np.abs(cloud[:, :3]).max()
    r = ROUND * side / 0.48
    flat, edges, corners = 24 * (side - r) ** 2, 12 * math.pi * r * (side - r), 4 * math.pi * r * r
    steep = np.sort(np.abs(cloud[:, 6:]), axis=1)
    on_edge = (steep[:, 1] > 0.02).mean()
    share = (edges + corners) / (flat + edges + corners)
    assert share > 0.09 and on_edge == pytest.approx(share * (1 - 0.04 / (math.pi / 2)), abs=0.006)


@pytest.mark.parametrize("body, part", [*SOME, ("pyramid", "legs")])
def test_points_are_as_dense_as_random_lines_cross_the_surface(body, part):
    """Cauchy and Crofton: random lines meet every piece of a surface in proportion to its area."""
    made = solid(body, part, stretch=2)
    rng = np.random.default_rng(1)
    toward = rng.normal(size=(8000, 3))
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    aside = rng.normal(size=(8000, 3))
    aside -= (aside * toward).sum(1, keepdims=True) * toward
    aside *= 1.1 * np.sqrt(rng.random((8000, 1))) / np.linalg.norm(aside, axis=1, keepdims=True)
    ticks = np.linspace(-1.1, 1.1, 177, dtype=np.float32)
    places = (aside[:, None] + ticks[:, None] * toward[:, None]).astype(np.float32)
    inside = made.sdf(places.reshape(-1, 3)).reshape(8000, -1) < 0
    line, at = np.nonzero(inside[:, 1:] != inside[:, :-1])
    crossings = (places[line, at] + places[line, at + 1]) / 2

    centres = made.cloud(12, seed=5)[:, :3]
    counts = []
    for points in (crossings, made.cloud(12_000)[:, :3]):
        dark = made.colors(points)[:, 0] < 0.6
        counts.append(np.bincount(cKDTree(centres).query(points)[1] + 12 * dark, minlength=24) / len(points))
    assert len(line) > 2000
    assert 0.5 * np.abs(counts[0] - counts[1]).sum() < 0.05


@pytest.mark.parametrize(
    "body, part", [*SOME, ("capsule", "none"), ("disc", "ring"), ("tube", "cap"), ("pyramid", "none")]
)
def test_the_still_picture_shows_what_lies_on_the_lines_of_sight(body, part):
    made, size = solid(body, part, stretch=2), 40
    elevation, azimuth = solid_drawing.ELEVATION, solid_drawing.START
    back = np.array(
        [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    )
    right = np.array([math.cos(azimuth), 0.0, -math.sin(azimuth)])
    up = np.cross(back, right)
    ticks = ((np.arange(size) + 0.5) / size * 2 - 1) * solid_drawing.HALF_WIDTH
    aims = ticks[None, :, None] * right - ticks[:, None, None] * up
    eye = solid_drawing.DISTANCE * back
    depths = np.linspace(0.7, 1.35, 400)
    places = eye + depths[:, None, None, None] * (aims - eye)
    hidden = (made.sdf(places.reshape(-1, 3).astype(np.float32)).reshape(400, size, size) < 0).any(0)

    first, second = (replace(made, color=color).frames(3, size) for color in ("red", "blue"))
    shown = (np.abs(first.astype(int) - second) > 4).any(-1)[0]
    sure = ndimage.minimum_filter(hidden, 3) == ndimage.maximum_filter(hidden, 3)  # away from the outline
    assert 0.06 < hidden.mean() < 0.7
    np.testing.assert_array_equal(shown[sure], hidden[sure])
    np.testing.assert_array_equal(made.frames(1, size)[0], made.frames(3, size)[0])  # the still picture is frame 0


def test_a_turned_object_is_the_object_from_another_side():
    """A cross looks the same after a quarter of a turn, and a ball after any."""
    cross = solid("cross").frames(8, 32).astype(int)
    assert np.abs(cross[0] - cross[2]).mean() < 0.1 < 3 < np.abs(cross[0] - cross[1]).mean()
    ball = solid("sphere", stretch=2).frames(5, 32).astype(int)
    assert np.abs(ball - ball[0]).mean() < 0.1
    assert np.abs(solid("sphere", "handle").frames(2, 32).astype(int)[0] - ball[0]).mean() > 1


def test_grey_pictures_depend_on_shape_alone():
    for cls in (3, 27, 50):
        made = make_solid(cls, 2)
        grey = made.frames(2, 48, grey=True)
        other = replace(made, color="yellow" if made.color != "yellow" else "blue", tone=made.tone * 1.1)
        np.testing.assert_array_equal(grey, other.frames(2, 48, grey=True))
        assert (made.frames(2, 48) != other.frames(2, 48)).mean() > 0.1
        spread = grey.astype(int).max(-1) - grey.min(-1)
        assert spread.max() <= 4  # no hue
    assert (make_solid(3, 2).frames(1, 48, True) != make_solid(3, 4).frames(1, 48, True)).mean() > 0.02


def test_light_falls_from_above_and_on_the_ground_lies_a_shadow():
    picture = solid("sphere").frames(1, 64, grey=True)[0, ..., 0].astype(int)
    assert picture[24, 28] > 1.5 * picture[44, 40]
    corner = picture[0, 0]
    assert picture[52, 32] < 0.9 * corner and abs(corner - picture[0, 63]) < 8


def test_nearest_cloud_names_the_class_of_held_out_objects():
    """Chamfer distance at the scale of the root mean square radius; eight train objects of each of 24 classes."""
    clouds = {}
    for cls, obj in itertools.product(NANO, range(10)):
        points = xyz(make_solid(cls, obj), 256)
        points -= points.mean(0)
        clouds[cls, obj] = points / np.sqrt(np.square(points).sum(1).mean())
    trees = {key: cKDTree(points) for key, points in clouds.items()}

    def chamfer(a, b):
        return sum(np.square(trees[x].query(clouds[y])[0]).mean() for x, y in ((a, b), (b, a)))

    right = 0
    for cls, obj in itertools.product(NANO, (8, 9)):
        nearest = min((chamfer((cls, obj), (k, j)), k) for k in NANO for j in range(8))
        right += nearest[1] == cls
    assert right >= 45


def test_ids_name_solids():
    assert solid_id(0, 7, 3) == "solid0:07_03" and parse_solid_id("solid12:71_99") == (12, 71, 99)
    source = SolidSource(["solid0:07_03", "solid4:00_01"], num_points=64, size=24)
    assert source.solid("solid4:00_01") == make_solid(0, 1, seed=4)
    assert len(source) == 2
    np.testing.assert_array_equal(source.cloud("solid0:07_03"), make_solid(7, 3).cloud(64))
    np.testing.assert_array_equal(source.read(1, None), make_solid(0, 1, 4).frames(1, 24)[0])
    np.testing.assert_array_equal(source.read(1, 16), source.frames("solid4:00_01", 1, 16)[0])
    np.testing.assert_array_equal(source.frames("solid0:07_03", 2, 16, True), make_solid(7, 3).frames(2, 16, True))


def test_a_source_survives_pickling_and_callers_who_write():
    source = SolidSource(["solid0:07_03"], num_points=64)
    cloud = source.cloud("solid0:07_03")
    kept = cloud.copy()
    cloud[:] = 0
    np.testing.assert_array_equal(source.cloud("solid0:07_03"), kept)
    stored = pickle.dumps(source)
    assert len(stored) < 1000
    np.testing.assert_array_equal(pickle.loads(stored).cloud("solid0:07_03"), kept)


@pytest.mark.parametrize(
    "name", ["solid0:72_00", "solid0:7_03", "solid0:07_3", "sim0:000001", "solid:07_03", "solid00:07_03", ""]
)
def test_other_ids_are_named(name):
    with pytest.raises(ValueError, match=f"expected the id of a solid, such as 'solid0:07_03'.*got '{name}'"):
        parse_solid_id(name)
    with pytest.raises(ValueError, match="expected the id of a solid"):
        SolidSource([name])
    with pytest.raises(ValueError, match="expected the id of a solid"):
        SolidSource([]).cloud(name)


@pytest.mark.parametrize("cls, obj, seed", [(72, 0, 0), (-1, 0, 0), (0, 100, 0), (0, -1, 0), (0, 0, -1)])
def test_numbers_out_of_range_are_named(cls, obj, seed):
    with pytest.raises(ValueError, match=f"class from 0 to 71.*got class {cls}, object {obj} and seed {seed}"):
        make_solid(cls, obj, seed)


def test_bad_arguments_are_named():
    made = solid("box")
    with pytest.raises(ValueError, match=r"expected points \(n, 3\) of floats, got int64"):
        made.sdf(np.zeros((4, 3), int))
    with pytest.raises(ValueError, match=r"expected points .* \(3, 4\)"):
        made.colors(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="at least 1 point, got n=0"):
        made.cloud(0)
    with pytest.raises(ValueError, match="got n=1 and size=0"):
        made.frames(1, 0)
    with pytest.raises(ValueError, match="got n=0 and size=8"):
        made.frames(0, 8)
