"""The methods of TiC-CLIP as strategies: a template plus its plugins.

Source of all: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226). Every
strategy trains each time step with the same compute unless it says otherwise,
restarts a cosine schedule and the optimiser's moments at each step, and warms
up in the first step only. Give a budget (``budget_iterations=...``) to compare
methods; without one, passes over a larger pool cost more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from avalanche_clip.training.methods.budgeted_replay import BudgetedReplayPlugin
from avalanche_clip.training.methods.ewc import ContrastiveEWCPlugin
from avalanche_clip.training.methods.lwf import ContrastiveLwFPlugin
from avalanche_clip.training.methods.patching import GRID, PatchingPlugin
from avalanche_clip.training.methods.restart import (
    L_SCALE_FACTORS,
    BudgetFactorPlugin,
    RestartPlugin,
)
from avalanche_clip.training.templates.contrastive import ContrastiveTemplate
from avalanche_clip.training.templates.options import further_options


class Sequential(ContrastiveTemplate):
    """Warm-start training on the new data only (plain fine-tuning).

    Methods add their plugins before those of the user.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param plugins: further plugins.
    :param schedule: learning-rate schedule of each step.
    :param kwargs: see :class:`ContrastiveTemplate`.
    """

    _own: Sequence[Any] = ()

    def __init__(
        self,
        *,
        model: nn.Module,
        plugins: Sequence[Any] | None = None,
        schedule: str = "cosine",
        **kwargs: Any,
    ):
        super().__init__(
            model=model,
            plugins=[*self._own, *(plugins or [])],
            schedule=schedule,
            **kwargs,
        )


class CumulativeAll(Sequential):
    """Warm start on all data so far, at the plain budget.

    :param kwargs: see :class:`Sequential`.
    """

    def __init__(self, **kwargs: Any):
        self._own = [BudgetedReplayPlugin("all")]
        super().__init__(**kwargs)


class _Buffered(Sequential):
    kind: str

    def __init__(
        self,
        *,
        buffer_size: int | str = "current",
        redistribute: bool = False,
        **kwargs: Any,
    ):
        self._own = [
            BudgetedReplayPlugin(self.kind, buffer_size, redistribute=redistribute)
        ]
        super().__init__(**kwargs)


class CumulativeExp(_Buffered):
    """Warm start on new data and a buffer that halves old steps' shares.

    :param buffer_size: old samples in the pool, or ``"current"`` for as many
        as there are new ones.
    :param redistribute: see :class:`BudgetedReplayPlugin`.
    :param kwargs: see :class:`Sequential`.
    """

    kind = "exp"


class CumulativeEqual(_Buffered):
    """Warm start on new data and a buffer shared equally by old steps.

    :param buffer_size: old samples in the pool, or ``"current"`` for as many
        as there are new ones.
    :param redistribute: see :class:`BudgetedReplayPlugin`.
    :param kwargs: see :class:`Sequential`.
    """

    kind = "equal"


class CumulativeAllStar(Sequential):
    """Cumulative-All* : all data, with more compute in later steps.

    :param budget_factors: multiple of the budget per step; default those read
        off TiC-CLIP's figure for seven steps at L scale.
    :param kwargs: see :class:`Sequential`; a budget is needed.
    """

    def __init__(
        self, *, budget_factors: Sequence[float] = L_SCALE_FACTORS, **kwargs: Any
    ):
        self._own = [BudgetedReplayPlugin("all"), BudgetFactorPlugin(budget_factors)]
        super().__init__(**kwargs)


class Restart(Sequential):
    """Train from scratch on all data so far, at the plain budget.

    The first step uses the model as given; later ones fresh random weights.

    :param restart_from: see :class:`RestartPlugin`.
    :param kwargs: see :class:`Sequential`.
    """

    def __init__(self, *, restart_from: str = "random", **kwargs: Any):
        self._own = [BudgetedReplayPlugin("all"), RestartPlugin(restart_from)]
        super().__init__(**kwargs)


class Oracle(Sequential):
    """Train from scratch on all data so far, at ``t`` times the budget.

    :param restart_from: see :class:`RestartPlugin`.
    :param kwargs: see :class:`Sequential`; a budget is needed.
    """

    def __init__(self, *, restart_from: str = "random", **kwargs: Any):
        replay, restart = BudgetedReplayPlugin("all"), RestartPlugin(restart_from)
        self._own = [replay, restart, BudgetFactorPlugin("step")]
        super().__init__(**kwargs)


class Patching(Sequential):
    """Sequential training, then interpolation with the previous weights.

    :param grid: candidate mixing coefficients.
    :param select_on: see :class:`PatchingPlugin`.
    :param validation: stream to search on.
    :param kwargs: see :class:`Sequential`.
    """

    def __init__(
        self,
        *,
        grid: Sequence[float] = GRID,
        select_on: str = "previous+current",
        validation: str = "valid",
        **kwargs: Any,
    ):
        self._own = [PatchingPlugin(grid, select_on=select_on, validation=validation)]
        super().__init__(**kwargs)


class ContrastiveLwF(Sequential):
    """Sequential training with similarity distillation from the last model.

    :param lwf_weight: weight of the term.
    :param plugin_options: further options of :class:`ContrastiveLwFPlugin`.
    :param kwargs: see :class:`Sequential`.
    """

    def __init__(
        self,
        *,
        lwf_weight: float = 1.0,
        plugin_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        plugin, taken = ContrastiveLwFPlugin, ["lwf_weight"]
        further = further_options(self, plugin, plugin_options, taken)
        self._own = [plugin(lwf_weight, **further)]
        super().__init__(**kwargs)


class ContrastiveEWC(Sequential):
    """Sequential training with an elastic penalty on important weights.

    :param ewc_lambda: weight of half the penalty (TiC-CLIP tried 1 to 400).
    :param fisher_batch_size: pairs per batch of the Fisher pass.
    :param fisher_batches: batches of that pass, None for one pass.
    :param plugin_options: further options of :class:`ContrastiveEWCPlugin`.
    :param kwargs: see :class:`Sequential`.
    """

    def __init__(
        self,
        *,
        ewc_lambda: float = 1.0,
        fisher_batch_size: int = 128,
        fisher_batches: int | None = None,
        plugin_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        sizes: dict[str, Any] = {"fisher_batch_size": fisher_batch_size}
        sizes |= {"fisher_batches": fisher_batches}
        plugin, taken = ContrastiveEWCPlugin, ["ewc_lambda", *sizes]
        further = further_options(self, plugin, plugin_options, taken)
        self._own = [plugin(ewc_lambda, **sizes, **further)]
        super().__init__(**kwargs)


TIC_STRATEGIES = {
    "sequential": Sequential,
    "cumulative-all": CumulativeAll,
    "cumulative-exp": CumulativeExp,
    "cumulative-equal": CumulativeEqual,
    "cumulative-all-star": CumulativeAllStar,
    "restart": Restart,
    "oracle": Oracle,
    "patching": Patching,
    "lwf": ContrastiveLwF,
    "ewc": ContrastiveEWC,
}
"""Name on the command line -> strategy class."""
