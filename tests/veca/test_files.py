import fcntl
import os
import signal
import time

import pytest

from tests.processes import start
from veca.files import alone_in, read_tensors, whole_file, whole_folder


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


def write_half_and_die(path):
    with whole_file(path) as partial:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_overwrites_its_remains(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    process = start(write_half_and_die, path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
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


def test_remains_of_killed_writers_go_after_an_hour_and_those_of_living_ones_stay(tmp_path):
    left = {name: tmp_path / f".partial-{name}" for name in ("run-dead", "run-new", "run-held", "other-dead")}
    for name, path in left.items():
        path.mkdir()
        (path / "values").touch()
        for item in (path / "values", path):
            os.utime(item, None if name == "run-new" else (1, time.time() - 4000))
    held = os.open(left["run-held"], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with whole_folder(tmp_path / "run") as partial:
        (partial / "a").touch()
    os.close(held)
    assert {name for name, path in left.items() if path.exists()} == {"run-new", "run-held", "other-dead"}


def test_a_folder_that_another_writer_finished_first_is_named(tmp_path):
    with pytest.raises(FileExistsError, match=f"expected no folder {tmp_path}/run, got one that was written meanwhile"):
        with whole_folder(tmp_path / "run"), whole_folder(tmp_path / "run") as second:
            (second / "a").touch()
    assert [x.name for x in tmp_path.iterdir()] == ["run"] and (tmp_path / "run/a").exists()


def test_one_program_at_a_time_holds_a_folder(tmp_path):
    for _ in range(2):  # free again after an error as well
        with pytest.raises(ZeroDivisionError), alone_in(tmp_path / "run"):
            with pytest.raises(
                BlockingIOError, match=rf"no other run in .*/run, got process {os.getpid()} on .*; wait"
            ):
                with alone_in(tmp_path / "run"):
                    pass
            raise ZeroDivisionError
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    for content in (b"", b"\x08" + bytes(7) + b"not json", b"PK"):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ValueError, match=f"expected safetensors in {tmp_path}/a, got"):
            read_tensors(tmp_path / "a")
