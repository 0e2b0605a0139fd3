"""Replay under a compute budget: Cumulative-All, -Exp and -Equal.

Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226). Old and new data
are pooled and drawn uniformly; the number of iterations does not grow with the
pool. Rounding, caps and the hash-based choice inside a step are ours.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from avalanche_clip.benchmarks.items.items import attribute_array, concatenate
from avalanche_clip.benchmarks.streams.quotas import (
    keep_smallest,
    replay_quotas,
    sample_priorities,
)
from avalanche_clip.common.checks import as_size, require_choice
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.visits import Step, find_step, read_step

KINDS = ("all", "exp", "equal")


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

    :param kind: ``"all"`` keeps everything; ``"exp"`` halves what is kept at
        each step and gives half the buffer to the newest step; ``"equal"``
        shares the buffer equally, see :func:`replay_quotas`.
    :param buffer_size: ``D``, samples of earlier steps in the pool, or
        ``"current"`` for the size of the running step; not used by ``"all"``.
    :param redistribute: give quota that a small step cannot fill to the most
        recent steps that have room (default: leave it unused).
    :raises ValueError: for an unknown kind, or a missing or negative size.
    """

    only_one = True
    keeps_per_weight_state = False
    replays_data = True

    kind: str = "all"
    buffer_size: int | str | None = None
    _: KW_ONLY
    redistribute: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        require_choice("kind", self.kind, KINDS)
        if self.kind != "all":
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

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Pool the new data with the kept samples of earlier steps."""
        new = strategy.adapted_dataset
        self._running = strategy.visits.current
        self._used = self.counts(len(new))
        parts = [new]
        for (place, step), count in zip(self._others(), self._used, strict=True):
            if count:
                old = self._datasets[step]
                kept = old.subset(self.kept_positions(place, count, strategy.seed))
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
        self._running, self._used = None, []

    def counts(self, new_size: int) -> list[int]:
        """Samples of each other step in the next pool, that of the oldest first.

        :param new_size: size of the running step, which counts as new data even
            if it was trained before.
        """
        stored = [self.stored[place] for place, _ in self._others()]
        if self.kind == "all" or not stored:
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
        ids = attribute_array(self._datasets[step], "sample_id")
        priorities = sample_priorities(ids, seed, step.place)
        return keep_smallest(priorities, count).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return steps and counts; the data come from the benchmark."""
        return {
            "stored": list(self.stored),
            "steps": [list(step) for step in self.steps],
            "used": list(self._used),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.stored = [int(n) for n in state["stored"]]
        self.steps = [read_step(step) for step in state["steps"]]
        self._used = [int(n) for n in state["used"]]

    def restore_data(self, benchmark: Any) -> None:
        """Find the data of finished steps in the benchmark of a resumed run."""
        found = {step: find_step(benchmark, step) for step in self.steps}
        self._datasets = {step: e.dataset for step, e in found.items()}
