"""Mean map, nearest neighbour, and what all baselines share: conventions of scikit-learn, bad input, maps."""

import tracemalloc

import nibabel
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
import torch
from nilearn.maskers import NiftiMasker
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from brainmodels.baselines import (
    BandedRidge,
    LinearDecoder,
    MeanMap,
    NearestNeighbor,
    PriorRidge,
    ReducedRankRidge,
    ReleasedRidge,
    Ridge,
    to_nifti,
)
from brainmodels.data import VoxelSpace
from brainmodels.errors import AxisError, BrainDataError, LeakageError
from brainmodels.evaluation.encoding import standardized

BASELINES = (
    MeanMap(),
    NearestNeighbor(),
    Ridge(),
    ReducedRankRidge(),
    PriorRidge(),
    LinearDecoder(),
    BandedRidge({"a": slice(0, 3), "b": slice(3, 8)}),
)


@pytest.fixture
def data():
    """80 samples, 8 features, 6 voxels with means; linear plus noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 8)) + 2
    return X, X @ rng.normal(size=(8, 6)) + rng.normal(size=(80, 6)) + np.arange(6) * 10


def named(baselines=BASELINES):
    return pytest.mark.parametrize("baseline", baselines, ids=[type(x).__name__ for x in baselines])


def test_mean_map_is_the_train_mean_and_knows_nothing_about_images(data):
    X, Y = data
    model = MeanMap().fit(X[:60], Y[:60])
    np.testing.assert_allclose(model.predict(X[60:]), np.tile(Y[:60].mean(0), (20, 1)), rtol=1e-6)
    expected = -len(Y[60:]) * (Y[60:].mean(0) - Y[:60].mean(0)) ** 2 / ((Y[60:] - Y[60:].mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(model.score(X[60:], Y[60:]), expected, rtol=1e-4)  # the cost of a bias alone


def test_mean_map_scores_where_voxels_have_means(data):
    """Correlation over voxels rewards the map of the means; R^2 over images does not."""
    X, Y = data
    predicted = MeanMap().fit(X[:60], Y[:60]).predict(X[60:])
    assert min(np.corrcoef(p, y)[0, 1] for p, y in zip(predicted, Y[60:], strict=True)) > 0.9


def test_nearest_neighbor_by_brute_force():
    rng = np.random.default_rng(1)
    X, Y, query = rng.normal(size=(50, 7)), rng.normal(size=(50, 4)), rng.normal(size=(30, 7))
    cosines = [[x @ q / np.linalg.norm(x) / np.linalg.norm(q) for x in X] for q in query]
    closest = [row.index(max(row)) for row in cosines]
    model = NearestNeighbor().fit(X, Y)
    assert model.neighbors(query).tolist() == closest
    np.testing.assert_allclose(model.predict(query), Y[closest].astype(np.float32))
    longer = model.predict(query * rng.uniform(0.1, 10, (30, 1)))  # a direction has no length
    np.testing.assert_array_equal(longer, model.predict(query))


def test_the_trials_of_an_image_are_averaged():
    """Image "b" is shown first, "a" twice: the response to "a" is the mean of its two trials."""
    X = np.array([[0.0, 1], [1, 0], [1, 0]])
    Y = np.array([[9.0], [1], [3]])
    model = NearestNeighbor().fit(X, Y, groups=["b", "a", "a"])
    np.testing.assert_array_equal(model.predict([[5, 0.1], [0.1, 5]]), [[2], [9]])
    assert len(model.X_fit_) == 2
    np.testing.assert_array_equal(MeanMap().fit(X, Y, groups=["b", "a", "a"]).Y_mean_, [5.5])  # images count once
    np.testing.assert_allclose(MeanMap().fit(X, Y).Y_mean_, [13 / 3])


def test_nearest_neighbor_refuses_features_without_a_direction():
    with pytest.raises(BrainDataError, match="sample 1"):
        NearestNeighbor().fit([[1.0, 0], [0, 0]], [[1.0], [2]])


@named()
def test_clone_and_params(baseline, data):
    """A fitted estimator clones to an unfitted one with equal parameters, and fits again to the same."""
    X, Y = data if not isinstance(baseline, LinearDecoder) else data[::-1]
    fitted = clone(baseline).fit(X, Y)
    again = clone(fitted)
    assert repr(again.get_params()) == repr(baseline.get_params())
    assert not [name for name in vars(again) if name.endswith("_")]
    np.testing.assert_array_equal(again.fit(X, Y).predict(X), fitted.predict(X))


@named()
def test_one_score_a_voxel_as_defined(baseline, data):
    X, Y = data if not isinstance(baseline, LinearDecoder) else data[::-1]
    model = clone(baseline).fit(X[:60], Y[:60])
    y, p = Y[60:].copy(), model.predict(X[60:]).astype(np.float64)
    expected = 1 - ((y - p) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(model.score(X[60:], y), expected, rtol=1e-6)
    y[:, 2] = 4.0  # constant here: undefined, not 0 and not 1
    scores = model.score(X[60:], y)
    assert np.isnan(scores[2]) and np.isfinite(np.delete(scores, 2)).all()


@named()
def test_bad_input(baseline, data):
    decoder = isinstance(baseline, LinearDecoder)
    X, Y = data[::-1] if decoder else data
    model = clone(baseline)
    outputs = "features" if decoder else "responses"
    where = "sample 17, feature 3" if decoder else "trial 17, voxel 3"
    broken = Y.copy()
    broken[17, 3] = np.nan
    with pytest.raises(BrainDataError, match=f"finite {outputs}, got nan in {where}"):
        model.fit(X, broken)
    with pytest.raises(AxisError, match="80 and 79"):
        model.fit(X, Y[:79])
    with pytest.raises(AxisError, match=r"got shape \(80,\)"):
        model.fit(X, Y[:, 0])
    with pytest.raises(AxisError, match="real numbers"):
        model.fit(X, Y.astype(str))
    model.fit(X, Y)
    with pytest.raises(AxisError, match=f"expected {X.shape[1]} .*got {X.shape[1] - 1}"):
        model.predict(X[:, 1:])
    broken = X.copy()
    broken[5, 1] = np.inf
    with pytest.raises(BrainDataError, match=r"got inf in .* 5, .* 1"):
        model.predict(broken)


@named()
def test_a_prediction_depends_on_its_row_alone(baseline, data):
    X, Y = data[0], data[1]
    model = clone(baseline).fit(X, Y)
    whole, order = model.predict(X), np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(model.predict(X[order]), whole[order], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.predict(X[3:4]), whole[3:4], rtol=1e-5, atol=1e-5)


@named()
def test_not_fitted(baseline, data):
    with pytest.raises(sklearn.exceptions.NotFittedError):
        clone(baseline).predict(data[0])


_WORDING = "refused, in the words of this package"
_OTHERWISE = {
    "check_n_features_in_after_fitting": _WORDING,
    "check_complex_data": _WORDING,
    "check_estimators_empty_data_messages": _WORDING,
    "check_requires_y_none": _WORDING,
    "check_dtype_object": "arrays of objects are refused, also where they hold numbers",
    "check_regressor_multioutput": "predictions are fp32 for fp64 data",
}
# fp32 sums over features depend on the place of a row on some processors; the checks allow 1e-7
_ROUNDING = {"check_methods_sample_order_invariance", "check_methods_subset_invariance"}
_NO_DIRECTION = {"check_estimators_dtypes": "a row of zeros has no cosine"}


@pytest.mark.parametrize(
    "baseline",
    [*BASELINES[:-1], ReleasedRidge(), BandedRidge({"all": slice(None)}, n_iter=1)],
    ids=lambda x: type(x).__name__,
)
def test_scikit_learn_checks_pass_but_for_those_listed(baseline):
    otherwise = _OTHERWISE | (_NO_DIRECTION if isinstance(baseline, NearestNeighbor) else {})
    found = check_estimator(clone(baseline), expected_failed_checks=otherwise, on_fail=None, on_skip=None)
    assert {x["check_name"] for x in found if x["status"] == "failed"} <= _ROUNDING
    assert {x["check_name"] for x in found if x["status"] == "xfail"} == set(otherwise)
    assert len([x for x in found if x["status"] == "passed"]) >= 40


@named()
def test_columns_of_a_data_frame_keep_their_order(baseline, data):
    X, Y = data
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    model = clone(baseline).fit(frame, Y)
    assert list(model.feature_names_in_) == list("abcdefgh")
    np.testing.assert_array_equal(model.predict(frame), model.predict(X))
    with pytest.raises(AxisError, match="got 'b' as column 0, which was 'a'; select"):
        model.predict(frame[list("bacdefgh")])
    assert not hasattr(model.fit(X, Y), "feature_names_in_")
    with pytest.raises(AxisError, match=r"expected dense .*, got a sparse csr_array; pass .*\.toarray"):
        model.fit(scipy.sparse.csr_array(X), Y)


def test_tensors_and_a_middle_axis_of_one(data):
    """(B, 1, V) is squeezed, tensors are taken as arrays; integers as stored give what their floats give."""
    X, Y = data
    whole = np.round(Y * 300).astype(np.int16)
    plain = Ridge().fit(X, whole.astype(np.float64)).predict(X)
    other = Ridge().fit(torch.from_numpy(X), whole[:, None]).predict(torch.from_numpy(X))
    np.testing.assert_array_equal(other, plain)


def test_pipeline_and_grid_search(data):
    """scikit-learn's searches work with a scoring that is one number; a pipeline passes the vector of `score` on."""
    X, Y = data
    pipeline = make_pipeline(StandardScaler(), Ridge(alphas=[1.0]))
    assert pipeline.fit(X[:60], Y[:60]).score(X[60:], Y[60:]).shape == (6,)
    search = GridSearchCV(pipeline, {"ridge__alphas": [[1.0], [1e6]]}, scoring="r2", cv=4).fit(X, Y)
    assert search.best_params_ == {"ridge__alphas": [1.0]}
    by_hand = [
        clone(pipeline).fit(X[train], Y[train]).score(X[test], Y[test]).mean() for train, test in KFold(4).split(X)
    ]
    np.testing.assert_allclose(cross_val_score(pipeline, X, Y, scoring="r2", cv=4), by_hand, rtol=1e-6)


@named([x for x in BASELINES if not isinstance(x, MeanMap | NearestNeighbor)])
@pytest.mark.filterwarnings("ignore:The groups parameter is ignored by KFold")
def test_a_splitter_that_tears_images_apart_is_refused(baseline, data):
    groups = np.arange(80) % 40
    with pytest.raises(LeakageError, match=r"such as \d+; use GroupKFold"):
        clone(baseline).set_params(cv=KFold(5)).fit(*data, groups=groups)
    with pytest.raises(AxisError, match="one group for each of 80"):
        clone(baseline).fit(*data, groups=groups[:70])
    for folds, error in (([(range(60), range(50, 80))], LeakageError), ([(range(60), [60, 80])], AxisError)):
        with pytest.raises(error, match=r"10 rows on both sides|positions from 0 to 79"):
            clone(baseline).set_params(cv=folds).fit(*data)


def test_statistics_need_no_fp64_copy_of_wide_targets():
    """`Y.std` in one piece made two fp64 copies of Y: 28 GB for the 197,000 features of a published decoder."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((300, 8), np.float32), rng.standard_normal((300, 16_000), np.float32)
    decoder = LinearDecoder(alphas=[1.0], cv=2, calibration="test_batch")
    tracemalloc.start()
    try:
        decoder.fit(X, Y)
        peak = tracemalloc.get_traced_memory()[1]
        standardized(Y, Y[:10])
        peak_of_scaling = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * Y.nbytes and peak_of_scaling < 3 * Y.nbytes  # an fp64 copy alone is 2
    mean, std = Y.mean(0, dtype=np.float64), Y.std(0, dtype=np.float64)
    np.testing.assert_array_equal(decoder.Y_std_, std)
    np.testing.assert_array_equal(standardized(Y, Y[:10])[0], ((Y - mean) / std).astype(np.float32))
    predicted = decoder.predict(X)
    np.testing.assert_allclose(predicted.std(0), std, rtol=1e-5)


def test_from_nifti_to_nifti(tmp_path):
    """Responses from a masker, scores back through it: each voxel's score lies at its own place in the file."""
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    mask = rng.random((4, 5, 3)) < 0.5
    X = rng.normal(size=(60, 4)).astype(np.float32)
    strength = np.where(mask, rng.uniform(0, 3, mask.shape), 0)
    volumes = strength[..., None] * X[:, 0] + rng.normal(size=(*mask.shape, 60))
    masker = NiftiMasker(nibabel.Nifti1Image(mask.astype(np.uint8), affine), standardize=None).fit()
    Y = masker.transform(nibabel.Nifti1Image(volumes.astype(np.float32), affine))
    scores = Ridge().fit(X[:40], Y[:40]).score(X[40:], Y[40:])
    to_nifti(scores, masker).to_filename(tmp_path / "r2.nii.gz")
    image = nibabel.load(tmp_path / "r2.nii.gz")
    np.testing.assert_allclose(image.affine, affine)
    np.testing.assert_allclose(image.get_fdata()[mask], scores, rtol=1e-6)
    assert (image.get_fdata()[~mask] == 0).all()
    assert np.corrcoef(image.get_fdata()[mask], strength[mask])[0, 1] > 0.8
    with pytest.raises(AxisError, match=f"{mask.sum()} voxels, as the masker has, got {mask.sum() - 1}"):
        to_nifti(scores[1:], masker)


def test_voxel_space_to_nifti():
    mask = np.zeros((3, 2, 2), bool)
    mask[2, 1, 0] = mask[0, 0, 1] = True
    space = VoxelSpace.from_mask("made", mask, np.eye(4))
    image = to_nifti([0.25, np.nan], space, fill=-1)
    assert image.get_fdata()[0, 0, 1] == 0.25 and np.isnan(image.get_fdata()[2, 1, 0])
    assert (image.get_fdata()[~mask] == -1).all()
    maps = to_nifti(np.array([[1.0, 2], [3, 4], [5, 6]]), space)
    assert maps.shape == (3, 2, 2, 3) and maps.get_fdata()[2, 1, 0].tolist() == [2, 4, 6]
    with pytest.raises(AxisError, match="2 voxels, got 3"):
        to_nifti([1, 2, 3], space)
    with pytest.raises(BrainDataError, match="masker or a VoxelSpace, got str"):
        to_nifti([1, 2], "brain.nii.gz")
