import io
import sys
from pathlib import Path

import pytest

import avalanche_clip
from avalanche_clip.common import progress as module
from avalanche_clip.common.progress import bar, progress, say, silenced


@pytest.fixture
def at_once(monkeypatch):
    """Show bars from the start, and each change."""
    monkeypatch.setattr(module, "DELAY", 0.0)
    monkeypatch.setitem(bar.__kwdefaults__, "delay", 0.0)
    monkeypatch.setattr(module, "INTERVALS", (0.0, 0.0))


def test_progress__shows_what_how_far_and_the_time_left(at_once, capsys):
    assert list(progress("abc", "letters", unit="letter")) == ["a", "b", "c"]
    out, said = capsys.readouterr()
    assert not out and "letters:  67%" in said and "2/3" in said
    assert "<00:00" in said  # elapsed < left
    assert said.endswith("\r")  # nothing is left of it


def test_progress__of_unknown_length_and_of_a_given_one(at_once, capsys):
    assert list(progress(iter("ab"), "letters")) == ["a", "b"]
    assert "2batch" in capsys.readouterr().err
    assert list(progress(iter("ab"), "letters", 8)) == ["a", "b"]
    assert "2/8" in capsys.readouterr().err


def test_progress__left_early_closes_the_bar(at_once, capsys):
    for letter in progress("abc", "letters"):
        if letter == "b":
            break
    assert capsys.readouterr().err.endswith("\r")
    with pytest.raises(KeyError):
        for _ in progress("abc", "letters"):
            raise KeyError
    assert capsys.readouterr().err.endswith("\r")


def test_progress__a_short_phase_shows_nothing(capsys):
    assert sum(progress(range(5), "numbers")) == 10
    assert capsys.readouterr() == ("", "")


def test_bar__stays_where_asked(capsys):
    file = io.StringIO()
    with bar("steps", 4, delay=0.0, leave=True, file=file, initial=2) as shown:
        shown.update(2)
    assert "4/4" in file.getvalue() and file.getvalue().endswith("\n")
    assert capsys.readouterr() == ("", "")


def test_silenced__shows_and_says_nothing(at_once, capsys):
    with silenced():
        assert list(progress("abc", "letters")) == ["a", "b", "c"]
        say("A sentence.")
        with pytest.raises(KeyError), silenced():
            raise KeyError
        say("A sentence.")
    assert capsys.readouterr() == ("", "")
    say("Heard.")
    say("Out.", sys.stdout)
    assert capsys.readouterr() == ("Out.\n", "Heard.\n")


def test_shown__by_the_main_process_only(at_once, capsys, monkeypatch):
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr(module.dist, "get_rank", lambda rank=rank: rank)
        list(progress("ab", "letters"))
        say("A sentence.")
        assert bool(capsys.readouterr().err) is (rank == 0)


def test_all_bars_are_made_here():
    package = Path(avalanche_clip.__file__).parent
    found = [p for p in package.rglob("*.py") if "tqdm(" in p.read_text("utf-8")]
    assert found == [Path(module.__file__)]
