"""Which plugins cannot work with image-text training, and what to use.

Checked against avalanche-lib 0.6.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import unwrap
from itertools import permutations
from typing import Any

import torch
from avalanche.training import plugins as stock
from avalanche.training.plugins.checkpoint import CheckpointPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import nn

from avalanche_clip.common.checks import require_known
from avalanche_clip.models.peft.attached import BranchSet
from avalanche_clip.training.templates.contract import MethodPlugin, PluginContract
from avalanche_clip.training.templates.watchers import (
    EarlyStoppingContract,
    SchedulerContract,
)

_CLASS_MEANS = (
    "it keeps means of class features; use retrieval_plugin_metrics, which needs no "
    "classifier"
)
REFUSED: dict[type, str] = {
    stock.LwFPlugin: (
        "it distils class columns, which in-batch logits do not have, and of class "
        "names the model returns features; use avalanche_clip's ContrastiveLwFPlugin "
        "or ReferenceDistillationPlugin('current', 'current', teacher='previous')"
    ),
    stock.MASPlugin: (
        "it takes the norm of a single output tensor; use ContrastiveEWCPlugin"
    ),
    stock.GEMPlugin: (
        "it stores flat inputs and a full gradient per experience; use AGEMPlugin or "
        "BudgetedReplayPlugin"
    ),
    stock.GSS_greedyPlugin: (
        "it slices inputs as one tensor; use avalanche_clip's BudgetedReplayPlugin"
    ),
    stock.BiCPlugin: (
        "it corrects the bias of a class head, and fails with avalanche-lib 0.6.0; "
        "use BudgetedReplayPlugin"
    ),
    stock.LFLPlugin: (
        "it needs a BaseModel with a last linear layer; use FeatureDistillationPlugin "
        "or ContrastiveLwFPlugin"
    ),
    stock.MIRPlugin: (
        "it selects by class labels that in-batch targets do not have and would do "
        "nothing; use BudgetedReplayPlugin"
    ),
    stock.CWRStarPlugin: "it needs a class head; use BudgetedReplayPlugin",
    stock.RARPlugin: "it traces a single tower; use BudgetedReplayPlugin",
    stock.CoPEPlugin: "it keeps class prototypes; use BudgetedReplayPlugin",
    stock.GenerativeReplayPlugin: (
        "it generates images without captions; use BudgetedReplayPlugin"
    ),
    stock.CurrentDataNCMUpdate: _CLASS_MEANS,
    stock.MemoryNCMUpdate: _CLASS_MEANS,
    stock.NCMOracle: _CLASS_MEANS,
    stock.CurrentDataFeCAMUpdate: _CLASS_MEANS,
    stock.MemoryFeCAMUpdate: _CLASS_MEANS,
    stock.FeCAMOracle: _CLASS_MEANS,
    unwrap(CheckpointPlugin): (  # type: ignore[dict-item]  # deprecated: a function
        "it pickles the whole strategy, which fails with avalanche-lib 0.6.0; use "
        "avalanche_clip's CheckpointPlugin"
    ),
}
"""Class of a stock plugin -> why it is refused and what replaces it."""
EXCLUSIVE = {
    "replays_data": "add earlier samples, so that one could be in a batch twice",
    "routes_batches": "choose what the samples of a batch pass",
    "changes_text_table": "change the token table",
}
"""Roles that one plugin of a strategy may have -> what several would all do."""
ROLES = {n for n, v in vars(MethodPlugin).items() if v is None or isinstance(v, bool)}
"""What plugins may exclude."""


class _Refused(PluginContract):
    def check_compatible(self, strategy: Any) -> None:
        reason = next(r for cls, r in REFUSED.items() if isinstance(self.wrapped, cls))
        raise ValueError(
            f"{type(self.wrapped).__name__} cannot be used with "
            f"{type(strategy).__name__}: {reason}."
        )


class _Machinery(PluginContract):
    """Avalanche's own: the clock, and what evaluates in training."""

    stateless = True  # type: ignore[assignment]


class _Evaluation(PluginContract):
    keeps_per_weight_state = False  # type: ignore[assignment]


class _Replay(PluginContract):
    replays_data = True  # type: ignore[assignment]


class _FeatureDistillation(PluginContract):
    def check_compatible(self, strategy: Any) -> None:
        super().check_compatible(strategy)
        if strategy.accumulation_steps > 1:
            raise ValueError(
                f"{type(self.wrapped).__name__} reads model.features, which hold one "
                f"chunk only with accumulation_steps={strategy.accumulation_steps}; "
                "use ContrastiveLwFPlugin, or accumulation_steps=1."
            )


class _ReadsWeights(PluginContract):
    reads_weights_in_steps = True  # type: ignore[assignment]


class _Protects(_ReadsWeights):
    protects_weights = True  # type: ignore[assignment]


class _RWalk(_Protects):
    def check_plan(self, strategy: Any, iterations: int) -> None:
        if self.wrapped.delta_t > iterations:
            raise ValueError(
                f"RWalkPlugin(delta_t={self.wrapped.delta_t}) needs at least that many "
                f"iterations per experience, but {iterations} are planned "
                "(avalanche-lib 0.6.0 divides by zero); choose a smaller delta_t or "
                "use ContrastiveEWCPlugin."
            )


class _SynapticIntelligence(_Protects):
    """Repairs the class: importances and penalty would stay zero.

    It keeps its "copies" of the weights as ``param.detach().cpu().flatten()``, which
    on the CPU are the weights themselves and always equal the current ones.
    """

    def __init__(self, plugin: Any):
        super().__init__(plugin)
        repaired: Any = stock.SynapticIntelligencePlugin
        repaired.extract_weights = staticmethod(_copy_weights)


@torch.no_grad()
def _copy_weights(
    model: nn.Module, target: dict[str, Any], excluded_parameters: set[str]
) -> None:
    synapses: Any = stock.SynapticIntelligencePlugin
    for name, parameter in synapses.allowed_parameters(model, excluded_parameters):
        target[name].data = parameter.detach().cpu().flatten().clone()


STOCK: dict[type, type[PluginContract]] = {
    **dict.fromkeys(REFUSED, _Refused),
    Clock: _Machinery,
    PeriodicEval: _Machinery,
    stock.EvaluationPlugin: _Evaluation,
    stock.LRSchedulerPlugin: SchedulerContract,
    stock.EarlyStoppingPlugin: EarlyStoppingContract,
    stock.AGEMPlugin: _ReadsWeights,
    stock.EWCPlugin: _Protects,
    stock.FeatureDistillationPlugin: _FeatureDistillation,
    stock.ReplayPlugin: _Replay,
    stock.RWalkPlugin: _RWalk,
    stock.SynapticIntelligencePlugin: _SynapticIntelligence,
}
"""Class of a stock plugin -> its contract: refusals, repairs and checks."""


def contract_of(plugin: Any) -> MethodPlugin:
    """What a plugin is asked through: itself, or a new contract object.

    A method that is also a stock plugin of the table is asked as the table says, and
    then itself.

    :param plugin: any object that Avalanche takes for a plugin.
    """
    known = next((STOCK[c] for c in type(plugin).__mro__ if c in STOCK), None)
    if known is None and isinstance(plugin, MethodPlugin):
        return plugin
    return (known or PluginContract)(plugin)


def check_plugins(strategy: Any) -> None:
    """Raise if a plugin of a strategy cannot work with it.

    Plugins that deploy other weights are moved to the front of the list.

    :raises ValueError: naming the plugin, the reason and the replacement.
    :raises TypeError: for a plain plugin with a misspelt hook.
    """
    for contract in strategy.contracts:
        if isinstance(contract, PluginContract):
            contract.check_class()
    order = {id(c.wrapped): not c.replaces_deployed_weights for c in strategy.contracts}
    strategy.plugins.sort(key=lambda plugin: order[id(plugin)])
    for contract in strategy.contracts:
        cls = type(contract.wrapped)
        same = [p for p in strategy.plugins if isinstance(p, cls)]
        if contract.only_one and len(same) > 1:
            raise ValueError(
                f"Several {cls.__name__}s would do the same more than once; use one "
                "(some strategies have their own)."
            )
    for role, deed in EXCLUSIVE.items():
        owners = [c for c in strategy.contracts if getattr(c, role)]
        if len(owners) > 1:
            names = " and ".join(type(c.wrapped).__name__ for c in owners)
            raise ValueError(f"{names} would both {deed}; use one of them.")
    for contract in strategy.contracts:
        what = f"roles in {type(contract.wrapped).__name__}.excludes"
        require_known(contract.excludes, ROLES, what)
    for contract, other in permutations(strategy.contracts, 2):
        for role, reason in contract.excludes.items():
            if getattr(other, role):
                ours, theirs = (type(c.wrapped).__name__ for c in (contract, other))
                raise ValueError(f"{ours} {reason.format(theirs)}; use one.")
    for contract in strategy.contracts:
        contract.check_compatible(strategy)


@contextmanager
def taken_off_on_error(model: nn.Module) -> Iterator[None]:
    """Take off again what a ``with`` block that fails has attached to a model."""
    before = {name for name, _ in model.named_children()}
    try:
        yield
    except BaseException:
        for name, child in reversed([*model.named_children()]):
            if name not in before and isinstance(child, BranchSet):
                child.detach()
            elif name not in before:
                delattr(model, name)
        raise


def in_order(plugins: Iterable[Any], last: Iterable[Any] = ()) -> list[Any]:
    """Plugins in the order in which they run: Avalanche's own at the end.

    Others may have been appended behind them; but metrics see what other plugins
    did, and the clock counts after everybody.

    :param last: plugins behind all others but Avalanche's own.
    """
    own, late = (stock.EvaluationPlugin, PeriodicEval, Clock), {*map(id, last)}
    return sorted(plugins, key=lambda p: 2 * isinstance(p, own) + (id(p) in late))


@contextmanager
def running_order(strategy: Any, *, closing: bool = False) -> Iterator[None]:
    """Put the plugins of a strategy :func:`in_order` while it runs.

    :param closing: whether it ends an experience, see ``MethodPlugin.closes_last``.
    """
    last = [c.wrapped for c in strategy.contracts if closing and c.closes_last]
    plugins = strategy.plugins
    given = list(plugins)
    plugins[:] = in_order(given, last)
    try:
        yield
    finally:
        kept = [p for p in given if any(p is q for q in plugins)]
        added = [p for p in plugins if all(p is not q for q in kept)]
        plugins[:] = kept + added
