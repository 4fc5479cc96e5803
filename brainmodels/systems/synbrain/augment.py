"""Synthetic responses beside measured ones, for training a decoder with more images than the subject was shown.

    pool = SyntheticPool(model, cache, unseen_ids, split=split)
    mixed = pool.mixed(train)                     # as many synthetic pairs as measured ones
    decoder.fit(mixed.responses, tokens_of(mixed.image_ids), groups=mixed.image_ids)

SynBrain, arXiv 2508.10298, augments a decoder in this way. Its noise, mixing ratio and scaling were not published.
There one hour of synthetic responses beside one measured hour helped most, and more hurt. Image retrieval fell
throughout.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from ...data import Split
from ...data.ids import Ids
from ...data.moments import column_moments
from ...errors import AxisError, BrainDataError, IdError, LeakageError, check_choice
from ...training.estimator import BrainModel, Features
from ...training.trials import Recording, Trials, check_training

__all__ = ["MixedPairs", "SyntheticPairs", "SyntheticPool"]


class SyntheticPairs(NamedTuple):
    """Drawn responses and their images.

    Attributes:
        responses: (n, V) fp32, in the units given to the model's `fit`; NaN in voxels that it dropped.
        image_ids: (n,).
    """

    responses: np.ndarray
    image_ids: np.ndarray


class MixedPairs(NamedTuple):
    """Measured and drawn responses.

    Attributes:
        responses: (n, V) fp32.
        image_ids: (n,).
        synthetic: (n,) True where the response was drawn.
    """

    responses: np.ndarray
    image_ids: np.ndarray
    synthetic: np.ndarray


class SyntheticPool:
    """Responses that a fitted model draws for images.

    All draws are made when the first are asked for, and are held in memory: 4 V bytes a trial.

    Args:
        model: Fitted model that draws responses with noise.
        features: Source of the images' features, or an array (n, m, d) in the order of `image_ids`.
        image_ids: Unique ids (n,) of the images.
        noise, noise_scale, n_trials: Arguments of the model's `predict`. Without noise there is one trial an image.
        seed: Seed of the noise.
        subject: Subject whose responses are drawn; None where the model has one.
        split: Split whose test images may be neither in the pool nor in what the pool is mixed with.

    Raises:
        IdError: images repeat, or are not as many as the rows of an array.
        LeakageError: an image is tested on.
    """

    def __init__(
        self,
        model: BrainModel,
        features: Features,
        image_ids: Ids,
        noise: str = "none",
        n_trials: int = 1,
        noise_scale: float = 1.0,
        seed: int = 0,
        subject: str | None = None,
        split: Split | None = None,
    ):
        self.model, self.features, self.split = model, features, split
        self.image_ids = np.asarray(list(image_ids), dtype=str)
        self.noise, self.n_trials, self.noise_scale = noise, n_trials, noise_scale
        self.seed, self.subject = seed, subject
        names, counts = np.unique(self.image_ids, return_counts=True)
        if not len(names) or counts.max() > 1:
            wrong = f"{names[counts.argmax()]} {counts.max()} times; n_trials repeats images" if len(names) else "none"
            raise IdError(f"expected unique image ids of a pool, got {wrong}")
        if isinstance(features, np.ndarray | torch.Tensor) and len(features) != len(names):
            raise IdError(f"expected a row of features for each of {len(names)} images, got {len(features)}")
        self._check_untested(self.image_ids, "synthetic")

    def __len__(self) -> int:
        return len(self.image_ids) * self.n_trials

    def __repr__(self) -> str:
        drawn = f"{len(self.image_ids)} images x {self.n_trials}, noise={self.noise!r}"
        return f"SyntheticPool({type(self.model).__name__}, {drawn}, seed={self.seed})"

    def pairs(self) -> SyntheticPairs:
        """All of them, the trials of an image one after the other."""
        return self._pairs

    def mixed(
        self,
        responses: Trials,
        image_ids: Ids | None = None,
        *,
        size: int | None = None,
        scale: str = "as_is",
        allow_known: bool = False,
        seed: int = 0,
    ) -> MixedPairs:
        """Measured pairs, and after them synthetic ones.

        Args:
            responses: Measured responses: train `Pairs`, or an array (n, V) with `image_ids`.
            image_ids: Images (n,) of the array.
            size: Number of synthetic pairs, chosen at random; None is as many as measured ones.
            scale: "as_is" keeps the units; "train_z" gives all rows as z-scores by the mean and standard deviation
                (ddof 1) of the measured ones; "matched" gives the synthetic rows chosen the mean and standard deviation
                of the measured ones. Each voxel on its own.
            allow_known: Let the pool hold images whose measured responses are here too.
            seed: Seed of the choice.

        Raises:
            LeakageError: measured responses to images that are tested on, or pairs of another part than train.
            IdError: the pool holds images that were measured.
            BrainDataError: fewer pairs in the pool than asked for, or a voxel that does not vary and cannot be scaled.
            AxisError: another number of voxels.
        """
        check_choice("scale", scale, ("as_is", "train_z", "matched"))
        measured = self._measured(responses, image_ids, allow_known)
        wanted = len(measured.responses) if size is None else size
        if not 0 <= wanted <= len(self):
            raise BrainDataError(
                f"expected size from 0 to the {len(self)} pairs of the pool, got {wanted}; take more images or n_trials"
            )
        rows = np.sort(np.random.default_rng(seed).permutation(len(self))[:wanted])
        drawn = SyntheticPairs(*(x[rows] for x in self.pairs()))
        return _joined(*_scaled(measured, drawn, scale))

    def batches(
        self,
        responses: Trials,
        image_ids: Ids | None = None,
        *,
        batch_size: int,
        share: float,
        steps: int,
        size: int | None = None,
        scale: str = "as_is",
        allow_known: bool = False,
        seed: int = 0,
    ) -> Iterator[MixedPairs]:
        """Batches in which a fixed share of the pairs is synthetic.

        Measured and synthetic pairs each come in a new random order, again and again.

        Args:
            responses, image_ids, size, scale, allow_known: As in `mixed`.
            batch_size: Pairs of a batch, of which round(share * batch_size) are synthetic.
            share: Share of synthetic pairs, 0 to 1.
            steps: Number of batches.
            seed: Seed of the choice and of the order.
        """
        if batch_size < 1 or not 0 <= share <= 1:
            raise BrainDataError(f"expected batch_size of 1 or more and share from 0 to 1, got {batch_size}, {share}")
        number = round(share * batch_size)
        mixed = self.mixed(responses, image_ids, size=size, scale=scale, allow_known=allow_known, seed=seed)
        orders = [
            _endless(np.flatnonzero(mixed.synthetic == kind), np.random.default_rng([seed, kind])) for kind in (0, 1)
        ]
        counts = (batch_size - number, number)
        for kind, count in enumerate(counts):
            if count and not (mixed.synthetic == kind).any():
                raise BrainDataError(
                    f"expected {('measured', 'synthetic')[kind]} pairs for a share of {share}, got none"
                )
        for _ in range(steps):
            rows = np.array([next(order) for order, n in zip(orders, counts, strict=True) for _ in range(n)])
            yield MixedPairs(*(x[rows] for x in mixed))

    @cached_property
    def _pairs(self) -> SyntheticPairs:
        options = {"subject": self.subject, "n_trials": self.n_trials, "seed": self.seed}
        options |= {"noise": self.noise, "noise_scale": self.noise_scale}
        if not isinstance(self.features, np.ndarray | torch.Tensor):
            options["image_ids"] = self.image_ids
        drawn = self.model.predict(self.features, **options)
        return SyntheticPairs(drawn.reshape(-1, drawn.shape[-1]), self.image_ids.repeat(self.n_trials))

    def _measured(self, responses: Trials, image_ids: Ids | None, allow_known: bool) -> SyntheticPairs:
        check_training(responses)
        recording = Recording.of(responses, image_ids)
        if not recording.image_ids.all():
            raise IdError("expected image_ids of the measured responses, got none")
        self._check_untested(recording.image_ids, "measured")
        known = np.intersect1d(self.image_ids, recording.image_ids)
        if len(known) and not allow_known:
            raise IdError(
                f"expected a pool of images that were not measured, got {len(known)} that were, such as {known[0]}; "
                "allow_known=True takes them"
            )
        values, drawn = recording.read(np.arange(len(recording))), self.pairs().responses
        if values.shape[1] != drawn.shape[1]:
            raise AxisError(f"expected responses of {drawn.shape[1]} voxels, as the model has, got {values.shape[1]}")
        return SyntheticPairs(values, recording.image_ids)

    def _check_untested(self, ids: np.ndarray, kind: str) -> None:
        if self.split is None:
            return
        tested = self.split.test.intersection(ids.tolist())
        if tested:
            raise LeakageError(
                f"expected no {kind} pairs of images that split {self.split.name!r} tests on, got {len(tested)}, such "
                f"as {min(tested)}"
            )


def _joined(measured: SyntheticPairs, drawn: SyntheticPairs) -> MixedPairs:
    synthetic = np.repeat([False, True], [len(measured.image_ids), len(drawn.image_ids)])
    responses, ids = (np.concatenate(pair) for pair in zip(measured, drawn, strict=True))
    return MixedPairs(responses, ids, synthetic)


def _scaled(measured: SyntheticPairs, drawn: SyntheticPairs, scale: str) -> tuple[SyntheticPairs, SyntheticPairs]:
    if scale == "as_is" or (scale == "matched" and not len(drawn.image_ids)):
        return measured, drawn
    mean, std = _moments(measured.responses, "measured")
    if scale == "train_z":
        scaled, redrawn = (pairs._replace(responses=(pairs.responses - mean) / std) for pairs in (measured, drawn))
        return scaled, redrawn
    own_mean, own_std = _moments(drawn.responses, "synthetic")
    return measured, drawn._replace(responses=(drawn.responses - own_mean) / own_std * std + mean)


def _moments(values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(V,) mean and standard deviation (ddof 1), fp32; voxels that the model dropped are NaN and stay so."""
    if len(values) < 2:
        raise BrainDataError(f"expected two {kind} pairs or more to scale, got {len(values)}")
    mean, std = column_moments(values, ddof=1)
    if (std == 0).any():
        raise BrainDataError(
            f"expected voxels that vary over the {kind} pairs, got {int((std == 0).sum())} that do not, such as "
            f"{int(np.argmax(std == 0))}"
        )
    return mean.astype(np.float32), std.astype(np.float32)


def _endless(rows: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    while len(rows):
        yield from rng.permutation(rows)
