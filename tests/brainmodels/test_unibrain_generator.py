"""The training of a nano generator, its files and its probe; and what the shipped one does with captions."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from brainmodels.errors import BrainDataError, LayoutError, NormalizationError
from brainmodels.features import extractor
from brainmodels.simulated import scene_stimuli
from brainmodels.systems.unibrain import GeneratorRecipe, generator_named, load_generator, pretrain
from brainmodels.systems.unibrain.pretrain import EXCHANGED, _rows_of, _TowerTask, draw_scenes
from brainmodels.training.run import Run
from tests.brainmodels.unibrain_small import context, short_recipe, untrained

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("generator")
    pretrain(out / "run", short_recipe(), context=context())
    return out / "run"


def log_of(run, stage):
    return [json.loads(line) for line in (run / stage / "log.jsonl").read_text().splitlines()]


def test_losses_fall(trained):
    for stage in ("captions", "tower", "flow"):
        log = log_of(trained, stage)
        assert log[-1]["loss"] < log[0]["loss"] - 0.02, stage


def test_a_run_that_was_killed_between_stages_ends_with_the_same_bytes(trained, tmp_path, monkeypatch):
    def stop_before_the_flow(run, name, *options):
        if name == "flow":
            raise KeyboardInterrupt
        return true(run, name, *options)

    true = Run.stage

    with monkeypatch.context() as patch:
        patch.setattr(Run, "stage", stop_before_the_flow)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tmp_path / "run", short_recipe(), context=context())
    (tmp_path / "run" / "scenes.safetensors").unlink()  # features are extracted again where they are gone
    before = (tmp_path / "run" / "captions" / "log.jsonl").stat().st_mtime_ns
    pretrain(tmp_path / "run", short_recipe(), context=context())
    names = ("generator/generator.safetensors", "captions/log.jsonl", "flow/log.jsonl")
    assert all((tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes() for name in names)
    assert before <= (tmp_path / "run" / "captions" / "log.jsonl").stat().st_mtime_ns
    with pytest.raises(BrainDataError, match="the recipe with which the run"):
        pretrain(tmp_path / "run", short_recipe(scenes=65), context=context())


def test_a_generator_is_loaded_as_it_was_saved(trained):
    one, other = (load_generator(trained / "generator", context()) for _ in range(2))
    assert one.fingerprint == other.fingerprint != untrained().fingerprint
    meta = json.loads((trained / "generator" / "generator.json").read_text())
    assert meta["fingerprint"] == one.fingerprint and {"torch", "transformers", "diffusers"} <= set(meta["versions"])
    assert one.unseen == "sim7001:" and one.meta["recipe"]["name"] == "short"
    assert [stage["name"] for stage in one.meta["stages"]] == ["captions", "tower", "flow", "drawer"]


def copied(trained, tmp_path):
    shutil.copytree(trained / "generator", tmp_path / "generator")
    return tmp_path / "generator"


def rewrite(folder, change):
    tensors = load_file(folder / "generator.safetensors")
    change(tensors)
    save_file(tensors, folder / "generator.safetensors")


def test_missing_and_renamed_weights_are_named(trained, tmp_path):
    folder = copied(trained, tmp_path)
    rewrite(folder, lambda x: x.pop("flow.norm.weight"))
    with pytest.raises(LayoutError, match=r"flow.norm.weight \(24,\).*got none"):
        load_generator(folder, context())
    rewrite(folder, lambda x: x.update({"flow.norm.weight": torch.ones(24), "flow.norm.scale": torch.ones(24)}))
    with pytest.raises(LayoutError, match=r"flow.norm.scale no such weight"):
        load_generator(folder, context())
    rewrite(folder, lambda x: x.pop("flow.norm.scale"))
    with pytest.raises(LayoutError, match="expected the weights"):
        load_generator(folder, context())
    with pytest.raises(LayoutError, match="veca brain pretrain"):
        load_generator(tmp_path / "nowhere")


def test_the_probe_notices_a_library_that_computes_other_numbers(trained, tmp_path, monkeypatch):
    folder = copied(trained, tmp_path)
    weights = load_generator(folder, context()).vae.encoder.embeddings.LayerNorm
    true = type(weights).forward
    monkeypatch.setattr(type(weights), "forward", lambda self, x: 1.1 * true(self, x))  # as a release might
    content = json.loads((folder / "generator.json").read_text())
    content["versions"]["transformers"] = "4.0.0"
    (folder / "generator.json").write_text(json.dumps(content))
    with pytest.raises(NormalizationError, match=r"of the probe within 0.02.*transformers 4.0.0 then"):
        load_generator(folder, context())


def test_another_context_extractor_is_refused(trained):
    other = extractor("veca_nano_patch8", pretrained=True, num_cores=8)
    with pytest.raises(LayoutError, match="of the image context"):
        load_generator(trained / "generator", other)


def test_wrong_captions_differ_in_one_word_of_the_same_factor():
    generator, recipe = untrained(), short_recipe(scenes=40)
    scenes = draw_scenes(recipe, context())
    ids = _rows_of(generator, scenes)
    task = _TowerTask(generator.tower, ids, torch.zeros(40, 128), generator.vocabulary, recipe)
    rows = ids[:, 0]
    wrong = task.swapped(rows, torch.Generator().manual_seed(0))
    assert wrong.shape == (40, recipe.swaps, rows.shape[1])
    assert ((wrong != rows[:, None]).sum(-1) == 1).all()
    for row, others in zip(rows, wrong, strict=True):
        for other in others:
            place = int((row != other).nonzero()[0])
            pair = {generator.vocabulary.words[int(x[place]) - 2] for x in (row, other)}
            assert any(pair <= set(group) for group in EXCHANGED), pair


def test_recipes():
    assert generator_named("nano").half and generator_named("tiny").forms == (1,)
    recipe = generator_named("nano")
    assert GeneratorRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    with pytest.raises(BrainDataError, match="forms of captions"):
        GeneratorRecipe(forms=(5,))
    with pytest.raises(BrainDataError, match="near: nano"):
        generator_named("nana")


def test_patches_and_tokens_go_both_ways():
    generator, scenes = untrained(), scene_stimuli(3, 4)
    images = scenes.images(scenes.ids, 64)
    z = torch.from_numpy(generator.latents(images).z_image)
    assert torch.equal(generator.from_tokens("image", generator.as_tokens("image", z)), z)
    patch = images[1, 8:16, 16:24].astype(np.float32) / 255  # the second row of patches, the third column
    found = generator.patches(torch.from_numpy(patch).permute(2, 0, 1).flatten())
    torch.testing.assert_close(z[1, :, 1, 2], found)
