"""Versatile Diffusion and Optimus from fabricated folders: what is loaded, what is refused, and what is mixed."""

import shutil
import socket

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from brainmodels.errors import BrainDataError, LayoutError
from brainmodels.systems.unibrain.optimus import convert_optimus, load_optimus
from brainmodels.systems.unibrain.sampling import Sampling
from brainmodels.systems.unibrain.versatile import VersatileGenerator
from tests.brainmodels.written.versatile import LATENT, WIDTH, write_optimus, write_versatile

pytestmark = pytest.mark.filterwarnings("ignore")
CAPTIONS = ["a red circle", "a blue square on a circle"]
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("versatile")
    write_versatile(root / "vd")
    source = write_optimus(root / "source")
    out = convert_optimus(source / "optimus-vae.pth", root / "optimus", source / "bert", source / "gpt2")
    return root / "vd", out, source


@pytest.fixture(scope="module")
def generator(places):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", None)  # no network
        return VersatileGenerator(places[0], places[1])


def test_blocks_have_the_shapes_that_are_promised(generator):
    latents = generator.latents(PICTURES, CAPTIONS)
    latents.check(generator.shapes)
    assert generator.shapes == {"z_image": (4, 8, 8), "z_text": (LATENT,), "c_image": (5, WIDTH), "c_text": (9, WIDTH)}
    assert generator.outputs == ("images", "captions") and generator.pixels == 16
    np.testing.assert_allclose(np.linalg.norm(latents.c_image[:, 0], axis=1), 1, atol=1e-5)  # the class token
    ends = [np.abs(np.linalg.norm(row, axis=1) - 1).min() for row in latents.c_text]
    np.testing.assert_allclose(ends, 0, atol=1e-5)  # the pooled token
    one = generator.latents(captions=CAPTIONS[:1])
    np.testing.assert_allclose(one.z_text, latents.z_text[:1], atol=1e-5)  # padding does not matter


def test_one_context_alone_is_the_single_unet(generator, places):
    latents = generator.latents(PICTURES, CAPTIONS)
    plain = UNet2DConditionModel.from_pretrained(places[0] / "image_unet").eval()
    z, time = torch.from_numpy(latents.z_image), torch.tensor(500)
    c_image, c_text = torch.from_numpy(latents.c_image), torch.from_numpy(latents.c_text)
    both = torch.cat([c_image, c_text], 1)
    outputs = {}
    with torch.no_grad():
        for weight in (1.0, 0.5, 0.0):
            for dual in generator.duals:
                dual.image_weight = weight
            outputs[weight] = generator.image_unet(z, time, both).sample
        alone = plain(z, time, c_image).sample
    torch.testing.assert_close(outputs[1.0], alone, rtol=1e-4, atol=1e-5)  # products differ in the last bit by address
    assert not torch.equal(outputs[0.0], outputs[1.0])
    assert not torch.allclose(outputs[0.5], (outputs[0.0] + outputs[1.0]) / 2)  # blocks are mixed, not outputs


def test_both_outputs_are_denoised_drawn_and_written(generator):
    latents = generator.latents(PICTURES, CAPTIONS)
    contexts = latents.c_image, latents.c_text
    for kind in ("image", "text"):
        z = getattr(latents, f"z_{kind}")
        options = {"sampling": Sampling(0.6, 0.5, 4, 2.0), "seeds": [1, 2]}
        made = generator.denoise(kind, z, *contexts, **options)
        assert made.shape == z.shape and np.isfinite(made).all() and not np.allclose(made, z)
        alone = generator.denoise(kind, z[1:], *(c[1:] for c in contexts), sampling=options["sampling"], seeds=[2])
        np.testing.assert_allclose(alone, made[1:], atol=1e-4)
        other = generator.denoise(kind, z, contexts[0], None, **options)
        assert not np.allclose(other, made)
    pictures = generator.draw(latents.z_image)
    assert pictures.shape == (2, 3, 16, 16) and pictures.min() >= 0 and pictures.max() <= 1
    texts = generator.write(latents.z_text)
    assert texts == generator.write(latents.z_text) and all(isinstance(text, str) for text in texts)
    with pytest.raises(BrainDataError, match="a seed for each caption"):
        generator.write(latents.z_text, sampling="sample")


def changed(places, tmp_path, name, change):
    """A copy of the folder with other tensors in one component."""
    shutil.copytree(places[0], tmp_path / "vd")
    file = next((tmp_path / "vd" / name).glob("*.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return tmp_path / "vd"


def test_a_removed_and_a_renamed_weight_are_named(places, tmp_path):
    key = "time_embedding.linear_1.bias"
    folder = changed(places, tmp_path / "a", "image_unet", lambda x: x.pop(key))
    with pytest.raises(LayoutError, match=rf"image_unet .*missing keys: \['{key}'\]"):
        VersatileGenerator(folder)
    folder = changed(places, tmp_path / "b", "text_encoder", lambda x: x.update(other=torch.zeros(2)))
    with pytest.raises(LayoutError, match=r"text_encoder .*unexpected keys: \['other'\]"):
        VersatileGenerator(folder)


def test_unequal_time_embeddings_are_noticed(places, tmp_path):
    folder = changed(places, tmp_path, "text_unet", lambda x: x["time_embedding.linear_1.weight"].add_(1))
    with pytest.raises(LayoutError, match=r"one time embedding .* linear_1.weight"):
        VersatileGenerator(folder)


def test_what_is_not_there_is_named(places, tmp_path):
    with pytest.raises(LayoutError, match="nothing is downloaded"):
        VersatileGenerator("shi-labs/versatile-diffusion")
    (tmp_path / "snapshots" / "abc123").mkdir(parents=True)
    with pytest.raises(LayoutError, match=r"image_unet, vae.* hub cache is .*abc123"):
        VersatileGenerator(tmp_path)
    folder = shutil.copytree(places[0], tmp_path / "vd")
    shutil.rmtree(folder / "text_unet")
    without = VersatileGenerator(folder, places[1])
    assert without.outputs == ("images",)
    latents = without.latents(PICTURES)
    made = without.denoise(
        "image", latents.z_image, latents.c_image, None, sampling=Sampling(1.0, 0.5, 2), seeds=[1, 2]
    )
    assert made.shape == latents.z_image.shape
    with pytest.raises(BrainDataError, match="expected text_unet for captions"):
        without.denoise("image", latents.z_image, latents.c_image, None, sampling=Sampling(0.6, 0.5, 2), seeds=[1, 2])
    with pytest.raises(BrainDataError, match="expected Optimus for captions"):
        VersatileGenerator(places[0]).latents(captions=CAPTIONS)


def test_optimus_is_converted_strictly(places, tmp_path):
    source = places[2]
    weights = torch.load(source / "optimus-vae.pth")
    weights.pop("encoder.pooler.dense.bias")
    torch.save(weights, tmp_path / "optimus.pth")
    with pytest.raises(LayoutError, match=r"got no[ne of]* \['encoder.pooler.dense.bias'\]"):
        convert_optimus(tmp_path / "optimus.pth", tmp_path / "out", source / "bert", source / "gpt2")
    vae, tokens = load_optimus(places[1])
    assert tokens.end == vae.decoder.config.vocab_size - 1 == tokens.start + 1 == tokens.gpt2.eos_token_id
    assert tokens.bert.decode(tokens.encode(["a red circle"])[0][0], skip_special_tokens=True) == "a red circle"
    with pytest.raises(LayoutError, match="convert-optimus"):
        load_optimus(tmp_path)
