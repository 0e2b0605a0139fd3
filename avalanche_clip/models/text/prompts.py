"""Class names in templates, one rule for what a template may be."""

from __future__ import annotations

from typing import Any

from avalanche_clip.common.checks import as_texts

DEFAULT_TEMPLATE = "a photo of a {}."


def fill(template: str, name: str) -> str:
    """Write a name into a template.

    >>> fill("a photo of a {}.", "{x}")
    'a photo of a {x}.'
    """
    before, after = template.split("{}")
    return before + name + after


def checked_templates(templates: Any) -> tuple[str, ...]:
    """Return templates that have one place for a name.

    :param templates: strings in an order.
    :raises TypeError: if it is no list of strings.
    :raises ValueError: if there are none, or one has not exactly one ``{}``.
    """
    found = as_texts(templates, "templates")
    for template in found:
        rest = template.replace("{}", "", 1)
        if "{}" not in template or "{" in rest or "}" in rest:
            raise ValueError(
                f"The template {template!r} must hold {{}} exactly once, where the "
                "class name goes, and no other brace."
            )
    return tuple(found)


def checked_names(names: Any, what: str, *, least: int = 1) -> tuple[str, ...]:
    """Return names of classes, none of them empty.

    :param names: strings in an order.
    :param what: what they are called in messages.
    :param least: smallest number allowed.
    :raises TypeError: if it is no list of strings.
    :raises ValueError: if there are fewer, or a name is empty.
    """
    found = as_texts(names, what, least=least)
    empty = [row for row, name in enumerate(found) if not name.strip()]
    if empty:
        raise ValueError(f"The name of class {empty[0]} is empty; give each class one.")
    return tuple(found)
