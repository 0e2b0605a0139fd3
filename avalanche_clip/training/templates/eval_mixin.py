"""Evaluation of any experiences and streams, which leaves a strategy as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from avalanche.benchmarks import CLExperience

from avalanche_clip.training.templates.evaluation_state import EvaluatorState
from avalanche_clip.training.templates.watchers import note_values


def by_stream(given: Any) -> list[list[Any]]:
    """Sort experiences and streams into one group per stream.

    :param given: an experience, a stream, or any nesting of lists of them; what is
        given twice counts once.
    :return: groups in the order in which their streams occur first.
    :raises TypeError: for anything else.
    :raises ValueError: if two experiences of one stream name have the same index, so
        that their metrics would have the same names, or one belongs to no stream.
    """
    groups: dict[str, dict[int, Any]] = {}
    for experience in _flat(given):
        if experience._origin_stream is None:
            raise ValueError(
                "An experience outside any stream was given to an evaluation, which "
                "names metrics by the stream; take it from a stream of a benchmark."
            )
        index = int(experience.logging().current_experience)
        group = groups.setdefault(str(experience.origin_stream.name), {})
        known = group.setdefault(index, experience)
        if known.dataset is not experience.dataset:
            raise ValueError(
                f"Two different experiences {index} of streams named "
                f"{experience.origin_stream.name!r} were given to one evaluation, "
                "where their metrics would have the same names; evaluate them one "
                "after the other, or give the streams different names."
            )
    return [list(group.values()) for group in groups.values()]


def _flat(given: Any) -> Iterator[Any]:
    if isinstance(given, CLExperience):
        yield given
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes, dict)):
        for part in given:
            yield from _flat(part)
    else:
        raise TypeError(
            f"A {type(given).__name__} cannot be evaluated; give experiences or "
            "streams of a benchmark, for example benchmark.test_stream."
        )


class EvalMixin:
    """The evaluation side of the CLIP templates."""

    current_eval_stream: Any
    evaluator: Any
    experience: Any
    training_experience: Any
    """The experience that is trained, or about to be; None outside ``train``."""
    contracts: Any
    _eval_cleanup: Any
    _load_train_state: Any
    _save_train_state: Any

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Put everything back if an evaluation fails or is interrupted."""
        evaluator = EvaluatorState(self.evaluator)
        state, stream = self._save_train_state(), self.current_eval_stream
        try:
            yield
        except BaseException:
            for contract in self.contracts:
                contract.evaluation_failed(self)
            self._eval_cleanup()
            self._load_train_state(state)
            self.current_eval_stream = stream
            evaluator.restore()
            raise

    @contextmanager
    def _noted(self, group: Sequence[Any]) -> Iterator[None]:
        """Tell plugins that watch this step's evaluations what was measured."""
        before = self.evaluator.last_metric_results
        self.evaluator.last_metric_results = {}
        yield
        measured = self.evaluator.last_metric_results
        self.evaluator.last_metric_results = {**before, **measured}
        step = self.training_experience
        if step is not None:
            note_values(self, step, group, measured)
