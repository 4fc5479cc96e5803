"""Features of several blocks and attention maps, against hooks and the explicit attention."""

import numpy as np
import pytest
import torch

from tests.models import assert_records_equal, images, tiny_veca


@pytest.mark.parametrize(
    ("indices", "blocks"), [(2, [1, 2]), ([0, -1], [0, 2]), ([1], [1]), (None, [0, 1, 2])], ids=str
)
def test_forward_intermediates_equal_hooks(indices, blocks):
    model, x = tiny_veca(depth=3), images(32, 48)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    record, pairs = model.forward_intermediates(x, indices, return_prefix_tokens=True, output_fmt="NLC", num_cores=8)
    assert len(pairs) == len(blocks)
    for index, (patches, cores) in zip(blocks, pairs, strict=True):
        assert torch.equal(torch.cat((cores, patches), 1), seen[index])
    assert_records_equal(record, model.forward_features(x, 8))

    maps = model.forward_intermediates(x, indices, norm=True, intermediates_only=True, num_cores=8)
    for index, image_map in zip(blocks, maps, strict=True):
        assert image_map.shape == (2, 64, 2, 3)
        torch.testing.assert_close(image_map[:, :, 1, 2], model.norm(seen[index][:, 8 + 1 * 3 + 2]))
        torch.testing.assert_close(image_map[:, :, 1, 0], model.norm(seen[index][:, 8 + 1 * 3 + 0]))


def test_forward_intermediates_can_stop_early():
    model, x = tiny_veca(depth=3), images(32, 48)
    calls = []
    model.blocks[2].register_forward_hook(lambda *args: calls.append(1))
    stopped = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
    assert not calls
    full = model.forward_intermediates(x, [1], intermediates_only=True)
    assert calls and torch.equal(stopped[0], full[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(indices=3), "last 1 to 2 blocks, got 3"),
        (dict(indices=[2]), "from -2 to 1, got 2"),
        (dict(output_fmt="NHWC"), "'NCHW' or 'NLC', got 'NHWC'"),
    ],
)
def test_forward_intermediates_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_veca().forward_intermediates(images(16, 16), **arguments)


def test_blocks_are_whole_numbers():
    model, x = tiny_veca(depth=3), images(16, 16)
    wrong = (1.5, "float"), (True, "bool"), ("a", "str"), ([1.5], "float"), ([True], "bool"), (["a"], "str")
    for given, name in wrong:
        with pytest.raises(TypeError, match=f"expected indices to be an int, got {name}"):
            model.forward_intermediates(x, given)
        with pytest.raises(TypeError, match=f"got {name}"):
            model.get_intermediate_layers(x, given)
    for given in (np.int64(2), np.array([1, 2]), range(1, 3)):
        assert len(model.forward_intermediates(x, given, intermediates_only=True)) == 2


@pytest.mark.parametrize("block", [0, 1, -1])
def test_attention_maps_are_those_of_the_block(block):
    model, x = tiny_veca(), images(32, 48)
    projected, attended = [], []
    layer = model.blocks[block].attn
    layer.qkv.register_forward_hook(lambda module, args, out: projected.append(out))
    layer.proj.register_forward_hook(lambda module, args, out: attended.append(args[0]))
    record = model.forward_features(x, 8)
    maps = model.attention_maps(x, 8, block=block)
    assert maps.core_read.shape == (2, 2, 8, 14) and maps.patch_read.shape == (2, 2, 6, 8)
    v = projected[0].unflatten(-1, (3, 2, 32))[:, :, 2].transpose(1, 2)
    rebuilt = torch.cat((maps.core_read @ v, maps.patch_read @ v[:, :, :8]), 2).transpose(1, 2).flatten(2)
    torch.testing.assert_close(rebuilt, attended[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.core_map.sum(-1), torch.ones(2, 8))
    assert maps.grid_size == (2, 3)
    if block:
        assert torch.equal(maps.core_xy, record.core_xy)
        assert not torch.equal(maps.core_xy[0], model.core_bank.xy[:8])


def test_one_pass_gives_the_features_and_the_maps_of_several_blocks():
    model, x = tiny_veca(depth=4), images(32, 48)
    with torch.no_grad():
        for step in model.core_steps:
            step.alpha.fill_(5.0)
    record, maps = model.forward_maps(x, 8, blocks=[-1, 1])
    assert_records_equal(record, model.forward_features(x, 8))
    for got, block in zip(maps, (1, 3), strict=True):
        assert_records_equal(got, model.attention_maps(x, 8, block=block))
    assert (maps[0].core_xy - maps[1].core_xy).abs().max() > 1e-3
    assert len(model.forward_maps(x, 8, blocks=None)[1]) == 4

    calls = []
    for block in model.blocks:
        block.register_forward_hook(lambda *args: calls.append(1))
    model.forward_maps(x, 8, blocks=[1], stop_early=True)
    assert len(calls) == 1  # block 0, whose output the maps of block 1 need


def test_attention_maps_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="update='parallel', got 'sequential'"):
        tiny_veca(update="sequential").attention_maps(images(16, 16))
    with pytest.raises(ValueError, match="from -2 to 1, got 2"):
        tiny_veca().attention_maps(images(16, 16), block=2)
