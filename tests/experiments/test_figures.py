"""Figures of studies: a table, and every single value beside it."""

import json
import math

from tests.scripts import load_script


def test_values_of_all_seeds_are_in_the_json_and_their_spread_in_the_table(tmp_path):
    tool = load_script("experiments/figures.py")
    lines = {
        "plain": [{"old": 1.0, "new": 5.0}, {"old": 3.0, "new": math.nan}],
        "other": [{"old": 2.0, "new": 4.0}],
    }
    text = tool.write_figures(lines, tmp_path / "out", {"seeds": [0, 1]}, "in percent")
    assert "2.0 ±1.4" in text and text.endswith("in percent")
    assert (tmp_path / "out" / "figures.txt").read_text() == text + "\n"
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert found["facts"] == {"seeds": [0, 1]}
    assert found["methods"]["plain"] == {"old": [1.0, 3.0], "new": [5.0, None]}
    assert found["methods"]["other"] == {"old": [2.0], "new": [4.0]}


def test_what_an_earlier_command_wrote_and_this_one_does_not_is_said(tmp_path, caplog):
    tool = load_script("experiments/figures.py")
    rows = [{"old": 1.0}, {"old": 2.0}]
    tool.write_figures({"a": rows, "b": rows, "c": rows}, tmp_path, {})
    tool.write_figures({"a": rows, "b": rows, "c": rows}, tmp_path, {})
    assert not caplog.records
    tool.write_figures({"b": rows, "c": rows[:1], "d": rows}, tmp_path, {})
    (said,) = [record.getMessage() for record in caplog.records]
    assert "figures.json held more of a, c: this command replaces it" in said
    caplog.clear()
    (tmp_path / "figures.json").write_text("{")  # nobody can read it
    tool.write_figures({"a": rows}, tmp_path, {})
    assert not caplog.records
