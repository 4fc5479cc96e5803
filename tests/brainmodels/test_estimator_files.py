"""Models saved and loaded bit for bit, folders that are not theirs refused, interrupted runs that go on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from brainmodels.errors import AxisError, BrainDataError, LayoutError, NormalizationError
from brainmodels.features import ArrayFeatures, FeatureCache, RandomConv
from brainmodels.systems.neuroflow import NeuroFlow
from brainmodels.systems.synbrain import SynBrain
from brainmodels.training import files
from tests.brainmodels.fitted import NEUROFLOW, features, fitted, pairs, saved, small, study, with_values

BOTH = pytest.mark.parametrize("system", ["neuroflow", "synbrain"])
REDUCED = {"reduce": (None, 5), "token_width": 5}


def everything(system):
    """Reduced tokens, a dropped voxel, two subjects, one of them without repeats; their pairs and the model."""

    def change(values):
        values[:, 9] = 1.5

    dataset = with_values(change)
    once = pairs(subject="sim02", dataset=dataset)
    rows = np.unique(once.image_ids, return_index=True)[1]
    given = {"sim.01": pairs(dataset=dataset), "sim2": once.batch(rows)}
    model = small(system, **REDUCED, num_tokens=4)
    if system == "neuroflow":
        given = {name.replace(".", ""): part for name, part in given.items()}
    ids = {"sim2": once.image_ids[rows]}
    return model.fit(features(), given, image_ids=ids, drop_voxels=True)


def predictions(model):
    """Every way to use a model, by name."""
    ids = pairs("test").image_ids[:5]
    found = {}
    for subject in model.subjects_:
        shared = {"image_ids": ids, "subject": subject}
        for noise in ("none", "unit", "posterior", "residual"):
            draws = {} if noise == "none" else {"n_trials": 2, "seed": 3}
            found[subject, noise] = model.predict(features(), noise=noise, **shared, **draws)
        measured = pairs("test", "sim01" if "1" in subject else "sim02").array()[:7]
        if isinstance(model, NeuroFlow):
            found[subject, "decode"] = model.decode(measured, subject=subject)
            found[subject, "latents"] = model.latents(measured, subject=subject)
        else:
            mean, std = model.posterior(measured, subject=subject)
            found |= {(subject, "mean"): mean, (subject, "std"): std}
    return found


@BOTH
def test_loaded_predicts_the_same_bits(system, tmp_path):
    model = everything(system)
    assert model.save(tmp_path / "new" / "model") == tmp_path / "new" / "model"
    loaded = type(model).load(tmp_path / "new" / "model")
    before, after = predictions(model), predictions(loaded)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=str(name))
    assert {noise.around for noise in loaded.residual_.values()} == {"repeats", "predictions"}
    assert loaded.meta_ == json.loads(json.dumps(model.meta_))
    assert (loaded.recipe, loaded.subjects_, loaded.pairing) == (model.recipe, model.subjects_, model.pairing)
    assert loaded.scaler_.fitted_ids == model.scaler_.fitted_ids
    assert saved(loaded, tmp_path / "again") == saved(model, tmp_path / "first")


def test_raw_tokens_have_no_scaler(tmp_path):
    model = small("synbrain", tokens="raw").fit(features(), pairs())
    loaded = SynBrain.load(model.save(tmp_path / "model"))
    assert loaded.scaler_ is None
    ids = pairs("test").image_ids[:5]
    np.testing.assert_array_equal(loaded.predict(features(), image_ids=ids), model.predict(features(), image_ids=ids))


@BOTH
@pytest.mark.parametrize("name", ["weights.safetensors", "stats.safetensors", "config.json", "meta.json"])
def test_missing_and_broken_files_are_named(system, name, tmp_path):
    folder = fitted(system).save(tmp_path / "model")
    (folder / name).write_bytes((folder / name).read_bytes()[:-40])
    with pytest.raises(LayoutError, match=name):
        type(fitted(system)).load(folder)
    (folder / name).unlink()
    with pytest.raises(LayoutError, match=f"expected a saved model in .*, got no {name}"):
        type(fitted(system)).load(folder)


@BOTH
@pytest.mark.parametrize("name", ["weights.safetensors", "stats.safetensors"])
def test_weights_are_those_of_the_recipe(system, name, tmp_path):
    model = fitted(system)
    folder = model.save(tmp_path / "model")
    tensors = load_file(folder / name)
    for key in (min(tensors), max(tensors)):
        save_file({other: value for other, value in tensors.items() if other != key}, folder / name)
        with pytest.raises(LayoutError, match=key.partition(".")[2] or key):
            type(model).load(folder)
    for extra in ("vae_.more", "more"):
        save_file(tensors | {extra: torch.zeros(1)}, folder / name)
        with pytest.raises(LayoutError, match="more"):
            type(model).load(folder)
    key = next(key for key, value in tensors.items() if value.ndim == 2 and value.shape[0] > 1)
    if name == "weights.safetensors":
        save_file(tensors | {key: tensors[key][:-1].clone()}, folder / name)
        with pytest.raises(LayoutError, match=key.partition(".")[2]):
            type(model).load(folder)


def test_another_system_and_other_formats_are_refused(tmp_path):
    folder = fitted("neuroflow").save(tmp_path / "model")
    with pytest.raises(LayoutError, match=r"expected a SynBrain of format 1 in .*, got NeuroFlow of format 1"):
        SynBrain.load(folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 2}))
    with pytest.raises(LayoutError, match="got NeuroFlow of format 2"):
        NeuroFlow.load(folder)


@BOTH
def test_unknown_keys_of_a_recipe_are_refused(system, tmp_path):
    folder = fitted(system).save(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"embed_size": 1}))
    with pytest.raises(BrainDataError, match="got 'embed_size'"):
        type(fitted(system)).load(folder)


@BOTH
def test_features_of_another_extractor_are_refused(system, tmp_path):
    """Both fingerprints are in the message, in use and where another subject is taught."""
    stimuli, ids = study().stimuli, pairs("test").image_ids[:3]
    caches = []
    for seed in (0, 1):
        caches.append(FeatureCache(tmp_path, RandomConv(seed=seed, size=16), stimuli, shard_images=512))
        caches[-1].extract(ids if seed else None, batch_size=256, progress=False)
    shape = caches[0].get(ids, "tokens").shape[1:]
    for tokens in ("scaled", "raw"):
        changes = {"num_tokens": shape[0], "token_width": shape[1], "tokens": tokens}
        if system == "neuroflow":
            changes["vae"] = replace(NEUROFLOW.vae, token_projection=True)
        model = small(system, **changes).fit(caches[0], pairs(), subject="sim01", alignment="off")
        message = f"extractor {caches[0].fingerprint}, as in the fit, got those of {caches[1].fingerprint}"
        assert model.predict(caches[0], image_ids=ids).shape == (3, 24)
        assert model.predict(caches[1].get(ids, "tokens")).shape == (3, 24)  # an array cannot be told apart
        loaded = type(model).load(model.save(tmp_path / "model"))
        more = {"neuroflow": "add_subject", "synbrain": "adapt"}[system]
        for one in (model, loaded):
            with pytest.raises(NormalizationError, match=message):
                one.predict(caches[1], image_ids=ids)
            with pytest.raises(NormalizationError, match=message):
                getattr(one, more)(caches[1], pairs(subject="sim02"), subject="sim02")


@BOTH
def test_other_voxels_and_normalisers_are_refused(system, tmp_path):
    model = fitted(system)
    loaded = type(model).load(model.save(tmp_path / "model"))
    person = study().subject("sim01")
    moved = replace(person, space=replace(person.space, index=person.space.index[::-1].copy()))
    scaled = replace(person, normalizer="session_z")
    for one in (model, loaded):
        use = one.latents
        assert use(person).shape == (320, 4, 6)
        with pytest.raises(AxisError, match="expected the voxels of sim01 in the order of the fit"):
            use(moved)
        with pytest.raises(NormalizationError, match="through 'none', as in the fit, got 'session_z'"):
            use(scaled)
        assert use(person.responses.batch(range(3))).shape == (3, 4, 6)  # nothing is known of an array


class TestWriting:
    def test_a_model_is_replaced_and_nothing_else(self, tmp_path):
        folder, other = tmp_path / "model", fitted("neuroflow")
        first = saved(fitted("synbrain"), folder)
        second = saved(other, folder)
        assert first != second and NeuroFlow.load(folder).subjects_ == ("sim01",)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("all of it")
        with pytest.raises(LayoutError, match="or one with a model to replace, got another"):
            other.save(tmp_path / "mine")
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
        assert {path.name for path in tmp_path.iterdir()} == {"model", "mine"}

    @pytest.mark.parametrize("when", ["weights", "statistics", "name"])
    def test_an_interrupted_write_leaves_the_old_model(self, when, tmp_path, monkeypatch):
        folder = tmp_path / "model"
        before = saved(fitted("synbrain"), folder)

        def full(*_):
            raise OSError("no space left")

        def second_time_full(*arguments, calls=[]):  # noqa: B006
            calls.append(arguments)
            return save_file(*arguments) if len(calls) < 2 else full()

        with monkeypatch.context() as patch:
            if when == "name":
                patch.setattr("os.replace", full)
            else:
                patch.setattr(files, "save_file", full if when == "weights" else second_time_full)
            with pytest.raises(OSError, match="no space"):
                fitted("neuroflow").save(folder)
        assert {name: (folder / name).read_bytes() for name in before} == before
        assert {path.name for path in tmp_path.iterdir()} == {"model"}
        fitted("neuroflow").save(folder)
        assert NeuroFlow.load(folder).subjects_ == ("sim01",)

    @BOTH
    def test_nothing_is_saved_or_predicted_before_fit(self, system, tmp_path):
        with pytest.raises(BrainDataError, match="expected a fitted"):
            small(system).save(tmp_path / "model")
        assert not (tmp_path / "model").exists()
        with pytest.raises(BrainDataError, match="expected a fitted"):
            small(system).predict(features(), image_ids=["a"])


class Killed(Exception):
    pass


def killing(step):
    """An exception instead of the optimiser's step after this many of a process."""
    taken = []

    def advance(self, *arguments, real=None):
        taken.append(self.name)
        if len(taken) > step:
            raise Killed
        return real(self, *arguments)

    return advance


class TestResume:
    @BOTH
    @pytest.mark.parametrize("step", [3, 9], ids=["stage 1", "stage 2"])
    def test_a_killed_run_goes_on_and_ends_with_the_same_bits(self, system, step, tmp_path, monkeypatch):
        from brainmodels.training.loop import _Stage

        real, advance = _Stage.advance, killing(step)
        options = {"subject": "sim01", "save_every": 2, "out": tmp_path / "run"}
        with monkeypatch.context() as patch:
            patch.setattr(_Stage, "advance", lambda *arguments: advance(*arguments, real=real))
            with pytest.raises(Killed):
                small(system).fit(features(), pairs(), **options)
        done, _ = [], fitted(system)  # made here, before steps are counted
        monkeypatch.setattr(_Stage, "advance", lambda *arguments: (done.append(1), real(*arguments))[1])
        model = small(system).fit(features(), pairs(), **options)
        assert len(done) == 12 - step + step % 2  # from the checkpoint before
        assert saved(model, tmp_path / "a") == saved(fitted(system), tmp_path / "b")
        for stage, whole in zip(model.meta_["stages"], fitted(system).meta_["stages"], strict=True):
            assert stage["log"] == whole["log"]
        again = small(system).fit(features(), pairs(), **options)
        assert len(done) == 12 - step + step % 2  # a finished run has nothing to do
        assert saved(again, tmp_path / "c") == saved(model, tmp_path / "d")

    def test_a_run_goes_on_with_what_it_began_with_alone(self, tmp_path):
        model, folder = small("synbrain", response_scale="as_is"), tmp_path / "run"
        model.fit(features(), pairs(), subject="sim01", out=folder)
        longer = replace(model.recipe, stage2=replace(model.recipe.stage2, steps=7))
        with pytest.raises(BrainDataError, match=r"expected the recipe with which the run in .* began, got others"):
            small("synbrain", longer).fit(features(), pairs(), subject="sim01", out=folder)
        with pytest.raises(BrainDataError, match="expected the features with which"):
            type(model)(model.recipe).fit(features("other"), pairs(), subject="sim01", out=folder)
        row = pairs().trials[77][0]  # neither the first, the middle nor the last
        other = with_values(lambda values: values.__setitem__((row, 3), 9))
        names, tokens = features().ids, features().get(features().ids, "tokens")
        for source, given, options in (
            (features(), pairs(dataset=other), {}),
            (features(), pairs(), {"validation": 0.2}),
            (ArrayFeatures(tokens + 1, names, "planted"), pairs(), {}),
        ):
            with pytest.raises(BrainDataError, match="expected the data with which"):
                type(model)(model.recipe).fit(source, given, subject="sim01", out=folder, **options)
        type(model)(model.recipe).fit(features(), pairs(), subject="sim01", out=folder)
