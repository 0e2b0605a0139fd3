"""What is offered to Avalanche fits the installed version and is described."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import load_script

ROOT = Path(__file__).parents[2]
README = (ROOT / "upstream" / "README.md").read_text(encoding="utf-8")


def test_patches__apply_to_the_installed_version_alone_and_together(tmp_path):
    check = load_script("upstream/check.py")
    paths = [next(f.glob("*.patch")) for f in check.patches() + check.contributions()]
    files = sorted({name for path in paths for name in check.touched(path)})
    check.copy_package(tmp_path, files)
    assert not "".join(check.apply(tmp_path, path, "--check") for path in paths)
    before = [(tmp_path / name).read_text() for name in files]
    assert not "".join(check.apply(tmp_path, path) for path in paths)
    for name, old in zip(files, before, strict=True):
        new = (tmp_path / name).read_text()
        assert new != old
        ast.parse(new, feature_version=(3, 8))


def test_patches__are_tested_and_described():
    check = load_script("upstream/check.py")
    folders = check.patches() + check.contributions()
    assert all(map(check.tests_of, folders))
    named = re.findall(r"^### `(\w+)`$", README, re.M)
    assert sorted(named) == sorted(folder.name for folder in folders)
    assert "MIT licence" in README and "0.6.0" in README
    paths = re.findall(r"`((?:avalanche_clip/|setup)[\w/.]+)`", README)
    assert len(paths) >= len(named)
    assert not [path for path in paths if not (ROOT / path).is_file()]


def test_contributions__run_on_the_oldest_python_of_avalanche():
    for path in (ROOT / "upstream" / "contributions").rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_check__holds():
    command = [sys.executable, "-W", "ignore", "upstream/check.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all together" in done.stdout
