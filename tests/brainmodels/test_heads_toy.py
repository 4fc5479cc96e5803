"""The drawn head: a linear basis, a jaw on a hinge, and pictures that follow the definition of coverage."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.heads import EMOTION_DIRECTIONS, NAMED, VISEME_SHAPES, HeadModel, ToyHead
from brainmodels.heads.face import REGIONS, build_face
from brainmodels.heads.rendering import Canvas, Patch, fill, glow, stroke

EMOTIONS = ("neutral", "angry", "contempt", "disgust", "fear", "happy", "sad", "surprise")
LIP_COMPONENTS = NAMED[5:]


@pytest.fixture(scope="module")
def head():
    return ToyHead()


@pytest.fixture(scope="module")
def plain():
    return ToyHead(mixing=None)


def unit(name, scale=1.0):
    row = np.zeros((1, 12), np.float32)
    row[0, NAMED.index(name)] = scale
    return row


def emotions(head):
    pairs = [head.emotion(name) for name in EMOTIONS]
    return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])


def segment_distance(pixel, start, stop):
    edge = stop - start
    share = np.clip(np.dot(pixel - start, edge) / np.dot(edge, edge), 0, 1)
    return np.linalg.norm(pixel - start - share * edge)


def brute_coverage(points, size, half=None):
    """Coverage by the definition, one pixel and one edge at a time. `half` is half the width of an open line."""
    found = np.zeros((size, size))
    edges = list(zip(points, np.roll(points, -1, 0) if half is None else points[1:], strict=half is None))
    for row in range(size):
        for column in range(size):
            pixel = np.array([column + 0.5, row + 0.5])
            distance = min(segment_distance(pixel, a, b) for a, b in edges)
            if half is not None:
                found[row, column] = np.clip(0.5 + half - distance, 0, 1)
                continue
            angles = [np.arctan2(*(b - pixel)[::-1]) - np.arctan2(*(a - pixel)[::-1]) for a, b in edges]
            turns = sum((angle + np.pi) % (2 * np.pi) - np.pi for angle in angles) / (2 * np.pi)
            found[row, column] = np.clip(0.5 + (distance if abs(turns) > 0.5 else -distance), 0, 1)
    return found


def whole(patch, size):
    canvas = Canvas(torch.zeros(1, 3, size, size))
    canvas.paint(patch, torch.ones(1, 3))
    return canvas.pixels[:, 0].numpy()


# ------------------------------------------------------------------------------------------------ coefficients


def test_vertices_are_linear_in_the_expression(head):
    rng = np.random.default_rng(0)
    exp, pose = rng.normal(size=(5, 12)), np.full((5, 3), 0.1)
    rest = head.vertices(np.zeros((1, 12)))[0].double()
    expected = rest + torch.einsum("te,vde->tvd", torch.from_numpy(exp), head.exp_basis().double())
    assert (head.vertices(exp) - expected).abs().max() < 1e-6
    middle = head.vertices(exp[:1] / 2 + exp[1:2] / 2, pose=pose[:1])
    ends = head.vertices(exp[:2], pose=pose[:2])
    assert (middle[0] - ends.mean(0)).abs().max() < 1e-6


def test_the_jaw_is_not_linear_and_opens_downwards(head):
    angles = np.array([[0.0, 0, 0], [0.2, 0, 0], [0.4, 0, 0]])
    still = np.zeros((3, 12))
    vertices = head.vertices(still, angles)
    assert (vertices[1] - vertices[::2].mean(0)).abs().max() > 1e-3
    chin = int(vertices[0, build_face().groups["head"], 1].argmin()) + build_face().groups["head"].start
    hinge, angle = np.array([0.0, -0.2, -0.1]), 0.4
    y, z = (vertices[0, chin].double().numpy() - hinge)[1:]
    turned = hinge[1:] + np.array([np.cos(angle) * y - np.sin(angle) * z, np.sin(angle) * y + np.cos(angle) * z])
    np.testing.assert_allclose(vertices[2, chin, 1:], turned, atol=1e-6)
    assert (np.diff(head.mouth_opening(vertices)) > 0.03).all()


@pytest.mark.parametrize("name", NAMED)
def test_each_component_moves_only_its_region(plain, name):
    face = build_face()
    moved = (plain.vertices(unit(name)) - plain.vertices(np.zeros((1, 12))))[0].abs().amax(1) > 1e-7
    allowed = {row for region in REGIONS[name] for row in face.of(region)}
    assert moved.any()
    assert {int(row) for row in moved.nonzero()} <= allowed
    lips = torch.zeros(len(moved), dtype=torch.bool).index_fill(0, plain.mouth_vertices, True)
    assert bool((moved & lips).any()) == (name in LIP_COMPONENTS)


@pytest.mark.parametrize(
    ("name", "top", "bottom"), [("brow_raise", 0.14, 0.4), ("lid_wide", 0.26, 0.5), ("press", 0.48, 0.8)]
)
def test_pictures_change_only_where_the_component_acts(plain, name, top, bottom):
    still, moved = plain.render(np.concatenate([unit(name, 0), unit(name, 0.8)]), size=64)
    rows = (still - moved).abs().amax((0, 2)).nonzero().ravel() / 64
    assert len(rows) and top < rows.min() and rows.max() < bottom


def test_mixing_rotates_the_coefficients_and_keeps_the_pictures(head, plain):
    rng = np.random.default_rng(1)
    named = rng.normal(size=(3, 12)).astype(np.float32) * 0.3
    rotation = head.mix(np.eye(12))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(12), atol=1e-6)
    assert np.abs(rotation).max() < 0.95
    np.testing.assert_allclose(head.unmix(head.mix(named)), named, atol=1e-6)
    basis = plain.exp_basis().double() @ torch.from_numpy(rotation.astype(np.float64))
    assert (head.exp_basis() - basis).abs().max() < 1e-6
    assert (head.render(head.mix(named), size=32) - plain.render(named, size=32)).abs().max() < 1e-3
    assert np.array_equal(plain.mix(named), named)
    lips = head.exp_basis()[head.mouth_vertices].square().sum((0, 1)).sqrt()
    assert lips.min() > 0.02
    assert head.exp_names != plain.exp_names == NAMED


def test_mix_keeps_the_kind_and_the_gradient(head):
    named = torch.zeros(2, 12, requires_grad=True)
    mixed = head.mix(named)
    assert isinstance(mixed, torch.Tensor) and mixed.requires_grad
    assert isinstance(head.mix(np.zeros(12)), np.ndarray) and head.mix(np.zeros(12)).dtype == np.float32


def test_the_fingerprint_tells_heads_apart(head):
    assert head.fingerprint == ToyHead().fingerprint
    assert len({head.fingerprint, ToyHead(seed=1).fingerprint, ToyHead(mixing=None).fingerprint}) == 3
    assert np.abs(ToyHead(seed=1).mix(np.eye(12)) - head.mix(np.eye(12))).max() > 0.1


def test_the_head_keeps_the_protocol_and_describes_every_number_once(head):
    assert isinstance(head, HeadModel)
    rows = head.describe()
    for prefix, width in (("exp:", 12), ("jaw", 3), ("pose", 3), ("identity:", 8)):
        numbers = [i for row in rows if row.name.startswith(prefix) for i in range(row.start, row.stop)]
        assert numbers == list(range(width))
    assert int(head.faces.max()) < len(head.exp_basis()) and head.faces.shape[1] == 3


# ------------------------------------------------------------------------------------------------ faces


def test_emotions_differ_in_upper_and_lower_face(head):
    assert tuple(EMOTION_DIRECTIONS) == EMOTIONS
    exp, jaw = emotions(head)
    assert not exp[0].any() and not jaw[0].any()
    named = head.unmix(exp)
    for row in named[1:]:
        assert np.abs(row[:5]).max() > 0.3 and np.abs(row[5:]).max() > 0.3
    pictures = head.render(exp, jaw, size=32)
    gaps = torch.cdist(pictures.flatten(1), pictures.flatten(1)) + 10 * torch.eye(8)
    people = head.render(np.zeros((1, 12)), identity=np.full(8, 0.05, np.float32), size=32)
    assert gaps.min() > 0.5 and gaps.min() > 0.3 * (people - pictures[:1]).norm()


def test_named_emotions_do_what_their_names_say(plain):
    face, still = build_face(), plain.vertices(np.zeros((1, 12)))[0, :, 1]
    corner, brow = face.of("lips_corner"), face.groups["brow_right"].start

    def lifted(name):
        exp, jaw = plain.emotion(name)
        return plain.vertices(exp[None], jaw[None])[0, :, 1] - still

    assert (lifted("happy")[corner] > 0.1).all() and (lifted("sad")[corner] < -0.1).all()
    assert lifted("surprise")[brow] > 0.1 and lifted("angry")[brow] < -0.1
    smirk = lifted("contempt")[corner]
    assert smirk[1] - smirk[0] > 0.04


def test_visemes_open_the_mouth_as_their_names_say(plain):
    opening = {}
    for name, (named, jaw) in VISEME_SHAPES.items():
        assert not named[:5].any()
        opening[name] = float(plain.mouth_opening(plain.vertices(named[None], jaw[None])))
    assert list(opening) == ["rest", "closed", "lip_teeth", "spread", "open", "round"]
    assert opening["rest"] == opening["closed"] == 0
    assert 0.01 < opening["lip_teeth"] < opening["spread"] < opening["round"] < opening["open"]


def test_eyes_close_fully(plain):
    vertices, face = plain.vertices(unit("lid_wide", -1)), build_face()
    for side in ("left", "right"):
        upper, lower = (vertices[0, face.groups[f"lid_{edge}_{side}"], 1] for edge in ("upper", "lower"))
        assert (upper - lower).abs().max() < 0.01
    open_, closed = plain.render(np.concatenate([unit("lid_wide", 0), unit("lid_wide", -1)]), size=64)
    eye = (slice(None), slice(23, 29), slice(34, 43))
    assert (open_[eye].amax() > 0.9) and closed[eye].amax() < 0.85


def test_opening_is_the_gap_over_the_height(head):
    jaw = np.array([[0.25, 0, 0]])
    vertices = head.vertices(np.zeros((1, 12)), jaw)
    groups, v = build_face().groups, vertices[0].double().numpy()
    crown, chin = v[groups["head"].start], v[groups["head"].start + 11]
    upper, lower = (v[groups[f"lips_{side}_inner"].start + 2] for side in ("upper", "lower"))
    height = np.linalg.norm(crown - chin)
    assert float(head.mouth_opening(vertices)) == pytest.approx((upper - lower) @ (crown - chin) / height**2, rel=1e-5)
    turned = head.vertices(np.zeros((1, 12)), jaw, np.array([[0.2, -0.3, 0.1]]))
    assert float(head.mouth_opening(turned)) == pytest.approx(float(head.mouth_opening(vertices)), rel=1e-4)


def test_mouth_box_holds_all_that_the_lips_change(plain):
    exp = np.concatenate([unit("press", 0), unit("corner_up", 0.5) + unit("lower_drop", 1)])
    pose = np.full((2, 3), 0.1)
    box = plain.mouth_box(exp, None, pose, size=64)
    assert box.shape == (2, 4) and (box[:, 2:] > box[:, :2]).all()
    union = np.concatenate([box[:, :2].min(0), box[:, 2:].max(0)])
    still, moved = plain.render(exp, None, pose, size=64)
    lips = (still - moved).abs().amax(0) > 0.25
    rows, columns = lips.nonzero().unbind(1)
    assert len(rows) > 5
    assert union[0] <= columns.min() + 0.5 and columns.max() + 0.5 <= union[2]
    assert union[1] <= rows.min() + 0.5 and rows.max() + 0.5 <= union[3]
    assert (union[2] - union[0]) * (union[3] - union[1]) < 0.1 * 64**2


def test_identities_look_different(head):
    rng = np.random.default_rng(0)
    people = np.stack([head.draw_identity(rng) for _ in range(6)])
    assert people.dtype == np.float32 and np.abs(people).max() <= 1
    pictures = head.render(np.zeros((6, 12)), identity=people, size=32).flatten(1)
    assert (torch.cdist(pictures, pictures) + 100 * torch.eye(6)).min() > 3
    ends = head.render(np.zeros((16, 12)), identity=np.concatenate([np.eye(8), -np.eye(8)]), size=32)
    assert (ends[:8] - ends[8:]).flatten(1).norm(dim=1).min() > 1


# ------------------------------------------------------------------------------------------------ rendering


def test_fill_follows_the_definition():
    rng = np.random.default_rng(0)
    turn = np.sort(rng.uniform(0, 2 * np.pi, 9))
    points = 10 + rng.uniform(4, 11, (9, 1)) * np.stack([np.cos(turn), np.sin(turn)], 1)
    found = whole(fill(torch.from_numpy(points).float()[None]), 20)[0]
    np.testing.assert_allclose(found, brute_coverage(points, 20), atol=2e-5)


def test_shapes_may_repeat_points_and_have_several_parts():
    square = torch.tensor([[3.0, 3.3], [8.0, 3.3], [8.0, 9.0], [3.0, 9.0]])[None]
    doubled = square[:, [0, 0, 1, 2, 2, 3]]
    expected = whole(fill(square), 20)
    np.testing.assert_allclose(whole(fill(doubled), 20), expected, atol=1e-5)
    both = whole(fill(square, square + 9.4), 20)
    np.testing.assert_allclose(both, expected + whole(fill(square + 9.4), 20), atol=1e-5)
    lines = whole(stroke(1.5, square[:, :2], square[:, 2:] + 5), 20)
    np.testing.assert_allclose(
        lines, whole(stroke(1.5, square[:, :2]), 20) + whole(stroke(1.5, square[:, 2:] + 5), 20), atol=1e-5
    )


def test_stroke_follows_the_definition():
    points = np.array([[2.2, 3.1], [9.0, 12.4], [15.3, 4.0], [18.0, 18.0]])
    found = whole(stroke(2.6, torch.from_numpy(points).float()[None]), 20)[0]
    np.testing.assert_allclose(found, brute_coverage(points, 20, half=1.3), atol=2e-5)


def test_thin_shapes_keep_their_area():
    for width in (0.05, 0.3, 0.7):
        box = torch.tensor([[3.0, 8.2], [17.0, 8.2], [17.0, 8.2 + width], [3.0, 8.2 + width]])[None]
        assert fill(box).alpha.sum() == pytest.approx(14 * width, rel=0.25)
        line = torch.tensor([[3.0, 8.2], [17.0, 8.2]])[None]
        assert stroke(width, line).alpha.sum() == pytest.approx(14 * width, rel=0.15)


def test_painting_blends_and_cuts():
    square = torch.tensor([[2.0, 2.0], [6.0, 2.0], [6.0, 6.0], [2.0, 6.0]])[None]
    canvas = Canvas(torch.full((1, 3, 8, 8), 0.5))
    canvas.paint(fill(square), torch.tensor([[1.0, 0.0, 0.5]]), 0.5, within=Patch(torch.ones(1, 8, 2), 2, 0))
    assert torch.allclose(canvas.pixels[0, :, 3, 3], torch.tensor([0.75, 0.25, 0.5]))
    assert torch.allclose(canvas.pixels[0, :, 3, 4], torch.full((3,), 0.5))
    spot = glow(torch.tensor([[4.5, 4.5]]), (2.0, 2.0), 8)
    assert float(spot.alpha.amax()) == pytest.approx(1) and float(whole(spot, 8)[0, 4, 6]) == pytest.approx(np.exp(-2))
    down = whole(fill(square).lowered(1.25), 8)[0]
    assert down[:, 4] == pytest.approx([0, 0, 0, 0.75, 1, 1, 1, 0.25])


@pytest.mark.parametrize(("size", "bound"), [(16, 0.011), (33, 0.011), (64, 0.007)])
def test_sizes_agree_after_resizing(head, size, bound):
    exp, jaw = emotions(head)
    people = np.stack([head.draw_identity(np.random.default_rng(seed)) for seed in range(8)])
    exp, jaw = np.concatenate([exp, exp]), np.concatenate([jaw, jaw])
    people = np.concatenate([people, np.repeat(people[:1], 8, 0)])
    small = head.render(exp, jaw, identity=people, size=size)
    large = F.adaptive_avg_pool2d(head.render(exp, jaw, identity=people, size=132 if size == 33 else 128), size)
    assert (small - large).abs().mean() < bound
    few, many = ((frames[8:] - frames[8:9]).flatten(1) for frames in (small, large))
    assert torch.cdist(few, many).argmin(1).tolist() == list(range(8))


def test_gradients_reach_every_input(head):
    rng = np.random.default_rng(5)
    exp = torch.tensor(head.emotion("happy")[0][None] * 0.7)
    jaw, pose = torch.full((1, 3), 0.08), torch.full((1, 3), 0.03)
    inputs = [exp, jaw, pose, torch.tensor(head.draw_identity(rng)[None]) * 0.8]
    weights = F.interpolate(torch.from_numpy(rng.normal(size=(1, 3, 6, 6))), size=48, mode="bicubic")

    def values(*inputs):
        return (head.render(*inputs, size=48).double() * weights).sum((1, 2, 3))

    tracked = [tensor.clone().requires_grad_() for tensor in inputs]
    values(*tracked).sum().backward()
    for place, tensor in enumerate(tracked):
        assert tensor.grad is not None
        count = tensor.shape[1]
        ends = []
        for sign in (1, -1):
            rows = [t.repeat(count, 1) for t in inputs]
            rows[place] = rows[place] + sign * 2e-3 * torch.eye(count)
            ends.append(values(*rows))
        numeric = (ends[0] - ends[1]) / 4e-3
        assert torch.isfinite(tensor.grad).all() and (tensor.grad.abs() > 1e-4).all()
        assert float(F.cosine_similarity(tensor.grad.double(), numeric[None])) > 0.98


def test_gradients_are_finite_at_rest(head):
    inputs = [torch.zeros(2, width, requires_grad=True) for width in (12, 3, 3, 8)]
    head.render(*inputs, size=16).sum().backward()
    assert all(tensor.grad is not None and torch.isfinite(tensor.grad).all() for tensor in inputs)


def test_frames_do_not_depend_on_their_neighbours(head):
    rng = np.random.default_rng(2)
    exp, jaw = 0.3 * rng.normal(size=(70, 12)), np.abs(rng.normal(size=(70, 3))) * (0.1, 0, 0)
    person = head.draw_identity(rng)
    pictures = head.pictures(exp, jaw, identity=person, size=64)
    assert pictures.shape == (70, 64, 64, 3) and pictures.dtype == np.uint8
    for frame in (0, 69):
        rows = slice(frame, frame + 1)
        alone = head.render(exp[rows], jaw[rows], identity=person, size=64)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(pictures[frame] / 255, alone, atol=0.51 / 255 + 1e-4)


def test_wrong_input_is_named(head, plain):
    with pytest.raises(AxisError, match=r"expected exp of shape \(T, 12\), got \(2, 11\)"):
        head.vertices(np.zeros((2, 11)))
    with pytest.raises(AxisError, match=r"expected jaw of shape \(2, 3\), got \(1, 3\)"):
        head.render(np.zeros((2, 12)), np.zeros((1, 3)))
    with pytest.raises(AxisError, match="expected identity of shape"):
        head.pictures(np.zeros((2, 12)), identity=np.zeros(7))
    with pytest.raises(BrainDataError, match="finite numbers for the head, got NaN"):
        head.render(np.full((1, 12), np.nan))
    with pytest.raises(AxisError, match="8 pixels or more, got 4"):
        head.render(np.zeros((1, 12)), size=4)
    with pytest.raises(BrainDataError, match="expected mixing to be one of"):
        ToyHead(mixing="random")
    with pytest.raises(BrainDataError, match="surprise"):
        plain.emotion("surprised")
