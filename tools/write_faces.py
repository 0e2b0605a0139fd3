"""Write the stubs from which type checkers learn the names of the faces.

    python tools/write_faces.py        # after each change of avalanche_clip/_exports.py

Faces load their names on first use, from the table in ``_exports.py``, which type
checkers cannot read. Beside each face lies a ``.pyi`` file that says the same in import
statements; a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "avalanche_clip"
sys.path.insert(0, str(PACKAGE.parent))

HEAD = "# Written by tools/write_faces.py from avalanche_clip/_exports.py."


def lines(face: str) -> Iterator[str]:
    """Yield the lines of one stub.

    :param face: name below the root, ``""`` for the root.
    """
    from avalanche_clip._exports import ROOT, SUBPACKAGES, face_names

    yield HEAD
    if not face:
        yield "__version__: str"
        yield from (f"from {ROOT} import {name} as {name}" for name in SUBPACKAGES)
    shown = sorted((module, name) for name, module in face_names(face).items())
    for module, names in groupby(shown, lambda entry: entry[0]):
        yield f"from {module} import ("
        yield from (f"    {name} as {name}," for _, name in names)
        yield ")"


def stubs() -> dict[Path, str]:
    """Return the content of each stub by its path."""
    from avalanche_clip._exports import EXPORTS, SHOWN_BELOW

    faces = {"", *SHOWN_BELOW, *(face for row in EXPORTS.values() for face in row)}
    found = {}
    for face in sorted(faces):
        path = PACKAGE.joinpath(*face.split("."))
        path = path / "__init__.pyi" if path.is_dir() else path.with_suffix(".pyi")
        found[path] = "\n".join(lines(face)) + "\n"
    return found


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text, encoding="utf-8")
