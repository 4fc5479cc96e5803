"""A decoder and an encoder of two simulated subjects, trained for seconds, and a third subject with few images."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from brainmodels.cli import main
from brainmodels.commands.opening import open_data
from brainmodels.data import BrainDataset, Split, context_split
from brainmodels.evaluation import EvaluationSettings
from brainmodels.evaluation.context import adapt_models
from brainmodels.evaluation.encoding import Study
from brainmodels.evaluation.opened import OpenedModel, open_models
from brainmodels.evaluation.run import feature_cache, study_of
from brainmodels.features import FeatureCache
from brainmodels.features.sets import FeatureSet
from brainmodels.systems import braincodec


def few_steps(recipe, **steps):
    """The recipe with so few steps that what it learns does not matter."""
    stages = {name: replace(getattr(recipe, name), steps=count, warmup=2) for name, count in steps.items()}
    return replace(recipe, name="few", validation=0.0, **stages)


FIRST = few_steps(braincodec.in_context("tiny"), extend=40, finetune=8)
CODEC = replace(few_steps(braincodec.tiny(), synthetic=12, finetune=12), stage1=FIRST, runs=(8,), run_draws=1)


def recipe_file(folder: Path, recipe) -> str:
    """A recipe as the command line takes it."""
    path = folder / f"{type(recipe).__name__}.json"
    path.write_text(json.dumps(recipe.to_json()))
    return str(path)


def train_both(out: Path) -> tuple[Path, Path]:
    """Folders of BrainCoDec and InContextEncoder, of sim02 and sim03 while sim01 was held out, by the command line."""
    words = ["--data", "simulated:tiny", "--held-out", "sim01", "--features", "grid", "--cache", str(out / "features")]
    words += ["--no-progress", "--device", "cpu", "--check-alignment", "off"]
    for system, recipe in (("braincodec", CODEC), ("braincorl", FIRST)):
        given = ["--model", system, "--recipe", recipe_file(out, recipe), "--out", str(out / system)]
        main(["train", *words, *given])
    return out / "braincodec", out / "braincorl"


@dataclass
class Few:
    """sim01 with 16 context images, and both models adapted to them, as the evaluation sees them."""

    dataset: BrainDataset
    settings: EvaluationSettings
    split: Split
    study: Study
    codec: OpenedModel
    corl: OpenedModel
    cache: FeatureCache

    @classmethod
    def of(cls, trained: tuple[Path, Path], out: Path) -> "Few":
        sizes = {"context": (8, 16), "draws": 2, "resamples": 100, "shuffles": 1}
        settings = EvaluationSettings(out=out, progress=False, **sizes)
        dataset = open_data("simulated:tiny", 0, ("sim01",))
        subject, whole = dataset.subject("sim01"), dataset.split("shared")
        split = context_split(dataset, "sim01", whole, 16, 0, 0, 2)
        study = study_of(dataset, subject, split, settings, whole)
        models = open_models(trained, [FeatureSet.parse("grid")], "cpu")
        codec, corl = adapt_models(models, dataset, subject, split, study, settings)
        return cls(
            dataset, settings, split, study, codec, corl, feature_cache(codec.tokens_of, dataset, study, settings)
        )
