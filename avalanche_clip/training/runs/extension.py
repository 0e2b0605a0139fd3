"""Runs that go on over a stream that has grown since."""

from __future__ import annotations

import logging
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.items.content import content_hash, data_hash
from avalanche_clip.benchmarks.items.facts import with_facts
from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.common.rollback import undone
from avalanche_clip.common.state_files import CheckpointError, read_state
from avalanche_clip.evaluation.metrics.summary import ContinualSummary
from avalanche_clip.training.runs.identity import require_same
from avalanche_clip.training.runs.points import EvaluationPoints, evaluation_points
from avalanche_clip.training.runs.resume import restore_state
from avalanche_clip.training.templates.label_spaces import declared_ids, experience_ids

logger = logging.getLogger(__name__)

EXTEND = "extend"
_NEW = "start another run in another folder (start_from takes over a stored model)"


def step_count(identity: dict[str, Any]) -> int:
    """Training steps of a stored run; 0 if it does not tell.

    :param identity: of the run.
    """
    return len(identity.get("experiences", {}).get("train", ()))


def advice(stored: dict[str, Any], run: Any) -> str:
    """What a run over further steps that was not asked for may want.

    :param stored: identity of the stored run.
    :param run: that is to go on.
    """
    steps, have = step_count(stored), len(run.benchmark.train_stream)
    if not 0 < steps < have:
        return ""
    return f" To train {have - steps} further steps pass resume='extend'."


def require_extension(stored: dict[str, Any], run: Any, where: Path) -> None:
    """Raise unless a run is a stored one, or that one over further steps.

    Only the number of steps may differ, and what belongs to the further ones: their
    data, their labels, and class names that occur in them alone.

    :param stored: identity of the stored run.
    :param run: that is to go on.
    :param where: file or folder of the stored run, for messages.
    :raises CheckpointError: naming what differs, or depends on the number of steps.
    """
    steps, have = step_count(stored), len(run.benchmark.train_stream)
    if have < steps:
        raise CheckpointError(
            f"{where} holds a run over {steps} steps, but the training stream has "
            f"{have}: a run does not get shorter. Give the benchmark of that run with "
            f"further steps behind its own, or {_NEW}."
        )
    if steps in (0, have):
        if run.joint and steps and stored["experiences"] != run.identity["experiences"]:
            raise CheckpointError(
                f"{where} holds a training on the union of all steps; over a longer "
                "stream it is another training, which begins anew: give it another "
                "folder."
            )
        require_same(stored, run.identity, where)
        return
    try:
        for contract in run.strategy.contracts:
            contract.check_extension(run.strategy, steps)
        known, then = _shortened(run, stored)
        require_same(stored, known, where)
        _check_label_spaces(run, then, stored)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(
            f"{where} holds a run over {steps} steps, which cannot go on over {have}: "
            f"{error}"
        ) from error


def _shortened(
    run: Any, stored: dict[str, Any]
) -> tuple[dict[str, Any], ClassPrompts | None]:
    """Identity of a run over the steps of the stored one, and the prompts of these."""
    lengths = {name: len(own) for name, own in stored["experiences"].items()}
    hashes = {
        name: dict(islice(own.items(), lengths.get(name)))
        for name, own in run.identity["experiences"].items()
    }
    for name in [n for n in hashes if n != "train" and n in lengths]:
        if hashes[name] != stored["experiences"][name]:
            hashes[name] |= _renumbered(run, name, stored["experiences"])
    prompts = getattr(run.benchmark, "class_prompts", None)
    if prompts is not None and data_hash(hashes, prompts) != stored["data"]:
        met = {i for _, e in _first(run, lengths) for i in experience_ids(e)}
        prompts = prompts.for_ids(number for number in prompts if number in met)
    known = {**run.identity, "experiences": hashes}
    known["data"] = data_hash(hashes, prompts)
    last = lengths["train"] - 1
    chosen = [
        [step for step in points.steps if step < last]
        for points in (points_then(run, stored), run.points)
    ]
    if chosen[0] == chosen[1]:
        known["evaluate_at"] = stored["evaluate_at"]
    return known, prompts


def _renumbered(run: Any, name: str, known: dict[str, Any]) -> dict[str, str]:
    """Hashes of test sets under the sample ids that they had in a shorter stream.

    Generators number the samples of one stream after the other: those of later streams
    have moved on by the samples that have come to earlier ones.
    """
    moved = 0
    for other, counts in run.data["counts"].items():
        if other == name:
            break
        moved += sum(counts[len(known.get(other, ())) :])
    found = {}
    for _, experience in _first(run, {name: len(known[name])}):
        ids = attribute_array(experience.dataset, "sample_id") - moved
        renamed = with_facts(experience.dataset, {"sample_id": ids})
        found[str(_place(experience))] = content_hash(renamed)
    return found if found == known[name] else {}


def _first(run: Any, lengths: dict[str, int]) -> Any:
    """Names of streams and the experiences that the stored run had of them."""
    for name, count in lengths.items():
        for experience in islice(run.benchmark.streams.get(name, ()), count):
            yield name, experience


def points_then(run: Any, stored: dict[str, Any]) -> EvaluationPoints:
    """Evaluation points of a stored run over the first steps of a stream.

    :param run: over the longer stream.
    :param stored: identity of the stored run.
    """
    steps = step_count(stored)
    ends = [step for step in run.points.task_ends if step < steps]
    sizes = run.data["counts"]["train"][:steps]
    return evaluation_points(stored["evaluate_at"], sizes, ends)


def _check_label_spaces(
    run: Any, then: ClassPrompts | None, stored: dict[str, Any]
) -> None:
    """Raise if further classes change what earlier steps were told apart from."""
    strategy = run.strategy
    prompts: Any = getattr(run.benchmark, "class_prompts", None)
    space = getattr(strategy, "eval_label_space", None)
    same = then is None or then == prompts
    if same or space is None or strategy.given_prompts is not None:
        return
    assert then is not None
    if "all" in (strategy.label_space, space):
        raise ValueError(
            "the label space 'all' has the classes of all steps, and the further steps "
            "bring others, so that earlier results would be others, too. Use 'seen' or "
            f"'own', or {_NEW}."
        )
    grown = {d for d in then.domain_names if then.ids_of(d) != prompts.ids_of(d)}
    grown -= {""} if space == "seen" else set()
    lengths = {name: len(stored["experiences"][name]) for name in run.named}
    for name, experience in _first(run, lengths) if grown else ():
        undeclared = declared_ids(experience) is None
        if undeclared and grown & {then.domain(i) for i in experience_ids(experience)}:
            raise ValueError(
                f"the further steps bring classes of the domain {min(grown)!r}, all of "
                f"which test sets of stream {name!r} are told apart from, so that "
                "earlier results would be others, too. Give the experiences class_ids, "
                f"or {_NEW}."
            )


def add_columns(run: Any, stored: dict[str, Any]) -> Counter[str]:
    """Evaluate models that a run has kept on the test sets that have come since.

    What cannot be filled is NaN. The strategy stays as it is.

    :param run: whose rows have a value per test set of the stored run.
    :param stored: identity of the stored run.
    :return: iterations, images and texts of these evaluations.
    """
    kept = run.folder.kept_points()
    spent: Counter[str] = Counter()
    for row in range(run.done):
        begin, step = time.perf_counter(), run.points.steps[row - 1] if row else -1
        found: dict[str, Any] = {}
        if step + 1 in kept:
            path = run.folder.checkpoints.folder / kept[step + 1]
            found, cost, seen = _later_results(run, path, row, stored["experiences"])
            spent.update(cost)
            run.observed.restore(seen)
        else:
            logger.warning(
                "The model %s is not kept (keep_steps): its results on the further "
                "test sets are missing.",
                f"after step {step}" if row else "before the stream",
            )
        for name, metrics in run.rows.items():
            count = len(stored["experiences"][name])
            missing = [float("nan")] * len(run.benchmark.streams[name])
            for metric, rows in metrics.items():
                if row < len(rows):
                    values = found.get(name, {}).get(metric, missing)
                    rows[row] = [*rows[row][:count], *values[count:]]
        run.seconds["eval"][row] += time.perf_counter() - begin
    return spent


def count_columns(run: Any, spent: Counter[str]) -> None:
    """Let clock, cost and metrics of the whole run know what :func:`add_columns` added.

    :param run: whose strategy has been put where it was.
    :param spent: on these evaluations.
    """
    clock, compute = run.strategy.clock, run.strategy.compute
    clock.total_iterations += spent["iterations"]
    compute.spend_evaluation(images=spent["images"], texts=spent["texts"])
    earlier = clock.train_exp_counter - run.next  # trained before the run
    trained = [earlier, *(earlier + step + 1 for step in run.points.steps)]
    for metric in run.strategy.evaluator.metrics:
        if isinstance(metric, ContinualSummary):
            metric.grow(run.rows, trained)


def _later_results(
    run: Any, path: Path, row: int, known: dict[str, Any]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, int], dict[str, Any]]:
    """Stream -> metric -> results of a stored model on test sets that have come.

    And what that took, and what was noted for the report.
    """
    found = {}
    with undone(run.strategy):
        # What they have written belongs to the newest checkpoint.
        watchers = [*filter(None, [run.told.watcher]), run.observed]
        run.strategy.evaluator.loggers = watchers
        restore_state(run.strategy, read_state(path), run.benchmark, path)
        before = _spent(run.strategy)
        for stream in (*run.streams, *(() if row else run.final)):
            late = range(len(known[stream]), len(run.benchmark.streams[stream]))
            due = [e for e in run.due(stream, row) if _place(e) in late]
            if due:
                found[stream] = run.measure(stream, row, due)
        cost = {k: n - before[k] for k, n in _spent(run.strategy).items()}
        return found, cost, run.observed.stored()


def _spent(strategy: Any) -> dict[str, int]:
    total: int = strategy.clock.total_iterations
    return {"iterations": total, **strategy.compute.evaluation}


def _place(experience: Any) -> int:
    return int(experience.logging().current_experience)
