"""Which classes are told apart, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.evaluation.report.summaries import CLASS_INCREMENTAL
from avalanche_clip.training.templates.class_matrix import distinct_rows, prompt_key
from avalanche_clip.training.templates.contract import MethodPlugin

LABEL_SPACES = ("current", "seen", "all", "own")


class SeenClasses(MethodPlugin, supports_distributed=True):
    """The classes that a strategy has met, part of its checkpoints."""

    keeps_per_weight_state = False

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[tuple[int, ...]] = []
        """New classes of each experience, in order of arrival."""

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them, in order of arrival."""
        return tuple(i for group in self.groups for i in group)

    def add(self, ids: Iterable[int]) -> None:
        """Note the classes of an experience; known ones do not count."""
        known = set(self.ids)
        new = tuple(dict.fromkeys(i for i in ids if i not in known))
        if new:
            self.groups.append(new)

    def state_dict(self) -> dict[str, Any]:
        """Return the classes as plain data."""
        return {"groups": [list(group) for group in self.groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.groups = [tuple(int(i) for i in group) for group in state["groups"]]


class LabelSpaceMixin:
    """Label spaces of training and evaluation, and the prompts behind them."""

    adapted_dataset: Any
    dataloader: Any
    device: torch.device
    eval_label_space: str
    experience: Any
    contracts: Any
    is_training: bool
    label_space: str
    mb_targets: Tensor
    _eval_matrices: dict[Any, Tensor]
    _given_prompts: ClassPrompts | None
    _last_prompts: ClassPrompts | None
    _seen: SeenClasses

    def _forget_spaces(self) -> None:
        """Drop what was derived from the running experience."""
        self._train_space: tuple[Any, ...] | None = None
        self._prompt_tokens: tuple[Any, ...] | None = None
        self._eval_space: tuple[Any, ...] | None = None
        self._columns: tuple[Any, ...] | None = None
        self._found_prompts: tuple[Any, ...] | None = None
        self._eval_matrices: dict[Any, Tensor] = {}

    @property
    def class_prompts(self) -> ClassPrompts:
        """Names and templates in use.

        Those given to the strategy; else ``benchmark.class_prompts`` if they
        name all classes of the running experience, which so may be set anew at
        any time; else those of the experience.

        :raises ValueError: if neither the strategy nor the data have any.
        """
        if self._given_prompts is not None:
            return self._given_prompts
        experience = self.experience
        found: Any = self._last_prompts
        if experience is not None:
            shared = getattr(_benchmark(experience), "class_prompts", None)
            known = self._found_prompts
            if known is None or known[0] is not experience or known[1] is not shared:
                found = _prompts_of(experience, shared)
                self._found_prompts = known = (experience, shared, found)
            found = known[2]
        if not isinstance(found, ClassPrompts):
            raise ValueError(
                "There are no class prompts: give class_prompts to the strategy, or "
                "set benchmark.class_prompts (multi_domain_benchmark and "
                "class_incremental_benchmark do)."
            )
        self._last_prompts = found
        return found

    @property
    def seen_classes(self) -> tuple[int, ...]:
        """Ids of the classes trained so far, in order of arrival."""
        return self._seen.ids

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Global ids of the columns of ``mb_output``, ascending."""
        if self.experience is None:
            raise ValueError("There is no label space outside training and evaluation.")
        return self._training_ids() if self.is_training else self._evaluation_ids()

    @property
    def mb_classes(self) -> Tensor:
        """Global ids of the columns of ``mb_output``, int64 ``(C,)``."""
        return self._space_columns()[0]

    @property
    def mb_y(self) -> Tensor:
        """Column of each image's class, int64 ``(B,)``."""
        return torch.searchsorted(self.mb_classes, self.mb_targets)

    def _training_ids(self) -> tuple[int, ...]:
        # Replay replaces the loader, when the plugins before it have run.
        drawn = [contract.replayed_classes(self) for contract in self.contracts]
        source = (self.experience, self.adapted_dataset, self.dataloader, *drawn)
        space = self._train_space
        if (
            space is None
            or len(space[0]) != len(source)
            or any(a is not b for a, b in zip(space[0], source, strict=True))
        ):
            ids = set(experience_ids(self.experience))
            if self.label_space == "all":
                ids = set(self.class_prompts.ids)
            elif self.label_space != "own":
                datasets = list(getattr(self.dataloader, "datasets", ()))
                for dataset in (self.adapted_dataset, *datasets):
                    ids |= target_ids(dataset)
                ids.update(*drawn)
                if self.label_space == "seen":
                    ids |= set(self.seen_classes)
            space = self._train_space = (source, tuple(sorted(ids)))
        return space[1]

    def _evaluation_groups(self) -> list[tuple[int, ...]]:
        """Classes of the evaluation in groups, as they arrived."""
        own = self._candidates()
        if self.eval_label_space == "all":
            prompts = self.class_prompts
            return [prompts.ids_of(domain) for domain in prompts.domain_names]
        if self.eval_label_space == "seen":
            known = set(self.seen_classes)
            return [*self._seen.groups, tuple(i for i in own if i not in known)]
        return [own]

    def _candidates(self) -> tuple[int, ...]:
        """Classes of the evaluated experience.

        A test set that does not say which classes it is about has those of the
        domains that occur in it, even if some have no image: the number of
        candidates must not depend on the sample. Classes without a domain are
        one, except beside those that were trained on ("seen").
        """
        own = experience_ids(self.experience)
        if declared_ids(self.experience) is not None:
            return own
        prompts = self.class_prompts
        found = set(own)
        for domain in {prompts.domain(i) for i in own}:
            if domain or self.eval_label_space != "seen":
                found |= set(prompts.ids_of(domain))
        return tuple(sorted(found))

    def _evaluation_ids(self) -> tuple[int, ...]:
        source = (self.experience, len(self._seen.groups))
        space = self._eval_space
        if space is None or space[0][0] is not source[0] or space[0][1] != source[1]:
            ids = {i for group in self._evaluation_groups() for i in group}
            space = self._eval_space = (source, tuple(sorted(ids)))
            self._eval_matrices = {}
        return space[1]

    def _space_columns(self) -> tuple[Any, ...]:
        """Ids of the columns on the device, and which of them are one class."""
        ids = self.label_ids
        if self._columns is None or self._columns[-1] is not ids:
            classes = torch.tensor(ids, dtype=torch.int64, device=self.device)
            keys = [self._key(i) for i in ids]
            equal = distinct_rows(keys)
            index = (
                None
                if equal is None
                else tuple(torch.tensor(part, device=self.device) for part in equal)
            )
            self._columns = (classes, index, ids)
        return self._columns

    def _key(self, number: int) -> Any:
        prompts = self.class_prompts
        return prompt_key(prompts.name(number), prompts.templates(number))


def target_ids(dataset: Any) -> set[int]:
    """Classes that occur in a data set; none if it has no targets."""
    if "targets" not in getattr(dataset, "_data_attributes", ()):
        return set()
    return set(np.unique(attribute_array(dataset, "targets")).tolist())


def declared_ids(experience: Any) -> tuple[int, ...] | None:
    """Class ids that the benchmark gave an experience, or None."""
    ids = getattr(experience, "class_ids", None)
    if ids is None and "classes_in_this_experience" in vars(experience):
        # Set by Avalanche's with_classes_timeline, not worked out of the data.
        ids = experience.classes_in_this_experience
    return None if ids is None else tuple(dict.fromkeys(int(i) for i in ids))


def experience_ids(experience: Any) -> tuple[int, ...]:
    """Class ids of an experience: as its benchmark says, else those of its data."""
    ids = declared_ids(experience)
    return tuple(sorted(target_ids(experience.dataset))) if ids is None else ids


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
    if getattr(benchmark, "protocol", None) != CLASS_INCREMENTAL:
        return False
    return len(benchmark.streams.get("train", ())) > 1
