"""A real int16 EPI that ships inside nibabel, with made-up events, mask and labels, through `prepare`."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from brainmodels.data import load_prepared
from tests.brainmodels.written.bids import save
from veca import cli

VOLUMES = 20


@pytest.fixture
def epi():
    path = Path(nibabel.__file__).parent / "tests/data/functional.nii"
    if not path.is_file():
        pytest.skip(f"nibabel came without its test data, {path}")
    return nibabel.load(path)


@pytest.fixture
def written(epi, tmp_path):
    """The 20 volumes as betas of 10 images, shown twice, with two voxels outside of the head made constant."""
    root, name = tmp_path / "bids", "sub-epi_task-look"
    derived = root / "derivatives/glm/sub-epi/func"
    for folder in (root / "sub-epi/func", root / "stimuli/made", derived):
        folder.mkdir(parents=True)
    stored = np.asarray(epi.dataobj.get_unscaled()).copy()
    inside = epi.get_fdata().mean(-1) > 50
    for place in np.argwhere(inside)[:2]:
        stored[tuple(place)] = 0
    save(derived / f"{name}_space-T1w_betas.nii", stored, epi.affine, epi.dataobj.slope, epi.dataobj.inter)
    save(derived / f"{name}_space-T1w_desc-brain_mask.nii.gz", inside.astype(np.uint8), epi.affine)
    halves = np.ones(inside.shape, np.int16)
    halves[inside.shape[0] // 2 :] = 2
    save(derived / f"{name}_space-T1w_atlas-halves_dseg.nii.gz", halves, epi.affine)
    first, second = ("right", "left") if epi.affine[0, 0] < 0 else ("left", "right")
    (derived / f"{name}_space-T1w_atlas-halves_dseg.tsv").write_text(f"index\tname\n1\t{first}\n2\t{second}\n")
    lines = ["onset\tduration\tstim_file"]
    for trial in range(VOLUMES):
        lines.append(f"{trial * 3}\t3\tmade/{trial % 10}.png")
    (root / "sub-epi/func" / f"{name}_events.tsv").write_text("\n".join(lines) + "\n")
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(root / f"stimuli/made/{number}.png")
    return root, np.argwhere(inside)


def test_a_real_epi_is_prepared(epi, written, tmp_path):
    root, places = written
    words = ["--root", str(root), "--subject", "epi", "--out", str(tmp_path / "prepared"), "--image-size", "16"]
    cli.main(["brain", "prepare", "--layout", "bids", *words, "--options", "holdout=0.2"])
    subject = load_prepared(tmp_path / "prepared").subject("sub-epi")
    responses, space = subject.responses, subject.space
    assert responses.values.dtype == np.float32  # its header has an intercept
    np.testing.assert_array_equal(space.index, places[2:])
    meant = epi.get_fdata()[tuple(places[2:].T)].T
    np.testing.assert_allclose(responses.batch(range(VOLUMES)), meant, rtol=1e-6)
    assert subject.provenance["dead"] == {
        "of": len(places),
        "constant": 2,
        "not_finite": 0,
        "first": places[:2].tolist(),
    }
    millimetres = np.c_[space.index, np.ones(len(space))] @ space.affine.T
    middle = epi.affine[0] @ [epi.shape[0] // 2 - 0.5, 0, 0, 1]
    np.testing.assert_array_equal(space.rois["left"], millimetres[:, 0] < middle)
    image = space.to_image(meant.mean(0))
    np.testing.assert_array_equal(image.affine, epi.affine)
    np.testing.assert_allclose(image.get_fdata()[tuple(places[5])], meant[:, 3].mean(), rtol=1e-5)
