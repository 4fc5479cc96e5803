"""BOLD5000: volumes and region arrays read back as written; trials stay with their images, or the folder is refused."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import ArrayImages, BrainDataset, Responses, StimulusSet, Subject, TrialTable, VoxelSpace
from brainmodels.errors import AxisError, BrainDataError, IdError, LayoutError
from brainmodels.layouts import bold5000
from tests.brainmodels.same import assert_same
from tests.brainmodels.spoilt import litter, spoil
from tests.brainmodels.written import bold5000 as write_bold5000
from tests.brainmodels.written.flat import write_volume

NAMES = ["n01945685_2329", "COCO_train2014_000000396550", "concert5"] + [f"scene{k}" for k in range(37)]
REPEATED = 4


def made(seed=0):
    """40 images in 37 + 17 trials of two sessions; four images are shown four times, one three times."""
    rng = np.random.default_rng(seed)
    ids = [f"b5k:{name}" for name in NAMES]
    stimuli = StimulusSet(ids, ArrayImages(rng.integers(0, 256, (len(ids), 16, 16, 3), np.uint8)))
    shown = rng.permutation(np.concatenate([np.arange(len(ids)), np.repeat(np.arange(REPEATED), 3), [4, 4]]))
    mask = rng.random((5, 6, 4)) < 0.5
    rois = {name: rng.random(mask.sum()) < 0.3 for name in ("LHEarlyVis", "RHEarlyVis", "LHLOC", "RHRSC")}
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -10, 4, 7
    space = VoxelSpace.from_mask("bold5000-T1w-2mm", mask, affine, rois=rois)
    session = np.repeat([1, 2], [37, len(shown) - 37])
    run = np.repeat([1, -1], [37, len(shown) - 37])  # 37 trials are a run, 17 are none
    trials = TrialTable.of(np.array(ids)[shown], session, run)
    values = rng.normal(size=(len(shown), len(space))).astype(np.float32)
    return BrainDataset([Subject("CSI2", Responses(values, trials), space)], stimuli)


@pytest.fixture
def written(tmp_path):
    dataset = made()
    write_bold5000.write(dataset, tmp_path, misspelt={"LHLOC": "LHLO", "RHRSC": "RHRRSC"})
    return dataset, tmp_path


def betas(root, session, kind="TYPED-FITHRF-GLMDENOISE-RR"):
    return root / f"CSI2_GLMbetas-{kind}_ses-{session:02d}.nii.gz"


def test_round_trip_with_misspelt_masks_and_the_masks_affine(written):
    dataset, root = written
    litter(root)
    assert bold5000.detect(root)
    loaded = bold5000.load(root, "CSI2")
    assert_same(loaded, dataset)
    assert list(loaded.subject("CSI2").space.rois) == ["LHEarlyVis", "RHEarlyVis", "LHLOC", "RHRSC"]
    assert loaded.subject("CSI2").responses.unit == "percent signal change"


def test_split_tests_on_repeated_images(written):
    dataset, root = written
    splits = bold5000.load(root, 2).splits
    repeated = set(dataset.stimuli.ids[: REPEATED + 1].tolist())
    assert splits["bold5000_repeated"].test == repeated
    assert splits["bold5000_repeated"].train | splits["bold5000_repeated"].val == set(dataset.stimuli.ids) - repeated


def test_one_session_keeps_its_images(written):
    dataset, root = written
    whole, part = dataset.subject("CSI2").responses, bold5000.load(root, 2, sessions=[2]).subject("CSI2").responses
    np.testing.assert_array_equal(part.trials.image_id, whole.trials.image_id[37:])
    np.testing.assert_array_equal(part.trials.trial, np.arange(37, len(whole)))
    np.testing.assert_array_equal(part.values, whole.values[37:])


def test_region_arrays(tmp_path):
    dataset = made()
    write_bold5000.write(dataset, tmp_path, arrays=True)
    loaded, meant = bold5000.load(tmp_path, 2).subject("CSI2"), dataset.subject("CSI2")
    np.testing.assert_array_equal(loaded.responses.trials.image_id, meant.responses.trials.image_id)
    assert (loaded.responses.trials.session == -1).all()
    for name, region in meant.space.rois.items():
        columns = loaded.space.rois[name]
        np.testing.assert_array_equal(loaded.responses.values[:, columns], meant.responses.values[:, region], name)
    assert len(loaded.space) == sum(region.sum() for region in meant.space.rois.values())


def test_pictures_are_not_needed_until_they_are_read(written):
    _, root = written
    (root / "Scene_Stimuli").rename(root / "elsewhere")
    dataset = bold5000.load(root, 2)
    with pytest.raises(LayoutError, match="no folder of images was given; pass images="):
        dataset.stimuli.image("b5k:concert5")
    assert bold5000.load(root, 2, images="elsewhere").stimuli.image("b5k:concert5").shape == (16, 16, 3)
    with pytest.raises(LayoutError, match=r"expected a folder of images at .*nowhere"):
        bold5000.load(root, 2, images="nowhere")


def test_trials_and_names_differ_in_number(written):
    dataset, root = written
    path = root / "CSI2_imgnames.txt"
    path.write_text(path.read_text() + "more.jpg\n")
    count = len(dataset.subject("CSI2").responses)
    with pytest.raises(LayoutError, match=rf"of {count + 1} trials in all.*got sessions \[1, 2\] of {count}"):
        bold5000.load(root, 2)


def test_missing_session_is_not_guessed(written):
    dataset, root = written
    betas(root, 1).unlink()
    count = len(dataset.subject("CSI2").responses)
    with pytest.raises(LayoutError, match=rf"of {count} trials in all.*got sessions \[2\] of {count - 37}"):
        bold5000.load(root, 2)


def test_kinds_of_betas_do_not_mix(written):
    dataset, root = written
    for session in (1, 2):
        betas(root, session, "TYPEA-ASSUMEHRF").write_bytes(betas(root, session).read_bytes())
    with pytest.raises(LayoutError, match=r"betas of one kind of CSI2 .*, got TYPEA, TYPED; pass betas='TYPED'"):
        bold5000.load(root, 2)
    assert_same(bold5000.load(root, 2, betas="TYPED"), dataset)
    with pytest.raises(LayoutError, match="expected TYPEC of CSI2"):
        bold5000.load(root, 2, betas="TYPEC")


def test_official_misspelling_of_type_b(written):
    dataset, root = written
    for session in (1, 2):
        betas(root, session).rename(betas(root, session, "TYBEB-FITHRF"))
    loaded = bold5000.load(root, 2, betas="TYPEB")
    assert_same(loaded, dataset)
    assert loaded.subject("CSI2").provenance["betas"] == "TYPEB"


def test_no_betas_of_a_subject(written):
    _, root = written
    with pytest.raises(LayoutError, match=r"expected betas of CSI1 in .*, got none"):
        bold5000.load(root, 1)


def test_one_stem_of_two_files(written):
    _, root = written
    path = root / "CSI2_imgnames.txt"
    path.write_text(path.read_text().replace("rep_scene", "scene").replace("scene7.png", "concert5.jpg", 1))
    with pytest.raises(
        IdError, match=r"one file of b5k:concert5 in .*, got concert5\.(png|jpg) and concert5\.(png|jpg)"
    ):
        bold5000.load(root, 2)


def test_masks_of_another_shape(written):
    dataset, root = written
    affine = dataset.subject("CSI2").space.affine
    write_volume(root / "sub-CSI2" / "sub-CSI2_mask-LHPPA.nii.gz", np.ones((5, 6, 5), np.uint8), affine)
    with pytest.raises(
        AxisError, match=re.escape("expected a volume (5, 6, 4)") + r".*LHPPA.*" + re.escape("got (5, 6, 5)")
    ):
        bold5000.load(root, 2)
    write_volume(root / "CSI2_brainmask.nii.gz", np.ones((5, 6, 5), np.uint8), affine)
    with pytest.raises(AxisError, match=re.escape("(5, 6, 5, 'trials')") + ".*" + re.escape("got (5, 6, 4, 37)")):
        bold5000.load(root, 2)


def test_regions_on_another_grid_and_of_one_name(written):
    """The affine of betas is known to be wrong, those of masks count."""
    dataset, root = written
    path = root / "sub-CSI2" / "sub-CSI2_mask-LHEarlyVis.nii.gz"
    space = dataset.subject("CSI2").space
    volume = space.volume(space.rois["LHEarlyVis"].astype(np.float32), 0)
    write_volume(path, volume, space.affine + np.diag([0, 0, 0.2, 0]))
    with pytest.raises(AxisError, match=r"LHEarlyVis.*corners that lie up to 0.6 mm apart; .*affines='ignore'"):
        bold5000.load(root, 2)
    loaded = bold5000.load(root, 2, affines="ignore").subject("CSI2").space
    np.testing.assert_array_equal(loaded.rois["LHEarlyVis"], space.rois["LHEarlyVis"])
    write_volume(path.with_name("sub-CSI2_mask-LHEarlyVis.nii"), volume, space.affine)
    with pytest.raises(LayoutError, match="one file of LHEarlyVis of CSI2"):
        bold5000.load(root, 2)


def test_damage_that_only_the_checksum_shows(written):
    _, root = written
    spoil(betas(root, 2))
    with pytest.raises(LayoutError, match=r"ses-02\.nii\.gz, got: CRC check failed"):
        bold5000.load(root, 2)


def test_truncated_volume(written):
    _, root = written
    content = betas(root, 2).read_bytes()
    betas(root, 2).write_bytes(content[: len(content) // 2])
    with pytest.raises(LayoutError, match=r"ses-02\.nii\.gz, got: .*; copy it again"):
        bold5000.load(root, 2)


def test_nan_voxels_are_named_or_dropped(written, tmp_path, caplog):
    dataset, _ = written
    person = dataset.subject("CSI2")
    values = person.responses.values.copy()
    values[40, 3] = values[2, 11] = np.nan
    spoilt = dataset.with_subject(replace(person, responses=replace(person.responses, values=values)))
    write_bold5000.write(spoilt, tmp_path / "spoilt")
    image = person.responses.trials.image_id[2]
    with pytest.raises(LayoutError, match=rf"nan at trial 2 \(image {image}\), voxel 11.*pass nan_voxels='drop'"):
        bold5000.load(tmp_path / "spoilt", 2)
    with pytest.raises(BrainDataError, match="nan_voxels 'raise' or 'drop', got 'zero'"):
        bold5000.load(tmp_path / "spoilt", 2, nan_voxels="zero")
    with caplog.at_level(logging.WARNING):
        loaded = bold5000.load(tmp_path / "spoilt", 2, nan_voxels="drop").subject("CSI2")
    assert f"CSI2: 2 of {len(person.space)} voxels dropped" in caplog.text
    good = np.delete(np.arange(len(person.space)), [3, 11])
    np.testing.assert_array_equal(loaded.responses.values, person.responses.values[:, good])
    np.testing.assert_array_equal(loaded.space.index, person.space.index[good])
    np.testing.assert_array_equal(loaded.space.rois["LHLOC"], person.space.rois["LHLOC"][good])
