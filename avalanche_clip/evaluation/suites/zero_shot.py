"""Zero-shot classification and retrieval on any set of tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from avalanche_clip.benchmarks.items.marks import digest_of
from avalanche_clip.common.checks import require_distinct, require_known, require_some
from avalanche_clip.common.progress import progress
from avalanche_clip.evaluation.suites.scoring import score
from avalanche_clip.evaluation.suites.suite import Autocast, Encoded, Suite, Values
from avalanche_clip.evaluation.suites.tasks import ZeroShotTask, embedded_tasks


@cache
def datacomp_tasks() -> dict[str, Any]:
    """Tasks of DataComp and averages over them, as plain data.

    ``tasks``: name -> ``folder`` of the released tar shards, ``size``, ``classes`` and
    main ``metric``; ``aggregates``: name -> tasks. Which 28 TiC-CLIP took is not
    certain: its list is a reconstruction.

    Source: DataComp (arXiv 2304.14108), its list of tasks; TiC-CLIP (arXiv
    2310.16226).
    """
    path = resources.files(__package__) / "data" / "datacomp.json"
    return json.loads(path.read_text(encoding="utf-8"))


class ZeroShotSuite(Suite):
    """Zero-shot tasks of a model: classification, retrieval, associations.

    Each picture is encoded once per state of the image tower and each different
    prompt and caption once per state of the text tower; a second evaluation of an
    unchanged model only compares its weights.

    Metrics of classification are ``acc1``, ``acc5`` (NaN below 5 classes),
    ``mean_per_class_recall``, and ``macro_f1`` or ``worst_group_acc1`` and
    ``worst_group_acc5`` where the task asks for them; a tie with another class is an
    error. Those of multi-label data are ``mean_average_precision``, of associations
    ``jaccard``, of retrieval those of :func:`retrieval_metrics` (of which ``rsum`` and
    the ranks are no fractions). See :func:`score` for the intervals.

    Averages over tasks of DataComp follow as tasks of their own with the metric
    ``mean``, over the tasks' main metrics. Where some of them are missing, the name
    says over how many it is taken: ``"average over 28 (3 of 28)"``.

    :param tasks: :class:`ZeroShotTask`, and names: those of :func:`datacomp_tasks` and
        of :func:`embedded_tasks`; ``"datacomp"`` for all 38, ``"tic-clip"`` for 28.
        A task in place of a named one has its name.
    :param data: folder with the released folders of named tasks, one each. Those that
        are not there are in :attr:`missing`.
    :param name: see :class:`Suite`.
    :param batch_size: see :class:`Suite`.
    :param num_workers: see :class:`Suite`.
    :raises ValueError: for an unknown name, two tasks of one name, or ``data`` that no
        task is read from.

    >>> from avalanche_clip.models import create_dual_encoder
    >>> suite = ZeroShotSuite(["held-out-icons"])
    >>> model = create_dual_encoder("tiny-emoji", "icons")
    >>> found = suite.evaluate(model)["held-out-icons"]
    >>> found["count"], found["acc1_low"] < found["acc1"] < found["acc1_high"]
    (968, True)
    """

    def __init__(
        self,
        tasks: str | ZeroShotTask | Iterable[str | ZeroShotTask],
        *,
        data: str | Path | None = None,
        name: str = "zero-shot",
        batch_size: int = 128,
        num_workers: int = 0,
    ):
        super().__init__(name, batch_size=batch_size, num_workers=num_workers)
        given = [tasks] if isinstance(tasks, str | ZeroShotTask) else list(tasks)
        require_some(given, "tasks")
        own = [task.name for task in given if isinstance(task, ZeroShotTask)]
        require_distinct(own, "names of tasks")
        self.tasks: list[ZeroShotTask] = []
        for entry in given:
            if isinstance(entry, ZeroShotTask):
                self.tasks.append(entry)
                continue
            for one in _expanded(entry):
                if one not in {*own, *self.missing, *(t.name for t in self.tasks)}:
                    self._add(one, data)
        names = {one for t in given if isinstance(t, str) for one in _expanded(t)}
        if data is not None and names <= {*own, *embedded_tasks()}:
            raise ValueError(
                f"data={str(data)!r} has no effect, since no task is read from there; "
                "leave it out, or name tasks of datacomp_tasks()."
            )
        self._pools = _pools(self.tasks)

    def _add(self, name: str, data: str | Path | None) -> None:
        """Make a named task, or note what it lacks."""
        make = embedded_tasks().get(name)
        if make is not None:
            self.tasks.append(make())
            return
        facts = datacomp_tasks()["tasks"][name]
        if not facts["folder"] or data is None:
            wanted = facts["folder"] or "a task made by ZeroShotTask.association"
            self.missing[name] = f"{wanted}; where folders lie is the argument data"
            return
        keys = ("metric", "group_field", "ignored_groups")
        options = {key: facts[key] for key in keys if key in facts}
        try:
            folder = Path(data) / facts["folder"]
            self.tasks.append(ZeroShotTask.web(folder, name, **options))
        except FileNotFoundError as error:
            self.missing[name] = str(error)

    def identity(self) -> dict[str, Any]:
        """Tasks with their settings and hashes, and which are missing."""
        return {
            "tasks": {task.name: task.identity() for task in self.tasks},
            "missing": sorted(self.missing),
        }

    def evaluate(
        self,
        model: Any,
        *,
        device: str | torch.device = "cpu",
        autocast: Autocast = nullcontext,
    ) -> Values:
        """Score a model on all tasks, see :meth:`Suite.evaluate`."""
        self.check(model)
        values: Values = {}
        with self.features.of(model, device=device, autocast=autocast) as encoded:
            for task in progress(self.tasks, self.name, unit="task"):
                values[task.name] = self._score(task, encoded)
        return values | self.averages(values)

    def _score(self, task: ZeroShotTask, encoded: Encoded) -> dict[str, float]:
        def compute() -> dict[str, float]:
            key, pictures, rows = self._pools[id(task.pool)]
            features, encode, parts = encoded.matched(key, pictures)
            if not np.array_equal(rows, task.rows):
                places = np.searchsorted(rows, task.rows)
                features = features[torch.from_numpy(places)]
            return score(task, features, encode, parts)

        return encoded.result(task.name, compute)

    def averages(self, values: Values) -> Values:
        """Averages over the tasks that there are."""
        found: Values = {}
        for name, tasks in datacomp_tasks()["aggregates"].items():
            main = [next(iter(values[t].values())) for t in tasks if t in values]
            if main and set(tasks) <= {*values, *self.missing}:
                whole = len(main) == len(tasks)
                partly = "" if whole else f" ({len(main)} of {len(tasks)})"
                mean = float(np.mean(main))
                found[name + partly] = {"mean": mean, "count": len(main)}
        return found


def _expanded(name: str) -> list[str]:
    """Names of single tasks that a name stands for."""
    facts = datacomp_tasks()
    many = {
        "datacomp": list(facts["tasks"]),
        "tic-clip": facts["aggregates"]["average over 28"],
    }
    known = [*many, *embedded_tasks(), *facts["tasks"]]
    require_known([name], known, "tasks")
    return many.get(name, [name])


def _pools(tasks: Sequence[ZeroShotTask]) -> dict[int, tuple[str, Any, Any]]:
    """Object that pictures come from -> its key, those that are used, their rows."""
    found = {}
    for task in tasks:
        if id(task.pool) not in found:
            shared = [t.rows for t in tasks if t.pool is task.pool]
            rows = np.unique(np.concatenate(shared))
            key = f"{task.name}:{digest_of([rows.tobytes()]).hex()[:16]}"
            found[id(task.pool)] = key, Subset(task.pool, rows.tolist()), rows
    return found
