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

from collections.abc import Callable
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

    :ivar counts: of samples: ``"found"``, ``"without json"``, ``"not in the list"``,
        ``"in evaluation sets"``, and ``"used"``, each once.
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
        blocks = range(0, len(self), BLOCK)
        parts = [_uids(self.index, self.rows[b : b + BLOCK]) for b in blocks]
        return np.concatenate(parts)

    def classes(self) -> npt.NDArray[np.int64]:
        """Return the class of each item, from ``cls`` members, int64 ``(N,)``.

        :raises ValueError: if one has none.
        """
        found = [self.index.read(row, "cls") for row in self.rows.tolist()]
        wrong = [k for k, c in enumerate(found) if c is None or not c.strip().isdigit()]
        if wrong:
            row = int(self.rows[wrong[0]])
            where = self.index.where(row)
            raise ValueError(f"{where} has no class (cls) but {found[wrong[0]]!r}.")
        return np.array([int(content or 0) for content in found], dtype=np.int64)

    def _filter(self, cause: str, good: Callable[[Any], npt.NDArray[np.bool_]]) -> None:
        left = good(self.rows)
        self.counts[cause] = int((~left).sum())
        self.rows = self.rows[left]

    def _found(self, listed: UIDArray) -> npt.NDArray[np.bool_]:
        parts = [
            find_uids(_uids(self.index, self.rows[b : b + BLOCK]), listed)
            for b in range(0, len(self), BLOCK)
        ]
        return np.concatenate([np.zeros(0, dtype=bool), *parts])


def _uids(index: TarIndex, rows: npt.NDArray[np.int64]) -> UIDArray:
    """Read ids off the names of samples, or where these are none, off their JSON."""
    block = np.frombuffer(index.names.block, dtype=np.uint8)
    starts, ends = index.names.offsets[rows], index.names.offsets[rows + 1]
    uids = np.zeros(len(rows), dtype=UID_DTYPE)
    long = np.flatnonzero(ends - starts >= 32)
    if len(block) < 32:
        block = np.zeros(32, dtype=np.uint8)  # then no name is long
    windows = np.lib.stride_tricks.sliding_window_view(block, 32)
    digits = _DIGITS[windows[starts[long]]]
    after = np.minimum(starts[long] + 32, len(block) - 1)
    own = (ends[long] - starts[long] == 32) | (block[after] == ord("-"))
    good = (digits < 16).all(axis=1) & own
    halves = (digits[good, ::2] << 4 | digits[good, 1::2]).view(">u8")
    uids["f0"][long[good]], uids["f1"][long[good]] = halves[:, 0], halves[:, 1]
    for place in np.setdiff1d(np.arange(len(rows)), long[good]).tolist():
        uids[place] = uid_to_pair(_uid(index, int(rows[place])))
    return uids


def _uid(index: TarIndex, row: int) -> str:
    uid = index.names[row].rpartition("/")[2].partition("-")[0]
    if UID.fullmatch(uid):
        return uid
    where = f"{index.where(row)}.json"
    text = (index.read(row, "json") or b"").decode("utf-8", "replace")
    content = parse_json(text, where)
    found = content.get("uid") if isinstance(content, dict) else None
    if not isinstance(found, str) or not UID.fullmatch(found):
        raise SampleFault("other", f"{where} holds no 'uid', but {found!r:.80}.")
    return found


def _size_faults(index: TarIndex) -> list[SampleFault]:
    """Compare shards with what is written beside them: names, and samples in each."""
    said: dict[Path, dict[str, Any]] = {}
    faults = []
    counts = np.bincount(index.tar, minlength=len(index.tars)).tolist()
    for path, count in zip(index.tars, counts, strict=True):
        folder, source = path.parent, path.with_name("sizes.json")
        if folder not in said:
            said[folder] = read_json(source, dict) if source.is_file() else {}
            said[folder] = {**_numbered(folder / "nshards.txt"), **said[folder]}
        size = said[folder].pop(path.name, None)
        for stats in (f"{path.stem}_stats.json", f"{path.stem}.json"):
            if size is None and path.with_name(stats).is_file():
                source = path.with_name(stats)
                size = read_json(source, dict).get("successes")
        if size is not None and size != count:
            words = f"it has {count} samples, {source.name} says {size}"
            error = unreadable(path, "a whole shard", words)
            faults.append(SampleFault("archive damaged", str(error)))
    for folder, lost in said.items():
        for name in lost:
            words = f"{folder / name} is missing, but listed beside it; get it again."
            faults.append(SampleFault("archive missing", words))
    return faults


def _numbered(path: Path) -> dict[str, None]:
    """Names of the shards of a converted set, of which the file holds the number."""
    count = read_text(path).strip() if path.is_file() else "0"
    if not (count.isascii() and count.isdecimal() and len(count) < 8):
        raise unreadable(path, "a number of shards", f"it holds {count[:40]!r}")
    return dict.fromkeys(f"{number}.tar" for number in range(int(count)))
