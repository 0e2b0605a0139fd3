"""The shape of the package: import arrows, file sizes, contents of the wheel."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "avalanche_clip"
MAX_LINES = 500
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Part of the package -> what it may never import, anywhere in its files. "models"
# alone knows open_clip and transformers; the pure parts know no Avalanche.
NAMED_IN_MODELS_ONLY = ("open_clip", "transformers")
NEVER = ("experiments", "tests", "tools")
# Room of "models" -> the rooms that it may not import.
ABOVE = {
    "images": "text encoders peft selector moe",
    "text": "images encoders peft selector moe",
    "encoders": "peft selector moe",
    "peft": "selector moe",
    "selector": "peft moe",
}
ROOMS = ("benchmarks", "evaluation", "losses", "models", "training")
FORBIDDEN = {
    **{
        f"models.{room}": tuple(f"avalanche_clip.models.{r}" for r in above.split())
        for room, above in ABOVE.items()
    },
    "common": (
        "avalanche",
        *NAMED_IN_MODELS_ONLY,
        *(f"avalanche_clip.{room}" for room in ROOMS),
    ),
    "common.lock": ("avalanche", "avalanche_clip"),
    "common.files": ("avalanche", "numpy", "torch"),
    "common.pictures": ("avalanche", "torch"),
    "common.arrays": ("avalanche",),
    "common.pickles": ("avalanche", "avalanche_clip", "numpy", "torch"),
    "common.checks": ("avalanche", "avalanche_clip", "numpy", "torch"),
    "losses": (
        "avalanche",
        *NAMED_IN_MODELS_ONLY,
        "avalanche_clip.benchmarks",
        "avalanche_clip.evaluation",
        "avalanche_clip.models",
        "avalanche_clip.training",
    ),
    "evaluation.functional": (
        "avalanche",
        *NAMED_IN_MODELS_ONLY,
        "avalanche_clip.benchmarks",
        "avalanche_clip.losses",
        "avalanche_clip.models",
        "avalanche_clip.training",
    ),
    "models": ("avalanche", "avalanche_clip.benchmarks", "avalanche_clip.training"),
    "benchmarks": (*NAMED_IN_MODELS_ONLY, "avalanche_clip.training"),
    "evaluation": (*NAMED_IN_MODELS_ONLY, "avalanche_clip.training"),
    "training": NAMED_IN_MODELS_ONLY,
    "training.templates": (
        "avalanche_clip.training.plugins",
        "avalanche_clip.training.supervised",
    ),
    "training.plugins": ("avalanche_clip.training.supervised",),
}


def module_name(path: Path) -> str:
    """Return the dotted name of a source file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, prefix: str) -> bool:
    """Whether ``name`` is the module ``prefix`` or lies below it."""
    return name == prefix or name.startswith(prefix + ".")


def is_type_checking(node: ast.AST) -> bool:
    """Whether ``node`` is an ``if TYPE_CHECKING`` statement."""
    if not isinstance(node, ast.If):
        return False
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(
    node: ast.AST, *, into_functions: bool
) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements below ``node`` that run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_type_checking(child):
            for other in child.orelse:
                yield from import_nodes(other, into_functions=into_functions)
        elif into_functions or not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef
        ):
            yield from import_nodes(child, into_functions=into_functions)


@cache
def imported_names(path: Path, into_functions: bool) -> frozenset[str]:
    """Return the dotted names a file imports, relative ones made absolute.

    ``from a import b`` gives ``a.b``, whether ``b`` is a module or not.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    names: set[str] = set()
    for node in import_nodes(tree, into_functions=into_functions):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
            continue
        base = node.module or ""
        if node.level:
            package = path.parent.relative_to(ROOT).parts
            parents = package[: len(package) - node.level + 1]
            base = ".".join([*parents, *filter(None, [base])])
        names.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(names)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports__follow_the_arrows(part):
    files = [p for p in SOURCES if within(module_name(p), f"avalanche_clip.{part}")]
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in sorted(imported_names(path, True))
        if any(within(name, other) for other in (*FORBIDDEN[part], *NEVER))
    ]
    assert wrong == []


def test_imports__have_no_cycle_at_module_level():
    modules = {module_name(path): path for path in SOURCES}
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for target in imported_names(path, False):
            # What is no module is a name that its module defines.
            target = target if target in modules else target.rpartition(".")[0]
            if target in modules and target != name:
                edges[name].add(target)
    state: dict[str, str] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != "open", " -> ".join((*path, name))
        if name not in state:
            state[name] = "open"
            for target in sorted(edges[name]):
                visit(target, (*path, name))
            state[name] = "done"

    for name in modules:
        visit(name, ())


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


def test_wheel__carries_the_licence(wheel_names):
    assert any(name.endswith("LICENSE") for name in wheel_names)
