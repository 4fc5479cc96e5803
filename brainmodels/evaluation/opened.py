"""Trained models from their folders, with their features; a model that does not belong to a study is refused.

opened = open_models([Path("out/neuroflow")], sets, device="cpu")
opened[0].check(study)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veca.hashes import json_digest

from ..data import Split
from ..errors import BrainDataError, LeakageError, NormalizationError, near_names
from ..features.sets import FeatureSet
from ..systems import load_model
from ..training.estimator import BrainModel
from ..training.stacked import Stacked
from .encoding import Study

__all__ = ["OpenedModel", "hash_of_test_images", "open_models"]


@dataclass(frozen=True)
class OpenedModel:
    """A fitted model and the features that it was fitted to.

    Attributes:
        name: Name in tables: its system, and its folder where several are of one system.
        model: The fitted model.
        features: The set of features with its fingerprint; None of a model that takes the images themselves.
        run: Facts of the training that `veca brain train` wrote down; empty for a model that was fitted in Python.
    """

    name: str
    model: BrainModel | Stacked
    features: FeatureSet | None
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def encodes(self) -> bool:
        """Whether it predicts responses to images."""
        return self.model.encodes

    @property
    def decodes(self) -> bool:
        """Whether it reads tokens from responses."""
        return self.model.decodes

    @property
    def masks(self) -> bool:
        """Whether its decoder reads any voxels; a stacked one reads them all."""
        return self.model.masks and not isinstance(self.model, Stacked)

    @property
    def maps(self) -> bool:
        """Whether it has encoders of voxels."""
        return self.model.maps

    @property
    def generates(self) -> bool:
        """Whether it makes pictures or captions itself, and no tokens."""
        return "tokens" not in self.model.outputs

    @property
    def tokens_of(self) -> FeatureSet:
        """Its set of features. A model that takes images has none, which is a `BrainDataError`."""
        if self.features is None:
            raise BrainDataError(f"expected a model of features of images, got {self.name}, which takes the images")
        return self.features

    def subject_in(self, study: Study) -> str:
        """Its name for the subject of the study."""
        name, known = study.test.subject.id, self.model.subjects_
        if name in known:
            return name
        if known == ("default",):
            return "default"
        raise BrainDataError(
            f"expected {name} among the subjects of {self.name}, got {', '.join(known)}{near_names(name, known)}; "
            "responses of another subject need a model adapted to them"
        )

    def check(self, study: Study) -> None:
        """Refuse a model that was not fitted to the train part of this study, on its scale.

        Raises:
            LeakageError: It was fitted on test images, on another split, or on images that are not known.
            NormalizationError: it was fitted to responses on another scale.
        """
        split, subject = study.test.split, self.subject_in(study)
        trained = self.run.get("split_hash")
        if trained is not None and trained != split.hash:
            raise self._other_split(split)
        if not self.model.check_unseen(study.test.image_ids) and trained is None:
            raise LeakageError(
                f"expected {self.name} to know its training images, by a split or by a scaler of tokens, got neither; "
                "train it with `veca brain train`"
            )
        used = self.model.meta_["subjects"][subject]["normalizer"]
        if used not in ("unknown", study.test.normalizer):
            raise NormalizationError(
                f"expected {self.name} fitted to responses through {study.test.normalizer!r}, as here, got {used!r}; "
                f"pass normalizer {used!r}"
            )

    def check_origin(self, split: Split) -> None:
        """Refuse a model that is to be adapted, but was trained on a split with other test images.

        Args:
            split: Split with the few images of the new subject.

        Raises:
            LeakageError: The test images are others than in the training.
        """
        known = self.run.get("test_hash")
        if known is not None and known != hash_of_test_images(split):
            raise self._other_split(split)

    def _other_split(self, split: Split) -> LeakageError:
        return LeakageError(
            f"expected {self.name} of split {split.hash} ({split.name}), got one trained on "
            f"{self.run.get('split_hash')} ({self.run.get('split')}, data {self.run.get('data')}, seed "
            f"{self.run.get('seed')}); evaluate it on the data, seed and split of its training"
        )


def hash_of_test_images(split: Split) -> str:
    """Twelve digits that change with the test images of a split, and with nothing else."""
    return json_digest(sorted(split.test))


def open_models(folders: Sequence[str | Path], sets: Sequence[FeatureSet], device: str) -> list[OpenedModel]:
    """Saved models with their features: the set of their fingerprint among those given, else that of their training.

    Raises:
        LayoutError: a folder holds no model.
        NormalizationError: no features of the fingerprint can be had.
    """
    models = [load_model(folder, device) for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        if model.study != "images":
            raise BrainDataError(f"expected models of images, got a {model.label} of {model.study} in {folder}")
    systems = [model.label for model in models]
    opened = []
    for folder, model, system in zip(map(Path, folders), models, systems, strict=True):
        place = folder.parent if folder.name == "model" else folder
        name = system if systems.count(system) == 1 else f"{system} {place.name}"
        run = model.meta_.get("run", {})
        opened.append(OpenedModel(name, model, _features_of(name, model, run, sets), run))
    names = [item.name for item in opened]
    if len(set(names)) != len(names):
        raise BrainDataError(f"expected models in folders with names of their own, got {', '.join(names)}")
    return opened


def _features_of(
    name: str, model: BrainModel | Stacked, run: Mapping[str, Any], sets: Sequence[FeatureSet]
) -> FeatureSet | None:
    if model.inputs == "stimuli":
        return None
    wanted, known = model.fingerprint_, {item.extractor.fingerprint(): item for item in sets}
    if wanted in known:
        return known[wanted]
    if "features" not in run:
        given = ", ".join(f"{item.name} {mark}" for mark, item in known.items()) or "none"
        raise NormalizationError(
            f"expected features {wanted or 'with a fingerprint'}, which {name} was fitted to, got {given}; name them "
            "among the features"
        )
    item = FeatureSet.parse(run["features"])
    if item.extractor.fingerprint() != wanted:
        raise NormalizationError(
            f"expected features {wanted} of {run['features']}, which {name} was fitted to, got "
            f"{item.extractor.fingerprint()}; weights or libraries are others than in training: train again, or "
            "install the versions that meta.json names"
        )
    return item
