"""Class names and prompt templates by global class id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal, overload

from avalanche_clip.common.checks import as_integer, did_you_mean, require_choice

DEFAULT_TEMPLATE = "a photo of a {}."


class ClassPrompts:
    """Names, templates and domains of classes, known by a global id.

    Names go into the templates as they are: slashes, quotes, braces and doubled
    blanks stay. Equal names are allowed, in one domain or in several. Objects
    do not change after they were made.

    :param names: one name per class.
    :param templates: a template, a list of them, or one of both per domain;
        each holds ``{}`` exactly once and no other brace. The first one makes
        the prompt of training, all of them that of evaluation.
    :param domains: name of the domain of each class, or one for all.
    :param ids: global ids, distinct integers >= 0, one per class; default
        ``0 .. C-1``.
    :raises TypeError: if names, templates or domains are no strings.
    :raises ValueError: if a name is empty, a template has not exactly one
        ``{}``, a domain has no template, ids repeat, or lengths differ.

    >>> prompts = ClassPrompts(["cat", "dog"], ["a photo of a {}.", "a {}."])
    >>> prompts.prompts()
    ['a photo of a cat.', 'a photo of a dog.']
    >>> prompts.for_ids([1]).prompts(which="all")
    [['a photo of a dog.', 'a dog.']]
    """

    def __init__(
        self,
        names: Sequence[str],
        templates: str | Sequence[str] | Mapping[str, Any] = DEFAULT_TEMPLATE,
        *,
        domains: str | Sequence[str] | None = None,
        ids: Iterable[int] | None = None,
    ):
        checked = _names(names)
        numbers = tuple(range(len(checked))) if ids is None else _ids(ids)
        owners = _domains(domains, len(checked))
        if len(numbers) != len(checked):
            raise ValueError(
                f"{len(checked)} names and {len(numbers)} ids given; give one id per "
                "class."
            )
        self.ids: tuple[int, ...] = numbers
        self.names: tuple[str, ...] = checked
        self.domains: tuple[str, ...] = owners
        self.domain_names: tuple[str, ...] = tuple(dict.fromkeys(owners))
        """Domains in order of their first class."""
        self._templates = _templates(templates, self.domain_names)
        self._row = {number: row for row, number in enumerate(numbers)}

    # ------------------------------------------------------------- look-ups
    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, number: object) -> bool:
        try:
            return as_integer(number, "The class id") in self._row
        except ValueError:
            return False

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def row(self, number: int) -> int:
        """Position of a class in this object.

        :param number: a global id, an integer (numpy's and 0-d tensors too).
        :raises ValueError: for an id that it does not hold, or no integer.
        """
        try:
            return self._row[as_integer(number, "The class id")]
        except KeyError:
            raise ValueError(
                f"Class id {number} is unknown; there are {len(self)} classes with ids "
                f"{_span(self.ids)}."
            ) from None

    def name(self, number: int) -> str:
        """Name of a class."""
        return self.names[self.row(number)]

    def domain(self, number: int) -> str:
        """Domain of a class, an empty string where none was given."""
        return self.domains[self.row(number)]

    def templates(self, number: int) -> tuple[str, ...]:
        """Templates of a class, that is of its domain."""
        return self._templates[self.domain(number)]

    def domain_templates(self, domain: str) -> tuple[str, ...]:
        """Templates of a domain.

        :raises ValueError: for an unknown domain.
        """
        self._check_domain(domain)
        return self._templates[domain]

    def ids_of(self, domain: str) -> tuple[int, ...]:
        """Ids of the classes of a domain.

        :raises ValueError: for an unknown domain.
        """
        self._check_domain(domain)
        return tuple(
            i for i, d in zip(self.ids, self.domains, strict=True) if d == domain
        )

    def _check_domain(self, domain: str) -> None:
        if domain not in self._templates:
            raise ValueError(
                f"Domain {domain!r} is unknown; there are {self.domain_names}."
                f"{did_you_mean(domain, self.domain_names)}"
            )

    # -------------------------------------------------------------- prompts
    @overload
    def prompts(
        self, ids: Iterable[int] | None = None, which: Literal["first"] = "first"
    ) -> list[str]: ...

    @overload
    def prompts(
        self, ids: Iterable[int] | None = None, *, which: Literal["all"]
    ) -> list[list[str]]: ...

    def prompts(
        self, ids: Iterable[int] | None = None, which: str = "first"
    ) -> list[str] | list[list[str]]:
        """Write names into templates.

        :param ids: classes, in the order wanted; default all.
        :param which: ``"first"`` for one prompt per class, from the first
            template; ``"all"`` for a list of prompts per class.
        :raises ValueError: for an unknown id or another value of ``which``.
        """
        require_choice("which", which, ("first", "all"))
        chosen = self.ids if ids is None else tuple(ids)
        if which == "first":
            return [fill(self.templates(i)[0], self.name(i)) for i in chosen]
        return [[fill(t, self.name(i)) for t in self.templates(i)] for i in chosen]

    # ------------------------------------------------------- other objects
    def for_ids(self, ids: Iterable[int]) -> ClassPrompts:
        """Return the prompts of some classes, under the same global ids.

        :param ids: classes, in the order wanted.
        :raises ValueError: for an unknown or repeated id.
        """
        chosen = _ids(ids)
        rows = [self.row(i) for i in chosen]
        domains = [self.domains[row] for row in rows]
        return ClassPrompts(
            [self.names[row] for row in rows],
            {d: self._templates[d] for d in dict.fromkeys(domains)},
            domains=domains,
            ids=chosen,
        )

    @classmethod
    def merge(cls, parts: Sequence[ClassPrompts]) -> ClassPrompts:
        """Put several domains side by side.

        The ids of each part are moved behind those of the parts before it, so
        with ids ``0 .. C-1`` in each part the result has ``0 .. sum C - 1``.

        :param parts: prompts whose domain names differ.
        :raises ValueError: if there are no parts, or a domain occurs in two.
        """
        if not parts:
            raise ValueError("There is nothing to merge; give at least one part.")
        names: list[str] = []
        domains: list[str] = []
        ids: list[int] = []
        templates: dict[str, tuple[str, ...]] = {}
        offset = 0
        for part in parts:
            repeated = sorted(set(part.domain_names) & set(templates))
            if repeated:
                raise ValueError(
                    f"The domain {repeated[0]!r} occurs in two parts; give each its "
                    "own name with domains=..."
                )
            names += part.names
            domains += part.domains
            ids += [offset + number for number in part.ids]
            templates |= part._templates
            offset += max(part.ids, default=-1) + 1
        return cls(names, templates, domains=domains, ids=ids)

    # ----------------------------------------------------------- comparison
    def _content(self) -> Any:
        templates = {d: list(self._templates[d]) for d in self.domain_names}
        return [list(self.ids), list(self.names), list(self.domains), templates]

    def fingerprint(self) -> str:
        """Hash of ids, names, domains and templates, 32 hexadecimal digits."""
        text = json.dumps(self._content(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClassPrompts):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        return hash((self.ids, self.names))

    def __repr__(self) -> str:
        named = [d for d in self.domain_names if d]
        where = f", domains={named}" if named else ""
        return f"{type(self).__name__}({len(self)} classes{where})"


def fill(template: str, name: str) -> str:
    """Write a name into a template.

    >>> fill("a photo of a {}.", "{x}")
    'a photo of a {x}.'
    """
    before, after = template.split("{}")
    return before + name + after


def _span(ids: tuple[int, ...]) -> str:
    if not ids:
        return "()"
    return f"{min(ids)}..{max(ids)}"


def _names(names: Any) -> tuple[str, ...]:
    if isinstance(names, (str, Mapping, Set)) or not isinstance(names, Iterable):
        raise TypeError(
            f"names={names!r} is a {type(names).__name__}; give a list of strings, one "
            "per class."
        )
    found = tuple(names)
    for row, name in enumerate(found):
        if not isinstance(name, str):
            raise TypeError(
                f"The name of class {row} is a {type(name).__name__}; give strings."
            )
        if not name.strip():
            raise ValueError(f"The name of class {row} is empty; give each class one.")
    return found


def _ids(ids: Any) -> tuple[int, ...]:
    found = []
    for number in ids:
        checked = as_integer(number, "A class id")
        if checked < 0:
            raise ValueError(f"Class id {checked} must be an integer >= 0.")
        found.append(checked)
    if len(set(found)) < len(found):
        twice = next(i for i in found if found.count(i) > 1)
        raise ValueError(f"Class id {twice} occurs more than once; ids are distinct.")
    return tuple(found)


def _domains(domains: Any, count: int) -> tuple[str, ...]:
    if domains is None:
        domains = ""
    if isinstance(domains, str):
        return (domains,) * count
    found = tuple(domains)
    if any(not isinstance(domain, str) for domain in found):
        raise TypeError(f"domains={domains!r} must be strings.")
    if len(found) != count:
        raise ValueError(
            f"{count} names and {len(found)} domains given; give one domain per class, "
            "or one for all."
        )
    return found


def _templates(given: Any, domains: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(domains, _checked(given))
    missing = [domain for domain in domains if domain not in given]
    if missing:
        raise ValueError(
            f"Domain {missing[0]!r} has no templates; they are given for {list(given)}."
        )
    return {domain: _checked(given[domain]) for domain in domains}


def _checked(templates: Any) -> tuple[str, ...]:
    if isinstance(templates, str):
        templates = (templates,)
    if not isinstance(templates, Iterable):
        raise TypeError(
            f"templates={templates!r} is a {type(templates).__name__}; give a string "
            "or a list of strings."
        )
    found = tuple(templates)
    if not found:
        raise ValueError("There are no templates; give at least one, such as '{}'.")
    for template in found:
        if not isinstance(template, str):
            raise TypeError(
                f"A template is a {type(template).__name__}; templates are strings."
            )
        rest = template.replace("{}", "", 1)
        if "{}" not in template or "{" in rest or "}" in rest:
            raise ValueError(
                f"The template {template!r} must hold {{}} exactly once, where the "
                "class name goes, and no other brace."
            )
    return found
