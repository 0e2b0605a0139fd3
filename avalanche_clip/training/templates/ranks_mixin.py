"""The side of the CLIP templates that keeps several processes in step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from avalanche_clip import distributed
from avalanche_clip.training.templates.agreement import (
    agree_on_steps,
    agree_on_training,
)


class RanksMixin:
    """Training and evaluation that stop on all processes, in words.

    Comes before Avalanche's template among the bases, whose methods it wraps.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        distributed.require_joined()
        super().__init__(*args, **kwargs)

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Train, if all processes are about to train the same.

        :raises RankError: when another process is about to train other data, with
            other settings, from other weights or other steps; when it fails, ends
            or does not answer in time.
        """
        if distributed.is_distributed():  # what can be read once is read twice
            experiences, eval_streams = _kept(experiences), _kept(eval_streams)
        template: Any = super()
        with distributed.guarded("train()"):
            agree_on_training(self, experiences, eval_streams, kwargs)
            return template.train(experiences, eval_streams, **kwargs)

    def _agree_on_steps(self) -> None:
        """Stop unless all are about to make the same steps on the same pool."""
        agree_on_steps(self)

    def eval(self, exp_list: Any, **kwargs: Any) -> Any:
        """Evaluate all of the data on each process."""
        distributed.require_joined()
        template: Any = super()
        with distributed.guarded("eval()"):
            return template.eval(exp_list, **kwargs)


def _kept(found: Any) -> Any:
    """The content of a generator, or of a stream that can be read once."""
    once = isinstance(found, Iterable) and not hasattr(found, "__len__")
    return list(found) if once else found
