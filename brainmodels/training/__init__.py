"""What every system trains with: single trials joined with tokens, the loop, averaged weights."""

from .averages import Averages
from .loop import Batch, Source, StageResult, train_stage

__all__ = ["Averages", "Batch", "Source", "StageResult", "train_stage"]
