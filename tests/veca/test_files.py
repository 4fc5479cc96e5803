import os
import signal
import subprocess
import sys

import pytest

from veca.files import whole_file, whole_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from veca.files import whole_file
with whole_file(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_when_the_block_ends(tmp_path, durable, shared):
    path = tmp_path / "a.json"
    path.write_text("old")
    with whole_file(path, durable, shared) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_stays_when_the_block_fails(tmp_path, shared):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path, shared=shared) as partial:
        partial.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_a_shared_file_do_not_meet(tmp_path):
    with whole_file(tmp_path / "a", shared=True) as first, whole_file(tmp_path / "a", shared=True) as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # the outer block ends last


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_overwrites_its_remains(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    command = [sys.executable, "-c", KILLED, str(path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=env, check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old" and (tmp_path / "a.partial").read_text() == "half"
    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "missing" / "run"
    with whole_folder(path) as partial:
        (partial / "a").write_text("1")
        assert not path.exists() and partial.name.startswith(".partial-run-")
    assert [x.name for x in path.iterdir()] == ["a"] and list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OSError), whole_folder(path) as partial:
        (partial / "new").touch()
    assert (path / "old").exists() and list(tmp_path.iterdir()) == [path]
    with whole_folder(path, replace=True) as partial:
        (partial / "new").touch()
        assert (path / "old").exists()
    assert [x.name for x in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


def test_a_folder_stays_when_the_block_fails(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(ZeroDivisionError), whole_folder(path, replace=True) as partial:
        (partial / "new").touch()
        raise ZeroDivisionError
    assert [x.name for x in path.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [path]
