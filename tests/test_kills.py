"""Programs that are killed at random, ten times each, end with the bits of one that nothing killed: `make test-slow`.

Each program is started again until it ends, on one thread of a CPU. Half of the signals cannot be caught.
"""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch

import brainmodels
from brainmodels.data import save_prepared
from brainmodels.features import FeatureCache, RandomConv
from tests.brainmodels.fitted import SYSTEMS, features, pairs, small
from tests.brainmodels.test_features_cache import stimuli
from veca import VECA, stream_features
from veca.hashes import file_digest
from veca.train import distill, load_teacher, nano_scenes, tiny, train_scenes
from veca.train.checkpoints import latest_checkpoint, load_checkpoint

KILLS = 10
SIGNALS = signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


class Noise:
    def __len__(self):
        return 16

    def batch(self, indices, step):
        generator = torch.Generator().manual_seed(step)
        return {"image": torch.randn(len(indices), 3, 64, 64, generator=generator)}


def scenes(out):
    recipe = dataclasses.replace(
        nano_scenes(),
        steps=8,
        warmup_steps=2,
        batch_size=4,
        size=32,
        save_every=3,
        optimizer="adamw",
        precision="fp32",
    )
    train_scenes(dataclasses.replace(recipe, scenes=64, held_out=8, workers=0), out, "cpu")


def distillation(out):
    recipe = dataclasses.replace(
        tiny(), steps=8, warmup_steps=2, batch_size=4, num_cores=16, save_every=3, optimizer="adamw", precision="fp32"
    )
    recipe = dataclasses.replace(recipe, resolutions=((0, (64,), (1.0,)),))
    distill(recipe, load_teacher("test_vit", "random"), Noise(), out, device="cpu")


def brain_model(out, system):
    recipe = SYSTEMS[system][1]
    stages = {name: dataclasses.replace(getattr(recipe, name), steps=40) for name in ("stage1", "stage2")}
    small(system, **stages).fit(features(), pairs(), subject="sim01", out=out, save_every=9).save(out / "model")


def neuroflow(out):
    brain_model(out, "neuroflow")


def synbrain(out):
    brain_model(out, "synbrain")


def cache(out):
    FeatureCache(out, RandomConv(size=64), stimuli(300), shard_images=16).extract(batch_size=8, progress=False)


def prepared(out):
    if not (out / "sim01").exists():
        save_prepared(brainmodels.simulate("tiny", n_subjects=1), "sim01", out / "sim01", image_size=96)


def streamed(out):
    torch.manual_seed(0)
    model = VECA(embed_dim=192, depth=6, num_heads=3, num_cores=64, img_size=512).eval()
    if not (out / "patches.npy").exists():
        stream_features(model, torch.randn(3, 512, 512), 200, workdir=out)


def of_training(out):
    checkpoint = load_checkpoint(latest_checkpoint(out / "checkpoints"))
    parts = checkpoint.weights, checkpoint.optimizer, checkpoint.ema
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]
    return [{name: x.numpy().tobytes() for name, x in part.items()} for part in parts], rows, checkpoint.step


def of_brain_model(out):
    stages = json.loads((out / "model/meta.json").read_text())["stages"]
    kept = [{key: value for key, value in stage.items() if key != "seconds"} for stage in stages]
    return [file_digest(out / "model" / name) for name in ("weights.safetensors", "stats.safetensors")], kept


def of_cache(out):
    found = FeatureCache(out, RandomConv(size=64), stimuli(300))
    return [found.get(found.stimuli.ids, kind).tobytes() for kind in ("tokens", "pooled")]


def of_prepared(out):
    brainmodels.load_prepared(out / "sim01")
    return json.loads((out / "sim01/meta.json").read_text())["files"]


def of_stream(out):
    return np.load(out / "patches.npy").tobytes(), [path.name for path in out.iterdir()]


def nothing(out):
    """So that what programs import is imported before their time is taken."""


PROGRAMS = {
    "veca train": (scenes, of_training),
    "veca distill": (distillation, of_training),
    "veca brain train --model neuroflow": (neuroflow, of_brain_model),
    "veca brain train --model synbrain": (synbrain, of_brain_model),
    "features": (cache, of_cache),
    "veca brain prepare": (prepared, of_prepared),
    "stream_features": (streamed, of_stream),
    "nothing": (nothing, None),
}


def child(name, out):
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    PROGRAMS[name][0](out)


def start(name, out):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_kills"])
    process = context.Process(target=child, args=(name, out))
    process.start()
    return process


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "nothing"])
def test_killed_at_random(tmp_path, name):
    straight, out, rng = tmp_path / "straight", tmp_path / "killed", random.Random(name)
    straight.mkdir()
    start("nothing", straight).join()
    began = time.monotonic()
    process = start(name, straight)
    process.join()
    lasts, kills = time.monotonic() - began, 0
    assert process.exitcode == 0
    expected = PROGRAMS[name][1](straight)
    while kills < KILLS:
        out.mkdir()
        ended = False
        while not ended:
            process = start(name, out)
            process.join(rng.uniform(0.2, 1) * lasts if kills < KILLS else None)
            if process.exitcode is None:
                number = rng.choice(SIGNALS)
                os.kill(process.pid, number)
                process.join()
                kills += 1
                assert process.exitcode in (0, -number, 128 + number) or number == signal.SIGINT
            else:
                assert process.exitcode == 0
                lasts *= 0.9  # the machine is faster now
            ended = process.exitcode == 0
        assert PROGRAMS[name][1](out) == expected
        shutil.rmtree(out)
