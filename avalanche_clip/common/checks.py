"""Checks of what users give, in one home.

Each says what was given, what is allowed and what to do, and returns the value
where it had to be converted. ``require_...`` refuses, ``as_...`` converts too.
What is checked may come from NumPy or torch; neither is imported.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Hashable, Iterable, Iterator, Mapping, Set, Sized
from pathlib import Path
from typing import Any


def as_integer(value: Any, what: str) -> int:
    """Return an integer as Python's own.

    :param value: an ``int``, or an integer of numpy or of a 0-d tensor.
    :param what: what it is, for the message.
    :raises ValueError: for anything else, such as ``1.0``, ``"1"`` or ``True``.

    >>> import numpy as np
    >>> as_integer(np.int64(3), "order")
    3
    """
    if not _is_flag(value) and getattr(value, "ndim", 0) == 0:
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError(
        f"{what} is {value!r}, of type {type(value).__name__}; give an integer."
    )


def as_size(value: Any, what: str, *, least: int = 1, hint: str = "") -> int:
    """Return a number of things as Python's integer, at least ``least``.

    :param value: see :func:`as_integer`; neither a flag nor a float.
    :param what: name of the argument, for the message.
    :param least: smallest number allowed.
    :param hint: what else the argument may be, for the message.
    :raises ValueError: for anything else.

    >>> as_size(4, "chunk_size")
    4
    """
    try:
        number = as_integer(value, what)
    except ValueError:
        number = least - 1
    if number < least:
        also = f" ({hint})" if hint else ""
        raise ValueError(f"{what}={value!r} must be an integer >= {least}{also}.")
    return number


def as_integers(values: Iterable[Any], what: str) -> list[int]:
    """Return integers as a list, see :func:`as_integer`.

    :param values: a list, array or one-dimensional tensor; no string.
    :param what: what they are, for the message.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{what}={values!r} must be a list of integers.")
    return [as_integer(value, f"An entry of {what}") for value in values]


def as_finite(
    value: Any,
    what: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    hint: str = "",
) -> float:
    """Return a number as Python's float, finite and within bounds.

    :param value: a number, of numpy or of a 0-d tensor too; no flag, no text.
    :param what: name of the argument, for the message.
    :param low: smallest number allowed.
    :param high: largest number allowed.
    :param above: number that it must exceed.
    :param below: number that it must stay below.
    :param hint: what else the argument may be, for the message.
    :raises ValueError: for anything else, NaN and infinity included.

    >>> as_finite(1, "margin", low=0), as_finite(0.5, "fraction", above=0, high=1)
    (1.0, 0.5)
    """
    number = math.nan
    if not _is_flag(value) and not isinstance(value, (str, bytes)):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    # Comparisons with NaN are false.
    if math.isfinite(number) and low <= number <= high and above < number < below:
        return number
    also = f" ({hint})" if hint else ""
    left, right = max(low, above), min(high, below)
    if math.isfinite(right):
        start, end = "[" if left == low else "(", "]" if right == high else ")"
        wanted = f"lie in {start}{left:g}, {right:g}{end}"
    elif left == 0:
        wanted = "not be negative, and finite" if low == 0 else "be positive and finite"
    else:
        wanted = "be a finite number"
        wanted += f" of at least {left:g}" if math.isfinite(left) else ""
    raise ValueError(f"{what}={value!r} must {wanted}{also}.")


def closest(value: Any, allowed: Iterable[Any], *, cutoff: float = 0.6) -> Any:
    """Return the allowed value that is spelled most like another, or None.

    Case, hyphens, underscores and spaces do not count.

    :param value: what was given; only strings have a neighbour.
    :param allowed: what could have been given.
    :param cutoff: how alike they must be, see ``difflib``.

    >>> closest("Const_Cosine", ("constant", "cosine", "const-cosine"))
    'const-cosine'
    >>> closest("linear", ("constant", "cosine")) is None
    True
    """
    if not isinstance(value, str):
        return None
    known = {_plain(option): option for option in allowed if isinstance(option, str)}
    found = difflib.get_close_matches(_plain(value), known, n=1, cutoff=cutoff)
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


def require_known(given: Iterable[Any], known: Iterable[Any], what: str) -> None:
    """Raise unless every name is one of the known ones.

    :param given: names, for example the keys of an options' dict.
    :param known: what they may be.
    :param what: what they are, for the message: ``"keys"``.
    :raises ValueError: naming the unknown ones, all known, and what was meant.

    >>> require_known(["seed"], ["seed", "lr"], "options")
    """
    options = list(known)
    unknown = [name for name in given if name not in options]
    if unknown:
        shown = ", ".join(repr(option) for option in options)
        raise ValueError(
            f"{what} {unknown} are unknown; use some of {shown}."
            f"{did_you_mean(unknown, options)}"
        )


def require_type(
    value: Any,
    kinds: type | tuple[type, ...],
    what: str,
    give: str,
    *,
    error: type[Exception] = TypeError,
) -> None:
    """Raise unless a value is of a type.

    :param value: what was given; a flag is no integer.
    :param kinds: type or types that are allowed.
    :param what: what it is, for the message.
    :param give: what to give instead, for the message: ``"a DualEncoder"``.
    :param error: kind of the error.

    >>> require_type("a", str, "name", "a string")
    """
    flag = isinstance(value, bool) and bool not in (
        kinds if isinstance(kinds, tuple) else (kinds,)
    )
    if flag or not isinstance(value, kinds):
        raise error(f"{what} is {value!r:.80}, a {type(value).__name__}; give {give}.")


def as_texts(values: Any, what: str, *, least: int = 1) -> list[str]:
    """Return texts as a list.

    :param values: strings in an order: neither one string nor a set or mapping.
    :param what: what they are, for the message.
    :param least: smallest number allowed.
    :raises TypeError: if it is no list, or an entry is no string.
    :raises ValueError: if there are fewer.

    >>> as_texts(("a", "b"), "names")
    ['a', 'b']
    """
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(
        values, Iterable
    ):
        raise TypeError(
            f"{what}={values!r:.80} is a {type(values).__name__}; give a list of "
            "strings."
        )
    texts = list(values)
    for place, text in enumerate(texts):
        if not isinstance(text, str):  # lists are long: no message is made in vain
            require_type(text, str, f"Entry {place} of {what}", "strings")
    require_some(texts, what, least=least)
    return texts


def require_some(values: Sized, what: str, *, least: int = 1) -> None:
    """Raise ValueError if there are fewer than ``least`` of something.

    >>> require_some([1], "runs")
    """
    if len(values) < least:
        count = "no" if not len(values) else f"{len(values)}"
        least_word = "one" if least == 1 else least
        raise ValueError(f"There are {count} {what}; give at least {least_word}.")


def require_length(values: Sized, count: int, what: str, of: str) -> None:
    """Raise ValueError unless there is one value for each of something.

    :param values: what was given.
    :param count: how many there must be.
    :param what: what they are, for the message: ``"domains"``.
    :param of: what each belongs to, for the message: ``"class"``.

    >>> require_length([1, 2], 2, "domains", "class")
    """
    if len(values) != count:
        raise ValueError(
            f"{len(values)} {what} given, {count} are needed; give one per {of}."
        )


def require_distinct(values: Iterable[Hashable], what: str) -> None:
    """Raise ValueError if a value occurs twice.

    :param values: what was given.
    :param what: what they are, for the message: ``"ids"``.

    >>> require_distinct([3, 1], "ids")
    """
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise ValueError(
                f"{value!r} occurs more than once among the {what}; they must differ."
            )
        seen.add(value)


def as_permutation(values: Iterable[Any], count: int, what: str) -> list[int]:
    """Return an order of ``count`` things as a list of integers.

    :param values: each of 0..count-1 exactly once.
    :param count: number of things.
    :param what: name of the argument, for the message.
    :raises ValueError: for anything else, with what is missing or too much.

    >>> as_permutation([1, 0], 2, "order")
    [1, 0]
    """
    found = as_integers(values, what)
    if sorted(found) != list(range(count)):
        missing = sorted(set(range(count)) - set(found))
        unknown = sorted(set(found) - set(range(count)))
        raise ValueError(
            f"{what} has {len(found)} entries and must hold each of 0..{count - 1} "
            f"exactly once (missing {missing[:5]}, unknown {unknown[:5]})."
        )
    return found


def require_one_of(least: int = 1, **given: Any) -> str:
    """Raise ValueError unless one of several arguments is given, and no two are.

    :param least: 0 if none need be given.
    :param given: name -> value; None counts as not given.
    :return: the name of the one that is given, or ``""``.

    >>> require_one_of(sizes=None, increment=2)
    'increment'
    """
    chosen = [name for name, value in given.items() if value is not None]
    if not least <= len(chosen) <= 1:
        many = "exactly one" if least else "at most one"
        raise ValueError(f"Give {many} of {list(given)}; got {chosen}.")
    return "".join(chosen)


def require_same(
    what: str,
    stored: Any,
    given: Any,
    do: str,
    *,
    error: type[Exception] = ValueError,
) -> None:
    """Raise unless what was stored equals what is given now.

    :param what: what it is, for the message.
    :param stored: value of the stored run, file or state.
    :param given: value at hand.
    :param do: what to do, for the message: ``"build it with the same one"``.
    :param error: kind of the error.

    >>> require_same("rank", 4, 4, "attach the stored one")
    """
    if stored != given:
        raise error(
            f"{what} was {stored!r} when it was stored, is {given!r} now; {do}."
        )


def existing_file(path: str | Path, do: str) -> Path:
    """Return the path of a file that is there.

    :param path: of a file.
    :param do: what to do if it is missing, for the message.
    :raises FileNotFoundError: if there is no such file.
    """
    found = Path(path)
    if not found.is_file():
        raise FileNotFoundError(f"{found} is no file; {do}.")
    return found


def existing_folder(path: str | Path, do: str) -> Path:
    """Return the path of a folder that is there, see :func:`existing_file`."""
    found = Path(path)
    if not found.is_dir():
        raise FileNotFoundError(f"{found} is no folder; {do}.")
    return found


def require_array(
    array: Any,
    what: str,
    shape: str,
    kind: str = "number",
    *,
    give: str = "",
    error: type[Exception] = ValueError,
) -> None:
    """Raise unless a tensor or array has a shape and a kind of values.

    :param array: of NumPy or torch; anything else is refused.
    :param what: name of the argument, for the message.
    :param shape: lengths by axis: a number is exact, a letter is any length of at
        least 1 (the same letter the same length), ``*`` any length, and ``...``
        any axes in front, for example ``"B 3 H W"``, ``"T T"`` or ``"* 2"``.
    :param kind: ``"float"``, ``"integer"`` or ``"number"`` (any).
    :param give: what to do, for the message: ``"made by model.transform(train)"``.
    :param error: kind of the error.

    >>> import numpy as np
    >>> require_array(np.zeros((2, 3)), "scores", "N M", "float")
    """
    found = getattr(array, "shape", None)
    if found is None or not hasattr(array, "dtype"):
        given = f"{what} is a {type(array).__name__}"
    elif not _fits(tuple(found), shape.split()) or kind not in _kinds(array.dtype):
        given = f"{what} of shape {tuple(found)} and type {array.dtype} given"
    else:
        return
    axes = ", ".join(shape.split())
    kinds = {"float": "floating point values", "integer": "integers"}
    wanted = f"{kinds.get(kind, 'numbers')} of shape ({axes}{',' * (' ' not in shape)})"
    raise error(f"{given}; give {wanted}{', ' + give if give else ''}.")


def require_indices(array: Any, size: int, what: str) -> None:
    """Raise ValueError unless all values are indices of ``size`` things.

    :param array: integers of any shape, of NumPy or torch.
    :param size: number of things.
    :param what: name of the argument, for the message.
    """
    if 0 not in array.shape:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"{what} holds {low} to {high}; indices must lie in 0..{size - 1}."
            )


def require_alike(
    do: str, parts: Iterable[str] = ("shape", "dtype", "device"), **arrays: Any
) -> None:
    """Raise ValueError unless tensors or arrays agree.

    :param do: what to do, for the message: ``"give the same pairs"``.
    :param parts: attributes that must be equal; ``"columns"`` is the last length.
    :param arrays: name -> tensor or array.

    >>> import numpy as np
    >>> require_alike("give one per text", ("columns",), a=np.eye(2), b=np.eye(2))
    """
    names, shapes = " and ".join(arrays), [tuple(a.shape) for a in arrays.values()]
    given = f"{names} of shapes {' and '.join(map(str, shapes))}"
    for part in parts:
        values = [
            str(array.shape[-1] if part == "columns" else getattr(array, part))
            for array in arrays.values()
        ]
        if len(set(values)) > 1:
            shown = (
                f" {' and '.join(values)}" if part not in ("shape", "columns") else ""
            )
            raise ValueError(f"{given} given; {part}{shown} must agree: {do}.")


def _fits(found: tuple[int, ...], wanted: list[str]) -> bool:
    """Whether a shape has the lengths that are described."""
    if wanted and wanted[0] == "...":
        wanted = wanted[1:]
        found = found[max(0, len(found) - len(wanted)) :]
    if len(found) != len(wanted):
        return False
    lengths: dict[str, int] = {}
    for length, axis in zip(found, wanted, strict=True):
        if axis.isdigit():
            if length != int(axis):
                return False
        elif axis != "*" and (not length or lengths.setdefault(axis, length) != length):
            return False
    return True


def _kinds(dtype: Any) -> Iterator[str]:
    """Kinds of values that a type of NumPy or torch stands for."""
    name = str(dtype).removeprefix("torch.")
    if name.startswith(("float", "bfloat")):
        yield from ("float", "number")
    elif name.startswith(("int", "uint")):
        yield from ("integer", "number")
    elif name.startswith("complex"):
        yield "number"


def _is_flag(value: Any) -> bool:
    return "bool" in str(getattr(value, "dtype", type(value).__name__))


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c not in "-_ ")
