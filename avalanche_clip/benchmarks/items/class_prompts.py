"""Class names and prompt templates by global class id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from avalanche_clip.common.checks import (
    as_integer,
    as_size,
    as_texts,
    require_choice,
    require_distinct,
    require_length,
    require_some,
)
from avalanche_clip.models.text.prompts import (
    DEFAULT_TEMPLATE,
    checked_names,
    checked_templates,
    fill,
)


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
        self.names = checked_names(names, "names", least=0)
        count = len(self.names)
        self.ids = tuple(range(count)) if ids is None else _ids(ids)
        require_length(self.ids, count, "ids", "class")
        self.domains = _domains(domains, count)
        self.domain_names: tuple[str, ...] = tuple(dict.fromkeys(self.domains))
        """Domains in order of their first class."""
        self._templates = _templates(templates, self.domain_names)
        self._row = {number: row for row, number in enumerate(self.ids)}

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
                f"{min(self.ids, default=0)}..{max(self.ids, default=0)}."
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
        require_choice("domain", domain, self._templates)
        return self._templates[domain]

    def ids_of(self, domain: str) -> tuple[int, ...]:
        """Ids of the classes of a domain.

        :raises ValueError: for an unknown domain.
        """
        require_choice("domain", domain, self._templates)
        return tuple(i for i, d in zip(self.ids, self.domains) if d == domain)

    # -------------------------------------------------------------- prompts
    def prompts(
        self, ids: Iterable[int] | None = None, which: str = "first"
    ) -> list[Any]:
        """Write names into templates.

        :param ids: classes, in the order wanted; default all.
        :param which: ``"first"`` for one prompt per class, from the first
            template; ``"all"`` for a list of prompts per class.
        :return: strings, or lists of strings.
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
        require_some(parts, "prompts to merge")
        require_distinct((d for p in parts for d in p.domain_names), "domains")
        names: list[str] = []
        domains: list[str] = []
        ids: list[int] = []
        templates: dict[str, tuple[str, ...]] = {}
        offset = 0
        for part in parts:
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


def _ids(ids: Iterable[Any]) -> tuple[int, ...]:
    found = tuple(as_size(number, "A class id", least=0) for number in ids)
    require_distinct(found, "class ids")
    return found


def _domains(domains: Any, count: int) -> tuple[str, ...]:
    if domains is None or isinstance(domains, str):
        return (domains or "",) * count
    found = as_texts(domains, "domains", least=0)
    require_length(found, count, "domains", "class, or one for all")
    return tuple(found)


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
    return checked_templates([templates] if isinstance(templates, str) else templates)
