"""Sizes of simulated studies, by name.

    simulate(PRESETS["tiny"])                    # 240 + 60 images, 3 subjects of 210, 180 and 240 voxels
    simulate(replace(PRESETS["tiny"], own=480))

Subjects differ in their number of voxels, as people do.
"""

from dataclasses import dataclass

from ..errors import AxisError, BrainDataError, near_names

__all__ = ["PRESETS", "Preset", "preset_of"]


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


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", (210, 180, 240), (13, 15, 11), own=240, shared=60, sessions=6, subjects=3),
        Preset("small", (1500, 1320, 1410, 1180), (26, 30, 22), own=900, shared=100, sessions=10, subjects=4),
        Preset("nsd_like", (15724,), (81, 104, 83), own=9000, shared=1000, sessions=40),
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
