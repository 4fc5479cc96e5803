import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import veca
from veca import VECA
from veca.data import load_image
from veca.model.hub import load_weights, with_fewer_cores
from veca.zoo import registry

TINY = dict(embed_dim=32, depth=2, num_heads=2, num_cores=8, trained_budgets=[4, 8], img_size=[48, 64])
OTHER = dict(
    mlp_ratio=3.0,
    multiple_of=8,
    patch_size=8,
    num_classes=5,
    output_dim=48,
    global_from="core0+patch_mean",
    on_odd="crop",
    core_self=False,
    patch_self=True,
    coord_norm="max",
    mean=[0.1, 0.2, 0.3],
    std=[0.5, 0.6, 0.7],
    rope_base=50.0,
    rope_zero_low=0.25,
    rope_axis_order="yx",
    rope_layout="half",
    rope_shift=0.1,
    rope_scale=1.5,
    core_step_norm=True,
    core_step_max=0.1,
    core_logit_log_scale=64,
    norm_eps=1e-4,
    qk_norm=True,
    init_values=0.1,
    drop_path_rate=0.1,
)


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return VECA(**(TINY | options)).eval()


def images(batch=2, height=40, width=56):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_equal_models(a, b, x):
    assert a.config == b.config
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name
    assert torch.equal(a(x), b(x)) and torch.equal(a.forward_features(x).patches, b.forward_features(x).patches)


def rewrite(file, change):
    """Change a file of weights in place."""
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


@pytest.fixture
def folder(tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_round_trip_keeps_every_option_and_weight(tmp_path, capfd):
    model = tiny(**OTHER)
    model.save_pretrained(tmp_path)
    loaded = VECA.from_pretrained(tmp_path)
    assert not loaded.training and not tiny(seed=1, **OTHER).state_dict()["norm.bias"].any()
    assert_equal_models(loaded, model, images())
    assert not torch.equal(loaded(images()), tiny(seed=1, **OTHER)(images()))
    assert capfd.readouterr() == ("", "")
    assert {file.name for file in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = (tmp_path / "README.md").read_text()
    assert "library_name: veca" in card and "veca.load(" in card and "Needed" not in card


def test_the_config_holds_every_argument_and_builds_the_model():
    config = tiny(**OTHER).config
    saved = json.loads(json.dumps(config))
    assert {name: saved[name] for name in TINY | OTHER} == TINY | OTHER
    assert set(saved) == set(VECA._hub_mixin_init_parameters) - {"self"}
    assert list(VECA(**saved).state_dict()) == list(tiny(**OTHER).state_dict())


def test_what_changes_after_construction_is_saved_too(tmp_path):
    model = tiny(num_classes=3)
    settable = dict(budget=4, trained_budgets=(2, 4), on_odd="crop", coord_norm="max", rope_base=50.0, rope_shift=0.1)
    settable |= dict(rope_zero_low=0.25, rope_axis_order="yx", rope_scale=1.5, core_logit_log_scale=64)
    for name, value in (settable | dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))).items():
        setattr(model, name, value)
    model.reset_classifier(6, "patch_mean")
    model.set_input_size((80, 96))
    model.save_pretrained(tmp_path)
    loaded = VECA.from_pretrained(tmp_path)
    assert_equal_models(loaded, model, images())
    assert loaded.num_classes == 6 and loaded.patch_embed.grid_size == (5, 6) and loaded.mean == (0.1, 0.2, 0.3)
    assert {name: getattr(loaded, name) for name in settable} == settable
    with pytest.raises(ValueError, match="budget from 1 to 8, the core bank, got 9"):
        tiny(budget=9)


def test_options_given_at_loading_come_first(folder):
    loaded = VECA.from_pretrained(folder, on_odd="error", impl="reference")
    assert loaded.on_odd == loaded.config["on_odd"] == "error" and loaded.blocks[0].attn.impl == "reference"


def test_weights_that_do_not_fit_are_all_named(folder):
    def change(weights):
        weights["blocks.0.attn.qvk.weight"] = weights.pop("blocks.0.attn.qkv.weight")
        weights["core_bank.tokens"] = weights["core_bank.tokens"][:4].clone()
        weights["zebra"] = torch.zeros(1)

    before = tiny(seed=1)
    untouched = {name: value.clone() for name, value in before.state_dict().items()}
    rewrite(folder / "model.safetensors", change)
    with pytest.raises(ValueError) as raised:
        load_weights(before, folder / "model.safetensors")
    _, *lines = str(raised.value).splitlines()
    assert lines == [
        "  1 missing in the file: blocks.0.attn.qkv.weight",
        "  2 unknown to the model: blocks.0.attn.qvk.weight (near blocks.0.attn.qkv.weight); zebra",
        "  1 of another shape: core_bank.tokens: expected (8, 32), got (4, 32)",
    ]
    assert all(torch.equal(value, untouched[name]) for name, value in before.state_dict().items())
    with pytest.raises(ValueError, match="does not fit this VECA"):
        VECA.from_pretrained(folder)


def test_words_of_the_mixin_are_taken(folder):
    model, x = tiny(), images()
    assert torch.equal(VECA.from_pretrained(folder, map_location="cpu", strict=True)(x), model(x))
    assert {p.device.type for p in VECA.from_pretrained(folder, map_location="cpu:0").parameters()} == {"cpu"}
    rewrite(folder / "model.safetensors", lambda weights: weights.update(extra=weights.pop("norm.bias") + 1))
    with pytest.raises(ValueError, match=r"1 missing in the file: norm\.bias"):
        VECA.from_pretrained(folder)
    with pytest.warns(UserWarning, match=r"(?s)fits this VECA only in part:.*missing .* norm\.bias.*unknown .* extra"):
        loaded = VECA.from_pretrained(folder, strict=False)
    assert torch.equal(loaded(x), model(x))  # a new bias is zero, as the missing one was
    rewrite(folder / "model.safetensors", lambda weights: weights.update({"norm.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"1 of another shape: norm\.bias"):
        VECA.from_pretrained(folder, strict=False)


@pytest.mark.parametrize("name", ["module.{}", "_orig_mod.module.{}", ".0._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, name):
    model = tiny()
    weights = {
        (name.format(key) if "{}" in name else key.replace(".0.", name)): value
        for key, value in model.state_dict().items()
    }
    assert weights.keys() != model.state_dict().keys()
    torch.save(dict(state_dict=weights, epoch=3), tmp_path / "last.pth.tar")  # as timm's script writes it
    save_file(weights, tmp_path / "last.safetensors")
    for file in ("last.pth.tar", "last.safetensors"):
        other = tiny(seed=1)
        load_weights(other, tmp_path / file)
        assert torch.equal(other(images()), model(images())), file


@pytest.mark.filterwarnings("ignore:num_cores=")
def test_fewer_cores_than_saved_are_the_first_ones(folder, shipped):
    x, model = images(), tiny()
    for given, trained in ((6, [4]), (3, [4])):
        few = veca.load(folder, num_cores=given)[0]
        assert torch.equal(few.forward_features(x).patches, model.forward_features(x, given).patches)
        assert few.num_cores == few.budget == given and list(few.trained_budgets) == trained
    saved = dict(num_cores=8, budget=8, trained_budgets=[4, 8])
    assert with_fewer_cores(saved, saved | dict(num_cores=4)) == dict(num_cores=4, budget=None, trained_budgets=[4])
    few = veca.load("veca_nano_patch16", num_cores=5)[0]
    assert torch.equal(few(x), shipped(x, 5)) and few.config["num_cores"] == 5
    with pytest.raises(ValueError, match=r"core_bank\.tokens: expected \(12, 32\), got \(8, 32\)"):
        veca.load(folder, num_cores=12)


def test_whole_numbers_are_no_weights(folder):
    """Loaded, they would be zeros, because the deviation of weights is small."""
    rewrite(folder / "model.safetensors", lambda weights: weights.update(bank_of(weights, torch.int32)))
    with pytest.raises(ValueError, match=r"kind: core_bank\.tokens: expected a floating dtype, got torch\.int32"):
        VECA.from_pretrained(folder)
    rewrite(folder / "model.safetensors", lambda weights: weights.update(bank_of(weights, torch.float16)))
    VECA.from_pretrained(folder)


def bank_of(weights, dtype):
    return {"core_bank.tokens": weights["core_bank.tokens"].to(dtype)}


def test_long_lists_are_counted(folder):
    rewrite(folder / "model.safetensors", lambda weights: weights.clear() or weights.update(a=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"(?s)\d\d missing in the file: .*, and \d\d more.*1 unknown to the model: a"):
        VECA.from_pretrained(folder)


def test_configs_with_unknown_words_or_none_are_refused(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_core": 4}))
    with pytest.raises(ValueError, match=r"arguments of VECA in the config .*, got num_core \(near num_cores\)"):
        VECA.from_pretrained(folder)
    for content in (b'{"embed_dim": 32,', b"\xff\xfe{"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"expected config\.json of .*model' to be a JSON object, got"):
            VECA.from_pretrained(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json beside the weights, found none"):
        VECA.from_pretrained(folder)


def test_files_that_are_none(folder):
    (folder / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=r"expected a safetensors file, got .*model\.safetensors: "):
        VECA.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"found none at .*model\.safetensors"):
        VECA.from_pretrained(folder)


def test_load_gives_the_model_and_its_preprocessing(tmp_path):
    model = tiny(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model.save_pretrained(tmp_path)
    loaded, transform = veca.load(tmp_path)
    assert_equal_models(loaded, model, images())
    color = np.full((96, 300, 3), (51, 102, 204), np.uint8)
    out = transform(Image.fromarray(color))
    assert out.shape == (3, 48, 64)
    expected = (torch.tensor([0.2, 0.4, 0.8]) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    torch.testing.assert_close(out[:, 20, 30], expected)
    assert veca.load(str(tmp_path), on_odd="crop")[0].on_odd == "crop"


def test_the_transform_takes_pictures_of_every_mode_as_load_image_does(tmp_path):
    tiny().save_pretrained(tmp_path / "color")
    tiny(in_chans=1).save_pretrained(tmp_path / "grey")
    (_, transform), (grey_model, grey) = (veca.load(tmp_path / name) for name in ("color", "grey"))
    color = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)).resize((150, 100))
    deep = Image.fromarray(np.asarray(color.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    color.save(tmp_path / "RGB.jpg", exif=exif)
    pictures = [color.convert(mode) for mode in ("L", "RGBA", "P", "CMYK", "LA", "1", "YCbCr", "LAB")] + [deep]
    for picture in pictures:
        picture.save(tmp_path / f"{picture.mode.replace(';', '')}.tif")
    files = sorted(file for file in tmp_path.iterdir() if file.is_file())
    assert len(files) == 10
    for file in files:
        assert torch.equal(transform(Image.open(file)), transform(load_image(file))), file.name
    seen = grey(color)
    assert seen.shape == (1, 48, 64) and grey_model.forward_features(seen[None]).patches.isfinite().all()
    with pytest.raises(TypeError, match="expected a PIL image, got ndarray"):
        transform(np.zeros((48, 64, 3), np.uint8))


@pytest.mark.parametrize("name", ["veca_nanno_patch16", "./absent/folder", "/absent/model"])
def test_load_reaches_no_network_for_names_that_are_no_repository(name, monkeypatch):
    monkeypatch.setattr(VECA, "from_pretrained", lambda *args, **options: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match=f"existing folder, .* got '{re.escape(name)}'; did you mean veca_nano_patch"):
        veca.load(name)


def test_load_asks_the_hub_for_repositories(folder, monkeypatch):
    asked = []

    def download(repo_id, filename, **options):
        asked.append((repo_id, filename))
        return str(folder / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr("veca.model.hub.hf_hub_download", download)
    loaded, _ = veca.load("someone/veca-tiny")
    assert asked == [("someone/veca-tiny", "config.json"), ("someone/veca-tiny", "model.safetensors")]
    assert_equal_models(loaded, tiny(), images())


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package that ships weights of one model, with a classifier."""
    monkeypatch.setattr(registry, "_WEIGHTS", tmp_path)
    torch.manual_seed(3)
    model = veca.create_model("veca_nano_patch16", num_cores=8, num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "veca_nano_patch16.safetensors")
    (tmp_path / "veca_nano_patch16.json").write_text(json.dumps(dict(num_cores=8, num_classes=4)))
    return model


def test_pretrained_loads_what_ships(shipped):
    assert veca.list_models(pretrained=True) == ["veca_nano_patch16"]
    x = images()
    assert torch.equal(veca.create_model("veca_nano_patch16", pretrained=True).eval()(x), shipped(x))
    assert torch.equal(veca.load("veca_nano_patch16")[0](x), shipped(x))
    features = veca.create_model("veca_nano_patch16", pretrained=True, features_only=True, out_indices=[1]).eval()
    assert torch.equal(features(x)[0], shipped.forward_intermediates(x, [1], intermediates_only=True)[0])
    other = veca.create_model("veca_nano_patch16", pretrained=True, num_classes=2).eval()
    assert other(x).shape == (2, 2) and torch.equal(other.norm.weight, shipped.norm.weight)
    assert torch.equal(other.forward_features(x).patches, shipped.forward_features(x).patches)
    with pytest.raises(ValueError, match=r"package \(veca_nano_patch16\), got 'veca_base_patch16'"):
        veca.create_model("veca_base_patch16", pretrained=True)


def test_local_checkpoints_are_strict(shipped, tmp_path):
    file = tmp_path / "veca_nano_patch16.safetensors"
    model = veca.create_model("veca_nano_patch16", checkpoint_path=file, num_cores=8, num_classes=4).eval()
    assert torch.equal(model(images()), shipped(images()))
    with pytest.raises(ValueError, match=r"unknown to the model: head\.bias; head\.weight"):
        veca.create_model("veca_nano_patch16", checkpoint_path=file, num_cores=8)
    with pytest.raises(ValueError, match="pretrained or checkpoint_path, got both"):
        veca.create_model("veca_nano_patch16", pretrained=True, checkpoint_path=file)
