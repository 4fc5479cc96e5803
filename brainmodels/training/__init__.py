"""What every system trains with: the base of the estimators, single trials joined with tokens, and the loop."""

from .estimator import BrainModel
from .latent_model import LatentModel
from .loop import Batch, Source, StageResult, train_stage
from .recipe import LatentRecipe, ModelRecipe, TrainingStage
from .stacked import Stacked

__all__ = [
    "Batch",
    "BrainModel",
    "LatentModel",
    "LatentRecipe",
    "ModelRecipe",
    "Source",
    "Stacked",
    "StageResult",
    "TrainingStage",
    "train_stage",
]
