"""The runnable files of the repository as modules, and fresh interpreters."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load_script(path: str) -> ModuleType:
    """Import a runnable file, for example ``"experiments/tic_emoji.py"``.

    It finds the modules next to it, as it does when it is run.
    """
    name = f"script_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    folder = str((ROOT / path).parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def run_python(code: str, ends: int = 0) -> str:
    """Return what a fresh interpreter prints for ``code`` before it ``ends`` so."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == ends, done.stderr
    return done.stdout


def loaded_after(statement: str, names: tuple[str, ...]) -> list[str]:
    """Return which of ``names`` a fresh interpreter has loaded after ``statement``."""
    return json.loads(
        run_python(
            "import json, sys\n"
            f"{statement}\n"
            f"print(json.dumps([n for n in {names!r} if n in sys.modules]))"
        )
    )
