"""Settings chosen on validation drawings: the best is kept, nothing is repeated."""

import pytest

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
