"""Head models of files: their vertices against the definition in fp64, and pickles that are refused unread."""

import logging

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from brainmodels.errors import AxisError, BrainDataError, LayoutError
from brainmodels.heads.files import FLAME_KEYS, FlameFile, GnmFile, IctFile
from brainmodels.heads.model import HeadModel
from tests.brainmodels.head_files import (
    LOWER,
    REGIONS,
    UPPER,
    VERTICES,
    drawn,
    flame_arrays,
    flame_vertices,
    gnm_arrays,
    gnm_vertices,
    write_archive,
    write_ict,
    write_obj,
)

LIPS = np.concatenate((UPPER, LOWER))
TOLERANCE = 2e-7  # metres; fp32 against fp64 at 0.2 m


@pytest.fixture
def flame(tmp_path):
    pytest.importorskip("body_models")
    return FlameFile(write_archive(tmp_path / "flame.npz", flame_arrays()))


@pytest.fixture
def gnm(tmp_path):
    pytest.importorskip("body_models")
    return GnmFile(write_archive(tmp_path / "gnm.npz", gnm_arrays()))


@pytest.fixture
def ict(tmp_path):
    write_ict(tmp_path / "ict")
    return IctFile(tmp_path / "ict", mouth_vertices=LIPS)


def test_vertices_of_flame(flame):
    exp, jaw, pose = drawn(4, 50), drawn(4, 3, scale=0.4), drawn(4, 3, scale=0.4, seed=2)
    identity = drawn(4, 300, seed=3)
    found = flame.vertices(exp, jaw, pose, identity)
    expected = flame_vertices(flame_arrays(), *(x.double().numpy() for x in (exp, jaw, pose, identity)))
    np.testing.assert_allclose(found.numpy(), expected, atol=2 * TOLERANCE)
    still = np.zeros((4, 3))
    expected = flame_vertices(flame_arrays(), exp.double().numpy(), still, still, np.zeros((4, 300)))
    np.testing.assert_allclose(flame.vertices(exp).numpy(), expected, atol=TOLERANCE)
    one = flame.vertices(exp, jaw, pose, identity[0])
    np.testing.assert_allclose(one[0], found[0], atol=TOLERANCE)
    np.testing.assert_allclose(one[3], flame.vertices(exp, jaw, pose, identity[:1].expand(4, -1))[3], atol=TOLERANCE)


def test_vertices_of_gnm(gnm):
    exp, pose, identity = drawn(4, 12), drawn(4, 3, scale=0.4), drawn(4, 7, seed=3)
    found = gnm.vertices(exp, None, pose, identity)
    expected = gnm_vertices(gnm_arrays(), *(x.double().numpy() for x in (exp, pose, identity)))
    np.testing.assert_allclose(found.numpy(), expected, atol=2 * TOLERANCE)
    expected = gnm_vertices(gnm_arrays(), exp.double().numpy(), np.zeros((4, 3)), np.zeros((4, 7)))
    np.testing.assert_allclose(gnm.vertices(exp).numpy(), expected, atol=TOLERANCE)


def test_vertices_of_ict(tmp_path):
    truth = write_ict(tmp_path / "ict", names=("browDown_L", "jawOpen", "mouthSmile_L"))
    head = IctFile(tmp_path / "ict", mouth_vertices=LIPS)
    exp, pose, identity = drawn(4, 3), drawn(4, 3, scale=0.7), drawn(3, seed=3)
    rest = truth["neutral"] + np.einsum("vde,te->tvd", truth["expressions"], exp.double().numpy())
    rest = rest + truth["identities"] @ identity.double().numpy()
    expected = np.einsum("tij,tvj->tvi", Rotation.from_rotvec(pose.double().numpy()).as_matrix(), rest)
    np.testing.assert_allclose(head.vertices(exp, None, pose, identity).numpy(), expected, atol=3e-6)
    assert head.exp_names == ("browDown_L", "jawOpen", "mouthSmile_L")
    assert head.faces.tolist() == [[0, 1, 2], [0, 2, 3], [4, 5, 6]]  # a quad and a triangle


@pytest.mark.parametrize(("name", "sizes"), [("flame", (50, 300, 3)), ("gnm", (12, 7, 0)), ("ict", (2, 3, 0))])
def test_what_every_head_offers(name, sizes, request):
    head = request.getfixturevalue(name)
    assert isinstance(head, HeadModel)
    assert (head.n_exp, head.n_identity, head.n_jaw) == sizes
    assert len(head.exp_names) == len(set(head.exp_names)) == head.n_exp and head.licence
    assert head.mouth_vertices.tolist() == LIPS.tolist()
    basis = head.exp_basis()
    assert basis.shape == (VERTICES, 3, head.n_exp)
    for row in (0, head.n_exp - 1):  # the basis is the exactly linear part
        unit = torch.zeros(2, head.n_exp)
        unit[1, row] = 1
        rest, moved = head.vertices(unit).double()
        np.testing.assert_allclose(moved - rest, basis[..., row], atol=1e-6 * float(basis.abs().max() + 1))
    covered = {"exp": [], "jaw": [], "pose": [], "identity": []}
    for row in head.describe():
        covered[row.name.split(":")[0]] += range(row.start, row.stop)
        assert row.unit and row.usual[0] < row.usual[1]
    assert {key: sorted(rows) for key, rows in covered.items()} == {
        "exp": list(range(sizes[0])),
        "jaw": list(range(sizes[2])),
        "pose": [0, 1, 2],
        "identity": list(range(sizes[1])),
    }
    exp = drawn(3, head.n_exp).requires_grad_()
    head.vertices(exp).square().sum().backward()
    assert exp.grad is not None and (exp.grad.abs() > 0).all()


def test_only_the_jaw_is_not_linear(flame):
    half, whole = torch.zeros(1, 3), torch.zeros(1, 3)
    half[0, 0], whole[0, 0] = 0.25, 0.5
    exp = drawn(1, 50)
    rest, middle, end = (flame.vertices(exp, jaw) for jaw in (None, half, whole))
    assert (middle - (rest + end) / 2).abs().max() > 1e-4
    rest, middle, end = (flame.vertices(scale * exp, whole) for scale in (0, 0.5, 1))
    assert (middle - (rest + end) / 2).abs().max() < 1e-6


def test_regions_of_gnm_are_named(gnm):
    rows = [(row.name, row.start, row.stop) for row in gnm.describe() if row.name.startswith("exp")]
    assert rows == [(f"exp:{region}", 4 * row, 4 * row + 4) for row, region in enumerate(REGIONS)]


@pytest.mark.parametrize("name", ["flame", "gnm", "ict"])
def test_mouth_opening(name, request):
    """The gap of lips that were moved apart by a known distance, whatever the place and direction of the head."""
    head = request.getfixturevalue(name)
    vertices = head.vertices(torch.zeros(3, head.n_exp)).double()
    vertices[:, UPPER, 1] += torch.tensor([-0.001, 0.004, 0.009], dtype=torch.float64)[:, None]
    gaps = np.array([0.001, 0.006, 0.011])
    rest = head.vertices(torch.zeros(1, head.n_exp)).double()[0]
    heights = rest[5:50, 1] if name == "gnm" else rest[:, 1]  # GNM has a group of the face
    expected = gaps / float(heights.max() - heights.min())
    np.testing.assert_allclose(head.mouth_opening(vertices), expected, rtol=1e-4)
    turn = torch.tensor(Rotation.from_rotvec([0.3, 0.5, -0.2]).as_matrix())
    np.testing.assert_allclose(head.mouth_opening(vertices @ turn.T + 0.7), expected, rtol=1e-4)
    with pytest.raises(AxisError, match=rf"expected vertices \(T, {VERTICES}, 3\) of {name}, got \(3, 59, 3\)"):
        head.mouth_opening(vertices[:, 1:])


def test_the_slit_rule(tmp_path, caplog):
    pytest.importorskip("body_models")
    arrays = flame_arrays()
    with caplog.at_level(logging.INFO):
        head = FlameFile(write_archive(tmp_path / "flame.npz", arrays))
    assert "4 pairs of vertices are on the slit between the lips, 4 above and 4 below" in caplog.text
    assert head.mouth_vertices.tolist() == LIPS.tolist()
    weights = arrays["weights"].copy()
    weights[UPPER[0]] = (0, 0.4, 0.6, 0, 0)  # the jaw moves both sides nearly alike
    apart = arrays["v_template"].copy()
    apart[LOWER[3]] -= (0, 0.004, 0)  # 6 mm below its partner
    head = FlameFile(write_archive(tmp_path / "other.npz", arrays, weights=weights, v_template=apart))
    assert head.mouth_vertices.tolist() == [*UPPER[1:3], *LOWER[1:3]]
    shut = np.tile((1.0, 0, 0, 0, 0), (VERTICES, 1))
    with pytest.raises(LayoutError, match=r"closer than 5 mm .* got none; pass mouth_vertices="):
        FlameFile(write_archive(tmp_path / "shut.npz", arrays, weights=shut))
    with pytest.raises(LayoutError, match=r"expected mouth_vertices on both lips .*, got equal jaw weights"):
        FlameFile(write_archive(tmp_path / "shut.npz", arrays, weights=shut), mouth_vertices=LIPS)
    given = FlameFile(tmp_path / "flame.npz", mouth_vertices=[*LIPS[::-1], 30])
    assert given.mouth_vertices.tolist() == [*LIPS, 30]
    for wrong in map(np.array, ([3], [-1, 3], [3, VERTICES], [0.5, 1.5])):
        with pytest.raises(BrainDataError, match=f"mouth_vertices from 0 to {VERTICES - 1}"):
            FlameFile(tmp_path / "flame.npz", mouth_vertices=wrong)


def test_lips_of_other_heads(tmp_path):
    pytest.importorskip("body_models")
    arrays = gnm_arrays()
    arrays["vertex_groups"][0, 40] = 1  # of the upper lip, but far from the other lip
    head = GnmFile(write_archive(tmp_path / "gnm.npz", arrays))
    assert head.mouth_vertices.tolist() == sorted([*LIPS, 40])
    assert head.mouth_opening(head.vertices(torch.zeros(1, 12))).item() < 0.02
    without = write_archive(tmp_path / "none.npz", arrays, vertex_groups=None)
    with pytest.raises(LayoutError, match="expected a key 'vertex_groups'"):
        GnmFile(without)
    assert GnmFile(without, mouth_vertices=LIPS).mouth_vertices.tolist() == LIPS.tolist()
    names = np.array(["upper_lip", "other", "hockey_mask"])
    with pytest.raises(LayoutError, match=r"expected a group 'lower_lip' of vertices .* got upper_lip, other"):
        GnmFile(write_archive(tmp_path / "names.npz", arrays, vertex_group_names=names))
    write_ict(tmp_path / "ict", names=("jawOpen",), identities=1)
    with pytest.raises(LayoutError, match=f"expected the 26719 vertices .* got {VERTICES}; pass mouth_vertices="):
        IctFile(tmp_path / "ict")
    write_ict(tmp_path / "large", names=("jawOpen",), identities=1, vertices=6480)
    lips = IctFile(tmp_path / "large").mouth_vertices
    assert len(lips) == 20 and {5702, 6207, 5533, 5517} <= set(lips.tolist())


def test_a_missing_file_says_where_it_comes_from(tmp_path):
    for kind, site, licence, key in (
        (FlameFile, "https://flame.is.tue.mpg.de", "may not be passed on", "kintree_table"),
        (GnmFile, "https://github.com/google/GNM", "Apache-2.0", "pose_correctives_regressor"),
        (IctFile, "https://github.com/ICT-VGL/ICT-FaceKit", "MIT", "vertex_indices.json"),
    ):
        with pytest.raises(LayoutError, match=rf"absent, got nothing there.*{site}.*") as caught:
            kind(tmp_path / "absent")
        assert licence in str(caught.value) and key in str(caught.value)
    with pytest.raises(LayoutError, match="got a folder"):
        GnmFile(tmp_path)


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"posedirs": None}, LayoutError, "expected a key 'posedirs' .*https://flame"),
        ({"shapedirs": np.zeros((VERTICES, 3, 350))}, AxisError, r"'shapedirs' \(60, 3, 400\) .*, got \(60, 3, 350\)"),
        ({"weights": np.zeros((59, 5))}, AxisError, r"'weights' \(60, 5\) .*, got \(59, 5\)"),
        ({"posedirs": np.zeros((VERTICES, 108))}, AxisError, r"'posedirs' \(60, 3, 36\)"),
        ({"f": np.full((4, 3), VERTICES)}, LayoutError, "expected faces of vertices 0 to 59"),
        ({"f": np.zeros((0, 3), int)}, LayoutError, "expected faces of vertices 0 to 59 .* got none"),
        ({"v_template": np.full((VERTICES, 3), np.nan)}, LayoutError, "finite numbers under 'v_template'"),
        ({"weights": np.full((VERTICES, 5), "a")}, LayoutError, "finite numbers under 'weights' .* got <U1"),
        ({"J_regressor": np.full((5, VERTICES), None)}, LayoutError, "'J_regressor' .* array of Python objects"),
        ({"more": np.array([{}])}, LayoutError, "'more' .* array of Python objects"),
    ],
)
def test_wrong_arrays_of_flame(tmp_path, others, error, message):
    with pytest.raises(error, match=message):
        FlameFile(write_archive(tmp_path / "flame.npz", flame_arrays(), **others))


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"joint_names": None}, LayoutError, "expected a key 'joint_names' .*Apache-2.0"),
        ({"version": np.array("2.1")}, LayoutError, "expected variant and version head 3.0 .*, got head 2.1"),
        ({"expression_names": np.array(["a"] * 11)}, AxisError, r"'expression_names' \(12\) .*, got \(11,\)"),
        ({"joint_identity_basis": np.zeros((6, 4, 3))}, AxisError, r"\(7, 4, 3\) .*, got \(6, 4, 3\)"),
        ({"pose_correctives_regressor": np.zeros((36, 177))}, AxisError, r"\(36, 180\) .*, got \(36, 177\)"),
        ({"triangles": np.full((4, 3), -1)}, LayoutError, "expected faces of vertices 0 to 59"),
        ({"vertex_groups": np.zeros((3, 59))}, AxisError, r"'vertex_groups' \(G, 60\) .*, got \(3, 59\)"),
        ({"identity_names": np.array(["a"] * 7, object)}, LayoutError, "'identity_names' .* Python objects"),
    ],
)
def test_wrong_arrays_of_gnm(tmp_path, others, error, message):
    with pytest.raises(error, match=message):
        GnmFile(write_archive(tmp_path / "gnm.npz", gnm_arrays(), **others))


def test_wrong_files_of_ict(tmp_path):
    folder = tmp_path / "ict"
    write_ict(folder)
    text = (folder / "jawOpen.obj").read_text()

    def refused(message: str, error: type[BrainDataError] = LayoutError):
        with pytest.raises(error, match=message):
            IctFile(folder, mouth_vertices=LIPS)

    (folder / "jawOpen.obj").unlink()
    refused(r"expected a file jawOpen.obj .*MIT")
    write_obj(folder / "jawOpen.obj", np.zeros((59, 3)))
    refused(r"expected 60 vertices in .*jawOpen.obj, got 59", AxisError)
    (folder / "jawOpen.obj").write_text(text.replace("v ", "v x", 1))
    refused("expected numbers in the v and f lines of .*jawOpen.obj")
    (folder / "jawOpen.obj").write_text(text)
    (folder / "identity001.obj").rename(folder / "identity005.obj")
    refused("expected a file identity001.obj")
    (folder / "identity005.obj").rename(folder / "identity001.obj")
    for content in ("{}", "[]", '{"expressions": ["../jawOpen"]}', '{"expressions": []}'):
        (folder / "vertex_indices.json").write_text(content)
        refused("expected names of shapes under 'expressions'")


@pytest.mark.parametrize("name", ["flame", "gnm", "ict"])
def test_wrong_coefficients(name, request):
    head = request.getfixturevalue(name)
    exp = torch.zeros(4, head.n_exp)
    wrong = {
        "exp": (torch.zeros(4, head.n_exp + 1),),
        "jaw": (exp, torch.zeros(4, head.n_jaw + 1)),
        "pose": (exp, None, torch.zeros(3, 3)),
        "identity": (exp, None, None, torch.zeros(2, head.n_identity)),
    }
    for what, arguments in wrong.items():
        with pytest.raises(AxisError, match=f"expected {what} .* of {name}, got"):
            head.vertices(*arguments)
    with pytest.raises(BrainDataError, match="expected finite numbers in exp"):
        head.vertices(exp + torch.nan)
    head.vertices(exp.numpy(), torch.zeros(4, head.n_jaw))  # arrays of NumPy, and no numbers where there is no jaw


def test_number_of_expressions(tmp_path, flame):
    other = FlameFile(tmp_path / "flame.npz", n_exp=100)
    assert other.exp_basis().shape[2] == 100 and other.fingerprint != flame.fingerprint
    np.testing.assert_array_equal(other.exp_basis()[..., :50], flame.exp_basis())
    np.testing.assert_array_equal(flame.exp_basis(), flame_arrays()["shapedirs"][..., 300:350].astype(np.float32))
    for wrong in (0, 101):
        with pytest.raises(BrainDataError, match=f"expected n_exp from 1 to 100 .* got {wrong}"):
            FlameFile(tmp_path / "flame.npz", n_exp=wrong)


def test_fingerprints(tmp_path, flame, gnm, ict):
    again = FlameFile(tmp_path / "flame.npz")
    assert len(flame.fingerprint) == 64 and again.fingerprint == flame.fingerprint
    assert len({flame.fingerprint, gnm.fingerprint, ict.fingerprint}) == 3
    for key in FLAME_KEYS:
        array = flame_arrays()[key]
        array.flat[-1] = array.flat[-1] + 1 if key != "f" else array.flat[0]
        path = write_archive(tmp_path / "other.npz", flame_arrays(), **{key: array})
        assert FlameFile(path).fingerprint != flame.fingerprint
    assert FlameFile(tmp_path / "flame.npz", mouth_vertices=LIPS[1:]).fingerprint != flame.fingerprint
    basis = gnm_arrays()["expression_basis"] * 1.01
    assert (
        GnmFile(write_archive(tmp_path / "other.npz", gnm_arrays(), expression_basis=basis)).fingerprint
        != gnm.fingerprint
    )
    write_obj(tmp_path / "ict/jawOpen.obj", np.zeros((VERTICES, 3)))
    assert IctFile(tmp_path / "ict", mouth_vertices=LIPS).fingerprint != ict.fingerprint
