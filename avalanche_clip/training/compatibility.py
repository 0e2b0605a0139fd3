"""Which plugins cannot work with image-text training, and what to use."""

from __future__ import annotations

from typing import Any

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
}
"""Stock plugin class name -> why it is refused and what replaces it."""


def check_plugins(strategy: Any) -> None:
    """Raise if a plugin of a strategy cannot work with it.

    Stock plugins that fail or do nothing are refused by name; every plugin
    with ``check_compatible(strategy)`` is asked.

    :raises ValueError: naming the plugin, the reason and the replacement.
    """
    for plugin in strategy.plugins:
        for cls in type(plugin).__mro__:
            if cls.__name__ in REFUSED and cls.__module__.startswith("avalanche."):
                raise ValueError(
                    f"{type(plugin).__name__} cannot be used with "
                    f"{type(strategy).__name__}: {REFUSED[cls.__name__]}."
                )
        check = getattr(plugin, "check_compatible", None)
        if callable(check):
            check(strategy)


def check_planned(strategy: Any, planned: int) -> None:
    """Raise if a plugin cannot work with the planned number of iterations."""
    for plugin in strategy.plugins:
        if type(plugin).__name__ == "RWalkPlugin" and plugin.delta_t > planned:
            raise ValueError(
                f"RWalkPlugin(delta_t={plugin.delta_t}) needs at least that many "
                f"iterations per experience, but {planned} are planned (avalanche-lib "
                "0.6.0 divides by zero); choose a smaller delta_t or use "
                "ContrastiveEWCPlugin."
            )


__all__ = ["REFUSED", "check_planned", "check_plugins"]
