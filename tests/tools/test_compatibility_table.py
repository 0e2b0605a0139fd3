"""The table of methods in the documentation is that of the tests."""

from pathlib import Path

from tests.scripts import load_script

ROOT = Path(__file__).parents[2]


def test_page__is_current():
    script = load_script("tools/compatibility_table.py")
    page = (ROOT / "docs" / "compatibility.rst").read_text(encoding="utf-8")
    assert page == script.page(), "run the command at the top of the script"


def test_reasons__are_numbered_once():
    class Row:
        def __init__(self, **cannot):
            self.cannot = cannot

    script = load_script("tools/compatibility_table.py")
    rows = {"a": Row(), "b": Row(x="No."), "c": Row(x="Never.", y="No.")}
    found = list(script.lines(rows, {"x": "one", "y": "two"}))
    cells = [line.split("- ")[1] for line in found if line.startswith("   ")]
    assert cells == "method x y a yes yes b (1) yes c (2) (1)".split()
    assert found[-2:] == ["(1) No.\n", "(2) Never.\n"]
