"""The lists of ids that TiC-CLIP released: training data by time, and evaluation sets.

::

    {2014..2023}.npy                        one list per year, or
    {YYYYMM}.npy, {YYYY}/{YYYYMM}.npy       one per month, or
    {YYYY}.tar                              the months of a year, packed
    sizes.json                              {"201403": 85032011, ...}
    *_year2uids.pkl or .json                evaluation: year -> ids, or
                                            year -> WordNet id -> ids
    eval/*/{year}.npy, eval/alluids.npy     the same, without the classes

Source: the data released with Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.benchmarks.datasets.web.tars import scan
from avalanche_clip.benchmarks.datasets.web.uids import (
    UID,
    UIDArray,
    as_uids,
    map_uids,
    read_uid_list,
    sorted_uids,
)
from avalanche_clip.benchmarks.items.skipped import SampleFault
from avalanche_clip.common.array_pickles import read_array_pickle
from avalanche_clip.common.checks import existing_folder, require_distinct
from avalanche_clip.common.files import files_below, read_json, require_file, unreadable

_LABEL = re.compile("[0-9]{4}([0-9]{2})?")


_NONE = "201405 201406 201509 201512 201601 201603 201611 202202 202203 202204"
_ALL = [f"{year}{month:02d}" for year in range(2014, 2024) for month in range(1, 13)]
TIC_DATACOMP_MONTHS = tuple(
    label for label in _ALL if "201403" <= label <= "202306" and label not in _NONE
)
"""The 102 months of TiC-DataComp, ``YYYYMM``; in others there was no crawl."""


def read_uid_lists(folder: str | Path) -> dict[str, UIDArray]:
    """Map all lists of a folder, by year (``"2017"``) or month (``"201703"``).

    Months are found as files, in folders of their year, and inside archives of their
    year, which need not be unpacked. Where ``sizes.json`` lies beside them, the numbers
    of ids are compared with it.

    :param folder: ``tic-datacomp_training_yearly_noeval``, say.
    :return: label -> ids as :func:`read_uid_list` gives them, in order of time.
    :raises FileNotFoundError: if there is no such folder, or no list in it.
    :raises ValueError: if a list is damaged, occurs twice, or has another size.
    """
    folder = existing_folder(folder, "give the folder of the released lists")
    lists = [(p.stem, p, 0, p.stat().st_size) for p in files_below(folder, "*.npy")]
    for path in sorted(folder.glob("[0-9][0-9][0-9][0-9].tar")):
        for key, own in scan(path, _refuse).items():
            if "npy" in own:
                lists.append((key.rpartition("/")[2], path, *own["npy"][:2]))
    found: dict[str, UIDArray] = {}
    for label, path, start, size in lists:
        if label in found:
            raise ValueError(f"{path} holds the list {label} a second time; move one.")
        if _LABEL.fullmatch(label):
            found[label] = map_uids(path, start, size)
    if not found:
        names = "{YYYY}.npy, {YYYYMM}.npy or {YYYY}.tar"
        raise FileNotFoundError(f"{folder} holds no lists {names}; give their folder.")
    sizes = folder / "sizes.json"
    said = read_json(sizes, dict) if sizes.is_file() else {}
    counts = {k: (len(uids), said.get(k, len(uids))) for k, uids in found.items()}
    wrong = {k: both for k, both in counts.items() if both[0] != both[1]}
    if wrong:
        raise ValueError(
            f"The lists beside {sizes} have other sizes than it says (found, said): "
            f"{wrong}. Download them again."
        )
    return dict(sorted(found.items()))


def _refuse(fault: SampleFault) -> None:
    raise fault


def read_evaluation_uids(path: str | Path) -> dict[str, Any]:
    """Read the ids of evaluation sets.

    :param path: a released ``.pkl`` or ``.json``, of which only plain data and arrays
        of texts are unpickled; or a folder of ``{year}.npy``.
    :return: year (a string) -> ids in their order ``(N,)``, or of classification year
        -> WordNet id -> ids.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it holds anything else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "year2uids.json"
    ...     _ = path.write_text('{"2014": ["000102030405060708090a0b0c0d0e0f"]}')
    ...     read_evaluation_uids(path)["2014"].tolist()
    [(283686952306183, 579005069656919567)]
    """
    if Path(path).is_dir():
        return dict(read_uid_lists(path))
    if require_file(path).suffix == ".json":
        content = read_json(path)
    else:
        content = read_array_pickle(path, "a pickle of UIDs", "USiub", "UIDs are texts")
    try:
        if not isinstance(content, dict) or not content:
            raise ValueError("it holds no years")
        years = [_year(year) for year in content]
        require_distinct(years, "the years")
        return dict(zip(years, map(_leaves, content.values()), strict=True))
    except (TypeError, ValueError) as error:
        raise unreadable(path, "a list of evaluation UIDs by year", error) from error


def _year(year: Any) -> str:
    label = str(year)
    if isinstance(year, bool) or not _LABEL.fullmatch(label):
        raise ValueError(f"{year!r:.40} is no year")
    return label


def _leaves(uids: Any) -> Any:
    if not isinstance(uids, dict):
        return as_uids(uids)
    if not all(isinstance(name, str) for name in uids):
        raise ValueError("a class is no text")
    return {name: as_uids(own) for name, own in uids.items()}


def all_uids(sources: Any) -> UIDArray:
    """Gather ids of evaluation sets from all of their forms into one sorted list.

    :param sources: a path (``.npy`` such as ``eval/alluids.npy``, ``.pkl``, ``.json``,
        or a folder of lists), ids as texts or an array, what
        :func:`read_evaluation_uids` returns, or a list of such.
    :return: each id once, ascending.
    """
    return sorted_uids(np.concatenate([as_uids([]), *_flat(sources)]))


def _flat(source: Any) -> list[UIDArray]:
    if isinstance(source, (str, Path)):
        whole = Path(source).suffix == ".npy"
        return _flat(read_uid_list(source) if whole else read_evaluation_uids(source))
    if isinstance(source, Mapping):
        return [part for own in source.values() for part in _flat(own)]
    if isinstance(source, (list, tuple)) and not all(map(_is_uid, source)):
        return [part for own in source for part in _flat(own)]
    return [as_uids(source)]


def _is_uid(entry: Any) -> bool:
    return isinstance(entry, str) and UID.fullmatch(entry) is not None
