"""What every estimator of a brain model has: a recipe, networks on a device, facts of its fit, and a folder.

`BrainModel` adds tokens of images and voxels. Systems with other data, such as `Neuro3D`, build on this class alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import BrainDataError, need
from .files import FORMAT, read_model, write_model

try:
    from sklearn.base import BaseEstimator
except ImportError as error:
    raise need("scikit-learn", "brainmodels.training") from error

__all__ = ["FORMAT", "SavedModel", "stage_json"]


class SavedModel(BaseEstimator):
    """An estimator that is built from a recipe and saved as a folder.

    Args:
        config: A recipe of the system, or its name.
        device: Device of the networks; None is a GPU where there is one.

    Attributes:
        study: What it is trained on and evaluated by: "images", "objects" or "clips".
        about: Half a sentence for reports: what the system goes from and to.
        stages: Fields of the recipe that are trained, in order.
        needs: Packages beyond the extra `brain` that it imports.
        networks: Names of the attributes that hold its modules.
        recipe_type, named: Class of its recipes, and the function that returns one by name.
        options: Further arguments of the constructor that `veca brain train` passes on.
        trained_by: Where a system has no stages to train, what says so to a user who asks for steps.
        demo: Settings of `veca brain train` under which `veca brain demo` shows the system in minutes; None has none.
        recipe: How it is built, trained and used, by `config`.
        meta_: Facts of the fit, as JSON.
    """

    study: ClassVar[str] = "images"
    about: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[tuple[str, ...]] = ()
    recipe_type: ClassVar[type[Any]]
    named: ClassVar[Callable[[str], Any]]
    options: ClassVar[tuple[str, ...]] = ()
    trained_by: ClassVar[str] = ""
    demo: ClassVar[Mapping[str, Any] | None] = None
    meta_: dict[str, Any]

    def __init__(self, config: Any, device: str | torch.device | None = None):
        self.config, self.device = config, device
        self._check_params()

    @property
    def recipe(self) -> Any:
        return type(self).named(self.config) if isinstance(self.config, str) else self.config

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor. The model must then be fitted again."""
        super().set_params(**params)
        self._check_params()
        self._forget()
        return self

    def _check_params(self) -> None:
        """Refuse arguments that are not what they should be."""
        if not isinstance(self.recipe, self.recipe_type):
            name = self.recipe_type.__name__
            raise BrainDataError(f"expected a {name}, or the name of one, got {type(self.config).__name__}")

    @property
    def label(self) -> str:
        """Name in tables."""
        return type(self).__name__

    def _forget(self) -> None:
        """Drop what an earlier fit left, so that a fit that fails leaves no mixture of two."""
        vars(self).pop("meta_", None)

    def _check_fitted(self) -> None:
        if not hasattr(self, "meta_"):
            raise BrainDataError(f"expected a fitted {type(self).__name__}, got one before fit")

    def _place(self) -> torch.device:
        """Where it computes, with the networks there and in eval mode."""
        default = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(default if self.device is None else self.device)
        for name in self.networks:
            getattr(self, name).to(device).eval()
        return device

    # folders

    def save(self, folder: str | Path) -> Path:
        """Write the model as safetensors and JSON into a folder, which appears whole or not at all.

        Raises:
            LayoutError: the folder exists and is no model.
        """
        self._check_fitted()
        return write_model(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None, **options: Any) -> Self:
        """The model that `save` wrote.

        Args:
            folder: Folder of the model.
            device: Device of the networks; None is a GPU where there is one.
            options: What the model needs and its folder does not hold, such as `head` of a talking head.

        Raises:
            LayoutError: a file is missing or broken, weights are missing or unknown, or it is of another system.
        """
        return read_model(cls, Path(folder), device, **options)

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a folder holds beside the weights: arrays, and what is text."""
        raise NotImplementedError

    def _save_more(self, folder: Path) -> None:
        """Write what a system keeps beside weights and statistics into the folder of the model."""

    @classmethod
    def _arguments(cls, meta: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Arguments of the constructor beside recipe and device, from the facts of a saved model and what was given."""
        if options:
            raise BrainDataError(f"expected nothing besides the folder of a {cls.__name__}, got {', '.join(options)}")
        return {}

    def _recall(self, meta: Mapping[str, Any]) -> None:
        """Take what the statistics and the networks of a saved model need to know from its facts."""

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        """Take the statistics back, and the arrays that were used out of `arrays`; a missing one is a KeyError."""
        raise NotImplementedError

    def _rebuild(self) -> None:
        """Make the networks of a saved model, whose facts and statistics are known, without weights."""
        raise NotImplementedError


def stage_json(stage: Any) -> dict[str, Any]:
    """A `StageResult` as JSON."""
    return {
        key: getattr(stage, key)
        for key in ("name", "steps", "epochs", "ended", "best", "contrast_batch", "seconds", "peak_memory")
    } | {"log": list(stage.log)}
