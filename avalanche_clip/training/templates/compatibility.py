"""Which plugins cannot work with image-text training, and what to use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base_sgd import PeriodicEval

from avalanche_clip.training.templates.stock_repairs import repair_plugins

_CLASS_MEANS = (
    "it keeps means of class features; use retrieval_plugin_metrics, which needs no "
    "classifier"
)

REFUSED = {
    "LwFPlugin": (
        "it distils class columns, which in-batch logits do not have; use "
        "avalanche_clip's ContrastiveLwFPlugin"
    ),
    "MASPlugin": (
        "it takes the norm of a single output tensor; use ContrastiveEWCPlugin"
    ),
    "GEMPlugin": (
        "it stores flat inputs and a full gradient per experience; use AGEMPlugin or "
        "BudgetedReplayPlugin"
    ),
    "GSS_greedyPlugin": (
        "it slices inputs as one tensor; use avalanche_clip's BudgetedReplayPlugin"
    ),
    "BiCPlugin": (
        "it corrects the bias of a class head, and fails with avalanche-lib 0.6.0; "
        "use BudgetedReplayPlugin"
    ),
    "LFLPlugin": (
        "it needs a BaseModel with a last linear layer; use FeatureDistillationPlugin "
        "or ContrastiveLwFPlugin"
    ),
    "MIRPlugin": (
        "it selects by class labels that in-batch targets do not have and would do "
        "nothing; use BudgetedReplayPlugin"
    ),
    "CWRStarPlugin": "it needs a class head; use BudgetedReplayPlugin",
    "RARPlugin": "it traces a single tower; use BudgetedReplayPlugin",
    "CoPEPlugin": "it keeps class prototypes; use BudgetedReplayPlugin",
    "GenerativeReplayPlugin": (
        "it generates images without captions; use BudgetedReplayPlugin"
    ),
    "CurrentDataNCMUpdate": _CLASS_MEANS,
    "MemoryNCMUpdate": _CLASS_MEANS,
    "NCMOracle": _CLASS_MEANS,
    "CurrentDataFeCAMUpdate": _CLASS_MEANS,
    "MemoryFeCAMUpdate": _CLASS_MEANS,
    "FeCAMOracle": _CLASS_MEANS,
    "CheckpointPlugin": (
        "it pickles the whole strategy, which fails with avalanche-lib 0.6.0; use "
        "avalanche_clip's CheckpointPlugin"
    ),
}
"""Stock plugin class name -> why it is refused and what replaces it."""

_NO_CHUNKS = ("FeatureDistillationPlugin",)


def check_plugins(strategy: Any) -> None:
    """Raise if a plugin of a strategy cannot work with it.

    Stock plugins that fail or do nothing are refused by name; every plugin
    with ``check_compatible(strategy)`` is asked. Plugins that say
    ``replaces_deployed = True`` are moved to the front of the list.

    :raises ValueError: naming the plugin, the reason and the replacement.
    """
    repair_plugins(strategy.plugins)
    # Who replaces the weights after a step comes before those who copy them.
    strategy.plugins.sort(key=lambda p: not getattr(p, "replaces_deployed", False))
    own = getattr(strategy, "refused_plugins", {})
    for plugin in strategy.plugins:
        for cls in type(plugin).__mro__:
            if cls.__name__ in own:
                raise ValueError(
                    f"{type(plugin).__name__} cannot be used with "
                    f"{type(strategy).__name__}: {own[cls.__name__]}."
                )
            if cls.__name__ in REFUSED and cls.__module__.startswith("avalanche."):
                raise ValueError(
                    f"{type(plugin).__name__} cannot be used with "
                    f"{type(strategy).__name__}: {REFUSED[cls.__name__]}."
                )
            if cls.__name__ in _NO_CHUNKS and strategy.accumulation_steps > 1:
                raise ValueError(
                    f"{type(plugin).__name__} reads model.features, which hold one "
                    "chunk only with accumulation_steps="
                    f"{strategy.accumulation_steps}; use ContrastiveLwFPlugin, or "
                    "accumulation_steps=1."
                )
        check = getattr(plugin, "check_compatible", None)
        if callable(check):
            check(strategy)


def in_order(plugins: Iterable[Any]) -> list[Any]:
    """Plugins in the order in which they run: Avalanche's own at the end.

    Others may have been appended behind them; but metrics see what other plugins
    did, and the clock counts after everybody.
    """
    own = (EvaluationPlugin, PeriodicEval, Clock)
    return sorted(plugins, key=lambda plugin: isinstance(plugin, own))


@contextmanager
def running_order(strategy: Any) -> Iterator[None]:
    """Put the plugins of a strategy :func:`in_order` while it runs."""
    plugins = strategy.plugins
    given = list(plugins)
    plugins[:] = in_order(given)
    try:
        yield
    finally:
        kept = [p for p in given if any(p is q for q in plugins)]
        added = [p for p in plugins if all(p is not q for q in kept)]
        plugins[:] = kept + added


def check_planned(strategy: Any, planned: int) -> None:
    """Raise if a plugin cannot work with the planned number of iterations."""
    for plugin in strategy.plugins:
        names = [cls.__name__ for cls in type(plugin).__mro__]
        if "RWalkPlugin" in names and plugin.delta_t > planned:
            raise ValueError(
                f"RWalkPlugin(delta_t={plugin.delta_t}) needs at least that many "
                f"iterations per experience, but {planned} are planned (avalanche-lib "
                "0.6.0 divides by zero); choose a smaller delta_t or use "
                "ContrastiveEWCPlugin."
            )
