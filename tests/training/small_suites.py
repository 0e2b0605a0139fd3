"""A suite for runs of stub models, which is no good guest."""

import math
import os
import random
import signal

import numpy as np
import torch

from avalanche_clip.evaluation.suites.suite import Suite
from tests.training.small_runs import Interrupted


class Weights(Suite):
    """A figure of the weights, and whether it rose since the last evaluation.

    It is no good guest: it draws random numbers and leaves modes and features.
    """

    def __init__(self, name="weights", stop=None, kill=False, factor=1.0):
        super().__init__(name)
        self.stop, self.kill, self.factor = stop, kill, factor
        self.calls, self.last = 0, None
        self.missing = {"far": "no file /data/far.tar"}

    def check(self, model):
        if self.factor < 0:
            raise ValueError(f"factor={self.factor} is below 0.")

    def identity(self):
        return {"factor": self.factor, "shape": (2, 3)}

    def evaluate(self, model, *, device="cpu", autocast=None):
        self.calls += 1
        if self.calls == self.stop:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Interrupted
        torch.rand(3), np.random.rand(), random.random()
        model.train()
        model.features = "mine"
        value = self.factor * float(model.image_proj.weight.detach().sum())
        rose = math.nan if self.last is None else float(value > self.last)
        self.last = value
        return {"sum": {"value": np.float32(value), "rose": rose}, "two": {"acc1": 0.5}}

    def state_dict(self):
        return {} if self.last is None else {"last": self.last}

    def load_state_dict(self, state):
        self.last = state.get("last")
