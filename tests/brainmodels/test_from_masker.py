"""nilearn's maskers: images and events become a subject with the masker's columns, and what does not fit is named."""

import logging

import nibabel
import numpy as np
import pandas as pd
import pytest
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker, SurfaceMasker
from nilearn.surface import InMemoryMesh, PolyMesh, SurfaceImage

from brainmodels.baselines import Ridge
from brainmodels.data import ArrayImages, BrainDataset, StimulusSet, fit_normalizer, from_masker, holdout
from brainmodels.errors import AxisError, BrainDataError, IdError, LayoutError
from tests.brainmodels.written.bids import SLOPE, as_int16

SHAPE, AFFINE = (5, 6, 4), np.array([[-2.0, 0, 0, 10], [0, 2, 0.5, -8], [0, 0, 2, 4], [0, 0, 0, 1]])
TRIALS = 24


def events(session=0, **columns):
    names = [f"faces/{(number * 5 + session) % 12:02d}.jpg" for number in range(TRIALS)]
    table = {"onset": np.arange(TRIALS) * 4.0, "duration": 3.0, "trial_type": "image", "stim_file": names, "run": 2}
    return pd.DataFrame(table | columns)


@pytest.fixture(scope="module")
def study():
    """A fitted masker, two images, one int16 with a slope, and what their voxels hold."""
    rng = np.random.default_rng(0)
    inside = rng.random(SHAPE) < 0.5
    masker = NiftiMasker(nibabel.Nifti1Image(inside.astype(np.uint8), AFFINE)).fit()
    values = rng.normal(size=(2, TRIALS, *SHAPE)).astype(np.float32)
    first = nibabel.Nifti1Image(as_int16(np.moveaxis(values[0], 0, -1), SLOPE), AFFINE)
    first.header.set_slope_inter(SLOPE, 0)
    first = nibabel.Nifti1Image.from_bytes(first.to_bytes())
    return masker, [first, nibabel.Nifti1Image(np.moveaxis(values[1], 0, -1), AFFINE)], values[:, :, inside], inside


def test_columns_are_the_maskers_and_trials_are_the_lines_of_the_events(study):
    masker, images, values, inside = study
    subject = from_masker(masker, images, [events(), events(1)], subject="sub-07", unit="psc")
    trials = subject.responses.trials
    assert subject.id == "sub-07" and subject.responses.unit == "psc" and len(trials) == 2 * TRIALS
    np.testing.assert_allclose(subject.responses.batch([0, 5]), values[0, [0, 5]], atol=SLOPE / 2 + 1e-6)
    np.testing.assert_allclose(subject.responses.batch([TRIALS + 3])[0], values[1, 3], rtol=1e-6)
    np.testing.assert_array_equal(trials.session, np.repeat([1, 2], TRIALS))
    assert set(trials.run.tolist()) == {2} and trials.image_id[1] == "faces/05.jpg" and trials.repeat[12] == 1
    scores = np.arange(inside.sum(), dtype=np.float32) + 1
    ours, theirs = subject.space.to_image(scores), masker.inverse_transform(scores)
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
    np.testing.assert_array_equal(ours.affine, theirs.affine)


def test_a_subject_is_ready_for_the_estimators(study):
    masker, images, *_ = study
    subject = from_masker(masker, images, [events(), events(1)])
    ids = sorted(set(subject.responses.trials.image_id.tolist()))
    pictures = np.random.default_rng(0).integers(0, 255, (len(ids), 8, 8, 3), np.uint8)
    split = holdout(subject.responses.trials, 0.25, by="image")
    dataset = BrainDataset([subject], StimulusSet(ids, ArrayImages(pictures)), {split.name: split})
    scale = fit_normalizer("train_z", subject, split)
    train = dataset.pairs(subject.id, split, "train", "repeats", scale)
    features = np.random.default_rng(1).normal(size=(len(train), 3)).astype(np.float32)
    assert Ridge().fit(features, train.array()).predict(features).shape == (len(train), len(subject.space))


def test_files_regions_and_reliability_are_read_by_the_masker(study, tmp_path):
    masker, images, _, inside = study
    nibabel.save(images[1], tmp_path / "betas.nii.gz")
    rng = np.random.default_rng(3)
    region, ratio = rng.random(SHAPE) < 0.3, rng.random(SHAPE).astype(np.float32)
    rois = {"V1": nibabel.Nifti1Image(region.astype(np.uint8), AFFINE)}
    ncsnr = nibabel.Nifti1Image(ratio, AFFINE)
    subject = from_masker(masker, tmp_path / "betas.nii.gz", events(), rois=rois, ncsnr=ncsnr)
    np.testing.assert_array_equal(subject.space.rois["V1"], region[inside])
    np.testing.assert_allclose(subject.space.ncsnr, ratio[inside])


def test_dead_voxels_are_left_out_and_counted(study, caplog):
    masker, images, values, inside = study
    stored = np.array(images[1].get_fdata(), np.float32)
    places = np.argwhere(inside)
    stored[tuple(places[4])] = 3.0
    stored[(*places[9], 2)] = np.inf
    spoilt = [images[0], nibabel.Nifti1Image(stored, AFFINE)]
    with caplog.at_level(logging.WARNING):
        subject = from_masker(masker, spoilt, [events(), events(1)])
    assert f"2 of {len(places)} voxels are dead: 1 constant, 1 not finite" in caplog.text
    np.testing.assert_array_equal(subject.space.index, np.delete(places, [4, 9], 0))
    np.testing.assert_allclose(subject.responses.batch([TRIALS + 1])[0], np.delete(values[1, 1], [4, 9]), rtol=1e-6)
    told = {"of": len(places), "constant": 1, "not_finite": 1, "first": places[[4, 9]].tolist()}
    assert subject.provenance["dead"] == told
    with pytest.raises(AxisError, match="expected voxels that vary in each image, got"):
        from_masker(masker, [images[0], nibabel.Nifti1Image(np.zeros_like(stored), AFFINE)], [events(), events(1)])
    flat = np.array(images[1].get_fdata(), np.float32)
    flat[tuple(places[4])] = 3.0
    kept = from_masker(masker, [images[0], nibabel.Nifti1Image(flat, AFFINE)], [events(), events(1)], dead="keep")
    assert len(kept.space) == len(places) and kept.provenance["dead"]["constant"] == 1


def test_vertices_of_a_surface():
    rng = np.random.default_rng(0)
    mesh = PolyMesh(*(InMemoryMesh(rng.random((n, 3)), rng.integers(0, n, (6, 3))) for n in (10, 12)))
    mask = {side: rng.random(n) < 0.7 for side, n in (("left", 10), ("right", 12))}
    masker = SurfaceMasker(SurfaceImage(mesh, mask)).fit()
    data = {side: rng.normal(size=(len(part), TRIALS)) for side, part in mask.items()}
    subject = from_masker(masker, SurfaceImage(mesh, data), events())
    expected = np.concatenate([data[side][mask[side]] for side in mask]).T
    np.testing.assert_allclose(subject.responses.batch(range(TRIALS)), expected, rtol=1e-5)
    assert subject.space.shape == (10, 12) and subject.space.index[:, 0].sum() == mask["right"].sum()
    np.testing.assert_array_equal(subject.space.index[subject.space.index[:, 0] == 1, 1], np.flatnonzero(mask["right"]))


def test_filters_choose_trials(study):
    masker, images, *_ = study
    kinds = np.where(np.arange(TRIALS) % 4 == 0, "blank", "image")
    table = pd.concat([events(trial_type=kinds), events(stim_file=np.nan, trial_type="fixation")]).iloc[: TRIALS + 6]
    rows = np.flatnonzero(kinds == "image")
    some = nibabel.Nifti1Image(np.asarray(images[1].dataobj)[..., rows], AFFINE)
    subject = from_masker(masker, some, table, trial_type="image")
    assert subject.responses.trials.image_id.tolist() == events()["stim_file"][rows].tolist()
    everything = from_masker(masker, images[1], table)  # lines without an image are no trials
    assert len(everything.responses) == TRIALS


def test_what_does_not_fit_is_named(study):
    masker, images, _, inside = study
    shifted = AFFINE.copy()
    shifted[0, 3] += 2
    other = nibabel.Nifti1Image(np.asarray(images[1].dataobj), shifted)
    mask = masker.mask_img_
    labels = NiftiLabelsMasker(nibabel.Nifti1Image(inside.astype(np.int16), AFFINE)).fit()
    labels.mask_img_ = mask
    wrong = [
        (
            (NiftiMasker(mask), images[1], events()),
            {},
            BrainDataError,
            "fitted NiftiMasker .* got NiftiMasker; call fit",
        ),
        ((labels, images[1], events()), {}, BrainDataError, "masker of voxels, got NiftiLabelsMasker"),
        ((masker, images, events()), {}, AxisError, "events for each of 2 images, got 1 tables"),
        ((masker, images[1], events().iloc[:5]), {}, AxisError, "24 lines of events .* of image 1, got 5"),
        ((masker, other, events()), {}, AxisError, "affine of the mask in image 1, .*would resample it"),
        ((masker, images[1].slicer[1:], events()), {}, AxisError, r"shape \(5, 6, 4\) of image 1, .*got \(4, 6, 4\)"),
        ((masker, "nowhere.nii.gz", events()), {}, LayoutError, "image 1 at nowhere.nii.gz, got no such file"),
        ((masker, images[1], events()), {"stim": "stim_fil"}, LayoutError, "column 'stim_fil' .*near: stim_file"),
        ((masker, images[1], events()), {"trial_type": "imag"}, LayoutError, "trial_type imag .*got image"),
        (
            (masker, images[1], events(stim_file="n/a")),
            {"trial_type": "image"},
            IdError,
            "trial 0 of image 1, got none",
        ),
        ((masker, images[1], events(run=1.5)), {}, LayoutError, "whole numbers of run .*1.5"),
        ((masker, images[1], events()), {"dead": "hide"}, BrainDataError, "'drop', 'keep' or 'refuse', got 'hide'"),
    ]
    for arguments, options, kind, message in wrong:
        with pytest.raises(kind, match=message):
            from_masker(*arguments, **options)
    for option in ({"standardize": "zscore_sample"}, {"detrend": True}, {"high_pass": 0.01, "t_r": 2}):
        with pytest.raises(BrainDataError, match=f"masker with {next(iter(option))}=False or None, .*fit_normalizer"):
            from_masker(NiftiMasker(mask, **option).fit(), images[1], events())
