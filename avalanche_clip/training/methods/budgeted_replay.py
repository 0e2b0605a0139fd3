"""Replay under a compute budget: Cumulative-All, -Exp and -Equal, or by class.

Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226). Old and new data
are pooled and drawn uniformly; the number of iterations does not grow with the
pool. Rounding, caps and the hash-based choice inside a step are ours. Memories by
class: in total as Rebuffi et al., iCaRL, CVPR 2017 (arXiv 1611.07725), of a fixed
number per class as Hou et al., CVPR 2019; the choice inside a class is ours.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avalanche_clip.benchmarks.items.items import (
    attribute_array,
    concatenate,
    item_fields,
)
from avalanche_clip.benchmarks.streams.quotas import (
    keep_smallest,
    replay_quotas,
    sample_priorities,
)
from avalanche_clip.common.checks import as_size, require_choice, require_one_of
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.visits import Step, find_step, read_step

KINDS = ("all", "exp", "equal", "class")

Positions = npt.NDArray[np.int64]


@dataclass(eq=False)
class BudgetedReplayPlugin(MethodPlugin, supports_distributed=True):
    """Train on the new data pooled with samples of earlier time steps.

    Kept in memory: references to the data sets seen and one count per step;
    which samples a count stands for follows from a hash of
    ``(seed, step, sample_id)``, with the step's place in its stream. Choices are
    nested: what is dropped once is never used again, until its step comes again.
    Time per step: none beyond the larger pool's loader.

    Steps may come in any order. Quotas count the distinct ones in the order of
    their last visit; a step that comes again is the new data, all of it, and no
    part of the memory.

    With ``"class"`` the memory is chosen when a step ends, by the same hash, and is
    kept as positions; a class may occur in several steps.

    :param kind: ``"all"`` keeps everything; ``"exp"`` halves what is kept at
        each step and gives half the buffer to the newest step; ``"equal"``
        shares the buffer equally, see :func:`replay_quotas`; ``"class"`` shares it
        equally over the classes trained so far, or keeps ``per_class`` of each.
    :param buffer_size: ``D``, samples of earlier steps in the pool, or
        ``"current"`` for the size of the running step (not by class); not used by
        ``"all"``, nor beside ``per_class``.
    :param redistribute: give quota that a small step or class cannot fill to the most
        recent steps, or the other classes, that have room (default: leave it unused).
    :param per_class: samples of each class in the memory, which grows with their
        number (``kind="class"``).
    :raises ValueError: for an unknown kind, a missing or negative size, or one that
        the kind does not use; in training, by class, for data without targets.
    """

    only_one = True
    keeps_per_weight_state = False
    replays_data = True

    kind: str = "all"
    buffer_size: int | str | None = None
    _: KW_ONLY
    redistribute: bool = False
    per_class: int | None = None

    def __post_init__(self) -> None:
        super().__init__()
        require_choice("kind", self.kind, KINDS)
        if self.kind == "class":
            self._check_class_sizes()
        elif self.per_class is not None:
            raise ValueError(
                f"per_class={self.per_class!r} is of kind='class', not of "
                f"kind={self.kind!r}; leave it out."
            )
        elif self.kind != "all":
            if self.buffer_size != "current":
                hint = f"or 'current'; kind={self.kind!r} needs it"
                size = as_size(self.buffer_size, "buffer_size", least=0, hint=hint)
                self.buffer_size = size
        elif self.buffer_size is not None:
            raise ValueError("kind='all' keeps everything; leave buffer_size out.")
        self.stored: list[int] = []
        """Samples still kept of each finished step, that of the oldest visit first."""
        self.steps: list[Step] = []
        """The steps of ``stored``."""
        self._datasets: dict[Step, Any] = {}
        self._running: Step | None = None
        self._used: list[int] = []
        self._kept: dict[Step, Positions] = {}
        """By class: positions of the memory in the data of each step."""

    def _check_class_sizes(self) -> None:
        sizes: dict[str, Any] = {"buffer_size": self.buffer_size}
        sizes["per_class"] = self.per_class
        given = require_one_of(**sizes)
        setattr(self, given, as_size(sizes[given], given, least=0))
        if self.redistribute and given == "per_class":
            raise ValueError(
                "redistribute has no effect on per_class, where no class has the quota "
                "of another; leave it out, or give buffer_size."
            )

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Pool the new data with the kept samples of earlier steps."""
        new = strategy.adapted_dataset
        if self.kind == "class" and "targets" not in item_fields(new):
            raise ValueError(
                "BudgetedReplayPlugin(kind='class') needs the class of each sample; "
                "give targets to make_image_text_dataset, or use kind='equal'."
            )
        self._running = strategy.visits.current
        self._used = self.counts(len(new))
        parts = [new]
        for (place, step), count in zip(self._others(), self._used, strict=True):
            if count:
                old = self._datasets[step]
                positions = self.kept_positions(place, count, strategy.seed)
                kept = old.subset(positions)
                parts.append(kept.train())
        strategy.adapted_dataset = concatenate(parts)

    def _others(self) -> list[tuple[int, Step]]:
        """Places and steps of the memory without the running step."""
        return [(i, s) for i, s in enumerate(self.steps) if s != self._running]

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Add the step just trained; shrink the others to what was used."""
        dataset, step = strategy.experience.dataset, strategy.visits.current
        self.stored = list(self._used) + [len(dataset)]
        self.steps = [s for _, s in self._others()] + [step]
        self._datasets[step] = dataset
        if self.kind == "class":
            self._choose(step, strategy.seed)
        self._running, self._used = None, []

    def _choose(self, new: Step, seed: int) -> None:
        """Choose the memory from what was kept and a step that has just ended."""
        self._kept[new] = np.arange(len(self._datasets[new]))
        columns = []
        for number, step in enumerate(self.steps):
            rows, data = self._kept[step], self._datasets[step]
            ids, targets = (
                attribute_array(data, name)[rows] for name in ("sample_id", "targets")
            )
            priorities = sample_priorities(ids, seed, step.place)
            columns.append((targets, priorities, np.full(len(rows), number), rows))
        targets, priorities, numbers, rows = map(np.concatenate, zip(*columns))
        order = np.lexsort((rows, numbers, priorities, targets))
        _, first, sizes = np.unique(
            targets[order], return_index=True, return_counts=True
        )
        rank = np.arange(len(order)) - np.repeat(first, sizes)
        chosen = order[rank < np.repeat(self._quotas(sizes), sizes)]
        self._kept = {
            step: np.sort(rows[chosen[numbers[chosen] == number]])
            for number, step in enumerate(self.steps)
        }
        self.stored = [len(self._kept[step]) for step in self.steps]

    def _quotas(self, sizes: Positions) -> Positions:
        """Samples of the memory of each class, of which there are ``sizes``."""
        if self.per_class is not None:
            return np.minimum(sizes, self.per_class)
        total = int(self.buffer_size)  # type: ignore[arg-type]
        share, rest = divmod(total, len(sizes))
        quotas = np.minimum(sizes, share + (np.arange(len(sizes)) < rest))
        while self.redistribute and (left := total - int(quotas.sum())) > 0:
            room = np.flatnonzero(quotas < sizes)
            if not len(room):
                break
            share, rest = divmod(left, len(room))
            more = share + (np.arange(len(room)) < rest)
            quotas[room] = np.minimum(sizes[room], quotas[room] + more)
        return quotas

    def counts(self, new_size: int) -> list[int]:
        """Samples of each other step in the next pool, that of the oldest first.

        :param new_size: size of the running step, which counts as new data even
            if it was trained before.
        """
        stored = [self.stored[place] for place, _ in self._others()]
        if self.kind in ("all", "class") or not stored:
            return stored
        total = new_size if self.buffer_size == "current" else int(self.buffer_size)  # type: ignore[arg-type]
        quotas = replay_quotas(total, len(stored) + 1, self.kind)
        counts = [min(q, s) for q, s in zip(quotas, stored, strict=True)]
        if self.redistribute:
            left = total - sum(counts)
            for place in reversed(range(len(counts))):
                extra = min(left, stored[place] - counts[place])
                counts[place] += extra
                left -= extra
        return counts

    def kept_positions(self, place: int, count: int, seed: int) -> list[int]:
        """Positions of the kept samples in the data set of ``steps[place]``.

        :param place: of the step in :attr:`steps`.
        :param count: of the samples.
        :param seed: of the run.
        """
        step = self.steps[place]
        if self.kind == "class":
            return self._kept[step].tolist()
        ids = attribute_array(self._datasets[step], "sample_id")
        priorities = sample_priorities(ids, seed, step.place)
        return keep_smallest(priorities, count).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return steps and counts; the data come from the benchmark."""
        return {
            "stored": list(self.stored),
            "steps": [list(step) for step in self.steps],
            "used": list(self._used),
            "kept": [torch.from_numpy(self._kept[s]) for s in self.steps if self._kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.stored = [int(n) for n in state["stored"]]
        self.steps = [read_step(step) for step in state["steps"]]
        self._used = [int(n) for n in state["used"]]
        kept = [rows.cpu().numpy() for rows in state["kept"]]
        self._kept = dict(zip(self.steps, kept, strict=False))

    def restore_data(self, benchmark: Any) -> None:
        """Find the data of finished steps in the benchmark of a resumed run."""
        found = {step: find_step(benchmark, step) for step in self.steps}
        self._datasets = {step: e.dataset for step, e in found.items()}
