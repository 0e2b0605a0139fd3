"""Replay under a compute budget: Cumulative-All, -Exp and -Equal.

Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226). Old and new data
are pooled and drawn uniformly; the number of iterations does not grow with the
pool. Rounding, caps and the hash-based choice inside a step are ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from avalanche.core import SupervisedPlugin

from avalanche_clip._numbers import as_size
from avalanche_clip._suggest import require_choice
from avalanche_clip.benchmarks.data import attribute_array, concatenate
from avalanche_clip.benchmarks.quotas import (
    keep_smallest,
    replay_quotas,
    sample_priorities,
)

KINDS = ("all", "exp", "equal")


class BudgetedReplayPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Train on the new data pooled with samples of earlier time steps.

    Kept in memory: references to the data sets seen and one count per step;
    which samples a count stands for follows from a hash of
    ``(seed, step, sample_id)``. Choices are nested: what is dropped once is
    never used again. Time per step: none beyond the larger pool's loader.

    :param kind: ``"all"`` keeps everything; ``"exp"`` halves what is kept at
        each step and gives half the buffer to the newest step; ``"equal"``
        shares the buffer equally, see :func:`replay_quotas`.
    :param buffer_size: ``D``, samples of earlier steps in the pool, or
        ``"current"`` for the size of the running step; not used by ``"all"``.
    :param redistribute: give quota that a small step cannot fill to the most
        recent steps that have room (default: leave it unused).
    :param seed: of the choice; default the strategy's.
    :raises ValueError: for an unknown kind, or a missing or negative size.
    """

    def __init__(
        self,
        kind: str = "all",
        buffer_size: int | str | None = None,
        *,
        redistribute: bool = False,
        seed: int | None = None,
    ):
        super().__init__()
        require_choice("kind", kind, KINDS)
        if kind != "all":
            try:
                if buffer_size != "current":
                    buffer_size = as_size(buffer_size, "buffer_size", least=0)
            except ValueError:
                raise ValueError(
                    f"buffer_size={buffer_size!r}: kind={kind!r} needs the number of "
                    "old samples in the pool (>= 0), or 'current'."
                ) from None
        elif buffer_size is not None:
            raise ValueError("kind='all' keeps everything; leave buffer_size out.")
        self.kind = kind
        self.buffer_size = buffer_size
        self.redistribute = redistribute
        self.seed = seed
        self.stored: list[int] = []
        """Samples still kept of each finished step, oldest first."""
        self._datasets: list[Any] = []
        self._used: list[int] = []

    def check_compatible(self, strategy: Any) -> None:
        """Raise with a second one: both would put the same samples in the pool."""
        if sum(isinstance(p, BudgetedReplayPlugin) for p in strategy.plugins) > 1:
            raise ValueError(
                "Several BudgetedReplayPlugins would pool the same old samples more "
                "than once; use one (Cumulative strategies, Restart and Oracle have "
                "their own)."
            )

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Pool the new data with the kept samples of earlier steps."""
        new = strategy.adapted_dataset
        self._used = self.counts(len(new))
        parts = [new]
        for step, count in enumerate(self._used):
            if count:
                old = self._datasets[step]
                kept = old.subset(self.kept_positions(step, count, strategy.seed))
                parts.append(kept.train())
        strategy.adapted_dataset = concatenate(parts)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Add the step just trained; shrink the others to what was used."""
        dataset = strategy.experience.dataset
        self.stored = list(self._used) + [len(dataset)]
        self._datasets = self._datasets[: len(self._used)] + [dataset]

    def counts(self, new_size: int) -> list[int]:
        """Samples of each finished step in the next pool, oldest first.

        :param new_size: size of the running step.
        """
        if self.kind == "all" or not self.stored:
            return list(self.stored)
        total = new_size if self.buffer_size == "current" else int(self.buffer_size)  # type: ignore[arg-type]
        quotas = replay_quotas(total, len(self.stored) + 1, self.kind)
        counts = [min(q, s) for q, s in zip(quotas, self.stored, strict=True)]
        if self.redistribute:
            left = total - sum(counts)
            for step in reversed(range(len(counts))):
                extra = min(left, self.stored[step] - counts[step])
                counts[step] += extra
                left -= extra
        return counts

    def kept_positions(self, step: int, count: int, run_seed: int) -> list[int]:
        """Positions of the kept samples in the data set of a step."""
        ids = attribute_array(self._datasets[step], "sample_id")
        seed = run_seed if self.seed is None else self.seed
        priorities = sample_priorities(ids, seed, step)
        return keep_smallest(priorities, count).tolist()

    def kept_sample_ids(self, step: int, count: int, run_seed: int) -> np.ndarray:
        """Sample ids behind :meth:`kept_positions`."""
        ids = attribute_array(self._datasets[step], "sample_id")
        return ids[self.kept_positions(step, count, run_seed)]

    def state_dict(self) -> dict[str, Any]:
        """Return the counts; the data come from the benchmark."""
        return {"stored": list(self.stored), "used": list(self._used)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back counts stored by :meth:`state_dict`."""
        self.stored = [int(n) for n in state["stored"]]
        self._used = [int(n) for n in state["used"]]

    def restore_data(self, benchmark: Any) -> None:
        """Find the data of finished steps in the benchmark of a resumed run."""
        stream = benchmark.streams["train"]
        self._datasets = [stream[k].dataset for k in range(len(self.stored))]


__all__ = ["BudgetedReplayPlugin"]
