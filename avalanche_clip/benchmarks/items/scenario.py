"""Make scenarios whose experiences know what stock metrics and loops read.

Avalanche 0.6.0 attaches task labels and lists of classes by decorators, which make
new scenarios; here every experience of a scenario of this package works them out of
its data when they are read. An attribute that has been set, as the decorators do,
counts instead.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.generic_scenario import (
    CLExperience,
    EagerCLStream,
    ExperienceAttribute,
    SequenceCLStream,
)
from avalanche.benchmarks.scenarios.online import OnlineCLExperience
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.items.items import attribute_array

TASK_LABELS = "targets_task_labels"
_NO_TARGETS = (
    "its data are pairs without targets. Give targets to make_image_text_dataset."
)


class NoClassesError(AttributeError, ValueError):
    """Raised when the classes of data without targets are asked for."""


class Derived:
    """An attribute that is worked out while nobody has set it.

    Unlike a property it can be set on one object, and unlike a cached property it
    leaves no trace there that a copy around other data would take over.
    """

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else self.function(instance)


class StreamFacts:
    """Facts of an experience: its classes, its tasks and its place in a benchmark."""

    # `_found` holds, by name, the data set that a fact was read from, and the fact.

    @Derived
    def benchmark(self) -> Any:
        """The benchmark that the experience is a part of."""
        return getattr(_stream(self), "benchmark", None)

    @Derived
    def n_experiences(self) -> int:
        """Length of the stream that the experience is a part of."""
        return _full_length(_stream(self))

    @Derived
    def task_labels(self) -> list[int]:
        """Task labels that occur in the data, ascending; ``[0]`` without any."""
        return _tasks(self)

    @Derived
    def task_label(self) -> int:
        """The task label, where there is only one.

        :raises AttributeError: if there are several.
        """
        found = self.task_labels
        if len(found) != 1:
            raise AttributeError(
                f"{_where(self)} has the task labels {found}; read task_labels."
            )
        return int(found[0])

    @Derived
    def classes_in_this_experience(self) -> set[int]:
        """The targets that occur in the data.

        :raises NoClassesError: if the data have no targets.
        """
        return set(_classes(self).tolist())

    @Derived
    def previous_classes(self) -> set[int]:
        """The targets that occur before this experience of the stream."""
        return _met(self, lambda first, place: first < place)

    @Derived
    def classes_seen_so_far(self) -> set[int]:
        """The targets that occur up to this experience of the stream."""
        return _met(self, lambda first, place: first <= place)

    @Derived
    def future_classes(self) -> set[int]:
        """The targets that occur after this experience for the first time."""
        return _met(self, lambda first, place: first > place)


WORKED_OUT = [
    name for name, fact in vars(StreamFacts).items() if isinstance(fact, Derived)
]
"""What is true for a whole experience and not for a part of it."""


class ImageTextExperience(StreamFacts, DatasetExperience):
    """A data set of a stream, with what stock metrics read."""


class OnlineImageTextExperience(StreamFacts, OnlineCLExperience):
    """A part of an experience that is seen once, with what stock metrics read."""


class ImageTextScenario(CLScenario):
    """A benchmark with the facts that Avalanche's older ones have."""

    @Derived
    def n_experiences(self) -> int:
        """Length of the training stream, or of the first one without any."""
        return _full_length(_main_stream(self))

    @Derived
    def task_labels(self) -> list[list[int]]:
        """Task labels of each training experience."""
        return [list(e.task_labels) for e in _main_stream(self)]

    @Derived
    def classes_in_experience(self) -> dict[str, list[set[int]]]:
        """Stream -> targets that occur in each experience; streams with targets."""
        return {
            stream.name: [set(e.classes_in_this_experience) for e in stream]
            for stream in _with_classes(self)
        }

    @Derived
    def n_classes(self) -> int:
        """Number of different targets in all streams."""
        found = [_first_places(stream)[0] for stream in _with_classes(self)]
        return len(np.unique(np.concatenate(found)))


class PartStream(SequenceCLStream[Any]):
    """Parts of experiences, each made when it is asked for.

    The stream holds the order of the samples. It keeps the part that was asked for
    last, so that memory does not grow with the number of parts.

    :param name: of the stream.
    :param wholes: the experiences.
    :param orders: of each the positions of its samples in their order, int64.
    :param counts: of each the number of parts.
    :param size: samples per part; the last one of an experience may have fewer.
    :param cut: ``(whole, positions, number, count)`` -> an experience of some samples.
    """

    def __init__(
        self,
        name: str,
        wholes: Sequence[Any],
        orders: Sequence[np.ndarray],
        counts: Sequence[int],
        size: int,
        cut: Callable[..., Any],
    ):
        self.wholes, self.orders = list(wholes), list(orders)
        self.size, self.cut = size, cut
        self.ends = np.cumsum([0, *counts]).tolist()
        self._root, self._last = self, (-1, None)
        super().__init__(name, benchmark=None, set_stream_info=False)  # type: ignore[arg-type]

    def _full_length(self) -> int:
        return int(self.ends[-1])

    def place_of(self, part: int) -> tuple[int, int, np.ndarray]:
        """Number of its experience, its own number there, and its positions."""
        number = bisect_right(self.ends, part) - 1
        start = part - self.ends[number]
        rows = self.orders[number][start * self.size : (start + 1) * self.size]
        return number, start, rows

    def _make_experience(self, experience_idx: int) -> Any:
        part = range(self._full_length())[experience_idx]
        if self._last[0] != part:
            number, start, rows = self.place_of(part)
            count = self.ends[number + 1] - self.ends[number]
            made = self.cut(self.wholes[number], rows, start, count)
            _adopt(made)
            made.current_experience = part
            made.origin_stream = self._root
            self._last = (part, made)
        return self._last[1]

    def sizes(self) -> list[int]:
        """Samples of each part."""
        return [len(self.place_of(part)[-1]) for part in range(self._full_length())]

    def renewed(self, name: str, change: Callable[[Any], Any] | None = None) -> Any:
        """Make a stream of another scenario.

        :param change: what becomes of the data of the whole experiences.
        """
        stream = copy.copy(self)
        stream.name, stream._root, stream._last = name, stream, (-1, None)
        stream.exps_iter = stream
        if change is not None:
            own = [clone_experience(e, change(e.dataset)) for e in self.wholes]
            stream.wholes = own
        return stream


# --------------------------------------------------------------------- building
def make_experience(dataset: AvalancheDataset, **facts: Any) -> DatasetExperience:
    """Make an experience; its place is set by :func:`make_scenario`.

    :param facts: what it is to know, as attributes.
    """
    experience = ImageTextExperience(dataset=dataset, current_experience=0)
    for name, value in facts.items():
        setattr(experience, name, value)
    return experience


def make_scenario(
    streams: Mapping[str, Iterable[Any]], like: CLScenario | None = None, **facts: Any
) -> CLScenario:
    """Make a scenario whose streams and experiences know it and each other.

    Experiences that are part of another scenario are copied and left as they are.

    :param streams: name -> experiences, in their order.
    :param like: a scenario whose facts (labels, prompts) are carried over.
    :param facts: further ones of the scenario, as attributes.
    """
    built: list[Any] = []
    for name, given in streams.items():
        if isinstance(given, PartStream) and given.slice_ids is None:
            built.append(given.renewed(name))
            continue
        experiences = [
            e if e._origin_stream is None else clone_experience(e, e.dataset)
            for e in given
        ]
        for experience in experiences:
            _adopt(experience)
        built.append(EagerCLStream(name, experiences))
    scenario = ImageTextScenario(built)
    for stream in built:
        stream.benchmark = scenario
    if like is not None:
        _copy_facts(like, scenario)
    for name, value in facts.items():
        setattr(scenario, name, value)
    return scenario


def clone_experience(
    experience: CLExperience, dataset: AvalancheDataset
) -> DatasetExperience:
    """Copy an experience of any class, with its fields, around other data.

    A plain ``copy.copy`` would share Avalanche's masked attribute cells, so
    that renumbering the copy would renumber the original.
    """
    clone = copy.copy(experience)
    for name, value in vars(experience).items():
        if isinstance(value, ExperienceAttribute):
            vars(clone)[name] = copy.copy(value)
    clone._origin_stream = None
    clone._dataset = dataset
    return clone


def _copy_facts(source: CLScenario, target: CLScenario) -> None:
    """Carry over what generators attach to a scenario (labels, prompts)."""
    for name, value in vars(source).items():
        if not name.startswith("_") and not name.endswith("_stream"):
            setattr(target, name, value)
    if not hasattr(target, "time_labels"):
        # Avalanche's decorators make a new scenario, but keep the experiences.
        labels = [
            getattr(experience, "time_label", None)
            for experience in target.streams.get("train", ())
        ]
        if labels and None not in labels:
            target.time_labels = labels


def _adopt(experience: Any) -> None:
    """Make an experience of any class one with :class:`StreamFacts`."""
    cls = type(experience)
    if not isinstance(experience, StreamFacts):
        if cls not in _ADOPTED:
            _ADOPTED[cls] = type(cls.__name__, (StreamFacts, cls), {})
        experience.__class__ = _ADOPTED[cls]
    experience._found = {}


_ADOPTED: dict[type, type] = {
    DatasetExperience: ImageTextExperience,
    OnlineCLExperience: OnlineImageTextExperience,
}


# -------------------------------------------------------------------- reading
def _stream(experience: Any) -> Any:
    stream = experience._origin_stream
    if stream is None:
        raise AttributeError(
            "The experience is not a part of a stream yet; take it from one of the "
            "streams of a benchmark."
        )
    return stream


def _full_length(stream: Any) -> int:
    # Experiences know the whole stream, also when they are taken from a slice.
    full = getattr(stream, "_full_length", None)
    return int(full() if callable(full) else len(stream))


def _main_stream(benchmark: Any) -> Any:
    return benchmark.streams.get("train") or next(iter(benchmark.streams.values()))


def _where(experience: Any) -> str:
    logged = experience.logging()
    name = getattr(experience._origin_stream, "name", None)
    return f"Experience {logged._current_experience} of stream {name!r}"


def _remembered(experience: Any, name: str) -> Any:
    """The different values of a fact, ascending."""
    dataset = experience.dataset
    found = vars(experience).setdefault("_found", {})
    if name not in found or found[name][0] is not dataset:
        found[name] = (dataset, np.unique(attribute_array(dataset, name)))
    return found[name][1]


def _tasks(experience: Any) -> list[int]:
    if TASK_LABELS not in getattr(experience.dataset, "_data_attributes", ()):
        return [0]
    return _remembered(experience, TASK_LABELS).tolist() or [0]


def _classes(experience: Any) -> np.ndarray:
    if not has_targets(experience.dataset):
        raise NoClassesError(f"{_where(experience)} has no classes: {_NO_TARGETS}")
    return _remembered(experience, "targets")


def _first_places(stream: Any) -> tuple[np.ndarray, np.ndarray]:
    """Classes of a stream, ascending, and where each occurs first."""
    columns = [_classes(e) for e in _whole(stream)]
    places = np.repeat(np.arange(len(columns)), [len(c) for c in columns])
    classes = np.concatenate([np.empty(0, dtype=np.int64), *columns])
    found, index = np.unique(classes, return_index=True)
    return found, places[index]


def _with_classes(benchmark: Any) -> list[Any]:
    """The streams whose data have targets.

    :raises NoClassesError: if there are none.
    """
    streams = list(benchmark.streams.values())
    found = [s for s in streams if all(has_targets(e.dataset) for e in s)]
    if not found:
        raise NoClassesError(f"No stream of the benchmark has classes: {_NO_TARGETS}")
    return found


def whole_data(stream: Any) -> Iterator[Any]:
    """Data sets of a stream; of parts those that they are taken from."""
    for experience in getattr(stream, "wholes", stream):
        yield experience.dataset


def has_targets(dataset: Any) -> bool:
    """Whether the samples of a data set have a class or group."""
    return "targets" in getattr(dataset, "_data_attributes", ())


def _whole(stream: Any) -> list[Any]:
    return list(getattr(stream, "_exps", None) or stream)


def _met(experience: Any, when: Callable[[np.ndarray, int], np.ndarray]) -> set[int]:
    classes, first = _first_places(_stream(experience))
    place = int(experience.logging().current_experience)
    return set(classes[when(first, place)].tolist())
