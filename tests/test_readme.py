"""The example in the README runs as printed."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
# The comment is invisible on the page and marks the block that follows it.
MARK = "<!-- tested example -->"
EXAMPLE = re.compile(re.escape(MARK) + r"\s*```python\n(.*?)^```", re.DOTALL | re.M)


def test_readme__has_one_marked_example():
    text = README.read_text(encoding="utf-8")
    assert text.count(MARK) == 1
    assert len(EXAMPLE.findall(text)) == 1


def test_readme__example_runs_in_an_empty_directory(tmp_path):
    (code,) = EXAMPLE.findall(README.read_text(encoding="utf-8"))
    # A file, since the example may start worker processes, which import it again.
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
