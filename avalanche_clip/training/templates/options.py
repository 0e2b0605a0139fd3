"""Options of the CLIP templates, checked when a strategy is built."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from torch import nn

from avalanche_clip._numbers import as_finite, as_integer, as_size
from avalanche_clip._suggest import did_you_mean, require_choice
from avalanche_clip.training.schedules import SCHEDULES
from avalanche_clip.training.templates.step_mixin import PRECISIONS


def known_options(cls: type) -> set[str]:
    """Names of the keywords that the constructors of a strategy take."""
    parameters = [p for c in cls.__mro__ for p in _parameters(c)]
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


def _parameters(cls: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(cls.__init__).parameters.values())


def check_options(**options: Any) -> None:
    """Raise ValueError for an option of :class:`CLIPTemplate` outside its range."""
    require_choice("schedule", options["schedule"], SCHEDULES)
    require_choice("precision", options["precision"], PRECISIONS)
    for name in ("accumulation_steps", "train_mb_size", "train_epochs"):
        as_size(options[name], name)
    for name in ("warmup_iterations", "later_warmup_iterations"):
        as_size(options[name], name, least=0)
    if options["eval_mb_size"] is not None:
        as_size(options["eval_mb_size"], "eval_mb_size")
    as_size(options["eval_every"], "eval_every", least=-1)
    try:
        as_integer(options["seed"], "seed")
    except ValueError:
        raise ValueError(f"seed={options['seed']!r} must be an integer.") from None
    clip = options["clip_grad_norm"]
    if clip is not None:
        as_finite(clip, "clip_grad_norm", above=0, hint="None clips nothing")


def warn_batch_norm(model: nn.Module) -> None:
    """Warn where the parts of a batch do not equal the whole one."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if any(isinstance(m, norms) for m in model.modules()):
        warnings.warn(
            "The model has batch normalisation: statistics of chunks differ from those "
            "of the whole batch, so accumulation does not equal the big batch.",
            stacklevel=3,
        )


__all__ = ["check_options", "known_options", "refuse_unknown", "warn_batch_norm"]
