"""Head models: vertices, and for the drawn head pictures, from expression, jaw, pose and identity."""

from .files import FlameFile, GnmFile, IctFile, convert_head
from .model import Coefficients, HeadModel
from .space import ExpressionSpace
from .toy import EMOTION_DIRECTIONS, NAMED, VISEME_SHAPES, ToyHead

__all__ = [
    "EMOTION_DIRECTIONS",
    "NAMED",
    "VISEME_SHAPES",
    "Coefficients",
    "ExpressionSpace",
    "FlameFile",
    "GnmFile",
    "HeadModel",
    "IctFile",
    "ToyHead",
    "convert_head",
]
