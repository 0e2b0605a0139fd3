"""Damage of many kinds to one file: each must be refused, with its name."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""
PAGE = b"<!DOCTYPE html><html><head><title>404</title></head></html>\n"


def flips(whole: bytes, count: int = 60) -> Iterator[tuple[str, bytes]]:
    """Flip one bit in each of some places: both ends, and a spread over the rest."""
    ends = {0, 1, 7, 8, 9, len(whole) - 2, len(whole) - 1}
    spread = {round(k * (len(whole) - 1) / count) for k in range(count + 1)}
    draw = random.Random(len(whole))
    for place in sorted(p for p in ends | spread if 0 <= p < len(whole)):
        bit = draw.randrange(8)
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        yield f"bit {bit} of byte {place}", bytes(changed)


def damages(whole: bytes, count: int = 60) -> Iterator[tuple[str, bytes]]:
    """Flips, cuts, additions and files that are something else."""
    yield from flips(whole, count)
    for size in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        yield f"cut to {size}", whole[: min(size, len(whole) - 1)]
    for more in (b"\0", b"x", b"\0" * 64, whole):
        yield f"{len(more)} bytes more", whole + more
    yield "only zeros", b"\0" * len(whole)
    yield "a pointer", POINTER
    yield "a page", PAGE
    yield "another text", b"[]\n"
    yield "another mapping", b"{}\n"


def not_refused(
    path: Path,
    read: Callable[[], Any],
    *,
    count: int = 60,
    words: tuple[str, ...] = (),
    folder: bool = True,
) -> list[str]:
    """Damage a file in all ways, read it each time, and list what went wrong.

    :param path: the file; it is whole again afterwards.
    :param read: reads it, or the folder it lies in; must work on the whole file.
    :param count: how many bits are flipped.
    :param words: that each message must hold, beside the name of the file.
    :param folder: whether a folder of its name is refused as well.
    :return: damages that were read, or raised something else than ValueError, or
        whose message does not name the file.
    """
    whole = path.read_bytes()
    read()
    wrong = []
    cases = [*damages(whole, count), *([("a folder", None)] if folder else [])]
    for label, content in cases:
        if content is None:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(content)
        try:
            read()
            wrong.append(f"{label}: was read")
        except ValueError as error:
            lost = [w for w in (path.name, *words) if w not in str(error)]
            wrong += [f"{label}: {word!r} is not in {error}" for word in lost]
        except Exception as error:
            wrong.append(f"{label}: {type(error).__name__}: {error}")
    if folder:
        path.rmdir()
    path.write_bytes(whole)
    read()
    return wrong
