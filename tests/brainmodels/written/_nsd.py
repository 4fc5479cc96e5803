"""What the writers of NSD's layouts share: numbers of images, trials in the order of time, and the design."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from brainmodels.data.dataset import BrainDataset, Split, Subject
from brainmodels.data.normalize import Normalizer
from brainmodels.data.responses import TrialTable
from brainmodels.errors import BrainDataError, LayoutError, NormalizationError, need
from brainmodels.layouts._nsd import PSC, SESSIONS, STORED_PER_PERCENT

__all__ = [
    "check_as_measured",
    "image_numbers",
    "open_subject",
    "stored_betas",
    "write_captions",
    "write_design",
    "z_scored",
]

_SHARED = 1000  # positions of shared images, before the subject's own
_CAPTIONS = 5


def image_numbers(dataset: BrainDataset) -> dict[str, int]:
    """73k ids by image id: the numbers of ids such as "nsd:00013", or positions where ids have another form."""
    ids = dataset.stimuli.ids.tolist()
    if all(name.startswith("nsd:") and name[4:].isdecimal() for name in ids):
        return {name: int(name[4:]) for name in ids}
    return {name: number for number, name in enumerate(ids)}


def open_subject(
    dataset: BrainDataset, subject: str, split: str | Split, number: int
) -> tuple[Subject, Split, np.ndarray]:
    """The subject, the split, and the rows of the trials in the order of time.

    Raises:
        LayoutError: Trials do not run from 0 and sessions from 1 without a gap, so no design can list them.
        BrainDataError: `number` is not that of a subject of NSD.
    """
    if not 1 <= number <= len(SESSIONS):
        raise BrainDataError(f"expected the number of a subject from 1 to {len(SESSIONS)}, got {number}")
    person = dataset.subject(subject)
    split = dataset.split(split) if isinstance(split, str) else split
    trials = person.responses.trials
    rows = np.argsort(trials.trial, kind="stable")
    session = trials.session[rows]
    numbers = np.unique(session)
    gap_free = np.array_equal(trials.trial[rows], np.arange(len(rows))) and (np.diff(session) >= 0).all()
    if not gap_free or not np.array_equal(numbers, np.arange(1, len(numbers) + 1)):
        raise LayoutError(f"expected trials from 0 and sessions from 1 without gaps, got sessions {numbers.tolist()}")
    return person, split, rows


def check_as_measured(person: Subject) -> None:
    """Check that responses are percent signal change and not normalised, as betas have to be."""
    if person.normalizer not in ("none", "psc") or person.responses.unit not in (PSC, "unknown"):
        raise NormalizationError(
            f"expected responses of {person.id} in {PSC} as measured, got normalizer {person.normalizer!r} and unit "
            f"{person.responses.unit!r}"
        )


def stored_betas(person: Subject, rows: np.ndarray) -> np.ndarray:
    """Responses of these rows times 300, fp64 (rows, voxels), not rounded."""
    return person.responses.batch(rows).astype(np.float64) * STORED_PER_PERCENT


def z_scored(person: Subject, rows: np.ndarray) -> np.ndarray:
    """Responses of these rows z-scored per session, with statistics of all trials, fp32 (rows, voxels)."""
    if person.normalizer == "session_z":
        return person.responses.batch(rows)
    check_as_measured(person)
    normalizer = Normalizer("session_z").fit(person.responses)
    return normalizer.transform(person.responses.batch(rows), person.responses.trials[rows])


def write_design(
    path: Path, trials: TrialTable, numbers: Mapping[str, int], shared: Iterable[str], subject: int
) -> np.ndarray:
    """Write `nsd_expdesign.mat` with all its arrays for one subject. The rows of other subjects are zeros.

    Args:
        path: Path of the file.
        trials: Table of all trials in the order of time. Unknown runs are written as one run a session.
        numbers: 73k ids by image id.
        shared: Ids of the shared images, which are tested on.
        subject: Number of the subject, from 1.

    Returns:
        73k id of each trial, (trials,).
    """
    try:
        from scipy.io import savemat
    except ImportError as error:
        raise need("scipy", f"writing {path.name}") from error
    shown = np.array([numbers[name] for name in trials.image_id.tolist()])
    common = np.array(sorted(numbers[name] for name in shared), dtype=np.int64)
    if len(common) > _SHARED:
        raise BrainDataError(f"expected at most {_SHARED} shared images, got {len(common)}")
    own = [number for number in dict.fromkeys(shown.tolist()) if number not in set(common.tolist())]
    images = np.zeros((len(SESSIONS), _SHARED + len(own)), np.int64)
    images[subject - 1, : len(common)], images[subject - 1, _SHARED:] = common + 1, np.array(own, np.int64) + 1
    place = dict(zip([*common.tolist(), *own], [*range(len(common)), *range(_SHARED, images.shape[1])], strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "masterordering": np.array([[place[number] + 1 for number in shown.tolist()]]),
        "subjectim": images,
        "sharedix": common[None] + 1,
        "basiccnt": _counts(shown, trials.session),
        "stimpattern": _pattern(trials),
    }
    savemat(path, content, do_compression=True)
    return shown


def _counts(shown: np.ndarray, session: np.ndarray) -> np.ndarray:
    """Number of images shown at least once, twice and three times up to each session, (3, sessions)."""
    out = np.zeros((3, session.max()), np.int64)
    for last in range(session.max()):
        _, times = np.unique(shown[session <= last + 1], return_counts=True)
        out[:, last] = [(times >= repeat).sum() for repeat in (1, 2, 3)]
    return out


def _pattern(trials: TrialTable) -> np.ndarray:
    """Array (sessions, runs, positions) with 1 where a picture was shown."""
    run = np.where(trials.run < 0, 1, trials.run)
    if (run < 1).any() or any((np.diff(run[trials.session == s]) < 0).any() for s in np.unique(trials.session)):
        raise LayoutError("expected runs from 1 that ascend within a session, got another order")
    _, counts = np.unique(np.stack([trials.session, run]), axis=1, return_counts=True)
    pattern = np.zeros((trials.session.max(), run.max(), max(2, counts.max())), np.uint8)
    for session in range(pattern.shape[0]):
        for number in range(pattern.shape[1]):
            pattern[session, number, : ((trials.session == session + 1) & (run == number + 1)).sum()] = 1
    return pattern


def write_captions(path: Path, dataset: BrainDataset, rows: Sequence[str | None]) -> None:
    """Write captions (rows, 5), with empty strings where there are fewer. A row of None has no captions."""
    table = [dataset.stimuli.captions(name)[:_CAPTIONS] if name is not None else [] for name in rows]
    np.save(path, np.array([texts + [""] * (_CAPTIONS - len(texts)) for texts in table]))
