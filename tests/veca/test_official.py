"""Checkpoints as the authors' code writes them, made of our own models."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import veca
from tests.models import assert_records_equal, images, tiny_veca
from veca import cli
from veca.zoo.official import load_official

CHUNK = 4
SETTINGS = dict(
    hidden_dim=64, num_layers=2, num_heads=2, num_query_tokens=16, patch_size=16, in_channels=3, dropout=0.0,
    nested_chunk_size=CHUNK, nested_budgets=(4, 8, 16), distill_output_dim=96, image_size=64, resize_short=72,
    rope_shift_coords=0.08, rope_jitter_coords=None, rope_rescale_coords=2.0, rope_p_zero_freqs=0.25,
    rope_zero_freqs_from="low", patch_embed_use_ln=False,
)  # fmt: skip


def ours(**options):
    """A model with the options of `SETTINGS`, whose weights are all drawn, so that no two are equal."""
    model = tiny_veca(output_dim=96, on_odd="crop", rope_zero_low=0.25, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def theirs(model, chunk=CHUNK):
    """The weights of a model by the names and in the groups of the authors."""
    w = model.state_dict()
    new = {f"patch_embed.proj.{kind}": w[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias")}
    for i in range(model.num_cores // chunk):
        new[f"query_token_chunks.{i}"] = w["core_bank.tokens"][None, i * chunk : (i + 1) * chunk]
        new[f"qcoord_chunks.{i}"] = w["core_bank.raw_xy"][None, i * chunk : (i + 1) * chunk]
    depth, width = len(model.blocks), model.embed_dim
    new["pos_alpha"] = torch.cat([w[f"core_steps.{i}.alpha"] for i in range(depth - 1)])
    for kind in ("weight", "bias"):
        for i in range(depth - 1):
            new[f"pos_linears.{i}.{kind}"] = w[f"core_steps.{i}.head.{kind}"]
        for i in range(depth):
            q, k, v = w[f"blocks.{i}.attn.qkv.{kind}"].split(width)
            pairs = dict(norm1="norm_attn", norm2="norm_ffn")
            pairs |= {"attn.proj": "attn.out_proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
            new |= {f"blocks.{i}.{name}.{kind}": w[f"blocks.{i}.{own}.{kind}"] for own, name in pairs.items()}
            new |= {f"blocks.{i}.attn.{n}_proj.{kind}": x for n, x in (("q", q), ("k", k), ("v", v))}
        new[f"final_norm.{kind}"] = w[f"norm.{kind}"]
        new[f"output_proj.{kind}"] = w[f"output.{kind}"]
    return {name: value.clone() for name, value in new.items()}


def checkpoint(path, weights, **settings):
    counters = dict(optimizer=dict(state={}, param_groups=[dict(lr=1e-3)]), epoch=3)
    torch.save(dict(student=weights, config=SETTINGS | settings, **counters), path)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("official") / "x.pt", theirs(ours()))


def test_every_way_in_gives_the_same_model_bit_for_bit(file, tmp_path, capsys):
    model, x = ours(num_heads=2), images(50, 70)
    expected = model.forward_features(x)
    loaded, transform = veca.load(file)
    cli.main(["import", str(file), "--out", str(tmp_path / "folder")])
    assert "2 blocks of width 64, 16 cores" in capsys.readouterr().out
    save_file(theirs(model), tmp_path / "x.safetensors")
    torch.save({f"module.student.{name}": value for name, value in theirs(model).items()}, tmp_path / "bare.pt")
    alone = dict(num_heads=2, rope_zero_low=0.25)  # what shapes do not tell; the head dim of published sizes is 64
    ways = [
        loaded,
        veca.load(tmp_path / "folder")[0],
        veca.load(str(tmp_path / "x.safetensors"), **alone)[0],
        veca.load(tmp_path / "bare.pt", **alone)[0],
        veca.create_model(
            "veca_nano_patch16", checkpoint_path=file, **(loaded.config | dict(img_size=64))
        ).eval(),
    ]  # fmt: skip
    for way in ways:
        assert not way.training
        assert_records_equal(way.forward_features(x), expected, rtol=0, atol=0)
    assert loaded.config == ways[1].config
    kept = dict(on_odd="crop", rope_shift=0.08, rope_scale=2.0, trained_budgets=[4, 8, 16], num_classes=0, img_size=64)
    assert {name: loaded.config[name] for name in kept} == kept and ways[2].config["img_size"] == 256
    assert transform(Image.new("RGB", (100, 72))).shape == (3, 64, 64)
    assert transform.transforms[-4].size == 72 and ways[2].pretrained_cfg["crop_pct"] == 256 / 288


def test_fewer_cores_are_the_first_ones(file):
    few = veca.load(file, num_cores=8)[0]
    assert_records_equal(
        few.forward_features(images(48, 48)), ours().forward_features(images(48, 48), 8), rtol=0, atol=0
    )
    assert list(few.trained_budgets) == [4, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(patch_embed_use_ln=True), "patch_embed_use_ln, a LayerNorm in the patch embedding"),
        (dict(dropout=0.1), "dropout=0.1"),
        (dict(rope_jitter_coords=1.2), "rope_jitter_coords=1.2"),
        (dict(rope_zero_freqs_from="high"), "rope_zero_freqs_from='high'"),
        (dict(num_layers=3), "num_layers of the config in .*x.pt to be 2, as in its weights, got 3"),
        (dict(matryoshka_chunk_size=8), "matryoshka_chunk_size .* to be 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_represented_is_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        load_official(checkpoint(tmp_path / "x.pt", theirs(ours()), **settings))


class Trap:
    def __reduce__(self):
        return pytest.fail, ("code of the file was run",)


def test_other_files_are_refused_and_no_code_is_run(tmp_path):
    torch.save(dict(student=theirs(ours()), config=Trap()), tmp_path / "trap.pt")
    with pytest.raises(ValueError, match=r"file of torch.save with tensors and plain values, got .*trap\.pt"):
        veca.load(tmp_path / "trap.pt")
    torch.save(ours().state_dict(), tmp_path / "own.pt")
    with pytest.raises(ValueError, match=r"own\.pt to be a checkpoint of the authors' VECA, .*takes the folder"):
        veca.load(tmp_path / "own.pt")
    with pytest.raises(ValueError, match=r"unknown to the model: .*extra"):
        load_official(checkpoint(tmp_path / "more.pt", theirs(ours()) | dict(extra=torch.zeros(1))))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    with pytest.raises(SystemExit, match="expected --out to be a new or an empty folder"):
        cli.main(["import", str(tmp_path / "own.pt"), "--out", str(tmp_path / "full")])
