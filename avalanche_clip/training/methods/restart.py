"""Train from scratch at every step, and multiples of the budget.

Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226): Restart (budget C
on all data so far), Oracle (t times C) and Cumulative-All* (a list of
multiples). The seeds of the fresh weights are ours, and so is the restart from
pretrained weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from avalanche_clip.common.checks import as_finite, require_choice
from avalanche_clip.models import DualEncoder
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.plan import (
    of_experience,
    require_per_experience,
)

L_SCALE_FACTORS = (1.0, 1.0, 1.0, 1.0, 1.5, 2.0, 3.0)
"""Cumulative-All* multiples read off TiC-CLIP's L-scale figure (7 steps)."""


STARTS = ("random", "initial")


class RestartPlugin(MethodPlugin, supports_distributed=True):
    """Begin anew before each later experience, with weights that saw no data of it.

    The first experience keeps the model as it is, so that all methods share
    their first model. Every experience warms up like the first one: that warm-up
    hurts later steps is a finding about warm starts, not about restarts.

    :param restart_from: ``"random"`` draws new weights from the seed, the
        experience and its visit; frozen parameters stay. ``"initial"`` goes back to
        those before the first training, which is what training "from scratch" means
        for a pretrained model.
    :raises ValueError: for another value; together with plugins that change the token
        table or route batches; with ``"random"`` for a model that has more than its
        architecture, such as adapters.

    Memory: ``"random"`` one temporary copy of the frozen parameters, ``"initial"``
    one copy of the weights, shared with plugins that use the initial teacher.
    """

    starts_fresh = True
    starts_elsewhere = True
    excludes = {
        "changes_text_table": (
            "begins each step with the first token table, but {} goes on with that of "
            "the step before"
        ),
        "routes_batches": (
            "begins each step anew, but {} keeps the parts that earlier steps trained"
        ),
    }

    def __init__(self, restart_from: str = "random"):
        super().__init__()
        require_choice("restart_from", restart_from, STARTS)
        self.restart_from = restart_from

    def teacher_kinds(self, strategy: Any) -> tuple[str, ...]:
        """Keep the initial weights where they are gone back to."""
        return ("initial",) if self.restart_from == "initial" else ()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Replace the weights, in place; optimiser state is cleared."""
        if strategy.clock.train_exp_counter == 0:
            return
        if self.restart_from == "initial":
            initial = strategy.teachers.get("initial").model
            strategy.model.load_state_dict(initial.state_dict())
        else:
            self._draw(strategy)
        strategy.optimizer.state.clear()

    def _draw(self, strategy: Any) -> None:
        model, number = strategy.model, strategy.visits.seed_number
        held = [p for p in model.parameters() if not p.requires_grad]
        frozen = [(p, p.detach().clone()) for p in held]
        model.reinitialize((strategy.seed * 1_000_003 + number) % 2**63)
        with torch.no_grad():
            for parameter, value in frozen:
                parameter.copy_(value)

    def check_compatible(self, strategy: Any) -> None:
        """Raise when the model cannot be initialised anew."""
        model = strategy.model
        if self.restart_from == "initial":
            return
        if not callable(getattr(model, "reinitialize", None)):
            raise ValueError(
                "RestartPlugin needs a model with reinitialize(seed), such as a "
                f"DualEncoder; got {type(model).__name__}."
            )
        if isinstance(model, DualEncoder):
            model.check_plain("RestartPlugin(restart_from='random')")


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
        if not isinstance(self.factors, str):
            steps = len(benchmark.train_stream)
            require_per_experience(self.factors, steps, "budget factors")
