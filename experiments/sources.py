"""Which files a result was made by, so that one of other code is known as stale.

What counts is the code of the modules that were loaded for it, and the data that come
with the package, save weights, which have a hash of their own. Comments, docstrings and
modules that took no part do not: a better page of the documentation throws no result
away. Installed packages are known by their versions (``training.runs.record``).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Collection, Mapping
from pathlib import Path

import avalanche_clip

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(avalanche_clip.__file__).parent
INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def sources(known: Collection[str], since: float) -> dict[str, str]:
    """Return the files that took part, and the hash of what each of them says.

    :param known: names of modules that were loaded before the work began, and which
        only started it.
    :param since: time at which it began.
    :raises RuntimeError: if a file was changed after that: nobody knows which of its
        versions was used.
    """
    modules = [module for name, module in sys.modules.items() if name not in known]
    loaded = [getattr(module, "__file__", None) for module in modules]
    # torch has modules that name files which are none
    files = [Path(path) for path in loaded if path and path.endswith(".py")]
    own = [path.resolve() for path in files if path.is_absolute() and path.is_file()]
    own = [path for path in own if not any(map(path.is_relative_to, INSTALLED))]
    data = PACKAGE.rglob("data/*.*")
    own += [path.resolve() for path in data if path.suffix != ".safetensors"]
    changed = [path.name for path in own if path.stat().st_mtime > since]
    if changed:
        raise RuntimeError(f"{', '.join(changed)} changed meanwhile; run it again.")
    return {name: content_hash(name) for name in sorted(map(_name, own))}


def same_sources(kept: Mapping[str, str]) -> bool:
    """Whether the files that took part still say the same."""
    return all(content_hash(name) == found for name, found in kept.items())


def _name(path: Path) -> str:
    inside = path.is_relative_to(ROOT)
    return path.relative_to(ROOT).as_posix() if inside else str(path)


def content_hash(name: str) -> str:
    """Hash of a file, or of a module's code.

    :param name: path, absolute or from the root of the repository.
    """
    path = ROOT / name
    return _hash(path, path.stat().st_mtime_ns) if path.is_file() else "missing"


@functools.cache
def _hash(path: Path, changed: int) -> str:
    """Read a file once while it stays as it is."""
    content = path.read_bytes()
    if path.suffix == ".py":
        content = code(content)
    return hashlib.sha256(content).hexdigest()[:16]


def code(source: bytes | str) -> bytes:
    """Code without comments, docstrings and layout.

    >>> code('def f():  # one\\n    "Two."\\n    return 3') == code("def f(): return 3")
    True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()
