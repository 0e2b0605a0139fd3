"""Lists of the ids of image-text pairs, as DataComp and TiC-CLIP keep them.

An id (UID) is 32 lower-case hexadecimal digits. A list holds 16 bytes per id, the upper
and the lower half as unsigned integers of 64 bits, in ascending order, in a ``.npy``
file or in a file of nothing but ids. Lists are mapped into memory, not read, and
combined by merging them piece by piece, so that memory does not grow with their length.

Source: the files released with DataComp (arXiv 2304.14108) and TiC-CLIP (arXiv
2310.16226). To search halves as plain integers is ours: NumPy compares records slowly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avalanche_clip.benchmarks.datasets.plain_texts import refuse_foreign
from avalanche_clip.common.arrays import UNREADABLE, npy_head
from avalanche_clip.common.checks import as_integer, require_choice, require_type
from avalanche_clip.common.files import (
    found_in_bytes,
    replacing,
    require_file,
    unreadable,
)

UID_DTYPE = np.dtype([("f0", "<u8"), ("f1", "<u8")])
"""Upper and lower half of an id, as they lie in files."""
UIDArray = npt.NDArray[Any]
BLOCK = 2**20
"""Ids that are held in memory at a time: 16 MiB."""
UID = re.compile("[0-9a-f]{32}")
_MAGIC = b"\x93NUMPY"


# ---------------------------------------------------------------- single ids
def uid_to_pair(uid: str) -> tuple[int, int]:
    """Split an id into its halves.

    :param uid: 32 lower-case hexadecimal digits.
    :return: the upper and the lower 64 bits, each in ``[0, 2**64)``.
    :raises ValueError: for anything else; upper-case digits would not come back.

    >>> uid_to_pair("000102030405060708090a0b0c0d0e0f")
    (283686952306183, 579005069656919567)
    """
    if not isinstance(uid, str) or not UID.fullmatch(uid):
        raise ValueError(
            f"The UID {uid!r:.80} is none; give a string of 32 lower-case hexadecimal "
            "digits."
        )
    return int(uid[:16], 16), int(uid[16:], 16)


def pair_to_uid(pair: Sequence[int]) -> str:
    """Join the halves of an id, see :func:`uid_to_pair`.

    :param pair: two integers in ``[0, 2**64)``, or a record of a list.
    :raises ValueError: for anything else.

    >>> pair_to_uid((1, 255))
    '000000000000000100000000000000ff'
    """
    if not hasattr(pair, "__len__") or len(pair) != 2:
        raise ValueError(f"The pair {pair!r:.80} is none; give two numbers of a UID.")
    halves = [as_integer(half, "A half of a UID") for half in pair]
    if not all(0 <= half < 2**64 for half in halves):
        raise ValueError(f"The pair {tuple(halves)} must lie in 0..2**64 - 1.")
    return "{:016x}{:016x}".format(*halves)


def as_uids(uids: Any) -> UIDArray:
    """Return ids as an array of :data:`UID_DTYPE`, in the order given.

    :param uids: such an array, or strings (a list or an array), or pairs.
    :raises ValueError: if one is no id, or an array holds something else.

    >>> as_uids(["0" * 31 + "a"]).tolist()
    [(0, 10)]
    """
    if isinstance(uids, np.ndarray) and uids.dtype.names:
        _require_halves(uids.dtype, uids.ndim, "uids: ")
        return uids.astype(UID_DTYPE, copy=False)
    require_type(uids, Iterable, "uids", "a list of UIDs")  # type: ignore[type-abstract]
    if isinstance(uids, (str, bytes)):
        raise ValueError(f"uids={uids!r:.80} is one text; give a list of UIDs.")
    if isinstance(uids, np.ndarray):
        uids = (uids.astype("U") if uids.dtype.kind == "S" else uids).tolist()
    pairs = (uid_to_pair(u if isinstance(u, str) else pair_to_uid(u)) for u in uids)
    return np.fromiter(pairs, dtype=UID_DTYPE)


def _require_halves(dtype: np.dtype[Any], axes: int, what: str = "") -> None:
    fields = [dtype[name] for name in dtype.names or ()]
    if axes != 1 or [(f.kind, f.itemsize) for f in fields] != [("u", 8)] * 2:
        raise ValueError(
            f"{what}it holds {dtype} in {axes} axes; a list of UIDs has one axis of "
            "pairs of unsigned 64-bit integers (dtype 'u8,u8')"
        )


# --------------------------------------------------------------------- files
def read_uid_list(path: str | Path) -> UIDArray:
    """Map a list of ids into memory, as it lies on disk.

    :param path: a ``.npy`` array of dtype ``"u8,u8"``, or records of 16 bytes without a
        header.
    :return: read-only, of dtype ``[("f0", "<u8"), ("f1", "<u8")]``, ``(N,)``; ids that
        repeat (which means oversampling) are kept.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it holds anything else, or its size is not what it declares.
    """
    path = require_file(path)
    return map_uids(path, 0, path.stat().st_size)


def map_uids(path: Path, start: int, size: int) -> UIDArray:
    """Map a list of ids that is part of a file.

    :param start: first byte of the list, its header included.
    :param size: bytes of the list.
    """
    begin, count, dtype = start, size // 16, UID_DTYPE
    try:
        with open(path, "rb") as file:
            file.seek(start)
            first = file.read(512)
        if first.startswith(_MAGIC):
            head = npy_head(path, start)
            _require_halves(head.dtype, len(head.shape))
            begin, count, dtype = head.start, head.count, head.dtype
        else:
            refuse_foreign(path, first, "a list of UIDs")
        end = begin + 16 * count
        if end != start + size or not size:
            raise ValueError(f"{end - start} bytes are declared, there are {size}")
        if not count:
            return np.empty(0, dtype=UID_DTYPE)
        mapped = np.memmap(path, dtype=dtype, mode="r", offset=begin, shape=(count,))
        uids = np.asarray(mapped).astype(UID_DTYPE, copy=False)
        text = first.isascii() and b"\0" not in first
        other = not found_in_bytes(first).startswith("bytes that")
        if begin == start and (text or other and not _ascends(uids[:BLOCK])):
            raise ValueError("it has no header, and what it holds are no UIDs")
        return uids
    except UNREADABLE as error:
        raise unreadable(path, "a list of UIDs", error) from error


def write_uid_list(path: str | Path, uids: Any) -> None:
    """Write a list of ids as a ``.npy`` file: 128 bytes, and 16 per id.

    Ids are sorted and repetitions dropped, whole or not at all. A sorted array, such as
    a mapped list, is copied piece by piece.

    :param path: of the file.
    :param uids: strings, pairs, or an array of pairs, in any order.
    :raises ValueError: if one is no UID.
    """
    given = as_uids(uids)
    if not _ascends(given, strictly=True):
        given = sorted_uids(given)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, given)


def ordered_uids(given: Any) -> UIDArray:
    """Return a list of ids, or map it, if it is in ascending order.

    :param given: path of a list, or ids as :func:`as_uids` takes them.
    :raises ValueError: if it is not sorted.
    """
    uids = read_uid_list(given) if isinstance(given, (str, Path)) else as_uids(given)
    if not _ascends(uids):
        raise ValueError(
            f"The UIDs of {given!r:.200} do not ascend; write them with "
            "write_uid_list, which sorts."
        )
    return uids


def combine_uid_lists(path: str | Path, first: Any, second: Any, how: str) -> UIDArray:
    """Combine two lists of ids into a file, a piece at a time.

    :param path: of the new list.
    :param first: a list in ascending order: of :func:`read_uid_list`, or its path.
    :param second: another one.
    :param how: ``"union"``, ``"intersection"``, or ``"difference"``: the ids of the
        first that are not in the second. The result holds no id twice.
    :return: the new list, mapped.
    :raises ValueError: if a list is not sorted, or for another ``how``.

    Memory: about 100 MiB, whatever the lengths.
    """
    require_choice("how", how, ("union", "intersection", "difference"))
    facts: Any = {"descr": UID_DTYPE.descr, "fortran_order": False, "shape": (0,)}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        # NumPy leaves room for any number, which is known at the end.
        np.lib.format.write_array_header_1_0(file, facts)
        start = file.tell()
        for ours, theirs in _pieces(ordered_uids(first), ordered_uids(second)):
            if how == "union":
                part = sorted_uids(np.concatenate([ours, theirs]))
            else:
                part = _distinct(ours)
                part = part[find_uids(part, theirs) == (how == "intersection")]
            file.write(part.tobytes())
        facts["shape"] = ((file.tell() - start) // 16,)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, facts)
    return read_uid_list(path)


def find_uids(uids: UIDArray, listed: UIDArray) -> npt.NDArray[np.bool_]:
    """Tell which ids are in a list.

    :param uids: ids in any order, ``(N,)``, see :func:`as_uids`.
    :param listed: ids in ascending order, also mapped ones.
    :return: bool ``(N,)``.
    """
    found = np.zeros(len(uids), dtype=bool)
    for begin in range(0, len(uids) if len(listed) else 0, BLOCK):
        part = uids[begin : begin + BLOCK]
        place = _places(part, listed)
        place[place == len(listed)] = 0
        found[begin : begin + BLOCK] = listed[place] == part
    return found


def sorted_uids(uids: UIDArray) -> UIDArray:
    """Sort ids and drop repetitions."""
    return _distinct(uids[np.lexsort((uids["f1"], uids["f0"]))])


# -------------------------------------------------------------------- pieces
def _ascends(uids: UIDArray, strictly: bool = False) -> bool:
    """Whether no id is smaller than the one before, or each is larger."""
    for begin in range(0, len(uids), BLOCK):
        part = uids[begin : begin + BLOCK + 1]
        high, low = part["f0"], part["f1"]
        wrong = low[1:] <= low[:-1] if strictly else low[1:] < low[:-1]
        if ((high[1:] < high[:-1]) | (high[1:] == high[:-1]) & wrong).any():
            return False
    return True


def _distinct(ordered: UIDArray) -> UIDArray:
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _places(uids: UIDArray, listed: UIDArray) -> npt.NDArray[np.int64]:
    """Number of listed ids, which ascend, that are smaller than each id."""
    if not len(listed):
        return np.zeros(len(uids), dtype=np.int64)
    high, low = listed["f0"], listed["f1"]
    place = np.searchsorted(high, uids["f0"])
    at = np.minimum(place, len(listed) - 1)
    # A smaller id with the same upper half may come first: one in about 10**10.
    for row in np.flatnonzero((high[at] == uids["f0"]) & (low[at] < uids["f1"])):
        end = np.searchsorted(high, uids["f0"][row], "right")
        place[row] += np.searchsorted(low[place[row] : end], uids["f1"][row])
    return place


def _pieces(*lists: UIDArray) -> Iterator[list[UIDArray]]:
    """Cut ascending lists at the same ids; equal ones stay together."""
    cuts = sorted_uids(np.concatenate([uids[BLOCK::BLOCK] for uids in lists]))
    places = [[0, *_places(cuts, uids).tolist(), len(uids)] for uids in lists]
    for k in range(len(cuts) + 1):
        pairs = zip(lists, places, strict=True)
        yield [uids[place[k] : place[k + 1]] for uids, place in pairs]
