"""MindAligner's networks: sizes, exact algebra, a planted map, and the decoder."""

import numpy as np
import pytest
import torch
from torch import nn

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.systems.mindaligner import recipes
from brainmodels.systems.mindaligner.model import (
    CrossStimulusMapper,
    EmbeddingDecoder,
    FunctionalEmbedder,
    LowRankMap,
    map_rank,
)
from tests.brainmodels.aligned import AlignedWorld


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def millions(module: nn.Module) -> float:
    return round(sum(weight.numel() for weight in module.parameters()) / 1e6, 1)


def test_published_sizes():
    """Those of the four NSD subjects at rank 4096: 105 to 123 M in a map, 23 M in the helpers."""
    voxels = [15_724, 14_278, 13_039, 12_682]
    with torch.device("meta"):
        maps = [millions(LowRankMap(n, k, 4096)) for n in voxels for k in voxels if n != k]
        assert (min(maps), max(maps)) == (105.4, 122.9) and np.mean(maps) == pytest.approx(114, abs=0.2)
        assert millions(CrossStimulusMapper(768, 4096, "released")) == 6.3
        assert millions(FunctionalEmbedder(4096)) == 16.8


class TestLowRankMap:
    def test_is_the_product_of_its_factors(self):
        mapping = LowRankMap(7, 5, 3).double()
        responses = normal(4, 7)
        dense = mapping.A.detach().numpy() @ mapping.B.detach().numpy()
        np.testing.assert_allclose(mapping(responses).detach().numpy(), responses.numpy() @ dense, rtol=1e-12)
        blocks = [mapping.matrix(slice(start, start + 3)) for start in (0, 3, 6)]
        np.testing.assert_allclose(torch.cat(blocks).numpy(), dense, rtol=1e-12)

    @pytest.mark.parametrize(("num_new", "num_known"), [(400, 200), (200, 400)])
    def test_begins_with_the_promised_variances(self, num_new, num_known):
        mapping = LowRankMap(num_new, num_known, 100)
        assert mapping.A.var().item() * num_new == pytest.approx(1, abs=0.05)
        assert mapping.B.var().item() * 100 == pytest.approx(0.01, rel=0.05)

    def test_uniform_is_the_default_of_torch_for_two_linear_layers(self):
        torch.manual_seed(3)
        first, second = (nn.Linear(a, b, bias=False).weight for a, b in ((50, 20), (20, 30)))
        mapping = LowRankMap(50, 30, 20, init="uniform")
        for found, wanted in ((mapping.A, first), (mapping.B, second)):
            assert found.abs().max().item() == pytest.approx(wanted.abs().max().item(), rel=0.02)
            assert found.std().item() == pytest.approx(wanted.std().item(), rel=0.1)

    @pytest.mark.parametrize(("num_new", "num_known"), [(9, 6), (6, 9)])
    def test_from_matrix_has_the_error_of_the_left_out_singular_values(self, num_new, num_known):
        matrix = normal(num_new, num_known)
        sizes = torch.linalg.svdvals(matrix)
        for rank in (1, 4, 6):
            mapping = LowRankMap.from_matrix(matrix, rank)
            error = (mapping.matrix().double() - matrix).norm()
            assert error.item() == pytest.approx(sizes[rank:].norm().item(), abs=1e-6)
            torch.testing.assert_close(mapping.A.norm(), mapping.B.norm())

    def test_rank_is_bounded_by_the_voxels(self):
        assert map_rank(4096, 210, 180) == 180 and map_rank(32, 210, 180) == 32
        with pytest.raises(BrainDataError, match="rank of at least 1, got 0"):
            map_rank(0, 210, 180)
        with pytest.raises(BrainDataError, match="rank from 1 to 180, the smaller number of voxels, got 181"):
            LowRankMap(210, 180, 181)

    def test_mistakes(self):
        with pytest.raises(AxisError, match="at least 2 voxels on either side, got 1 and 5"):
            LowRankMap(1, 5, 1)
        with pytest.raises(AxisError, match=r"responses \(B, 7\) of the new subject, got \(4, 5\)"):
            LowRankMap(7, 5, 3)(torch.zeros(4, 5))
        with pytest.raises(BrainDataError, match="finite matrix"):
            LowRankMap.from_matrix(np.full((3, 3), np.nan), 2)
        with pytest.raises(BrainDataError, match="init to be one of random, uniform, got 'normal'"):
            LowRankMap(7, 5, 3, init="normal")


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(60, 4)), rng.normal(size=(4, 50))
    truth = left @ right / 60**0.5 / 4**0.5  # columns of variance 1
    new = rng.normal(size=(400, 60))
    return truth, new, new @ truth + 0.3 * rng.normal(size=(400, 50))


class TestPlantedMap:
    """F_K = F_N M* + noise on the same stimuli: 60 to 50 voxels, rank 4, 400 rows, noise of sd 0.3."""

    def error(self, found, truth):
        return np.linalg.norm(found - truth) / np.linalg.norm(truth)

    def fit(self, new, known, rank, steps=600):
        torch.manual_seed(0)
        mapping = LowRankMap(60, 50, rank)
        optimizer = torch.optim.AdamW(mapping.parameters(), 1e-2, weight_decay=0)
        inputs, targets = (torch.from_numpy(x).float() for x in (new, known))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
            optimizer.zero_grad()
            (mapping(inputs) - targets).square().mean().backward()
            optimizer.step()
        return mapping.matrix().double().numpy()

    def test_the_true_rank_is_found(self, planted):
        truth, new, known = planted
        found = self.fit(new, known, 4)
        spaces = [np.linalg.svd(x.T)[2][:4] for x in (found, truth)]
        cosines = np.linalg.svd(spaces[0] @ spaces[1].T)[1]
        assert self.error(found, truth) < 0.047 * 1.5
        assert 1 - cosines.min() < 0.002 * 1.5

    def test_a_rank_above_it_is_no_worse_than_least_squares(self, planted):
        truth, new, known = planted
        least = np.linalg.lstsq(new, known, rcond=None)[0]
        assert self.error(least, truth) == pytest.approx(0.126, rel=0.25)
        error = self.error(self.fit(new, known, 16), truth)
        assert error < 0.1 * 1.5 and error <= self.error(least, truth)


class TestCrossStimulusMapper:
    def test_equal_stimuli_leave_exactly_the_map(self):
        mapping, mapper = LowRankMap(9, 8, 6), CrossStimulusMapper(5, 6)
        nn.init.normal_(mapper.linear.weight)  # as after training
        latents = mapping.project(torch.randn(4, 9))
        assert torch.equal(mapper(latents, torch.zeros(4, 5)), latents)
        assert mapper.linear.bias is None

    def test_begins_as_the_identity_for_all_stimuli(self):
        latents = torch.randn(4, 6)
        assert torch.equal(CrossStimulusMapper(5, 6)(latents, torch.randn(4, 5)), latents)
        assert not torch.allclose(CrossStimulusMapper(5, 6, "released")(latents, torch.zeros(4, 5)), latents)

    @pytest.mark.parametrize(("film", "wanted"), [("residual", [[11.0, 29.0]]), ("released", [[10.0, 26.0]])])
    def test_first_half_scales_and_second_half_shifts(self, film, wanted):
        """z = (1, 3), d = (1, 10): gamma = (3, 2), beta = (7, 20)."""
        mapper = CrossStimulusMapper(2, 2, film)
        with torch.no_grad():
            mapper.linear.weight.copy_(torch.tensor([[3.0, 0.0], [2.0, 0.0], [7.0, 0.0], [0.0, 2.0]]))
            if film == "released":
                mapper.linear.bias.zero_()
        found = mapper(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 10.0]]))
        torch.testing.assert_close(found, torch.tensor(wanted))

    def test_other_forms_are_unknown(self):
        with pytest.raises(BrainDataError, match="film to be one of residual, released, got 'plain'"):
            CrossStimulusMapper(5, 6, "plain")


class TestEmbeddingDecoder:
    def test_begins_as_the_ridge(self):
        world = AlignedWorld(0)
        ridge = world.decoder()
        decoder = EmbeddingDecoder(180, 16, depth=2)
        decoder.begin_at(*ridge.affine())
        wanted = ridge.predict(world.test_known)
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        found = decoder(torch.from_numpy(world.test_known)).detach().numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        with pytest.raises(AxisError, match=r"intercept \(180, 16\) and \(16,\), got \(16, 180\) and \(16,\)"):
            decoder.begin_at(ridge.affine()[0].T, ridge.affine()[1])

    def test_loss_by_loops_leaves_trials_of_one_image_out_of_the_negatives(self):
        decoder = EmbeddingDecoder(7, 3, depth=1).double()
        nn.init.normal_(decoder.blocks[0].mlp[-1].weight)  # as after training
        responses, target, ids = normal(4, 7), normal(4, 3, seed=1), torch.tensor([5, 2, 5, 9])
        decoded = decoder(responses).detach().numpy()
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1)
        truth = (target / target.norm(dim=1, keepdim=True)).numpy()
        total = 0.0
        for i in range(4):
            others = [j for j in range(4) if j == i or ids[j] != ids[i]]
            for a, b in ((decoded, truth), (truth, decoded)):
                logits = np.array([a[i] @ b[j] / 0.2 for j in others])
                total -= (a[i] @ b[i] / 0.2 - np.log(np.exp(logits).sum())) / 2 / 4
            total += (1 - decoded[i] @ truth[i]) / 4
        assert decoder.loss(responses, 3 * target, ids).item() == pytest.approx(total, rel=1e-9)

    def test_mistakes(self):
        with pytest.raises(AxisError, match=r"responses \(B, 7\) of the known subject, got \(2, 6\)"):
            EmbeddingDecoder(7, 3)(torch.zeros(2, 6))


class TestRecipes:
    @pytest.mark.parametrize("name", ["paper", "released", "nano", "tiny"])
    def test_survive_json_and_have_names(self, name):
        recipe = recipes.named(name)
        assert recipe.name == name
        assert recipes.MindAlignerRecipe.from_json(recipe.to_json()) == recipe

    def test_released_differs_where_the_code_does(self):
        paper, released = recipes.paper(), recipes.released()
        assert (paper.rank, paper.film, paper.init) == (4096, "residual", "random")
        assert (released.film, released.init, released.align.patience) == ("released", "uniform", None)
        rates = {start: factor * released.align.lr for start, factor, _ in released.align.groups}
        assert rates == {"map.": 1e-5, "embedder.": pytest.approx(1e-2)}
        assert {decay for _, _, decay in released.align.groups} == {0.0}
        assert [decay for start, _, decay in paper.align.groups if start == "map."] == [0.1]
        assert (released.align.batch_size, released.align.steps, released.align.clip_norm) == (16, 399_999, None)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"pairs": "closest"}, "pairs to be one of class, random, nearest, same, got 'closest'"),
            ({"kl_wieght": 1}, "recipe.*got 'kl_wieght'; near: kl_weight"),
            ({"dec_weight": -1.0}, "dec_weight of at least 0, got -1.0"),
            ({"kl_temperature": 0.0}, "kl_temperature above 0, got 0.0"),
            ({"align": {"steps": 5, "batch_size": 3}}, "batch_size of at least 4, .* got 3"),
            ({"rank": 0}, "rank and embed_width of at least 1, got 0, None"),
        ],
    )
    def test_mistakes(self, content, message):
        with pytest.raises(BrainDataError, match=message):
            recipes.MindAlignerRecipe.from_json(content)

    def test_unknown_names(self):
        with pytest.raises(BrainDataError, match="got 'tinny'; near: tiny"):
            recipes.named("tinny")
