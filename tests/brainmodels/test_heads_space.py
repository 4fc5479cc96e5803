"""Coordinates of expressions: the lip part, and hiding it, against their definitions."""

from typing import cast

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.heads import NAMED, ExpressionSpace, HeadModel, ToyHead

LIPS = slice(5, 12)
JAW = np.array([0.1, 0, 0])


def frames(head, count=4000, seed=0, deviations=None):
    """Independent training frames, with named components of the given deviations."""
    rng = np.random.default_rng(seed)
    named = rng.normal(size=(count, 12)) * (np.full(12, 0.3) if deviations is None else deviations) + 0.2
    return head.mix(named), rng.normal(size=(count, 3)) * JAW


def correlated(head, count=4000, seed=0):
    """Training frames whose components hang together, upper with lower face."""
    rng = np.random.default_rng(seed)
    named = rng.normal(size=(count, 12)) @ rng.normal(size=(12, 12)) * 0.1
    return head.mix(named), rng.normal(size=(count, 3)) * JAW


def lip_moves(head, space, x):
    """Displacements of all lip points (T, n) of coordinates, without the jaw."""
    basis = head.exp_basis()[head.mouth_vertices].numpy().astype(np.float64).reshape(-1, head.n_exp)
    exp, _ = space.unwhiten(x)
    return (exp - space.mean) @ basis.T


@pytest.mark.parametrize("mixing", [None, "orthogonal"])
def test_whitening_is_white_and_reversible(mixing):
    head = ToyHead(mixing)
    exp, jaw = correlated(head)
    space = ExpressionSpace.fit(exp, jaw, head)
    x = space.whiten(exp, jaw)
    assert x.shape == (4000, 15) and x.dtype == np.float32 and space.width == 15
    values, vectors = np.linalg.eigh(np.cov(exp.T.astype(np.float64), bias=True))
    root = (vectors / np.sqrt(np.maximum(values, 1e-4 * values.mean()))) @ vectors.T
    np.testing.assert_allclose(x[:, :12], (exp - exp.mean(0, dtype=np.float64)) @ root, atol=1e-4)
    assert np.cov(x[:, :12].T, bias=True) == pytest.approx(np.eye(12), abs=1e-3)
    assert x[:, 12].std() == pytest.approx(1, abs=1e-4)
    back = space.unwhiten(x)
    np.testing.assert_allclose(back[0], exp, atol=1e-5)
    np.testing.assert_allclose(back[1], jaw, atol=1e-6)


def test_small_eigenvalues_are_floored():
    head = ToyHead(mixing=None)
    exp, jaw = frames(head, deviations=np.array([1.0] * 11 + [1e-6]))
    values = np.linalg.eigvalsh(ExpressionSpace.fit(exp, jaw, head).covariance)
    raw = np.linalg.eigvalsh(np.cov(exp.T.astype(np.float64), bias=True))
    assert values[0] == pytest.approx(1e-4 * raw.mean(), rel=1e-6)
    np.testing.assert_allclose(values[1:], raw[1:], rtol=1e-9)


def test_lip_part_is_the_leading_eigenvectors_of_the_definition():
    head = ToyHead()
    exp, jaw = correlated(head)
    space = ExpressionSpace.fit(exp, jaw, head)
    basis = head.exp_basis().double().numpy()
    gram = sum(basis[vertex].T @ basis[vertex] for vertex in head.mouth_vertices.tolist())
    values, vectors = np.linalg.eigh(np.cov(exp.T.astype(np.float64), bias=True))
    root = (vectors * np.sqrt(values)) @ vectors.T
    power, directions = np.linalg.eigh(root @ gram @ root)
    kept = next(k for k in range(1, 13) if power[-k:].sum() >= 0.99 * power.sum())
    expected = directions[:, -kept:] @ directions[:, -kept:].T
    assert space.basis.shape == (12, kept) and 1 < kept < 8
    np.testing.assert_allclose(space.basis @ space.basis.T, expected, atol=1e-6)


def test_lip_part_lies_in_the_span_of_the_lip_components():
    head = ToyHead(mixing=None)
    rng = np.random.default_rng(3)
    space = ExpressionSpace(np.zeros(12), np.diag(rng.uniform(0.05, 0.3, 12)), np.zeros(3), np.ones(3), head)
    assert space.basis.shape[1] <= 7
    assert np.abs(space.basis[: LIPS.start]).max() < 1e-9
    upper = np.zeros((1, 15))
    upper[0, NAMED.index("brow_raise")] = 1
    assert np.abs(space.mouth(upper)).max() < 1e-9


def test_lip_part_rotates_with_the_mixing():
    head, plain = ToyHead(), ToyHead(mixing=None)
    named, jaw = correlated(plain)
    mixed = ExpressionSpace.fit(head.mix(named), jaw, head)
    straight = ExpressionSpace.fit(named, jaw, plain)
    rotation = head.mix(np.eye(12)).astype(np.float64)
    np.testing.assert_allclose(
        mixed.basis @ mixed.basis.T, rotation.T @ straight.basis @ straight.basis.T @ rotation, atol=1e-5
    )
    assert np.abs(mixed.basis[: LIPS.start]).max() > 0.1


@pytest.mark.parametrize("mixing", [None, "orthogonal"])
def test_hidden_and_kept_parts_are_uncorrelated_on_training_frames(mixing):
    head = ToyHead(mixing)
    exp, jaw = correlated(head)
    space = ExpressionSpace.fit(exp, jaw, head)
    white = (exp.astype(np.float64) - space.mean) @ np.linalg.inv(np.linalg.cholesky(space.covariance)).T
    assert np.abs(white.T @ white / len(white) - np.eye(12)).max() < 1e-6
    x = space.whiten(exp, np.zeros_like(jaw) + space.jaw_mean).astype(np.float64)
    mouth = space.mouth(x).astype(np.float64)[:, :12]
    cross = mouth.T @ (x[:, :12] - mouth) / len(x)
    assert np.abs(cross).max() < 1e-5
    raw = exp.astype(np.float64) - space.mean
    lips = head.exp_basis()[head.mouth_vertices].double().numpy().reshape(-1, 12)
    kept = np.linalg.svd(lips, full_matrices=False)[2][: space.basis.shape[1]]
    projected = raw @ kept.T @ kept
    assert np.abs(projected.T @ (raw - projected) / len(raw)).max() > 1e-3


@pytest.mark.parametrize("build", [frames, correlated])
@pytest.mark.parametrize("mixing", [None, "orthogonal"])
def test_hiding_leaves_one_percent_of_the_lips_at_frame_rate(mixing, build):
    head = ToyHead(mixing)
    exp, jaw = build(head)
    space = ExpressionSpace.fit(exp, jaw, head)
    x = space.whiten(exp, jaw)
    clips = [x[start : start + 40] for start in range(0, 4000, 40)]
    before = np.mean([lip_moves(head, space, clip).var(0).sum() for clip in clips])
    after = np.mean([lip_moves(head, space, space.hide(clip, 25)).var(0).sum() for clip in clips])
    assert 0 < after < 0.0101 * before
    without_jaw = np.mean([lip_moves(head, space, space.hide_jaw(clip)).var(0).sum() for clip in clips])
    assert without_jaw == pytest.approx(before, rel=1e-6)


def test_the_upper_face_keeps_its_frames():
    head = ToyHead()
    named = np.random.default_rng(0).normal(size=(4000, 12))
    exp, jaw = head.mix(named), np.zeros((4000, 3))
    space = ExpressionSpace.fit(exp, jaw, head)
    kept = head.unmix(space.unwhiten(space.hide(space.whiten(exp, jaw)[:40], 25))[0])
    for component in range(LIPS.start):
        assert np.corrcoef(kept[:, component], named[:40, component])[0, 1] > 0.99


def test_a_smile_passes_and_syllables_do_not():
    head = ToyHead()
    exp, jaw = frames(head)
    space = ExpressionSpace.fit(exp, jaw, head)
    times = np.arange(200) / 25
    smile = np.repeat(head.emotion("happy")[0][None], 200, 0)
    x = space.whiten(smile, np.tile(JAW, (200, 1)))
    np.testing.assert_allclose(space.hide(x, 25), x, atol=1e-5)

    named = np.zeros((200, 12))
    named[:, NAMED.index("lower_drop")] = np.sin(2 * np.pi * 4 * times)
    x = space.whiten(head.mix(named), np.outer(np.sin(2 * np.pi * 4 * times), JAW))
    mouth, hidden = space.mouth(x), space.mouth(space.hide(x, 25))
    inner = slice(25, -25)
    assert hidden[inner].std(0).max() < 0.02 * mouth[inner].std(0).max()
    assert np.abs(hidden[inner, 12]).max() < 0.02 * np.abs(mouth[inner, 12]).max()
    assert np.abs(hidden[:, 12]).max() < 0.2 * np.abs(mouth[:, 12]).max()  # the window is cut at the ends


@pytest.mark.parametrize(("fps", "hertz", "gain"), [(25, 1, 0.47), (25, 2, 0.01), (25, 4, 0.002), (30, 1, 0.475)])
def test_gain_of_the_window(fps, hertz, gain):
    head = ToyHead(mixing=None)
    space = ExpressionSpace(np.zeros(12), np.eye(12), np.zeros(3), np.ones(3), head)
    x = np.zeros((10 * fps, 15))
    x[:, 12] = np.cos(2 * np.pi * hertz * np.arange(10 * fps) / fps)
    middle = space.hide(x, fps)[2 * fps : 8 * fps, 12]
    assert np.abs(middle).max() == pytest.approx(gain, abs=0.006)


def test_the_window_is_cut_and_scaled_at_the_ends():
    space = ExpressionSpace(np.zeros(12), np.eye(12), np.zeros(3), np.ones(3), ToyHead(mixing=None))
    x = np.random.default_rng(0).normal(size=(60, 15))
    found = space.hide(x, 25)
    window = np.hanning(27)[1:-1]
    for frame in (0, 3, 30, 59):
        near = [(k, window[k - frame + 12]) for k in range(60) if abs(k - frame) <= 12]
        expected = sum(w * x[k, 12] for k, w in near) / sum(w for _, w in near)
        assert found[frame, 12] == pytest.approx(expected, abs=1e-6)


def test_short_clips_use_their_mean():
    head = ToyHead()
    exp, jaw = frames(head)
    space = ExpressionSpace.fit(exp, jaw, head)
    x = space.whiten(exp[:49], jaw[:49])
    hidden, mouth = space.hide(x, 25), space.mouth(x)
    np.testing.assert_allclose(hidden, x - mouth + mouth.mean(0), atol=1e-5)
    longer = space.hide(space.whiten(exp[:50], jaw[:50]), 25)
    assert space.mouth(longer)[:, 12].std() > 0.05
    assert space.hide(x[:1], 25) == pytest.approx(x[:1], abs=1e-5)


def test_state_gives_the_space_back():
    head = ToyHead()
    exp, jaw = correlated(head)
    space = ExpressionSpace.fit(exp, jaw, head)
    state = space.state()
    assert set(state) == {"mean", "covariance", "jaw_mean", "jaw_scale"}
    again = ExpressionSpace.from_state(state, head)
    x = space.whiten(exp[:60], jaw[:60])
    assert np.array_equal(again.whiten(exp[:60], jaw[:60]), x)
    assert np.array_equal(again.hide(x, 25), space.hide(x, 25))
    with pytest.raises(BrainDataError, match="none named covariance"):
        ExpressionSpace.from_state({key: state[key] for key in state if key != "covariance"}, head)


def test_without_a_head_nothing_can_be_hidden():
    exp, jaw = frames(ToyHead())
    space = ExpressionSpace.fit(exp, jaw, None)
    x = space.whiten(exp[:5], jaw[:5])
    assert not space.mouth(x)[:, :12].any() and np.array_equal(space.mouth(x)[:, 12:], x[:, 12:])
    assert not space.hide_jaw(x)[:, 12:].any() and np.array_equal(space.hide_jaw(x)[:, :12], x[:, :12])
    with pytest.raises(BrainDataError, match="expected a head"):
        space.hide(x, 25)


def test_a_head_without_jaw_numbers():
    class Jawless:
        name, n_exp, n_jaw = "jawless", 12, 0
        _head = ToyHead()
        mouth_vertices = _head.mouth_vertices
        exp_basis = _head.exp_basis

    exp, _ = frames(ToyHead())
    space = ExpressionSpace.fit(exp, np.zeros((4000, 0)), cast(HeadModel, Jawless()))
    x = space.whiten(exp[:60], np.zeros((60, 0)))
    assert x.shape == space.hide(x, 25).shape == (60, 12)
    assert space.unwhiten(x)[1].shape == (60, 0)


def test_wrong_input_is_named():
    head = ToyHead()
    exp, jaw = frames(head, count=50)
    space = ExpressionSpace.fit(exp, jaw, head)
    with pytest.raises(AxisError, match="got \\(50, 12\\) and \\(49, 3\\)"):
        ExpressionSpace.fit(exp, jaw[:-1], head)
    with pytest.raises(BrainDataError, match="vary"):
        ExpressionSpace.fit(np.ones((4, 12)), np.ones((4, 3)), head)
    with pytest.raises(BrainDataError, match="NaN"):
        ExpressionSpace.fit(np.full((4, 12), np.nan), np.ones((4, 3)), head)
    with pytest.raises(AxisError, match="toy with 12 and 3"):
        ExpressionSpace.fit(exp[:, :10], jaw, head)
    with pytest.raises(AxisError, match="coordinates \\(T, 15\\), got \\(4, 12\\)"):
        space.hide(np.zeros((4, 12)), 25)
    with pytest.raises(AxisError, match="expected exp"):
        space.whiten(exp, jaw[:, :2])
    with pytest.raises(BrainDataError, match="frame rate, got 0"):
        space.hide(np.zeros((4, 15)), 0)
    with pytest.raises(BrainDataError, match="positive definite"):
        ExpressionSpace(np.zeros(12), np.zeros((12, 12)), np.zeros(3), np.ones(3), head)
