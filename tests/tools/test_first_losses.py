"""First losses: cases of studies need no searched settings; new cases are said."""

import json

import pytest

from tests.scripts import load_script


@pytest.fixture
def tool(monkeypatch):
    found = load_script("tools/first_losses.py")
    monkeypatch.setattr(found, "train", lambda *built: {"losses": [], "weights": ""})
    return found


@pytest.mark.parametrize("name", ["alignment", "multi_domain_emoji"])
def test_studies__need_no_searched_settings(tool, name, monkeypatch):
    from importlib import import_module

    monkeypatch.setattr(import_module(name), "chosen", None)
    for method in tool.STUDIES[name][:2]:
        assert tool.study(name, method) == {"losses": [], "weights": ""}


def test_main__case_that_was_not_recorded(tool, monkeypatch, tmp_path, capsys):
    found = {"losses": [(1.0).hex()], "weights": "a"}
    cases = [("old", lambda: found), ("new", lambda: found)]
    monkeypatch.setattr(tool, "cases", lambda: iter(cases))
    path = tmp_path / "before.json"
    path.write_text(json.dumps({"old": {**found, "weights": "b"}}))
    monkeypatch.setattr("sys.argv", ["first_losses.py", "--against", str(path)])
    assert tool.main() == 1
    old, new = capsys.readouterr().out.splitlines()
    assert "weights DIFFER" in old and "not in the file compared with" in new
