"""State-dict checkpoints between and inside experiences.

A checkpoint is plain data (tensors, numbers, strings), readable with
``torch.load(path, weights_only=True)``. It holds no images: replay buffers are
stored as counts or sample ids. Work-around for ``save_checkpoint`` of
avalanche-lib 0.6.0, which pickles the whole strategy and fails on any
optimiser with current dill and typing_extensions.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from avalanche_clip import distributed
from avalanche_clip.common.randomness import rng_state, set_rng_state
from avalanche_clip.common.rollback import undone_on_error
from avalanche_clip.common.shard_files import remove_shards, write_shards
from avalanche_clip.common.state_files import (
    FORMAT,
    CheckpointError,
    not_finite,
    read_state,
    require_finite,
    write_state,
)
from avalanche_clip.models.stored import base_weights, load_weights
from avalanche_clip.training.runs import plugin_state
from avalanche_clip.training.runs.identity import (
    require_same_strategy,
    strategy_identity,
)
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.frozen_base import without_base
from avalanche_clip.training.templates.order import TrainLoader
from avalanche_clip.training.templates.settings import note_built
from avalanche_clip.training.templates.sharding import (
    cut_moments,
    whole,
    without_cut,
)
from avalanche_clip.training.templates.stock_memories import exact_inside
from avalanche_clip.training.templates.teachers import Teacher
from avalanche_clip.training.templates.visits import (
    Visits,
    find_step,
    read_step,
    require_step,
)

logger = logging.getLogger(__name__)

_STEP_COUNTERS = (
    "train_iterations",
    "train_exp_iterations",
    "train_epoch_iterations",
    "total_iterations",
)


# -------------------------------------------------------------------- saving
def save_state(strategy: Any, path: str | Path) -> Path:
    """Write a checkpoint of a run, atomically.

    May be called between experiences and inside one: from an
    ``iteration_completed`` hook, when all plugins are done with the step, or from
    ``before_training_iteration`` or ``after_training_iteration``, where metrics and
    plugins that come later in the list have not seen the step yet. With several
    processes only the main one writes.

    :param strategy: a strategy of this package.
    :param path: file to write, whole or not at all.
    :return: the path.
    :raises TypeError: if a plugin has state that cannot be stored; give it
        ``state_dict`` and ``load_state_dict``, or use
        :func:`register_plugin_state`.
    :raises RuntimeError: during an evaluation, before ``before_training_epoch``
        of an experience, between the forward pass of a step and
        ``after_training_iteration``, or in ``after_training_exp``.
    :raises CheckpointError: if weights are not finite; nothing is written.
    """
    path = Path(path).expanduser()
    inside = strategy.experience is not None
    _require_moment(strategy, inside)
    with whole(strategy.step):
        return _save_whole(strategy, path, inside)


def _save_whole(strategy: Any, path: Path, inside: bool) -> Path:
    bad = _broken_weights(strategy)
    if bad:  # on all processes alike
        raise CheckpointError(
            f"{path} is not written: {len(bad)} weights are not finite ("
            f"{bad[0]}, ...). Go back to an earlier checkpoint, and lower the learning "
            "rate or clip gradients (clip_grad_norm)."
        )
    moments = cut_moments(strategy)
    shards = write_shards(moments, path) if moments else None
    if not distributed.is_main_process():
        return path
    if inside:
        _warn_inexact(strategy)
    index = strategy.experience_index
    state = capture_state(strategy, inside=inside, experience=index)
    if inside and strategy.step_phase == "counting":
        # The clock counts a step after all plugins have run.
        for name in _STEP_COUNTERS:
            state["clock"][name] += 1
    if shards:
        state["shards"] = shards
    write_state(state, path)
    remove_shards(path, but=shards["folder"] if shards else None)
    return path


def _require_moment(strategy: Any, inside: bool) -> None:
    """Raise at a moment of a run that cannot be resumed."""
    phase = strategy.step_phase if inside else ""
    if inside and not strategy.is_training:
        why = "during an evaluation, which cannot be resumed; call it before or after."
    elif phase == "open":
        why = (
            "in the middle of a step, or while an experience is being set up, which "
            "cannot be resumed; call it in after_training_iteration, "
            "iteration_completed, or between experiences."
        )
    elif phase == "closing":
        why = (
            "in after_training_exp: the hooks of that moment would run twice in a "
            "resumed run. Call it in experience_completed (as CheckpointPlugin does), "
            "or after train() returns."
        )
    else:
        return
    raise RuntimeError(f"save_state was called {why}")


def _broken_weights(strategy: Any) -> list[str]:
    trained = strategy.groups.known | set(optim.trainable(strategy.model))
    named = dict(strategy.model.named_parameters())
    tensors: dict[str, Any] = {k: v for k, v in named.items() if k in trained}
    return not_finite({**tensors, **dict(strategy.model.named_buffers())}, trained)


def _warn_inexact(strategy: Any) -> None:
    if not strategy.warned_inexact and not exact_inside(strategy):
        strategy.warned_inexact = True
        warnings.warn(
            f"Batches of {type(strategy.dataloader).__name__} or of a stock memory "
            "cannot be drawn again: a run resumed from a checkpoint inside this "
            "experience differs. Stock replay, GDumb and A-GEM resume exactly between "
            "experiences only; BudgetedReplayPlugin also inside.",
            stacklevel=3,
        )


def capture_state(strategy: Any, *, inside: bool, experience: int) -> dict[str, Any]:
    """Collect the state of a run as plain data.

    Tensors are those of the run, not copies: write them before it goes on.

    :param strategy: a strategy of this package.
    :param inside: whether ``experience`` has begun.
    :param experience: index of the interrupted experience, or the one behind that
        which was trained last.
    :raises TypeError: if a plugin has state that cannot be stored.
    """
    model, run, scaler = strategy.model, strategy.run, strategy.step.scaler
    base = strategy.frozen_base.unchanged()
    omitted = set(base["names"])
    teachers = strategy.teachers.state_dict()
    for kind, weights in teachers["weights"].items():
        teachers["weights"][kind] = without_base(weights, model, omitted)
    return {
        "format": FORMAT,
        "identity": strategy_identity(strategy) if run is None else run.identity,
        "experience": experience,
        "inside": inside,
        "visits": strategy.visits.state_dict(),
        "device": strategy.device.type,
        "growth": _growth(model),
        "trainable": sorted(optim.trainable(model)),
        "known": sorted(strategy.groups.known),
        "base": base,
        "model": {k: v for k, v in model.state_dict().items() if k not in omitted},
        "optimizer": {
            "names": [list(group["names"]) for group in strategy.groups.names],
            **without_cut(strategy.optimizer_state(copied=False)),
        },
        "scaler": scaler and scaler.state_dict(),
        "clock": _counters(strategy.clock),
        "planned_iterations": strategy.planned_iterations,
        "readers": _readers(strategy) if inside else 0,
        "compute": strategy.compute.state_dict(),
        "teachers": teachers,
        "teacher_growth": {
            kind: _growth(teacher.model)
            for kind, teacher in strategy.teachers.teachers.items()
        },
        "plugins": plugin_state.collect(strategy),
        "rng": rng_state(strategy.device),
        "run": None if run is None else run.state_dict(),
    }


def _readers(strategy: Any) -> int:
    """Readers of the stream that is trained on, 0 where batches depend on none."""
    loader = strategy.dataloader
    return loader.readers if isinstance(loader, TrainLoader) else 0


def _counters(clock: Any) -> dict[str, int]:
    public = {k: v for k, v in vars(clock).items() if not k.startswith("_")}
    return {k: v for k, v in public.items() if type(v) in (int, float)}


def _growth(model: nn.Module) -> dict[str, Any]:
    return {
        name: module.growth_state()
        for name, module in model.named_modules()
        if _stores_growth(module)
    }


# ------------------------------------------------------------------- loading
def load_state(strategy: Any, path: str | Path, benchmark: Any) -> int:
    """Put a fresh strategy where a stored run was.

    Model, counters and plugins are restored at once. If the run stopped inside
    an experience, everything but growth is applied again right after that
    experience's ``before_training_exp``, when it is trained next, so nothing
    is copied, drawn or grown twice. If it fails, the strategy is as it was before.

    The file knows the settings of the run, and if :func:`run_stream` wrote it also
    the data of the training stream (see :func:`content_hash`): others are refused.

    :param strategy: built like the one that was stored, not yet trained.
    :param path: written by :func:`save_state`.
    :param benchmark: the same prepared benchmark, with every step that was trained;
        gives replay its data.
    :return: index of the experience to train next: the interrupted one, if the run
        stopped inside, else the one behind that which was trained last.
    :raises CheckpointError: if the file is damaged, holds weights that are not
        finite, or was written by another kind of run.
    """
    path = Path(path).expanduser()
    state = read_state(path)
    require_finite(state, path)
    with undone_on_error(strategy):
        strategy.check_setup()  # of plugins that were appended, too
        benchmark = strategy.as_trained(benchmark)
        require_same_strategy(state["identity"], strategy, benchmark, path)
        return restore_state(strategy, state, benchmark, path)


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn what is wrong with a stored value into a :class:`CheckpointError`."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def restore_state(
    strategy: Any, state: dict[str, Any], benchmark: Any, path: Path
) -> int:
    """Put a fresh strategy where a stored run was.

    :param strategy: built like the one that was stored.
    :param state: from :func:`capture_state`; not changed.
    :param benchmark: has every experience that was trained: growth is gone through
        again by them, and replay plugins find their data there.
    :param path: where the state comes from, for errors.
    :return: index of the experience to train next: the interrupted one, or the one
        behind that which was trained last.
    :raises CheckpointError: if the state is that of another model, or of a run that
        trained steps which the benchmark does not have.
    """
    if state["device"] != strategy.device.type:
        logger.warning(
            "The checkpoint was written on %s and goes on on %s: results are not "
            "bit-identical.",
            state["device"],
            strategy.device.type,
        )
    note_built(strategy)
    with _refused(path):
        strategy.visits.load_state_dict(state["visits"])
        trained = _trained(strategy, state["visits"], benchmark)
        _prepare_teachers(strategy, state["teacher_growth"], trained)
        _adapt_again(strategy.model, trained)
        _grow(strategy.model, state["growth"])
        strategy.model.to(strategy.device)
        strategy.groups.known |= set(state["known"])
        _restore_learned(strategy, state)
        strategy.frozen_base.note(set(state["base"]["names"]))
        plugin_state.restore_data(strategy, benchmark)
        inside = state["inside"]
        strategy._pending = Interrupted(state, path) if inside else None
        if not inside:
            _restore_running(strategy, state)
    return int(state["experience"])


class Interrupted:
    """The stored state of an experience that is still to be gone on with.

    :param state: from :func:`capture_state`, inside an experience.
    :param path: where it comes from, for errors.
    """

    def __init__(self, state: dict[str, Any], path: Path):
        self.state, self.path = state, path
        self.then: Callable[[], None] | None = None
        """Called when the state has been put back."""

    def check(self, strategy: Any) -> None:
        """Raise if another step is about to be trained.

        :raises CheckpointError: naming both.
        """
        stored = read_step(self.state["visits"]["current"])
        current = strategy.visits.current
        if current != stored:
            same = str(current) == str(stored)
            other = "the same with other data" if same else current
            raise CheckpointError(
                f"{self.path}: The checkpoint stopped inside {stored}, but {other} is "
                "being trained; go on with the experience whose index load_state "
                "returned."
            )

    def apply(self, strategy: Any) -> None:
        """Put back all but growth: growing again would replace parameters."""
        planned = self.state["planned_iterations"]
        with _refused(self.path):
            _restore_learned(strategy, self.state)
            if strategy.planned_iterations != planned:
                raise ValueError(
                    f"The checkpoint planned {planned} iterations, but the strategy "
                    f"plans {strategy.planned_iterations}; use the same data and "
                    "number of processes."
                )
            _restore_running(strategy, self.state)
        before, now = self.state.get("readers", 0), _readers(strategy)
        if before and before != now:
            logger.warning(
                "%s was written with %d readers of a stream (workers of all processes),"
                " now there are %d: the rest of this step draws other samples than it "
                "would have, some of them again.",
                self.path,
                before,
                now,
            )
        if self.then is not None:
            self.then()


def _restore_learned(strategy: Any, state: dict[str, Any]) -> None:
    """Load weights, counters, plugins and teachers into what has grown."""
    frozen = base_weights(strategy.model, state["base"])
    load_weights(strategy.model, {**state["model"], **frozen}, set(state["trainable"]))
    vars(strategy.clock).update(state["clock"])
    strategy.compute.load_state_dict(state["compute"])
    # What is applied again later must not be what plugins work on until then.
    plugins = copy.deepcopy(state["plugins"]) if state["inside"] else state["plugins"]
    plugin_state.restore(strategy, plugins, stored_device=state["device"])
    teachers = state["teachers"]
    filled = {kind: {**frozen, **w} for kind, w in teachers["weights"].items()}
    strategy.teachers.load_state_dict({**teachers, "weights": filled})


def _restore_running(strategy: Any, state: dict[str, Any]) -> None:
    """Load optimiser, scaler and random generators."""
    strategy.groups.resume(
        strategy.optimizer,
        strategy.model,
        state["optimizer"],
        inside=strategy._pending is not None,
    )
    scaler = strategy.step.scaler
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    set_rng_state(state["rng"], strategy.device)


# ------------------------------------------------------------------- growing
def _trained(strategy: Any, stored: dict[str, Any], benchmark: Any) -> list[Any]:
    """Experiences that the stored model has gone through, repeats included.

    Where nothing grows by them, only their data are compared, and what is returned
    stands for them: a stream may be long. Those of streams that the benchmark does not
    have are then left out; replay looks for its data itself.
    """
    visits = Visits()
    visits.load_state_dict(stored)
    current = stored["current"]
    visits.current = None if current is None else read_step(current)
    steps = visits.trained()
    if not any(_adapts(module) for module in strategy.model.modules()):
        steps = [step for step in steps if step.stream in benchmark.streams]
        for step in dict.fromkeys(steps):
            require_step(benchmark, step)
        return steps
    found = {step: find_step(benchmark, step) for step in dict.fromkeys(steps)}
    return [found[step] for step in steps]


def _adapts(module: nn.Module) -> bool:
    """Whether a module grows by experiences and stores no growth of its own."""
    auto = getattr(module, "_auto_adapt", True)  # of Avalanche's modules
    own = _stores_growth(module)
    return callable(getattr(module, "adaptation", None)) and not own and auto


def _stores_growth(module: Any) -> bool:
    """Whether a module has ``growth_state()`` and ``load_growth_state(state)``."""
    return hasattr(type(module), "load_growth_state")


def _adapt_again(model: nn.Module, experiences: Iterable[Any]) -> None:
    """Call ``adaptation`` of growing modules that store no growth."""
    for experience in experiences:
        for module in list(model.modules()):
            if _adapts(module):
                module.adaptation(experience)  # type: ignore[operator]


def _grow(model: nn.Module, growth: dict[str, Any]) -> None:
    # Parents come first, so modules that a parent makes are found.
    for name, stored in growth.items():
        module: Any = dict(model.named_modules()).get(name)
        if not _stores_growth(module):
            raise ValueError(
                f"The checkpoint holds a growing module {name!r}, but the model has "
                "none of that name with load_growth_state; build the same model."
            )
        module.load_growth_state(stored)


def _prepare_teachers(
    strategy: Any, growth: dict[str, Any], trained: list[Any]
) -> None:
    """Make teachers of the sizes they had, before the model itself grows."""
    service = strategy.teachers
    # Each was copied from the model before (the moving average: and grown with
    # it in) the experience that was trained last.
    last = max(len(trained) - 1, 0)
    grown = {"initial": 0, "previous": last, "ema": last + 1}
    for kind, stored in growth.items():
        if kind not in service.teachers:
            service.teachers[kind] = Teacher(kind, strategy.model, strategy)
        model = service.teachers[kind].model
        _adapt_again(model, trained[: grown.get(kind, last)])
        _grow(model, stored)
        model.to(strategy.device).requires_grad_(False)
