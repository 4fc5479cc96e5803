"""Normalisers, which bring responses to a common scale.

    normalizer = fit_normalizer("session_z_train", dataset.subject("subj01"), split)
    train = dataset.pairs("subj01", split, "train", average="repeats", transform=normalizer)

Statistics are taken from the training trials, batch by batch. They are applied to single trials, before any average.
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
_UNITS = ("none", "psc", "div2000")  # fixed factors, which statistics may follow


def register_normalizer(name: str) -> Callable[[type[Scaling]], type[Scaling]]:
    """A class decorator that makes a `Scaling` available under a name. A name in use is a `BrainDataError`."""

    def register(scaling: type[Scaling]) -> type[Scaling]:
        if name in SCALINGS:
            raise BrainDataError(f"expected a new name of a normaliser, got {name!r}, which exists")
        SCALINGS[name] = scaling
        return scaling

    return register


class Normalizer:
    """A scaling of responses and its fitted statistics.

    | name | what it does |
    |---|---|
    | "none" | keeps the stored values |
    | "psc", "div2000" | convert stored betas of the Natural Scenes Dataset, dividing the integers by 300 or 2000 |
    | "session_z_train" (default) | z-scores each voxel within each session, with statistics of train trials |
    | "session_z_unlabelled" | the same with statistics of all trials that show no test image, used or not |
    | "session_z" | z-scores each voxel within each session, with statistics of all trials |
    | "train_z" | z-scores each voxel over all sessions, with statistics of train trials |
    | "trial_z" | z-scores each trial over all its values |
    | "channel_z" | z-scores each EEG channel over the times of all train trials |
    | "mvnn" | whitens EEG channels by the covariance of the noise in train trials |

    Voxels without variance become NaN, and `num_constant` counts them.

    Args:
        name: Name of the scaling.
        over: Name of the scaling that the stored values already went through. Giving it allows a second scaling.
        options: Options of the scaling, such as `min_trials` of "session_z_train".

    Attributes:
        fitted_ids: Ids of the images whose trials the statistics cover.
        num_trials: Number of these trials; 0 of a scaling without statistics.
        subject: Id of the subject whose statistics these are. None where only responses were given.
        arrays: Statistics by name. None before `fit`.
        num_constant: Number of voxels without variance or with missing values, in any session.

    Raises:
        NormalizationError: The name is unknown.
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
        self.num_trials = 0
        self.subject: str | None = None
        self.arrays: dict[str, np.ndarray] | None = None if self._scaling.fits else {}

    def __repr__(self) -> str:
        state = "not fitted" if self.arrays is None else f"fitted on {len(self.fitted_ids)} images"
        return f"Normalizer({self.name!r}, {state}{', transductive' if self.transductive else ''})"

    @property
    def transductive(self) -> bool:
        """Whether the statistics cover all trials, test trials included. Reports show this flag beside the scores."""
        return self._scaling.transductive

    @property
    def unlabelled(self) -> bool:
        """Whether the statistics cover trials of images that the split does not give the subject."""
        return self._scaling.unlabelled

    @property
    def num_constant(self) -> int:
        return self._scaling.num_constant(self._fitted())

    def fit(self, responses: Responses, train_ids: Iterable[str] | None = None) -> "Normalizer":
        """Take the statistics, batch by batch.

        Args:
            responses: Responses of one subject.
            train_ids: Ids of the images whose trials count. A transductive scaling ignores this and takes all trials.

        Returns:
            This normaliser.

        Raises:
            NormalizationError: There are too few trials, or their sessions are unknown.
            UnitsError: The unit of the responses is not known.
            AxisError: Responses have another number of axes than the scaling needs.
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
        self.fitted_ids, self.num_trials = frozenset(known), len(known)
        if self.num_constant:
            text = "%s: %d of %d voxels have no variance or missing values in some session and become NaN there"
            _log.warning(text, self.name, self.num_constant, responses.num_voxels)
        return self

    def transform(self, values: np.ndarray, trials: TrialTable) -> np.ndarray:
        """Normalise values of these trials, (n, voxels) or (n, channels, times), to fp32 of the same shape."""
        return self._scaling.forward(self._fitted(), values, trials).astype(np.float32, copy=False)

    def inverse_transform(self, values: np.ndarray, trials: TrialTable | None = None) -> np.ndarray:
        """Undo `transform`. The result is fp32 and has the same shape.

        Scalings by session need the trials. Predictions belong to no session; `Bridge` brings them to another scale.
        """
        return self._scaling.backward(self._fitted(), values, trials).astype(np.float32, copy=False)

    def check(self, subject: Subject, split: Split) -> None:
        """Check that this may be applied to a subject under a split. `BrainDataset.pairs` calls it.

        Raises:
            LeakageError: The statistics cover test images of the split, or images that it does not give the subject.
            NormalizationError: The statistics are another subject's, or the stored values are normalised already.
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
        if subject.id in (split.train_of or {}) and not self.unlabelled:
            known = self.fitted_ids - split.ids("train", subject.id) - split.ids("val", subject.id)
            if known:
                raise LeakageError(
                    f"expected {self.name!r} fitted on the images that {split.name!r} gives {subject.id}, got "
                    f"{len(known)} others, such as {min(known)}"
                )

    def state_dict(self) -> dict[str, Any]:
        """Name, options, subject and ids as JSON values, and the statistics under "arrays"."""
        return {
            "name": self.name,
            "over": self.over,
            "options": dict(self.options),
            "subject": self.subject,
            "fitted_ids": sorted(self.fitted_ids),
            "num_trials": self.num_trials,
            "arrays": dict(self._fitted()),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Normalizer":
        """The fitted normaliser from its `state_dict`."""
        normalizer = cls(state["name"], state["over"], **state["options"])
        normalizer.subject, normalizer.fitted_ids = state["subject"], frozenset(state["fitted_ids"])
        normalizer.num_trials = state["num_trials"]
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

    A split of few trials may be too small for "session_z_train". "session_z_unlabelled" takes all trials of the subject
    that show no test image.

    Args:
        name: Name of the scaling, see `Normalizer`.
        subject: Subject whose responses are fitted on.
        split: Split whose train part, in its sessions, is fitted on.
        over: Name of the scaling that the stored values already went through, see `Normalizer`.
        options: Options of the scaling.

    Raises:
        NormalizationError: The name is unknown, trials are too few, or the stored values are normalised already.
    """
    normalizer = Normalizer(name, over, **options)
    responses = subject.responses
    if normalizer.transductive:
        normalizer.fit(responses)
    elif normalizer.unlabelled:
        normalizer.fit(responses, set(responses.trials.image_id.tolist()) - split.test)
    else:
        rows = split.rows(responses.trials, "train", subject.id)
        normalizer.fit(responses.subset(rows), split.ids("train", subject.id))
    normalizer.subject = subject.id
    normalizer.check(subject, split)
    return normalizer


def default_normalizer(subject: Subject) -> str:
    """The name of the scaling that suits the stored responses.

    This is "none" where they are normalised already, otherwise "session_z_train" where all sessions are known, and
    "train_z" where they are not.
    """
    if subject.normalizer not in ("none", "psc", "div2000"):
        return "none"
    return "session_z_train" if (subject.responses.trials.session >= 0).all() else "train_z"
