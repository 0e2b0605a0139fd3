"""State of a run as plain data, and how an interrupted one goes on."""

from __future__ import annotations

from typing import Any

from avalanche_clip.training import plugin_state

FORMAT = 1


class CheckpointError(RuntimeError):
    """Raised when a checkpoint is damaged or does not fit."""


def capture_state(strategy: Any, *, inside: bool, experience: int) -> dict[str, Any]:
    """Collect the state of a run as plain data.

    :param strategy: a strategy of this package.
    :param inside: whether ``experience`` has begun.
    :param experience: index of the interrupted or next experience.
    """
    model = strategy.model
    extra = getattr(strategy, "checkpoint_extra", None)
    growth = {
        name: module.growth_state()
        for name, module in model.named_modules()
        if callable(getattr(module, "growth_state", None))
    }
    return {
        "format": FORMAT,
        "experience": experience,
        "inside": inside,
        "seed": strategy.seed,
        "growth": growth,
        "model": model.state_dict(),
        "optimizer": strategy.optimizer_state(),
        "scaler": None if strategy._scaler is None else strategy._scaler.state_dict(),
        "clock": plugin_state.number_fields(strategy.clock),
        "planned_iterations": strategy.planned_iterations,
        "compute": strategy.compute.state_dict(),
        "teachers": strategy.teachers.state_dict(),
        "plugins": plugin_state.collect(strategy),
        "rng": plugin_state.plain_rng(strategy.device),
        "extra": extra() if callable(extra) else {},
    }


def apply_pending(strategy: Any) -> None:
    """Apply the rest of a stored state to its interrupted experience."""
    state = strategy._pending
    if strategy.experience_index != state["experience"]:
        raise CheckpointError(
            f"The checkpoint stopped inside experience {state['experience']}, but "
            f"experience {strategy.experience_index} is being trained; go on with the "
            "index that load_state returned."
        )
    restore_model(strategy, state)
    plugin_state.apply_numbers(strategy.clock, state["clock"])
    strategy.compute.load_state_dict(state["compute"])
    plugin_state.restore(strategy, state["plugins"])
    strategy.teachers.load_state_dict(state["teachers"])
    if strategy.planned_iterations != state["planned_iterations"]:
        raise CheckpointError(
            f"The checkpoint planned {state['planned_iterations']} iterations, but the "
            f"strategy plans {strategy.planned_iterations}; use the same data, batch "
            "size and budget."
        )
    restore_running(strategy, state)


def restore_model(strategy: Any, state: dict[str, Any]) -> None:
    """Grow the model as stored, then load its weights.

    :raises CheckpointError: if the weights are those of another model.
    """
    modules = dict(strategy.model.named_modules())
    for name, growth in state["growth"].items():
        modules[name].load_growth_state(growth)
    try:
        strategy.model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise CheckpointError(
            "The checkpoint holds another model than the strategy; build it with the "
            f"same model. {error}"
        ) from error


def restore_running(strategy: Any, state: dict[str, Any]) -> None:
    """Load optimiser, scaler and random generators."""
    strategy.load_optimizer_state(state["optimizer"])
    if strategy._scaler is not None and state["scaler"] is not None:
        strategy._scaler.load_state_dict(state["scaler"])
    plugin_state.apply_rng(state["rng"], strategy.device)


__all__ = [
    "FORMAT",
    "CheckpointError",
    "apply_pending",
    "capture_state",
    "restore_model",
    "restore_running",
]
