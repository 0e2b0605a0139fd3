"""The shape of the package: floors, circles, file sizes, contents of the wheel."""

import ast
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

from avalanche_clip._exports import EXPORTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "avalanche_clip"
MAX_LINES = 500
SOURCES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    ("_exports",),
    ("",),  # the version
    ("common",),
    ("losses", "budget", "evaluation.functional"),
    ("models.images", "models.text"),
    ("models.encoders",),
    ("models.peft", "models.selector"),
    ("models.moe",),
    ("models", "distributed"),
    ("benchmarks",),
    ("evaluation",),
    ("training.templates",),
    ("training.methods", "training.runs"),
    ("training", "checkpointing"),
    ("cli",),
    ("__main__",),
)
"""Rooms from the lowest floor up. A room imports from itself and from lower floors,
``TYPE_CHECKING`` and imports inside functions included."""

# To be mended; a test fails when one of them is gone, so that it leaves this list.
UPWARDS: set[tuple[str, str]] = set()
CIRCLES: set[tuple[str, ...]] = set()

# Part of the package -> what it may never import. "models" alone knows open_clip and
# transformers; the pure parts know no Avalanche.
LIBRARIES = ("open_clip", "transformers")
FORBIDDEN = {
    "common": ("avalanche",),
    "common.files": ("numpy", "torch"),
    "common.lock": ("numpy", "torch"),
    "common.checks": ("numpy", "torch"),
    "common.pickles": ("numpy", "torch"),
    "common.pictures": ("torch",),
    "losses": ("avalanche", *LIBRARIES),
    "evaluation.functional": ("avalanche", *LIBRARIES),
    "models": ("avalanche",),
    "benchmarks": LIBRARIES,
    "evaluation": LIBRARIES,
    "training": LIBRARIES,
    "": ("experiments", "tests", "tools"),
}


def module_name(path: Path) -> str:
    """Return the name of a source file, without that of the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, prefix: str) -> bool:
    """Whether ``name`` is the module ``prefix`` or lies below it."""
    return not prefix or name == prefix or name.startswith(prefix + ".")


MODULES = {module_name(path): path for path in SOURCES}
# A name shown by a face comes from the module that defines it.
HOMES = {
    f"avalanche_clip.{face}.{name.rstrip('*')}": module
    for module, faces in EXPORTS.items()
    for face, names in faces.items()
    for name in names.split()
}


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Return the dotted names a file imports anywhere, relative ones made absolute.

    ``from a import b`` gives ``a.b``, whether ``b`` is a module or not.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.parent.relative_to(ROOT).parts
                parents = package[: len(package) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(names)


@cache
def targets(name: str) -> frozenset[str]:
    """Return the modules of the package that a module imports."""
    found = set()
    for full in imported_names(MODULES[name]):
        if full in HOMES:
            found.add(HOMES[full])
        elif within(full, "avalanche_clip"):
            part = full.removeprefix("avalanche_clip").lstrip(".")
            # What is no module is a name that its module defines.
            found.add(part if part in MODULES else part.rpartition(".")[0])
    return frozenset(found & MODULES.keys() - {name})


@cache
def place(name: str) -> tuple[int, str]:
    """Return floor and room of a module."""
    rooms = [(len(room), k, room) for k, row in enumerate(FLOORS) for room in row]
    _, floor, room = max(r for r in rooms if within(name, r[2]) and (r[2] or not name))
    return floor, room


def test_imports__go_to_lower_floors():
    upwards = set()
    for name in MODULES:
        floor, room = place(name)
        for target in targets(name):
            below, other = place(target)
            if other != room and below >= floor:
                upwards.add((name, target))
    assert upwards == UPWARDS


def test_imports__have_no_circle():
    """Neither at run time nor for type checkers, at module level or in functions."""
    reached = {name: set(targets(name)) for name in MODULES}
    for middle in MODULES:  # Warshall's closure
        for found in reached.values():
            if middle in found:
                found |= reached[middle]
    circles = {
        tuple(sorted(m for m in reached[name] if name in reached[m]))
        for name in MODULES
        if name in reached[name]
    }
    assert circles == CIRCLES


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports__of_other_packages(part):
    files = [MODULES[name] for name in MODULES if within(name, part)]
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in sorted(imported_names(path))
        if any(within(name, other) for other in FORBIDDEN[part])
    ]
    assert wrong == []


def test_tests__lie_in_folders_named_like_those_of_the_package():
    rooms = [path.name for path in PACKAGE.iterdir() if path.is_dir()]
    folders = {
        path.parent.relative_to(ROOT / "tests")
        for room in rooms
        for path in (ROOT / "tests" / room).rglob("test_*.py")
    }
    assert folders
    assert [str(f) for f in sorted(folders) if not (PACKAGE / f).is_dir()] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_source_file__is_short_and_does_not_print(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    prints = [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert prints == []


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> list[str]:
    """Build the wheel from a copy and return the files in it."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # "tests" comes along to show that it is left out.
    for name in ("avalanche_clip", "tests"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    # The build backend itself: needs no network and no second environment.
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (wheel,) = source.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel__holds_only_the_package(wheel_names):
    assert {name.split("/")[0] for name in wheel_names} == {
        "avalanche_clip",
        next(n.split("/")[0] for n in wheel_names if n.endswith(".dist-info/METADATA")),
    }


def test_wheel__holds_every_file_of_the_package(wheel_names):
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - set(wheel_names) == set()
    assert any(name.endswith("LICENSE") for name in wheel_names)
