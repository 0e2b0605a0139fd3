"""Evaluations of any experiences and streams, which leave a strategy as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from avalanche.benchmarks import CLExperience

from avalanche_clip.common.rollback import undone_on_error


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


@contextmanager
def undone_on_failure(strategy: Any) -> Iterator[None]:
    """Put a strategy back if an evaluation fails or is interrupted."""
    restore = _evaluator_state(strategy.evaluator)
    state, stream = strategy._save_train_state(), strategy.current_eval_stream
    with undone_on_error(strategy.evaluator.metrics):
        try:
            yield
        except BaseException:
            for contract in strategy.contracts:
                contract.evaluation_failed(strategy)
            strategy._eval_cleanup()
            strategy._load_train_state(state)
            strategy.current_eval_stream = stream
            restore()
            raise


@contextmanager
def noted(strategy: Any, group: Sequence[Any]) -> Iterator[None]:
    """Tell plugins that watch the evaluations of a step what was measured.

    :param group: experiences of one stream that are evaluated.
    """
    evaluator, step = strategy.evaluator, strategy.training_experience
    before = evaluator.last_metric_results
    evaluator.last_metric_results = {}
    yield
    measured = evaluator.last_metric_results
    evaluator.last_metric_results = {**before, **measured}
    if step is not None:
        for contract in strategy.contracts:
            contract.note_values(strategy, step, group, measured)


def _evaluator_state(evaluator: Any) -> Callable[[], None]:
    """How to bring values and loggers back; curves are remembered by their length."""
    last, curves = dict(evaluator.last_metric_results), evaluator.all_metric_results
    lengths = {name: len(steps) for name, (steps, _) in curves.items()}
    loggers = [_logger_state(log) for log in evaluator.loggers]

    def undo() -> None:
        evaluator.last_metric_results, evaluator._metric_values = last, []
        for name in curves.keys() - lengths.keys():
            del curves[name]
        for name, length in lengths.items():
            for column in curves[name]:
                del column[length:]
        for restore in loggers:
            # The cause of the failure counts, not what closing a file says.
            with suppress(Exception):
                restore()

    return undo


def _logger_state(log: Any) -> Callable[[], None]:
    """How to bring a logger back to where it is now."""
    texts = copy.copy(getattr(log, "metric_vals", None))
    known = callable(getattr(log, "state_dict", None))
    state = log.state_dict() if known else None

    def undo() -> None:
        if texts is not None:
            log.metric_vals = texts
        end = getattr(log, "_end_progress", None)
        if callable(end):
            end()
        if state is not None and callable(getattr(log, "load_state_dict", None)):
            log.load_state_dict(state)

    return undo
