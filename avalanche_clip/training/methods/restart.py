"""Train from scratch at every step, and multiples of the budget.

Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226): Restart (budget C
on all data so far), Oracle (t times C) and Cumulative-All* (a list of
multiples). The seeds of the fresh weights are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from avalanche_clip.common.checks import as_finite
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.plan import of_experience

L_SCALE_FACTORS = (1.0, 1.0, 1.0, 1.0, 1.5, 2.0, 3.0)
"""Cumulative-All* multiples read off TiC-CLIP's L-scale figure (7 steps)."""


class RestartPlugin(MethodPlugin, supports_distributed=True):
    """Replace the weights by fresh random ones before each later experience.

    The first experience keeps the model as it is, so that all methods share
    their first model. Later ones draw new weights from the seed, the
    experience and its visit.
    Frozen parameters stay. Memory: one temporary copy of the frozen ones.

    Every experience warms up like the first one: that warm-up hurts later steps
    is a finding about warm starts, not about random weights.
    """

    starts_fresh = True
    starts_elsewhere = True

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Draw new weights, in place; optimiser state is cleared."""
        number = strategy.visits.seed_number
        if strategy.clock.train_exp_counter == 0:
            return
        model = strategy.model
        held = [p for p in model.parameters() if not p.requires_grad]
        frozen = [(p, p.detach().clone()) for p in held]
        model.reinitialize((strategy.seed * 1_000_003 + number) % 2**63)
        with torch.no_grad():
            for parameter, value in frozen:
                parameter.copy_(value)
        strategy.optimizer.state.clear()

    def check_compatible(self, strategy: Any) -> None:
        """Raise when the model cannot be initialised anew."""
        if not callable(getattr(strategy.model, "reinitialize", None)):
            raise ValueError(
                "RestartPlugin needs a model with reinitialize(seed), such as a "
                f"DualEncoder; got {type(strategy.model).__name__}."
            )


class BudgetFactorPlugin(MethodPlugin, supports_distributed=True):
    """Multiply the compute budget of each experience.

    :param factors: ``"step"`` for the number of distinct steps trained so far, the
        running one included: ``1, 2, 3, ...`` (Oracle); or one positive number per
        experience of the stream, whenever that is trained.
    :raises ValueError: for another string or a factor that is not positive.
    """

    keeps_per_weight_state = False

    def __init__(self, factors: str | Sequence[float] = "step"):
        super().__init__()
        if isinstance(factors, str):
            if factors != "step":
                raise ValueError(
                    f"factors={factors!r} is unknown; use 'step' or one positive "
                    "number per experience."
                )
        elif not len(factors):
            raise ValueError("factors=() must be positive numbers; it is empty.")
        else:
            wanted = f"factors={list(factors)} must be positive numbers; one of them"
            factors = tuple(as_finite(f, wanted, above=0) for f in factors)
        self.factors = factors

    def budget_factor(self, strategy: Any) -> float:
        """Multiple of the budget in the running experience."""
        if isinstance(self.factors, str):
            return float(len(strategy.visits.others) + 1)
        return of_experience(self.factors, strategy, "budget factors")

    def check_compatible(self, strategy: Any) -> None:
        """Raise when there is no budget to multiply."""
        if not strategy.compute.limited:
            raise ValueError(
                "This method multiplies a compute budget, but none is given; pass "
                "budget_iterations, budget_samples or budget_macs."
            )

    def check_benchmark(self, benchmark: Any) -> None:
        """Raise before a run when there are fewer factors than experiences."""
        steps = len(benchmark.train_stream)
        if not isinstance(self.factors, str) and len(self.factors) < steps:
            raise ValueError(
                f"There are {len(self.factors)} budget factors for {steps} training "
                "experiences; give one per experience."
            )
