"""Bad BIDS folders: each error names the file, the field, what was expected and what was found."""

import re

import nibabel
import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, IdError, LayoutError, UnsafePickleError
from brainmodels.layouts import bids
from brainmodels.simulated import Preset, simulate
from tests.brainmodels.spoilt import spoil
from tests.brainmodels.written.bids import SLOPE, save, write_bids

DERIVED = "derivatives/glmsingle/sub-01"
ATLAS, NCSNR = (
    f"{DERIVED}/sub-01_space-T1w_atlas-sim_dseg.nii.gz",
    f"{DERIVED}/sub-01_space-T1w_stat-ncsnr_statmap.nii.gz",
)
EVENTS = "sub-01/ses-02/func/sub-01_ses-02_task-scenes_run-1_events.tsv"
BETAS = f"{DERIVED}/ses-02/sub-01_ses-02_task-scenes_space-T1w_desc-glmsingle_betas.nii.gz"
MASK = "derivatives/fmriprep/sub-01/ses-02/func/sub-01_ses-02_task-scenes_run-1_space-T1w_desc-brain_mask.nii.gz"


@pytest.fixture(scope="module")
def study():
    return simulate(Preset("study", (40,), (5, 4, 3), own=20, shared=4, sessions=2), seed=1)


@pytest.fixture
def written(study, tmp_path):
    return write_bids(study, tmp_path, "sim01")


def refused(root, kind, *words, subject="01", **options):
    """The message of an error that holds all words, of which paths of the folder are given relative to it."""
    with pytest.raises(kind) as error:
        bids.load(root, subject, **options)
    for word in words:
        assert str(word) in str(error.value), str(error.value)
    return str(error.value)


def edit(path, change):
    """Write a text file again, line by line: (number from 1, line) -> line or None."""
    lines = [change(number, line) for number, line in enumerate(path.read_text().splitlines(), 1)]
    path.write_text("\n".join(line for line in lines if line is not None) + "\n")


def replace_field(line, column, value):
    fields = line.split("\t")
    fields[column] = value
    return "\t".join(fields)


def revalued(path, change, affine=None):
    """Write a volume again with other values, as stored, or another affine."""
    image = nibabel.load(path)
    slope = SLOPE if "betas" in path.name else None
    values = np.asarray(image.dataobj.get_unscaled())
    save(path, change(values), image.affine if affine is None else affine, slope)


def test_folders_and_subjects(written, tmp_path):
    refused(tmp_path / "nowhere", LayoutError, f"expected a BIDS folder at {tmp_path / 'nowhere'}, got no such folder")
    refused(tmp_path, IdError, f"expected a subject of {tmp_path} (sub-01), got '02'; near: sub-01", subject="02")
    (tmp_path / "sub-03").mkdir()
    refused(tmp_path, LayoutError, f"expected *_events.tsv in {tmp_path / 'sub-03'}, got none", subject="03")
    refused(tmp_path, LayoutError, "expected a task of", "(scenes), got task='scene'; near: scenes", task="scene")
    refused(tmp_path, LayoutError, "expected sessions of", "(01, 02), got sessions='7'", sessions=7)
    refused(tmp_path, BrainDataError, "expected by to be one of image, concept, session, got 'class'", by="class")
    refused(tmp_path, LayoutError, f"derivatives at {tmp_path / 'elsewhere'}, got no such", derivatives="elsewhere")
    assert not bids.detect(tmp_path / "stimuli") and not bids.detect(tmp_path / "nowhere")


@pytest.mark.parametrize("column", ["onset", "duration", "stim_file"])
def test_a_missing_column_of_events(written, tmp_path, column):
    edit(tmp_path / EVENTS, lambda number, line: line.replace(column, f"{column}s") if number == 1 else line)
    refused(tmp_path, LayoutError, f"expected a column '{column}' in {tmp_path / EVENTS}, got ", f"near: {column}s")


def test_no_column_of_trial_types(written, tmp_path):
    edit(tmp_path / EVENTS, lambda number, line: line.replace("trial_type", "kind"))
    assert len(bids.load(tmp_path, "01").subject("sub-01").responses) == 72  # it is not needed without a filter
    refused(
        tmp_path, LayoutError, f"expected a column 'trial_type' in {tmp_path / EVENTS}, got onset", trial_type="image"
    )


def test_filters_that_leave_nothing(written, tmp_path):
    message = refused(tmp_path, LayoutError, "expected lines of trial_type 'images' in", trial_type="images")
    assert "got blank, image in 4 files" in message and message.endswith("near: image")
    refused(tmp_path, LayoutError, "expected lines of trial_type 'face'", trial_type=["image", "face"])
    for path in written.events.values():
        edit(path, lambda number, line: line if number == 1 else replace_field(line, 3, "n/a"))
    refused(
        tmp_path, LayoutError, "expected lines with an image in the column stim_file", "got none in 84 lines of 4 files"
    )


def test_values_of_events(written, tmp_path):
    path = tmp_path / EVENTS
    content = path.read_text()
    edit(path, lambda number, line: replace_field(line, 0, "soon") if number == 5 else line)
    refused(tmp_path, LayoutError, f"expected seconds in the column onset, line 5 of {path}, got 'soon'")
    path.write_text(content)
    edit(path, lambda number, line: replace_field(line, 0, "1.5") if number == 6 else line)
    refused(
        tmp_path, LayoutError, f"expected onsets that ascend in {path}", "got 1.5 in line 6", "sort the lines by onset"
    )
    path.write_text(content)
    edit(path, lambda number, line: replace_field(line, 1, "-1") if number == 4 else line)
    refused(tmp_path, LayoutError, f"expected a duration of 0 or more in line 4 of {path}, got '-1'")
    path.write_text(content)
    edit(path, lambda number, line: line.rpartition("\t")[0] if number == 7 else line)
    refused(tmp_path, LayoutError, f"expected 5 fields in line 7 of {path}, got 4")
    path.write_text(content)
    for name in ("../../secret.png", "/etc/passwd", "a\\b.png"):
        edit(path, lambda number, line, name=name: replace_field(line, 3, name) if number == 3 else line)
        refused(tmp_path, IdError, "expected a path below the folder of stimuli", f"line 3 of {path}, got {name!r}")
        path.write_text(content)
    edit(path, lambda number, line: replace_field(line, 2, "image") if number == 2 else line)
    refused(tmp_path, LayoutError, f"column stim_file of {path}, got 'n/a' in line 2", trial_type="image")


def test_a_missing_picture(written, tmp_path):
    edit(tmp_path / EVENTS, lambda number, line: replace_field(line, 3, "set1/00000x.png") if number == 3 else line)
    message = refused(
        tmp_path, IdError, "expected the picture of 'set1/00000x.png', which stim_file names in line 3 of"
    )
    assert f"{tmp_path / EVENTS}, at {tmp_path / 'stimuli/set1/00000x.png'}, got no such file; 1 of 25" in message
    assert "near: set" in message
    refused(
        tmp_path, LayoutError, f"a folder of stimuli at {tmp_path / 'pictures'}, got no such folder", stimuli="pictures"
    )


def test_more_betas_than_events(written, tmp_path):
    edit(tmp_path / EVENTS, lambda number, line: None if number == 4 else line)
    message = refused(tmp_path, LayoutError, f"expected 35 betas in {tmp_path / BETAS}, one for each trial of")
    assert "run-1_events.tsv, sub-01_ses-02_task-scenes_run-2_events.tsv, got 36; 6 lines of the events" in message


def test_files_of_one_session(written, tmp_path):
    twin = tmp_path / BETAS.replace("desc-glmsingle_betas.nii.gz", "desc-again_betas.nii.gz")
    twin.write_bytes((tmp_path / BETAS).read_bytes())
    message = refused(
        tmp_path, LayoutError, "expected one file of betas for session 02, run 1, got ", twin, tmp_path / BETAS
    )
    assert message.endswith("choose by betas=PATTERN or space=")
    twin.unlink()
    again = tmp_path / EVENTS.replace("task-scenes", "task-scenes_acq-hi")
    again.write_text((tmp_path / EVENTS).read_text())
    refused(tmp_path, LayoutError, "expected one events file of run 1 of session 02, got ", again, tmp_path / EVENTS)
    again.unlink()
    other = tmp_path / EVENTS.replace("task-scenes", "task-rest")
    other.write_text((tmp_path / EVENTS).read_text())
    refused(tmp_path, LayoutError, "expected events of one task in", "got rest, scenes; choose one by task=")
    assert len(bids.load(tmp_path, "01", task="scenes").subject("sub-01").responses) == 72
    other.rename(tmp_path / EVENTS.replace("ses-02_task", "ses-01_task"))
    refused(tmp_path, LayoutError, "expected files of ses-02 in its folder, got", "whose name says otherwise")


def test_a_session_without_betas(written, tmp_path):
    (tmp_path / BETAS).unlink()
    message = refused(tmp_path, LayoutError, "expected betas of session 02, run 1, whose events are", tmp_path / EVENTS)
    assert "got 1 files of other runs" in message and "pass sessions=" in message
    assert len(bids.load(tmp_path, "01", sessions="01").subject("sub-01").responses) == 36
    written.betas[1][0].unlink()
    refused(tmp_path, LayoutError, "expected betas of single trials in", "TYPED_FITHRF_GLMDENOISE_RR.npy", "got none")
    refused(tmp_path, LayoutError, "files of betas='*_bold.nii.gz' as a path or a pattern", betas="*_bold.nii.gz")


def test_spaces(written, tmp_path):
    refused(tmp_path, LayoutError, "expected betas of space='MNI' in", "got T1w", space="MNI")
    path = tmp_path / BETAS
    path.rename(str(path).replace("T1w", "MNI"))
    refused(tmp_path, LayoutError, "expected betas of one space in", "got MNI, T1w; choose one by space=")


def test_grids_are_compared(written, tmp_path):
    affine = nibabel.load(tmp_path / BETAS).affine.copy()
    affine[0, 3] += 3
    for name in (BETAS, ATLAS, NCSNR, MASK):
        kept = (tmp_path / name).read_bytes()
        revalued(tmp_path / name, lambda values: values, affine)
        message = refused(
            tmp_path, AxisError, "expected the grid of", f"in {tmp_path / name}, got corners that lie up to 3"
        )
        assert "desc-brain_mask.nii.gz" in message and "affines='ignore'" in message
        assert bids.load(tmp_path, "01", affines="ignore")
        revalued(tmp_path / name, lambda values: values[1:])
        refused(tmp_path, AxisError, f"in {tmp_path / name}, on the grid of", "got (4, 4, 3", affines="ignore")
        (tmp_path / name).write_bytes(kept)


def test_masks(written, tmp_path):
    masks = sorted((tmp_path / "derivatives/fmriprep").rglob("func/*_mask.nii.gz"))
    revalued(tmp_path / MASK, lambda values: values * 0)
    refused(
        tmp_path,
        AxisError,
        f"expected voxels > 0 in the mask {masks[0]}, got none of 60 in common with 3 further masks",
    )
    for path in masks:
        path.unlink()
    (tmp_path / "derivatives/fmriprep/sub-01/anat/sub-01_desc-brain_mask.nii.gz").unlink()
    message = refused(
        tmp_path, LayoutError, "expected a brain mask *_desc-brain_mask.nii.gz of space-T1w in", "got none"
    )
    assert "mask=FILE, or pass mask='all'" in message


def test_a_mask_of_dead_voxels(written, tmp_path):
    outside = np.ones((5, 4, 3), np.uint8)
    outside[tuple(written.index.T)] = 0
    save(tmp_path / "outside.nii.gz", outside, nibabel.load(tmp_path / MASK).affine)
    message = refused(
        tmp_path, AxisError, f"expected voxels of {tmp_path / 'outside.nii.gz'} whose betas vary", mask="outside.nii.gz"
    )
    assert "got none: 20 are constant and 0 not finite; is the mask that of these betas?" in message


def test_labels(written, tmp_path):
    table = tmp_path / "derivatives/glmsingle/atlas-sim_dseg.tsv"
    content = table.read_text()
    edit(table, lambda number, line: None if line.startswith("3\t") else line)
    refused(
        tmp_path,
        LayoutError,
        f"expected every label of {tmp_path / ATLAS} in the column index of {table}, got 3 without",
    )
    table.write_text(content.replace("index", "label"))
    refused(tmp_path, LayoutError, f"expected a column 'index' in {table}, got label, name")
    table.write_text(content.replace("2\t", "two\t"))
    refused(tmp_path, LayoutError, f"expected a whole number of index in line 4 of {table}, got 'two'")
    table.write_text(content.replace("2\tV4", "2\tV1"))
    refused(tmp_path, LayoutError, f"expected labels and names that differ in {table}, got 2 'V1' again")
    table.write_text(content)
    revalued(tmp_path / ATLAS, lambda values: values * 0)
    refused(
        tmp_path, AxisError, f"expected voxels of {tmp_path / ATLAS} inside the mask, got none with a label above 0"
    )
    revalued(tmp_path / ATLAS, lambda values: values + 0.5)
    refused(tmp_path, LayoutError, f"expected whole numbers in {tmp_path / ATLAS}")
    refused(tmp_path, LayoutError, "files of atlas='*wang*'", atlas="*wang*")


def test_reliability_and_r2(written, tmp_path):
    twin = tmp_path / NCSNR.replace("stat-ncsnr_statmap", "ncsnr")
    twin.write_bytes((tmp_path / NCSNR).read_bytes())
    refused(tmp_path, LayoutError, "expected one file of ncsnr of space-T1w in", twin, "choose one by ncsnr=FILE")
    assert bids.load(tmp_path, "01", ncsnr=str(twin.relative_to(tmp_path))).subject("sub-01").space.ncsnr is not None
    refused(tmp_path, LayoutError, "expected R2 for r2_min=5", ncsnr=NCSNR, r2_min=5)
    refused(tmp_path, AxisError, "with an R2 of 500 % or more, got", ncsnr=NCSNR, r2=NCSNR, r2_min=500)


def test_pickles(study, tmp_path):
    written = write_bids(study, tmp_path, "sim01", betas="npy")
    path = written.betas[1][0]
    message = refused(tmp_path, UnsafePickleError, f"expected arrays in {path}, got a pickle, which can run code")
    assert f"veca brain convert --file {path} --out {path.with_suffix('.npz')}, or pass allow_pickle=true" in message
    content = np.load(path, allow_pickle=True).item()
    np.save(path, {"betas": content["betasmd"]}, allow_pickle=True)
    refused(tmp_path, LayoutError, f"expected a key 'betasmd' in {path}, got betas", allow_pickle=True)
    np.save(path, {**content, "noisepool": re.compile("x")}, allow_pickle=True)
    refused(tmp_path, UnsafePickleError, "a pickle that asks for re._compile", path, allow_pickle=True)
    np.save(path, {"betasmd": content["betasmd"].T}, allow_pickle=True)
    message = refused(
        tmp_path,
        AxisError,
        f"expected betasmd (5, 4, 3, 'trials') in {path}",
        "or (43, trials) for the voxels",
        allow_pickle=True,
    )
    assert "got (36, 3, 4, 5); its axes are reversed, as MATLAB writes them" in message
    path.write_bytes(path.read_bytes()[:400])
    refused(tmp_path, LayoutError, "expected a complete pickle in", path, allow_pickle=True)


def test_damaged_files(written, tmp_path):
    content = (tmp_path / BETAS).read_bytes()
    spoil(tmp_path / BETAS)
    refused(tmp_path, LayoutError, "expected values", tmp_path / BETAS, "CRC")
    (tmp_path / BETAS).write_bytes(content[:500])
    refused(tmp_path, LayoutError, tmp_path / BETAS, "copy it again")
    (tmp_path / BETAS).write_bytes(content)
    path = written.events[1, 1]
    path.write_bytes(path.read_text().encode("utf-16"))
    refused(tmp_path, LayoutError, f"expected text in UTF-8 in {path}")


def test_hemispheres(study, tmp_path):
    written = write_bids(study, tmp_path, "sim01", betas="func.gii")
    left, right = written.betas[2]
    content = right.read_bytes()
    right.unlink()
    refused(tmp_path, LayoutError, f"expected a file of hemi-R beside {left}, got none")
    right.write_text("<gifti>")
    refused(tmp_path, LayoutError, f"expected a GIFTI file at {right}, got: ")
    image = nibabel.load(left)
    image.darrays = image.darrays[:5]
    nibabel.save(image, right)
    refused(tmp_path, AxisError, f"expected as many maps in {right} as in {left}, 36, got 5")
    image = nibabel.load(left)
    for array in image.darrays:
        array.data = array.data[:-1]
        array.dims = list(array.data.shape)
    nibabel.save(image, right)
    refused(tmp_path, AxisError, f"expected 25 vertices of the right hemisphere in {right}, as in", "got 24")
    right.write_bytes(content)
    label = tmp_path / DERIVED / "sub-01_hemi-R_space-T1w_atlas-sim_dseg.label.gii"
    image = nibabel.load(label)
    image.labeltable.labels = image.labeltable.labels[:2]
    nibabel.save(image, label)
    refused(tmp_path, LayoutError, f"expected a name of every label in the label table of {label}, got ", "without one")


def test_columns_of_cifti_files(study, tmp_path):
    written = write_bids(study, tmp_path, "sim01", betas="dtseries.nii")
    (path,) = written.betas[2]
    image = nibabel.load(path)
    axis = image.header.get_axis(1)
    nibabel.save(nibabel.Cifti2Image(image.get_fdata()[:, 1:], (image.header.get_axis(0), axis[1:])), path)
    message = refused(
        tmp_path, AxisError, "expected the 40 vertices of", f"in {path}, of surfaces with (25, 25) vertices"
    )
    assert "got 39 of surfaces with (25, 25)" in message
    below = axis[np.asarray([name == "CIFTI_STRUCTURE_THALAMUS_LEFT" for name in axis.name])]
    nibabel.save(nibabel.Cifti2Image(image.get_fdata()[:, -4:], (image.header.get_axis(0), below)), path)
    refused(tmp_path, LayoutError, f"expected vertices of the cortex in {path}, got thalamus_left")


def test_ids_without_folders_have_no_concept(study, tmp_path):
    write_bids(study, tmp_path, "sim01", folder=lambda name: ".")
    for path in (tmp_path / "sub-01").rglob("*_events.tsv"):
        path.write_text(path.read_text().replace("./", ""))
    refused(tmp_path, IdError, "expected a folder in the id of each image for by='concept'", "got '0", by="concept")
    assert bids.load(tmp_path, "01").split("holdout_image")


def test_images_of_one_folder_are_one_concept(study, tmp_path):
    write_bids(study, tmp_path, "sim01", folder=lambda name: "all")
    refused(tmp_path, BrainDataError, "two or more concepts for by='concept', got all in 'all'", by="concept")
