"""State of a run as plain data, and how an interrupted one goes on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from avalanche_clip.common.fingerprint import FingerprintCache
from avalanche_clip.training.templates import optim
from avalanche_clip.training.runs import plugin_state
from avalanche_clip.training.templates.teachers import Teacher
from avalanche_clip.training.templates.visits import Visits, find_step, read_step

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
    :param experience: index of the interrupted experience, or the one behind that
        which was trained last.
    :raises TypeError: if a plugin has state that cannot be stored.
    """
    model = strategy.model
    extra = getattr(strategy, "checkpoint_extra", None)
    scaler = strategy.step.scaler
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
        "visits": strategy.visits.state_dict(),
        "seed": strategy.seed,
        "device": strategy.device.type,
        "growth": _growth(model),
        "trainable": sorted(optim.trainable(model)),
        "known": sorted(strategy.groups.known),
        "base": base,
        "model": {k: v for k, v in model.state_dict().items() if k not in omitted},
        "optimizer": {
            "class": type(strategy.optimizer).__name__,
            "names": [list(group["names"]) for group in strategy.groups.names],
            "built": strategy.groups.built,
            **strategy.optimizer_state(copied=False),
        },
        "scaler": scaler and scaler.state_dict(),
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
        if not parameter.requires_grad and name not in strategy.groups.known
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
    :param benchmark: has every experience that was trained: growth is gone through
        again by them, and replay plugins find their data there.
    :return: index of the experience to train next: the interrupted one, or the one
        behind that which was trained last.
    :raises CheckpointError: if the state is that of another kind of run, or of one
        that trained steps which the benchmark does not have.
    """
    _check_same_run(strategy, state)
    inside = state["inside"]
    strategy.visits.load_state_dict(state["visits"])
    trained = _trained(strategy, state, benchmark)
    _prepare_teachers(strategy, state, trained)
    restore_model(strategy, state, trained)
    with _as_checkpoint_error():
        optim.check_same_groups(strategy.groups.built, state["optimizer"]["built"])
    plugin_state.apply_numbers(strategy.clock, state["clock"])
    strategy.compute.load_state_dict(state["compute"])
    # What is applied again later must not be what plugins work on until then.
    plugins = copy.deepcopy(state["plugins"]) if inside else state["plugins"]
    _restore_plugins(strategy, plugins, state)
    with _as_checkpoint_error():
        plugin_state.restore_data(strategy, benchmark)
    _restore_teachers(strategy, state)
    strategy._pending = Interrupted(state) if inside else None
    if not inside:
        restore_running(strategy, state)
    return int(state["experience"])


@contextmanager
def _as_checkpoint_error() -> Iterator[None]:
    """Turn what is wrong with a stored value into a :class:`CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _trained(strategy: Any, state: dict[str, Any], benchmark: Any) -> list[Any]:
    """Experiences that the stored model has gone through, repeats included.

    Those of streams that the benchmark does not have are left out, unless growth
    needs them; replay looks for its data itself.
    """
    visits = Visits()
    visits.load_state_dict(state["visits"])
    current = state["visits"]["current"]
    visits.current = None if current is None else read_step(current)
    steps = visits.trained()
    if not any(_adapts(module) for module in strategy.model.modules()):
        steps = [step for step in steps if step.stream in benchmark.streams]
    with _as_checkpoint_error():
        found = {step: find_step(benchmark, step) for step in dict.fromkeys(steps)}
    return [found[step] for step in steps]


class Interrupted:
    """What is put back when the interrupted experience of a stored run goes on.

    :param state: from :func:`capture_state`.
    """

    def __init__(self, state: dict[str, Any]):
        self.state = state

    def check(self, strategy: Any) -> None:
        """Raise if another step than the interrupted one is about to be trained.

        :raises CheckpointError: naming both.
        """
        stored = read_step(self.state["visits"]["current"])
        current = strategy.visits.current
        if current != stored:
            same = str(current) == str(stored)
            other = "the same with other data" if same else current
            raise CheckpointError(
                f"The checkpoint stopped inside {stored}, but {other} is being trained; "
                "go on with the experience whose index load_state returned."
            )

    def apply(self, strategy: Any) -> None:
        """Apply the rest of the stored state to its experience."""
        state = self.state
        # The model grew in load_state; growing again would replace its parameters.
        _load_weights(strategy, state)
        plugin_state.apply_numbers(strategy.clock, state["clock"])
        strategy.compute.load_state_dict(state["compute"])
        _restore_plugins(strategy, copy.deepcopy(state["plugins"]), state)
        _restore_teachers(strategy, state)
        if strategy.planned_iterations != state["planned_iterations"]:
            raise CheckpointError(
                f"The checkpoint planned {state['planned_iterations']} iterations, but "
                f"the strategy plans {strategy.planned_iterations}; use the same data, "
                "batch size and budget."
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


def restore_model(strategy: Any, state: dict[str, Any], trained: Iterable[Any]) -> None:
    """Grow the model as stored, then load its weights.

    Modules with ``growth_state`` are grown from that; others go through the
    adaptations that they had again.

    :param strategy: built like the one that was stored.
    :param state: from :func:`capture_state`.
    :param trained: the experiences that the stored model was adapted to, in order.
    :raises CheckpointError: if the weights are those of another model.
    """
    _adapt_again(strategy.model, trained)
    _grow(strategy.model, state["growth"])
    strategy.model.to(strategy.device)
    _load_weights(strategy, state)
    strategy.groups.known |= set(state["known"])
    base = state["base"]
    remember_base(strategy, set() if base is None else set(base["names"]))


def _adapt_again(model: nn.Module, experiences: Iterable[Any]) -> None:
    """Call ``adaptation`` of growing modules that store no growth."""
    for experience in experiences:
        for module in list(model.modules()):
            if _adapts(module):
                module.adaptation(experience)  # type: ignore[operator]


def _adapts(module: nn.Module) -> bool:
    """Whether a module grows by experiences and stores no growth of its own."""
    own = callable(getattr(module, "load_growth_state", None))
    auto = getattr(module, "_auto_adapt", True)
    return callable(getattr(module, "adaptation", None)) and not own and auto


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
        with _as_checkpoint_error():
            load(stored)


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
    with _as_checkpoint_error():
        plugin_state.restore(strategy, entries, stored_device=state["device"])


def _prepare_teachers(strategy: Any, state: dict[str, Any], trained: list[Any]) -> None:
    """Make teachers of the sizes they had, before the model itself grows."""
    service = strategy.teachers
    # Each was copied from the model before (the moving average: and grown with
    # it in) the experience that was trained last.
    last = max(len(trained) - 1, 0)
    grown = {"initial": 0, "previous": last, "ema": last + 1}
    for kind, growth in state["teacher_growth"].items():
        if kind not in service.teachers:
            teacher = Teacher(kind, strategy.model)
            teacher._service = service
            service.teachers[kind] = teacher
        experiences = trained[: grown.get(kind, last)]
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
    scaler = strategy.step.scaler
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    plugin_state.apply_rng(state["rng"], strategy.device)


def _restore_optimizer(strategy: Any, stored: dict[str, Any]) -> None:
    """Load the optimiser, which may have had more groups and grown parameters."""
    with _as_checkpoint_error():
        _match_groups(strategy, [options["owner"] for options in stored["groups"]])
        strategy.load_optimizer_state(stored)
    strategy.groups.resumed(stored["names"], strategy.model)


def _match_groups(strategy: Any, owners: list[str]) -> None:
    """Add empty groups where the stored optimiser had more.

    Between experiences those of plugins go where it had fewer: the next experience
    makes them again.
    """
    optimizer = strategy.optimizer
    if strategy._pending is None:
        optimizer.param_groups[:] = [
            group
            for group in optimizer.param_groups
            if group["owner"] in owners or group["owner"].startswith("rule ")
        ]
    have = {group["owner"] for group in optimizer.param_groups}
    for owner in owners:
        if owner not in have:
            optimizer.add_param_group({"params": [], "owner": owner})
