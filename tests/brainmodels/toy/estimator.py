"""Ridge in both directions as a brain model: a system of one folder and one line of the table."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from brainmodels.training import BrainModel, ModelRecipe


@dataclass(frozen=True)
class ToyRecipe(ModelRecipe):
    """Share of the largest eigenvalue that is added to all of them."""

    name: str = "toy"
    penalty: float = 0.1
    response_scale: str = "train_z"


class ToyRidge(BrainModel):
    """Linear maps between flattened tokens and voxels, one each way."""

    direction, about, networks = "both", "images to responses and back by two linear maps", ("forth_", "back_")
    recipe_type, named = ToyRecipe, staticmethod(lambda name: ToyRecipe(name))

    def _build(self, voxels: Mapping[str, int]) -> None:
        (count,), size = voxels.values(), int(np.prod(self.token_shape_))
        self.forth_, self.back_ = nn.Linear(size, count), nn.Linear(count, size)

    def _train(self, run, data):
        self._build({name: int(scale.kept.sum()) for name, scale in self.scales_.items()})
        batches = list(data.batches("train"))
        X, Y = torch.cat([b.tokens.flatten(1) for b in batches]), torch.cat([b.responses for b in batches])
        for linear, x, y in ((self.forth_, X, Y), (self.back_, Y, X)):
            values, vectors = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0)))
            inverse = vectors / (values + self.recipe.penalty * values[-1]) @ vectors.T
            weight = inverse @ (x - x.mean(0)).T @ (y - y.mean(0))
            linear.weight.data, linear.bias.data = weight.T.contiguous(), y.mean(0) - x.mean(0) @ weight
        return []

    @torch.no_grad()
    def predict(self, features, *, image_ids=None, subject=None):
        tokens = self._tokens(features, image_ids).flatten(1).to(self._place())
        return self.scales_[self._subject(subject)].undo(self.forth_(tokens).cpu().numpy())

    @torch.no_grad()
    def decode(self, responses, *, subject=None):
        values = self._measured(responses, self._subject(subject)).to(self._place())
        return self._features(self.back_(values).unflatten(1, self.token_shape_).cpu().numpy())
