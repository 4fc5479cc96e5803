"""Pickled head models: what is read, what is refused without being imported, and what `veca brain convert` writes."""

import logging
import pickle
import re
import sys

import numpy as np
import pytest
import torch

from brainmodels import cli
from brainmodels.commands.convert import convert_file
from brainmodels.errors import LayoutError, UnsafePickleError
from brainmodels.heads.files import FLAME_KEYS, FlameFile, convert_head
from brainmodels.heads.restricted import first_known_name, read_head_pickle
from tests.brainmodels.head_files import drawn, flame_arrays, flame_pickle, write_archive


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("sparse", ["scipy.sparse.csc", "scipy.sparse._csc"])
def test_pickles_are_converted(tmp_path, protocol, sparse, monkeypatch, caplog):
    """Nothing of chumpy is loaded, and scipy's class is not used."""
    path, arrays = tmp_path / "generic_model.pkl", flame_arrays()
    path.write_bytes(flame_pickle(arrays, protocol, sparse))
    for module in [x for x in sys.modules if x.split(".")[0] in ("chumpy", "scipy")]:
        monkeypatch.setitem(sys.modules, module, None)  # an import raises
    content = read_head_pickle(path)
    for key, array in arrays.items():
        np.testing.assert_array_equal(content[key], array)
        assert content[key].dtype == array.dtype
    assert content["bs_style"] == "lbs"
    with caplog.at_level(logging.INFO):
        assert convert_head(path, tmp_path / "flame.npz") == tmp_path / "flame.npz"
    assert "left out J, bs_style" in caplog.text
    with np.load(tmp_path / "flame.npz", allow_pickle=False) as written:
        assert set(written.files) == set(FLAME_KEYS)
        for key, array in arrays.items():
            np.testing.assert_array_equal(written[key], array)
    with pytest.raises(LayoutError, match="which exists"):
        convert_head(path, tmp_path / "flame.npz")


def test_a_pickle_needs_the_flag(tmp_path):
    pytest.importorskip("body_models")
    path = tmp_path / "generic_model.pkl"
    path.write_bytes(flame_pickle(flame_arrays(), 2))
    with pytest.raises(UnsafePickleError, match=r"generic_model.pkl, got another one.*veca brain convert --file"):
        FlameFile(path)
    convert_head(path, tmp_path / "flame.npz")
    read, converted = FlameFile(path, allow_pickle=True), FlameFile(tmp_path / "flame.npz")
    assert read.fingerprint == converted.fingerprint
    exp, jaw = drawn(2, 50), drawn(2, 3)
    torch.testing.assert_close(read.vertices(exp, jaw), converted.vertices(exp, jaw), rtol=0, atol=0)


def test_body_models_gets_checked_copies_only(tmp_path, monkeypatch):
    """It opens archives with `allow_pickle=True`, and looks for files elsewhere where a path is missing."""
    package = pytest.importorskip("body_models.flame.torch")
    seen = []

    class Watched(package.FLAME):
        def __init__(self, *, model_path):
            seen.append((model_path, read_head_archive(model_path)))
            super().__init__(model_path=model_path)

    monkeypatch.setattr(package, "FLAME", Watched)
    path = write_archive(tmp_path / "flame.npz", flame_arrays(), other=np.zeros(3))
    FlameFile(path)
    pickled = tmp_path / "flame.pkl"
    pickled.write_bytes(flame_pickle(flame_arrays(), 4))
    FlameFile(pickled, allow_pickle=True)
    write_archive(path, flame_arrays(), other=np.array([{}]))
    with pytest.raises(LayoutError, match="Python objects"):
        FlameFile(path)
    assert len(seen) == 2
    for given, keys in seen:
        assert given not in (path, pickled) and set(keys) == set(FLAME_KEYS) and not given.exists()


def read_head_archive(path):
    with np.load(path, allow_pickle=False) as content:
        return {key: content[key] for key in content.files}


def test_arrays_that_python_2_wrote(tmp_path):
    values = np.array([1.5, -2.0])
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I2\ntcnumpy\ndtype\n(U\x02f8I0\nI1\n"
        b"tR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\nU\x10" + values.tobytes() + b"tb"
    )
    (tmp_path / "old.pkl").write_bytes(b"}(U\x01x" + array + b"S'name'\nS'caf\\xe9'\nu.")
    content = read_head_pickle(tmp_path / "old.pkl")
    np.testing.assert_array_equal(content["x"], values)
    assert content["name"] == "caf\xe9"


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful(word: str) -> bytes:
    """A pickle of protocol 0 that asks for a name and calls it with a string."""
    module, name = word.rsplit(".", 1)
    return f"(dS'v_template'\n(lc{module}\n{name}\n(S'touch ran'\ntRas.".encode()


@pytest.mark.parametrize(
    "name",
    ["os.system", "posix.system", "builtins.eval", "__builtin__.eval", "numpy.load", "made_danger.run", "copyreg.add"],
)
def test_forbidden_names_are_not_imported(tmp_path, monkeypatch, name):
    (tmp_path / "made_danger.py").write_text("from pathlib import Path\nPath('ran').touch()\ndef run(x): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "model.pkl"
    path.write_bytes(harmful(name))
    before = set(sys.modules)
    for read in (read_head_pickle, lambda x: convert_file(x, tmp_path / "out.npz")):
        with pytest.raises(UnsafePickleError, match=rf"asks for {re.escape(name)}, in .*model.pkl"):
            read(path)
    with pytest.raises(UnsafePickleError, match=r"veca brain convert"):
        FlameFile(path)
    assert "made_danger" not in sys.modules and set(sys.modules) == before
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.npz").exists()
    if name == "made_danger.run":  # an ordinary reader runs it
        pickle.loads(harmful(name))
        assert (tmp_path / "ran").exists()
        del sys.modules["made_danger"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": [{"b": (Calls(eval, "1"),)}]}), "asks for builtins.eval"),
        (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "asks for numpy.ndarray.__class__"),
        (b"\x80\x04\x8c\x07_codecs\x8c\x0dencode.__self\x93.", "asks for _codecs.encode.__self"),
        (b"c_codecs\nencode\n(S'abc'\nS'rot13'\ntR.", "latin-1, got a pickle that asks for the codec 'rot13'"),
        (b"c_codecs\nencode\n(S'abc'\ntR.", "the codec ''"),
        (b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.", "got a pickle that rebuilds"),
        (b"ccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\nset\nNtR.", "got a pickle that rebuilds"),
        (b"cchumpy.ch\nChLambda\n.", "asks for chumpy.ch.ChLambda"),
        (b"cchumpy.reordering\nSelect\n.", "asks for chumpy.reordering.Select"),
        (b"(icos\nsystem\n.", "asks for"),
    ],
)
def test_other_forbidden_pickles(tmp_path, content, message):
    (tmp_path / "model.pkl").write_bytes(content)
    with pytest.raises(UnsafePickleError, match=message):
        read_head_pickle(tmp_path / "model.pkl")


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD on a function sets its attributes; the next file must not find them."""
    path = tmp_path / "model.pkl"
    path.write_bytes(b"c_codecs\nencode\n(N}S'__defaults__'\n(S'rot13'\ntstb0}.")
    assert read_head_pickle(path) == {}
    path.write_bytes(b"c_codecs\nencode\n(S'abc'\ntR.")
    with pytest.raises(UnsafePickleError, match="codec ''"):
        read_head_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_with_other_content(tmp_path, protocol):
    path = tmp_path / "model.pkl"

    def refused(content, message, read=read_head_pickle):
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
        with pytest.raises(LayoutError, match=message):
            read(path)

    objects = np.array([[1], "a"], object)
    refused({"weights": objects}, "expected numbers or strings under 'weights' .* array of Python objects")
    refused([1, 2], "expected a dictionary in .*model.pkl, got list")
    whole = flame_pickle(flame_arrays(), protocol)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        refused(whole[:length], "expected a complete pickle in .*model.pkl")
    refused(b"cchumpy.ch\nCh\n)\x81}S'a'\nI1\nsb.", "expected chumpy objects that hold an array x")
    refused(b"}S'x'\ncchumpy.ch\nCh\n)\x81s.", "expected an array under 'x' .* got an object without one")
    refused(b"cscipy.sparse.csc\ncsc_matrix\n)\x81}S'data'\n]sb.", "without _shape, indices, indptr")
    refused(b"cnumpy\nndarray\n}S'a'\nI1\nsb0}.", "expected a complete pickle")  # BUILD on a class of the table
    convert = lambda x: convert_head(x, tmp_path / "out.npz")  # noqa: E731
    refused({**flame_arrays(), "f": [[0, 1, 2]]}, "expected an array under 'f' .* got list", convert)
    refused({"v_template": np.zeros((5, 3))}, "expected a key 'f' .* got v_template; FLAME files come from", convert)
    path.write_bytes(whole)
    with pytest.raises(LayoutError, match=r"expected a new file ending in .npz"):
        convert_head(path, tmp_path / "out.pkl")
    assert not list(tmp_path.glob("out*"))


def test_names_are_found_without_building_anything(tmp_path):
    path = tmp_path / "model.pkl"
    for protocol in (0, 2, 4):
        path.write_bytes(flame_pickle(flame_arrays(), protocol))
        assert first_known_name(path, {"shapedirs", "weights"}) == "shapedirs"
        assert first_known_name(path, {"unknown"}) is None
    for content in (b"", b"\x93NUMPY\x01\x00v", path.read_bytes()[:100], b"PK\x03\x04"):
        path.write_bytes(content)
        assert first_known_name(path, {"weights"}) is None


def test_the_command_knows_head_files(tmp_path, capsys):
    path, out = tmp_path / "generic_model.pkl", tmp_path / "flame.npz"
    path.write_bytes(flame_pickle(flame_arrays(), 2))
    cli.main(["convert", "--file", str(path), "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    np.testing.assert_array_equal(read_head_archive(out)["shapedirs"], flame_arrays()["shapedirs"])
    with pytest.raises(LayoutError, match=r"got the archive of arrays .*flame.npz, which is opened as it is"):
        convert_file(out, tmp_path / "again.npz")
    recording = {"preprocessed_eeg_data": np.arange(4.0), "times": [0.0], "ch_names": ["f", "weights"]}
    (tmp_path / "eeg.npy").write_bytes(pickle.dumps(recording))
    convert_file(tmp_path / "eeg.npy", tmp_path / "eeg.npz")
    np.testing.assert_array_equal(read_head_archive(tmp_path / "eeg.npz")["preprocessed_eeg_data"], np.arange(4.0))
    with pytest.raises(FileNotFoundError, match=r"absent.pkl"):
        convert_file(tmp_path / "absent.pkl", tmp_path / "x.npz")
