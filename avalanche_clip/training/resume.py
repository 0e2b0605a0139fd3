"""State of a run as plain data, and how an interrupted one goes on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from avalanche_clip.models.fingerprint import FingerprintCache
from avalanche_clip.training import optim, plugin_state
from avalanche_clip.training.teachers import Teacher

logger = logging.getLogger(__name__)

FORMAT = 2


class CheckpointError(ValueError, RuntimeError):
    """Raised when a checkpoint is damaged or does not fit."""


# ------------------------------------------------------------------ capturing
def capture_state(strategy: Any, *, inside: bool, experience: int) -> dict[str, Any]:
    """Collect the state of a run as plain data.

    Tensors are those of the run, not copies: write them before it goes on.

    :param strategy: a strategy of this package.
    :param inside: whether ``experience`` has begun.
    :param experience: index of the interrupted or next experience.
    :raises TypeError: if a plugin has state that cannot be stored.
    """
    model = strategy.model
    extra = getattr(strategy, "checkpoint_extra", None)
    base = _frozen_base(strategy)
    omitted = set() if base is None else set(base["names"])
    teachers = strategy.teachers.state_dict()
    for kind, weights in teachers["weights"].items():
        teachers["weights"][kind] = _without_base(weights, model, omitted)
    return {
        "format": FORMAT,
        "method": type(strategy).__name__,
        "experience": experience,
        "inside": inside,
        "seed": strategy.seed,
        "device": strategy.device.type,
        "growth": _growth(model),
        "trainable": sorted(optim.trainable(model)),
        "known": sorted(strategy._known),
        "base": base,
        "model": {k: v for k, v in model.state_dict().items() if k not in omitted},
        "optimizer": {
            "class": type(strategy.optimizer).__name__,
            "names": [list(group["names"]) for group in strategy._groups],
            **strategy.optimizer_state(copy=False),
        },
        "scaler": None if strategy._scaler is None else strategy._scaler.state_dict(),
        "clock": plugin_state.number_fields(strategy.clock),
        "planned_iterations": strategy.planned_iterations,
        "compute": strategy.compute.state_dict(),
        "teachers": teachers,
        "teacher_growth": {
            kind: _growth(teacher.model)
            for kind, teacher in strategy.teachers.teachers.items()
        },
        "plugins": plugin_state.collect(strategy),
        "rng": plugin_state.plain_rng(strategy.device),
        "extra": extra() if callable(extra) else {},
    }


def _growth(model: nn.Module) -> dict[str, Any]:
    return {
        name: module.growth_state()
        for name, module in model.named_modules()
        if callable(getattr(module, "growth_state", None))
    }


def remember_base(strategy: Any, names: set[str] | None = None) -> None:
    """Note the hashes of the weights that were never trainable.

    While they stay the same, checkpoints hold a hash instead of the weights.

    :param strategy: a strategy of this package.
    :param names: look at these only; default all frozen weights.
    """
    cache = strategy._base_cache = FingerprintCache()
    strategy._base_hashes = {
        item[0]: cache([item])
        for item in _base_items(strategy)
        if names is None or item[0] in names
    }


def _base_items(strategy: Any) -> list[tuple[str, torch.Tensor]]:
    return [
        (name, parameter)
        for name, parameter in strategy.model.named_parameters()
        if not parameter.requires_grad and name not in strategy._known
    ]


def _frozen_base(strategy: Any) -> dict[str, Any] | None:
    """Names and hash of the weights that need not be stored, or None."""
    if not hasattr(strategy, "_base_hashes"):
        remember_base(strategy)
    cache, hashes = strategy._base_cache, strategy._base_hashes
    # What was written to although it is frozen is stored like the rest.
    items = [
        item
        for item in _base_items(strategy)
        if item[0] in hashes and cache([item]) == hashes[item[0]]
    ]
    if not items:
        return None
    return {"names": [name for name, _ in items], "hash": cache(items)}


def _without_base(
    weights: dict[str, Any], model: nn.Module, omitted: set[str]
) -> dict[str, Any]:
    """Drop what a teacher has in common with the frozen base."""
    if not omitted:
        return weights
    ours = dict(model.named_parameters())
    return {
        name: value
        for name, value in weights.items()
        if name not in omitted or not torch.equal(value, ours[name])
    }


# ------------------------------------------------------------------ restoring
def restore_state(strategy: Any, state: dict[str, Any], benchmark: Any) -> int:
    """Put a fresh strategy where a stored run was.

    :param strategy: built like the one that was stored.
    :param state: from :func:`capture_state`; not changed.
    :param benchmark: gives replay plugins their data.
    :return: index of the experience to train next.
    :raises CheckpointError: if the state is that of another kind of run.
    """
    _check_same_run(strategy, state)
    inside = state["inside"]
    _prepare_teachers(strategy, state, benchmark)
    restore_model(strategy, state, benchmark)
    plugin_state.apply_numbers(strategy.clock, state["clock"])
    strategy.compute.load_state_dict(state["compute"])
    # What is applied again later must not be what plugins work on until then.
    plugins = copy.deepcopy(state["plugins"]) if inside else state["plugins"]
    _restore_plugins(strategy, plugins, state)
    plugin_state.restore_data(strategy, benchmark)
    _restore_teachers(strategy, state)
    strategy._pending = state if inside else None
    if not inside:
        restore_running(strategy, state)
    return int(state["experience"])


def apply_pending(strategy: Any) -> None:
    """Apply the rest of a stored state to its interrupted experience."""
    state = strategy._pending
    if strategy.experience_index != state["experience"]:
        raise CheckpointError(
            f"The checkpoint stopped inside experience {state['experience']}, but "
            f"experience {strategy.experience_index} is being trained; go on with the "
            "index that load_state returned."
        )
    # The model grew in load_state; growing again would replace its parameters.
    _load_weights(strategy, state)
    plugin_state.apply_numbers(strategy.clock, state["clock"])
    strategy.compute.load_state_dict(state["compute"])
    _restore_plugins(strategy, copy.deepcopy(state["plugins"]), state)
    _restore_teachers(strategy, state)
    if strategy.planned_iterations != state["planned_iterations"]:
        raise CheckpointError(
            f"The checkpoint planned {state['planned_iterations']} iterations, but the "
            f"strategy plans {strategy.planned_iterations}; use the same data, batch "
            "size and budget."
        )
    restore_running(strategy, state)


def _check_same_run(strategy: Any, state: dict[str, Any]) -> None:
    for name, have in (
        ("method", type(strategy).__name__),
        ("seed", strategy.seed),
    ):
        if state[name] != have:
            raise CheckpointError(
                f"The checkpoint was written with {name}={state[name]!r}, but the "
                f"strategy has {name}={have!r}; build it with the same one."
            )
    optimizer = type(strategy.optimizer).__name__
    if state["optimizer"]["class"] != optimizer:
        raise CheckpointError(
            f"The checkpoint was written with {state['optimizer']['class']}, but the "
            f"strategy has {optimizer}; build it with the same optimiser."
        )
    if state["device"] != strategy.device.type:
        logger.warning(
            "The checkpoint was written on %s and goes on on %s: results are not "
            "bit-identical.",
            state["device"],
            strategy.device.type,
        )


def restore_model(strategy: Any, state: dict[str, Any], benchmark: Any) -> None:
    """Grow the model as stored, then load its weights.

    Modules with ``growth_state`` are grown from that; others go through the
    adaptations that they had again.

    :raises CheckpointError: if the weights are those of another model.
    """
    grown = int(state["experience"]) + int(state["inside"])
    _adapt_again(strategy.model, benchmark.train_stream[:grown])
    _grow(strategy.model, state["growth"])
    strategy.model.to(strategy.device)
    _load_weights(strategy, state)
    strategy._known |= set(state["known"])
    base = state["base"]
    remember_base(strategy, set() if base is None else set(base["names"]))


def _adapt_again(model: nn.Module, experiences: Iterable[Any]) -> None:
    """Call ``adaptation`` of growing modules that store no growth."""
    for experience in experiences:
        for module in list(model.modules()):
            adapt = getattr(module, "adaptation", None)
            own = callable(getattr(module, "load_growth_state", None))
            if callable(adapt) and not own and getattr(module, "_auto_adapt", True):
                adapt(experience)


def _grow(model: nn.Module, growth: dict[str, Any]) -> None:
    # Parents come first, so modules that a parent makes are found.
    for name, stored in growth.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        load = getattr(module, "load_growth_state", None)
        if not callable(load):
            raise CheckpointError(
                f"The checkpoint holds a growing module {name!r}, but the model has "
                "none of that name with load_growth_state; build the same model."
            )
        try:
            load(stored)
        except ValueError as error:
            raise CheckpointError(str(error)) from error


def _load_weights(strategy: Any, state: dict[str, Any]) -> None:
    model, base = strategy.model, state["base"]
    weights = state["model"]
    if base is not None:
        weights = _with_base(model, weights, base)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            "The checkpoint holds another model than the strategy; build it with the "
            "same model (a module that grows needs growth_state and "
            f"load_growth_state). {error}"
        ) from error
    trainable = set(state["trainable"])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (name in trainable):
            parameter.requires_grad_(name in trainable)


def _with_base(
    model: nn.Module, weights: dict[str, Any], base: dict[str, Any]
) -> dict[str, Any]:
    ours = dict(model.named_parameters())
    missing = [name for name in base["names"] if name not in ours]
    if missing:
        raise CheckpointError(
            f"The checkpoint needs frozen weights {missing[:3]} that the model does "
            "not have; build the same model."
        )
    items = [(name, ours[name]) for name in base["names"]]
    if FingerprintCache()(items) != base["hash"]:
        raise CheckpointError(
            "The frozen weights of the model are not those of the stored run, which "
            "holds their hash only; build the model with the same pretrained weights."
        )
    return {**weights, **dict(items)}


def _restore_plugins(strategy: Any, entries: list[Any], state: dict[str, Any]) -> None:
    try:
        plugin_state.restore(strategy, entries, stored_device=state["device"])
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _prepare_teachers(strategy: Any, state: dict[str, Any], benchmark: Any) -> None:
    """Make teachers of the sizes they had, before the model itself grows."""
    service = strategy.teachers
    index = int(state["experience"])
    # Each was copied from the model before (the moving average: and grown with
    # it in) the experience that was trained last.
    last = index if state["inside"] else max(index - 1, 0)
    grown = {"initial": 0, "previous": last, "ema": last + 1}
    for kind, growth in state["teacher_growth"].items():
        if kind not in service.teachers:
            teacher = Teacher(kind, strategy.model)
            teacher._service = service
            service.teachers[kind] = teacher
        experiences = benchmark.train_stream[: grown.get(kind, last)]
        _adapt_again(service.teachers[kind].model, experiences)
        _grow(service.teachers[kind].model, growth)
        service.teachers[kind].model.to(strategy.device).requires_grad_(False)


def _restore_teachers(strategy: Any, state: dict[str, Any]) -> None:
    stored, base = state["teachers"], state["base"]
    if base is not None:
        ours = dict(strategy.model.named_parameters())
        frozen = {name: ours[name].detach() for name in base["names"]}
        filled = {k: {**frozen, **w} for k, w in stored["weights"].items()}
        stored = {**stored, "weights": filled}
    strategy.teachers.load_state_dict(stored)


def restore_running(strategy: Any, state: dict[str, Any]) -> None:
    """Load optimiser, scaler and random generators."""
    _restore_optimizer(strategy, state["optimizer"])
    if strategy._scaler is not None and state["scaler"] is not None:
        strategy._scaler.load_state_dict(state["scaler"])
    plugin_state.apply_rng(state["rng"], strategy.device)


def _restore_optimizer(strategy: Any, stored: dict[str, Any]) -> None:
    """Load the optimiser, which may have had more groups and grown parameters."""
    groups = strategy.optimizer.param_groups
    for options in stored["groups"][len(groups) :]:
        strategy.optimizer.add_param_group({"params": [], **options})
    strategy.load_optimizer_state(stored)
    named = optim.trainable(strategy.model)
    strategy._groups = [{"names": list(names)} for names in stored["names"]]
    strategy._known |= set(named)
    # Moments are found by the names of the parameters as they are now.
    strategy._optimizer_names = {id(p): n for n, p in named.items()}


__all__ = [
    "FORMAT",
    "CheckpointError",
    "apply_pending",
    "capture_state",
    "remember_base",
    "restore_model",
    "restore_running",
    "restore_state",
]
