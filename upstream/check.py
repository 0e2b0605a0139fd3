"""Check that each patch is needed, mends what it says, and goes with the others.

    python upstream/check.py              # all patches and contributions
    python upstream/check.py mac_linear   # some of them

Works on copies of the installed avalanche package in a temporary folder. A test
fails without its patch and passes with it, alone and together with all others; those
named ``test_still_...`` pass in each case. Needs git, and os.fork (Linux, macOS).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import unittest
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONTRIBUTIONS = HERE / "contributions"
# What avalanche imports: loaded once, before the processes that test copies of it.
SLOW = (
    "dill",
    "matplotlib.pyplot",
    "torch.utils.tensorboard",
    "torchmetrics",
    "torchvision.transforms",
    "wandb",
)
SECONDS = 600
"""How long the tests on one copy may take."""


def patches() -> list[Path]:
    """Folders of the patches, by name."""
    return sorted(p.parent for p in HERE.glob("*/fix.patch"))


def contributions() -> list[Path]:
    """Folders of the contributions, by name."""
    return sorted(p.parent for p in CONTRIBUTIONS.glob("*/exports.patch"))


def installed() -> Path:
    """Folder of the installed package, which is not imported."""
    spec = importlib.util.find_spec("avalanche")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("avalanche-lib is not installed: pip install -e .")
    return Path(spec.submodule_search_locations[0])


def touched(patch: Path) -> list[str]:
    """Files that a patch changes, relative to the folder of the package."""
    lines = patch.read_text().splitlines()
    marks = ("+++ b/", "--- a/")
    return sorted({n[len(m) :] for n in lines for m in marks if n.startswith(m)})


def copy_package(root: Path, files: Iterable[str] | None = None) -> None:
    """Copy the package to ``root/avalanche``, with the line ends of its repository.

    :param files: only these, such as ``avalanche/core.py``.
    """
    source = installed()
    if files is None:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, root / "avalanche", ignore=ignored)
        found = [p for p in (root / "avalanche").rglob("*.py")]
    else:
        found = [root / name for name in files]
        for path in found:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.parent / path.relative_to(root), path)
    for path in found:  # the wheel has CRLF
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))


def apply(root: Path, patch: Path, *options: str) -> str:
    """Apply a patch to a copy; return what git complains of.

    :param options: of ``git apply``, such as ``--check``.
    """
    git = ["git", "apply", "--whitespace=nowarn", *options, str(patch)]
    outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)}
    done = subprocess.run(git, cwd=root, env=outside, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def contribute(folder: Path, root: Path) -> str:
    """Add the files of a contribution to a copy; return what git complains of."""
    shutil.copytree(folder / "avalanche", root / "avalanche", dirs_exist_ok=True)
    return apply(root, folder / "exports.patch")


def add(folder: Path, root: Path) -> str:
    """Apply a patch or add a contribution; return what git complains of."""
    if folder.parent == CONTRIBUTIONS:
        return contribute(folder, root)
    return apply(root, folder / "fix.patch")


def tests_of(folder: Path) -> list[Path]:
    """Test files of a patch or a contribution."""
    return sorted(folder.rglob("test_*.py"))


def run_tests(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """Run test files with a copy of the package, in a process of their own.

    :return: by test, an empty string or why it failed.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(SECONDS)
        try:
            found = json.dumps(_tested(root, files))
        except BaseException:  # such as an error in a patched file
            found = json.dumps({"import avalanche": traceback.format_exc()})
        with open(write, "w") as out:
            out.write(found)
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"the process": f"ended with {status}"}


def _tested(root: Path, files: Iterable[Path]) -> dict[str, str]:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.path.insert(0, str(root))
    package = importlib.import_module("avalanche")
    if Path(str(package.__file__)).parent != root / "avalanche":
        raise ImportError(f"avalanche comes from {package.__file__}, not from {root}.")
    found: dict[str, str] = {}
    for file in files:
        suite, result = _suite(file), unittest.TestResult()
        found.update({test.id(): "" for test in _cases(suite)})
        suite.run(result)
        found.update({test.id(): why for test, why in result.failures + result.errors})
    return found


def _suite(file: Path) -> unittest.TestSuite:
    loader = unittest.TestLoader()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:  # what is contributed is not there yet
        reason = traceback.format_exc()

        def fail(test: unittest.TestCase) -> None:
            test.fail(reason)

        case = type(file.stem, (unittest.TestCase,), {"test_import": fail})
        return unittest.TestSuite([case("test_import")])
    return loader.loadTestsFromModule(module)


def _cases(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    cases: list[unittest.TestCase] = []
    for item in suite:
        cases += _cases(item) if isinstance(item, unittest.TestSuite) else [item]
    return cases


def check(names: Iterable[str] = ()) -> list[str]:
    """Check patches and contributions; return what is wrong.

    :param names: of some of them; default all.
    """
    folders = patches() + contributions()
    known = {folder.name: folder for folder in folders}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"{unknown} are not among {sorted(known)}.")
    chosen = [known[n] for n in sorted(set(names))] or folders
    for name in SLOW:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # then avalanche does without it, or says so itself
    wrong: list[str] = []

    def complain(what: str) -> None:
        wrong.append(what)
        print(what, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        plain, together = Path(temporary, "plain"), Path(temporary, "together")
        plain.mkdir()
        copy_package(plain)
        files = {folder: tests_of(folder) for folder in chosen}
        found = run_tests(plain, sum(files.values(), []))
        print(f"without any patch: {len(found)} tests", flush=True)
        for test, why in found.items():
            if ".test_still_" in test and why:
                complain(f"{test} fails without any patch: {why}")
            elif ".test_still_" not in test and not why:
                complain(f"{test} passes without any patch.")
        shutil.copytree(plain, together)
        for folder in chosen:
            alone = Path(temporary, folder.name)
            shutil.copytree(plain, alone)
            for root in (alone, together):
                if why := add(folder, root):
                    complain(f"{folder.name} does not apply ({root.name}): {why}")
            found = run_tests(alone, files[folder])
            print(f"{folder.name}: {len(found)} tests", flush=True)
            if all(".test_still_" in test for test in found):
                complain(f"{folder.name} has no test that needs it.")
            for test, why in found.items():
                if why:
                    complain(f"{test} fails with it: {why}")
            shutil.rmtree(alone)
        found = run_tests(together, sum(files.values(), []))
        print(f"all together: {len(found)} tests", flush=True)
        for test, why in found.items():
            if why:
                complain(f"{test} fails with all: {why}")
    return wrong


if __name__ == "__main__":
    complaints = check(sys.argv[1:])
    print(f"{len(complaints)} complaints")
    sys.exit(bool(complaints))
