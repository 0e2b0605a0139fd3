"""Shards of TiC-DataComp: pairs known by their ids, of which some are left out.

::

    2017/00000000.tar ...         members {uid}-{j}.jpg, {uid}-{j}.txt, {uid}-{j}.json
    2017/{0..59}/00000000.tar     the same, one level down
    2017/00000000_stats.json      {"successes": 9876}
    2017/sizes.json               {"00000000.tar": 9876, ...}

Source: the layout that DataComp's resharding (arXiv 2304.14108) gives the data of
TiC-CLIP (arXiv 2310.16226).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avalanche_clip.benchmarks.datasets.web.pairs import TarPairs
from avalanche_clip.benchmarks.datasets.web.tar_index import TarIndex, open_tar_index
from avalanche_clip.benchmarks.datasets.web.uids import (
    BLOCK,
    UID,
    UID_DTYPE,
    UIDArray,
    as_uids,
    find_uids,
    uid_to_pair,
)
from avalanche_clip.benchmarks.items.skipped import SampleFault, leave_out
from avalanche_clip.common.checks import as_size
from avalanche_clip.common.files import parse_json, read_json, read_text, unreadable

_DIGITS = np.full(256, 255, dtype=np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


class TicShards(TarPairs):
    """Pairs in the shards of a time step, or of an evaluation set.

    A text member is one caption, also with line feeds; without one it is the
    ``caption`` of the JSON text. An id that occurs several times in a shard, as
    ``{uid}-0``, ``{uid}-1``, is as many pairs. Samples without a JSON text are left out
    and counted, as the released pipeline has them.

    :param folder: of the shards, or of folders of shards.
    :param keep: ids that may be used, ascending; default all.
    :param without: ids that may not, ascending: those of evaluation sets.
    :param weight: how often each pair is there, a whole number.
    :param on_error: see :class:`TarPairs` and :func:`open_tar_index`.
    :param index: folder of the tar index; default ``tar_index`` in the folder.
    :raises FileNotFoundError: if there are no shards.
    :raises ValueError: if a shard has not the size that is written beside it, a sample
        cannot be read, or none is left.

    :ivar counts: of samples: ``"found"``, ``"without json"``, ``"without id"`` (with
        ``"skip"``), ``"not in the list"``, ``"in evaluation sets"``, and ``"used"``,
        each once.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: UIDArray | None = None,
        without: UIDArray | None = None,
        weight: int = 1,
        on_error: str = "raise",
        index: str | Path | None = None,
    ) -> None:
        weight = as_size(weight, "weight")
        whole = open_tar_index(folder, index, on_error=on_error)
        super().__init__(whole, on_error=on_error)
        for fault in _size_faults(whole):
            leave_out(fault, self.skipped)
        self.counts = {"found": len(self)}
        having = whole.rows_with("json")
        self._filter("without json", lambda rows: having[rows])
        if self.skipped is not None:
            self._filter("without id", self._with_id)
        if keep is not None:
            self._filter("not in the list", lambda _: self._found(keep))
        if without is not None:
            self._filter("in evaluation sets", lambda _: ~self._found(without))
        self.counts["used"] = len(self)
        if not len(self):
            raise ValueError(f"No sample of {folder} is left: {self.counts}.")
        self.rows = np.repeat(self.rows, weight)

    def uids(self) -> UIDArray:
        """Return the id of each item, ``(N,)``."""
        return np.concatenate([_uids(self.index, part) for part in _cut(self.rows)])

    def named_uids(self) -> UIDArray:
        """Return the ids that names tell, also of samples that are left out."""
        rows = np.arange(len(self.index))
        parts = [_named(self.index, part) for part in _cut(rows)]
        return np.concatenate([as_uids([]), *(uids[good] for uids, good in parts)])

    def _with_id(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        parts = [_named(self.index, part)[1] for part in _cut(rows)]
        known = np.concatenate([np.zeros(0, dtype=bool), *parts])
        for place in np.flatnonzero(~known).tolist():
            try:
                known[place] = bool(_uid(self.index, int(rows[place])))
            except SampleFault as fault:
                leave_out(fault, self.skipped)
        return known

    def _filter(self, cause: str, good: Callable[[Any], npt.NDArray[np.bool_]]) -> None:
        left = good(self.rows)
        self.counts[cause] = int((~left).sum())
        self.rows = self.rows[left]

    def _found(self, listed: UIDArray) -> npt.NDArray[np.bool_]:
        parts = [find_uids(_uids(self.index, p), listed) for p in _cut(self.rows)]
        return np.concatenate([np.zeros(0, dtype=bool), *parts])


def _cut(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return [rows[begin : begin + BLOCK] for begin in range(0, len(rows), BLOCK)]


def _uids(index: TarIndex, rows: npt.NDArray[np.int64]) -> UIDArray:
    """Read ids off the names of samples, or where these are none, off their JSON."""
    uids, good = _named(index, rows)
    for place in np.flatnonzero(~good).tolist():
        uids[place] = uid_to_pair(_uid(index, int(rows[place])))
    return uids


def _named(
    index: TarIndex, rows: npt.NDArray[np.int64]
) -> tuple[UIDArray, npt.NDArray[np.bool_]]:
    """Ids that names begin with, and which samples have such."""
    block = np.frombuffer(index.names.block, dtype=np.uint8)
    starts, ends = index.names.offsets[rows], index.names.offsets[rows + 1]
    long = np.flatnonzero(ends - starts >= 32)
    start, behind = starts[long], starts[long] + 32
    digits = _DIGITS[block[start[:, None] + np.arange(32)]]
    own = (ends[long] == behind) | (block[behind - (ends[long] == behind)] == ord("-"))
    good = (digits < 16).all(axis=1) & own
    uids = np.zeros(len(rows), dtype=UID_DTYPE)
    halves = (digits[good, ::2] << 4 | digits[good, 1::2]).view(">u8")
    uids["f0"][long[good]], uids["f1"][long[good]] = halves.T
    known = np.zeros(len(rows), dtype=bool)
    known[long[good]] = True
    return uids, known


def _uid(index: TarIndex, row: int) -> str:
    uid = index.names[row].rpartition("/")[2].partition("-")[0]
    if UID.fullmatch(uid):
        return uid
    where = f"{index.where(row)}.json"
    text = (index.read(row, "json") or b"").decode("utf-8", "replace")
    try:
        content = parse_json(text, where)
    except ValueError as error:
        raise SampleFault("row unreadable", f"{where}: {error}") from error
    found = content.get("uid") if isinstance(content, dict) else None
    if not isinstance(found, str) or not UID.fullmatch(found):
        raise SampleFault("other", f"{where} holds no 'uid', but {found!r:.80}.")
    return found


def _size_faults(index: TarIndex) -> list[SampleFault]:
    """Compare shards with what is written beside them: names, and samples in each."""
    counts = np.bincount(index.tar, minlength=len(index.tars)).tolist()
    found = dict(zip(index.tars, counts, strict=True))
    faults = []
    for folder in dict.fromkeys(path.parent for path in index.tars):
        for path, (size, source) in _said(folder, found).items():
            if path not in found:
                words = f"{path} is missing, but listed beside it; get it again."
                faults.append(SampleFault("archive missing", words))
            elif size is not None and size != found[path]:
                words = f"it has {found[path]} samples, {source} says {size}"
                error = unreadable(path, "a whole shard", words)
                faults.append(SampleFault("archive damaged", str(error)))
    return faults


def _said(folder: Path, found: Iterable[Path]) -> dict[Path, tuple[Any, str]]:
    """Shards that the files in a folder tell of: number of samples, and the file."""
    number, sizes = folder / "nshards.txt", folder / "sizes.json"
    count = read_text(number).strip() if number.is_file() else "0"
    if not (count.isascii() and count.isdecimal() and len(count) < 6):
        raise unreadable(number, "a number of shards", f"it holds {count[:40]!r}")
    said: dict[Path, tuple[Any, str]] = {
        folder / f"{n}.tar": (None, "") for n in range(int(count))
    }
    for path in found:
        for stats in (f"{path.stem}.json", f"{path.stem}_stats.json"):
            if path.parent == folder and (folder / stats).is_file():
                facts = read_json(folder / stats, dict)
                said[path] = facts.get("successes"), stats
    if sizes.is_file():
        for name, size in read_json(sizes, dict).items():
            said[folder / name] = size, sizes.name
    return said
