"""Settings of `veca brain evaluate`.

EvaluationSettings(data=("simulated:lab",), features=("veca", "pixels"), out=Path("out/lab"))
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .encoding import SHUFFLES

__all__ = ["EvaluationSettings"]


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of `veca brain evaluate`.

    Attributes:
        data: "simulated", "simulated:PRESET" with the preset tiny, small, nsd_like, lab or eeg, or one or several
            folders of prepared subjects. For models of objects "objects:PRESET" with the preset tiny, nano or
            eeg3d_like, or "eeg3d:FOLDER"; left out, the data of their training.
        features: Sets of features, see `FeatureSet.parse`; controls and the learning curve use the first. With several
            layers, as in NAME:layers=2+5+8, the best layer of each region is chosen too, on images not tested on.
        models: Folders of trained models (`veca brain train`), each compared with ridge on the same tokens. They decide
            the kind of study: models of objects, such as neuro3d, are evaluated on objects, each on its subject.
        pictures: Pictures of what the models decode: "none"; "nearest", the picture of a bank that fits best: of 8,000
            drawn scenes in a simulated study, of the train images else, or for pooled features of all images that are
            not tested on; "generator", drawn by the one of scenes that ships, for a simulated study; a folder that
            `veca brain drawer` has written; or module:name or file.py:name, a function or class of yours that draws
            pictures from tokens, see `brainmodels.evaluation.user_pictures`.
        weights: Weights of networks that judge decoded pictures as published tables do, as SLOT=FILE with the slot
            alexnet, inception, clip, efficientnet or swav.
        protocol: Protocols of papers under which scores are added: mindeye, algonauts, synbrain, neuroflow.
        anatomy: NIfTI image in the space of the responses, which maps are drawn over.
        to_mni: Map of the responses' space to MNI millimetres, for maps on fsaverage5: "identity", or a file with a
            matrix (4, 4), .npy or text. Left out, volumes have no surface map, unless the name of their space has MNI.
        ablations: Of models that make pictures and captions: rows without some of what they use, and curves over their
            settings. It takes minutes.
        published: Print numbers of the papers, with what makes them hard to compare; not beside simulated scores.
        out: Folder of the report, its figures and record.json.
        subject: Ids of subjects; none given is the first. Several are evaluated one after the other, each in a folder
            of its name below `out`.
        context: Numbers of train images that the subject gives. Models are then adapted to it from so few images, and
            ridge sees the same ones; the report is of the largest number. None given evaluates with all of them.
        draws: Disjoint draws of the context images, which the curve over their number averages.
        split: Name of the split; None takes the first.
        normalizer: Normaliser of the responses; "none" leaves them as they are stored. "auto" is session_z_train where
            the session of every trial is known, train_z where it is not, and none where the stored values were
            normalised. With `context` it is session_z_unlabelled in place of session_z_train.
        threshold: Smallest noise ceiling (r^2) of a voxel that counts.
        check_alignment: "auto", or "off", which the report then says.
        allow_duplicates: Go on where equal pictures with different ids are in two parts of the split. The report then
            says so. Default: they are an error.
        resamples: Number of bootstrap resamples, and of permutations.
        shuffles: Number of fits to wrongly paired images and responses, whose range is the chance band.
        partition: Split what the sets of features explain into unique and shared parts, by banded ridge. It takes as
            long as 20 ridge regressions for each set.
        curve: Numbers of train images of the learning curve; those beyond the train images are left out.
        bands: Of EEG and MEG: bands of frequencies whose log power is studied too, as NAME=LOW-HIGH in hertz, such as
            alpha=8-12.
        time_bin: Of EEG and MEG: length in seconds of the bins that are averaged. None leaves at most 100 bins.
        seed: Seed of the simulation, the resamples and all random choices.
        device: Device of the extractors, the models and the drawing of pictures.
        progress: Show a bar.
    """

    data: tuple[str, ...] = ("simulated",)
    features: tuple[str, ...] = ("veca", "pixels")
    models: tuple[Path, ...] = ()
    pictures: str = "none"
    weights: tuple[str, ...] = ()
    protocol: tuple[Literal["mindeye", "algonauts", "synbrain", "neuroflow"], ...] = ()
    anatomy: Path | None = None
    to_mni: str = ""
    ablations: bool = False
    published: bool = False
    out: Path = Path("out/brain")
    subject: tuple[str, ...] = ()
    context: tuple[int, ...] = ()
    draws: int = 1
    split: str | None = None
    normalizer: str = "auto"
    threshold: float = 0.1
    check_alignment: Literal["auto", "off"] = "auto"
    allow_duplicates: bool = False
    resamples: int = 1000
    shuffles: int = SHUFFLES
    partition: bool = False
    curve: tuple[int, ...] = (50, 100, 200, 400, 800)
    bands: tuple[str, ...] = ()
    time_bin: float | None = None
    seed: int = 0
    device: str = "cpu"
    progress: bool = True

    def __post_init__(self):
        for name in ("data", "subject"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
