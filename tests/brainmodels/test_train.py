"""`veca brain train`: what it trains on, what it writes, and that it goes on where it was stopped."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainmodels.cli import main
from brainmodels.commands.opening import open_data
from brainmodels.commands.train import TrainSettings, run_training, stage_lines
from brainmodels.data.normalize import default_normalizer
from brainmodels.errors import BrainDataError
from brainmodels.features import FeatureCache, extractor
from brainmodels.systems import load_model
from brainmodels.systems.neuroflow import NeuroFlow, nano
from brainmodels.training import Stacked
from tests.brainmodels.simulations import made

QUICK = {"data": "simulated:tiny", "features": "grid", "seed": 1, "progress": False, "device": "cpu"}


def recipe_file(folder: Path, **changes) -> str:
    """A NeuroFlow that sees the 108 numbers of coarse edges and colours as one token."""
    small = nano()
    recipe = replace(
        small,
        name="grid",
        what="pooled",
        reduce=None,
        num_tokens=1,
        token_width=108,
        vae=replace(small.vae, channels=(2, 4), num_down=1, hidden=16, token_projection=True),
        flow=replace(small.flow, depth=1, width=16, heads=2),
        **changes,
    )
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe.to_json()))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[TrainSettings, Path]:
    out = tmp_path_factory.mktemp("run")
    settings = TrainSettings(**QUICK, out=out, recipe=recipe_file(out, validation=0.05), steps=(4, 6), save_every=2)
    return settings, run_training(settings)


def test_a_model_of_the_training_part_alone(run):
    settings, folder = run
    model = load_model(settings.out)
    assert isinstance(model, Stacked) and isinstance(model.model, NeuroFlow) and folder == Path(settings.out) / "model"
    dataset, facts = made("tiny", seed=1, n_subjects=1), model.meta_
    split = dataset.split("shared")
    model.scaler_.check_unseen(split.test)
    assert model.scaler_.fitted_ids == split.train  # 5 % are held out by the very rule of the split
    assert facts["subjects"]["sim01"]["trials"] == 3 * len(split.train)
    assert facts["run"]["features"] == "grid" and facts["run"]["split_hash"] == split.hash
    assert facts["run"]["normalizer"] == "session_z_train" == default_normalizer(dataset.subject("sim01"))
    assert facts["run"]["alignment"]["sim01"].startswith("raw responses of sim01 identify their images")
    assert [stage["steps"] for stage in facts["stages"]] == [4, 6]
    lines = stage_lines(facts)
    assert lines[0].startswith("vae: 4 steps") and "mse" in lines[0] and lines[1].startswith("flow: 6 steps")


def test_started_again_it_goes_on(run):
    settings, folder = run
    before = load_model(folder)
    checkpoint = Path(settings.out) / "vae" / "checkpoints" / "step-00000004" / "state.json"
    written = checkpoint.stat().st_mtime_ns
    run_training(settings)
    after = load_model(folder)
    assert checkpoint.stat().st_mtime_ns == written
    for name, value in before.vae_.state_dict().items():
        assert np.array_equal(value, after.vae_.state_dict()[name])
    with pytest.raises(BrainDataError, match="expected the recipe with which the run in"):
        run_training(replace(settings, batch_size=7))
    with pytest.raises(BrainDataError, match="expected the data with which the run in"):
        run_training(replace(settings, seed=2))


def test_predicts_from_the_cache_it_was_trained_on(run):
    settings, folder = run
    dataset = made("tiny", seed=1, n_subjects=1)
    cache = FeatureCache(Path(settings.out) / "features", extractor("grid"), dataset.stimuli)
    train = sorted(dataset.split("shared").train)[:5]
    assert load_model(folder).encode(cache, image_ids=train).shape == (5, 210)
    other = FeatureCache(Path(settings.out) / "features", extractor("pixels"), dataset.stimuli)
    with pytest.raises(ValueError, match=f"expected features of the extractor {cache.fingerprint}"):
        load_model(folder).encode(other, image_ids=train)


def test_several_subjects_share_a_model(tmp_path):
    recipe = recipe_file(tmp_path, validation=0.0, stack=None)
    settings = TrainSettings(**QUICK, out=tmp_path, recipe=recipe, steps=(3, 2), subject=("sim01", "sim02"))
    model = load_model(run_training(replace(settings, check_alignment="off")))
    assert model.vae_.voxels == {"sim01": 210, "sim02": 180}
    assert "was not tested" in model.meta_["run"]["alignment"]["sim02"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "nanoo"}, "got 'nanoo'; near: nano"),
        ({"steps": (3,)}, "expected steps of 2 stages"),
        ({"data": "simulated:large"}, "preset of tiny, small, nsd_like, lab, eeg, got 'large'"),
        ({"data": "nowhere"}, "the folder of a prepared subject, got 'nowhere'"),
        ({"subject": ("sim07",), "data": "simulated:tiny", "split": "shered"}, "expected a split of this data set"),
        ({"features": "veca_tiny_patch16"}, "weights"),
        ({"recipe": "nano"}, "grid"),  # which has no tokens
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run_training(replace(TrainSettings(**QUICK, out=tmp_path, check_alignment="off"), **change))


def test_the_command_prints_stages_and_folder(tmp_path, capsys):
    words = ["--data", "simulated:tiny", "--features", "grid", "--seed", "1", "--no-progress", "--steps", "2", "2"]
    words += ["--recipe", recipe_file(tmp_path), "--out", str(tmp_path / "run"), "--check-alignment", "off"]
    main(["train", *words])
    printed = capsys.readouterr().out.splitlines()
    assert "sim01, stacked with reduced rank: weights of the model V1 " in printed[2] and "decoding " in printed[2]
    assert printed[0].startswith("vae: 2 steps") and printed[-1] == str(tmp_path / "run" / "model")
    with pytest.raises(SystemExit, match="veca brain train: expected simulated"):
        main(["train", "--data", "nowhere", "--out", str(tmp_path / "other")])


def test_simulations_have_the_subjects_that_are_asked_for():
    assert list(open_data("simulated:tiny", 1, ("sim02",)).subjects) == ["sim01", "sim02"]
    assert list(open_data("simulated:tiny", 1).subjects) == ["sim01"]


@pytest.mark.slow
def test_the_evaluation_takes_the_folder_of_a_run(run, tmp_path, capsys):
    words = [
        "--data",
        "simulated:tiny",
        "--seed",
        "1",
        "--features",
        "grid",
        "--resamples",
        "20",
        "--curve",
        "50",
        "--shuffles",
        "2",
    ]
    words += ["--models", str(run[0].out), "--no-progress", "--out", str(tmp_path)]
    main(["evaluate", *words])
    printed = capsys.readouterr().out
    assert "NeuroFlow + ridge, grid tokens: nr2" in printed and "ridge, same tokens, grid tokens: nr2" in printed
    assert (
        "NeuroFlow goes from images to responses and back through one reversible flow"
        in (tmp_path / "report.html").read_text()
    )
    with pytest.raises(SystemExit, match=r"veca brain evaluate: expected NeuroFlow \+ ridge of split"):
        main(["evaluate", *words, "--seed", "2"])
