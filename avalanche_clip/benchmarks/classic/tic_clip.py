"""The benchmarks of TiC-CLIP: image-text pairs of the web, over years.

Source of all: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226). Galleries of one
size, chosen by a hash, are ours: those of the paper are not known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario
from PIL import Image

from avalanche_clip.benchmarks.datasets.captioned import load_image
from avalanche_clip.benchmarks.datasets.web.pairs import TarPairs
from avalanche_clip.benchmarks.datasets.web.tar_index import find_tars, open_tar_index
from avalanche_clip.benchmarks.datasets.web.tic_lists import all_uids
from avalanche_clip.benchmarks.datasets.web.tic_shards import TicShards
from avalanche_clip.benchmarks.datasets.web.tic_tables import (
    REDCAPS_BATCHES,
    YFCC_BATCHES,
    read_pair_table,
)
from avalanche_clip.benchmarks.datasets.web.uids import UIDArray, ordered_uids
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.items.items import concatenate, make_image_text_dataset
from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
from avalanche_clip.benchmarks.items.skipped import skipped_for
from avalanche_clip.benchmarks.items.times import to_timestamp
from avalanche_clip.benchmarks.streams.classes import LabelledImages
from avalanche_clip.benchmarks.streams.quotas import keep_smallest, sample_priorities
from avalanche_clip.common.checks import (
    as_integer,
    as_size,
    existing_folder,
    require_indices,
    require_known,
    require_some,
)
from avalanche_clip.common.files import read_lines, require_file, unreadable

TIC_DATACOMP_STEPS: dict[str, tuple[str, ...]] = {
    "2016": ("2014", "2015", "2016"),
    **{str(year): (str(year),) for year in range(2017, 2023)},
}
"""Time steps, named by the last year that is pooled in them."""
_YFCC = [("2008", "2004"), ("2010", "2009"), ("2012", "2011"), ("2014", "2013")]
_REDCAPS = [("2017", None), ("2018", "2018"), ("2019", "2019"), ("2020", "2020")]
_PROMPTS = ("classnames.txt", "zeroshot_classification_templates.txt")
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
    evaluation set, of which a step may have several; ``classification`` where the
    evaluation folder holds it. Experiences carry ``time_label``, ``time_start``,
    ``time_end``, ``step`` (place in ``train``; ``fold_columns`` averages the sets of a
    step) and ``counts``, evaluation sets ``uids`` too.

    Pairs of evaluation sets are taken out of every training set here: those in the
    evaluation folder and those of ``evaluation_uids``. The released lists without
    evaluation pairs still hold most of them.

    :param train: holds a folder of shards per source, see :class:`TicShards`.
    :param evaluation: holds ``retrieval/{source}``, and perhaps
        ``datacompnet/{source}`` with ``classnames.txt`` and
        ``zeroshot_classification_templates.txt`` in it or beside it.
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
    sources = {str(label): tuple(own) for label, own in steps.items()}
    for label, own in sources.items():
        require_some(own, f"sources of step {label}")
        _bounds(_since(label, own), label)
    names = {name for own in sources.values() for name in own}
    require_known(weights or (), names, "weights of the sources")
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

    def sets(folder: Path) -> Iterator[tuple[TicShards, _Part]]:
        for number, (label, own) in enumerate(sources.items()):
            whole = label not in own and (folder / label).is_dir()
            month = len(label) == 6 and not whole
            for name in (label,) if whole else own:
                pairs = shards(folder / name, keep=lists[label] if month else None)
                banned.append(pairs.uids())
                shown = label if month else name
                since = _since(label, own) if whole else shown
                yield pairs, (number, shown, since, [pairs], {"counts": pairs.counts})

    streams: dict[str, list[_Part]] = {"train": []}
    prompts: list[ClassPrompts] = []
    if evaluation is not None:
        place = existing_folder(evaluation, "give the folder of the evaluation sets")
        streams["test"] = []
        for pairs, part in sets(place / "retrieval"):
            items = _gallery(pairs.uids()["f0"], gallery_size, seed, part[1])
            pairs.rows = pairs.rows[items]
            part[-1]["uids"] = pairs.uids()
            streams["test"].append(part)
        if (place / "datacompnet").is_dir():
            found = list(sets(place / "datacompnet"))
            prompts.append(_prompts(found[0][0].index.tars[0].parent))
            streams["classification"] = [
                (*part[:3], [_labelled(pairs, prompts[0])], part[4])
                for pairs, part in found
            ]
    without = all_uids(banned)
    if not len(without):
        raise ValueError(
            "Nothing says which pairs belong to evaluation sets; give evaluation= "
            "(their folder) or evaluation_uids= (their lists)."
        )
    for number, (label, own) in enumerate(sources.items()):
        options: dict[str, Any] = {"keep": lists[label], "without": without}
        weight = [(weights or {}).get(name, 1) for name in own]
        trees = [
            shards(root / name, weight=w, **options)
            for name, w in zip(own, weight, strict=True)
        ]
        facts = {"counts": {n: t.counts for n, t in zip(own, trees, strict=True)}}
        streams["train"].append((number, label, _since(label, own), trees, facts))
    known = {"class_prompts": prompts[0]} if prompts else {}
    return _scenario(streams, gallery_size=gallery_size, **known)


def _since(label: str, sources: Sequence[str]) -> str:
    return label if len(label) == 6 else sources[0]


def _keep_lists(keep: Any, steps: Mapping[str, Any]) -> dict[str, UIDArray | None]:
    if keep is None:
        return dict.fromkeys(steps)
    if not isinstance(keep, Mapping):
        return dict.fromkeys(steps, ordered_uids(keep))
    require_known(keep, steps, "steps with a list")
    missing = [label for label in steps if label not in keep]
    if missing:
        raise ValueError(f"keep has no list of the steps {missing}; give one per step.")
    return {label: ordered_uids(own) for label, own in keep.items()}


def _prompts(folder: Path) -> ClassPrompts:
    """Read the class names and templates that lie in a folder, or beside it."""
    found = []
    for name in _PROMPTS:
        near, above = folder / name, folder.parent / name
        path = require_file(near if near.is_file() else above, "put it there")
        found.append([line for _, line in read_lines(path) if line.strip()])
    return ClassPrompts(found[0], [t.replace("{c}", "{}") for t in found[1]])


def _labelled(pairs: TicShards, prompts: ClassPrompts) -> LabelledImages:
    classes = pairs.classes()
    require_indices(classes, len(prompts), f"classes in {pairs.index.tars[0]}")
    return LabelledImages(pairs, classes, prompts.prompts())


def tic_yfcc(
    root: str | Path,
    images: str | Path | None = None,
    *,
    gallery_size: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
    index: str | Path | None = None,
) -> CLScenario:
    """Build TiC-YFCC: photos by the year of their upload, in four time steps.

    The steps ``"2008"``, ``"2010"``, ``"2012"`` and ``"2014"`` are named by their last
    years. Streams ``train`` and ``test`` have one experience each per step, with
    ``time_label``, ``time_start``, ``time_end``, ``step``, ``counts`` and, in ``test``,
    the ``names`` of its pairs. Photos of a test set are in no training set, of whatever
    step: those that are in both are left out and counted.

    :param root: with ``{train|test}_batch_{0..3}.csv``, see :func:`build_tic_yfcc`; and
        shards ``{train|test}_batch_{b}__*.tar`` of pictures and JSON texts, where no
        ``images`` are given. Shards alone will do; then the tables that they were made
        of say which photos are tested.
    :param images: folder that the paths of the tables begin in.
    :param gallery_size: pairs per test set, chosen by a hash of their paths; default
        all. Scores of galleries of different sizes do not compare.
    :param seed: of that choice.
    :param on_error: ``"raise"``, or ``"skip"`` samples that cannot be read, see
        :class:`TarPairs`.
    :param index: folder for the indexes of the shards; default ``tar_index`` beside
        them.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises FileNotFoundError: if a table or the shards of a batch are missing.
    :raises ValueError: if one is damaged, or a gallery is larger than its test set.

    Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226).
    """
    batches: Any = dict(zip(YFCC_BATCHES, _YFCC, strict=True))
    return _tables(batches, root, images, gallery_size, seed, on_error, index)


def tic_redcaps(
    root: str | Path,
    images: str | Path | None = None,
    *,
    gallery_size: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
    index: str | Path | None = None,
) -> CLScenario:
    """Build TiC-RedCaps: posts up to 2017, of 2018, of 2019 and of 2020.

    :param root: with ``{train|test}_batch_{2017..2020}.csv``, see
        :func:`build_tic_redcaps`, or shards.
    :param images: see :func:`tic_yfcc`, like all that follows.
    :param gallery_size: pairs per test set.
    :param seed: of their choice.
    :param on_error: ``"raise"`` or ``"skip"``.
    :param index: folder for the indexes of the shards.
    """
    batches = dict(zip(REDCAPS_BATCHES, _REDCAPS, strict=True))
    return _tables(batches, root, images, gallery_size, seed, on_error, index)


class _TablePairs:
    """Rows of a table; those that cannot be read may be left out of their batch."""

    def __init__(self, names: Any, captions: Any, images: Any, on_error: str) -> None:
        self.names, self.captions, self.images = names, captions, images
        self.rows = np.arange(len(names))
        self.skipped = skipped_for(on_error)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[Image.Image, str]:
        text = self.text(item)
        return load_image(self.images, self.names[self.rows[item]]), text

    def text(self, item: int) -> str:
        """Return a caption without its picture."""
        return self.captions[self.rows[item]]


def _tables(
    batches: Mapping[int, tuple[str, str | None]],
    root: str | Path,
    images: str | Path | None,
    gallery_size: int | None,
    seed: int,
    on_error: str,
    index: str | Path | None,
) -> CLScenario:
    root = existing_folder(root, "give the folder of the tables or shards")
    if images is not None:
        existing_folder(images, "give the folder of the pictures")
        if index is not None:
            raise ValueError(
                f"index={str(index)!r} has no effect on the pictures of images=, which "
                "are no shards; leave one of them out."
            )
    streams: dict[str, list[Any]] = {"train": [], "test": []}
    tested: set[str] = set()
    for stream in ("test", "train"):
        for number, (batch, (label, since)) in enumerate(batches.items()):
            stem = f"{stream}_batch_{batch}"
            pairs, names = _source(root, stem, images, on_error, index)
            facts: dict[str, Any] = {}
            if stream == "test":
                tested.update(names)
                items = _gallery(_hashes(names), gallery_size, seed, stem)
                facts["names"] = [names[item] for item in items]
            else:
                items = np.flatnonzero([name not in tested for name in names])
                lost = len(pairs) - len(items)
                facts["counts"] = {"found": len(pairs), "in test sets": lost}
            pairs.rows = pairs.rows[items]
            part = number, label, since, [pairs], facts
            streams[stream].append(part)
    return _scenario(streams, gallery_size=gallery_size)


def _source(
    root: Path,
    stem: str,
    images: str | Path | None,
    on_error: str,
    index: str | Path | None,
) -> tuple[Any, Any]:
    """Return the pairs of a table or of its shards, and the names of all of them."""
    path, table = root / f"{stem}.csv", None
    if images is not None or path.is_file():
        table = read_pair_table(path)
        if images is not None:
            return _TablePairs(*table, images, on_error), table[0]
    tars = [tar for tar in find_tars(root) if tar.name.startswith(f"{stem}__")]
    if not tars:
        raise FileNotFoundError(
            f"{root} has no shards {stem}__*.tar; give images= for its tables."
        )
    where = Path(root / "tar_index" if index is None else index, stem)
    found = open_tar_index(tars, where, on_error=on_error)
    pairs = TarPairs(found, "json:caption", on_error=on_error)
    keys = [found.names[row].rpartition("/")[2] for row in pairs.rows]
    if table is None:  # then the split is that of the shards
        return pairs, [f"{stem}/{key}" for key in keys]
    wrong = [k for k in keys if not k.isdecimal() or int(k) >= len(table[0])]
    if wrong:
        words = (
            f"the sample {wrong[0]!r} of its shards is no row of its {len(table[0])}"
        )
        raise unreadable(path, "the table of these shards", words)
    return pairs, [table[0][int(key)] for key in keys]


def _hashes(names: Any) -> np.ndarray:
    parts = (hashlib.blake2b(str(n).encode(), digest_size=8).digest() for n in names)
    return np.frombuffer(b"".join(parts), dtype="<u8")


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
                options: dict[str, Any] = {"sample_ids": first + np.arange(len(pairs))}
                if isinstance(pairs, LabelledImages):
                    options["targets"] = pairs.targets
                sets.append(make_image_text_dataset(pairs, **options))
                first += len(pairs)
            start, end = _bounds(since, label)
            known = {"time_start": start, "time_end": end, "step": step, **known}
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
    for given in (label, *([] if since is None else [since])):
        if not (given.isascii() and given.isdecimal() and len(given) in (4, 6)):
            raise ValueError(
                f"{given!r} is no time; use a year YYYY or a month YYYYMM."
            )
    year, month = int(label[:4]), int(label[4:] or 12)
    end = to_timestamp(f"{year + month // 12:04}-{month % 12 + 1:02}-01")
    if since is None:
        return -np.inf, end
    return to_timestamp(f"{since[:4]}-{since[4:] or '01'}-01"), end
