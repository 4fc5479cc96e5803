"""How large a simulated study is. Numbers of voxels differ between subjects, as they do in people."""

from dataclasses import dataclass

from ..errors import AxisError, BrainDataError, near_names

__all__ = ["PRESETS", "Preset", "preset_of"]


@dataclass(frozen=True)
class Preset:
    """The size of a study.

    Attributes:
        name: of the study.
        voxels: of each subject; subjects beyond this list take its numbers again, each time 5 larger.
        box: (x, y, z) of the volume that holds them.
        own: images that one subject alone sees, from which the train part is made.
        shared: images that all subjects see: the test part.
        sessions: over which the trials of a subject are spread.
        repeats: presentations of each image to each subject.
        subjects: how many, unless asked otherwise.
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
        """Images that one subject sees."""
        return self.own + self.shared

    @property
    def trials(self) -> int:
        """Trials of one subject."""
        return self.images * self.repeats

    def num_voxels(self, subject: int) -> int:
        """Voxels of subject 0, 1, 2, ...; no two subjects have as many."""
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
    """A preset by name, or the one that was given."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        names = list(PRESETS)
        raise BrainDataError(f"expected a preset of {', '.join(names)}, got {preset!r}{near_names(preset, names)}")
    return PRESETS[preset]
