"""In-silico subjects: predictions of a stand-in for BERG, with its calls and shapes, become responses by image id."""

import numpy as np
import pytest

from brainmodels.data import ArrayImages, BrainDataset, StimulusSet, from_berg, holdout
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.evaluation import EvaluationSettings, evaluate
from brainmodels.evaluation.encoding import SHUFFLED
from brainmodels.features.sets import FeatureSet

IDS = [f"mine:{number:03d}" for number in range(160)]
PICTURES = np.random.default_rng(0).integers(0, 256, (160, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
TIMES = np.arange(5) / 100


class Model:
    """Linear in the mean colour of four rows of the picture; of sensors with `repeats`."""

    def __init__(self, voxels=6, repeats=0, seed=0):
        self.weights = np.random.default_rng(seed).normal(size=(12, voxels))
        self.repeats = repeats

    def get_model_id(self):
        return "fmri-toy"


class Berg:
    """`encode` as BERG has it."""

    def __init__(self, change=lambda made: made):
        self.sizes, self.change = [], change
        self.metadata = {"eeg": {"ch_names": ["Oz", "Pz", "Cz"], "times": TIMES}}

    def encode(self, model, stimulus, return_metadata=False):
        assert stimulus.dtype == np.uint8 and stimulus.shape[1] == 3 and stimulus.shape[2] == stimulus.shape[3]
        self.sizes.append(stimulus.shape)
        means = stimulus.reshape(len(stimulus), 3, 4, -1).mean(3).reshape(len(stimulus), 12) / 255
        made = means @ model.weights
        if model.repeats:
            made = made.reshape(len(made), 1, 3, 5) + np.arange(model.repeats)[:, None, None]
        made = self.change(made)
        return (made, self.metadata) if return_metadata else made


@pytest.fixture(scope="module")
def stimuli():
    return StimulusSet(IDS, ArrayImages(PICTURES))


def test_predictions_of_regions_are_joined_in_the_order_of_the_images(stimuli):
    models, berg = {"V1": Model(6, seed=1), "V4": Model(4, seed=2)}, Berg()
    subject = from_berg(berg, models, stimuli, IDS[59::-1], size=16, batch=25)
    assert berg.sizes == [(25, 3, 16, 16), (25, 3, 16, 16), (10, 3, 16, 16)] * 2
    direct = Berg().encode(models["V4"], stimuli.images(IDS[59::-1], 16).transpose(0, 3, 1, 2))
    np.testing.assert_allclose(subject.responses.values[:, subject.space.rois["V4"]], direct, rtol=1e-5)
    assert subject.responses.trials.image_id.tolist() == IDS[59::-1]
    assert subject.space.rois["V1"].tolist() == [True] * 6 + [False] * 4
    assert subject.provenance == {"layout": "berg", "in_silico": True, "models": {"V1": "fmri-toy", "V4": "fmri-toy"}}


def test_an_in_silico_subject_is_evaluated_and_its_planted_linearity_is_found(stimuli, tmp_path):
    subject = from_berg(Berg(), Model(8), stimuli, size=16)
    split = holdout(subject.responses.trials, 0.3, seed=0)
    dataset = BrainDataset([subject], stimuli, {split.name: split})
    settings = EvaluationSettings(
        out=tmp_path, resamples=50, shuffles=2, curve=(20,), progress=False, check_alignment="off"
    )
    evaluation = evaluate(dataset, [FeatureSet.parse("grid")], settings)
    shuffled = next(row for row in evaluation.encoded if row.model == SHUFFLED)
    assert evaluation.encoded[0].score("voxel_r").value > 0.6 > 0.2 > abs(shuffled.score("voxel_r").value)
    assert evaluation.study.ceiling is None and evaluation.record["data"]["name"] == "berg"


def test_models_of_sensors_give_a_trial_for_each_repeat(stimuli):
    subject = from_berg(Berg(), Model(15, repeats=4), stimuli, IDS[:7], size=16, unit="z")
    assert subject.responses.values.shape == (28, 3, 5) and subject.space.sfreq == 100
    assert subject.responses.trials.image_id.tolist() == [name for name in IDS[:7] for _ in range(4)]
    np.testing.assert_allclose(subject.responses.values[5] - subject.responses.values[4], 1, atol=1e-5)


@pytest.mark.parametrize(
    ("models", "change", "error", "message"),
    [
        ({}, None, BrainDataError, "expected models, images and batch >= 1, got 0 models"),
        (Model(), lambda x: x[:-1], AxisError, r"expected predictions \(100, voxels\) or .* of the model fmri-toy"),
        (Model(), lambda x: x[:, None], AxisError, r"got \(100, 1, 6\)"),
        (Model(), lambda x: x / 0, BrainDataError, "expected finite predictions of the model fmri-toy"),
        ({"a": Model(15, 2), "b": Model(15, 2)}, None, BrainDataError, "expected one model of sensors, got a, b"),
        (Model(15, 2), lambda x: x[..., :4], AxisError, r"3 channels and 5 times.*got \(3, 4\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_does_not_fit_is_named(stimuli, models, change, error, message):
    with pytest.raises(error, match=message):
        from_berg(Berg(change) if change else Berg(), models, stimuli, size=16)


def test_sensors_without_names_are_refused(stimuli):
    berg = Berg()
    berg.metadata = {"eeg": {}}
    with pytest.raises(BrainDataError, match="expected ch_names and times in BERG's metadata, got none"):
        from_berg(berg, Model(15, repeats=2), stimuli, size=16)
