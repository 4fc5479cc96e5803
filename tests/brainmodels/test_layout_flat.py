"""Anybody's arrays: read back as they were written, and every file that is wrong is named."""

import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from brainmodels.errors import AxisError, IdError, LayoutError, UnsafePickleError
from brainmodels.layouts import flat
from tests.brainmodels.made import made_dataset
from tests.brainmodels.same import assert_same
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written import flat as write_flat


def made(dtype=np.float32, **space):
    """36 trials of 12 images, with planted reliability."""
    dataset = made_dataset(dtype=dtype)
    (person,) = dataset.subjects.values()
    ncsnr = np.linspace(0.1, 1, len(person.space)).astype(np.float32)
    return dataset.with_subject(replace(person, space=replace(person.space, ncsnr=ncsnr, **space)))


@pytest.fixture
def written(tmp_path):
    dataset = made()
    write_flat.write(dataset, tmp_path, split=dataset.split("made"))
    return dataset, tmp_path


@pytest.mark.parametrize("dtype", [np.int16, np.float16, np.float32])
@pytest.mark.parametrize(
    ("ids", "images"), [(".csv", "files"), (".npy", "array"), (".txt", "files"), (".json", "array")]
)
def test_round_trip(tmp_path, dtype, ids, images):
    dataset = made(dtype)
    scale = dataset.subject("subj01").responses.scale
    write_flat.write(dataset, tmp_path, ids=ids, images=images, split=dataset.split("made"))
    litter(tmp_path)
    assert flat.detect(tmp_path)
    loaded = flat.load(tmp_path, "subj01", namespace="sim", scale=scale)
    assert_same(loaded, dataset)
    assert loaded.split("given").test == dataset.split("made").test
    assert (
        loaded.split("given").train | loaded.split("given").val == set(dataset.stimuli.ids) - dataset.split("made").test
    )


def test_values_are_mapped_and_never_copied(written):
    _, root = written
    values = flat.load(root, "subj01", namespace="sim").subject("subj01").responses.values
    assert isinstance(values, np.memmap) and not values.flags.writeable
    row = np.load(root / "Y.npy", mmap_mode="r+")
    row[3, 4] = 77
    row.flush()
    assert values[3, 4] == 77


def test_files_of_a_subject_win_over_shared_ones(tmp_path):
    for number in (1, 2):
        dataset = made_dataset(seed=number)
        write_flat.write(dataset, tmp_path / f"subj0{number}")
    (tmp_path / "subj01" / "images").rename(tmp_path / "images")
    np.save(tmp_path / "Y.npy", np.zeros((36, 2), np.float32))
    first, second = (flat.load(tmp_path, f"subj0{number}").subject(f"subj0{number}") for number in (1, 2))
    np.testing.assert_array_equal(first.responses.values, made_dataset(seed=1).subject("subj01").responses.values)
    np.testing.assert_array_equal(second.responses.values, made_dataset(seed=2).subject("subj01").responses.values)


def test_holdout_follows_ids_and_not_rows(tmp_path):
    dataset = made_dataset(20, 2)
    write_flat.write(dataset, tmp_path / "one")
    order = np.random.default_rng(1).permutation(40)
    person = dataset.subject("subj01")
    write_flat.write(
        dataset.with_subject(replace(person, responses=person.responses.subset(order))), tmp_path / "other"
    )
    first, second = (flat.load(tmp_path / name, holdout=0.3).split("holdout_image") for name in ("one", "other"))
    assert first.hash == second.hash and len(first.test) == 6
    assert flat.load(tmp_path / "one", holdout=0.3, seed=1).split("holdout_image").test != first.test


def test_rois_as_volumes(written):
    dataset, root = written
    space = dataset.subject("subj01").space
    (root / "rois" / "V1.npy").unlink()
    volume = space.volume(space.rois["V1"].astype(np.float32), 0).astype(np.uint8)
    write_flat.write_volume(root / "rois" / "V1.nii.gz", volume, space.affine)
    assert_same(flat.load(root, namespace="sim"), dataset)
    turned = space.affine @ np.diag([-1.0, 1, 1, 1])
    turned[:3, 3] += space.affine[:3, 0] * (space.shape[0] - 1)
    write_flat.write_volume(root / "rois" / "V1.nii.gz", volume[::-1], turned)  # the same places, x the other way
    with pytest.raises(AxisError, match=r"grid of .*mask\.nii\.gz in .*V1\.nii\.gz, got corners .*affines='ignore'"):
        flat.load(root)
    write_flat.write_volume(root / "rois" / "V1.nii.gz", volume, turned)
    assert_same(flat.load(root, namespace="sim", affines="ignore"), dataset)


def test_regions_have_the_whole_names_of_their_files(written):
    """Names were cut at the first dot, so that lh.V1 and lh.V2 became one region "lh"."""
    dataset, root = written
    count = len(dataset.subject("subj01").space)
    for number, name in enumerate(("lh.V1", "lh.V2", "rh.V1", "rh.V2")):
        np.save(root / "rois" / f"{name}.npy", np.arange(count) % 4 == number)
    (root / "rois" / "._lh.V1.npy").write_bytes(b"\0\5\x16\7")
    rois = flat.load(root).subject("subj01").space.rois
    assert set(rois) == {*dataset.subject("subj01").space.rois, "lh.V1", "lh.V2", "rh.V1", "rh.V2"}
    np.testing.assert_array_equal(np.flatnonzero(rois["rh.V1"]), np.arange(2, count, 4))
    (root / "rois" / "lh.V1.nii.gz").write_bytes(b"")
    with pytest.raises(LayoutError, match=r"one file of 'lh.V1' in .*rois, got lh.V1.nii.gz and lh.V1.npy"):
        flat.load(root)


@pytest.mark.parametrize("ids", [".csv", ".npy", ".txt", ".json"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_ids_and_files_in_different_unicode_forms(tmp_path, ids, forms):
    """File systems of macOS take letters with accents apart."""
    of_ids, of_files = ([unicodedata.normalize(form, f"é{k}") for k in range(12)] for form in forms)
    np.save(tmp_path / "Y.npy", np.random.default_rng(0).standard_normal((12, 3), np.float32))
    if ids == ".csv":
        (tmp_path / "ids.csv").write_text("\n".join(["image_id", *of_ids]), encoding="utf-8-sig")
    else:
        write_flat.write_list(tmp_path / f"ids{ids}", of_ids)
    write_flat.write_list(tmp_path / "test_ids.txt", of_files[:2])
    (tmp_path / "images").mkdir()
    for number, name in enumerate(of_files):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "images" / f"{name}.png")
    dataset = flat.load(tmp_path)
    assert dataset.split("given").test == {"\xe90", "\xe91"}
    for form in (*of_ids, *of_files):  # either form finds the picture
        assert dataset.stimuli.image(form)[0, 0, 0] == int(form[-1]) + 10 * (len(form) > 2 and form[-2] == "1")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json"])
def test_encodings_of_lists(written, suffix, encoding):
    """A byte order mark is no part of the first id, and other encodings are named with their file."""
    _, root = written
    ids = [row.split(",")[0] for row in (root / "ids.csv").read_text().split()[1:]]
    (root / "ids.csv").unlink()
    text = {".txt": "\n".join(ids), ".csv": "\n".join(["image_id,note", *(f"{x},ä" for x in ids)])}
    text[".json"] = json.dumps(ids)
    content = text[suffix] + ("\xe4" if encoding == "latin-1" and suffix != ".csv" else "")
    (root / f"ids{suffix}").write_text(content, encoding=encoding)
    if encoding == "utf-8-sig":
        assert len(flat.load(root).stimuli) == 12
        return
    with pytest.raises(LayoutError, match=rf"expected text in UTF-8 in .*ids{suffix}, got"):
        flat.load(root)


def test_without_a_mask_voxels_lie_in_a_row(written):
    _, root = written
    (root / "mask.nii.gz").unlink()
    space = flat.load(root).subject("subj01").space
    np.testing.assert_array_equal(space.index[:, 0], np.arange(len(space)))
    assert space.affine is None and not space.index[:, 1:].any()


def test_missing_responses(written):
    _, root = written
    with pytest.raises(LayoutError, match=r"expected responses at .*betas\.npy, got no such path"):
        flat.load(root, responses="betas.npy")
    with pytest.raises(LayoutError, match=r"expected the mask at .*msk\.nii\.gz.*near: mask\.nii\.gz"):
        flat.load(root, mask="msk.nii.gz")
    with pytest.raises(LayoutError, match="expected a folder at"):
        flat.load(root / "nowhere")


def test_no_ids_means_unknown_order(written):
    _, root = written
    (root / "ids.csv").unlink()
    with pytest.raises(IdError, match="row order unknown; pass ids="):
        flat.load(root)


def test_two_lists_of_ids_are_ambiguous(written):
    _, root = written
    (root / "ids.txt").write_text("a\n")
    with pytest.raises(LayoutError, match=r"expected one of .*ids\.txt.*ids\.csv, got all of them"):
        flat.load(root)


@pytest.mark.parametrize(("count", "text"), [(35, "got 35"), (37, "got 37")])
def test_wrong_number_of_ids(written, count, text):
    _, root = written
    names = [f"{k % 12:05d}" for k in range(count)]
    write_flat.write_list(root / "names.txt", names)
    with pytest.raises(IdError, match=f"expected 36 ids in .*names.txt.* {text}"):
        flat.load(root, ids="names.txt")


def test_transposed_responses_are_recognised(written):
    _, root = written
    np.save(root / "Y.npy", np.load(root / "Y.npy").T)
    with pytest.raises(IdError, match="got 36; the responses look transposed"):
        flat.load(root)


def test_repeats_as_a_third_axis(written):
    _, root = written
    np.save(root / "Y.npy", np.load(root / "Y.npy").reshape(12, 3, -1))
    with pytest.raises(
        AxisError, match=r"expected \(trials, voxels\).*got shape \(12, 3, \d+\); put repeats into rows"
    ):
        flat.load(root)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_with_trial_image_and_voxel(written, bad):
    dataset, root = written
    values = np.load(root / "Y.npy")
    values[[7, 20], [5, 6]] = bad
    np.save(root / "Y.npy", values)
    image = dataset.subject("subj01").responses.trials.image_id[7].removeprefix("sim:")
    match = (
        rf"expected finite values in .*Y\.npy, got {bad} at trial 7 \(image {image}\), voxel 5; 2 values of 2 voxels"
    )
    with pytest.raises(LayoutError, match=match):
        flat.load(root)


@pytest.mark.parametrize("cut", [4, -4])
def test_an_array_of_another_length_than_its_header(written, cut):
    _, root = written
    content = (root / "Y.npy").read_bytes()
    (root / "Y.npy").write_bytes(content[:-cut] if cut > 0 else content + bytes(-cut))
    state = "truncated" if cut > 0 else "longer than its header says"
    match = rf"expected {len(content)} bytes of .*Y\.npy.*got {len(content) - cut}: the file is {state}"
    with pytest.raises(LayoutError, match=match):
        flat.load(root)


def test_something_else_under_the_name_of_an_array(written):
    _, root = written
    (root / "Y.npy").write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(LayoutError, match=r"expected a \.npy file at .*Y\.npy, got something else"):
        flat.load(root)


def test_pickled_ids_are_refused(written):
    _, root = written
    np.save(root / "objects.npy", np.array(["a", 1], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafePickleError, match=r"objects\.npy"):
        flat.load(root, ids="objects.npy")


def test_an_image_that_is_not_in_the_folder(written):
    _, root = written
    (root / "images" / "00007.png").rename(root / "images" / "00077.png")
    with pytest.raises(IdError, match=r"picture of each of 12 images.*got none of 1, such as '00007'; near: .*00077"):
        flat.load(root)


def test_two_pictures_of_one_stem(written):
    _, root = written
    (root / "images" / "more").mkdir()
    (root / "images" / "more" / "00007.jpg").write_bytes(b"")
    with pytest.raises(IdError, match="expected one picture '00007'"):
        flat.load(root)


def test_an_array_of_images_needs_ids_of_its_own_where_trials_repeat(tmp_path):
    write_flat.write(made_dataset(), tmp_path, images="array")
    (tmp_path / "image_ids.json").unlink()
    with pytest.raises(IdError, match=r"expected ids of the 12 images.*pass image_ids="):
        flat.load(tmp_path)


def test_unknown_test_image(written):
    _, root = written
    write_flat.write_list(root / "test_ids.txt", ["00011", "0012"])
    with pytest.raises(IdError, match="got '0012' and 0 more"):
        flat.load(root)


def wrong_mask(root, inside):
    """Replaces the mask by one whose values are given by a function of the true mask."""
    import nibabel

    image = nibabel.load(root / "mask.nii.gz")
    true = np.asarray(image.dataobj) > 0
    write_flat.write_volume(root / "mask.nii.gz", inside(true).astype(np.int16), image.affine)
    return true


def test_inverted_mask(written):
    _, root = written
    true = wrong_mask(root, lambda mask: ~mask)
    with pytest.raises(
        AxisError, match=rf"expected {true.sum()} voxels > 0 .*got {(~true).sum()}.*the mask is inverted"
    ):
        flat.load(root)


def test_mask_of_minus_one_zero_one_cut_with_the_wrong_comparison(written):
    """nsdgeneral holds -1, 0 and 1: `!= -1` keeps seven times too many voxels (cvnlab/nsddatapaper#1)."""
    _, root = written

    def labelled(mask):
        labels = np.where(mask, 1, -1)
        labels[tuple(np.argwhere(mask)[0])] = 0  # brain outside the region, taken in by the wrong comparison
        return labels

    true = wrong_mask(root, labelled)
    with pytest.raises(AxisError, match=rf"expected {true.sum()} voxels > 0 .*got {true.sum() - 1}.*did you use != -1"):
        flat.load(root)


def test_region_of_another_length(written):
    _, root = written
    np.save(root / "rois" / "V1.npy", np.ones(3, bool))
    with pytest.raises(AxisError, match=r"zeros and ones in .*V1\.npy.*got bool \(3,\)"):
        flat.load(root)


def test_region_outside_the_mask(written):
    dataset, root = written
    space = dataset.subject("subj01").space
    outside = np.ones(space.shape, np.uint8)
    outside[tuple(space.index.T)] = 0
    write_flat.write_volume(root / "rois" / "far.nii.gz", outside, space.affine)
    with pytest.raises(AxisError, match=rf"far\.nii\.gz inside the mask, got none of {outside.sum()}"):
        flat.load(root)


def test_ncsnr_of_another_length(written):
    _, root = written
    np.save(root / "ncsnr.npy", np.ones(2))
    with pytest.raises(AxisError, match=r"ncsnr\.npy, got shape \(2,\)"):
        flat.load(root)


def test_session_that_is_no_number(written):
    _, root = written
    text = (root / "ids.csv").read_text().replace(",1,1,", ",first,1,", 1)
    (root / "ids.csv").write_text(text)
    with pytest.raises(LayoutError, match=r"whole numbers of session in .*ids\.csv.*first"):
        flat.load(root)


def test_table_without_image_id(written):
    _, root = written
    text = (root / "ids.csv").read_text().replace("image_id", "image")
    (root / "ids.csv").write_text(text)
    with pytest.raises(
        LayoutError, match=r"expected a column 'image_id' in .*ids\.csv, got image, session.*near: image"
    ):
        flat.load(root)


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_lists_of_ids_are_tables(written, suffix):
    """Ids of rows and of test images, with tabs as BIDS has them."""
    dataset, root = written
    lines = (root / "ids.csv").read_text()
    (root / "ids.csv").unlink()
    (root / f"ids{suffix}").write_text(lines.replace(",", "\t") if suffix == ".tsv" else lines)
    test = [name.split(":")[1] for name in sorted(dataset.split("made").test)]
    (root / "test_ids.txt").unlink()
    (root / f"test_ids{suffix}").write_text("\n".join(["image_id", *test]) + "\n")
    loaded = flat.load(root, "subj01", namespace="sim")
    assert_same(loaded, dataset)
    assert loaded.split("given").test == dataset.split("made").test
    (root / f"test_ids{suffix}").write_text("id\n" + "\n".join(test) + "\n")
    with pytest.raises(LayoutError, match=rf"expected a column 'image_id' in .*test_ids\{suffix}, got id"):
        flat.load(root)
    (root / f"test_ids{suffix}").write_text("image_id\n")
    with pytest.raises(ValueError, match=r"12 shown images as test images in .*test_ids\.\w+, got none"):
        flat.load(root)


def test_labels_of_an_atlas_are_regions(written):
    """They were one region of the name of the file, whatever their number."""
    dataset, root = written
    space = dataset.subject("subj01").space
    labels = np.arange(len(space)) % 4
    volume = space.volume(labels.astype(np.float32), 0).astype(np.int16)
    write_flat.write_volume(root / "rois" / "wang15.nii.gz", volume, space.affine)
    found = flat.load(root).subject("subj01").space.rois
    assert list(found) == ["V1", "wang15:1", "wang15:2", "wang15:3"]
    for label in (1, 2, 3):
        np.testing.assert_array_equal(found[f"wang15:{label}"], labels == label)
    (root / "rois" / "wang15.tsv").write_text("index\tname\n0\tUnknown\n1\tV1v\n2\tV1d\n3\thV4\n9\tVO1\n")
    found = flat.load(root).subject("subj01").space.rois
    assert list(found) == ["V1", "V1v", "V1d", "hV4"]
    np.testing.assert_array_equal(found["hV4"], labels == 3)
    table = "index,name\n1,V1v\n2,V1d\n"
    (root / "rois" / "wang15.tsv").unlink()
    (root / "rois" / "wang15.csv").write_text(table)
    with pytest.raises(
        LayoutError, match=r"label of .*wang15.nii.gz in the column index of .*wang15.csv, got 3 without"
    ):
        flat.load(root)
    (root / "rois" / "wang15.csv").write_text(f"{table}3,V1\n")
    with pytest.raises(LayoutError, match=r"regions of different names in .*rois, got 'V1' again in .*wang15.nii.gz"):
        flat.load(root)


def test_concepts_are_folders_of_pictures(written):
    dataset, root = written
    (root / "test_ids.txt").unlink()
    with pytest.raises(ValueError, match="two or more concepts for by='concept', got all in"):
        flat.load(root, by="concept")
    for number, path in enumerate(sorted((root / "images").iterdir())):
        folder = root / "images" / "abcd"[number % 4]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    split = flat.load(root, by="concept", holdout=0.3).split("holdout_concept")
    (held,) = split.params["held_out"]
    assert split.test == {path.stem for path in (root / "images" / held).iterdir()} and len(split.test) == 3
    sessions = flat.load(root, by="session", holdout=0.4).split("holdout_session").sessions
    assert sessions is not None and len(sessions["test"]) == 1
    np.save(root / "X.npy", np.zeros((12, 4, 4, 3), np.uint8))
    names = [name.split(":")[1] for name in dataset.stimuli.ids.tolist()]
    (root / "images.txt").write_text("\n".join(names) + "\n")
    with pytest.raises(LayoutError, match=r"pictures in folders by concept for by='concept', got the array .*X.npy"):
        flat.load(root, by="concept", images="X.npy", image_ids="images.txt")
