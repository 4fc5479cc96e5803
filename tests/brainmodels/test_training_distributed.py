"""Two processes on one machine, started as torchrun starts them, against one process with the same batches."""

import json
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from brainmodels.training import train_stage
from brainmodels.training.recipe import TrainingStage
from tests.brainmodels.staged import Draws, Linear, Trials
from tests.processes import start
from veca.train.parallel import World, join_world

SIZES, VALIDATION = {"a": 37, "b": 21}, {"a": 9, "b": 5}
STAGE = TrainingStage(epochs=5, lr=0.05, batch_size=8, clip_norm=1.0, ema_decay=0.9, weight_decay=0.1, patience=2)


def join_and_run_all(out):
    with join_world("cpu") as world:
        run_all(world, out)


def run_all(world, out):
    """Write weights and result of every stage of these tests to a folder."""

    def run(name, stage=STAGE, disturb=0.0, signal_at=None, **options):
        task, source = Linear(SIZES, disturb), Trials(SIZES, VALIDATION)
        if world.rank == world.size - 1:  # the others learn of it from this one
            source.signal_at = signal_at
        if world.rank:  # one process draws the weights that all start with
            for parameter in task.parameters():
                parameter.data.fill_(7.0)
        result = train_stage("stage", task, source, stage, world=world, **options)
        save_file(task.state_dict(), f"{out}/{name}-{world.rank}.safetensors")
        Path(f"{out}/{name}-{world.rank}.json").write_text(json.dumps(asdict(replace(result, seconds=0))))

    torch.set_num_threads(1)
    run("plain")
    run("micro", replace(STAGE, micro_batch=3))
    run("drawn", disturb=0.5)
    run("stopped", disturb=0.5, folder=f"{out}/run", stop_at=13)
    run("resumed", disturb=0.5, folder=f"{out}/run")
    with pytest.raises(SystemExit, match="143"):
        run("signalled", disturb=0.5, folder=f"{out}/other", signal_at=19)
    run("signalled", disturb=0.5, folder=f"{out}/other")
    task = Draws()
    train_stage("stage", task, Trials(SIZES), STAGE, world=world)
    Path(f"{out}/draws-{world.rank}.json").write_text(json.dumps(task.drawn[True]))
    if world.size > 1:
        with pytest.raises(ValueError, match="of at least 2 trials, one a process, got 1 of 'a'; use fewer processes"):
            run("small", replace(STAGE, batch_size=1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of what one process and two processes wrote."""
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for size in ("1", "2"):
        (folder / size).mkdir()
    started = []
    for rank in ("0", "1"):
        world = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(start(join_and_run_all, folder / "2", log=folder / f"log-{rank}", **world))
    run_all(World(0, 1, torch.device("cpu")), folder / "1")
    for rank, process in enumerate(started):
        process.join(300)
        assert process.exitcode == 0, (folder / f"log-{rank}").read_text()
    return folder


def weights(runs, size, name, rank=0):
    return load_file(runs / str(size) / f"{name}-{rank}.safetensors")


def result(runs, size, name, rank=0):
    return json.loads((runs / str(size) / f"{name}-{rank}.json").read_text())


@pytest.mark.parametrize("name", ["plain", "micro", "drawn", "stopped", "resumed", "signalled"])
def test_both_processes_end_with_equal_weights_and_results(runs, name):
    first, second = weights(runs, 2, name, 0), weights(runs, 2, name, 1)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert result(runs, 2, name, 0) == result(runs, 2, name, 1)


@pytest.mark.parametrize("name", ["plain", "micro"])
def test_two_processes_do_what_one_does(runs, name):
    """For a mean over trials: uneven shares, subjects in turn, clipping, averages, patience."""
    together, alone = weights(runs, 2, name), weights(runs, 1, name)
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], rtol=0, atol=1e-10)
    together, alone = result(runs, 2, name), result(runs, 1, name)
    assert len(together["log"]) == len(alone["log"]) and together["ended"] == alone["ended"]
    for one, two in zip(alone["log"], together["log"], strict=True):
        assert two == pytest.approx(one, rel=1e-9)


def test_processes_draw_different_noise(runs):
    first, second = result(runs, 2, "draws", 0), result(runs, 2, "draws", 1)
    assert len(first) == len(second) == 5 * 8 and not set(first) & set(second)


@pytest.mark.parametrize("size", [1, 2])
def test_stopped_and_resumed(runs, size):
    for name in ("resumed", "signalled"):
        expected, found = weights(runs, size, "drawn"), weights(runs, size, name)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert result(runs, size, name)["log"] == result(runs, size, "drawn")["log"]
    assert result(runs, size, "stopped")["ended"] == "stop_at"


def test_a_contrast_sees_the_trials_of_one_process(runs):
    assert [result(runs, size, "plain")["contrast_batch"] for size in (1, 2)] == [8, 4]
    assert [result(runs, size, "micro")["contrast_batch"] for size in (1, 2)] == [3, 2]
