"""A cheap model of objects with the methods of `Neuro3D`: ridge for labels, and jittered train clouds for clouds."""

import functools
from types import SimpleNamespace

import numpy as np

from brainmodels.baselines.sensors import SensorRidge
from brainmodels.data.objects import ObjectTrials
from brainmodels.evaluation.objects import ObjectSettings, evaluate_objects
from brainmodels.metrics.shape3d import normalize_cloud
from brainmodels.simulated import simulate_objects

WIDTH = 12
COURSES = "ridge on 2 courses"  # what the stand-in names beside itself


class Recipe(SimpleNamespace):
    def to_json(self):
        return {"name": self.name, "selection": self.selection}


class StandIn:
    """Fitted to the train objects of a study.

    Args:
        study: Simulated study.
        jitter: Noise on the coordinates of its clouds, in radii. It decodes the first train object of the class.
        selection: Of its recipe.
    """

    study, label = "objects", "StandIn"

    def __init__(self, study, jitter=0.05, selection="last", subject="sim01"):
        split = study.split()
        train = ObjectTrials.of(study, subject, "train+val", split)
        self.source, self.jitter = study, jitter
        self.train_ids_ = np.unique(train.ids)
        self.ridge = SensorRidge().fit(train, study.label("class", train.ids), colors=study.label("color", train.ids))
        stage = SimpleNamespace(epochs=20)
        self.recipe = Recipe(
            selection=selection, samples=2, num_points=256, encoder=stage, name="stand_in", condition_dropout=0.1
        )
        self.meta_ = {
            "subjects": {subject: train.signature()},
            "stages": [{"name": "encoder", "epochs": 20, "steps": 1, "seconds": 0.5}],
            "run": {"data": "objects:tiny", "seed": 0},
        }
        first = {int(study.label("class", [name])[0]): name for name in reversed(self.train_ids_.tolist())}
        self.clouds = [study.cloud(first[number]) for number in range(len(study.class_names))]
        self.palette_ = study.palette(split)

    def classify(self, trials):
        return self.ridge.classify(trials.with_streams("static", "dynamic"))

    def reference_classifiers(self):
        return {COURSES: SensorRidge({"static": 0.04}, components=2)}

    def embed(self, trials):
        said = self.classify(trials)
        return SimpleNamespace(geometry=_padded(said.shape), appearance=_padded(said.color))

    def target_features(self, study, ids):
        ids = np.asarray(ids)
        rng = {name: np.random.default_rng(number) for number, name in enumerate(study.stimuli.ids.tolist())}
        own = np.stack([0.3 * rng[name].normal(size=WIDTH) for name in ids.tolist()])
        features = (np.eye(WIDTH)[study.label(label, ids).astype(int)] + own for label in ("class", "color"))
        return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in features)

    def decode(self, trials, samples=None, num_points=None, seed=0):
        said = self.classify(trials.averaged())
        return self._clouds(said.shape, said.color, said.ids, samples, num_points, seed)

    def decode_features(
        self, geometry, appearance, shape=None, colors=None, ids=None, samples=None, num_points=None, seed=0, guidance=1
    ):
        return self._clouds(shape, colors, ids, samples, num_points, seed)

    def _clouds(self, shape, colors, ids, samples, num_points, seed):
        rng, found = np.random.default_rng(seed), {}
        for name, cls, color in zip(np.asarray(ids).tolist(), shape.argmax(1), colors.argmax(1), strict=True):
            for _ in range(samples or self.recipe.samples):
                cloud = self.clouds[cls][rng.permutation(len(self.clouds[cls]))[: num_points or self.recipe.num_points]]
                cloud = normalize_cloud(cloud, "rms")
                cloud[:, :3] += self.jitter * rng.normal(size=(len(cloud), 3))
                cloud[:, 3:] = self.palette_[color]
                found.setdefault(name, []).append(cloud.astype(np.float32))
        return SimpleNamespace(by_id=lambda: found)


def _padded(values):
    found = np.zeros((len(values), WIDTH), np.float32)
    found[:, : values.shape[1]] = values
    return found / np.linalg.norm(found, axis=1, keepdims=True)


NAME = "Stand<In>"  # a page must escape it


@functools.cache
def object_study():
    """Six classes of simulated objects."""
    return simulate_objects("tiny")


@functools.cache
def object_evaluation():
    """The stand-in on simulated objects, with clouds of few points and a judge of few steps."""
    settings = ObjectSettings(
        samples=2, num_points=96, emd_points=48, judge_steps=6, shuffles=4, noise=2, resamples=80, data="objects:tiny"
    )
    return evaluate_objects(object_study(), {NAME: StandIn(object_study())}, settings)
