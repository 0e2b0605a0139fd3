"""Which classes are told apart, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.class_labels import occurring_ids
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.common.checks import require_choice
from avalanche_clip.evaluation.report.summaries import CLASS_INCREMENTAL, SI_BLURRY
from avalanche_clip.training.templates.class_matrix import (
    ClassKey,
    distinct_rows,
    prompt_key,
)
from avalanche_clip.training.templates.contract import MethodPlugin

_SPACES = ("current", "seen", "all", "own")
LABEL_SPACES = (*_SPACES, "batch")
EVAL_LABEL_SPACES = (*_SPACES, "open")


class SeenClasses(MethodPlugin, supports_distributed=True):
    """The classes that a strategy has met, part of its checkpoints."""

    keeps_per_weight_state = False
    state_attributes = ("groups",)

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[tuple[int, ...]] = []
        """New classes of each experience, in order of arrival."""
        self._known: set[int] = set()

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them, in order of arrival."""
        return tuple(i for group in self.groups for i in group)

    def __contains__(self, number: object) -> bool:
        return number in self._known

    def add(self, ids: Iterable[int]) -> None:
        """Note the classes of an experience; known ones do not count.

        The time does not depend on how many are known.
        """
        new = tuple(dict.fromkeys(i for i in ids if i not in self._known))
        if new:
            self.groups.append(new)
            self._known.update(new)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._known = set(self.ids)


class LabelSpaces:
    """Label spaces of training and evaluation, and the prompts behind them.

    :param strategy: its ``label_space`` and ``eval_label_space``, the prompts that it
        was given, its experience, data and plugins are read.
    """

    def __init__(self, strategy: Any):
        self.strategy = strategy
        self.seen = SeenClasses()
        """A plugin of the strategy, so that checkpoints hold them."""
        self._last: ClassPrompts | None = None
        self.batch_ids: tuple[int, ...] | None = None
        """Classes of the running batch, where it is the label space."""
        self.asked: str | None = None
        """Label space that is evaluated in instead, see :meth:`evaluated_in`."""
        self.forget()

    def forget(self) -> None:
        """Drop what was derived from the running experience."""
        self._trained: tuple[Any, ...] = ()
        # By what is asked for.
        self._evaluated: dict[str | None, tuple[Any, ...]] = {}
        self._columns: dict[str | None, tuple[Tensor, Any, tuple[int, ...]]] = {}
        self._found: tuple[Any, ...] = ()

    def choose(self, targets: Tensor) -> None:
        """Make the classes of a batch, over all processes, the space ``"batch"``.

        :param targets: global ids of this process's part of the batch.
        """
        own = torch.unique(targets).tolist()
        parts = distributed.exchange("the classes of a step", own)
        found = tuple(sorted({i for part in parts for i in part}))
        if found != self.batch_ids:  # else the same object: what is derived stays
            self.batch_ids = found

    @property
    def prompts(self) -> ClassPrompts:
        """Names and templates in use.

        Those given to the strategy; else ``benchmark.class_prompts`` if they
        name all classes of the running experience, which so may be set anew at
        any time; else those of the experience.

        :raises ValueError: if neither the strategy nor the data have any.
        """
        given: ClassPrompts | None = self.strategy.given_prompts
        if given is not None:
            return given
        experience, found = self.strategy.experience, self._last
        if experience is not None:
            shared = getattr(_benchmark(experience), "class_prompts", None)
            if not _same((experience, shared), self._found):
                self._found = (experience, shared, _prompts_of(experience, shared))
            found = self._found[-1]
        if not isinstance(found, ClassPrompts):
            raise ValueError(
                "There are no class prompts: give class_prompts to the strategy, or "
                "set benchmark.class_prompts (multi_domain_benchmark and "
                "class_incremental_benchmark do)."
            )
        self._last = found
        return found

    @property
    def ids(self) -> tuple[int, ...]:
        """Global ids of the columns, ascending; the same object while they stay."""
        if self.strategy.experience is None:
            raise ValueError("There is no label space outside training and evaluation.")
        if self.strategy.is_training:
            return self._training_ids()
        source = (self.strategy.experience, *self.seen.groups[-1:])
        if not _same(source, self._evaluated.get(self.asked, ())):
            ids = {i for group in self.groups() for i in group}
            self._evaluated[self.asked] = (*source, tuple(sorted(ids)))
        found: tuple[int, ...] = self._evaluated[self.asked][-1]
        return found

    def _training_ids(self) -> tuple[int, ...]:
        strategy, space = self.strategy, self.strategy.label_space
        if space == "batch":
            if self.batch_ids is None:
                raise ValueError(
                    "The label space 'batch' is that of a mini-batch, and none is being"
                    " trained on."
                )
            return self.batch_ids
        # Replay replaces the loader, when the plugins before it have run.
        drawn = [c.replayed_classes(strategy) for c in strategy.contracts]
        pools = (strategy.adapted_dataset, strategy.dataloader)
        source = (strategy.experience, *pools, *drawn)
        if not _same(source, self._trained):
            ids = set(experience_ids(strategy.experience))
            if space == "all":
                ids = set(self.prompts.ids)
            elif space != "own":
                datasets = getattr(strategy.dataloader, "datasets", ())
                ids.update(*(target_ids(d) for d in (pools[0], *datasets)), *drawn)
                if space == "seen":
                    ids |= set(self.seen.ids)
            self._trained = (*source, tuple(sorted(ids)))
        found: tuple[int, ...] = self._trained[-1]
        return found

    @contextmanager
    def evaluated_in(self, space: str) -> Iterator[None]:
        """Make another label space that of the evaluation, in a ``with`` block."""
        self.asked = space
        try:
            yield
        finally:
            self.asked = None

    @property
    def evaluated(self) -> str:
        """Label space of the evaluation: that of the test set, if it has its own."""
        if self.asked is not None:
            return self.asked
        space = self.strategy.eval_label_space
        own = getattr(self.strategy.experience, "eval_label_space", space)
        require_choice("eval_label_space of the experience", own, EVAL_LABEL_SPACES)
        return str(own)

    def groups(self) -> list[tuple[int, ...]]:
        """Classes of the evaluation in groups, as they arrived."""
        space, own = self.evaluated, self._candidates()
        if space == "all":
            return [self.prompts.ids_of(d) for d in self.prompts.domain_names]
        open_to_all = space == "open" and all(i in self.seen for i in own)
        if space == "seen" or open_to_all:
            return [*self.seen.groups, tuple(i for i in own if i not in self.seen)]
        return [own]

    def _candidates(self) -> tuple[int, ...]:
        """Classes of the evaluated experience.

        A test set that does not say which classes it is about has those of the
        domains that occur in it, even if some have no image: the number of
        candidates must not depend on the sample. Classes without a domain are
        one, except beside those that were trained on ("seen").
        """
        own = experience_ids(self.strategy.experience)
        if declared_ids(self.strategy.experience) is not None:
            return own
        prompts, found = self.prompts, set(own)
        for domain in {prompts.domain(i) for i in own}:
            if domain or self.evaluated != "seen":
                found |= set(prompts.ids_of(domain))
        return tuple(sorted(found))

    @property
    def classes(self) -> Tensor:
        """Global ids of the columns on the device, int64 ``(C,)``."""
        return self._on_device()[0]

    @property
    def equal(self) -> tuple[Tensor, Tensor] | None:
        """Which columns are one class, as :func:`distinct_rows` says."""
        return self._on_device()[1]

    def _on_device(self) -> tuple[Tensor, Any, tuple[int, ...]]:
        ids, device = self.ids, self.strategy.device
        known = self._columns.get(self.asked)
        if known is None or known[-1] is not ids:
            equal = distinct_rows([self.key(i) for i in ids])
            parts = equal and tuple(torch.tensor(part, device=device) for part in equal)
            classes = torch.tensor(ids, dtype=torch.int64, device=device)
            known = self._columns[self.asked] = (classes, parts, ids)
        return known

    def key(self, number: int) -> ClassKey:
        """What the class vector of a class depends on."""
        return prompt_key(self.prompts.name(number), self.prompts.templates(number))

    def of(self, wanted: set[int]) -> tuple[int, ...]:
        """The smallest label space in use that has some classes.

        Where each batch has its own, it is these classes themselves.

        :raises ValueError: for unknown ones.
        """
        strategy = self.strategy
        if strategy.is_training and strategy.label_space == "batch":
            return tuple(sorted(wanted))
        running = () if strategy.experience is None else self.ids
        for ids in (running, tuple(sorted(self.seen.ids))):
            if wanted <= set(ids):
                return ids
        for number in wanted:
            self.prompts.row(number)  # raises for unknown ones
        return tuple(sorted(self.prompts.ids))


def _same(source: tuple[Any, ...], known: tuple[Any, ...]) -> bool:
    """Whether what is known, behind its source, was found from the same objects."""
    return len(known) == len(source) + 1 and all(map(is_, source, known))


def target_ids(dataset: Any) -> set[int]:
    """Classes that occur in a data set; none if it has no targets."""
    return set(occurring_ids(dataset))


def declared_ids(experience: Any) -> tuple[int, ...] | None:
    """Class ids that the benchmark gave an experience, or None."""
    ids = getattr(experience, "class_ids", None)
    if ids is None and "classes_in_this_experience" in vars(experience):
        # Set by Avalanche's with_classes_timeline, not worked out of the data.
        ids = experience.classes_in_this_experience
    return None if ids is None else tuple(dict.fromkeys(int(i) for i in ids))


def experience_ids(experience: Any) -> tuple[int, ...]:
    """Class ids of an experience, as its benchmark says, else as they first occur."""
    ids = declared_ids(experience)
    return occurring_ids(experience.dataset) if ids is None else ids


def _benchmark(experience: Any) -> Any:
    stream = getattr(experience, "_origin_stream", None)
    return getattr(stream, "benchmark", None)


def _prompts_of(experience: Any, shared: Any) -> Any:
    """The benchmark's prompts if they name the experience's classes, else its own."""
    own = getattr(experience, "class_prompts", None)
    if own is None or not isinstance(shared, ClassPrompts):
        return shared if own is None else own
    return shared if all(i in shared for i in experience_ids(experience)) else own


def is_class_incremental(experience: Any) -> bool:
    """Whether an experience is one of several steps of a class-incremental stream."""
    benchmark = _benchmark(experience)
    if getattr(benchmark, "protocol", None) not in (CLASS_INCREMENTAL, SI_BLURRY):
        return False
    return len(benchmark.streams.get("train", ())) > 1
