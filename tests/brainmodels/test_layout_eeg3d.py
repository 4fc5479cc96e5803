"""EEG-3D against a simulated subject that was written as such a folder."""

import shutil
import zipfile

import numpy as np
import pytest
import torch

from brainmodels.errors import IdError, LayoutError, UnsafePickleError
from brainmodels.layouts import eeg3d
from brainmodels.simulated.eeg import simulate_eeg
from tests.brainmodels.spoilt import litter
from tests.brainmodels.written.eeg3d import write_eeg3d
from veca.data.scenes import COLORS, SHAPES

WORDS = ("oil_lamp", "Christmas_tree", "bed")  # sorted without their numbers they come in another order


@pytest.fixture(scope="module")
def simulated():
    return {
        kind: simulate_eeg(kind, n_subjects=1, n_chans=4, n_train=100, n_test=40, seed=3)
        for kind in ("static", "dynamic")
    }


@pytest.fixture(scope="module")
def written(simulated, tmp_path_factory):
    root = tmp_path_factory.mktemp("eeg3d")
    ids = write_eeg3d(simulated["static"], root, names=WORDS)
    write_eeg3d(simulated["dynamic"], root, names=WORDS)
    return root, ids


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "copy"), written[1]


def load(root, **options):
    return eeg3d.load(root, "sub01", ch_names=["A", "B", "C", "D"], **options)


def assert_same(loaded, simulated, ids, atol=0.0):
    """Every trial of every written image is there, under its new id and in the order of its repeats."""
    mine, theirs = loaded.subject("sub01").responses, simulated.subject("sim01").responses
    assert len(mine) == sum(len(rows) for rows in theirs.rows_of(list(ids)))
    for rows, other in zip(mine.rows_of(list(ids.values())), theirs.rows_of(list(ids)), strict=True):
        np.testing.assert_allclose(mine.batch(rows), theirs.batch(other), rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_recorded_trials_come_back(simulated, written, kind):
    root, ids = written
    assert eeg3d.detect(root) and not eeg3d.detect(root / "EEGdata")
    loaded = load(root, kind=kind)
    assert_same(loaded, simulated[kind], ids)
    assert isinstance(loaded.subject("sub01").responses.values, np.memmap)
    space, source = loaded.subject("sub01").space, simulated[kind].subject("sim01").space
    assert space.sfreq == source.sfreq
    np.testing.assert_allclose(space.times, source.times)
    shown = simulated[kind].subject("sim01").responses.trials.image_id
    expected = [ids[name] for name in shown.tolist() if name in ids]
    assert loaded.subject("sub01").responses.trials.image_id.tolist() == expected


def test_split_arrays_come_back(simulated, tmp_path):
    ids = write_eeg3d(simulated["static"], tmp_path, names=WORDS, form="split", labels="csv")
    litter(tmp_path)
    assert eeg3d.detect(tmp_path)
    loaded = load(tmp_path)
    assert_same(loaded, simulated["static"], ids)
    train = loaded.pairs("sub01", "eeg3d_objects", "train")
    test = loaded.pairs("sub01", "eeg3d_objects", "test", average="repeats")
    val = loaded.pairs("sub01", "eeg3d_objects", "val")
    assert (len(train) + len(val), len(test)) == (3 * 8 * 2, 3 * 2)
    assert {name[-2:] for name in test.image_ids.tolist()} == {"08", "09"}


def test_classes_and_colors_are_those_of_the_scenes(simulated, written):
    """Classes follow the numbers, so that `oil_lamp`, the first, is a circle; `Christmas_tree` sorts before it."""
    root, ids = written
    stimuli, source = load(root).stimuli, simulated["static"].stimuli
    mine, theirs = list(ids.values()), list(ids)
    assert [SHAPES[i] for i in stimuli.label("class", mine)] == source.label("shape", theirs).tolist()
    assert [COLORS[i] for i in stimuli.label("color", mine)] == source.label("color", theirs).tolist()
    assert [WORDS[i] for i in stimuli.label("class", mine)] == stimuli.label("name", mine).tolist()


def test_workbook_and_text_give_the_same_labels(simulated, written, tmp_path):
    root, ids = written
    write_eeg3d(simulated["static"], tmp_path, names=WORDS, labels="csv")
    names = list(ids.values())
    first, second = (load(folder).stimuli.label("color", names) for folder in (root, tmp_path))
    np.testing.assert_array_equal(first, second)


def test_workbook_with_shared_strings(copied):
    """Excel itself stores texts in a table of their own, with empty rows behind."""
    root, ids = copied
    names = sorted(name.removeprefix("eeg3d:") for name in ids.values())
    strings = "".join(f"<si><t>{text}</t></si>" for text in ("name", "label", *names))
    rows = '<row><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c></row>'
    rows += "".join(f'<row><c r="A{i}" t="s"><v>{i}</v></c><c r="B{i}"><v>{i % 6}</v></c></row>' for i in range(2, 32))
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    with zipfile.ZipFile(root / "color_label.xlsx", "w") as archive:
        archive.writestr("xl/sharedStrings.xml", f"<sst {space}>{strings}</sst>")
        sheet = f'<worksheet {space}><sheetData>{rows}<row r="99"/></sheetData></worksheet>'
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
    stimuli = load(root).stimuli
    assert stimuli.label("color", [f"eeg3d:{name}" for name in names]).tolist() == [i % 6 for i in range(2, 32)]


def test_pictures_are_views_of_the_clouds(written):
    root, ids = written
    stimuli = load(root).stimuli
    name = next(iter(ids.values()))
    cloud, image = stimuli.source.cloud(name), stimuli.image(name, 64)
    drawn = image[(image != 255).any(-1)]
    assert len(drawn) > 50
    colors = {tuple(color) for color in (cloud[:, 3:] * 255).round().astype(int).tolist()}
    assert {tuple(color) for color in drawn.tolist()} <= colors
    with pytest.raises(IdError, match="oil_lamp"):
        stimuli.source.cloud("eeg3d:oil_lamb_00")


def test_a_missing_object_is_named(copied):
    root, _ = copied
    (root / "video_new" / "02_Christmas_tree_04.mp4").unlink()
    with pytest.raises(IdError, match=r"expected 10 objects of each class.* got 9 .*02_Christmas_tree_04"):
        load(root)


def test_a_missing_cloud_or_color_is_named(copied):
    root, _ = copied
    cloud = root / "point_cloud_simple" / "oil_lamp_08.npy"
    cloud.rename(root / "elsewhere.npy")
    with pytest.raises(IdError, match=r"expected point clouds of 30 objects, got none of 1: .*oil_lamp_08\.npy"):
        load(root)
    (root / "elsewhere.npy").rename(cloud)
    (root / "color_label.xlsx").unlink()
    (root / "color_label.csv").write_text("name,label\noil_lamp_00,1\n")
    with pytest.raises(IdError, match="expected a colour label of every object, got none of oil_lamp_01"):
        load(root)
    (root / "color_label.csv").unlink()
    assert "color" not in load(root).stimuli.labels


def test_names_that_do_not_belong(copied):
    root, _ = copied
    path = root / "EEGdata" / "sub01" / "name_label.npy"
    names = np.load(path)
    missing = np.where(names == "01_oil_lamp_03", "01_oil_lamp_02", names)
    np.save(path, missing)
    with pytest.raises(IdError, match=r"expected trials of 30 objects .* got none of 1: 01_oil_lamp_03"):
        load(root)
    np.save(path, np.where(names == "01_oil_lamp_03", "01_oil_lamb_03", names))
    with pytest.raises(IdError, match=r"1 others, such as '01_oil_lamb_03'; near: 01_oil_lamp_03"):
        load(root)
    np.save(path, names[:-1])
    with pytest.raises(LayoutError, match=r"expected 72 names .* got \(71,\)"):
        load(root)


def test_length_is_window_times_rate(copied):
    root, _ = copied
    folder = root / "EEGdata" / "sub01"
    shutil.copy(folder / "process_data_1s_250Hz.npy", folder / "process_data_1s_200Hz.npy")
    with pytest.raises(LayoutError, match=r"= 200 samples, got shape \(72, 4, 250\)"):
        load(root, sfreq=200)
    (folder / "process_data_6s_100Hz.npy").rename(folder / "process_data_6s_250Hz.npy")
    with pytest.raises(LayoutError, match=r"sub01_train_data_6s_100Hz.npy"):
        load(root, kind="dynamic")


def test_channels_without_names(written):
    with pytest.raises(LayoutError, match=r"expected 64 channels .* got 4; pass ch_names="):
        eeg3d.load(written[0], "sub01")
    assert len(set(eeg3d.EEG3D_CHANNELS)) == 64 and {"M1", "M2", "CB1", "CB2"} < set(eeg3d.EEG3D_CHANNELS)


def test_unknown_subject_and_damaged_cloud(copied):
    root, _ = copied
    with pytest.raises(LayoutError, match="near: sub01"):
        eeg3d.load(root, "sub02")
    path = root / "point_cloud_simple" / "bed_00.npy"
    cloud = np.load(path)
    cloud[:, 3:] *= 255
    np.save(path, cloud)
    with pytest.raises(LayoutError, match=r"expected colours in \[0, 1\]"):
        load(root).stimuli.source.cloud("eeg3d:bed_00")


@pytest.mark.parametrize("form", ["process", "split"])
def test_nan_is_found(simulated, tmp_path, form):
    write_eeg3d(simulated["static"], tmp_path, names=WORDS, form=form)
    path = next((tmp_path / "EEGdata" / "sub01").glob("*_data_1s_250Hz.npy"))
    values = np.load(path)
    values.reshape(-1, 4, 250)[11, 2, 7] = np.nan
    np.save(path, values)
    with pytest.raises(LayoutError, match=r"got nan at trial .*, channel 2, sample 7"):
        load(tmp_path)


def test_colors_are_whole_numbers(copied):
    root, _ = copied
    (root / "color_label.xlsx").unlink()
    (root / "color_label.csv").write_text("name,label\noil_lamp_00,1.5\n")
    with pytest.raises(LayoutError, match=r"expected whole numbers .* got 1\.5"):
        load(root)


def test_clip_features_are_tensors_or_refused(copied):
    root, _ = copied
    features = {"bed_00": {"text": torch.arange(3.0), "point": torch.ones(2, dtype=torch.float16)}}
    torch.save(features, root / "clip_feature.pth")
    found = eeg3d.clip_features(root)
    np.testing.assert_array_equal(found["eeg3d:bed_00"]["text"], [0, 1, 2])
    with pytest.raises(LayoutError, match=r"clip_feature_gray.pth, got no such file"):
        eeg3d.clip_features(root, gray=True)
    torch.save({"bed_00": _Harmful()}, root / "clip_feature_gray.pth")
    with pytest.raises(UnsafePickleError, match="expected only tensors"):
        eeg3d.clip_features(root, gray=True)


class _Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the file ran code')",))
