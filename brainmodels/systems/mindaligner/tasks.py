"""What the stages of a MindAligner minimise, and the batches that they take."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ...baselines import Ridge
from ...training.batches import Batch
from ...training.trials import TokenTable, TrialData
from .closed_forms import Side
from .losses import LossWeights, alignment_loss
from .model import CrossStimulusMapper, EmbeddingDecoder, FunctionalEmbedder, LowRankMap
from .pairing import Partners
from .recipes import MindAlignerRecipe

__all__ = ["AlignmentTask", "DecoderTask", "Judge", "KnownImages", "NewTrials"]


class Judge:
    """What says how good aligned responses are, without a response of the known subject to the same image.

    Args:
        encoder: Ridge from embeddings to responses of the known subject.
        decoder: Decoder with `forward(responses)` and `loss(responses, target, ids)`, whose parameters stay; or None.
        table: What the decoder should read from the responses to an image, by id; None without a decoder.
    """

    def __init__(self, encoder: Ridge, decoder: Any = None, table: TokenTable | None = None):
        self.encoder, self.decoder, self.table = encoder, decoder, table
        if decoder is not None:
            decoder.requires_grad_(False).eval()

    def loss(self, ids: np.ndarray, numbers: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The decoder's loss as a function of responses (B, k) aligned to images; None without a decoder.

        Args:
            ids: Ids of the images (B,).
            numbers: Numbers (B,) that tell images apart.
        """
        if self.decoder is None or self.table is None:
            return None
        values = self.table.get(ids)
        values = values[:, 0] if values.shape[1] == 1 else values
        target = torch.tensor(np.ascontiguousarray(values)).to(numbers.device)
        return lambda aligned: self.decoder.loss(aligned, target, numbers)

    def score(self, aligned: Tensor, embeddings: Tensor) -> Tensor:
        """Mean over voxels of the correlation of aligned responses (B, k) with those that the encoder predicts."""
        expected = torch.tensor(self.encoder.predict(embeddings.cpu().numpy())).to(aligned.device)
        return cosine_similarity(aligned - aligned.mean(0), expected - expected.mean(0), 0).mean()


class AlignmentTask(nn.Module):
    """The losses of the map on pairs of different images; in validation, minus the score of aligned responses.

    The score is that of `Judge`, and not how well the decoder reads single trials. On noisy trials the latter is best
    early, for a map that hardly knows more than one direction.

    Args:
        mapping: The map.
        recipe: Recipe of the model.
        new, known: Trials of the new subject, and averaged responses of the known one.
        partners: Images of the known subject for each trial.
        judge: Encoder and decoder of the known subject.
    """

    responses: Tensor
    known_embeddings: Tensor
    new_embeddings: Tensor
    numbers: Tensor

    def __init__(
        self,
        mapping: LowRankMap,
        recipe: MindAlignerRecipe,
        new: Side,
        known: Side,
        partners: Partners,
        judge: Judge,
    ):
        super().__init__()
        width = new.embeddings.shape[1]
        self.map, self.embedder = mapping, FunctionalEmbedder(mapping.rank)
        self.mapper = CrossStimulusMapper(width, mapping.rank, recipe.film)
        self.weights, self.judge, self.ids = LossWeights.of(recipe), judge, new.image_ids
        _, numbers = np.unique(new.image_ids, return_inverse=True)
        tables: Mapping[str, Any] = {
            "responses": known.responses,
            "known_embeddings": known.embeddings,
            "new_embeddings": new.embeddings,
            "numbers": numbers,
        }
        for name, values in tables.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)), persistent=False)
        self.partners, self.places = partners, partners.rows  # rows of a batch count among the trials with partners

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if not self.training:
            score = self.judge.score(self.map(batch.responses), batch.tokens[:, 0])
            return {"loss": -score, "score": score}
        rows = self.places[batch.rows].to(batch.responses.device)
        images = self.partners.to(rows.device).draw(rows, generator)
        parts = alignment_loss(
            self.map,
            self.mapper,
            self.embedder,
            new=batch.responses,
            known=self.responses[images],
            new_image=self.new_embeddings[rows],
            known_image=self.known_embeddings[images],
            weights=self.weights,
            decode=self.judge.loss(self.ids[rows.cpu().numpy()], self.numbers[rows]),
        )
        terms = parts._asdict()
        return {"loss": terms.pop("total"), **terms}


class NewTrials:
    """Trials of the new subject as a source: those with a partner to train on, and all validation trials."""

    def __init__(self, data: TrialData, subject: str, partners: Partners):
        self.data, self.subject, self.places = data, subject, partners.rows.numpy()

    def sizes(self, part: str) -> dict[str, int]:
        """Number of trials by subject."""
        count = len(self.places) if part == "train" else self.data.sizes(part).get(self.subject, 0)
        return {self.subject: count} if count else {}

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Batch:
        """Trials, whose rows count among all trials of the part."""
        return self.data.batch(part, subject, self.places[rows] if part == "train" else rows)

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """Trials in words."""
        return self.data.describe(part, subject, self.places[rows] if part == "train" else rows)


class DecoderTask(nn.Module):
    """The loss of an `EmbeddingDecoder` on averaged responses of the known subject."""

    def __init__(self, decoder: EmbeddingDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        images = torch.from_numpy(batch.rows).to(batch.responses.device)
        return {"loss": self.decoder.loss(batch.responses, batch.tokens[:, 0], images)}


class KnownImages:
    """Averaged responses of the known subject as a source; a tenth of the images validates."""

    def __init__(self, subject: str, known: Side):
        self.subject, self.known = subject, known
        held = np.arange(len(known.responses)) % 10 == 9
        self.places = {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}

    def sizes(self, part: str) -> dict[str, int]:
        """Number of images by subject."""
        return {self.subject: len(self.places[part])} if len(self.places[part]) else {}

    def batch(self, part: str, subject: str, rows: np.ndarray) -> Batch:
        """Responses to images, and their embeddings."""
        places = self.places[part][rows]
        responses, embeddings = (torch.tensor(x[places]) for x in (self.known.responses, self.known.embeddings))
        return Batch(subject, places, responses, embeddings[:, None])

    def describe(self, part: str, subject: str, rows: np.ndarray) -> str:
        """Images in words."""
        return f"images {', '.join(self.known.image_ids[self.places[part][rows[:8]]])} of {subject}"
