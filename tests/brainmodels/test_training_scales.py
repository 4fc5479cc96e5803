"""Scales of the training trials, missing values, voxels that are left out."""

import numpy as np
import pytest

from brainmodels.data import Responses, Subject, TrialTable, VoxelSpace
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.training.trials import Recording, VoxelScale, held_out
from tests.brainmodels.fitted import features, fitted, pairs, small, with_values
from tests.brainmodels.joined import BOTH, arrays


class TestScaling:
    def test_planted_scale_is_recovered(self):
        """In blocks of 512 trials, with means far above the deviations."""
        rng = np.random.default_rng(0)
        mean, std = rng.uniform(-2000, 2000, 9), rng.uniform(0.5, 20, 9)
        values = (mean + std * rng.normal(size=(1200, 9))).astype(np.float32)
        recording = Recording.of(values, [f"i{row // 3}" for row in range(1200)])
        rows = np.flatnonzero(np.arange(1200) % 6 < 4)
        scale = VoxelScale.fit(recording, rows, "train_z")
        exact = values[rows].astype(np.float64)
        np.testing.assert_allclose(scale.mean, exact.mean(0), rtol=1e-6)
        np.testing.assert_allclose(scale.std, exact.std(0, ddof=1), rtol=1e-5)
        np.testing.assert_allclose(scale.mean, mean, atol=4)
        np.testing.assert_allclose(scale.std, std, rtol=0.1)
        assert scale.variance == 9
        model = scale.apply(recording, np.arange(1200))
        np.testing.assert_allclose(scale.undo(model), values, rtol=1e-5)

    def test_as_is_knows_its_variance(self):
        values = np.random.default_rng(0).normal(size=(50, 3)) * [1, 2, 3]
        scale = VoxelScale.fit(Recording.of(values), np.arange(40), "as_is")
        assert scale.variance == pytest.approx(values[:40].astype(np.float32).var(0, ddof=1).sum(), rel=1e-5)
        np.testing.assert_array_equal(scale.apply(Recording.of(values), np.arange(50)), values.astype(np.float32))

    @pytest.mark.parametrize(
        ("normalizer", "scaled"),
        [("none", True), ("psc", True), ("div2000", False), ("session_z", False), ("session_z_train", False)],
    )
    def test_auto_scales_what_no_normaliser_has(self, normalizer, scaled):
        values = 7 + 3 * np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
        responses = Responses(values, TrialTable.of([f"i{row}" for row in range(40)]))
        space = VoxelSpace("made", np.stack([np.arange(5), *np.zeros((2, 5), int)], 1), (5, 1, 1))
        recording = Recording.of(Subject("s", responses, space, normalizer))
        model = VoxelScale.fit(recording, np.arange(40), "auto").apply(recording, np.arange(40))
        if scaled:
            np.testing.assert_allclose([model.mean(0), model.std(0, ddof=1)], [[0] * 5, [1] * 5], atol=1e-5)
        else:
            np.testing.assert_array_equal(model, values)
        unknown = Recording.of(responses)
        assert VoxelScale.fit(unknown, np.arange(40), "auto").mean.min() > 5

    @BOTH
    def test_predictions_are_in_the_units_that_were_given(self, system):
        moved = with_values(lambda values: 16 * values + 512)
        model = small(system, response_scale="train_z").fit(features(), pairs(dataset=moved), subject="sim01")
        ids = pairs("test").image_ids[:9]
        expected = fitted(system).predict(features(), image_ids=ids)
        np.testing.assert_allclose(model.predict(features(), image_ids=ids), 16 * expected + 512, atol=0.05)
        assert np.abs(expected).max() < 10


NAN = float("nan")


class TestMissingValues:
    @pytest.mark.parametrize("bad", [NAN, float("inf")])
    @BOTH
    def test_fit_names_trial_image_and_voxel(self, system, bad):
        row = pairs().trials[33][0]
        name = pairs().image_ids[33]
        broken = with_values(lambda values: values.__setitem__((row, 11), bad))
        for given in (pairs(dataset=broken), broken.subject("sim01")):
            with pytest.raises(BrainDataError, match=rf"got {bad} in trial {row} \(image {name}\), voxel 11; drop_vox"):
                small(system).fit(features(), given, subject="sim01")

    @BOTH
    def test_use_names_trial_image_and_voxel(self, system):
        model = fitted(system)
        uses = [model.latents, model.decode] if system == "neuroflow" else [model.latents]
        row = pairs("test").trials[5][0]
        broken = with_values(lambda values: values.__setitem__((row, 11), NAN))
        values = pairs("test", dataset=broken).array()
        for use in uses:
            with pytest.raises(BrainDataError, match=rf"got nan in trial {row} \(image sim1:\d+\), voxel 11"):
                use(pairs("test", dataset=broken))
            with pytest.raises(BrainDataError, match=r"got nan in trial 5 \(image not given\), voxel 11"):
                use(values)
            with pytest.raises(AxisError, match="expected responses of 24 voxels, got 23"):
                use(values[:, :-1])

    @BOTH
    def test_features_too(self, system):
        tokens = features().get(features().ids[:4], "tokens")
        tokens[2, 1, 0] = NAN
        with pytest.raises(BrainDataError, match="finite features, got others in row 2"):
            fitted(system).predict(tokens)
        with pytest.raises(AxisError, match=r"expected tokens \(4, 6\), as recipe 'few' has, got \(3, 6\)"):
            fitted(system).predict(tokens[:, :3])


class TestDroppedVoxels:
    GONE = (3, 17)

    def broken(self):
        """Voxel 3 does not vary over the training trials, voxel 17 is missing in one of validation."""
        held = np.isin(pairs().image_ids, sorted(held_out(pairs().image_ids, 0.05)))
        rows = np.array([rows[0] for rows in pairs().trials])

        def change(values):
            values[rows, 3] = 0.1
            values[rows[held][1], 17] = NAN

        return with_values(change)

    def test_constant_voxels_are_counted(self):
        def change(values):
            values[:, [3, 8]] = 2.5

        with pytest.raises(BrainDataError, match="got 2 of 24 that are constant, such as 3; drop_voxels=True leaves"):
            small("synbrain").fit(features(), pairs(dataset=with_values(change)))

    @BOTH
    def test_left_out_is_as_if_never_measured(self, system, caplog):
        kept = np.delete(np.arange(24), self.GONE)
        dataset = self.broken()
        ids = pairs("test").image_ids[:9]
        model = small(system).fit(features(), pairs(dataset=dataset), subject="sim01", drop_voxels=True)
        assert "2 of 24 voxels are constant or not finite" in caplog.text
        values = pairs(dataset=dataset).array()[:, kept]
        other = small(system).fit(features(), values, image_ids=pairs().image_ids, subject="sim01")
        found = model.predict(features(), image_ids=ids)
        assert np.isnan(found[:, self.GONE]).all()
        np.testing.assert_array_equal(found[:, kept], other.predict(features(), image_ids=ids))
        draws = model.predict(features(), image_ids=ids, n_trials=2, noise="residual", seed=1)
        assert np.isnan(draws[..., self.GONE]).all() and np.isfinite(draws[..., kept]).all()
        measured = pairs("test", dataset=dataset).array()
        np.testing.assert_array_equal(model.latents(measured), other.latents(measured[:, kept]))
        given = pairs("test", average="repeats")
        scores = model.score(features(), given, image_ids=given.image_ids)
        assert np.isnan(scores[list(self.GONE)]).all()
        np.testing.assert_array_equal(
            scores[kept], other.score(features(), given.array()[:, kept], image_ids=given.image_ids)
        )

    def test_nothing_left_is_an_error(self):
        values, ids = arrays()
        with pytest.raises(BrainDataError, match="voxels that vary and are finite, got none of 24"):
            small("synbrain").fit(features(), np.zeros_like(values), image_ids=ids, drop_voxels=True)
