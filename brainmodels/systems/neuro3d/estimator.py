"""`Neuro3D`: from EEG of a person who looks at an object to its class, its colour and its coloured point cloud.

model = Neuro3D("nano").fit(study, "sim01")
trials = ObjectTrials.of(study, "sim01", "test")
model.classify(trials.averaged()).shape          # (n, K) probabilities of the classes
model.decode(trials, num_points=2048).points     # (n, samples, 2048, 6), xyz and rgb
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from veca.train.parallel import World, join_world

from ...baselines.courses import check_sensors
from ...baselines.sensors import SensorRidge
from ...data.ids import Ids
from ...data.objects import ObjectStudy, ObjectTrials
from ...data.spaces import SensorSpace
from ...data.splits import Split
from ...errors import BrainDataError, LeakageError, NormalizationError, check_choice
from ...features.weights import seeded
from ...nn.points import PointTransformer
from ...records import to_json
from ...training.batches import RowNumbers
from ...training.loop import StageResult
from ...training.run import Run, check_run
from ...training.saved import FORMAT, SavedModel, stage_json
from ...versions import library_versions
from .batches import ColorTask, Conditions, ShapeTask, condition_of, unit_clouds
from .clouds import COLORS, Decoded, Embedded, Found, Retrieved, in_one_color, paint
from .crossfit import (
    Encoder,
    averaged,
    conditions_of,
    encode,
    errors_of,
    filters_of,
    tested,
    train_encoder,
    train_folds,
)
from .model import VIDEO_DELAY, Encoded, StreamShape, build_encoder
from .recipes import Neuro3DRecipe, PointSize, named
from .stacking import join_ridges
from .targets import Goals, TargetScale, goals_of, targets_of, with_targets

__all__ = ["Neuro3D"]

REPEATS = ("avg_inputs", "avg_outputs", "single")


class Neuro3D(SavedModel):
    """An estimator of objects from the EEG of one subject (Neuro-3D, Guo et al., arXiv 2411.12248).

    An encoder fuses the responses to a still picture and to a turning video into a geometry and an appearance feature.
    A diffusion over points makes the shape under the first, and a painter colours it under the second.

    Args:
        config: A recipe, or its name: "nano", "tiny", "veca", "paper" or "released".
        device: Device of the networks; None is a GPU where there is one.

    Attributes:
        recipe: How it is built, trained and used, by `config`.
        subject_: Subject of the fit.
        classes_, colors_: Names of classes and colours; `colors_` is empty without labels of colours.
        palette_: Mean colour of each colour label, fp64 (Q, 3) in [0, 1].
        spaces_: Sensors of each stream.
        scales_: `TargetScale` of "geometry" and "appearance".
        train_ids_: Objects of the fit, with those that validate.
        shares_: Share of a ridge in the answers, "class" and "color", where the recipe stacks it.
        error_: Error level of both features on objects that their encoder did not see, see `error_level`.
        meta_: Facts of the fit, as JSON: versions, split, fingerprints of the targets, stages with steps and losses.
    """

    study: ClassVar[str] = "objects"
    about: ClassVar[str] = "from EEG to coloured point clouds"
    stages: ClassVar[tuple[str, ...]] = ("encoder", "shape", "color")
    networks: ClassVar[tuple[str, ...]] = ("encoder", "denoiser", "painter")
    demo: ClassVar[Mapping[str, Any]] = {"data": "objects:tiny", "recipe": "tiny", "steps": (150, 900, 200)}
    recipe_type: ClassVar[type[Neuro3DRecipe]] = Neuro3DRecipe
    named: ClassVar[Callable[[str], Neuro3DRecipe]] = staticmethod(named)
    recipe: Neuro3DRecipe
    encoder: Encoder
    denoiser: PointTransformer
    painter: PointTransformer

    def __init__(self, config: Neuro3DRecipe | str = "nano", device: str | torch.device | None = None):
        super().__init__(config, device)

    def fit(
        self,
        study: ObjectStudy,
        subject: str | None = None,
        *,
        split: str | None = None,
        decoder: "Neuro3D | None" = None,
        alignment: str = "auto",
        out: str | Path | None = None,
        save_every: int = 500,
        progress: bool = False,
    ) -> Self:
        """Train from the start, or go on where a run in `out` was interrupted. Under `torchrun`, on all its processes.

        The train and validation objects of the split are used, and no other trial is read.

        Args:
            study: Data set. Its own targets are learned where it has them, else those that the recipe names.
            subject: Its subject; None is the first.
            split: Name of the split; None takes the first.
            decoder: A fitted model whose denoiser and painter are taken over. Its recipe has `condition_from="targets"`
                and it was fitted to the same targets, so one decoder serves all subjects of a study.
            alignment: "auto" tests first whether the trials identify their objects, "off" does not.
            out: Folder for checkpoints and the log of the run; None keeps none.
            save_every: Steps between checkpoints.
            progress: Show a bar.

        Raises:
            BrainDataError: Ids, shapes, scales or values are not what they should be; see the message.
            AlignmentError: Trials identify their objects at chance.
        """
        self._check_params()
        self._forget()
        check_choice("alignment", alignment, ("auto", "off"))
        recipe = self.recipe
        study, chosen = self.with_targets(study), study.split(split)
        subject = study.subjects[0] if subject is None else subject
        trials = ObjectTrials.of(study, subject, "train+val", chosen).with_streams(*recipe.encoder_size.streams)
        goals = self._goals(study, chosen, trials, decoder)
        checked = "not tested" if alignment == "off" else tested(trials, goals)
        with join_world(self.device) as world:
            run = self._open(world, trials, out, save_every, progress)
            results = self._train(run, study, chosen, trials, goals, decoder)
            self._place()
        self.meta_ = {
            "format": FORMAT,
            "system": type(self).__name__,
            "versions": dict(library_versions()),
            "subjects": {subject: trials.signature() | {"alignment": checked}},
            "targets": self._fingerprints,
            "classes": list(self.classes_),
            "colors": list(self.colors_),
            "train_objects": self.train_ids_.tolist(),
            "error": self.error_,
            "ridge_shares": self.shares_,
            "selection": recipe.selection,
            "stages": [stage_json(result) for result in results],
        }
        return self

    def _goals(self, study: ObjectStudy, split: Split, trials: ObjectTrials, decoder: "Neuro3D | None") -> Goals:
        """What the encoder learns of the train objects; sets what the fit knows of labels, sensors and targets."""
        ids = np.unique(trials.ids)
        self.subject_, self.spaces_, self.train_ids_ = trials.subject, dict(trials.spaces), ids
        self.classes_, self.palette_ = study.class_names, study.palette(split)
        count = 0 if self.palette_ is None else len(self.palette_)
        self.colors_ = tuple(study.color_names or map(str, range(count)))
        sources = targets_of(study, self.recipe.targets)
        self._fingerprints = {name: source.fingerprint for name, source in sources.items()}
        if decoder is None:
            self.scales_ = {name: TargetScale.fit(source.get(ids)) for name, source in sources.items()}
        else:
            _check_decoder(decoder, self)
            self.scales_ = dict(decoder.scales_)
        return goals_of(study, ids, sources, self.scales_)

    def _open(self, world: World, trials: ObjectTrials, out: str | Path | None, save_every: int, progress: bool) -> Run:
        """What all stages share; a folder of another run is refused."""
        if out is not None:
            content = {"recipe": self.recipe.to_json(), "targets": self._fingerprints, "data": trials.signature()}
            check_run(Path(out) / "run.json", json.loads(json.dumps(content)), world)
        options = {"save_every": save_every, "progress": progress}
        return Run(world, self.recipe.precision, None if out is None else Path(out), options)

    def _train(
        self,
        run: Run,
        study: ObjectStudy,
        split: Split,
        trials: ObjectTrials,
        goals: Goals,
        decoder: "Neuro3D | None",
    ) -> list[StageResult]:
        """Build the networks and train all stages."""
        recipe = self.recipe
        self.shares_ = {}
        self._build()

        def build(trials: ObjectTrials) -> Encoder:
            encoder: Any = seeded(recipe.encoder.seed, self._new_encoder)
            if recipe.encoder_size.whiten:
                encoder.set_filters(filters_of(recipe.encoder_size, trials, goals))
            return encoder

        folds, results = train_folds(run, build, recipe, trials, goals) if recipe.folds else ([], [])
        steps = int(np.median([fold.best_step for fold in folds])) if recipe.selection == "folds" else None
        parts = self._parts(study, split, trials, goals)
        self.encoder, result = train_encoder(run, "encoder", build, recipe, *parts, steps)
        results.append(result)
        if recipe.encoder_size.stack:
            self.shares_ = join_ridges(self.encoder, folds, trials, goals, run.device)
        judged = {name: fold.encoder for fold in folds for name in fold.held.tolist()}
        judged = judged or dict.fromkeys(goals.ids.tolist(), self.encoder)
        self.error_ = errors_of(trials, goals, judged, run.device)
        if decoder is not None:
            self.denoiser.load_state_dict(decoder.denoiser.state_dict())
            self.painter.load_state_dict(decoder.painter.state_dict())
            return results
        used = judged if recipe.condition_from == "cross_fit" else dict.fromkeys(goals.ids.tolist(), self.encoder)
        sizes = len(self.classes_), len(self.colors_)
        conditions = conditions_of(recipe, trials, goals, used, sizes, run.device)
        return results + self._train_points(run, study, goals, conditions)

    def _parts(
        self, study: ObjectStudy, split: Split, trials: ObjectTrials, goals: Goals
    ) -> tuple[ObjectTrials, ObjectTrials | None, Goals]:
        """Trials that the final encoder trains on, those that choose its epoch where any do, and goals of all."""
        recipe, val = self.recipe, np.isin(trials.ids, sorted(split.val))
        if recipe.selection == "test":  # as released: the epoch is chosen by the test objects
            test = ObjectTrials.of(study, trials.subject, "test", split).with_streams(*self.spaces_)
            ids = np.unique(test.ids)
            sources = targets_of(study, recipe.targets)
            return trials, test, goals.joined(goals_of(study, ids, sources, self.scales_))
        if recipe.folds is None and val.any():
            return trials.take(~val), trials.take(val), goals
        return trials, None, goals

    def _train_points(self, run: Run, study: ObjectStudy, goals: Goals, conditions: Conditions) -> list[StageResult]:
        """Train the denoiser and the painter on the train objects."""
        recipe = self.recipe
        clouds = unit_clouds({name: study.cloud(name) for name in goals.ids.tolist()}, goals.ids)
        if clouds.shape[1] < recipe.points:
            raise BrainDataError(f"expected clouds of {recipe.points} points or more, got {clouds.shape[1]}")
        source = RowNumbers("objects", len(goals.ids))
        shape = ShapeTask(self.denoiser, recipe, clouds[..., :3], conditions)
        results = [run.stage("shape", shape, source, recipe.shape)]
        color = ColorTask(self.painter, recipe, clouds, conditions)
        results.append(run.stage("color", color, source, recipe.color))
        return results

    # networks

    def _new_encoder(self) -> Encoder:
        streams = {
            name: StreamShape(len(space.ch_names), len(space.times), space.sfreq, _since_picture(name, space))
            for name, space in self.spaces_.items()
        }
        width = len(self.scales_["geometry"].mean)
        return build_encoder(streams, self.recipe.encoder_size, width, len(self.classes_), len(self.colors_))

    def _build(self) -> None:
        recipe = self.recipe
        self.encoder = seeded(recipe.encoder.seed, self._new_encoder)
        width, noisy = len(self.scales_["geometry"].mean), recipe.condition_from == "targets"
        classes = (len(self.classes_), len(self.colors_)) if recipe.classes else (0, 0)
        widths = [width + count + noisy for count in classes]

        def new(size: PointSize, cond_width: int, timed: bool) -> PointTransformer:
            return PointTransformer(size.width, size.depth, size.heads, size.latents, cond_width, timed=timed)

        self.denoiser = seeded(recipe.shape.seed, lambda: new(recipe.denoiser_size, widths[0], True))
        self.painter = seeded(recipe.color.seed, lambda: new(recipe.painter_size, widths[1], False))

    # use

    def classify(self, trials: ObjectTrials) -> Found:
        """Probabilities of classes and colours for every row of trials, single ones or means.

        Raises:
            AxisError: Channels, their order, times or rate differ from the fit.
            UnitsError, NormalizationError: Values are in another unit, or went through another scaling.
            BrainDataError: A stream of the fit is missing.
        """
        said = self._encode(trials)
        return Found(trials.ids, said.shape.numpy(), said.color.numpy() if self.colors_ else None)

    def embed(self, trials: ObjectTrials) -> Embedded:
        """Unit features of geometry and appearance for every row of trials; errors as in `classify`."""
        said = self._encode(trials)
        return Embedded(trials.ids, said.geometry.numpy(), said.appearance.numpy())

    def retrieve(self, trials: ObjectTrials, study: ObjectStudy, gallery: Ids) -> Retrieved:
        """How similar trials are to the objects of a gallery: the mean cosine of both features.

        Args:
            trials: Rows to look up; errors as in `classify`.
            study: Data set that has the targets of the gallery.
            gallery: (m,) Objects.
        """
        said, ids = self._encode(trials), np.asarray(list(gallery))
        targets = self.target_features(study, ids)
        pairs = zip((said.geometry, said.appearance), targets, strict=True)
        return Retrieved(trials.ids, ids, np.mean([f.numpy() @ v.T for f, v in pairs], 0))

    def with_targets(self, study: ObjectStudy) -> ObjectStudy:
        """The study with the features of its objects that the recipe names, computed where it has none.

        `fit`, `retrieve` and `target_features` do this themselves. Doing it once before saves the time of the others.

        Raises:
            BrainDataError: The recipe asks for given features and there are none, or the objects have no frames.
        """
        return with_targets(study, self.recipe.targets)

    def target_features(self, study: ObjectStudy, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
        """Unit features fp32 (n, d) of geometry and appearance of the objects themselves, as the fit saw them.

        Raises:
            NormalizationError: The targets have another fingerprint than those of the fit.
        """
        self._check_fitted()
        ids = np.asarray(list(ids))
        sources = targets_of(self.with_targets(study), self.recipe.targets)
        for name, source in sources.items():
            known = self.meta_["targets"][name]
            if source.fingerprint != known:
                raise NormalizationError(
                    f"expected {name} targets with fingerprint {known}, as in the fit, got {source.fingerprint}"
                )
        geometry, appearance = (self.scales_[name].transform(sources[name].get(ids)) for name in sources)
        return geometry, appearance

    def decode(
        self,
        trials: ObjectTrials,
        samples: int | None = None,
        num_points: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        color: str = "per_point",
        seed: int = 0,
        repeats: str = "avg_inputs",
        chunk_points: int | None = None,
    ) -> Decoded:
        """Coloured clouds from trials.

        Args:
            trials: Trials of the subject of the fit; errors as in `classify`.
            samples: Clouds of each object; None is the recipe's, as for the next three.
            num_points: Points of a cloud, any number from 16.
            steps: Steps of the diffusion.
            guidance: Weight of classifier-free guidance; 1 is none. Other values need dropout in training.
            color: "per_point" paints every point. "majority" gives a cloud the colour of the palette that is nearest to
                most of its points, and "label" that of the most probable colour label.
            seed: Seed of the noise.
            repeats: "avg_inputs" averages the presentations of an object, as the paper does. "avg_outputs" averages
                their features, and "single" decodes every row.
            chunk_points: Points that go through the networks at a time, which bounds memory; see `PointTransformer`.

        Returns:
            One row for each object, or each row of `trials` with "single", in the order in which they first occur.
        """
        check_choice("repeats", repeats, REPEATS)
        if repeats == "avg_inputs":
            trials = trials.averaged()
        said, ids = self._encode(trials), trials.ids
        if repeats == "avg_outputs":
            said, ids = averaged(said, ids)
        options = {"samples": samples, "num_points": num_points, "steps": steps, "guidance": guidance}
        return self._clouds(said, ids, self.error_, options, color, seed, chunk_points)

    def decode_features(
        self,
        geometry: np.ndarray,
        appearance: np.ndarray,
        shape: np.ndarray | None = None,
        colors: np.ndarray | None = None,
        ids: Ids | None = None,
        color: str = "per_point",
        seed: int = 0,
        chunk_points: int | None = None,
        **options: Any,
    ) -> Decoded:
        """Coloured clouds from features, such as those of the objects themselves: the ceiling of the decoder.

        Args:
            geometry, appearance: (n, d) Features, see `target_features`.
            shape, colors: (n, K) and (n, Q) Probabilities, for recipes with `classes`.
            ids: (n,) Names of the rows; None numbers them.
            color, seed, chunk_points, options: As in `decode`.

        Raises:
            BrainDataError: Probabilities are missing that the recipe asks for.
        """
        self._check_fitted()
        count = len(geometry)
        if self.recipe.classes and (shape is None or (self.colors_ and colors is None)):
            raise BrainDataError("expected shape and colors, probabilities that this recipe conditions on, got none")
        empty = np.zeros((count, 0), np.float32)
        columns = (geometry, appearance, empty if shape is None else shape, empty if colors is None else colors)
        first, second, third, fourth = (torch.tensor(np.ascontiguousarray(x, np.float32)) for x in columns)
        said = Encoded(first, second, third, fourth)
        names = np.array([f"row{row}" for row in range(count)]) if ids is None else np.asarray(list(ids))
        return self._clouds(said, names, {"geometry": 0.0, "appearance": 0.0}, options, color, seed, chunk_points)

    def reference_classifiers(self) -> dict[str, SensorRidge]:
        """Simpler classifiers of the same input, not fitted yet, by name; they belong in every table."""
        size = self.recipe.encoder_size
        if size.components is None:
            return {}
        bins = {name: size.token(name) for name in size.streams}
        return {f"ridge on {size.components} courses": SensorRidge(bins, components=size.components)}

    def check_unseen(self, ids: Ids) -> None:
        """Refuse objects that the fit saw. Test objects that only chose the epoch (`selection="test"`) are not refused.

        Raises:
            LeakageError: An object was among the train objects.
        """
        self._check_fitted()
        seen = sorted(set(map(str, ids)) & set(self.meta_["train_objects"]))
        if seen:
            raise LeakageError(f"expected objects that the fit did not see, got {len(seen)} that it saw: {seen[0]}")

    def _encode(self, trials: ObjectTrials) -> Encoded:
        self._check_fitted()
        used = [name for name in trials.streams if name in self.spaces_]
        check_sensors(self.spaces_, trials := trials.with_streams(*used))
        known = self.meta_["subjects"][self.subject_]["normalizer"]
        if trials.normalizer != known:
            raise NormalizationError(f"expected trials through {known!r}, as in the fit, got {trials.normalizer!r}")
        return encode(self.encoder, trials, self._place())

    def _clouds(
        self,
        said: Encoded,
        ids: np.ndarray,
        errors: Mapping[str, float],
        options: Mapping[str, Any],
        color: str,
        seed: int,
        chunk_points: int | None,
    ) -> Decoded:
        recipe, given = self.recipe, {key: value for key, value in options.items() if value is not None}
        settings = {key: getattr(recipe, key) for key in ("samples", "num_points", "steps", "guidance")} | given
        if settings["guidance"] != 1 and not recipe.condition_dropout:
            raise BrainDataError(
                f"expected a recipe with condition_dropout above 0 for guidance={settings['guidance']:g}, got 0"
            )
        check_choice("color", color, COLORS)
        if color != "per_point" and not self.colors_:
            raise BrainDataError(f"expected color='per_point' without labels of colours in the fit, got {color!r}")
        device = self._place()
        conditions = [
            self._condition(feature, probable, errors[name]).to(device)
            for name, feature, probable in (
                ("geometry", said.geometry, said.shape),
                ("appearance", said.appearance, said.color),
            )
        ]
        call = (settings, recipe.objective, seed, chunk_points)
        points = paint(self.denoiser, self.painter, conditions[0], conditions[1], *call)  # (n, samples, N, 6)
        if color != "per_point":
            assert self.palette_ is not None  # of a fit with labels of colours
            points = in_one_color(points, color, self.palette_, said.color.numpy())
        return Decoded(points, ids, {**settings, "color": color, "seed": seed})

    def _condition(self, feature: Tensor, probable: Tensor, level: float) -> Tensor:
        recipe, told = self.recipe, probable
        if recipe.classes == "label":
            told = _surest(probable)
        noise = torch.full((len(feature), 1), level) if recipe.condition_from == "targets" else None
        return condition_of(feature, None if recipe.classes is None else told, noise)

    # folders

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays = {
            f"target.{name}.{key}": torch.from_numpy(np.ascontiguousarray(getattr(scale, key)))
            for name, scale in self.scales_.items()
            for key in ("mean", "std")
        }
        if self.palette_ is not None:
            arrays["palette"] = torch.from_numpy(self.palette_)
        return arrays, {"spaces": {name: to_json(space) for name, space in self.spaces_.items()}}

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        self.scales_ = {
            name: TargetScale(*(arrays.pop(f"target.{name}.{key}").numpy() for key in ("mean", "std")))
            for name in ("geometry", "appearance")
        }
        self.palette_ = arrays.pop("palette").numpy() if self.colors_ else None
        (self.subject_,) = subjects
        self.spaces_ = {
            name: SensorSpace(**space | {"times": np.array(space["times"])}) for name, space in texts["spaces"].items()
        }

    def _recall(self, meta: Mapping[str, Any]) -> None:
        self.classes_, self.colors_ = tuple(meta["classes"]), tuple(meta["colors"])
        self.train_ids_, self.error_ = np.array(meta["train_objects"]), dict(meta["error"])
        self.shares_ = dict(meta.get("ridge_shares", {}))
        self._fingerprints = dict(meta["targets"])

    def _rebuild(self) -> None:
        self._build()


def _surest(probable: Tensor) -> Tensor:
    """One-hot rows of the most probable columns."""
    return F.one_hot(probable.argmax(1), probable.shape[1]).float() if probable.shape[1] else probable


def _since_picture(stream: str, space: SensorSpace) -> float:
    """Time of the first sample in seconds from the onset of the picture; the video begins a second later."""
    return float(space.times[0]) + (VIDEO_DELAY if stream == "dynamic" else 0.0)


def _check_decoder(decoder: Neuro3D, model: Neuro3D) -> None:
    """Refuse a decoder that was not trained on targets, or that another recipe, targets or labels would misread."""
    decoder._check_fitted()
    if decoder.recipe.condition_from != "targets" or model.recipe.condition_from != "targets":
        found = f"{decoder.recipe.condition_from!r} and {model.recipe.condition_from!r}"
        raise BrainDataError(f"expected condition_from='targets' in the recipes of decoder and model, got {found}")
    for name in ("denoiser_size", "painter_size", "objective", "classes", "condition_dropout"):
        theirs, ours = getattr(decoder.recipe, name), getattr(model.recipe, name)
        if theirs != ours:
            raise BrainDataError(f"expected a decoder with {name}={ours!r}, as in the model, got {theirs!r}")
    if (decoder.classes_, decoder.colors_) != (model.classes_, model.colors_):
        raise BrainDataError("expected a decoder of the same classes and colours in the same order, got others")
    if decoder._fingerprints != model._fingerprints:
        raise NormalizationError(
            f"expected a decoder of the targets {model._fingerprints}, got one of {decoder._fingerprints}"
        )
