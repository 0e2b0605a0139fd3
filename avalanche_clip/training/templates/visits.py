"""Which steps a run has trained, in which order and how often.

A step is known by its stream, its index there and a hash of its data,
never by how many steps were trained before it. So steps may be trained in any
order, left out and trained again, and a resumed run finds the data of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from avalanche_clip.benchmarks.items.content import step_hash
from avalanche_clip.benchmarks.items.scenario import PartStream
from avalanche_clip.common.randomness import scramble


class Step(NamedTuple):
    """What tells a step from all others.

    Experience 0 of a validation stream, or of another benchmark, is another step
    than experience 0 of the training stream.
    """

    stream: str
    """Name of the stream that the experience comes from, empty for none."""
    place: int
    """``current_experience``: its place in that stream."""
    data: str
    """Hash of its data."""

    def __str__(self) -> str:
        stream = f" of stream {self.stream!r}" if self.stream else ""
        return f"experience {self.place}{stream}"


def step_of(experience: Any) -> Step:
    """Identify the step that an experience is.

    The data are told apart by :func:`content_hash`, which reads some items of a data
    set the first time it is seen.

    :param experience: of any stream, sliced ones included.
    """
    shown = experience.logging()
    stream = getattr(shown, "_origin_stream", None)
    place = int(shown.current_experience)
    own = stream if isinstance(stream, PartStream) else {place: experience}
    return Step(str(getattr(stream, "name", "")), place, step_hash(own, place))


def find_step(benchmark: Any, step: Step) -> Any:
    """Find the experience of a step that a stored run has trained.

    :param benchmark: the one that the run is resumed with.
    :param step: from :func:`step_of`.
    :raises ValueError: see :func:`require_step`.
    """
    require_step(benchmark, step)
    stream = benchmark.streams[step.stream]
    experiences = stream if isinstance(stream, Sequence) else list(stream)
    return experiences[step.place]


def require_step(benchmark: Any, step: Step) -> None:
    """Raise unless a benchmark has a step, which is not made for that.

    :raises ValueError: if the benchmark has no such experience, or one with other
        data.
    """
    advice = (
        "Resume with the benchmark of that run; if it trained on several, put all "
        "their streams into one scenario."
    )
    stream = benchmark.streams.get(step.stream, ())
    experiences = stream if isinstance(stream, Sequence) else list(stream)
    if not 0 <= step.place < len(experiences):
        have = {name: len(list(stream)) for name, stream in benchmark.streams.items()}
        raise ValueError(
            f"The stored run has trained {step}, which the benchmark does not have "
            f"(streams and their lengths: {have}). {advice}"
        )
    if step_hash(experiences, step.place) != step.data:
        raise ValueError(
            f"The stored run has trained {step} on other samples than the benchmark "
            f"has there. {advice}"
        )


def belongs(step: Step, benchmark: Any) -> bool:
    """Whether a step is one of a benchmark's, with the same data."""
    try:
        require_step(benchmark, step)
    except ValueError:
        return False
    return True


def seed_number(index: int, visit: int) -> int:
    """Number that seeds what is drawn in one visit of a step.

    :param index: of the step in its stream.
    :param visit: earlier visits, 0 for the first.
    :return: the index itself on the first visit; else a scrambled number above
        ``2**62``, which no index or pass number equals.

    >>> seed_number(3, 0), seed_number(3, 1) != seed_number(3, 2)
    (3, True)
    """
    if not visit:
        return index
    return int(scramble(index, visit) >> np.uint64(2)) | 2**62


class Visits:
    """The steps that a strategy has trained, and the one it is training."""

    def __init__(self) -> None:
        self.finished: list[Step] = []
        """Every finished visit, in order; a step that came again is there again."""
        self._counts: Counter[Step] = Counter()
        self.current: Step | None = None
        """The step of the visit that has begun, None between visits."""

    def begin(self, experience: Any) -> None:
        """Note that an experience is about to be trained."""
        self.current = step_of(experience)

    def end(self) -> None:
        """Note that the running visit is complete."""
        assert self.current is not None
        self.finished.append(self.current)
        self._counts[self.current] += 1
        self.current = None

    @property
    def earlier_visits(self) -> int:
        """How often the running step was trained before."""
        return 0 if self.current is None else self._counts[self.current]

    @property
    def seed_number(self) -> int:
        """See :func:`seed_number`; of the running visit."""
        if self.current is None:
            return self.next_index
        return seed_number(self.current.place, self.earlier_visits)

    @property
    def next_index(self) -> int:
        """Index behind that of the step that was trained last, 0 at the start."""
        return self.finished[-1].place + 1 if self.finished else 0

    @property
    def others(self) -> list[Step]:
        """The distinct steps trained so far, in order of their last visit.

        The running step is not among them, even if it was trained before.
        """
        last = {step: place for place, step in enumerate(self.finished)}
        return [s for s in sorted(last, key=last.__getitem__) if s != self.current]

    def number_of(self, step: Step) -> int:
        """How many other steps of the same index were trained before this one.

        0 unless steps of several streams or benchmarks are trained; tells such
        steps apart where they are named by their index.
        """
        alike = [s for s in dict.fromkeys(self.finished) if s.place == step.place]
        return alike.index(step) if step in alike else len(alike)

    def trained(self) -> list[Step]:
        """All visits that the model has gone through, the running one included."""
        return [*self.finished, *([] if self.current is None else [self.current])]

    def state_dict(self) -> dict[str, Any]:
        """Return the visits as plain data."""
        current = None if self.current is None else list(self.current)
        return {"finished": [list(step) for step in self.finished], "current": current}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back the finished visits; the interrupted one has to begin again."""
        self.finished = [read_step(step) for step in state["finished"]]
        self._counts = Counter(self.finished)
        self.current = None


def read_step(state: Any) -> Step:
    """Read a step from plain data."""
    stream, index, data = state
    return Step(str(stream), int(index), str(data))
