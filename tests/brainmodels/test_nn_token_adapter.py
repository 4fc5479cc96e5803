"""Adapters between two token spaces on maps that are known, and generators behind them."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from brainmodels.errors import AxisError, BrainDataError, NormalizationError
from brainmodels.nn.token_adapter import AdaptedGenerator, AdapterSize, TokenAdapter
from tests.brainmodels.pictured import normal

SPACES = AdapterSize(4, 6, 9, 5, width=32, heads=4)


@functools.cache
def planted(num_tokens: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (600, 4, 6), and a linear map of them over tokens and features, its features on scales 0.1 to 10."""
    tokens = normal(600, 4, 6) * 2 + 1
    targets = np.einsum("om,nmd,de->noe", normal(num_tokens, 4, seed=1), tokens, normal(6, 5, seed=2))
    return tokens, (targets * np.geomspace(0.1, 10, 5) + 3).astype(np.float32)


@functools.cache
def adapter() -> TokenAdapter:
    tokens, targets = planted()
    return TokenAdapter.fit(tokens[:500], targets[:500], SPACES, steps=400, lr=3e-3)


def test_an_adapter_recovers_a_linear_map_in_every_feature():
    tokens, targets = planted()
    error = (adapter()(torch.from_numpy(tokens[500:])).numpy() - targets[500:]) ** 2
    unexplained = error.sum((0, 1)) / ((targets[500:] - targets[:500].mean(0)) ** 2).sum((0, 1))
    assert unexplained.max() < 0.05  # measured 0.017; the mean has 1


def test_an_adapter_between_equally_many_tokens_begins_in_place():
    size = dataclasses.replace(SPACES, to_tokens=4)
    assert torch.equal(TokenAdapter(size).mix.weight, torch.eye(4))
    tokens, targets = planted()
    fitted = TokenAdapter.fit(tokens[:500], targets[:500, :4], steps=1)  # the default size of these shapes
    assert fitted.size == AdapterSize(4, 6, 4, 5)
    with pytest.raises(BrainDataError, match="even width divisible by heads=8, got 36"):
        AdapterSize(4, 6, 4, 5, width=36)


def test_an_adapter_is_saved_and_refuses_other_shapes(tmp_path):
    tokens, targets = planted()
    adapter().save(tmp_path)
    loaded = TokenAdapter.load(tmp_path)
    some = torch.from_numpy(tokens[500:])
    assert torch.equal(loaded(some), adapter()(some))
    assert (loaded.fingerprint, loaded.name) == (adapter().fingerprint, "token_adapter[4x6 to 9x5]")
    with pytest.raises(AxisError, match=r"of the same images, got \(600, 4, 6\) and \(5, 9, 5\)"):
        TokenAdapter.fit(tokens, targets[:5])
    with pytest.raises(AxisError, match=r"the targets of token_adapter \(n, 9, 5\), got \(600, 8, 5\)"):
        TokenAdapter.fit(tokens, targets[:, :8], SPACES)


def test_a_generator_behind_an_adapter_gets_its_own_tokens():
    given = []

    def generator(tokens):
        given.append(tokens)
        return torch.full((len(tokens), 3, 2, 2), 0.25, dtype=torch.float64)

    tokens = torch.from_numpy(planted()[0][:7])
    draw = AdaptedGenerator(adapter(), generator, "unclip", "steps 38")
    assert torch.equal(draw(tokens), torch.full((7, 3, 2, 2), 0.25))
    assert torch.equal(given[0], adapter()(tokens))
    assert draw.name == "token_adapter[4x6 to 9x5] + unclip"
    others = [
        AdaptedGenerator(adapter(), generator, "unclip", "steps 20"),
        AdaptedGenerator(adapter(), generator, "other", "steps 38"),
        AdaptedGenerator(TokenAdapter(SPACES), generator, "unclip", "steps 38"),
    ]
    assert len({draw.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (
            torch.full((2, 3, 4, 4), 1.5),
            NormalizationError,
            r"in \[0, 1\] of .* \+ unclip, got 1.5 to 1.5; divide by 255",
        ),
        (torch.full((2, 3, 4, 4), torch.nan), NormalizationError, "got nan to nan"),
        (torch.zeros(3, 3, 4, 4), AxisError, r"images \(2, 3, height, width\) of .*, got \(3, 3, 4, 4\)"),
        (torch.zeros(2, 4, 4, 3), AxisError, r"got \(2, 4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4)), AxisError, "got ndarray"),
    ],
)
def test_what_a_generator_may_not_give(images, error, text):
    draw = AdaptedGenerator(adapter(), lambda tokens: images, "unclip", "1")
    with pytest.raises(error, match=text):
        draw(torch.zeros(2, 4, 6))


def test_a_generator_without_a_name_is_refused():
    with pytest.raises(BrainDataError, match="name and a fingerprint of the generator, got 'unclip' and ''"):
        AdaptedGenerator(adapter(), lambda tokens: tokens, "unclip", "")
