"""Options of the CLIP templates, checked when a strategy is built."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
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
    require_type,
)
from avalanche_clip.training.templates.order import WORKER_OPTIONS
from avalanche_clip.training.templates.plan import SCHEDULES
from avalanche_clip.training.templates.sharding import SHARDINGS
from avalanche_clip.training.templates.step import PRECISIONS

PEVAL_MODES = ("epoch", "iteration", "experience")
"""What Avalanche's periodic evaluation counts."""


def known_options(cls: type) -> set[str]:
    """Names of the keywords that the constructors of a strategy take."""
    made: list[Any] = [c.__init__ for c in cls.__mro__]  # type: ignore[misc]
    parameters = [p for m in made for p in inspect.signature(m).parameters.values()]
    open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in parameters if p.kind not in open_ended} - {"self"}


def shown_signature(cls: Any) -> inspect.Signature:
    """All keywords of a strategy with their defaults, those of its bases too.

    :param cls: a strategy. What it ``sets`` itself is left out, and ``own_defaults``
        are shown instead of those of its bases.
    """
    found: dict[str, inspect.Parameter] = {}
    defaults: dict[str, Any] = {}
    fixed: set[str] = {cls.former_options}
    for base in cls.__mro__:
        for name, value in vars(base).get("own_defaults", {}).items():
            defaults.setdefault(name, value)
        init = inspect.unwrap(vars(base).get("__init__", object))
        own = init.__qualname__ == f"{base.__qualname__}.__init__"
        # Avalanche gives each class one that wraps its base's.
        named = inspect.signature(init).parameters if own else {}
        for name, parameter in named.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in fixed:
                if name in defaults and name not in found:
                    parameter = parameter.replace(default=defaults[name])
                found.setdefault(name, parameter)
        fixed |= set(vars(base).get("sets", ()))
        if base.__name__ == "CLIPTemplate":  # Avalanche's are set by it
            break
    first = [found.pop("model")] if "model" in found else []
    return inspect.Signature([*first, *found.values()])


def as_rates(lr: Any) -> tuple[float, ...]:
    """Return a learning rate, or one per experience, as numbers.

    :raises ValueError: for one that is not positive, or none.
    """
    wanted = f"lr={lr} must be a positive number, or one per experience; one rate"
    if not isinstance(lr, (Real, Iterable)) or isinstance(lr, (str, bytes)):
        raise ValueError(f"{wanted} is no number.")
    rates = (lr,) if isinstance(lr, Real) else tuple(lr)
    if not rates:
        raise ValueError(f"{wanted} is needed.")
    return tuple(as_finite(rate, wanted, above=0) for rate in rates)


def at_rate(
    make: Callable[..., Any],
    rate: float,
    own_rule: bool,
    groups: Sequence[dict[str, Any]],
) -> Any:
    """Build an optimiser at another learning rate than its default.

    :param make: builds it from groups.
    :param rate: of groups without one of their own.
    :param own_rule: whether the groups are the user's.
    """
    if own_rule and all("lr" in group for group in groups):
        raise ValueError(
            f"lr={rate} has no effect: each group of param_groups has a learning rate "
            "of its own; leave one of them out."
        )
    return make([{"lr": rate, **group} for group in groups])


def further_options(
    strategy: Any,
    plugin: Callable[..., Any],
    given: Mapping[str, Any] | None,
    taken: Iterable[str] = (),
    former: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Check the ``plugin_options`` of a strategy, which its own plugin gets.

    :param strategy: that got them.
    :param plugin: that gets them.
    :param given: by name.
    :param taken: names that the strategy gives to the plugin itself.
    :param former: what was given under their former name, ``former_options``.
    :raises TypeError: for names that the plugin does not have, or that are taken.
    """
    if former is not None:
        name = strategy.former_options
        if given is not None:
            raise TypeError(f"{name} is called plugin_options now; give the latter.")
        warnings.warn(
            f"{name} is called plugin_options now, as with every strategy.",
            DeprecationWarning,
            stacklevel=4,
        )
        given = former
    return require_options("plugin_options", given, plugin, taken)


def require_options(
    what: str,
    given: Mapping[str, Any] | None,
    target: Callable[..., Any],
    taken: Iterable[str] = (),
) -> dict[str, Any]:
    """Raise unless options are those of what gets them, and return them.

    :param what: how they are called.
    :param given: by name; None for none.
    :param target: class or function that gets them.
    :param taken: names that it gets already.
    :raises TypeError: for names that it does not have, or that are taken.
    """
    options: Mapping[str, Any] = {} if given is None else given
    require_type(options, Mapping, what, f"a dict of options of {target.__name__}")
    known = set(inspect.signature(target).parameters)
    if own := sorted(options.keys() & set(taken)):
        raise TypeError(
            f"{what} has {own}, which {target.__name__} gets already, as set or as an "
            "argument beside it; leave them out there."
        )
    if unknown := sorted(options.keys() - known):
        raise TypeError(
            f"{what} has {unknown}, which {target.__name__} does not take; it takes "
            f"{', '.join(sorted(known - set(taken)))}.{did_you_mean(unknown, known)}"
        )
    return dict(options)


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
    require_choice("sharding", options["sharding"], SHARDINGS)
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
