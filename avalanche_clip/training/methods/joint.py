"""One training on all experiences at once: the upper bound of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.prepare import is_training_stream
from avalanche_clip.benchmarks.streams.merged import (
    listed,
    merge_experiences,
    one_stream,
)
from avalanche_clip.training.methods.mtil_training import ClassNameFineTuning
from avalanche_clip.training.methods.tic import Sequential


class JointTraining:
    """Trains on the union of the experiences it is given, once.

    Put it before a strategy: ``class JointCLL(JointTraining, CLLCLIP): pass``.

    :param lr: one learning rate, see :class:`CLIPTemplate`.
    :param kwargs: of the strategy.
    :raises ValueError: for several learning rates, since there is one training.
    """

    visits: Any
    learning_rates: tuple[float, ...]

    def __init__(self, *, lr: float | Sequence[float] | None = None, **kwargs: Any):
        trained: Any = super()
        trained.__init__(lr=lr, **kwargs)
        rates: Sequence[float] = self.learning_rates
        if len(rates) > 1:
            raise ValueError(
                f"lr={list(rates)} has a rate per experience, but "
                f"{type(self).__name__} trains once; give it one rate."
            )

    def train(
        self, experiences: Any, eval_streams: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Train once on all samples of some experiences.

        One budget, one schedule, one visit: hooks fire as for one experience, which
        is :func:`merge_experiences` of those given. They count in the order of their
        stream, whatever the order of the list. One experience is trained as it is.

        :param experiences: a training stream, a list of its experiences, or one.
        :param eval_streams: see :meth:`CLIPTemplate.train`; default the union. A
            plugin that watches one needs its union too
            (``merge_experiences(benchmark.streams["valid"])``).
        :param kwargs: for the loaders and callbacks.
        :return: the newest value of each metric.
        :raises RuntimeError: if it has been trained before.
        :raises ValueError: if there is no experience, they are not of one training
            stream, or they cannot be merged.
        :raises TypeError: for anything else than experiences.
        """
        with distributed.together("the experiences of a joint training"):
            chosen = self._union(experiences)
        trained: Any = super()
        found: dict[str, Any] = trained.train(chosen, eval_streams, **kwargs)
        return found

    def _union(self, experiences: Any) -> Any:
        """One experience that holds what is to be trained."""
        name = type(self).__name__
        if self.visits.finished:
            raise RuntimeError(
                f"{name} has been trained, and trains once: give train() the whole "
                "stream (strategy.train(benchmark.train_stream)), not one experience "
                "after the other; make a new strategy for another training."
            )
        parts = listed(experiences)
        _, stream = one_stream(parts)
        if not is_training_stream(stream):
            raise ValueError(
                f"{name} was given experiences of stream {stream!r}, which is there to "
                "be evaluated; give it those of benchmark.train_stream."
            )
        return parts[0] if len(parts) == 1 else merge_experiences(parts)

    def as_trained(self, benchmark: Any) -> Any:
        """The benchmark with its training stream merged into one step."""
        if len(benchmark.train_stream) < 2:
            return benchmark
        return merge_experiences(benchmark.train_stream).benchmark


class Joint(JointTraining, Sequential):
    """One training on the union of all time steps, domains or languages.

    Not a continual method but the bound that these are measured against, also called
    offline training. ``strategy.train(benchmark.train_stream)`` draws each sample
    equally often from all experiences, within one budget; :func:`run_stream` trains
    once and evaluates on every test set, so that ``E`` has one row. On one
    experience it is :class:`Sequential`, bit for bit.

    For images with class names there is :class:`ClassNameJoint`. Any other strategy
    is trained jointly on ``merge_experiences(benchmark.train_stream)``, or by
    :func:`run_stream` on the benchmark of that experience.

    :param kwargs: see :class:`Sequential`.
    """


class ClassNameJoint(JointTraining, ClassNameFineTuning):
    """The same on images with class names, all classes of the union told apart.

    On one experience it is :class:`ClassNameFineTuning`, bit for bit. The label space
    of the training is the union of the classes (``label_space="current"``); that of
    the evaluation is by default that of the evaluated experience.

    :param lr: one learning rate; see :class:`MTILTraining`.
    :param kwargs: see :class:`ClassNameFineTuning`.
    :raises ValueError: for several learning rates, since there is one training.
    """
