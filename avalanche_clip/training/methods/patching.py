"""Sequential patching: interpolate the weights after each step.

Source: Ilharco et al., "Patching open-vocabulary models by interpolating
weights", NeurIPS 2022 (arXiv 2208.05592), as used by Garg et al., TiC-CLIP,
ICLR 2024 (arXiv 2310.16226). Grid, tie rule and the default objective are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_finite, require_choice
from avalanche_clip.common.grown import clones
from avalanche_clip.common.progress import progress
from avalanche_clip.evaluation.loop import evaluate_retrieval
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.visits import belongs

GRID = tuple(i / 10 for i in range(11))
SELECT_ON = ("previous", "previous+current")


@dataclass(eq=False)
class PatchingPlugin(MethodPlugin, supports_distributed=True):
    """Deploy ``(1 - a) * previous + a * trained`` after each later step.

    ``a`` is the value of ``grid`` with the best mean ``mean_R@1`` on validation
    data; equal scores take the larger ``a``. All float parameters and buffers are
    interpolated as stored (the logit scale as a logarithm); integer buffers are those
    of the trained model. Rows that a token table has grown by count as previous with
    the values that their training started from.

    Memory: two copies of the weights. Time: one evaluation of the validation
    data per grid value after each step, booked as ``"search"``.

    :param grid: candidate mixing coefficients in ``[0, 1]``; 0 is the old
        model, 1 the trained one.
    :param select_on: score ``"previous"`` steps only (as the paper, which
        tends to a = 0), or ``"previous+current"``.
    :param validation: name of the stream of the benchmark to score on, with one
        experience per training experience. Do not use the stream that you report.
    :raises ValueError: for an empty grid, a value outside ``[0, 1]``, or
        another ``select_on``; together with plugins that start a step from other
        weights or route batches (expert and language adapters).

    Scores are those of the steps that were trained, whatever their order; a step
    that comes again is the current one. Where no previous step is left, the trained
    weights stay.

    Strategies call this plugin before all others, so that what they copy after
    a step (anchors, teachers) are the patched weights.
    """

    state_attributes = ("previous",)
    only_one = True
    replaces_deployed_weights = True
    excludes = {
        "starts_elsewhere": (
            "continues from the patched weights, but {} starts each step from others"
        ),
        "routes_batches": (
            "replaces and scores the weights of the model as one, but {} routes "
            "batches through parts that are frozen after their step"
        ),
    }
    keeps_per_weight_state = True

    grid: Sequence[float] = GRID
    _: KW_ONLY
    select_on: str = "previous+current"
    validation: str = "valid"

    def __post_init__(self) -> None:
        super().__init__()
        if isinstance(self.grid, str) or not len(self.grid):
            raise ValueError(f"grid={self.grid!r} must be values in [0, 1].")
        wanted = f"grid={list(self.grid)} must be values in [0, 1]; one of them"
        self.grid = tuple(as_finite(a, wanted, low=0, high=1) for a in self.grid)
        require_choice("select_on", self.select_on, SELECT_ON)
        self.chosen: list[float] = []
        """Mixing coefficient of each finished experience (1 for the first)."""
        self.previous: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the weights that training starts from."""
        if len(self.grid) > 1:
            self._data(strategy)  # a missing stream is reported before training
        if strategy.clock.train_exp_counter > 0:
            self.previous = clones(strategy.model)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Search the coefficient and load the patched weights in place."""
        for contract in strategy.contracts:
            contract.merge_updates(strategy)
        if not self.previous:
            self.chosen.append(1.0)
            return
        trained = clones(strategy.model)
        best = self.grid[0]
        if len(self.grid) > 1:
            datasets = self._data(strategy)

            def score(coefficient: float) -> float:
                mixed = mix(self.previous, trained, coefficient)
                strategy.model.load_state_dict(mixed)
                return self._score(strategy, datasets)

            # The first of equal scores counts.
            grid = sorted(self.grid, reverse=True)
            strategy.plan.announce(
                "Patching search",
                len(grid) * sum(map(len, datasets)),
                "a smaller grid or validation stream makes it shorter",
            )
            tried = progress(grid, "patching search", unit="coefficient")
            best = max(tried, key=score) if datasets else 1.0
        strategy.model.load_state_dict(mix(self.previous, trained, best))
        self.chosen.append(best)
        self.previous = {}

    def _score(self, strategy: Any, datasets: list[Any]) -> float:
        evaluate = partial(
            evaluate_retrieval,
            strategy.model,
            batch_size=strategy.eval_mb_size,
            device=strategy.device,
            autocast=strategy.autocast,
            budget=strategy.compute,
        )
        scores = [evaluate(dataset)["mean_R@1"] for dataset in datasets]
        return sum(scores) / len(scores)

    def _data(self, strategy: Any) -> list[Any]:
        """Validation data of the steps to score on."""
        visits = strategy.visits
        steps = [*visits.others]
        if self.select_on == "previous+current":
            steps.append(visits.current)
        benchmark = strategy.experience.logging().origin_stream.benchmark
        streams = getattr(benchmark, "streams", {})
        if self.validation not in streams:
            raise ValueError(
                f"PatchingPlugin searches on stream {self.validation!r}, but the "
                f"benchmark has {sorted(streams)}; make one with split_validation, or "
                "give a grid of one value."
            )
        stream = list(streams[self.validation])
        for step in steps:
            if not belongs(step, benchmark) or step.place >= len(stream):
                raise ValueError(
                    f"PatchingPlugin searches on stream {self.validation!r}, which has "
                    f"no experience for {step}; give it one per training experience, "
                    "or give a grid of one value."
                )
        return [stream[step.place].dataset for step in steps]


def mix(
    previous: dict[str, Tensor], trained: dict[str, Tensor], coefficient: float
) -> dict[str, Tensor]:
    """Interpolate two state dicts; 0 and 1 return an operand exactly.

    :param previous: weights at coefficient 0.
    :param trained: weights at coefficient 1; entries that only it has (the
        model grew) and integer entries are taken from it.
    :param coefficient: in ``[0, 1]``.

    >>> mix({"w": torch.tensor(4.0)}, {"w": torch.tensor(8.0)}, 0.25)
    {'w': tensor(5.)}
    """
    mixed = {}
    for name, new in trained.items():
        old = previous.get(name)
        if old is None or not new.is_floating_point() or coefficient == 1.0:
            mixed[name] = new
        elif old.shape != new.shape:
            raise ValueError(
                f"{name} has shape {tuple(new.shape)} but had {tuple(old.shape)}; "
                "patching needs equal shapes."
            )
        elif coefficient == 0.0:
            mixed[name] = old
        else:
            # Unlike a weighted sum, this leaves equal (frozen) values as they are.
            mixed[name] = torch.lerp(old, new, coefficient)
    return mixed
