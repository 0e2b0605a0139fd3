"""What an item of a data set must be, and what to do with other forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_IMAGE_KEYS = ("image", "img", "jpg", "png", "pixel_values")
_TEXT_KEYS = ("text", "caption", "captions", "txt", "sentence", "sentences")
_LABEL_KEYS = ("label", "labels", "target", "fine_label", "class")


class ItemsError(TypeError, ValueError):
    """Raised when the items of given data are not pairs."""


def check_source(data: Any, second: str = "text", maker: str = "") -> None:
    """Refuse data whose items cannot be pairs, without reading an item.

    :param data: what a user gave as a map-style data set.
    :param second: what the second element of an item is: ``"text"`` or ``"label"``.
    :param maker: the call that takes the pairs, for the message.
    :raises ItemsError: for generators, tables, columns, texts, and lists of rows by
        name.
    """
    name = type(data).__name__
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        keys = [str(key) for key in data.columns]
        first, other = _pick(keys, second)
        line = f"pairs = list(zip(data[{first!r}], data[{other!r}]))"
        raise _error(f"a table ({name}) was given", line, second, maker)
    if isinstance(data, Mapping):
        rows = next((key for key in data if hasattr(data[key], "column_names")), None)
        if rows is not None:  # the splits of a data set of Hugging Face's
            found = f"several parts ({[*data][:8]}) were given; take one, such as"
            found = f"{found} data = data[{rows!r}], with rows by name"
            raise _rows(found, data[rows].column_names, second, maker)
        if not all(isinstance(key, str) for key in data):
            line = "pairs = list(data.values())"
            raise _error(f"a mapping ({name}) was given", line, second, maker)
        first, other = _pick(list(data), second)
        line = f"pairs = list(zip(data[{first!r}], data[{other!r}]))"
        raise _error(f"a mapping of columns ({name}) was given", line, second, maker)
    names = getattr(data, "column_names", None)
    if isinstance(names, list):  # a table of Hugging Face's datasets
        raise _rows(f"rows by name ({name}) were given", names, second, maker)
    if isinstance(data, (list, tuple)) and data and isinstance(data[0], Mapping):
        raise _rows("item 0 is a dict", [*data[0]], second, maker)
    text = isinstance(data, (str, bytes))
    loop = isinstance(data, Iterable) and not hasattr(data, "__getitem__")
    if text or loop or not (hasattr(data, "__len__") or hasattr(data, "__getitem__")):
        line = "pairs = list(data)"
        if text or not loop:
            line = f"pairs = [(image_0, {second}_0), (image_1, {second}_1)]"
        raise _error(f"a {name} was given", line, second, maker)
    if not hasattr(data, "__len__"):
        raise _error(
            f"a {name} without a length was given", "pairs = list(data)", second, maker
        )


def check_item(item: Any, where: str, second: str = "text", maker: str = "") -> None:
    """Refuse an item that is no pair.

    :param where: names the item, for the message.
    :raises ItemsError: for rows by name, single values and texts.
    """
    if isinstance(item, Mapping):
        raise _rows(f"{where} is a dict", [*item], second, maker)
    # Rows of arrays of objects are pairs; images are arrays of numbers.
    numbers = str(getattr(item, "dtype", "object")) != "object"
    named = isinstance(item, (str, bytes)) or hasattr(item, "iloc")
    pair = hasattr(item, "__getitem__") and hasattr(item, "__len__")
    pair = pair and not numbers and not named
    if not pair or len(item) < 2:
        line = f"pairs = list(zip(images, {second}s))"
        held = f" of {len(item)} element(s)" if pair else ""
        raise _error(f"{where} is a {type(item).__name__}{held}", line, second, maker)


def _rows(found: str, keys: Sequence[Any], second: str, maker: str) -> ItemsError:
    first, other = _pick([str(key) for key in keys], second)
    line = f"pairs = [(row[{first!r}], row[{other!r}]) for row in data]"
    return _error(f"{found} with {[str(key) for key in keys][:8]}", line, second, maker)


def _pick(keys: Sequence[str], second: str) -> tuple[str, str]:
    """Which of the names are likely the image and the other element."""
    likely = _TEXT_KEYS if second == "text" else _LABEL_KEYS
    first = next((key for key in _IMAGE_KEYS if key in keys), None)
    other = next((key for key in likely if key in keys), None)
    rest = [key for key in keys if key not in (first, other)]
    return first or next(iter(rest), "image"), other or next(iter(rest[::-1]), second)


def _error(found: str, line: str, second: str, maker: str) -> ItemsError:
    call = maker or "dataset = make_image_text_dataset(pairs)"
    return ItemsError(
        f"items must be (image, {second}), but {found}. Convert them:\n    {line}\n"
        f"    {call}"
    )
