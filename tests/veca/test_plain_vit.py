"""The plain ViT that ships to be compared with, and the eight bits that its matrices are kept in."""

import torch

from veca.zoo.plain_vit import pack_rows, unpack_rows


def test_each_number_is_within_half_a_step_of_its_row():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 24, generator=generator) * torch.logspace(-3, 2, 40)[:, None]
    filters = torch.randn(6, 3, 4, 4, generator=generator)
    weights = {"a.weight": rows, "b.weight": filters, "bias": torch.randn(7), "table": torch.randn(1, 5, 3)}
    packed = pack_rows(weights)
    assert packed["a.weight"].dtype == packed["b.weight"].dtype == torch.int8
    back = unpack_rows(packed)
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        step = weight.flatten(1).abs().amax(1) / 127 if weight.ndim in (2, 4) else weight.abs().max()[None] * 2**-10
        error = (back[name] - weight).abs().reshape(len(step), -1).amax(1)
        assert (error <= 0.501 * step).all(), name
        assert weight.ndim not in (2, 4) or error.max() > 0
    zero = {"w": torch.zeros(2, 3)}
    assert torch.equal(unpack_rows(pack_rows(zero))["w"], zero["w"])
