"""MindAligner's losses against values by hand and loops in fp64, and the pairs they are computed on."""

import math

import numpy as np
import pytest
import torch

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.systems.mindaligner.losses import (
    LossWeights,
    alignment_loss,
    latent_loss,
    reconstruction_loss,
    voxel_divergence,
)
from brainmodels.systems.mindaligner.model import CrossStimulusMapper, FunctionalEmbedder, LowRankMap
from brainmodels.systems.mindaligner.pairing import (
    check_classes,
    class_partners,
    nearest_partners,
    random_partners,
    same_partners,
    stimulus_difference,
)
from brainmodels.systems.mindaligner.recipes import tiny


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestDivergence:
    """Two voxels: p_hat = (3/4, 1/4), p = (1/2, 1/2)."""

    predicted, target = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[7.0, 7.0]])

    def test_both_directions_by_hand(self):
        forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        backward = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
        assert voxel_divergence(self.predicted, self.target).item() == pytest.approx(forward, rel=1e-6)
        measured = voxel_divergence(self.predicted, self.target, direction="measured")
        assert measured.item() == pytest.approx(backward, rel=1e-6)

    def test_temperature_divides_the_responses(self):
        cooled = voxel_divergence(2 * self.predicted, 2 * self.target, temperature=2.0)
        torch.testing.assert_close(cooled, voxel_divergence(self.predicted, self.target))

    def test_is_a_sum_over_voxels_and_a_mean_over_trials(self):
        predicted, target = normal(3, 5), normal(3, 5, seed=1)
        total = 0.0
        for p, q in zip(predicted.numpy(), target.numpy(), strict=True):
            p, q = np.exp(p) / np.exp(p).sum(), np.exp(q) / np.exp(q).sum()
            total += (p * np.log(p / q)).sum() / 3
        assert voxel_divergence(predicted, target).item() == pytest.approx(total, rel=1e-12)

    def test_autocast_changes_nothing(self):
        predicted, target = normal(4, 300).float(), normal(4, 300, seed=1).float()
        wanted = voxel_divergence(predicted, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(voxel_divergence(predicted, target), wanted)


class TestLatentLoss:
    def test_rows_are_the_known_subject_and_columns_the_new_one(self):
        """Images agree only where row 0 meets column 1; latents agree there too, or only in the transposed place."""
        a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        known, new = torch.stack([a, a]), torch.stack([b, a])  # cosines (known, new): [[0, 1], [0, 1]]
        assert latent_loss(known, new, known, new).item() == 0
        # exchanged sides have the table [[0, 0], [1, 1]]: differences 0, 1, 1 and 0
        assert latent_loss(known, new, new, known).item() == pytest.approx(0.5)

    def test_by_loops_and_without_gradient_of_the_images(self):
        known, new = normal(3, 4).requires_grad_(), normal(3, 4, seed=1)
        latents = normal(3, 6, seed=2), normal(3, 6, seed=3)
        cosine = torch.nn.functional.cosine_similarity
        total = 0.0
        for j in range(3):
            for i in range(3):
                image = 1 - cosine(known[j], new[i], dim=0)
                total += (1 - cosine(latents[0][j], latents[1][i], dim=0) - image) ** 2 / 9
        found = latent_loss(known, new, *latents)
        torch.testing.assert_close(found, total.detach())
        assert not found.requires_grad


class TestAlignmentLoss:
    B, N, K, H, E = 5, 9, 7, 4, 3

    def made(self):
        torch.manual_seed(0)
        nets = LowRankMap(self.N, self.K, self.H), CrossStimulusMapper(self.E, self.H), FunctionalEmbedder(self.H)
        for net in nets:
            net.double()
        torch.nn.init.normal_(nets[1].linear.weight)
        shapes = {"new": self.N, "known": self.K, "new_image": self.E, "known_image": self.E}
        return nets, {name: normal(self.B, size, seed=i) for i, (name, size) in enumerate(shapes.items())}

    def test_parts_are_those_of_the_definition(self):
        (mapping, mapper, embedder), batch = self.made()
        weights = LossWeights(kl=0.3, latent=2.0, dec=0.7, temperature=1.5, direction="measured")
        loss = alignment_loss(
            mapping, mapper, embedder, **batch, weights=weights, decode=lambda aligned: aligned.square().sum()
        )
        z_new = batch["new"] @ mapping.A
        gamma, beta = ((batch["known_image"] - batch["new_image"]) @ mapper.linear.weight.T).split(self.H, 1)
        z_known = z_new + gamma * z_new + beta
        predicted = z_known @ mapping.B
        torch.testing.assert_close(loss.rec, (predicted - batch["known"]).square().mean().detach())
        torch.testing.assert_close(loss.kl, voxel_divergence(predicted, batch["known"], 1.5, "measured").detach())
        tables = batch["known_image"], batch["new_image"], embedder(z_known), embedder(z_new)
        torch.testing.assert_close(loss.latent, latent_loss(*tables).detach())
        torch.testing.assert_close(loss.dec, (z_new @ mapping.B).square().sum().detach())  # without the mapper
        total = loss.rec + 0.3 * loss.kl + 2 * loss.latent + 0.7 * loss.dec
        torch.testing.assert_close(loss.total.detach(), total)
        assert loss.total.requires_grad and not any(part.requires_grad for part in loss[1:])

    def test_weights_of_a_recipe(self):
        assert LossWeights.of(tiny()) == LossWeights(0.1, 1e-3, 0.1, 1.0, "predicted")

    def test_a_term_without_weight_has_no_gradient(self):
        (mapping, mapper, embedder), batch = self.made()
        loss = alignment_loss(mapping, mapper, embedder, **batch, weights=LossWeights(0, 0, 0))
        assert loss.total == loss.rec and loss.kl == loss.latent == loss.dec == 0
        loss.total.backward()
        assert embedder.weight.grad is None and mapping.A.grad is not None

    def test_mistakes(self):
        nets, batch = self.made()
        with pytest.raises(BrainDataError, match="at least 4 pairs, got 3"):
            alignment_loss(*nets, **{name: x[:3] for name, x in batch.items()}, weights=LossWeights())
        with pytest.raises(AxisError, match=r"one shape, got \(2, 3\) and \(2, 4\)"):
            reconstruction_loss(torch.zeros(2, 3), torch.zeros(2, 4))
        with pytest.raises(BrainDataError, match="direction to be one of predicted, measured, got 'both'"):
            voxel_divergence(torch.zeros(2, 3), torch.zeros(2, 3), direction="both")


NEW = ["n0", "n1", "n2", "n3", "n4"]
KNOWN = ["k0", "k1", "k2", "k3"]
LABELS = {"n0": "dog", "n1": "cat", "n2": "dog", "n3": "tree", "n4": "cat"}
LABELS |= {"k0": "cat", "k1": "dog", "k2": "dog", "k3": "bus"}


class TestPairs:
    def drawn(self, partners, count=2_000):
        rows = partners.rows.repeat(count)
        return rows, partners.draw(rows, torch.Generator().manual_seed(0))

    def test_difference_is_known_minus_new(self):
        known, new = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 5.0]])
        assert stimulus_difference(known, new).tolist() == [[2.0, -4.0]]
        with pytest.raises(AxisError, match="embeddings of one shape"):
            stimulus_difference(known, new[:, :1])

    def test_class_partners_share_the_class_of_the_images_that_are_indexed(self):
        partners = class_partners(NEW, KNOWN, LABELS)
        rows, images = self.drawn(partners)
        assert all(LABELS[NEW[i]] == LABELS[KNOWN[j]] for i, j in zip(rows, images, strict=True))
        assert partners.rows.tolist() == [0, 1, 2, 4] and partners.dropped == 1  # nobody else saw a tree
        dogs = images[rows == 0]
        assert set(dogs.tolist()) == {1, 2} and (dogs == 1).double().mean().item() == pytest.approx(0.5, abs=0.05)
        check_classes(rows, images, NEW, KNOWN, LABELS)

    def test_exchanged_lists_of_ids_are_caught(self):
        """Both lists have the same length, so that nothing fails but the check."""
        new = NEW[:4]
        exchanged = class_partners(KNOWN, new, LABELS)
        rows, images = self.drawn(exchanged, 10)
        with pytest.raises(BrainDataError, match=r"pairs of images of one class, got \d+ of 30 that differ, such as n"):
            check_classes(rows, images, new, KNOWN, LABELS)

    def test_a_trial_without_partner_is_refused(self):
        with pytest.raises(BrainDataError, match="trials that have a partner, got 1 without"):
            class_partners(NEW, KNOWN, LABELS).draw(torch.tensor([0, 3]))

    def test_random_partners_are_uniform_over_all_images(self):
        partners = random_partners(NEW, KNOWN)
        _, images = self.drawn(partners)
        assert partners.dropped == 0
        np.testing.assert_allclose(np.bincount(images) / len(images), 0.25, atol=0.02)

    def test_nearest_partners_by_brute_force(self):
        new, known = normal(6, 3).numpy(), normal(20, 3, seed=1).numpy()
        rows, images = self.drawn(nearest_partners(new, known), 200)
        for i in range(6):
            cosines = known @ new[i] / np.linalg.norm(known, axis=1)
            assert set(images[rows == i].tolist()) == set(np.argsort(-cosines)[:5].tolist())
        few = nearest_partners(new, known[:3])
        assert few.counts.tolist() == [3] * 6

    def test_same_partners_are_the_same_image(self):
        partners = same_partners(["a", "b", "a", "c"], ["c", "x", "a"])
        assert partners.rows.tolist() == [0, 2, 3] and partners.dropped == 1
        assert partners.draw(partners.rows).tolist() == [2, 2, 0]
        with pytest.raises(BrainDataError, match="images that both subjects saw for pairs='same', got none"):
            same_partners(["a"], ["b"])

    def test_draws_depend_on_the_generator_alone(self):
        partners = random_partners(NEW, KNOWN)
        first, second = (partners.draw(partners.rows, torch.Generator().manual_seed(4)) for _ in range(2))
        assert torch.equal(first, second)

    def test_mistakes_of_labels(self):
        with pytest.raises(BrainDataError, match="a label for every image, got none for 1, such as k3"):
            class_partners(NEW, KNOWN, {name: x for name, x in LABELS.items() if name != "k3"})
        with pytest.raises(BrainDataError, match="at least 2 classes that both subjects saw, got 1"):
            class_partners(["n0", "n2"], KNOWN, LABELS)
