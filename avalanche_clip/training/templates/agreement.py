"""What processes must have in common when they train together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.captions import read_captions
from avalanche_clip.benchmarks.items.content import Remembered, data_summary
from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.common.fingerprint import bit_sums
from avalanche_clip.common.plain import is_plain
from avalanche_clip.common.randomness import kept_rng, seed_cpu
from avalanche_clip.common.ranks import hash_of
from avalanche_clip.training.templates.order import worker_options
from avalanche_clip.training.templates.settings import strategy_settings

CAPTIONS = 256
"""Samples of each data set whose captions are compared at least, spread over it."""
MOST_CAPTIONS = 100_000
"""Samples at most: as many as the slowest process reads in :data:`SECONDS`."""
SECONDS = 1.0
_TIMED = 32
_READ = Remembered()
"""Of each data set the number of captions compared before, and their hash."""

Facts = dict[str, Any]


def agree_on_training(
    strategy: Any, experiences: Any, eval_streams: Any, options: dict[str, Any]
) -> None:
    """Stop all processes unless they are about to train the same.

    :param strategy: the strategy, its model included.
    :param experiences: what ``train`` was given.
    :param eval_streams: what is evaluated in training.
    :param options: further arguments of ``train``.
    :raises RankError: naming what differs, with the values of both ranks.
    """
    workers = worker_options(options)
    given = {k: v for k, v in options.items() if k not in workers and is_plain(v)}
    streams = {"train": experiences, "eval_streams": eval_streams}
    given["eval_streams"] = None if eval_streams is None else "given"
    _check(
        "the start of train()",
        strategy,
        streams,
        {f"train({name}=...)": value for name, value in given.items()},
    )


def agree_on_run(strategy: Any, benchmark: Any, options: Facts) -> None:
    """Stop all processes unless they are about to make the same run.

    :param strategy: the strategy, its model included.
    :param benchmark: all its streams are compared.
    :param options: arguments of ``run_stream``.
    :raises RankError: naming what differs, with the values of both ranks.
    """
    distributed.require_joined()
    given = {f"run_stream({name}=...)": value for name, value in options.items()}
    place = "the start of run_stream()"
    _check(place, strategy, dict(benchmark.streams), given)
    # What the comparison above does not see, such as images.
    whole = "the hash of the data"
    distributed.agree(place, lambda: {whole: data_summary(benchmark)["hash"]})


def agree_on_steps(strategy: Any) -> None:
    """Stop all processes unless they are about to make the same steps.

    :param strategy: in an experience whose data and steps are planned.
    :raises RankError: naming what differs, with the values of both ranks.
    """
    pool = strategy.adapted_dataset

    def facts() -> Facts:
        found = {
            "the planned iterations": strategy.planned_iterations,
            "the epochs": strategy.train_epochs,
            "the batches of an epoch": len(strategy.dataloader),
        }
        return found | _columns("the training pool", pool)

    def detail(key: str) -> Any:
        return _column(pool, key.rpartition(".")[2]) if "." in key else None

    place = f"the first step of experience {strategy.experience_index}"
    distributed.agree(place, facts, detail)


def _check(place: str, strategy: Any, streams: dict[str, Any], given: Facts) -> None:
    data = dict(_data_sets(streams))
    counts = _counts(place, data)

    def facts() -> Facts:
        found = {**given, **_settings(strategy), **_lengths(streams)}
        for name, dataset in data.items():
            found |= _columns(name, dataset)
            found[f"{name}.captions"] = _captions_hash(dataset, counts[name])
        return found | _prompts(streams) | _weights(strategy.model)

    def detail(key: str) -> Any:
        name, _, fact = key.rpartition(".")
        if name not in data:
            return None
        if fact == "captions":
            return _captions(data[name], counts[name])
        return _column(data[name], fact)

    distributed.agree(place, facts, detail)


# -------------------------------------------------------------------------- data
def _data_sets(streams: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Data sets behind experiences, streams, and lists of them, by name."""
    for name, found in streams.items():
        if hasattr(found, "dataset"):
            yield name, found.dataset
        elif isinstance(found, Iterable) and not isinstance(found, (str, bytes)):
            # Of an online stream the experiences that it cuts; the hash of the data,
            # which is compared too, covers how.
            parts = enumerate(getattr(found, "wholes", found))
            yield from _data_sets({f"{name}[{k}]": part for k, part in parts})


def _lengths(streams: dict[str, Any]) -> Facts:
    return {
        f"the number of experiences of {name}": len(found)
        for name, found in streams.items()
        if hasattr(found, "__len__") and not hasattr(found, "dataset")
    }


def _columns(name: str, dataset: Any) -> Facts:
    """Number of samples, and hashes of their facts."""
    found: Facts = {f"the number of samples of {name}": len(dataset)}
    for fact in getattr(dataset, "_data_attributes", ()):
        column = np.ascontiguousarray(_column(dataset, fact))
        content = repr(column.tolist()).encode() if column.dtype == object else column
        found[f"{name}.{fact}"] = hash_of(content)
    return found


def _column(dataset: Any, fact: str) -> Any:
    if fact not in getattr(dataset, "_data_attributes", ()):
        return None
    return attribute_array(dataset, fact)


def _counts(place: str, data: dict[str, Any]) -> dict[str, int]:
    """How many captions of each data set are compared, the same on all processes."""
    if not distributed.is_distributed():
        return {}
    with distributed.together(place):
        own = {name: _affordable(dataset) for name, dataset in data.items()}
    found = distributed.exchange(f"{place}, counting captions", own)
    return {name: min(one.get(name, own[name]) for one in found) for name in own}


def _affordable(dataset: Any) -> int:
    """Captions that this process reads in time; images may have to be decoded."""
    known = _READ.get(dataset)
    if known is not None:
        return int(known[0])
    _captions(dataset, 1)  # the first one may open files
    begin = time.perf_counter()
    _captions(dataset, _TIMED)
    each = (time.perf_counter() - begin) / _TIMED
    return int(min(max(SECONDS / max(each, 1e-9), CAPTIONS), MOST_CAPTIONS))


def _captions_hash(dataset: Any, count: int) -> str:
    if not isinstance(dataset, AvalancheDataset):
        return ""
    known = _READ.get(dataset)
    if known is None or known[0] != count:
        captions = repr(_captions(dataset, count)).encode("utf-8", "backslashreplace")
        known = _READ.put(dataset, (count, hash_of(captions)))
    return str(known[1])


def _captions(dataset: Any, count: int) -> list[Any]:
    """Captions of some samples, the first and the last among them."""
    if not isinstance(dataset, AvalancheDataset):
        return []
    spread = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
    positions = spread.round().astype(int).tolist()
    with kept_rng():  # a source may draw among captions
        seed_cpu(0)
        try:
            found = list(read_captions(dataset, positions))
        except Exception:  # an item that is met, or skipped, in training
            found = [_readable(dataset, position) for position in positions]
    return [
        [c.tolist() if isinstance(c, Tensor) else c for c in captions]
        for captions in found
    ]


def _readable(dataset: Any, position: int) -> list[Any]:
    try:
        return next(read_captions(dataset, [position]))
    except Exception as error:
        return [f"cannot be read ({type(error).__name__})"]


# ---------------------------------------------------------------------- settings
def _settings(strategy: Any) -> Facts:
    settings, clock = strategy_settings(strategy), strategy.clock
    plugins, evaluated = settings.pop("plugins"), settings.pop("eval_mb_size", None)
    found = {
        **settings,
        "plugins": [key.partition(" ")[2] for key in plugins],
        "plugin": plugins,
        "experiences trained": clock.train_exp_counter,
        "iterations trained": clock.train_iterations,
        "resumed inside an experience": strategy._pending is not None,
        "eval_mb_size": evaluated,
        "sharding": strategy.step.sharding,
    }
    return dict(_flat("", found))


def _flat(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts and lists, by their place."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(f"{where}.{key}" if where else str(key), part)
    elif isinstance(value, (list, tuple)) and any(isinstance(v, dict) for v in value):
        for number, part in enumerate(value):
            yield from _flat(f"{where}[{number}]", part)
    else:
        yield where, value


# ------------------------------------------------------------ prompts and weights
def _prompts(streams: dict[str, Any]) -> Facts:
    """Hash of the class names of a benchmark, and its transforms."""
    origin = getattr(streams.get("train"), "origin_stream", None)
    benchmark = getattr(streams.get("train"), "benchmark", None)
    benchmark = benchmark or getattr(origin, "benchmark", None)
    found: Facts = {"the transforms": getattr(benchmark, "transforms", None)}
    if (prompts := getattr(benchmark, "class_prompts", None)) is not None:
        found["benchmark.class_prompts"] = prompts.fingerprint()
    return found


def _weights(model: Any) -> Facts:
    """Shapes, types and bit sums of all tensors, by name."""
    named = [
        (name, tensor)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    ]
    sums = bit_sums(named)
    tokenizer = getattr(model, "tokenizer", None)
    size = getattr(tokenizer, "vocab_size", None)
    found = {"the tokenizer's vocabulary": f"{type(tokenizer).__name__} {size}"}
    for name, tensor in named:
        kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        trained = "trained" if tensor.requires_grad else "frozen"
        found[f"model.{name}"] = f"{kind} {trained}, bit sum {sums[name]}"
    return found
