"""Pairs of different images for the training of a map: for each trial of the new subject, images of the known one.

partners = class_partners(new_ids, known_ids, labels)   # labels: class by image id
rows = partners.rows[batch]                             # trials that have partners
images = partners.draw(rows, generator)                 # rows of the known subject's images
difference = stimulus_difference(known_embeddings[images], new_embeddings[rows])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...data.ids import Ids
from ...errors import AxisError, BrainDataError

__all__ = [
    "NEAREST",
    "Partners",
    "check_classes",
    "class_partners",
    "nearest_partners",
    "random_partners",
    "same_partners",
    "stimulus_difference",
]

NEAREST = 5  # number of images of the known subject among which a near one is drawn


@dataclass(frozen=True)
class Partners:
    """Images of the known subject that may be paired with each trial of the new subject.

    Those of trial i are `images[starts[i] : starts[i] + counts[i]]`.

    Attributes:
        images: (c,) Rows of the known subject's images, one list after the other.
        starts, counts: (t,) Place and length of the list of each trial. Trials may share a list.
    """

    images: Tensor
    starts: Tensor
    counts: Tensor

    @property
    def rows(self) -> Tensor:
        """Trials (r,) that have a partner."""
        return self.counts.nonzero()[:, 0]

    @property
    def dropped(self) -> int:
        """Number of trials without a partner, which are not trained on."""
        return int((self.counts == 0).sum())

    def draw(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One image for each trial, uniformly from its list.

        Args:
            rows: (B,) Trials that have a partner.
            generator: Generator of the draw, on the device of the lists.

        Returns:
            (B,) Rows of the known subject's images.

        Raises:
            BrainDataError: A trial has no partner.
        """
        counts = self.counts[rows]
        if not counts.all():
            raise BrainDataError(f"expected trials that have a partner, got {int((counts == 0).sum())} without")
        share = torch.rand(len(rows), generator=generator, dtype=torch.float64, device=counts.device)
        return self.images[self.starts[rows] + (share * counts).long()]

    def to(self, device: torch.device | str) -> "Partners":
        """The same lists on a device."""
        return Partners(*(x.to(device) for x in (self.images, self.starts, self.counts)))


def class_partners(new_ids: Ids, known_ids: Ids, labels: Mapping[str, object]) -> Partners:
    """Every image of the same class.

    Args:
        new_ids: (t,) Images that the trials of the new subject showed.
        known_ids: (j,) Images of the rows of the known subject.
        labels: Class of each image by id.

    Raises:
        BrainDataError: An image has no label, or trials of fewer than two classes have partners.
    """
    new, known = (_labelled(ids, labels) for ids in (new_ids, known_ids))
    lists = {label: np.array([row for row, x in enumerate(known) if x == label]) for label in dict.fromkeys(known)}
    shared = [label for label in lists if label in set(new)]
    if len(shared) < 2:
        raise BrainDataError(
            f"expected at least 2 classes that both subjects saw, got {len(shared)}; see pairs='random'"
        )
    found = _partners([lists.get(label, np.empty(0, np.int64)) for label in new])
    check_classes(found.rows, found.draw(found.rows), new_ids, known_ids, labels)
    return found


def random_partners(new_ids: Ids, known_ids: Ids) -> Partners:
    """Every image of the known subject, for all trials."""
    count = len(list(new_ids))
    images = torch.arange(len(list(known_ids)))
    return Partners(images, torch.zeros(count, dtype=torch.int64), torch.full((count,), len(images)))


def nearest_partners(new_embeddings: np.ndarray, known_embeddings: np.ndarray, count: int = NEAREST) -> Partners:
    """The images with the largest cosines of embeddings, `count` of them or as many as there are.

    Args:
        new_embeddings: (t, E) Embeddings of the images that the trials of the new subject showed.
        known_embeddings: (j, E) Embeddings of the images of the known subject.
        count: Number of images for each trial.
    """
    new, known = (normalize(torch.as_tensor(x).float(), dim=-1) for x in (new_embeddings, known_embeddings))
    blocks = [(part @ known.T).topk(min(count, len(known)), dim=1).indices for part in new.split(1024)]
    return _partners(list(torch.cat(blocks).numpy()))


def same_partners(new_ids: Ids, known_ids: Ids) -> Partners:
    """The same image, where the known subject saw it.

    Raises:
        BrainDataError: The subjects have no image in common.
    """
    places: dict[str, list[int]] = {}
    for row, name in enumerate(known_ids):
        places.setdefault(str(name), []).append(row)
    found = _partners([np.array(places.get(str(name), []), np.int64) for name in new_ids])
    if not len(found.rows):
        raise BrainDataError("expected images that both subjects saw for pairs='same', got none")
    return found


def check_classes(
    rows: Tensor | np.ndarray,
    images: Tensor | np.ndarray,
    new_ids: Ids,
    known_ids: Ids,
    labels: Mapping[str, object],
) -> None:
    """Check pairs by the ids of the images that they really index; exchanged lists of ids do not pass.

    Args:
        rows, images: (B,) Trials of the new subject, and rows of the known subject's images.
        new_ids, known_ids: Ids of the rows that are indexed.
        labels: Class of each image by id.

    Raises:
        BrainDataError: The classes of a pair differ.
    """
    new, known = (np.asarray(list(ids), dtype=str) for ids in (new_ids, known_ids))
    pairs = list(zip(new[np.asarray(rows)], known[np.asarray(images)], strict=True))
    wrong = [(i, j) for i, j in pairs if labels[i] != labels[j]]
    if wrong:
        i, j = wrong[0]
        raise BrainDataError(
            f"expected pairs of images of one class, got {len(wrong)} of {len(pairs)} that differ, such as {i} "
            f"({labels[i]}) and {j} ({labels[j]})"
        )


def stimulus_difference(known: Tensor, new: Tensor) -> Tensor:
    """Difference d = e_j - e_i of embeddings (B, E): the known subject's image minus the new subject's.

    Raises:
        AxisError: The shapes differ.
    """
    if known.shape != new.shape:
        raise AxisError(f"expected embeddings of one shape, got {tuple(known.shape)} and {tuple(new.shape)}")
    return known - new


def _labelled(ids: Ids, labels: Mapping[str, object]) -> list[object]:
    names = [str(name) for name in ids]
    missing = [name for name in names if name not in labels]
    if missing:
        raise BrainDataError(f"expected a label for every image, got none for {len(missing)}, such as {missing[0]}")
    return [labels[name] for name in names]


def _partners(lists: Sequence[np.ndarray]) -> Partners:
    """Lists of images by trial. A list that several trials share is stored once."""
    stored: dict[int, int] = {}
    parts, starts, end = [], [], 0
    for item in lists:
        if id(item) not in stored:
            stored[id(item)] = end
            parts.append(item)
            end += len(item)
        starts.append(stored[id(item)])
    images = torch.from_numpy(np.concatenate(parts).astype(np.int64))
    return Partners(images, torch.tensor(starts), torch.tensor([len(item) for item in lists]))
