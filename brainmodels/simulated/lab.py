"""What makes the preset "lab" as untidy as the data of a laboratory.

    dataset = simulate("lab")
    truth = dataset.truth["sim01"]
    truth.reliable, truth.dead, truth.bad_session  # masks (V,), and the number of the noisy session

Most voxels of a clean simulation carry signal, and its noise is white. Here noise is correlated between neighbours and
between successive trials of a run, most voxels have no signal, some are dead, and one session is bad.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from ..data.spaces import VoxelSpace
from ..errors import need
from .presets import LabPreset
from .truth import Drift, SubjectTruth

__all__ = ["LabTruth", "lab_noise", "lab_space", "presentations", "run_numbers"]

_PATCH = 1.5  # standard deviation of the patches of reliable voxels, in voxels
_EXTRA_GAIN = 2.0  # exponent of the gain of the bad session, divided by 4 as in `Drift`


@dataclass(frozen=True)
class LabTruth(SubjectTruth):
    """The true model of a subject of "lab".

    `ncsnr` and `ceiling` hold for the good sessions. The bad session lowers what any model can reach.

    Attributes:
        reliable: Mask (V,) of voxels that have a signal. All others are true negatives of every test.
        dead: Mask (V,) of voxels whose responses are always 0.
        bad_session: Number of the session with more noise and another gain, from 1.
        presentations: Number of presentations of each image, by id.
        test_ids: Ids of the test images, whose numbers of presentations decide the ceiling.
    """

    reliable: np.ndarray = field(kw_only=True, repr=False)
    dead: np.ndarray = field(kw_only=True, repr=False)
    bad_session: int = field(kw_only=True)
    presentations: Mapping[str, int] = field(kw_only=True, repr=False)
    test_ids: Sequence[str] = field(kw_only=True, repr=False)

    @classmethod
    def of(
        cls,
        truth: SubjectTruth,
        preset: LabPreset,
        masks: Sequence[np.ndarray],
        presentations: Mapping[str, int],
        test_ids: Sequence[str],
    ) -> "LabTruth":
        """The truth of a clean subject with dead voxels and the gain of a bad session.

        Args:
            truth: The clean truth, whose ncsnr is 0 where voxels are not reliable.
            preset: Number of the bad session.
            masks: Masks (V,) of reliable and of dead voxels.
            presentations, test_ids: See the attributes.
        """
        reliable, dead = masks
        gain = truth.drift.gain.copy()
        gain[preset.bad_session - 1] += np.float32(_EXTRA_GAIN)
        drift = Drift(gain, truth.drift.offset * ~dead, truth.drift.slope * ~dead)
        known = {item.name: getattr(truth, item.name) for item in fields(truth)}
        known |= {"drift": drift, "mean": truth.mean * ~dead}
        own = {"reliable": reliable, "dead": dead, "bad_session": preset.bad_session}
        return cls(**known, **own, presentations=presentations, test_ids=test_ids)

    def ceiling(self, repeats: int | None = None) -> np.ndarray:
        """The best expected r^2 of any model for each voxel, ncsnr^2 / (ncsnr^2 + 1 / repeats), (V,).

        Args:
            repeats: Number of trials in the average of a measured response. None means all presentations of the test
                images, with 1 / repeats averaged over images.
        """
        per_trial = (
            np.mean([1 / self.presentations[name] for name in self.test_ids]) if repeats is None else 1 / repeats
        )
        signal = self.ncsnr.astype(np.float64) ** 2
        return signal / (signal + per_trial)


def lab_space(
    space: VoxelSpace, preset: LabPreset, rng: np.random.Generator
) -> tuple[VoxelSpace, np.ndarray, np.ndarray]:
    """Choose the voxels that have a signal, and those that are dead.

    Reliable voxels lie in patches within the regions, and each region has its share of them. The outermost voxels
    belong to no region. Dead voxels are unreliable ones.

    Args:
        space: Space with the regions of `ROIS`, which cover all voxels.
        preset: Shares of voxels.
        rng: Random generator.

    Returns:
        The space with smaller regions and without ncsnr, the mask (V,) of reliable voxels and that of dead ones.
    """
    try:
        from scipy.ndimage import gaussian_filter
    except ImportError as error:
        raise need("scipy", "the preset lab") from error
    count = len(space)
    distance = (((space.index + 0.5) / np.array(space.shape) - 0.5) ** 2).sum(1)
    outside = np.zeros(count, bool)
    outside[np.argsort(distance, kind="stable")[count - round(preset.outside * count) :]] = True
    patches = gaussian_filter(rng.normal(size=space.shape), _PATCH)[tuple(space.index.T)]
    patches[outside] = -np.inf
    reliable = np.zeros(count, bool)
    rois = {name: region & ~outside for name, region in space.rois.items()}
    for name, region in space.rois.items():
        wanted = round((1 - preset.unreliable) * region.sum())
        places = np.flatnonzero(rois[name])
        reliable[places[np.argsort(-patches[places], kind="stable")[:wanted]]] = True
    dead = np.zeros(count, bool)
    dead[rng.choice(np.flatnonzero(~reliable), min(preset.dead, int((~reliable).sum())), replace=False)] = True
    return replace(space, rois=rois, ncsnr=None), reliable, dead


def presentations(images: Sequence[str], preset: LabPreset, rng: np.random.Generator) -> dict[str, int]:
    """Number of presentations of each image: 1 to `repeats` + 1, each for equally many images."""
    counts = 1 + np.arange(len(images)) % (preset.repeats + 1)
    return dict(zip(images, rng.permutation(counts).tolist(), strict=True))


def run_numbers(sessions: np.ndarray, runs: int) -> np.ndarray:
    """Run of each trial, from 1 in each session; the trials of a session are split into equal runs.

    Args:
        sessions: Session of each trial, (trials,), in the order of time.
        runs: Number of runs in a session.
    """
    out = np.empty(len(sessions), np.int64)
    for session in np.unique(sessions):
        rows = np.flatnonzero(sessions == session)
        for number, part in enumerate(np.array_split(rows, runs), 1):
            out[part] = number
    return out


def lab_noise(
    space: VoxelSpace, runs: np.ndarray, preset: LabPreset, noisy: bool, rng: np.random.Generator
) -> np.ndarray:
    """Noise of one session, fp32 (trials, V), with a variance of 1 in good sessions.

    Voxels that share a face correlate by `preset.neighbours`. Trials at a lag of k within a run correlate by
    `preset.serial` ** k. Runs are independent.

    Args:
        space: Positions of the voxels.
        runs: Run of each trial, (trials,).
        preset: Strength of the correlations, and of the noise of a bad session.
        noisy: Whether the session is the bad one.
        rng: Random generator.
    """
    try:
        from scipy.ndimage import convolve1d
    except ImportError as error:
        raise need("scipy", "the preset lab") from error
    noise = rng.standard_normal((len(runs), *space.shape), np.float32)
    side = _side_tap(preset.neighbours)
    taps = np.array([side, 1, side]) / np.sqrt(1 + 2 * side**2)
    for axis in (1, 2, 3):
        noise = convolve1d(noise, taps.astype(np.float32), axis=axis, mode="wrap")
    noise = noise[(slice(None), *space.index.T)]
    innovation = np.float32(np.sqrt(1 - preset.serial**2))
    for row in range(1, len(noise)):
        if runs[row] == runs[row - 1]:
            noise[row] = np.float32(preset.serial) * noise[row - 1] + innovation * noise[row]
    return noise * np.float32(preset.bad_noise if noisy else 1)


def _side_tap(correlation: float) -> float:
    """Weight a of both neighbours in the filter (a, 1, a), for which 2a / (1 + 2a^2) is the correlation."""
    return 0.0 if correlation == 0 else (1 - np.sqrt(1 - 2 * correlation**2)) / (2 * correlation)
