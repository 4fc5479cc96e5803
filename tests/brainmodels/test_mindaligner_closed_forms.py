"""Closed forms against brute force in fp64, and all maps in a linear world whose best map is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from brainmodels.baselines import GaussianInversion, Ridge, VoxelModel, heldout_variance
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.systems.mindaligner.closed_forms import (
    Side,
    class_mean_ridge,
    cross_pairs,
    cross_ridge,
    encode_align,
    encode_invert_encode,
    fit_closed_forms,
    mean_map,
    no_alignment,
    posterior_mean_map,
    procrustes,
    shared_ridge,
)
from brainmodels.systems.mindaligner.pairing import random_partners
from tests.brainmodels.aligned import AlignedWorld, apply, train
from tests.brainmodels.test_baselines_ridge import closed_form, relative

WIDE = pytest.mark.parametrize("voxels", [12, 70], ids=["primal", "kernel"])  # of the new subject, with 40 trials


def sides(voxels: int = 12, seed: int = 0, common: int = 0) -> tuple[Side, Side]:
    """40 trials of 20 images and 30 averaged responses of 9 voxels; three classes, embeddings of 4 numbers."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(50 - common, 4))
    new, known = np.repeat(np.arange(20), 2), np.arange(20 - common, 50 - common)
    found = []
    for rows, count in ((new, voxels), (known, 9)):
        signal = embeddings[rows] @ rng.normal(size=(4, count)) / 2
        responses = (signal + rng.normal(size=signal.shape)).astype(np.float32)
        ids, classes = np.array([f"image{row:02d}" for row in rows]), np.array(list("abc"))[rows % 3]
        found.append(Side(responses, embeddings[rows].astype(np.float32), ids, classes))
    return found[0], found[1]


def partners_of(new: Side, known: Side):
    return random_partners(new.image_ids, known.image_ids)


def kernel_form(X, Y, alphas):
    """Slopes of ridge through the products of all pairs of rows, in fp64."""
    x, y = X.astype(np.float64) - X.mean(0), Y.astype(np.float64) - Y.mean(0)
    return np.stack([x.T @ np.linalg.solve(x @ x.T + a * np.eye(len(x)), y[:, v]) for v, a in enumerate(alphas)], 1)


@WIDE
def test_encode_align_equals_the_primal_and_the_kernel_form(voxels):
    new, known = sides(voxels)
    encoder = Ridge().fit(known.embeddings, known.responses, known.image_ids)
    slopes, intercept = closed_form(known.embeddings, known.responses, encoder.alphas_)
    pseudo = new.embeddings @ slopes + intercept
    alphas = Ridge().fit(new.responses, pseudo.astype(np.float32), new.image_ids).alphas_
    found = encode_align(new, known)
    primal, shift = closed_form(new.responses, pseudo, alphas)
    assert relative(found.matrix, primal) < 1e-3
    assert relative(found.matrix, kernel_form(new.responses, pseudo, alphas)) < 1e-3
    np.testing.assert_allclose(found.intercept, shift, atol=1e-3)
    np.testing.assert_allclose(found.transform(new.responses), new.responses @ primal + shift, atol=1e-3)


@WIDE
def test_cross_ridge_equals_brute_force_least_squares(voxels):
    """One ridge for each known voxel on the pairs that were drawn, whose differences are known minus new."""
    new, known = sides(voxels)
    partners, pairs = partners_of(new, known), 80 if voxels == 12 else 1
    rows, images = cross_pairs(partners, 3, pairs)
    assert len(rows) == (80 if voxels == 12 else 40)
    X, d = new.responses[rows].astype(np.float64), (known.embeddings[images] - new.embeddings[rows]).astype(np.float64)
    d *= 10 * np.sqrt(X.var(0).mean() / d.var(0).mean())
    both, target = np.hstack([X, d]), known.responses[images]
    alphas = Ridge().fit(both.astype(np.float32), target, new.image_ids[rows]).alphas_
    slopes, intercept = closed_form(both, target, alphas)
    found = cross_ridge(new, known, partners, 3, pairs)
    assert relative(found.matrix, slopes[:voxels]) < 1e-3
    np.testing.assert_allclose(found.intercept, intercept, atol=1e-3)


@WIDE
def test_encode_invert_encode_is_the_inversion_and_then_the_encoder(voxels):
    new, known = sides(voxels)
    found = encode_invert_encode(new, known)
    sizes = np.linalg.svd(found.matrix.astype(np.float64), compute_uv=False)
    assert (sizes[4:] < 1e-5 * sizes[0]).all()

    def fit(X, Y):
        return VoxelModel.of(Ridge().fit(X, Y), "ridge")

    variance = heldout_variance(fit, new.embeddings, new.responses, new.image_ids)
    encoder = VoxelModel.of(Ridge().fit(new.embeddings, new.responses, new.image_ids), "ridge")
    bank = np.concatenate([new.embeddings[::2], known.embeddings])  # every image once
    embeddings = GaussianInversion().fit(bank).decode(replace(encoder, residual_var_=variance), new.responses)
    wanted = Ridge().fit(known.embeddings, known.responses, known.image_ids).predict(embeddings)
    np.testing.assert_allclose(found.transform(new.responses), wanted, atol=1e-4)


def test_posterior_mean_map_is_the_conditional_mean_of_joint_normals():
    """Cov(F_K, F_N) Cov(F_N)^-1, with the moments of responses instead of those of embeddings."""
    rng = np.random.default_rng(0)
    W, W_K, root = rng.normal(size=(4, 12)), rng.normal(size=(4, 9)), rng.normal(size=(4, 4))
    mean, b, b_K, noise = rng.normal(size=4), rng.normal(size=12), rng.normal(size=9), rng.uniform(0.5, 2, 12)
    S = root @ root.T
    new, known = VoxelModel(W, b, "truth", (), noise), VoxelModel(W_K, b_K, "truth")
    found = posterior_mean_map(new, known, mean, S)
    matrix = np.linalg.solve(W.T @ S @ W + np.diag(noise), W.T @ S @ W_K)
    assert relative(found.matrix, matrix) < 1e-5
    np.testing.assert_allclose(found.intercept, mean @ W_K + b_K - (mean @ W + b) @ matrix, atol=1e-5)
    for variance in (None, np.zeros(12)):
        with pytest.raises(BrainDataError, match="noise variances above 0 of all voxels"):
            posterior_mean_map(replace(new, residual_var_=variance), known, mean, S)


def test_class_mean_ridge_leaves_out_classes_that_the_known_subject_did_not_see():
    new, known = sides()
    kept = known.classes != "b"
    known = Side(*(values[kept] for values in vars(known).values()))
    rows = new.classes != "b"
    targets = np.stack([known.responses[known.classes == name].mean(0) for name in new.classes[rows]])
    alphas = Ridge().fit(new.responses[rows], targets, new.image_ids[rows]).alphas_
    found = class_mean_ridge(new, known)
    assert relative(found.matrix, closed_form(new.responses[rows], targets, alphas)[0]) < 1e-3
    with pytest.raises(BrainDataError, match="a class that both subjects saw, got none"):
        class_mean_ridge(new, replace(known, classes=np.full(len(known.classes), "d")))
    with pytest.raises(BrainDataError, match="classes of the images of both subjects, got none"):
        class_mean_ridge(replace(new, classes=None), known)


def test_mean_map_is_the_mean_response():
    new, known = sides()
    wanted = np.tile(known.responses.mean(0), (40, 1))
    np.testing.assert_allclose(mean_map(new, known).transform(new.responses), wanted, rtol=1e-5)


def test_no_alignment_is_ridge_to_the_embedding():
    new, _ = sides()
    wanted = Ridge().fit(new.responses, new.embeddings, new.image_ids).predict(new.responses)
    np.testing.assert_allclose(no_alignment(new).transform(new.responses), wanted, atol=1e-5)


@WIDE
def test_shared_ridge_sees_the_common_images_alone(voxels):
    new, known = sides(voxels, common=8)
    rows = np.flatnonzero(np.isin(new.image_ids, known.image_ids))
    assert len(rows) == 16
    targets = np.stack([known.responses[known.image_ids == name][0] for name in new.image_ids[rows]])
    alphas = Ridge().fit(new.responses[rows], targets, new.image_ids[rows]).alphas_
    found = shared_ridge(new, known)
    assert relative(found.matrix, closed_form(new.responses[rows], targets, alphas)[0]) < 5e-3  # some alphas are 0.01


@pytest.mark.parametrize("counts", [(6, 6), (6, 9), (9, 6)])
def test_procrustes_finds_a_planted_rotation_and_scale(counts):
    rng = np.random.default_rng(0)
    n, k = counts
    latent = rng.normal(size=(30, min(counts)))
    turns = [np.linalg.qr(rng.normal(size=(max(counts), min(counts))))[0].T[:, :size] for size in counts]
    if n != k:  # the smaller side has the latents themselves
        turns[np.argmin(counts)] = np.eye(min(counts))
    ids = np.array([f"image{row:02d}" for row in range(30)])
    new = Side((latent @ turns[0] + 3).astype(np.float32), latent, ids)
    known = Side((2.5 * latent @ turns[1] - 1).astype(np.float32), latent, ids)
    if n == k:
        turns[0] = turns[0][:, :n]
    found = procrustes(new, known)
    np.testing.assert_allclose(found.transform(new.responses), known.responses, atol=1e-4)


def test_procrustes_equals_scipy_on_means_over_trials():
    new, known = sides(9, common=20)
    X = (new.responses[::2] + new.responses[1::2]).astype(np.float64) / 2
    Y = known.responses[:20].astype(np.float64)
    X, Y = X - X.mean(0), Y - Y.mean(0)
    rotation, total = orthogonal_procrustes(X, Y)
    assert relative(procrustes(new, known).matrix, total / np.square(X).sum() * rotation) < 1e-5


def test_maps_without_enough_common_images_are_not_there():
    new, known = sides()
    names = [*fit_closed_forms(new, known, partners_of(new, known))]
    assert names == ["mean_map", "class_mean_ridge", "encode_align", "encode_invert_encode", "cross_ridge"]
    new, known = sides(common=8)
    plain = replace(new, classes=None)
    assert "class_mean_ridge" not in fit_closed_forms(plain, known, partners_of(new, known))
    assert {"shared_ridge", "procrustes"} <= {*fit_closed_forms(new, known, partners_of(new, known))}
    new, known = sides(common=4)
    for form in (shared_ridge, procrustes):
        with pytest.raises(BrainDataError, match="at least 5 images that both subjects saw, got 4"):
            form(new, known)


def test_mistakes():
    new, known = sides()
    with pytest.raises(AxisError, match=r"responses \(m, 12\), got \(30, 9\)"):
        encode_align(new, known).transform(known.responses)
    with pytest.raises(AxisError, match="40 embeddings, one for each response, got 39"):
        replace(new, embeddings=new.embeddings[1:])


@pytest.fixture(scope="module")
def worlds():
    return [AlignedWorld(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def r(worlds):
    """Mean r of every map over three seeds."""
    found: dict[str, list[float]] = {}
    for world in worlds:
        maps = fit_closed_forms(world.new, world.known, world.partners()) | {"oracle": world.oracle()}
        for name, affine in maps.items():
            found.setdefault(name, []).append(world.r(affine.transform(world.test_new)))
    return {name: np.mean(values) for name, values in found.items()}


@pytest.fixture(scope="module")
def trained(worlds):
    return train(worlds[0])


class TestLinearWorld:
    """210 to 180 voxels, 220 and 240 single trials of other images; r with the known subject's noise-free response."""

    def test_closed_forms_have_their_measured_scores(self, r):
        measured = {"oracle": 0.97, "encode_invert_encode": 0.85, "encode_align": 0.84, "cross_ridge": 0.81}
        measured |= {"class_mean_ridge": 0.71, "mean_map": 0.0}
        for name, value in measured.items():
            assert r[name] == pytest.approx(value, abs=0.03), name

    def test_no_map_exceeds_the_oracle(self, r, worlds, trained):
        assert max(r.values()) == r["oracle"]
        world = worlds[0]
        assert world.r(apply(trained, world.test_new)) < world.r(world.oracle().transform(world.test_new))

    def test_training_comes_close_to_encode_align(self, worlds, trained):
        world = worlds[0]
        r = world.r(apply(trained, world.test_new))
        best, classes = (
            world.r(form(world.new, world.known).transform(world.test_new)) for form in (encode_align, class_mean_ridge)
        )
        assert r >= 0.85 * best and r > classes - 0.02

    def test_wrong_images_teach_nothing(self, worlds):
        world = worlds[0]
        assert abs(world.r(apply(train(world, new=world.shuffled(), steps=700), world.test_new))) < 0.15

    def test_the_released_mapper_leaves_another_map(self, worlds):
        """Without the decoder's loss the product of the weights is no map for the same stimulus."""
        world = worlds[0]
        assert world.r(apply(train(world, film="released", steps=700), world.test_new)) < 0.3

    def test_the_frozen_decoder_helps_decoding(self, worlds, trained):
        world = worlds[0]
        decoder = world.decoder()
        plain, helped = (apply(mapping, world.test_new) for mapping in (trained, train(world, dec=0.1)))
        assert world.top1(helped)[0] > world.top1(plain)[0] + 0.05
        assert world.decoded(decoder.predict(helped))[1] > world.decoded(decoder.predict(plain))[1]

    def test_decoding_without_alignment_equals_the_known_subject(self, worlds):
        """With 220 trials the new subject's own ridge finds as many images: what an alignment must be compared with."""
        scores = []
        for world in worlds:
            own = no_alignment(world.new).transform(world.test_new)
            aligned = encode_align(world.new, world.known).transform(world.test_new)
            decoder = world.decoder()
            parts = own, decoder.predict(aligned), decoder.predict(world.test_known)
            scores.append([world.decoded(embeddings)[0] for embeddings in parts])
        own, aligned, upper = np.mean(scores, 0)
        assert own >= aligned and own == pytest.approx(upper, abs=0.03)

    def test_common_images_allow_a_direct_map(self):
        world = AlignedWorld(1, common=60)
        r = {
            form.__name__: world.r(form(world.new, world.known).transform(world.test_new))
            for form in (shared_ridge, procrustes)
        }
        assert 0.2 < min(r.values()) and max(r.values()) < world.r(world.oracle().transform(world.test_new))
