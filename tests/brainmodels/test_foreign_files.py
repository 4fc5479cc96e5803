"""Files of others that are damaged or made to do harm are refused by name, and only what is asked for is read."""

import io
import tarfile

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from brainmodels.data.hdf5 import open_hdf5
from brainmodels.data.pickles import read_torch
from brainmodels.errors import BrainDataError, LayoutError, UnsafePickleError
from brainmodels.layouts import prepare
from brainmodels.layouts._files import read_array
from brainmodels.layouts._nsd import read_design
from brainmodels.layouts._tars import TarImages, read_member, read_samples
from veca.data import load_image
from veca.files import read_members


class TestHDF5:
    """A data set may stand for any file of the user, which would come back as responses."""

    @pytest.mark.parametrize("kind", ["storage", "link", "virtual"])
    def test_data_in_other_files_are_refused(self, tmp_path, kind):
        secret, path = tmp_path / "secret", tmp_path / "betas.hdf5"
        with h5py.File(secret, "w") as file:
            file["x"] = np.arange(4.0)
        with h5py.File(path, "w") as file:
            group = file.create_group("deep")
            if kind == "storage":
                group.create_dataset("betas", (8,), "u1", external=[(str(secret), 0, 8)])
            elif kind == "link":
                group["betas"] = h5py.ExternalLink(str(secret), "x")
            else:
                layout = h5py.VirtualLayout((4,), "f8")
                layout[:] = h5py.VirtualSource(str(secret), "x", (4,))
                group.create_virtual_dataset("betas", layout)
        with pytest.raises(LayoutError, match=r"all data of .*betas\.hdf5 in the file .*, got /deep/betas in another"):
            open_hdf5(path)

    def test_links_inside_are_read(self, tmp_path):
        with h5py.File(tmp_path / "a", "w") as file:
            file["x"] = np.arange(4)
            file["deep/hard"], file["deep/round"], file["soft"] = file["x"], file["/"], h5py.SoftLink("/x")
        with open_hdf5(tmp_path / "a", "soft") as file:
            assert file["soft"][3] == file["deep/round/deep/hard"][3] == 3


def test_members_that_nobody_asks_for_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", index=np.arange(3), bomb=np.arange(1000))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    at = content.find(np.arange(500, 502).tobytes())
    content[at] ^= 1  # a read of the member would fail
    (tmp_path / "a.npz").write_bytes(content)
    found = read_members(tmp_path / "a.npz", ["index", "absent"])
    assert list(found) == ["index"] and found["index"].tolist() == [0, 1, 2]
    with pytest.raises(LayoutError, match=r"complete \.npz file at .*a\.npz, got: Bad CRC-32"):
        read_members(tmp_path / "a.npz", ["bomb"], LayoutError)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text", b"\x80\x02]q\x00."])
def test_files_of_torch_that_are_none(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises((LayoutError, UnsafePickleError), match=r"a\.pt, got (something else|objects)") as error:
        print(read_torch(tmp_path / "a.pt"))
    assert "()" not in str(error.value)


def test_files_of_torch_with_code_are_refused(tmp_path):
    torch.save({"x": torch.ones(2), "code": print}, tmp_path / "a.pt")
    with pytest.raises(UnsafePickleError, match=r"only tensors in .*a\.pt"):
        read_torch(tmp_path / "a.pt")
    torch.save({"x": [torch.ones(2)]}, tmp_path / "a.pt")
    assert read_torch(tmp_path / "a.pt")["x"][0].sum() == 2


@pytest.mark.parametrize("size", [0, 100, 200, 300])
def test_a_cut_file_of_matlab(tmp_path, size):
    savemat(
        tmp_path / "a.mat", {"masterordering": np.arange(40), "subjectim": np.ones((8, 20)), "sharedix": np.ones(4)}
    )
    (tmp_path / "a.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:size])
    with pytest.raises(LayoutError, match=r"a\.mat"):
        read_design(tmp_path / "a.mat", 1)


def test_a_shape_beyond_64_bits(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(LayoutError, match=r"expected 73786976294838206\d+ bytes of .*a\.npy"):
        read_array(tmp_path / "a.npy")


def picture(**options):
    file = io.BytesIO()
    Image.new("L", (30, 20)).save(file, **options)
    return file.getvalue()


def several():
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


class TestTars:
    def member(self, tmp_path, name, content):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            info = tarfile.TarInfo(f"sample0.{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        return read_samples(tmp_path / "a.tar", [name])["sample0"][name]

    @pytest.mark.parametrize("content", [b"", picture(format="PNG")[:45], picture(format="EPS"), b"text"], ids=range(4))
    def test_pictures(self, tmp_path, content):
        member = self.member(tmp_path, "png", content)
        with pytest.raises(LayoutError, match=r"picture sample0\.png in .*a\.tar, got \w+"):
            TarImages([member]).read(0, None)

    def test_a_picture_that_is_too_large(self, tmp_path, monkeypatch):
        member = self.member(tmp_path, "png", picture(format="PNG"))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(LayoutError, match=r"sample0\.png in .*a\.tar, got DecompressionBombError: .*600 pixels"):
            TarImages([member]).read(0, None)

    @pytest.mark.parametrize("content", [several(), b"", b"\x93NUMPY\x01"])
    def test_arrays(self, tmp_path, content):
        member = self.member(tmp_path, "npy", content)
        with pytest.raises(LayoutError, match=r"an array in sample0\.npy of .*a\.tar, got"):
            read_member(member)


def test_formats_that_start_other_programs_are_no_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(format="EPS"))
    with pytest.raises(ValueError, match=r"a\.png: UnidentifiedImageError"):
        load_image(tmp_path / "a.png")


def test_what_prepare_is_asked_for(tmp_path):
    with pytest.raises(BrainDataError, match=r"options of 'god' \(.*\), got 'roi'; near: rois"):
        prepare("god", tmp_path / "data", 1, tmp_path / "out", roi=["V1"])
    with pytest.raises(BrainDataError, match="image_size of at least 1 pixel, got 0"):
        prepare("god", tmp_path / "data", 1, tmp_path / "out", image_size=0)
    with pytest.raises(LayoutError, match="data"):  # a number names a subject
        prepare("god", tmp_path / "data", 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
