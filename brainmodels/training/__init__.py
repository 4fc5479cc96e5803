"""What every system trains with: single trials joined with tokens, and the loop over stages."""

from .loop import Batch, Source, StageResult, train_stage

__all__ = ["Batch", "Source", "StageResult", "train_stage"]
