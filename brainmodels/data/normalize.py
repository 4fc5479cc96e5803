"""Normalisers: statistics of the training trials, fitted in batches, applied to single trials before any average.

normalizer = fit_normalizer("session_z_train", dataset.subject("subj01"), split)
train = dataset.pairs("subj01", split, "train", average="repeats", transform=normalizer)
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import BrainDataError, LeakageError, NormalizationError, near_names
from .dataset import Split, Subject
from .responses import Responses, TrialTable
from .scalings import SCALINGS, Scaling

__all__ = ["DEFAULT", "Normalizer", "default_normalizer", "fit_normalizer", "register_normalizer"]

_log = logging.getLogger(__name__)
DEFAULT = "session_z_train"
_UNITS = ("none", "psc", "div2000")  # fixed factors: statistics may follow them


def register_normalizer(name: str) -> Callable[[type[Scaling]], type[Scaling]]:
    """Decorate a `Scaling` to make it known under a name."""

    def register(scaling: type[Scaling]) -> type[Scaling]:
        if name in SCALINGS:
            raise BrainDataError(f"expected a new name of a normaliser, got {name!r}, which exists")
        SCALINGS[name] = scaling
        return scaling

    return register


class Normalizer:
    """Responses on a common scale.

    Names: "none"; "psc" and "div2000" (units of the stored betas of the Natural Scenes Dataset); "session_z_train"
    (default), "session_z", "train_z" (per voxel); "trial_z", "channel_z", "mvnn" (EEG). Voxels without variance become
    NaN and are counted.

    Args:
        name: of the scaling.
        over: name of what the stored values already went through, which declares that two in a row are meant.
        options: of the scaling, such as `min_trials` of "session_z_train".

    Attributes:
        fitted_ids: images whose trials the statistics are of.
        subject: whose statistics they are; None where only responses were given.
        arrays: the statistics by name.
        num_constant: voxels without variance or with missing values, in any session.
    """

    def __init__(self, name: str = DEFAULT, over: str | None = None, **options):
        if name not in SCALINGS:
            known = ", ".join(SCALINGS)
            raise NormalizationError(
                f"expected a normaliser of {known}, got {name!r}{near_names(name, list(SCALINGS))}"
            )
        self.name, self.over, self.options = name, over, options
        self._scaling = SCALINGS[name](**options)
        self.fitted_ids: frozenset[str] = frozenset()
        self.subject: str | None = None
        self.arrays: dict[str, np.ndarray] | None = None if self._scaling.fits else {}

    def __repr__(self) -> str:
        state = "not fitted" if self.arrays is None else f"fitted on {len(self.fitted_ids)} images"
        return f"Normalizer({self.name!r}, {state}{', transductive' if self.transductive else ''})"

    @property
    def transductive(self) -> bool:
        """Whether the statistics are of all trials, those of test images among them: the flag follows the scores."""
        return self._scaling.transductive

    @property
    def num_constant(self) -> int:
        return self._scaling.num_constant(self._fitted())

    def fit(self, responses: Responses, train_ids: Iterable[str] | None = None) -> "Normalizer":
        """Take the statistics, batch by batch.

        Args:
            responses: of one subject.
            train_ids: images whose trials count; a transductive scaling takes all trials whatever this says.

        Raises:
            NormalizationError: too few trials, or sessions or units are unknown.
        """
        if self.transductive or not self._scaling.statistics:
            rows = np.arange(len(responses))
        elif train_ids is None:
            raise NormalizationError(f"expected train ids to fit {self.name!r} on, got none")
        else:
            wanted = np.array(sorted(map(str, train_ids)), dtype=str)
            rows = np.flatnonzero(np.isin(responses.trials.image_id, wanted))
        if not len(rows):
            raise NormalizationError(f"expected trials to fit {self.name!r} on, got none")
        self.arrays = self._scaling.fit(responses, rows)
        known = responses.trials.image_id[rows].tolist() if self._scaling.statistics else ()
        self.fitted_ids = frozenset(known)
        if self.num_constant:
            text = "%s: %d of %d voxels have no variance or missing values in some session and become NaN there"
            _log.warning(text, self.name, self.num_constant, responses.num_voxels)
        return self

    def transform(self, values: np.ndarray, trials: TrialTable) -> np.ndarray:
        """Values (n, voxels) or (n, channels, times) of these trials, normalised; fp32 of the same shape."""
        return self._scaling.forward(self._fitted(), values, trials).astype(np.float32, copy=False)

    def inverse_transform(self, values: np.ndarray, trials: TrialTable | None = None) -> np.ndarray:
        """Back to stored units. Scalings by session need the trials; predictions have none, see `Bridge`."""
        return self._scaling.backward(self._fitted(), values, trials).astype(np.float32, copy=False)

    def check(self, subject: Subject, split: Split) -> None:
        """What `BrainDataset.pairs` asks before it applies this to a subject.

        Raises:
            LeakageError: the statistics know test images of the split.
            NormalizationError: they are another subject's, or the stored values were normalised already.
        """
        self._fitted()
        if self.subject is not None and self.subject != subject.id:
            raise NormalizationError(f"expected statistics of {subject.id}, got those of {self.subject}")
        self._check_twice(subject)
        if self.transductive:
            return
        known = self.fitted_ids & split.test
        if known:
            raise LeakageError(
                f"expected {self.name!r} fitted without test images of {split.name!r}, got {len(known)} of them, "
                f"such as {min(known)}"
            )
        if subject.id in (split.train_of or {}):
            known = self.fitted_ids - split.ids("train", subject.id) - split.ids("val", subject.id)
            if known:
                raise LeakageError(
                    f"expected {self.name!r} fitted on the images that {split.name!r} gives {subject.id}, got "
                    f"{len(known)} others, such as {min(known)}"
                )

    def state_dict(self) -> dict[str, Any]:
        """Name and options (JSON) and the statistics under "arrays"."""
        return {
            "name": self.name,
            "over": self.over,
            "options": dict(self.options),
            "subject": self.subject,
            "fitted_ids": sorted(self.fitted_ids),
            "arrays": dict(self._fitted()),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Normalizer":
        """The normaliser that `state_dict` described."""
        normalizer = cls(state["name"], state["over"], **state["options"])
        normalizer.subject, normalizer.fitted_ids = state["subject"], frozenset(state["fitted_ids"])
        normalizer.arrays = {name: np.asarray(array) for name, array in state["arrays"].items()}
        return normalizer

    def _check_twice(self, subject: Subject) -> None:
        applied = subject.normalizer
        if self.over is not None and self.over != applied:
            raise NormalizationError(f"expected values of {subject.id} through {self.over!r}, got {applied!r}")
        if self.name == "none" or applied in ("none", self.over):
            return
        if applied not in _UNITS or self.name in _UNITS:
            raise NormalizationError(
                f"expected values of {subject.id} as measured, got values that went through {applied!r}: "
                f"{self.name!r} would scale them twice; use 'none', or over={applied!r} where both are meant"
            )

    def _fitted(self) -> dict[str, np.ndarray]:
        if self.arrays is None:
            raise NormalizationError(f"expected a fitted normaliser, got {self.name!r} before fit")
        return self.arrays


def fit_normalizer(name: str, subject: Subject, split: Split, over: str | None = None, **options) -> Normalizer:
    """A normaliser fitted on the train trials that a split gives a subject.

    A split of few trials may be too small for "session_z_train"; `Normalizer.fit` takes any other images for it.

    Args:
        name: of the scaling.
        subject: whose responses.
        split: whose train part, in its sessions, is fitted on.
        over, options: of `Normalizer`.
    """
    normalizer = Normalizer(name, over, **options)
    responses = subject.responses
    if normalizer.transductive:
        normalizer.fit(responses)
    else:
        rows = split.rows(responses.trials, "train", subject.id)
        normalizer.fit(responses.subset(rows), split.ids("train", subject.id))
    normalizer.subject = subject.id
    normalizer.check(subject, split)
    return normalizer


def default_normalizer(subject: Subject) -> str:
    """The name of what suits the responses as they are stored."""
    if subject.normalizer not in ("none", "psc", "div2000"):
        return "none"
    return "session_z_train" if (subject.responses.trials.session >= 0).all() else "train_z"
