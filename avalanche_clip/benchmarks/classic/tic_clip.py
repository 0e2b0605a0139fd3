"""The benchmarks of TiC-CLIP: image-text pairs of the web, over years.

Source of all: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226). Galleries of one
size, chosen by a hash, are ours: those of the paper are not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario

from avalanche_clip.benchmarks.datasets.captioned import CaptionedImages
from avalanche_clip.benchmarks.datasets.text_columns import TextColumn
from avalanche_clip.benchmarks.datasets.web.tic_lists import all_uids
from avalanche_clip.benchmarks.datasets.web.tic_shards import TicShards
from avalanche_clip.benchmarks.datasets.web.tic_tables import (
    name_hash,
    read_pair_table,
)
from avalanche_clip.benchmarks.datasets.web.uids import UIDArray, ordered_uids
from avalanche_clip.benchmarks.items.items import concatenate, make_image_text_dataset
from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
from avalanche_clip.benchmarks.items.skipped import skipped_for
from avalanche_clip.benchmarks.items.times import to_timestamp
from avalanche_clip.benchmarks.streams.quotas import keep_smallest, sample_priorities
from avalanche_clip.common.checks import (
    as_integer,
    as_size,
    existing_folder,
    require_distinct,
    require_known,
    require_some,
)
from avalanche_clip.common.files import files_below

TIC_DATACOMP_STEPS: dict[str, tuple[str, ...]] = {
    "2016": ("2014", "2015", "2016"),
    **{str(year): (str(year),) for year in range(2017, 2023)},
}
"""Time steps, named by the last year that is pooled in them."""
_YFCC = [("2008", "2004"), ("2010", "2009"), ("2012", "2011"), ("2014", "2013")]
_REDCAPS = [("2017", None), ("2018", "2018"), ("2019", "2019"), ("2020", "2020")]
_Part = tuple[int, str, "str | None", Sequence[Any], dict[str, Any]]
"""Place of its step, last and first year or month, sources of pairs, and facts."""


def tic_datacomp(
    train: str | Path,
    evaluation: str | Path | None = None,
    *,
    evaluation_uids: Any = (),
    steps: Mapping[str, Sequence[str]] = TIC_DATACOMP_STEPS,
    keep: Any = None,
    weights: Mapping[str, int] | None = None,
    gallery_size: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
    index: str | Path | None = None,
) -> CLScenario:
    """Build TiC-DataComp from its shards.

    Streams: ``train``, one experience per time step; ``test``, retrieval, one per
    evaluation set, of which a step may have several. Experiences carry ``time_label``,
    ``time_start``, ``time_end``, ``step`` (place in ``train``; ``fold_columns``
    averages the sets of a step), ``counts`` and ``skipped`` (of each source what was
    left out until now, a :class:`Skipped`), evaluation sets ``uids`` too. Classes are
    tested by ``ZeroShotTask.web("eval/datacompnet/2016", split="")``.

    Pairs of evaluation sets are taken out of every training set here: those of all
    sets in the evaluation folder and those of ``evaluation_uids``. The released lists
    without evaluation pairs still hold most of them.

    :param train: holds a folder of shards per source, see :class:`TicShards`.
    :param evaluation: holds ``retrieval/{source}``, and perhaps
        ``datacompnet/{source}``.
    :param evaluation_uids: lists of evaluation pairs, see :func:`all_uids`: give the
        released ones, since a smaller pool has a part of the evaluation sets only.
    :param steps: name of a step -> sources that it pools, in order of time. A source is
        a year; a month's step names the folder of its year, and has a list in ``keep``.
    :param keep: list of ids that may be used, such as those of a filter, or one per
        step: in ascending order, or the path of one. A month's list also restricts
        the evaluation set of its year, where it has none of its own.
    :param weights: source -> how often each of its pairs is there.
    :param gallery_size: retrieval pairs per evaluation set, chosen by a hash of their
        ids; default all. Scores of galleries of different sizes do not compare.
    :param seed: of that choice.
    :param on_error: see :class:`TicShards`.
    :param index: folder for the indexes of the shards, where those of the shards cannot
        be written to.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises FileNotFoundError: if a folder is missing.
    :raises ValueError: if neither evaluation sets nor their ids are given, a step has
        no pair left, or a gallery is larger than its set.

    Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226).
    """
    require_some(steps, "steps")
    sources = {
        str(label): tuple(map(str, [own] if isinstance(own, str) else own))
        for label, own in steps.items()
    }
    for label, own in sources.items():
        require_some(own, f"sources of step {label}")
        require_distinct(own, f"sources of step {label}")
        _bounds(_since(label, own), label)
    names = {name for own in sources.values() for name in own}
    weight = weights or {}
    require_known(weight, names, "weights of the sources")
    lists = _keep_lists(keep, sources)
    root = existing_folder(train, "give the folder of the training shards")
    if evaluation is None and (gallery_size is not None or seed):
        raise ValueError(
            "gallery_size and seed are of evaluation sets, of which there are none; "
            "give evaluation= or leave them out."
        )
    banned: list[Any] = [evaluation_uids]

    def shards(folder: Path, **options: Any) -> TicShards:
        own = None if index is None else Path(index, *folder.absolute().parts[1:])
        return TicShards(folder, on_error=on_error, index=own, **options)

    streams: dict[str, list[_Part]] = {"train": []}
    if evaluation is not None:
        place = existing_folder(evaluation, "give the folder of the evaluation sets")
        streams["test"] = []
        for folder in sorted(place.glob("*/*")):
            if files_below(folder, "*.tar"):
                pairs = shards(folder)
                # One without JSON is no pair here, but may be evaluated elsewhere.
                banned += [pairs.uids(), pairs.named_uids()]
        place = place / "retrieval"
        for number, (label, own) in enumerate(sources.items()):
            whole = label not in own and (place / label).is_dir()
            month = len(label) == 6 and not whole
            for name in (label,) if whole else own:
                pairs = shards(place / name, keep=lists[label] if month else None)
                shown = label if month else name
                items = _gallery(pairs.uids()["f0"], gallery_size, seed, shown)
                pairs.rows = pairs.rows[items]
                facts = {"counts": pairs.counts, "uids": pairs.uids()}
                since = _since(label, own) if whole else shown
                streams["test"].append((number, shown, since, [pairs], facts))
    without = all_uids(banned)
    if not len(without):
        raise ValueError(
            "Nothing says which pairs belong to evaluation sets; give evaluation= "
            "(their folder) or evaluation_uids= (their lists)."
        )
    for number, (label, own) in enumerate(sources.items()):
        options: dict[str, Any] = {"keep": lists[label], "without": without}
        trees = {n: shards(root / n, weight=weight.get(n, 1), **options) for n in own}
        facts = {"counts": {name: pairs.counts for name, pairs in trees.items()}}
        part = number, label, _since(label, own), list(trees.values()), facts
        streams["train"].append(part)
    return _scenario(streams, gallery_size=gallery_size)


def _since(label: str, sources: Sequence[str]) -> str:
    return label if len(label) == 6 else sources[0]


def _keep_lists(keep: Any, steps: Mapping[str, Any]) -> dict[str, UIDArray | None]:
    if keep is None:
        return dict.fromkeys(steps)
    if not isinstance(keep, Mapping):
        return dict.fromkeys(steps, ordered_uids(keep))
    if keep.keys() != steps.keys():
        raise ValueError(
            f"keep has lists of {list(keep)}, the steps are {list(steps)}; give one "
            "per step."
        )
    return {label: ordered_uids(own) for label, own in keep.items()}


def tic_yfcc(
    root: str | Path,
    images: str | Path,
    *,
    gallery_size: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
) -> CLScenario:
    """Build TiC-YFCC: photos by the year of their upload, in four time steps.

    The steps ``"2008"``, ``"2010"``, ``"2012"`` and ``"2014"`` are named by their last
    years. Streams ``train`` and ``test`` have one experience each per step, with
    ``time_label``, ``time_start``, ``time_end``, ``step``, ``skipped`` and ``counts``
    or, in ``test``, the ``names`` of its pairs. Photos of a test set are in no training
    set, of whatever step: those that are in both are left out and counted.

    :param root: with ``{train|test}_batch_{0..3}.csv``, see :func:`build_tic_yfcc`.
    :param images: folder that the paths of the tables begin in.
    :param gallery_size: pairs per test set, chosen by a hash of their paths; default
        all. Scores of galleries of different sizes do not compare.
    :param seed: of that choice.
    :param on_error: ``"raise"``, or ``"skip"`` pictures that cannot be read: our
        loaders leave them out of their batch and count them.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises FileNotFoundError: if a table is missing.
    :raises ValueError: if one is damaged, or a gallery is larger than its test set.

    Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226).
    """
    spans: Any = enumerate(_YFCC)
    return _tables(spans, root, images, gallery_size, seed, on_error)


def tic_redcaps(
    root: str | Path,
    images: str | Path,
    *,
    gallery_size: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
) -> CLScenario:
    """Build TiC-RedCaps: posts up to 2017, of 2018, of 2019 and of 2020.

    :param root: with ``{train|test}_batch_{2017..2020}.csv``, see
        :func:`build_tic_redcaps`.
    :param images: see :func:`tic_yfcc`, like all that follows.
    :param gallery_size: pairs per test set.
    :param seed: of their choice.
    :param on_error: ``"raise"`` or ``"skip"``.
    """
    spans = [(span[0], span) for span in _REDCAPS]
    return _tables(spans, root, images, gallery_size, seed, on_error)


class _TablePairs(CaptionedImages):
    """Rows of a table; those that cannot be read may be left out of their batch."""

    def __init__(self, table: Any, rows: Any, images: str | Path, on_error: str):
        if len(rows) < len(table[0]):
            table = [TextColumn.from_texts(c[row] for row in rows) for c in table]
        names, captions = table
        ones = np.ones(len(rows), dtype=np.int64)
        super().__init__(names, captions, ones, rows, images, single=True)
        self.skipped = skipped_for(on_error)


def _tables(
    spans: Iterable[tuple[Any, tuple[str, Any]]],
    root: str | Path,
    images: str | Path,
    gallery_size: int | None,
    seed: int,
    on_error: str,
) -> CLScenario:
    root = existing_folder(root, "give the folder of the tables")
    existing_folder(images, "give the folder of the pictures")
    streams: dict[str, list[Any]] = {"train": [], "test": []}
    tested: set[str] = set()
    batches = list(enumerate(spans))
    for stream in ("test", "train"):
        for step, (batch, (label, since)) in batches:
            stem = f"{stream}_batch_{batch}"
            table = read_pair_table(root / f"{stem}.csv")
            names, facts = table[0], dict[str, Any]()
            if stream == "test":
                tested.update(names)
                ids = np.fromiter(map(name_hash, names), np.uint64)
                rows = _gallery(ids, gallery_size, seed, stem)
                facts["names"] = [names[row] for row in rows]
            else:
                rows = np.flatnonzero([name not in tested for name in names])
                lost = len(names) - len(rows)
                facts["counts"] = {"found": len(names), "in test sets": lost}
            require_some(rows, f"pairs of {stem}.csv")
            pairs = _TablePairs(table, rows, images, on_error)
            streams[stream].append((step, label, since, [pairs], facts))
    return _scenario(streams, gallery_size=gallery_size)


# ------------------------------------------------------------------- time steps
def _scenario(streams: Mapping[str, Sequence[_Part]], **facts: Any) -> CLScenario:
    """Make a scenario of time steps; sample ids count through all streams."""
    first = 0
    built: dict[str, list[Any]] = {}
    for name, parts in streams.items():
        built[name] = []
        for step, label, since, sources, known in parts:
            sets = []
            for pairs in sources:
                ids = first + np.arange(len(pairs))
                sets.append(make_image_text_dataset(pairs, sample_ids=ids))
                first += len(pairs)
            start, end = _bounds(since, label)
            known = {"time_start": start, "time_end": end, "step": step, **known}
            known["skipped"] = [pairs.skipped for pairs in sources]
            data = concatenate(sets)
            built[name].append(make_experience(data, time_label=label, **known))
    labels = [part[1] for part in streams["train"]]
    return make_scenario(built, time_labels=labels, **facts)


def _gallery(ids: np.ndarray, size: int | None, seed: int, label: str) -> np.ndarray:
    """Choose pairs of an evaluation set by a hash of their ids; fewer are a part."""
    seed = as_integer(seed, "seed")
    if size is None:
        if seed:
            raise ValueError(
                f"seed={seed} has no effect without gallery_size, which it chooses; "
                "leave it out."
            )
        return np.arange(len(ids))
    size = as_size(size, "gallery_size")
    require_some(ids, f"pairs in the evaluation set {label}", least=size)
    return keep_smallest(sample_priorities(ids, seed, 0), size)


def _bounds(since: str | None, label: str) -> tuple[float, float]:
    """Start of one year or month, and end of another."""
    for given in filter(None, (label, since)):
        if not re.fullmatch("[0-9]{4}(0[1-9]|1[0-2])?", given):
            raise ValueError(f"{given!r} is no time; use a year YYYY or month YYYYMM.")
    year, month = int(label[:4]), int(label[4:] or 12)
    end = to_timestamp(f"{year + month // 12:04}-{month % 12 + 1:02}-01")
    if since is None:
        return -np.inf, end
    return to_timestamp(f"{since[:4]}-{since[4:] or '01'}-01"), end
