"""A system shown on a simulated subject in minutes: what `veca brain demo` does."""

from pathlib import Path

from ..errors import BrainDataError
from ..evaluation import EvaluationSettings
from ..systems import SYSTEMS, system
from .evaluate import run_evaluations
from .train import run_training
from .train_settings import TrainSettings

__all__ = ["run_demo"]


def run_demo(model: str, out: Path, progress: bool = True) -> Path:
    """Train a system on a simulated subject by its short settings, and write its report.

    Started again, the training goes on, and a trained model is only evaluated.

    Args:
        model: System; it has short settings, see `SavedModel.demo`.
        out: Folder of the run. The report is in `report` below it.
        progress: Show bars.

    Returns:
        Path of the report.

    Raises:
        BrainDataError: The system is unknown or has no short settings.
    """
    settings = system(model).demo
    if settings is None:
        having = [name for name in SYSTEMS if system(name).demo is not None]
        raise BrainDataError(f"expected a system with a demo ({', '.join(having)}), got {model}")
    run_training(TrainSettings(model=model, out=out, progress=progress, **settings))
    page = out / "report"
    run_evaluations(EvaluationSettings(models=(out,), out=page, progress=progress))
    return page / "report.html"
