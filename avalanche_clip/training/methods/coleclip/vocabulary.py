"""One embedding per class name, whatever data sets have a class of that name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.training.templates.class_matrix import ClassKey, prompt_key

TEMPLATE_POLICIES = ("joint", "first_seen")
ONE_DOMAIN = {"forest": "EuroSAT", "river": "EuroSAT"}
"""Names that ``"joint"`` takes from one data set only, as the authors' code does."""
_STORED = ("names", "vectors", "tasks", "start")


def class_keys(
    prompts: ClassPrompts, ids: Sequence[int], policy: str
) -> list[ClassKey]:
    """Names of classes with the templates of their zero-shot embeddings.

    :param prompts: of the whole stream.
    :param ids: classes.
    :param policy: ``"first_seen"``: templates of the class's own domain; ``"joint"``:
        those of all domains with a class of that name, in their order, except for
        :data:`ONE_DOMAIN`.

    >>> prompts = ClassPrompts(
    ...     ["cat", "cat"], {"A": ["a {}."], "B": ["b {}.", "{}"]}, domains=["A", "B"]
    ... )
    >>> class_keys(prompts, [1], "joint")
    [('cat', ('a {}.', 'b {}.', '{}'))]
    """
    if policy == "first_seen":
        return [prompt_key(prompts.name(i), prompts.templates(i)) for i in ids]
    having: dict[str, set[str]] = {}
    for name, domain in zip(prompts.names, prompts.domains, strict=True):
        having.setdefault(name, set()).add(domain)
    found = []
    for name in map(prompts.name, ids):
        one = ONE_DOMAIN.get(name)
        domains = {one} if one in having[name] else having[name]
        ordered = [d for d in prompts.domain_names if d in domains]
        every = [t for d in ordered for t in prompts.domain_templates(d)]
        found.append(prompt_key(name, every))
    return found


def distinct(names: Sequence[str], device: Any = None) -> tuple[Tensor, Tensor]:
    """First place of each name, and of each its place among the distinct, int64.

    >>> [part.tolist() for part in distinct(["a", "b", "a"])]
    [[0, 1], [0, 1, 0]]
    """
    places: dict[str, int] = {}
    inverse = [places.setdefault(name, len(places)) for name in names]
    rows = {name: row for row, name in reversed([*enumerate(names)])}
    first = [rows[name] for name in places]
    return torch.tensor(first, device=device), torch.tensor(inverse, device=device)


class Vocabulary:
    """Names learned so far, their embeddings, and which tasks have them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """In order of arrival."""
        self.places: dict[str, int] = {}
        """Row of each name."""
        self.vectors = torch.zeros(0, 0)
        """Embeddings of length 1, float32 ``(N, D)``."""
        self.tasks: list[list[int]] = []
        """Rows of the names of each task."""
        self.start: Any = None
        """Embeddings of the running task's names before it, ``(K, D)``."""
        self._told: Any = None

    def begin(
        self, names: Sequence[str], zero_shot: Callable[[list[str]], Tensor]
    ) -> None:
        """Begin a task; names that are known keep their embeddings.

        :param names: different ones.
        :param zero_shot: new names to embeddings ``(N, D)``.
        """
        new = [name for name in names if name not in self.places]
        if new:
            found = zero_shot(new)
            known = self.vectors.to(found.device)
            self.vectors = torch.cat([known, found]) if self.names else found.clone()
            self.names += new
            self._index()
        self.tasks.append([self.places[name] for name in names])
        self.start, self._told = self.vectors[self.tasks[-1]], None

    def _index(self) -> None:
        self.places = {name: row for row, name in enumerate(self.names)}

    def negatives(self) -> tuple[list[int], list[Tensor], Tensor]:
        """What the running task is told apart from, found once for each task.

        :return: rows of the R names that only earlier tasks have, in order of arrival;
            per task the places of its names among those of the running task and
            these; per earlier task which of the R are its, bool ``(T, R)``.
        """
        if self._told is None or self._told[-1].device != self.vectors.device:
            self._told = self._negatives()
        return self._told  # type: ignore[no-any-return]

    def _negatives(self) -> tuple[list[int], list[Tensor], Tensor]:
        *before, own = self.tasks
        known = set(own)
        others = [row for row in dict.fromkeys(sum(before, [])) if row not in known]
        place = {row: number for number, row in enumerate([*own, *others])}
        tensor = partial(torch.tensor, device=self.vectors.device)
        owned = [tensor([place[row] for row in rows]) for rows in self.tasks]
        sets = [set(rows) for rows in before]
        earlier = tensor([[row in rows for row in others] for rows in sets])
        return others, owned, earlier.bool()

    def state_dict(self) -> dict[str, Any]:
        """Return names, embeddings and tasks as plain data."""
        return {name: deepcopy(getattr(self, name)) for name in _STORED}

    def load_state_dict(self, state: dict[str, Any], width: int) -> None:
        """Put back what :meth:`state_dict` returned.

        :param width: of the model's embeddings.
        :raises ValueError: if the parts do not fit each other, or the model.
        """
        state = {name: deepcopy(state[name]) for name in _STORED}
        names, vectors, tasks, start = state.values()
        rows = {row for task in tasks for row in task}
        running = (len(tasks[-1]), width) if tasks else ()
        if (
            rows != set(range(len(set(names))))
            or tuple(vectors.shape) != (len(names), width if names else 0)
            or (start is not None and tuple(start.shape) != running)
        ):
            raise ValueError(
                f"The stored vocabulary of {len(names)} names has {len(tasks)} tasks "
                f"and embeddings {tuple(vectors.shape)} that do not fit them, or the "
                f"model's width of {width}; it is damaged or of another model."
            )
        self.__dict__.update(state, _told=None)
        self._index()
