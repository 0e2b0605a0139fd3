"""Names that were probably meant, for messages about unknown ones."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable
from typing import Any


def closest(value: Any, allowed: Iterable[Any]) -> Any:
    """Return the allowed value that is spelled most like another, or None.

    Case, hyphens, underscores and spaces do not count.

    :param value: what was given; only strings have a neighbour.
    :param allowed: what could have been given.

    >>> closest("Const_Cosine", ("constant", "cosine", "const-cosine"))
    'const-cosine'
    >>> closest("linear", ("constant", "cosine")) is None
    True
    """
    if not isinstance(value, str):
        return None
    known = {_plain(option): option for option in allowed if isinstance(option, str)}
    found = difflib.get_close_matches(_plain(value), known, n=1, cutoff=0.6)
    return known[found[0]] if found else None


def did_you_mean(value: Any, allowed: Iterable[Any]) -> str:
    """Return the sentence that names the closest allowed value, or nothing.

    :param value: what was given, or several of it: the first with a neighbour counts.
    :param allowed: what could have been given.
    :return: text with a leading space, to be put behind a message.

    >>> did_you_mean("cosin", ("constant", "cosine"))
    " Did you mean 'cosine'?"
    """
    options = list(allowed)
    given = value if isinstance(value, (list, tuple, set, frozenset)) else (value,)
    for one in given:
        found = closest(one, options)
        if found is not None:
            return f" Did you mean {found!r}?"
    return ""


def require_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise unless an option has one of its values.

    :param name: of the option.
    :param value: what was given.
    :param allowed: what it may be.
    :raises ValueError: naming the option, what was given, what is allowed, and what
        was probably meant.
    """
    options = tuple(allowed)
    if isinstance(value, Hashable) and value in options:
        return
    shown = ", ".join(repr(option) for option in options)
    raise ValueError(
        f"{name}={value!r} is unknown; use one of {shown}."
        f"{did_you_mean(value, options)}"
    )


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c not in "-_ ")


__all__ = ["closest", "did_you_mean", "require_choice"]
