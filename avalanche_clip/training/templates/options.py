"""Options of the CLIP templates, checked when a strategy is built."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from avalanche_clip.common.checks import (
    as_finite,
    as_integer,
    as_size,
    closest,
    did_you_mean,
    require_choice,
)
from avalanche_clip.training.templates.order import WORKER_OPTIONS
from avalanche_clip.training.templates.plan import SCHEDULES
from avalanche_clip.training.templates.step import PRECISIONS

PEVAL_MODES = ("epoch", "iteration", "experience")
"""What Avalanche's periodic evaluation counts."""


def known_options(cls: type) -> set[str]:
    """Names of the keywords that the constructors of a strategy take."""
    made: list[Any] = [c.__init__ for c in cls.__mro__]  # type: ignore[misc]
    parameters = [p for m in made for p in inspect.signature(m).parameters.values()]
    open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in parameters if p.kind not in open_ended} - {"self"}


def refuse_unknown(cls: type, unknown: list[str]) -> None:
    """Raise TypeError naming keywords that a strategy does not take."""
    if unknown:
        meant = did_you_mean(unknown, known_options(cls))
        raise TypeError(
            f"{cls.__name__} got unknown argument(s) {unknown}; see CLIPTemplate for "
            f"those that every strategy takes.{meant}"
        )


def check_keywords(
    where: str, given: Collection[str], strategy: Any, also: Iterable[str] = ()
) -> None:
    """Raise for keywords of a call that would go nowhere.

    Callbacks of plugins may take any; those of a ``DataLoader`` that the templates set
    themselves are refused, and those that look like a misspelled one.

    :param where: name of the call.
    :param given: the keywords.
    :param strategy: whose loaders, optimiser and plugins take keywords.
    :param also: further names that the call takes.
    :raises TypeError: naming the keyword.
    """
    if not given:
        return
    makers = ("make_train_dataloader", "make_optimizer", "check_model_and_optimizer")
    takers = [getattr(strategy, name) for name in makers]
    named = {p for taker in takers for p in inspect.signature(taker).parameters}
    named.update(*(contract.keywords() for contract in strategy.contracts))
    known = {*WORKER_OPTIONS, *named, *also} - {"self", "strategy", "args", "kwargs"}
    fixed = set(inspect.signature(DataLoader).parameters)
    for name in sorted(set(given) - known):
        if name in fixed or closest(name, known) is not None:
            raise TypeError(
                f"{where}() got {name!r}, which has no effect; it takes "
                f"{', '.join(sorted({*WORKER_OPTIONS, 'shuffle', 'drop_last'}))} and "
                f"keywords of plugins' callbacks.{did_you_mean(name, known)}"
            )


def check_options(**options: Any) -> dict[str, Any]:
    """Return the options of :class:`CLIPTemplate` with Python's own numbers.

    :raises ValueError: for one outside its range.
    """
    found = dict(options)
    require_choice("schedule", options["schedule"], SCHEDULES)
    require_choice("precision", options["precision"], PRECISIONS)
    require_choice("peval_mode", options["peval_mode"], PEVAL_MODES)
    epochs = options["train_epochs"]
    hint = "or a list with one per experience"
    if isinstance(epochs, (list, tuple)) and epochs:
        found["train_epochs"] = [as_size(n, "train_epochs", hint=hint) for n in epochs]
    else:
        found["train_epochs"] = as_size(epochs, "train_epochs", hint=hint)
    for name in ("accumulation_steps", "train_mb_size", "eval_mb_size"):
        if name != "eval_mb_size" or options[name] is not None:
            found[name] = as_size(options[name], name)
    for name in ("warmup_iterations", "later_warmup_iterations"):
        found[name] = as_size(options[name], name, least=0)
    every = options["eval_every"]
    found["eval_every"] = as_size(every, "eval_every", least=-1, hint="-1 is never")
    try:
        found["seed"] = as_integer(options["seed"], "seed")
    except ValueError:
        raise ValueError(f"seed={options['seed']!r} must be an integer.") from None
    clip = options["clip_grad_norm"]
    if clip is not None:
        hint = "None clips nothing"
        found["clip_grad_norm"] = as_finite(clip, "clip_grad_norm", above=0, hint=hint)
    return found


def warn_batch_norm(model: nn.Module) -> None:
    """Warn where the parts of a batch do not equal the whole one."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if any(isinstance(m, norms) for m in model.modules()):
        warnings.warn(
            "The model has batch normalisation: statistics of chunks differ from those "
            "of the whole batch, so accumulation does not equal the big batch.",
            stacklevel=3,
        )
