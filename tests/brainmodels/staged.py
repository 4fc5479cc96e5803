"""Tasks whose optimum is known and trials for them, which the tests of the training loop share."""

import os
import signal

import numpy as np
import torch
from torch import nn

from brainmodels.training import train_stage
from brainmodels.training.loop import Batch
from brainmodels.training.recipe import TrainingStage

VOXELS, TOKENS, WIDTH = 3, 2, 4


class Trials:
    """Responses that are a linear function of tokens plus noise; remembers what was read of it.

    It fails or sends its own process a signal when so many batches were read of it.
    """

    signal = signal.SIGTERM

    def __init__(self, train, val=None, noise=0.1, seed=0):
        rng = np.random.default_rng(seed)
        self.map = rng.normal(size=(TOKENS * WIDTH, VOXELS))
        self.parts, self.seen = {"train": {}, "val": {}}, []
        for part, sizes in (("train", train), ("val", val or {})):
            for subject, count in sizes.items():
                tokens = rng.normal(size=(count, TOKENS, WIDTH))
                responses = tokens.reshape(count, TOKENS * WIDTH) @ self.map + noise * rng.normal(size=(count, VOXELS))
                self.parts[part][subject] = responses.astype("f4"), tokens.astype("f4")
        self.fails_after = self.signal_at = None

    def sizes(self, part):
        return {subject: len(arrays[0]) for subject, arrays in self.parts[part].items()}

    def batch(self, part, subject, rows):
        if part == "train":
            self.seen.append((subject, rows.copy()))
            if self.fails_after is not None and len(self.seen) > self.fails_after:
                raise OSError("the disk is gone")
            if len(self.seen) == self.signal_at:
                os.kill(os.getpid(), self.signal)
        responses, tokens = self.parts[part][subject]
        return Batch(subject, rows, torch.from_numpy(responses[rows]), torch.from_numpy(tokens[rows]))

    def describe(self, part, subject, rows):
        return f"{part} of {subject} at {rows.tolist()}"


class Linear(nn.Module):
    """A map that subjects share, and a bias of each; in training a draw from the generator disturbs the tokens."""

    def __init__(self, subjects, disturb=0.0, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(TOKENS * WIDTH, VOXELS, bias=False).to(dtype)
        self.bias = nn.ParameterDict({s: nn.Parameter(torch.zeros(VOXELS, dtype=dtype)) for s in subjects})
        self.disturb, self.dtype, self.modes = disturb, dtype, []

    def forward(self, batch, generator):
        self.modes.append(self.training)
        x = batch.tokens.flatten(1).to(self.dtype)
        if self.training and self.disturb:
            x = x + self.disturb * torch.randn(x.shape, dtype=x.dtype, generator=generator)
        mse = (self.map(x) + self.bias[batch.subject] - batch.responses).square().sum(1).mean()
        return {"loss": mse, "mse": mse}


def weights(task):
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


TWO = {"a": 37, "b": 21}
STAGE = TrainingStage(epochs=4, lr=0.02, batch_size=8, seed=3)


def trained(stage, source=None, task=None, **options):
    source = source or Trials(TWO)
    task = task or Linear(TWO, disturb=0.1)
    return train_stage("stage", task, source, stage, **options), weights(task)


class Draws(nn.Module):
    """Writes down what its generator gives, in training and in validation."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(()))
        self.drawn = {True: [], False: []}

    def forward(self, batch, generator):
        self.drawn[self.training].append(torch.rand((), generator=generator).item())
        return {"loss": self.x.square()}
