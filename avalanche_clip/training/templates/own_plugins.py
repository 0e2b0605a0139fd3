"""What holds for plugins that users write: names of hooks, and what is stored."""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import copy
from typing import Any

import numpy as np

from avalanche_clip.common.checks import closest

_ALIKE = 0.92
"""How alike the names of a method and of a hook are that was probably meant."""
_LONG = {
    "train": "training",
    "experience": "exp",
    "eval": "evaluation",
    "iter": "iteration",
}
"""Words that hooks have in one form only -> that form, for the comparison."""
_AVALANCHE = "avalanche."


def check_names(cls: type, hooks: Iterable[str], *, checked: type = object) -> None:
    """Raise for a method that was meant to be a hook, and would never be called.

    Classes of Avalanche among the bases are not looked at.

    :param cls: of a plugin.
    :param hooks: names that a plugin's methods are called by.
    :param checked: bases that come from it have been looked at.
    :raises TypeError: naming the method and the hook.
    """
    spelled = {_spelled(hook): hook for hook in hooks}
    for base in cls.__mro__:
        known = issubclass(base, checked) if checked is not object else base is object
        if base is not cls and (known or base.__module__.startswith(_AVALANCHE)):
            continue
        for name, value in vars(base).items():
            if name.startswith("_") or not callable(value) or name in hooks:
                continue
            meant = closest(_spelled(name), spelled, cutoff=_ALIKE)
            if meant is not None:
                raise TypeError(
                    f"{cls.__name__}.{name} is never called. Did you mean "
                    f"{spelled[meant]!r}? A method of another purpose needs a name "
                    "less like that of a hook."
                )


def check_slots(cls: type) -> None:
    """Raise TypeError for ``__slots__``, whose values nobody would store."""
    for base in cls.__mro__:
        if vars(base).get("__slots__"):
            raise TypeError(
                f"{cls.__name__} has __slots__ {base.__slots__!r}, whose values "  # type: ignore[attr-defined]
                "checkpoints would not hold; leave __slots__ out."
            )


def is_stock(plugin: Any) -> bool:
    """Whether a plugin is one of Avalanche's, or made of one."""
    stock = f"{_AVALANCHE}training."
    return any(base.__module__.startswith(stock) for base in type(plugin).__mro__)


def plain_state(plugin: Any, names: Iterable[str] = (), *, give: str) -> dict[str, Any]:
    """Attributes of a plugin that are stored by themselves.

    :param plugin: any object.
    :param names: attributes that are stored beside the plain ones; if there are any,
        all others are left out.
    :param give: what to do about an attribute of another kind, for the message.
    :raises TypeError: without ``names``, for an attribute that is not plain.
    """
    have = vars(plugin).items()
    for name, value in have:
        if not (names or _is_flat(value)):
            raise TypeError(
                f"{type(plugin).__name__}.{name} is a {type(value).__name__}, which "
                "is not stored by itself (numbers, strings, bools, None and flat "
                f"lists of them are): a resumed run would differ. {give}"
            )
    return {k: copy(v) for k, v in have if k in names or _is_flat(v)}


def _is_flat(value: Any) -> bool:
    parts = value if type(value) in (list, tuple) else [value]
    atoms = (bool, int, float, str, type(None))  # an enum's member is none
    kinds = (np.number, np.bool_, np.str_)
    return all(type(part) in atoms or isinstance(part, kinds) for part in parts)


def _spelled(name: str) -> str:
    """A name with the words that hooks use: ``before_train_experience``, too."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return "_".join(_LONG.get(word, word) for word in snake.split("_"))
