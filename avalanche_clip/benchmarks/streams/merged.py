"""Several experiences as one, which knows what they knew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from avalanche.benchmarks import CLExperience
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.generic_scenario import ExperienceAttribute

from avalanche_clip.benchmarks.items.items import (
    attribute_array,
    concatenate,
    repeated,
)
from avalanche_clip.benchmarks.items.scenario import (
    WORKED_OUT,
    make_experience,
    make_scenario,
)
from avalanche_clip.common.checks import require_type

LABEL = "joint"
_GIVE = "an experience, a stream of a benchmark, or a list of its experiences"


def merge_experiences(experiences: Any) -> DatasetExperience:
    """Merge experiences of one stream into one that holds all their samples.

    The samples come in the order of the stream, whatever the order of the list; each
    keeps its attributes (ids, targets, language, timestamp, task label), transforms
    and collate. Nothing is loaded. The given experiences stay as they are.

    The new experience is the only one of its stream, in a new benchmark
    (``.benchmark``) whose other streams are those of the old one: train any strategy
    on it, or give that benchmark to :func:`run_stream`. What the experiences said of
    themselves is put together: ``class_ids``, ``class_names`` and ``languages`` are
    those of all; ``time_label`` is ``"first..last"``, ``time_start`` and ``time_end``
    span all; ``label`` is ``"joint"``; any other fact is kept where it is the same
    in all, and None where not. ``merged`` holds their places in their stream. The
    ``protocol`` of the new benchmark ends in ``_joint``, since a stream of one step
    has nothing to forget.

    :param experiences: a stream, a list of experiences of one stream, or one
        experience (which becomes the only one of its stream and else stays the same).
    :return: the merged experience, number 0 of its stream.
    :raises TypeError: if something else is given.
    :raises ValueError: if there is none, they belong to several benchmarks or
        streams or to none, one is given twice, samples of two of them have the same
        id, or their items hold different facts.

    >>> from avalanche_clip.benchmarks import tic_emoji
    >>> stream = tic_emoji().train_stream
    >>> whole = merge_experiences(stream[:2])
    >>> len(whole.dataset) == len(stream[0].dataset) + len(stream[1].dataset)
    True
    >>> whole.time_label, [len(s) for s in whole.benchmark.streams.values()]
    ('2010..2014', [1, 6, 1])
    """
    parts = listed(experiences)
    benchmark, name = one_stream(parts)
    parts.sort(key=_place)
    places = tuple(map(_place, parts))
    twice = sorted({p for p in places if places.count(p) > 1})
    if twice:
        raise ValueError(
            f"Experience {twice[0]} of stream {name!r} is given more than once; give "
            "each experience once."
        )
    _check_ids(parts)
    known = {**_facts(parts), **_class_facts(parts)}
    whole = make_experience(concatenate([e.dataset for e in parts]), **known)
    whole.merged = places
    facts: dict[str, Any] = {}
    if hasattr(benchmark, "time_labels"):
        facts["time_labels"] = [whole.time_label]
    if hasattr(benchmark, "languages") and name == "train":
        facts["languages"] = whole.languages
    if getattr(benchmark, "protocol", None) and len(parts) > 1:
        facts["protocol"] = f"{benchmark.protocol}_joint"
    made = make_scenario({**benchmark.streams, name: [whole]}, benchmark, **facts)
    merged: DatasetExperience = made.streams[name][0]
    return merged


def counterparts(experience: Any, stream: Sequence[Any]) -> list[Any]:
    """The experiences of a stream that belong to one of the training stream.

    :param experience: merged, or not.
    :param stream: with one experience per training experience, such as ``valid``.
    :return: that of its place, those of the places that were merged, or none.
    """
    shown = experience.logging()
    places = getattr(shown, "merged", (int(shown.current_experience),))
    return [stream[place] for place in places if place < len(stream)]


def listed(experiences: Any) -> list[Any]:
    """The experiences of a stream or a list of them, or the only one, as a list.

    :raises TypeError: for anything else.
    :raises ValueError: if there is none.
    """
    if isinstance(experiences, CLExperience):
        return [experiences]
    what = "What is to be merged"
    require_type(experiences, Iterable, what, _GIVE)
    found = list(experiences)
    for experience in found:
        require_type(experience, CLExperience, f"A part of {what.lower()}", _GIVE)
    if not found:
        raise ValueError(
            "There is nothing to merge: no experience was given. Give a stream of a "
            "benchmark, for example benchmark.train_stream."
        )
    return found


def one_stream(parts: Sequence[Any]) -> tuple[Any, str]:
    """The benchmark of some experiences, and the name of their stream there.

    :raises ValueError: if they belong to several streams, or to none.
    """
    benchmarks: list[Any] = []
    names: list[str] = []
    for part in parts:
        stream = part.logging()._origin_stream
        benchmark = getattr(stream, "benchmark", None)
        if benchmark is None:
            raise ValueError(
                "An experience of no benchmark was given; take it from a stream of a "
                "benchmark."
            )
        if not any(benchmark is known for known in benchmarks):
            benchmarks.append(benchmark)
        if stream.name not in names:
            names.append(stream.name)
    if len(benchmarks) > 1:
        raise ValueError(
            f"The experiences belong to {len(benchmarks)} benchmarks, whose ids and "
            "classes need not agree; give experiences of one, or make one benchmark "
            "of all data."
        )
    if len(names) > 1:
        raise ValueError(
            f"The experiences belong to the streams {names}; give experiences of one."
        )
    return benchmarks[0], str(names[0])


def _place(experience: Any) -> int:
    return int(experience.logging().current_experience)


def _check_ids(parts: Sequence[Any]) -> None:
    columns = [attribute_array(e.dataset, "sample_id") for e in parts]
    twice = repeated(*columns)
    if twice.size:
        having = [_place(e) for e, ids in zip(parts, columns) if twice[0] in ids]
        raise ValueError(
            f"{twice.size} sample ids occur more than once, for example {twice[0]} in "
            f"experiences {having}: each sample of a union counts once. Give the "
            "samples ids that are unique in the whole benchmark."
        )


# ------------------------------------------------------------------------ facts
def _facts(parts: Sequence[Any]) -> dict[str, Any]:
    """What all parts know, put together."""
    names = dict.fromkeys(n for part in parts for n in vars(part))
    kept = [n for n in names if not n.startswith("_") and n not in WORKED_OUT]
    return {name: _together(name, [_value(p, name) for p in parts]) for name in kept}


def _class_facts(parts: Sequence[Any]) -> dict[str, Any]:
    """Ids and names of the classes of all parts that say which they have."""
    if len(parts) == 1 or not all(hasattr(p, "class_ids") for p in parts):
        return {}
    ids = tuple(dict.fromkeys(i for part in parts for i in part.class_ids))
    found: dict[str, Any] = {"class_ids": ids}
    if all(hasattr(part, "class_names") for part in parts):
        pairs = (zip(p.class_ids, p.class_names, strict=True) for p in parts)
        names = {number: name for part in pairs for number, name in part}
        found["class_names"] = tuple(names[number] for number in ids)
    return found


def _value(part: Any, name: str) -> Any:
    value = vars(part).get(name)
    return value.value if isinstance(value, ExperienceAttribute) else value


def _together(name: str, values: list[Any]) -> Any:
    """One value of a fact for all parts, None where there is none."""
    if len(values) == 1 or all(_same(values[0], value) for value in values):
        return values[0]
    if any(value is None for value in values):
        return None
    if name == "languages":
        return tuple(dict.fromkeys(v for value in values for v in value))
    if name == "time_label":
        return f"{values[0]}..{values[-1]}"
    if name in ("time_start", "time_end"):
        return min(values) if name == "time_start" else max(values)
    return LABEL if name == "label" else None


def _same(left: Any, right: Any) -> bool:
    try:
        return left is right or bool(left == right)
    except (TypeError, ValueError, RuntimeError):  # arrays, tensors of other shapes
        return False
