"""A linear world of two subjects whose best map is known, and a plain training loop for maps between them.

world = AlignedWorld(seed=1)
fit_closed_forms(world.new, world.known, world.partners())
world.r(train(world).matrix())
"""

from dataclasses import replace

import numpy as np
import torch

from brainmodels.baselines import LinearDecoder, VoxelModel
from brainmodels.metrics.encoding import voxel_r
from brainmodels.metrics.retrieval import brain_given_image, correlation_matrix, image_given_brain, similarity
from brainmodels.systems.mindaligner.closed_forms import AffineMap, Side, posterior_mean_map
from brainmodels.systems.mindaligner.losses import LossWeights, alignment_loss
from brainmodels.systems.mindaligner.model import CrossStimulusMapper, EmbeddingDecoder, FunctionalEmbedder, LowRankMap
from brainmodels.systems.mindaligner.pairing import Partners, class_partners, nearest_partners, random_partners
from brainmodels.systems.mindaligner.recipes import tiny
from veca.train.schedules import lr_factor

CLASSES, WIDTH = 8, 16
NEW, KNOWN = 210, 180  # voxels
TRIALS, IMAGES, TESTED, REPEATS = 220, 240, 60, 3
BETWEEN = 0.65  # share of the variance of embeddings that lies between classes


class AlignedWorld:
    """Two subjects with linear tuning to embeddings of 16 numbers, which form 8 classes.

    A response is g x w + noise, with unit variance altogether; g^2 / (1 - g^2) is the squared ncsnr, U(.2, 1). No image
    was seen by both subjects but those of the test.

    Attributes:
        new, known: Train trials of the new subject and of the known one, one of each image.
        labels: Class of each image by id.
        test_new: (60, n) Test responses of the new subject, averaged over three repeats.
        test_known: (60, k) Those of the known subject to the same images.
        signal: (60, k) The known subject's response without noise.
        test_embeddings: (60, 16) Embeddings of the test images.
        snr_new: (n,) ncsnr of the new subject's voxels.

    Args:
        seed: Seed of everything.
        silent: Share of the new subject's voxels, from the last, without any signal.
        shared_noise: Share of the noise variance of the new subject that comes from 5 sources common to all voxels.
        common: Number of train images that both subjects saw.
    """

    def __init__(self, seed: int = 0, silent: float = 0.0, shared_noise: float = 0.0, common: int = 0):
        rng = self.rng = np.random.default_rng(seed)
        self.centres = (BETWEEN / (1 - BETWEEN)) ** 0.5 * rng.normal(size=(CLASSES, WIDTH))
        self.centres -= self.centres.mean(0)
        covariance = (self.centres.T @ self.centres / CLASSES + np.eye(WIDTH)) / WIDTH
        self.covariance, self.shared_noise = covariance, shared_noise
        tuning = {}
        for name, count in (("new", NEW), ("known", KNOWN)):
            weights, snr = rng.normal(size=(WIDTH, count)), rng.uniform(0.2, 1, count)
            if name == "new":
                snr[count - int(silent * count) :] = 0
                self.snr_new = snr
            variance = 1 / (1 + snr**2)
            weights *= snr * variance**0.5 / np.einsum("ev,ef,fv->v", weights, covariance, weights) ** 0.5
            tuning[name] = VoxelModel(weights, np.zeros(count), "truth", (), variance)
        self.truth_new, self.truth_known = tuning["new"], tuning["known"]
        self.labels: dict[str, int] = {}
        self.new = self._side("new", TRIALS, self.truth_new)
        self.known = self._side("known", IMAGES, self.truth_known)
        if common:
            shown = slice(0, common)
            again = self._responses(self.known.embeddings[shown], self.truth_new)
            parts = (again, self.known.embeddings[shown], self.known.image_ids[shown], self.known.classes[shown])
            self.new = Side(*(np.concatenate(x) for x in zip(vars(self.new).values(), parts, strict=True)))
        _, self.test_embeddings = self._images(TESTED)
        self.test_new = self._responses(self.test_embeddings, self.truth_new, REPEATS)
        self.test_known = self._responses(self.test_embeddings, self.truth_known, REPEATS)
        self.signal = self.truth_known.predict(self.test_embeddings)

    def _images(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes and embeddings."""
        classes = self.rng.integers(CLASSES, size=count)
        return classes, (self.centres[classes] + self.rng.normal(size=(count, WIDTH))) / WIDTH**0.5

    def _side(self, name: str, count: int, truth: VoxelModel) -> Side:
        classes, embeddings = self._images(count)
        ids = np.array([f"{name}{row:03d}" for row in range(count)])
        self.labels |= dict(zip(ids.tolist(), classes.tolist(), strict=True))
        return Side(self._responses(embeddings, truth), embeddings.astype(np.float32), ids, classes)

    def _responses(self, embeddings: np.ndarray, truth: VoxelModel, repeats: int = 1) -> np.ndarray:
        noise = self.rng.normal(size=(repeats, len(embeddings), len(truth.intercept_)))
        if truth is self.truth_new and self.shared_noise:
            sources = self.rng.normal(size=(repeats, len(embeddings), 5))
            mixing = self.rng.normal(size=(5, noise.shape[-1])) / 5**0.5
            noise = (1 - self.shared_noise) ** 0.5 * noise + self.shared_noise**0.5 * sources @ mixing
        return (truth.predict(embeddings) + truth.residual_var_**0.5 * noise.mean(0)).astype(np.float32)

    def partners(self, pairs: str = "class") -> Partners:
        """Partners of the new subject's trials, of the same "class", the "nearest" ones, or any ("random")."""
        if pairs == "class":
            return class_partners(self.new.image_ids, self.known.image_ids, self.labels)
        if pairs == "nearest":
            return nearest_partners(self.new.embeddings, self.known.embeddings)
        return random_partners(self.new.image_ids, self.known.image_ids)

    def shuffled(self) -> Side:
        """The new subject, whose responses are those to other images."""
        order = np.random.default_rng(0).permutation(len(self.new.responses))
        return replace(self.new, responses=self.new.responses[order])

    def oracle(self) -> AffineMap:
        """The best linear map, from true weights and noise."""
        return posterior_mean_map(self.truth_new, self.truth_known, np.zeros(WIDTH), self.covariance)

    def r(self, aligned: np.ndarray) -> float:
        """Mean over voxels of the correlation of aligned test responses with the known subject's noise-free ones."""
        return float(voxel_r(self.signal, aligned).mean())

    def top1(self, aligned: np.ndarray) -> tuple[float, float]:
        """Shares of rows and of columns that find their image among 60, by the known subject's measured responses."""
        table = correlation_matrix(aligned, self.test_known)
        return image_given_brain(table), brain_given_image(table)

    def decoder(self) -> LinearDecoder:
        """The known subject's ridge from responses to embeddings."""
        return LinearDecoder(calibration="none").fit(
            self.known.responses, self.known.embeddings, groups=self.known.image_ids
        )

    def decoded(self, embeddings: np.ndarray) -> tuple[float, float]:
        """Mean cosine with the true embeddings of the test images, and the share of rows that find theirs among 60."""
        table = similarity(embeddings, self.test_embeddings)
        return float(table.diagonal().mean()), image_given_brain(table)


def train(
    world: AlignedWorld,
    *,
    new: Side | None = None,
    pairs: str = "class",
    film: str = "residual",
    dec: float = 0.0,
    begin: AffineMap | None = None,
    steps: int = 1_500,
    decay: float = 1.0,
    seed: int = 0,
) -> LowRankMap:
    """The map after a plain loop with the settings of `tiny`, without a choice of the best weights."""
    torch.manual_seed(seed)
    new = world.new if new is None else new
    recipe = tiny()
    rank, weights = recipe.rank, replace(LossWeights.of(recipe), dec=dec)
    counts = new.responses.shape[1], world.known.responses.shape[1]
    mapping = LowRankMap(*counts, rank) if begin is None else LowRankMap.from_matrix(begin.matrix, rank)
    helpers = CrossStimulusMapper(WIDTH, rank, film), FunctionalEmbedder(rank)
    decoder = EmbeddingDecoder(counts[1], WIDTH, 0).requires_grad_(False)
    if dec:
        decoder.begin_at(*world.decoder().affine())
    groups = [{"params": mapping.parameters(), "weight_decay": decay}]
    groups += [{"params": x.parameters(), "weight_decay": 0.0} for x in helpers]
    optimizer = torch.optim.AdamW(groups, recipe.align.lr)
    sides = [[torch.from_numpy(x) for x in (side.responses, side.embeddings)] for side in (new, world.known)]
    (responses, images), (known_responses, known_images) = sides
    partners, generator = world.partners(pairs), torch.Generator().manual_seed(seed)
    usable = partners.rows
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.align.lr * lr_factor("cosine", step, steps)
        rows = usable[torch.randint(len(usable), (recipe.align.batch_size,), generator=generator)]
        chosen = partners.draw(rows, generator)
        loss = alignment_loss(
            mapping,
            *helpers,
            new=responses[rows],
            known=known_responses[chosen],
            new_image=images[rows],
            known_image=known_images[chosen],
            weights=weights,
            decode=lambda aligned, rows=rows: decoder.loss(aligned, images[rows], rows),
        )
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    return mapping


def apply(mapping: LowRankMap, responses: np.ndarray) -> np.ndarray:
    """Aligned responses as an array."""
    with torch.no_grad():
        return mapping(torch.from_numpy(responses)).numpy()
