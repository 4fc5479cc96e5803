"""Sizes of simulated studies, by name.

    simulate(PRESETS["tiny"])                    # 240 + 60 images, 3 subjects of 210, 180 and 240 voxels
    simulate(replace(PRESETS["tiny"], own=480))
    simulate("lab")                              # noise, repeats and voxels as untidy as in a laboratory

Subjects differ in their number of voxels, as people do.
"""

from dataclasses import dataclass

from ..errors import AxisError, BrainDataError, near_names

__all__ = ["PRESETS", "LabPreset", "Preset", "preset_of"]


@dataclass(frozen=True)
class Preset:
    """The size of a simulated study.

    Attributes:
        name: Name of the study.
        voxels: Number of voxels of each subject. Further subjects use the list again, each time with 5 voxels more.
        box: Shape (x, y, z) of the volume that contains the voxels.
        own: Number of images that only one subject sees, for the train and validation parts.
        shared: Number of images that all subjects see, for the test part.
        sessions: Number of sessions of each subject.
        repeats: Number of presentations of each image to each subject.
        subjects: Default number of subjects.

    Raises:
        BrainDataError: A number is too small.
    """

    name: str
    voxels: tuple[int, ...]
    box: tuple[int, int, int]
    own: int
    shared: int
    sessions: int
    repeats: int = 3
    subjects: int = 1

    def __post_init__(self):
        counts = {key: getattr(self, key) for key in ("own", "shared", "sessions", "repeats", "subjects")}
        if min(counts.values()) < 1 or not self.voxels or min(self.voxels) < 20:
            raise BrainDataError(f"expected 20 voxels and one of all else at least, got voxels={self.voxels}, {counts}")
        if self.images * self.repeats < self.sessions:
            raise BrainDataError(f"expected a trial for each of {self.sessions} sessions, got {counts}")

    @property
    def images(self) -> int:
        """Number of images that one subject sees."""
        return self.own + self.shared

    @property
    def trials(self) -> int:
        """Number of trials of one subject."""
        return self.images * self.repeats

    def num_voxels(self, subject: int) -> int:
        """Number of voxels of a subject, counted from 0. No two subjects have the same number.

        Raises:
            AxisError: They do not fit into `box`.
        """
        again, place = divmod(subject, len(self.voxels))
        count = self.voxels[place] + 5 * again
        if count > self.box[0] * self.box[1] * self.box[2]:
            raise AxisError(f"expected at most {self.box} voxels, got {count} of subject {subject + 1}")
        return count


@dataclass(frozen=True)
class LabPreset(Preset):
    """The size of a study that is as untidy as real data.

    Images have 1 to `repeats` + 1 presentations, each number for equally many images.

    Attributes:
        runs: Number of runs in each session.
        neighbours: Correlation of the noise of two voxels that share a face, 0 to 0.7.
        serial: Correlation of the noise of successive trials of a run, 0 or more and below 1.
        unreliable: Share of the voxels of each region that have no signal, 0 to 1.
        outside: Share of the voxels that lie at the border, in no region. They have no signal.
        dead: Number of voxels whose responses are always 0.
        bad_session: Number of the session with more noise and another gain, from 1.
        bad_noise: Standard deviation of the noise of that session, where that of others is 1.

    Raises:
        BrainDataError: A number is out of its range.
    """

    runs: int = 4
    neighbours: float = 0.4
    serial: float = 0.3
    unreliable: float = 0.7
    outside: float = 0.15
    dead: int = 12
    bad_session: int = 3
    bad_noise: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        shares = 0 <= self.unreliable < 1 and 0 <= self.outside < 1 and 0 <= self.serial < 1
        if not shares or not 0 <= self.neighbours <= 0.7 or self.unreliable < self.outside:
            raise BrainDataError(
                "expected unreliable, outside and serial from 0 to 1, outside at most unreliable, and neighbours from "
                f"0 to 0.7, got {self.unreliable=}, {self.outside=}, {self.serial=}, {self.neighbours=}"
            )
        if not 1 <= self.bad_session <= self.sessions or self.runs < 1 or self.dead < 0 or self.bad_noise <= 0:
            raise BrainDataError(
                f"expected bad_session of 1 to {self.sessions}, a run or more, 0 or more dead voxels and bad_noise "
                f"above 0, got {self.bad_session=}, {self.runs=}, {self.dead=}, {self.bad_noise=}"
            )

    @property
    def trials(self) -> int:
        """Number of trials of one subject."""
        return sum(1 + number % (self.repeats + 1) for number in range(self.images))


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", (210, 180, 240), (13, 15, 11), own=240, shared=60, sessions=6, subjects=3),
        Preset("small", (1500, 1320, 1410, 1180), (26, 30, 22), own=900, shared=100, sessions=10, subjects=4),
        Preset("nsd_like", (15724,), (81, 104, 83), own=9000, shared=1000, sessions=40),
        LabPreset("lab", (900, 780), (14, 13, 12), own=200, shared=60, sessions=6, subjects=2),
    )
}


def preset_of(preset: str | Preset) -> Preset:
    """The preset with this name, or the given `Preset`. An unknown name is a `BrainDataError`."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        names = list(PRESETS)
        raise BrainDataError(f"expected a preset of {', '.join(names)}, got {preset!r}{near_names(preset, names)}")
    return PRESETS[preset]
