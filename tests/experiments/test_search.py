"""Settings chosen on validation drawings: the best is kept, nothing is repeated."""

import math
from threading import Timer

import pytest

from avalanche_clip.common.lock import FolderLock
from avalanche_clip.training.templates.step import NonFiniteLossError
from tests.scripts import load_script

GRID = {"a": [{"lr": 0.1}, {"lr": 0.2}], "b": [{"lr": 0.3, "weight": 2}]}


@pytest.fixture
def tool():
    return load_script("experiments/search.py")


class Scores:
    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def __call__(self, method, candidate):
        if (method, candidate) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((method, candidate["lr"]))
        return -((candidate["lr"] - 0.19) ** 2)


def test_best_candidate_is_chosen_and_read(tool, tmp_path):
    best = tool.search("s", GRID, Scores(), {"seed": 0}, folder=tmp_path)
    assert best == {"a": {"lr": 0.2}, "b": {"lr": 0.3, "weight": 2}}
    assert tool.chosen("s", "b", folder=tmp_path) == {"lr": 0.3, "weight": 2}
    lines = tool.search_table("s", folder=tmp_path).splitlines()
    assert [line[0] for line in lines] == [" ", "*", "*"]


def test_first_of_equals_is_chosen(tool, tmp_path):
    grid = {"a": [{"lr": 1}, {"lr": 2}]}
    best = tool.search("s", grid, lambda *_: 0.5, {}, folder=tmp_path)
    assert best == {"a": {"lr": 1}}


def test_methods_that_were_tried_are_not_tried_again(tool, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stop = ("b", GRID["b"][0])
        tool.search("s", GRID, Scores(stop), {"seed": 0}, folder=tmp_path)
    scores = Scores()
    tool.search("s", GRID, scores, {"seed": 0}, folder=tmp_path)
    assert scores.calls == [("b", 0.3)]
    scores = Scores()
    tool.search("s", GRID, scores, {"seed": 1}, folder=tmp_path)
    assert len(scores.calls) == 3
    scores = Scores()
    tool.search("s", {"a": GRID["a"][:1]}, scores, {"seed": 1}, folder=tmp_path)
    assert scores.calls == [("a", 0.1)]
    assert tool.chosen("s", "b", folder=tmp_path)


def test_settings_that_were_not_chosen_are_refused(tool, tmp_path):
    with pytest.raises(ValueError, match=r"only for none; choose them with --search"):
        tool.chosen("s", "a", folder=tmp_path)
    tool.search("s", GRID, Scores(), {}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"no settings for 'c', only for a, b"):
        tool.chosen("s", "c", folder=tmp_path)
    path = tmp_path / "s.json"
    path.write_text(path.read_text().replace("0.3", "0.4"))
    with pytest.raises(ValueError, match=r"search again|checksum"):
        tool.chosen("s", "a", folder=tmp_path)


def test_base_facts__change_with_the_weights_of_a_name(tool, tmp_path):
    from avalanche_clip.models import create_dual_encoder

    model, found = create_dual_encoder("tiny-emoji", "emoji-2010"), []
    for bias in (0.0, 1.0):
        model.logit_scale.data.add_(bias)
        model.save(tmp_path)
        found.append(tool.base_facts("tiny-emoji", str(tmp_path)))
    assert found[0].keys() == {"model", "pretrained", "base"}
    assert [k for k in found[0] if found[0][k] != found[1][k]] == ["base"]


def test_candidates_that_diverge_are_the_worst_and_do_not_end_the_search(
    tool, tmp_path
):
    rates = [{"lr": rate} for rate in (1, 2, 3, 4)]
    values = {1: math.nan, 2: math.inf, 3: -5.0}

    def score(method, candidate):
        if method == "broken" or candidate["lr"] not in values:
            raise NonFiniteLossError("The loss is nan")
        return values[candidate["lr"]]

    grid = {"broken": rates[:2], "a": rates}
    for again in range(2):
        with pytest.raises(ValueError, match="all candidates of broken diverged"):
            tool.search("s", grid, None if again else score, {}, folder=tmp_path)
    assert tool.chosen("s", "a", folder=tmp_path) == {"lr": 3}
    with pytest.raises(ValueError, match="no settings for 'broken', only for a;"):
        tool.chosen("s", "broken", folder=tmp_path)
    lines = tool.search_table("s", folder=tmp_path).splitlines()
    assert [("diverged" in line, line[0]) for line in lines] == [
        *((True, " "), (True, " "), (False, "*"), (True, " ")),
        *((True, " "), (True, " ")),
    ]
    other = {"a": rates[2:]}
    assert tool.search("s", other, score, {}, folder=tmp_path) == {"a": {"lr": 3}}


def test_error_that_is_no_divergence_ends_the_search(tool, tmp_path):
    def score(method, candidate):
        raise ValueError("the folder holds another run")

    with pytest.raises(ValueError, match="another run"):
        tool.search("s", GRID, score, {}, folder=tmp_path)


def test_searches_side_by_side_keep_what_the_other_found(tool, tmp_path, monkeypatch):
    def score(method, candidate):  # another process finishes meanwhile
        if method == "a" and not (tmp_path / "s.json").exists():
            tool.search("s", {"b": GRID["b"]}, Scores(), {}, folder=tmp_path)
        return candidate["lr"]

    tool.search("s", {"a": GRID["a"]}, score, {}, folder=tmp_path)
    assert tool.chosen("s", "a", folder=tmp_path) == {"lr": 0.2}
    assert tool.chosen("s", "b", folder=tmp_path) == {"lr": 0.3, "weight": 2}
    lock = FolderLock(tmp_path)
    lock.acquire()
    Timer(0.2, lock.release).start()
    tool.search("s", {"c": GRID["a"]}, Scores(), {}, folder=tmp_path)
    assert tool.chosen("s", "c", folder=tmp_path)
    monkeypatch.setattr(tool, "WAIT", 0.0)
    with FolderLock(tmp_path), pytest.raises(ValueError, match="in use by"):
        tool.search("s", {"d": GRID["a"]}, Scores(), {}, folder=tmp_path)


def test_table_says_where_the_best_is_at_the_edge(tool, tmp_path):
    grid = {
        "a": [{"lr": lr, "weight": 2, "hidden": h} for lr in (1, 2, 3) for h in (4, 8)],
        "b": [{"kind": "x"}],
    }

    def score(method, candidate):
        return -abs(candidate.get("lr", 0) - 2) + candidate.get("hidden", 0)

    tool.search("s", grid, score, {}, folder=tmp_path)
    lines = tool.search_table("s", folder=tmp_path).splitlines()
    best = [line for line in lines if line[0] == "*"]
    assert [line for line in lines if "edge" in line] == best[:1]
    assert best[0].endswith("hidden 8, at the edge of hidden") and len(best) == 2
    assert tool.search_table("none", folder=tmp_path) == ""


def test_other_weights_have_settings_of_their_own(tool):
    assert tool.study_of("s", "icons") == tool.study_of("s", None) == "s"
    assert tool.study_of("s", "emoji-2010") == "s_emoji-2010"
    assert tool.study_of("s", "runs/mine.safetensors") == "s_mine"
