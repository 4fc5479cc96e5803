"""From the BIDS folder of an untidy laboratory to a report and maps, by commands alone."""

import json

import nibabel
import numpy as np
import pytest

from brainmodels.data import load_prepared
from brainmodels.simulated import LabPreset, simulate
from tests.brainmodels.written.bids import write_bids
from veca import cli


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small "lab" as GLMsingle's .hdf5 files beside masks of fMRIPrep, without anything that says how it was made."""
    preset = LabPreset("lab", (260, 240), (9, 10, 7), own=80, shared=60, sessions=4, subjects=1)
    dataset = simulate(preset, seed=3)
    return write_bids(dataset, tmp_path_factory.mktemp("lab"), "sim01", betas="hdf5", dead=4), dataset


def test_two_commands_lead_to_a_report(study, tmp_path, capsys):
    written, dataset = study
    truth = dataset.truth["sim01"]
    prepared, out, maps = tmp_path / "prepared", tmp_path / "study", tmp_path / "maps"
    cli.main(
        ["brain", "prepare", "--layout", "bids", "--root", str(written.root), "--subject", "01", "--out", str(prepared)]
    )
    words = ["--data", str(prepared), "--features", "grid", "--out", str(out), "--resamples", "400", "--shuffles", "2"]
    cli.main(["brain", "evaluate", *words, "--no-progress", "--curve", "30", "--to-mni", "identity"])
    subject = load_prepared(prepared).subject("sub-01")
    planted = truth.dead[written.voxels]
    assert len(subject.space) == (~planted).sum() and subject.provenance["dead"]["not_finite"] == 2
    page = (out / "report.html").read_text()
    assert "sub-01" in page and "surface.png" in page and "map.png" in page
    assert (out / "surface.png").is_file() and (out / "map.png").is_file()
    record = json.loads((out / "record.json").read_text())
    assert record["data"]["name"] == "bids" and record["verdict"] and record["data"]["normalizer"] == "session_z_train"
    capsys.readouterr()
    cli.main(["brain", "export", "--evaluation", str(out), "--out", str(maps)])
    assert "statmap.nii.gz" in capsys.readouterr().out
    (path,) = maps.glob("*_stat-r_desc-ridgeGrid_statmap.nii.gz")
    r = nibabel.load(path).get_fdata()[tuple(written.index.T)]
    reliable = truth.reliable[written.voxels]
    assert np.isnan(r[planted]).all()
    assert np.nanmean(r[reliable]) > np.nanmean(r[~reliable & ~planted]) + 0.15
