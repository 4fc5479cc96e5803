"""Scores as NIfTI, GIFTI and CSV: the values and places of the evaluation, under names of BIDS."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from brainmodels.data import save_prepared
from brainmodels.errors import AxisError, BrainDataError, LayoutError
from brainmodels.evaluation.exports import export_scores
from brainmodels.layouts import bids
from brainmodels.simulated import Preset, simulate
from tests.brainmodels.written.bids import write_bids
from veca import cli

NAMES = ["ridge, veca@8", "ridge, pixels", "shuffled pairs, veca@8"]


@pytest.fixture(scope="module")
def study():
    return simulate(Preset("study", (40,), (5, 4, 3), own=20, shared=4, sessions=2), seed=1)


def evaluated(folder, count, prepared, subject="sub-01", seed=0):
    """A folder as `veca brain evaluate` writes it, with scores of each voxel."""
    rng = np.random.default_rng(seed)
    arrays = {f"r_{row}": rng.uniform(-1, 1, count).astype(np.float32) for row in range(3)}
    arrays |= {"ceiling": rng.random(count), "q_0": rng.random(count), "p_max_0": rng.random(count)}
    arrays["r_1"][2] = np.nan
    folder.mkdir(parents=True)
    np.savez(folder / "voxels.npz", names=NAMES, **arrays)
    record = {"data": {"subject": subject}, "settings": {"data": [str(prepared)]}}
    (folder / "record.json").write_text(json.dumps(record))
    return arrays


def prepared(study, tmp_path, betas):
    written = write_bids(study, tmp_path / "bids", "sim01", betas=betas)
    dataset = bids.load(written.root, "01")
    save_prepared(dataset, "sub-01", tmp_path / "prepared", image_size=8)
    return dataset.subject("sub-01")


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_volumes(study, tmp_path):
    subject = prepared(study, tmp_path, "nii.gz")
    space = subject.space
    arrays = evaluated(tmp_path / "study", len(space), tmp_path / "prepared")
    paths = export_scores(tmp_path / "study", tmp_path / "maps")
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "maps").iterdir())
    prefix = "sub-01_task-scenes_space-T1w"
    labels = ["ridgeVeca8", "ridgePixels", "shuffledPairsVeca8"]
    for row, label in enumerate(labels):
        image = nibabel.load(tmp_path / "maps" / f"{prefix}_stat-r_desc-{label}_statmap.nii.gz")
        volume = image.get_fdata()
        np.testing.assert_allclose(volume[tuple(space.index.T)], arrays[f"r_{row}"], rtol=1e-6)
        assert np.isfinite(volume).sum() == np.isfinite(arrays[f"r_{row}"]).sum()
        np.testing.assert_allclose(image.affine, space.affine)
        told = json.loads((tmp_path / "maps" / f"{prefix}_stat-r_desc-{label}_statmap.json").read_text())
        assert told["Model"] == NAMES[row] and told["Statistic"] == "r"
    for name in ("stat-ceiling_statmap", "stat-ncsnr_statmap", "stat-q_desc-ridgeVeca8_statmap"):
        assert (tmp_path / "maps" / f"{prefix}_{name}.nii.gz").is_file()
    assert (tmp_path / "maps" / f"{prefix}_stat-pMax_desc-ridgeVeca8_statmap.nii.gz").is_file()
    rows = table(tmp_path / "maps" / f"{prefix}_desc-scores_voxels.csv")
    assert len(rows) == len(space) and [row["voxel"] for row in rows[:3]] == ["0", "1", "2"]
    for voxel in (0, 7, len(space) - 1):
        row = rows[voxel]
        assert [int(row[axis]) for axis in "ijk"] == space.index[voxel].tolist()
        place = space.affine[:3] @ [*space.index[voxel], 1]
        np.testing.assert_allclose([float(row[f"{axis}_mm"]) for axis in "xyz"], place, rtol=1e-5)
        assert float(row["r_ridgeVeca8"]) == pytest.approx(float(arrays["r_0"][voxel]), rel=1e-6)
        assert float(row["ceiling"]) == pytest.approx(arrays["ceiling"][voxel], rel=1e-6)
        named = {name for name, inside in space.rois.items() if inside[voxel]}
        assert set(filter(None, row["regions"].split(";"))) == named
    assert rows[2]["r_ridgePixels"] == "n/a"


@pytest.mark.parametrize("betas", ["func.gii", "dtseries.nii"])
def test_surfaces(study, tmp_path, betas):
    subject = prepared(study, tmp_path, betas)
    arrays = evaluated(tmp_path / "study", len(subject.space), tmp_path / "prepared")
    export_scores(tmp_path / "study", tmp_path / "maps")
    for side, count in zip("LR", subject.space.shape, strict=True):
        name = f"sub-01_task-scenes_hemi-{side}_space-T1w_stat-r_desc-ridgeVeca8_statmap.shape.gii"
        image = nibabel.load(tmp_path / "maps" / name)
        (array,) = image.darrays
        own = subject.space.index[:, 0] == "LR".index(side)
        assert array.data.shape == (count,) and np.isfinite(array.data).sum() == own.sum()
        np.testing.assert_array_equal(array.data[subject.space.index[own, 1]], arrays["r_0"][own])
        assert image.meta["AnatomicalStructurePrimary"] == {"L": "CortexLeft", "R": "CortexRight"}[side]
    rows = table(tmp_path / "maps/sub-01_task-scenes_space-T1w_desc-scores_voxels.csv")
    assert {row["hemisphere"] for row in rows} == {"L", "R"} and rows[0]["vertex"] == "0" and "x_mm" not in rows[0]
    with pytest.raises(
        BrainDataError, match="expected formats gifti, csv of sub-01-T1w, which is a surface, got 'nifti'"
    ):
        export_scores(tmp_path / "study", tmp_path / "maps", formats=["nifti"])


def test_places_that_are_not_known(study, tmp_path):
    """Without an affine there is a table, and a NIfTI file that is asked for is refused."""
    person = study.subject("sim01")
    bare = study.with_subject(replace(person, space=replace(person.space, affine=None)))
    evaluated(tmp_path / "study", 40, "simulated", "sim01")
    (path,) = export_scores(tmp_path / "study", tmp_path / "maps", data=bare)
    assert path.name == "sub-sim01_desc-scores_voxels.csv" and len(table(path)) == 40
    with pytest.raises(BrainDataError, match="a volume without an affine, got 'nifti'"):
        export_scores(tmp_path / "study", tmp_path / "maps", ["nifti"], bare)
    with pytest.raises(BrainDataError, match="formats to be one of nifti, gifti, csv, got 'png'"):
        export_scores(tmp_path / "study", tmp_path / "maps", ["png"], bare)


def test_an_evaluation_that_is_still_in_memory(study, tmp_path):
    person = study.subject("sim01")
    scores = np.linspace(-1, 1, 40, dtype=np.float32)
    rows = [SimpleNamespace(model="ridge", features="grid", r=scores)] * 2
    run = SimpleNamespace(test=SimpleNamespace(subject=person), ceiling=None)
    paths = export_scores(SimpleNamespace(encoded=rows, study=run, record={}), tmp_path, ["nifti"])
    names = [path.name for path in paths if path.name.endswith(".nii.gz")]
    assert names[:2] == [f"sub-sim01_stat-r_desc-{label}_statmap.nii.gz" for label in ("ridgeGrid", "ridgeGridx2")]
    found = nibabel.load(tmp_path / names[0]).get_fdata()[tuple(person.space.index.T)]
    np.testing.assert_allclose(found, scores)


def test_from_the_command_line(study, tmp_path, capsys):
    prepared(study, tmp_path, "nii.gz")
    evaluated(tmp_path / "study", 40, "gone")
    words = ["brain", "export", "--evaluation", tmp_path / "study", "--out", tmp_path / "maps"]
    words = list(map(str, words))
    with pytest.raises(SystemExit, match=r"veca brain export: expected the prepared folder of sub-01, .*got 'gone'"):
        cli.main(words)
    cli.main([*words, "--data", str(tmp_path / "prepared"), "--formats", "csv"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("sub-01_task-scenes_space-T1w_desc-scores_voxels.csv") and Path(line).is_file()


def test_folders_that_are_no_evaluation(study, tmp_path):
    prepared(study, tmp_path, "nii.gz")
    with pytest.raises(LayoutError, match=r"an evaluation with record.json at .*bids, got none"):
        export_scores(tmp_path / "bids", tmp_path / "maps")
    evaluated(tmp_path / "short", 39, tmp_path / "prepared")
    with pytest.raises(AxisError, match=r"expected r_0 of 40 voxels, as sub-01 has, got \(39,\)"):
        export_scores(tmp_path / "short", tmp_path / "maps")
    evaluated(tmp_path / "other", 40, tmp_path / "prepared", "sub-02")
    with pytest.raises(BrainDataError, match=r"expected sub-02 in .*prepared, got sub-01"):
        export_scores(tmp_path / "other", tmp_path / "maps")
    path = tmp_path / "other/voxels.npz"
    np.savez(path, r_0=np.zeros(40))
    with pytest.raises(LayoutError, match=r"expected an array 'names' in .*voxels.npz, got r_0"):
        export_scores(tmp_path / "other", tmp_path / "maps")
    np.savez(path, r_7=np.zeros(40), names=NAMES)
    with pytest.raises(LayoutError, match=r"expected arrays of 3 models in .*voxels.npz, got 'r_7'"):
        export_scores(tmp_path / "other", tmp_path / "maps")
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a complete .npz file at .*voxels.npz, got something else"):
        export_scores(tmp_path / "other", tmp_path / "maps")
    assert not (tmp_path / "maps").exists()
