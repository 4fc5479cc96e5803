"""Unique and shared parts of feature sets whose parts were planted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from brainmodels.errors import BrainDataError
from brainmodels.evaluation.encoding import WHOLE, Study
from brainmodels.evaluation.partition import check_partition, partition_of
from brainmodels.report import write_report
from tests.brainmodels.evaluated import evaluation_of, made_subject
from tests.brainmodels.simulations import made


@pytest.fixture(scope="module")
def parts():
    """Region A follows only the first set, B only the second, and BOTH what both sets hold; half of each is noise."""
    rng = np.random.default_rng(0)
    shared, first, second = rng.normal(size=(3, 400, 4))
    sets = {"first": np.concatenate([first, shared], 1), "second": np.concatenate([second, shared], 1)}
    sources = {"A": first, "B": second, "BOTH": shared}
    Y = np.concatenate([x @ rng.normal(size=(4, 10)) / 2 + rng.normal(size=(400, 10)) for x in sources.values()], 1)
    rois = {name: np.arange(30) // 10 == number for number, name in enumerate(sources)}
    study = Study(
        train=SimpleNamespace(),
        test=_Test(Y[300:], rois),
        measured_train=Y[:300].astype(np.float32),
        measured=Y[300:].astype(np.float32),
        ncsnr=None,
        voxels=np.ones(30, bool),
        ceiling=None,
        threshold=0.1,
        resamples=200,
        seed=0,
    )
    rows = {name: (x[:300].astype(np.float32), x[300:].astype(np.float32)) for name, x in sets.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brainmodels.evaluation.encoding.encoding_scores", lambda *_, **__: [])
        return partition_of(study, rows)


class _Test:
    """Test responses without a data set."""

    def __init__(self, values, rois):
        self.image_ids = [f"made:{row}" for row in range(len(values))]
        self.subject = SimpleNamespace(space=SimpleNamespace(rois=rois))

    def __len__(self):
        return len(self.image_ids)


def test_planted_parts_are_found(parts):
    assert list(parts.regions) == [WHOLE, "A", "B", "BOTH"]
    for region, owner, other in (("A", "first", "second"), ("B", "second", "first")):
        found = parts.regions[region]
        assert found.unique[owner].value > 0.5 * found.total[0] > 0.2 and found.unique[owner].p < 0.02
        assert abs(found.unique[other].value) < 0.06 and found.unique[other].value < 0.2 * found.unique[owner].value
    both = parts.regions["BOTH"]
    assert both.shared.value > 0.8 * both.total[0] > 0.3 and both.shared.interval.low > 0
    assert all(abs(part.value) < 0.05 for part in both.unique.values())


def test_parts_add_up(parts):
    for region in parts.regions.values():
        total = sum(part.value for part in region.unique.values()) + region.shared.value
        assert total == pytest.approx(region.total[0])
    assert set(parts.fits) == {"", "first", "second"} and parts.fits["first"].features == "second"


def test_an_evaluation_records_and_shows_its_partition(tmp_path):
    options = {"resamples": 50, "curve": (), "check_alignment": "off", "partition": True}
    evaluation = evaluation_of(made("tiny", n_subjects=1), ["grid", "pixels"], **options)
    record = json.loads(json.dumps(evaluation.record["partition"], allow_nan=False))
    assert record["sets"] == ["grid", "pixels"]
    v1 = record["regions"]["V1"]
    assert v1["unique"]["grid"]["interval"][0] > 0.3 and v1["unique"]["pixels"]["value"] < 0.05
    text = write_report(evaluation, tmp_path).read_text()
    assert "Unique and shared variance" in text and f"{v1['unique']['grid']['value']:.3f}" in text


def test_one_set_cannot_be_partitioned():
    with pytest.raises(BrainDataError, match="two or more sets of features to partition, got grid"):
        evaluation_of(made_subject(), ["grid"], partition=True)
    check_partition(False, ["grid"])
